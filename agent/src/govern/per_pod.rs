//! State that is a calling pod's own: what one pod does wrong must not be answered to another (ARCHITECTURE.md#fairness-between-pods).
//!
//! It is kept with what it is about (a service's governor), by the pod, and not the other way round: whoever changes a policy,
//! or reads a number, finds all of it there, and a service that goes takes it with it. That a pod has gone is told by nobody:
//! each entry looks whether its [`CallingPod`] is still held by somebody, which the proxy does for as long as the pod is enrolled
//! or has a connection. So there is at most one entry for each pod of the node, and those of pods that went lately.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ahash::AHashMap;
use arc_swap::ArcSwap;

/// A calling pod, for as long as it is there.
#[derive(Debug)]
pub struct CallingPod {
    pub uid: Arc<str>,
    /// `shop/orders-7d9f`, as logs name it.
    pub name: Arc<str>,
}

impl CallingPod {
    pub fn new(uid: &str, name: &str) -> Arc<Self> {
        Arc::new(Self { uid: uid.into(), name: name.into() })
    }
}

/// One of these for each calling pod. Shared by all workers: finding one takes no lock.
#[derive(Debug)]
pub struct PerPod<T> {
    /// By where the pod is in memory: an entry holds it weakly, so that no other pod is at the same place.
    all: ArcSwap<AHashMap<usize, Entry<T>>>,
    /// Held while one is added or taken out.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Entry<T> {
    pod: Weak<CallingPod>,
    uid: Arc<str>,
    name: Arc<str>,
    state: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self {
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            name: self.name.clone(),
            state: self.state.clone(),
        }
    }
}

impl<T> Default for PerPod<T> {
    fn default() -> Self {
        Self { all: ArcSwap::default(), changing: Mutex::new(()) }
    }
}

impl<T> PerPod<T> {
    /// What is kept of this pod, made if there is nothing. `gone` gets what was kept of pods that have gone since.
    pub fn get(&self, pod: &Arc<CallingPod>, make: impl FnOnce() -> T, gone: impl FnMut(&T)) -> Arc<T> {
        self.with(pod, make, gone, Arc::clone)
    }

    /// The same, to be looked at once.
    pub fn with<R>(
        &self,
        pod: &Arc<CallingPod>,
        make: impl FnOnce() -> T,
        gone: impl FnMut(&T),
        look: impl FnOnce(&Arc<T>) -> R,
    ) -> R {
        if let Some(entry) = self.all.load().get(&address(pod)) {
            return look(&entry.state);
        }
        let state = {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut all = AHashMap::clone(&self.all.load());
            let own = address(pod);
            // Of two threads that come at once the other was first; and a pod that was enrolled anew goes on with what there is.
            let before = all
                .iter()
                .find(|(at, entry)| **at == own || entry.uid == pod.uid)
                .map(|(at, entry)| (*at, entry.state.clone()));
            let state = before.as_ref().map_or_else(|| Arc::new(make()), |(_, state)| state.clone());
            if let Some((at, _)) = before {
                all.remove(&at);
            }
            let (uid, name) = (pod.uid.clone(), pod.name.clone());
            all.insert(own, Entry { pod: Arc::downgrade(pod), uid, name, state: state.clone() });
            retain_there(&mut all, gone);
            self.all.store(Arc::new(all));
            state
        };
        look(&state)
    }

    /// What is kept of the pod with this UID.
    pub fn find(&self, uid: &str) -> Option<Arc<T>> {
        self.all.load().values().find(|entry| *entry.uid == *uid).map(|entry| entry.state.clone())
    }

    /// Looks at all that is kept.
    pub fn each(&self, mut look: impl FnMut(&T)) {
        self.all.load().values().for_each(|entry| look(&entry.state));
    }

    /// All that is kept, by the names of the pods.
    pub fn all(&self) -> BTreeMap<Arc<str>, Arc<T>> {
        self.all.load().values().map(|entry| (entry.name.clone(), entry.state.clone())).collect()
    }

    /// Lets go of what was kept of pods that have gone.
    pub fn forget_gone(&self, gone: impl FnMut(&T)) {
        if self.all.load().values().all(|entry| entry.pod.strong_count() > 0) {
            return;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = AHashMap::clone(&self.all.load());
        retain_there(&mut all, gone);
        self.all.store(Arc::new(all));
    }
}

fn address(pod: &Arc<CallingPod>) -> usize {
    Arc::as_ptr(pod).addr()
}

fn retain_there<T>(all: &mut AHashMap<usize, Entry<T>>, mut gone: impl FnMut(&T)) {
    all.retain(|_, entry| {
        let there = entry.pod.strong_count() > 0;
        if !there {
            gone(&entry.state);
        }
        there
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    fn get(of: &PerPod<AtomicU32>, pod: &Arc<CallingPod>) -> Arc<AtomicU32> {
        of.get(pod, AtomicU32::default, |_| {})
    }

    #[test]
    fn each_pod_has_its_own() {
        let (one, other) = (CallingPod::new("1", "shop/a"), CallingPod::new("2", "shop/b"));
        let all = PerPod::default();
        get(&all, &one).store(7, Relaxed);
        assert_eq!(get(&all, &other).load(Relaxed), 0);
        assert_eq!(get(&all, &one).load(Relaxed), 7);
        assert_eq!(all.find("1").map(|state| state.load(Relaxed)), Some(7));
        assert!(all.find("3").is_none());
        assert_eq!(all.all().keys().map(|name| &**name).collect::<Vec<_>>(), ["shop/a", "shop/b"]);
    }

    #[test]
    fn what_is_kept_of_a_pod_goes_with_it() {
        let (one, other) = (CallingPod::new("1", "shop/a"), CallingPod::new("2", "shop/b"));
        let all = PerPod::default();
        get(&all, &one).store(7, Relaxed);
        let connection = one.clone();
        drop(one);
        get(&all, &other);
        assert_eq!(all.all().len(), 2, "it has a connection");
        drop(connection);
        let mut gone = Vec::new();
        all.forget_gone(|state| gone.push(state.load(Relaxed)));
        assert_eq!((gone, all.all().len()), (vec![7], 1));
        // Or with the next one that comes.
        drop(other);
        let next = CallingPod::new("3", "shop/c");
        all.get(&next, AtomicU32::default, |_| {});
        assert_eq!(all.all().len(), 1);
    }

    #[test]
    fn a_pod_that_is_enrolled_anew_goes_on() {
        let all = PerPod::default();
        let before = CallingPod::new("1", "shop/a");
        get(&all, &before).store(7, Relaxed);
        let after = CallingPod::new("1", "shop/a");
        drop(before);
        assert_eq!(get(&all, &after).load(Relaxed), 7);
        all.forget_gone(|_| {});
        assert_eq!(all.all().len(), 1);
    }

    #[test]
    fn threads_that_come_at_once_get_the_same() {
        let all: PerPod<AtomicU32> = PerPod::default();
        let pods: Vec<_> = (0..8).map(|n| CallingPod::new(&n.to_string(), "shop/a")).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..4000 {
                        get(&all, &pods[round % 8]).fetch_add(1, Relaxed);
                    }
                });
            }
        });
        for pod in &pods {
            assert_eq!(get(&all, pod).load(Relaxed), 2000);
        }
    }
}
