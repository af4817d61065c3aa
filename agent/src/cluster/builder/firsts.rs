//! The pods of this node whose first request is to be told: those of Services whose warm-up begins with it.

use std::sync::Arc;

use ahash::AHashSet;

use super::{Builder, service::Built};
use crate::cluster::{
    first_request::{First, Firsts, told},
    object::{Name, Pod},
};

impl Builder {
    /// Those of which nothing is told yet, as of the last [`Builder::build`].
    pub fn firsts(&self) -> &Arc<Firsts> {
        &self.firsts
    }

    /// Looks again, if a Service that has to do with it was built anew.
    pub(super) fn find_firsts(&mut self, built: &AHashSet<Name>) {
        if !self.options.warm_gates {
            return;
        }
        let mut concerned = false;
        for name in built {
            let here = self.built.get(name).into_iter().flat_map(Built::services);
            let starts = here.into_iter().any(|service| {
                service.starts_on_first_request() && service.endpoints.iter().any(|one| self.is_here(one))
            });
            concerned |= if starts {
                self.starting.insert(name.clone());
                true
            } else {
                self.starting.remove(name)
            };
        }
        if !concerned {
            return;
        }
        let mut firsts = Firsts::default();
        let built = self.starting.iter().filter_map(|name| self.built.get(name));
        for service in built.flat_map(Built::services).filter(|service| service.starts_on_first_request()) {
            for endpoint in service.endpoints.iter().filter(|one| !one.terminating && self.is_here(one)) {
                let Some(pod) = endpoint.pod.clone() else { continue };
                let name = Name { namespace: service.namespace.clone(), name: pod };
                // One that has come after it under its name has another address, or none yet.
                let own = |pod: &&Arc<Pod>| pod.ips.contains(&endpoint.address.ip().to_canonical());
                let Some(pod) = self.store.pods.get(&name).filter(own) else { continue };
                if told(pod, self.store.ready_since(pod)).is_none() {
                    let new = || First { uid: pod.uid.clone(), endpoints: Vec::new() };
                    firsts.entry(name).or_insert_with(new).endpoints.push(endpoint.clone());
                }
            }
        }
        for first in firsts.values_mut() {
            first.endpoints.sort_by_key(|endpoint| endpoint.address);
        }
        if *self.firsts != firsts {
            self.firsts = Arc::new(firsts);
        }
    }
}
