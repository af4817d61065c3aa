//! A map whose copies share what is the same in them.
//!
//! Each snapshot of the cluster has such maps, and differs from the one before it in a few entries mostly. A hash map in one
//! piece would be copied as a whole for each; this one is in many parts, and a change copies the part that it is in. What
//! is different between two maps is found by the same token, without looking at the parts that they share.

use std::{borrow::Borrow, fmt, hash::Hash, ops::Index, sync::Arc};

use ahash::{AHashMap, RandomState};

/// With 100,000 entries some hundred are copied for a change; with 1,000, one. Copying the list of parts is a few microseconds.
const PARTS: usize = 1024;

type Part<K, V> = Arc<AHashMap<K, V>>;

/// A hash map that is cheap to clone, and of which a clone is cheap to change.
pub struct SharedMap<K, V> {
    parts: Arc<[Part<K, V>]>,
    len: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        // All of them one and the same empty one.
        let part = Part::default();
        Self { parts: std::iter::repeat_n(part, PARTS).collect(), len: 0 }
    }
}

impl<K, V> SharedMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.parts.iter().flat_map(|part| part.iter())
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.parts.iter().flat_map(|part| part.keys())
    }

    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.parts.iter().flat_map(|part| part.values())
    }
}

impl<K: Hash + Eq, V> SharedMap<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.parts[part(key)].get(key)
    }

    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Keys of which the values may not be the same, with those before and now. Only the parts are looked at that are not shared.
    pub fn differences<'m>(
        &'m self,
        before: &'m Self,
    ) -> impl Iterator<Item = (&'m K, Option<&'m V>, Option<&'m V>)> {
        let parts = self.parts.iter().zip(&*before.parts).filter(|(now, before)| !Arc::ptr_eq(now, before));
        parts.flat_map(|(now, before)| {
            let gone = before.iter().filter(|(key, _)| !now.contains_key(*key));
            let gone = gone.map(|(key, value)| (key, Some(value), None));
            now.iter().map(|(key, value)| (key, before.get(key), Some(value))).chain(gone)
        })
    }

    /// How many parts are not shared with the other.
    #[cfg(test)]
    pub(super) fn unshared_parts(&self, other: &Self) -> usize {
        self.parts.iter().zip(&*other.parts).filter(|(one, other)| !Arc::ptr_eq(one, other)).count()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SharedMap<K, V> {
    /// Gives what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = Arc::make_mut(self.part_mut(&key)).insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Gives what was there. Copies nothing if there was nothing.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let before = Arc::make_mut(self.part_mut(key)).remove(key);
        self.len -= usize::from(before.is_some());
        before
    }

    fn part_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut Part<K, V> {
        &mut Arc::make_mut(&mut self.parts)[part(key)]
    }
}

/// The part that a key is in: the same in all maps, or they could not be compared. Within a part keys are hashed with a secret.
fn part<Q: Hash + ?Sized>(key: &Q) -> usize {
    RandomState::with_seeds(1, 2, 3, 4).hash_one(key) as usize % PARTS
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Hash + Eq + Borrow<Q>, Q: Hash + Eq + ?Sized, V> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is in the map, as with every map that is indexed")
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        /// What is compared from here on.
        Mark,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..64_u16, any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            (0..64_u16).prop_map(Step::Remove),
            Just(Step::Mark),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_its_copies_do_not_change(steps in prop::collection::vec(step(), 0..200)) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut marked = (map.clone(), model.clone());
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                    }
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Mark => marked = (map.clone(), model.clone()),
                }
                let of = |map: &SharedMap<u16, u8>| map.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(&of(&map), &model);
                prop_assert_eq!(&of(&marked.0), &marked.1);
                let differences: BTreeSet<_> = map
                    .differences(&marked.0)
                    .filter(|(_, before, now)| before != now)
                    .map(|(key, before, now)| (*key, before.copied(), now.copied()))
                    .collect();
                let keys: BTreeSet<_> = model.keys().chain(marked.1.keys()).copied().collect();
                let wanted = keys.into_iter().map(|key| (key, marked.1.get(&key).copied(), model.get(&key).copied()));
                prop_assert_eq!(differences, wanted.filter(|(_, before, now)| before != now).collect());
            }
        }
    }

    #[test]
    fn a_change_copies_what_is_near_it_however_large_the_map_is() {
        static COPIED: AtomicUsize = AtomicUsize::new(0);
        struct Counted;
        impl Clone for Counted {
            fn clone(&self) -> Self {
                COPIED.fetch_add(1, Relaxed);
                Self
            }
        }
        for (size, at_most) in [(1_000, 10), (100_000, 160)] {
            let mut map: SharedMap<u32, Counted> = (0..size).map(|key| (key, Counted)).collect();
            for key in (0..size).step_by(size as usize / 100) {
                let before = map.clone();
                COPIED.store(0, Relaxed);
                map.insert(key, Counted);
                let copied = COPIED.load(Relaxed);
                assert!(copied <= at_most, "{copied} of {size}");
                assert_eq!(map.unshared_parts(&before), 1);
                assert!(map.differences(&before).count() <= at_most);
            }
        }
    }
}
