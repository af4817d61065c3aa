//! Who has what, where several may claim the same thing: the first in the order of owners has it.
//!
//! Because that order is a property of the objects and not of the moments at which they arrive, the same objects
//! always give the same snapshot.

use std::hash::Hash;

use ahash::AHashMap;
use smallvec::SmallVec;

pub(super) struct Claims<K, O, V> {
    /// Sorted by owner, never empty.
    by_key: AHashMap<K, SmallVec<[(O, V); 1]>>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: AHashMap::new() }
    }
}

impl<K: Hash + Eq + Clone, O: Ord, V: Clone> Claims<K, O, V> {
    pub(super) fn insert(&mut self, key: K, owner: O, value: V) {
        let claims = self.by_key.entry(key).or_default();
        match claims.binary_search_by(|(other, _)| other.cmp(&owner)) {
            Ok(at) => claims[at].1 = value,
            Err(at) => claims.insert(at, (owner, value)),
        }
    }

    pub(super) fn remove(&mut self, key: &K, owner: &O) {
        if let Some(claims) = self.by_key.get_mut(key) {
            claims.retain(|(other, _)| other != owner);
            if claims.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// What each key's first claimant has.
    pub(super) fn winners(&self) -> AHashMap<K, V> {
        let mut winners = AHashMap::with_capacity(self.by_key.len());
        winners.extend(
            self.by_key
                .iter()
                .filter_map(|(key, claims)| claims.first().map(|(_, value)| (key.clone(), value.clone()))),
        );
        winners
    }

    /// Keys that more than one claims: the winner, and each of the others.
    pub(super) fn contested(&self) -> impl Iterator<Item = (&K, &(O, V), &(O, V))> {
        self.by_key.iter().flat_map(|(key, claims)| {
            let winner = claims.first();
            claims.iter().skip(1).filter_map(move |loser| Some((key, winner?, loser)))
        })
    }
}
