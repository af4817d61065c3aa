//! The pods as they are, by their names and by their addresses.
//!
//! A large cluster has a hundred thousand of them, and whatever is kept for each counts as often: the indices have the pods
//! themselves, and no names or addresses beside them.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};
use smallvec::SmallVec;

use crate::cluster::object::{Name, Pod};

#[derive(Default)]
pub(super) struct Pods {
    by_name: AHashSet<ByName>,
    /// Those that have an address of their own.
    at: AHashMap<IpAddr, SmallVec<[Arc<Pod>; 1]>>,
}

impl Pods {
    pub(super) fn get(&self, name: &Name) -> Option<&Arc<Pod>> {
        self.by_name.get(name).map(|ByName(pod)| pod)
    }

    /// The pod that has this address. While one pod hands it over to the next, the one that stays.
    pub(super) fn at(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.at.get(&ip)?.iter().min_by_key(|pod| (pod.terminating, &pod.name))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.iter().map(|pod| &pod.name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_name.iter().map(|ByName(pod)| pod)
    }

    /// Puts a pod in; gives the one that was there.
    pub(super) fn set(&mut self, pod: Arc<Pod>) -> Option<Arc<Pod>> {
        let before = self.remove(&pod.name);
        for ip in addresses(&pod) {
            self.at.entry(*ip).or_default().push(pod.clone());
        }
        self.by_name.insert(ByName(pod));
        before
    }

    /// Takes a pod out, and gives it.
    pub(super) fn remove(&mut self, name: &Name) -> Option<Arc<Pod>> {
        let ByName(before) = self.by_name.take(name)?;
        for ip in addresses(&before) {
            if let Some(pods) = self.at.get_mut(ip) {
                pods.retain(|other| !Arc::ptr_eq(other, &before));
                if pods.is_empty() {
                    self.at.remove(ip);
                }
            }
        }
        Some(before)
    }
}

/// Those that are the pod's own: not its node's, and not free for the next pod.
fn addresses(pod: &Pod) -> &[IpAddr] {
    if pod.host_network || pod.finished { &[] } else { &pod.ips }
}

/// Is equal to the pod of the same name, and found by it.
struct ByName(Arc<Pod>);

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl Borrow<Name> for ByName {
    fn borrow(&self) -> &Name {
        &self.0.name
    }
}
