//! Pods of this node that AccessPolicies want closed while no agent is there (`whenUnattended: Refuse`): where that is so, and where it is
//! not, and why.

use std::collections::{BTreeMap, BTreeSet};

use ahash::AHashMap;

use super::{Look, unenforced::ServiceName};

/// Of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Pods that refuse connections once no agent is there.
    pub active: BTreeSet<String>,
    /// Pods that do not, by why.
    pub missing: BTreeMap<Missing, BTreeSet<String>>,
}

impl Closing {
    /// How many pods are closed, and how many are not. One of which an address is not closed is not.
    pub fn counts(&self) -> (usize, usize) {
        let missing: BTreeSet<_> = self.missing.values().flatten().collect();
        (self.active.iter().filter(|pod| !missing.contains(pod)).count(), missing.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// `shop/orders`
    pub policy: String,
    /// A clause.
    pub why: String,
}

/// All that pods of this node are endpoints of.
pub fn closing(look: &Look) -> BTreeMap<ServiceName, Closing> {
    let mut closing: BTreeMap<ServiceName, Closing> = BTreeMap::new();
    // The next one knows.
    if look.draining {
        return closing;
    }
    let mut pods = None;
    for (address, port) in look.snapshot.inbound.iter() {
        for service in &port.guards {
            let access = service.access.as_ref().filter(|access| access.closed_unattended().is_some());
            let endpoint = service.endpoints.iter().find(|endpoint| endpoint.address == address);
            let pod = endpoint.filter(|it| !it.terminating).and_then(|it| it.pod.as_deref());
            let (Some(access), Some(pod)) = (access, pod) else { continue };
            let of = closing.entry((service.namespace.to_string(), service.name.to_string())).or_default();
            let pods = pods.get_or_insert_with(|| {
                let named =
                    look.pods.iter().map(|pod| ((&*pod.workload.namespace, &*pod.workload.name), pod));
                named.collect::<AHashMap<_, _>>()
            });
            let known = pods.get(&(&*service.namespace, pod));
            if known.is_some_and(|known| known.steered.closed.contains(&address)) {
                of.active.insert(pod.to_owned());
                continue;
            }
            let why = known.and_then(|known| known.steered.unclosed.clone());
            let why = why.unwrap_or_else(|| "the agent does not attend it, or not yet".to_owned());
            let missing = Missing { policy: access.name.to_string(), why };
            of.missing.entry(missing).or_default().insert(pod.to_owned());
        }
    }
    closing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_closed_with_all_its_addresses_or_not() {
        let pods = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let missing = |why: &str| Missing { policy: "shop/a".to_owned(), why: why.to_owned() };
        let closing = Closing {
            active: pods(&["dual", "whole"]),
            missing: BTreeMap::from([
                (missing("x"), pods(&["dual", "none"])),
                (missing("y"), pods(&["none"])),
            ]),
        };
        assert_eq!(closing.counts(), (1, 2));
    }
}
