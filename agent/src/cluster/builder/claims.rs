//! Who has what, where several may claim the same thing: the first in the order of owners has it.
//!
//! Because that order is a property of the objects and not of the moments at which they arrive, the same objects
//! always give the same snapshot.

use std::hash::Hash;

use ahash::{AHashMap, AHashSet};
use smallvec::SmallVec;

use crate::cluster::shared::SharedMap;

pub(super) struct Claims<K, O, V> {
    /// Sorted by owner, never empty.
    by_key: AHashMap<K, SmallVec<[(O, V); 1]>>,
    /// What each key's first claimant has.
    winners: SharedMap<K, V>,
    /// Keys that more than one claims.
    contested: AHashSet<K>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: AHashMap::new(), winners: SharedMap::default(), contested: AHashSet::new() }
    }
}

impl<K: Hash + Eq + Clone, O: Ord, V: Clone> Claims<K, O, V> {
    pub(super) fn insert(&mut self, key: K, owner: O, value: V) {
        let claims = self.by_key.entry(key.clone()).or_default();
        let at = match claims.binary_search_by(|(other, _)| other.cmp(&owner)) {
            Ok(at) => {
                claims[at].1 = value.clone();
                at
            }
            Err(at) => {
                claims.insert(at, (owner, value.clone()));
                at
            }
        };
        if claims.len() > 1 {
            self.contested.insert(key.clone());
        }
        if at == 0 {
            self.winners.insert(key, value);
        }
    }

    pub(super) fn remove(&mut self, key: &K, owner: &O) {
        let Some(claims) = self.by_key.get_mut(key) else { return };
        let Ok(at) = claims.binary_search_by(|(other, _)| other.cmp(owner)) else { return };
        claims.remove(at);
        if claims.len() < 2 {
            self.contested.remove(key);
        }
        match claims.first() {
            Some((_, next)) if at == 0 => {
                self.winners.insert(key.clone(), next.clone());
            }
            Some(_) => {}
            None => {
                self.winners.remove(key);
                self.by_key.remove(key);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// What each key's first claimant has.
    pub(super) fn winners(&self) -> &SharedMap<K, V> {
        &self.winners
    }

    /// Keys that more than one claims: the winner, and each of the others.
    pub(super) fn contested(&self) -> impl Iterator<Item = (&K, &(O, V), &(O, V))> {
        self.contested.iter().filter_map(|key| self.by_key.get_key_value(key)).flat_map(|(key, claims)| {
            let winner = claims.first();
            claims.iter().skip(1).filter_map(move |loser| Some((key, winner?, loser)))
        })
    }
}
