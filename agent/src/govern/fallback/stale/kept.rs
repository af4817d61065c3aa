//! The answers that are kept, and which of them goes first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use http::HeaderName;

use super::{Answer, Key};

/// Answers to one key, told apart by `Vary`.
const MAX_VARIANTS: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Kept {
    answers: HashMap<Key, Vec<Variant>>,
    /// By when they were last used: the first is the next to go.
    order: BTreeMap<u64, Key>,
    uses: u64,
    bytes: u64,
}

/// One of the answers to a key.
#[derive(Debug)]
struct Variant {
    vary: Vary,
    /// Its place in the order.
    used: u64,
    answer: Arc<Answer>,
}

/// What tells answers to the same key apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vary {
    /// The request's headers that the answer depends on, sorted.
    pub(super) names: Box<[HeaderName]>,
    /// Of their values.
    pub(super) digest: u128,
}

impl Kept {
    /// In the place of the answer that there was, if there was one; unless that is newer, and only came to its end
    /// sooner.
    pub(super) fn insert(&mut self, key: Key, vary: Vary, answer: Arc<Answer>) {
        let variants = self.answers.entry(key).or_default();
        let replaced = variants.iter().position(|variant| variant.vary == vary);
        if replaced.is_some_and(|at| variants[at].answer.came_at_nanos > answer.came_at_nanos) {
            return;
        }
        let oldest = || variants.iter().enumerate().min_by_key(|(_, variant)| variant.used);
        let crowded = replaced.is_none() && variants.len() >= MAX_VARIANTS;
        let gone = if crowded { oldest().map(|(at, _)| at) } else { replaced };
        if let Some(at) = gone {
            let gone = variants.swap_remove(at);
            self.order.remove(&gone.used);
            self.bytes -= gone.answer.size();
        }
        self.uses += 1;
        self.bytes += answer.size();
        self.order.insert(self.uses, key);
        variants.push(Variant { vary, used: self.uses, answer });
    }

    /// The newest of the answers to the key that fit: if the service came to vary by other headers, several may.
    pub(super) fn find(&mut self, key: Key, fits: impl Fn(&Vary, &Answer) -> bool) -> Option<Arc<Answer>> {
        let variants = self.answers.get_mut(&key)?;
        let found = variants
            .iter_mut()
            .filter(|variant| fits(&variant.vary, &variant.answer))
            .max_by_key(|variant| variant.answer.came_at_nanos)?;
        self.order.remove(&found.used);
        self.uses += 1;
        found.used = self.uses;
        self.order.insert(self.uses, key);
        Some(found.answer.clone())
    }

    /// Drops the answer that was not used for the longest time; `false` if there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let Some((used, key)) = self.order.pop_first() else { return false };
        self.remove(key, |variant| variant.used == used);
        true
    }

    pub(super) fn shrink_to(&mut self, bytes: u64) {
        while self.bytes > bytes && self.drop_oldest() {}
    }

    pub(super) fn forget(&mut self, is_gone: impl Fn(&Answer) -> bool) {
        let keys: Vec<_> = self.answers.keys().copied().collect();
        for key in keys {
            for used in self.remove(key, |variant| is_gone(&variant.answer)) {
                self.order.remove(&used);
            }
        }
    }

    /// Returns the places in the order that are void now.
    fn remove(&mut self, key: Key, is_gone: impl Fn(&Variant) -> bool) -> Vec<u64> {
        let mut void = Vec::new();
        let Some(variants) = self.answers.get_mut(&key) else { return void };
        variants.retain(|variant| {
            let gone = is_gone(variant);
            if gone {
                self.bytes -= variant.answer.size();
                void.push(variant.used);
            }
            !gone
        });
        if variants.is_empty() {
            self.answers.remove(&key);
        }
        void
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
