//! The keys of a provider as they are known now: whoever gets them puts them here, and requests look here.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;

use super::Keys;

/// The keys of one source, if any were ever known. All providers that name the source look at the same.
#[derive(Debug, Default)]
pub struct Known {
    keys: ArcSwapOption<Keys>,
    /// A token has asked for a key that is not among them.
    asked: AtomicBool,
    /// Why the last try to get them failed.
    trouble: ArcSwapOption<String>,
}

impl Known {
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

    pub fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    pub fn set_trouble(&self, trouble: Option<Arc<String>>) {
        self.trouble.store(trouble);
    }
}

/// Where a provider looks for its keys: what is known of its source, once the two have been linked.
#[derive(Debug, Default)]
pub struct Slot(OnceLock<Arc<Known>>);

impl Slot {
    pub fn of(keys: Arc<Keys>) -> Self {
        let slot = Self::default();
        slot.known().put(Some(keys));
        slot
    }

    /// From now on it is this that the provider looks at. Only the first link counts: the others, and who has looked before, have
    /// been given it already.
    pub fn link(&self, known: impl FnOnce() -> Arc<Known>) {
        self.0.get_or_init(known);
    }

    /// What is known. Without a link that is nothing.
    pub fn known(&self) -> &Arc<Known> {
        self.0.get_or_init(Arc::default)
    }

    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.known().keys()
    }
}
