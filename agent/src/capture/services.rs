//! Keeps the kernel's set of governed destinations equal to the snapshot's.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ahash::{AHashMap, AHashSet};

use sluice_ebpf::DIRECT;

use super::{error::with_causes, flows::Flows, maps};
use crate::cluster::model::Snapshot;

/// The governed destinations that the kernel knows.
pub(crate) struct Services {
    map: maps::Services,
    /// With the number of the service behind each, and whether connections go direct.
    known: AHashMap<SocketAddr, u32>,
    /// Hands the numbers out.
    flows: Arc<Flows>,
}

impl Services {
    pub(crate) fn new(map: maps::Services, flows: Arc<Flows>) -> Self {
        Self { map, known: AHashMap::new(), flows }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether connections to this address are redirected.
    pub(crate) fn redirects(&self, address: SocketAddr) -> bool {
        self.known.get(&address).is_some_and(|value| value & DIRECT == 0)
    }

    /// Removes what is gone and adds what is new; what stays is not touched. What fails is tried again with the next
    /// snapshot.
    pub(crate) fn sync(&mut self, snapshot: &Snapshot) {
        let wanted: AHashMap<_, _> = snapshot
            .destinations
            .iter()
            .map(|(address, destination)| {
                let direct = if destination.is_redirected() { 0 } else { DIRECT };
                (*address, self.flows.number(&destination.service) | direct)
            })
            .collect();
        let (changed, removed) = difference(&self.known, &wanted);
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
        for (address, service) in changed {
            match self.map.set(address, service) {
                Ok(()) => {
                    self.known.insert(address, service);
                }
                Err(error) => {
                    failures += 1;
                    last_error = Some((address, with_causes(&error)));
                }
            }
        }
        let there: AHashSet<u32> = wanted.into_values().map(|value| value & !DIRECT).collect();
        self.flows.services(|number| there.contains(&number), Instant::now());
        if let Some((address, error)) = last_error {
            tracing::error!(
                failures, %address, error,
                "the kernel's list of managed destinations is not up to date (it holds {} at most)",
                sluice_ebpf::MAX_SERVICES
            );
        }
    }
}

type Numbers = AHashMap<SocketAddr, u32>;

/// Addresses that are new, or lead to another service now; and addresses that are gone.
fn difference(known: &Numbers, wanted: &Numbers) -> (Vec<(SocketAddr, u32)>, Vec<SocketAddr>) {
    let changed = wanted.iter().filter(|(address, service)| known.get(address) != Some(service));
    let removed = known.keys().filter(|address| !wanted.contains_key(address));
    (changed.map(|(address, service)| (*address, *service)).collect(), removed.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_done() {
        let [stays, comes, goes, moves] = ["10.96.0.1:80", "[fd00::1]:80", "10.96.0.1:81", "10.96.0.2:80"]
            .map(|text| text.parse().unwrap());
        let known = Numbers::from_iter([(stays, 1), (goes, 1), (moves, 2)]);
        let wanted = Numbers::from_iter([(stays, 1), (comes, 1), (moves, 3)]);
        let (mut changed, removed) = difference(&known, &wanted);
        changed.sort_unstable();
        assert_eq!((changed, removed), (vec![(moves, 3), (comes, 1)], vec![goes]));
        assert_eq!(difference(&wanted, &wanted), (vec![], vec![]));
    }
}
