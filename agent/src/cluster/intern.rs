//! Texts that very many objects have in common, in memory once: names of namespaces, nodes, zones and workloads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashSet;

static KNOWN: Mutex<Option<AHashSet<Arc<str>>>> = Mutex::new(None);

/// The same text as everybody else's.
pub(super) fn intern(text: &str) -> Arc<str> {
    let mut known = lock();
    let known = known.get_or_insert_default();
    if let Some(known) = known.get(text) {
        return known.clone();
    }
    let text: Arc<str> = text.into();
    known.insert(text.clone());
    text
}

/// Lets go of texts that nobody has any more.
pub(super) fn forget() {
    if let Some(known) = &mut *lock() {
        known.retain(|text| Arc::strong_count(text) > 1);
    }
}

fn lock() -> MutexGuard<'static, Option<AHashSet<Arc<str>>>> {
    // A set whose owner panicked is a set all the same.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_there_once_and_for_as_long_as_somebody_has_it() {
        let text = "intern-test-only";
        let (one, other) = (intern(text), intern(text));
        assert!(Arc::ptr_eq(&one, &other));
        forget();
        assert!(Arc::ptr_eq(&one, &intern(text)));
        drop((one, other));
        forget();
        assert!(!lock().as_ref().is_some_and(|known| known.contains(text)));
    }
}
