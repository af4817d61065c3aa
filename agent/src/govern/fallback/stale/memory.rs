//! How much may be kept by all services of an agent together.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
};

#[derive(Debug)]
pub struct Memory {
    limit: u64,
    used: AtomicU64,
}

impl Memory {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// In bytes; never above the limit.
    pub fn used(&self) -> u64 {
        self.used.load(Acquire)
    }
}

/// A part of the memory; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Reserved {
    pub(super) fn nothing(memory: Arc<Memory>) -> Self {
        Self { memory, bytes: 0 }
    }

    /// Takes `by` more; `false` if there is not so much left.
    pub(super) fn grow(&mut self, by: u64) -> bool {
        let memory = &self.memory;
        let taken = memory
            .used
            .fetch_update(AcqRel, Acquire, |used| used.checked_add(by).filter(|used| *used <= memory.limit));
        self.bytes += if taken.is_ok() { by } else { 0 };
        taken.is_ok()
    }

    /// Gives back what is above `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.memory.used.fetch_sub(back, AcqRel);
        self.bytes -= back;
    }

    /// How much more there is to take, at this moment.
    pub(super) fn left(&self) -> u64 {
        self.memory.limit.saturating_sub(self.memory.used())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_is_given_back() {
        let memory = Memory::new(10);
        let mut one = Reserved::nothing(memory.clone());
        let mut other = Reserved::nothing(memory.clone());
        assert!(one.grow(6) && !other.grow(5) && other.grow(4));
        assert!(!one.grow(1) && !one.grow(u64::MAX));
        assert_eq!((memory.used(), one.bytes(), other.bytes()), (10, 6, 4));
        one.shrink_to(2);
        one.shrink_to(9);
        assert_eq!((memory.used(), one.bytes()), (6, 2));
        drop(other);
        assert_eq!(memory.used(), 2);
        drop(one);
        assert_eq!(memory.used(), 0);
    }
}
