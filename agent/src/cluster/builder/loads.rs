//! What is kept of the endpoints of a port from one build of it to the next.
//!
//! In one piece, and sorted: a large cluster has a hundred thousand of these, and a hash map keeps room for as many again.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::{doubt::Gone, moment::Ready};
use crate::govern::endpoint::Load;

/// Whose load it is: that of an address, as long as the same pod has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LoadKey {
    pub(super) address: SocketAddr,
    /// Its UID.
    pub(super) pod: Option<Arc<str>>,
}

#[derive(Default)]
pub(super) struct Kept {
    pub(super) load: Arc<Load>,
    pub(super) ready: Option<Ready>,
    /// When its pod says that its first request came, as it was taken over last.
    pub(super) first_told: Option<SystemTime>,
    /// It is one of the endpoints at the moment. Else it is gone, once all of them have been listed.
    pub(super) listed: bool,
    /// In a box, for nearly all are there.
    pub(super) gone: Option<Box<Gone>>,
    /// Since when its pod is not there.
    pub(super) unknown: Option<Instant>,
}

/// In the order of their keys.
#[derive(Default)]
pub(super) struct Loads(Vec<(LoadKey, Kept)>);

impl Loads {
    pub(super) fn get(&self, key: &LoadKey) -> Option<&Kept> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// There will be so many, as far as can be said.
    pub(super) fn expect(&mut self, count: usize) {
        self.0.reserve_exact(count.saturating_sub(self.0.len()));
    }

    /// It is one of the endpoints: what is kept of it, from now on if nothing was.
    pub(super) fn list(&mut self, key: LoadKey) -> &mut Kept {
        let at = self.find(&key).unwrap_or_else(|at| {
            if self.0.len() == self.0.capacity() {
                // Not for as many again: a pod takes the place of another.
                self.0.reserve_exact(1 + self.0.len() / 8);
            }
            self.0.insert(at, (key, Kept::default()));
            at
        });
        let kept = &mut self.0[at].1;
        (kept.listed, kept.gone) = (true, None);
        kept
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&LoadKey, &mut Kept)> {
        self.0.iter_mut().map(|(key, kept)| (&*key, kept))
    }

    /// Lets go of those of which this is not true, and of room for many more.
    pub(super) fn retain(&mut self, mut holds: impl FnMut(&Kept) -> bool) {
        self.0.retain(|(_, kept)| holds(kept));
        // Not of room for a few: what is moved in memory with each change leaves holes there.
        if self.0.capacity() > 2 + self.0.len() + self.0.len() / 4 {
            self.0.shrink_to_fit();
        }
    }

    fn find(&self, key: &LoadKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> LoadKey {
        let last = u8::try_from(number % 250).unwrap();
        LoadKey { address: ([10, 0, 0, last], 8080).into(), pod: Some(format!("uid-{number}").into()) }
    }

    #[test]
    fn a_load_is_its_pods_alone() {
        let mut loads = Loads::default();
        for number in [2, 1, 251] {
            loads.list(key(number)).load.note_first_request(None, 7);
        }
        assert!(loads.get(&key(1)).is_some_and(|kept| kept.load.first_request(None) == Some(7)));
        assert!(loads.get(&key(501)).is_none(), "another pod at the same address");
        assert_eq!(loads.list(key(501)).load.first_request(None), None);
        assert!(loads.0.is_sorted_by(|(one, _), (other, _)| one < other));
    }

    /// Pods that come and go take room for a few at most.
    #[test]
    fn there_is_no_room_for_as_many_again() {
        let mut loads = Loads::default();
        loads.expect(100);
        for number in 0..100 {
            loads.list(key(number));
        }
        assert_eq!(loads.0.capacity(), 100);
        for number in 100..200 {
            loads.list(key(number));
            for (_, kept) in loads.iter_mut().filter(|(of, _)| **of == key(number - 100)) {
                kept.listed = false;
            }
            loads.retain(|kept| kept.listed);
            assert_eq!(loads.0.len(), 100);
            assert!(loads.0.capacity() <= 127, "{}", loads.0.capacity());
        }
        loads.retain(|_| false);
        assert_eq!(loads.0.capacity(), 0);
    }
}
