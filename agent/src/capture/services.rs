//! Keeps the kernel's set of governed destinations equal to the snapshot's.

use std::net::SocketAddr;

use ahash::AHashSet;

use super::{error::with_causes, maps};
use crate::cluster::model::Snapshot;

/// The governed destinations that the kernel knows.
pub(crate) struct Services {
    map: maps::Services,
    known: AHashSet<SocketAddr>,
}

impl Services {
    pub(crate) fn new(map: maps::Services) -> Self {
        Self { map, known: AHashSet::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        self.known.contains(&address)
    }

    /// Removes what is gone and adds what is new; what stays is not touched. What fails is tried again with the next
    /// snapshot.
    pub(crate) fn sync(&mut self, snapshot: &Snapshot) {
        let (added, removed) = difference(&self.known, snapshot);
        let mut failures = 0;
        let mut last_error = None;
        // First, so that there is room for what is new.
        for address in removed {
            match self.map.remove(address) {
                Ok(()) => {
                    self.known.remove(&address);
                }
                Err(error) => {
                    failures += 1;
                    last_error = Some((address, with_causes(&error)));
                }
            }
        }
        for address in added {
            match self.map.add(address) {
                Ok(()) => {
                    self.known.insert(address);
                }
                Err(error) => {
                    failures += 1;
                    last_error = Some((address, with_causes(&error)));
                }
            }
        }
        if let Some((address, error)) = last_error {
            tracing::error!(
                failures, %address, error,
                "the kernel's list of governed destinations is not up to date (it holds {} at most)",
                sluice_ebpf::MAX_SERVICES
            );
        }
    }
}

fn difference(known: &AHashSet<SocketAddr>, snapshot: &Snapshot) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let added = snapshot.destinations.keys().filter(|address| !known.contains(address)).copied().collect();
    let removed =
        known.iter().filter(|address| !snapshot.destinations.contains_key(address)).copied().collect();
    (added, removed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::model::{Destination, Service};

    #[test]
    fn only_the_difference_is_done() {
        let [stays, comes, goes] =
            ["10.96.0.1:80", "[fd00::1]:80", "10.96.0.1:81"].map(|text| text.parse::<SocketAddr>().unwrap());
        let service = Arc::new(Service::new("shop", "orders", 80));
        let mut snapshot = Snapshot::default();
        for address in [stays, comes] {
            snapshot.destinations.insert(address, Destination { service: service.clone(), pinned: None });
        }
        assert_eq!(difference(&AHashSet::from([stays, goes]), &snapshot), (vec![comes], vec![goes]));
        assert_eq!(difference(&AHashSet::from([stays, comes]), &snapshot), (vec![], vec![]));
    }
}
