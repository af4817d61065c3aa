//! Counters of what has a name that users give.

use std::{
    borrow::Borrow,
    hash::Hash,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ahash::AHashMap;

/// By name, which is mostly a text.
#[derive(Debug)]
pub(super) struct Named<const N: usize, K = Arc<str>>(RwLock<AHashMap<K, Arc<[AtomicU64; N]>>>);

impl<const N: usize, K> Default for Named<N, K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<const N: usize> Named<N> {
    pub(super) fn count(&self, name: &str, index: usize) {
        if let Some(counters) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            counters[index].fetch_add(1, Relaxed);
            return;
        }
        self.of(name.into())[index].fetch_add(1, Relaxed);
    }
}

impl<const N: usize, K: Clone + Ord + Hash> Named<N, K> {
    /// The counters of a name, to be kept.
    pub(super) fn of(&self, name: K) -> Arc<[AtomicU64; N]> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let none = || Arc::new(std::array::from_fn(|_| AtomicU64::default()));
        Arc::clone(all.entry(name).or_insert_with(none))
    }

    /// The same of the first `most` names that come; of further ones, those of `others`.
    pub(super) fn of_at_most(
        &self,
        name: &K,
        most: usize,
        others: impl FnOnce() -> K,
    ) -> Arc<[AtomicU64; N]> {
        let known = {
            let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(name).cloned();
            known.ok_or(all.len() < most)
        };
        match known {
            Ok(counters) => counters,
            Err(true) => self.of(name.clone()),
            Err(false) => self.of(others()),
        }
    }

    pub(super) fn retain<Q: ?Sized>(&self, exists: impl Fn(&Q) -> bool)
    where
        K: Borrow<Q>,
    {
        let exists = |name: &K| exists(name.borrow());
        // Nearly always all are there, and nobody is kept from counting.
        let gone = self.0.read().unwrap_or_else(PoisonError::into_inner).keys().any(|name| !exists(name));
        if gone {
            self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| exists(name));
        }
    }

    /// What all have counted, in order.
    pub(super) fn all(&self) -> Vec<(K, [u64; N])> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.iter().map(|(name, counters)| (name.clone(), loaded(counters))).collect();
        all.sort();
        all
    }
}

pub(super) fn loaded<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    counters.each_ref().map(|counter| counter.load(Relaxed))
}
