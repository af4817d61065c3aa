//! Who calls: pods by their addresses.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use ahash::AHashMap;

use super::object::Pod;
use crate::govern::access::Identity;

/// Pods by their addresses, in all enrolled namespaces and on all nodes. Kept up to date in place, for it is asked once a connection
/// and changes with each pod. It has the pods themselves: identities of their own for all of a cluster are 10 MiB, and nearly
/// none of them is ever asked for.
#[derive(Debug, Default)]
pub struct Clients(RwLock<AHashMap<IpAddr, Arc<Pod>>>);

impl Clients {
    /// The pod that has this address.
    pub fn find(&self, address: IpAddr) -> Option<Arc<Identity>> {
        let pod = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned();
        pod.map(|pod| Arc::new(identity(&pod)))
    }

    /// This pod has it, or nobody.
    pub(super) fn set(&self, address: IpAddr, pod: Option<Arc<Pod>>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match pod {
            Some(pod) => drop(all.insert(address, pod)),
            None => drop(all.remove(&address)),
        }
    }
}

fn identity(pod: &Pod) -> Identity {
    Identity {
        namespace: pod.name.namespace.clone(),
        pod: pod.name.name.clone(),
        workload: pod.workload.as_ref().unwrap_or(&pod.name.name).clone(),
        service_account: pod.service_account.clone(),
        labels: pod.labels.clone(),
    }
}
