//! Who calls: pods by their addresses.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use ahash::AHashMap;

use crate::govern::access::Identity;

/// Pods by their addresses, in all enrolled namespaces and on all nodes. Kept up to date in place, for it is asked once a connection
/// and changes with each pod.
#[derive(Debug, Default)]
pub struct Clients(RwLock<AHashMap<IpAddr, Arc<Identity>>>);

impl Clients {
    /// The pod that has this address.
    pub fn find(&self, address: IpAddr) -> Option<Arc<Identity>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// This pod has it, or nobody.
    pub(super) fn set(&self, address: IpAddr, pod: Option<Identity>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match pod {
            Some(pod) if all.get(&address).is_some_and(|known| **known == pod) => {}
            Some(pod) => drop(all.insert(address, Arc::new(pod))),
            None => drop(all.remove(&address)),
        }
    }
}
