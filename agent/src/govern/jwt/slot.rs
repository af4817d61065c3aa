//! The keys of a provider as they are known now: whoever gets them puts them here, and requests look here.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;

use super::Keys;

/// The keys of a provider, if any were ever known.
#[derive(Debug, Default)]
pub struct Slot {
    keys: ArcSwapOption<Keys>,
    /// A token has asked for a key that is not among them.
    asked: AtomicBool,
}

impl Slot {
    pub fn of(keys: Arc<Keys>) -> Self {
        Self { keys: ArcSwapOption::from(Some(keys)), asked: AtomicBool::new(false) }
    }

    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// From now on these count, and no others.
    pub fn put(&self, keys: Option<Arc<Keys>>) {
        self.keys.store(keys);
    }

    /// Says that a key is not known. Costs nothing more however often it is said.
    pub fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    /// Whether somebody has asked since the last time.
    pub fn take_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::Relaxed)
    }
}
