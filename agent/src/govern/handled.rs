//! Which requests the threads of a pod's applications are handling, for requests that the same threads send.
//!
//! The kernel tells for which request that came to a pod one of its own is sent, where a thread handles one at a time
//! (`sluice.dev/propagation: thread`). It names a request by the connection of the agent's over which it went to the
//! application, and by its number there. What is known of it stands here from when it is sent to the application until its
//! response has ended.
//!
//! A server may handle some of its requests on one thread and hand others over (asynchronous servlets): a thread that has handed one
//! over looks as if it were handling it. So a request tells something only if others of its [`Shape`] have shown that they are responded
//! to by the thread that reads them.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use ahash::{AHashMap, RandomState};

use super::lane::RequestTag;
use crate::clock::Nanos;

/// So many requests of a shape have to show it.
const PROOFS: u8 = 3;

/// Shapes of a pod that are known at a time. What is beyond tells nothing, until the pod is served by another agent.
const MOST_SHAPES: usize = 4096;

/// For how long a request is believed to be handled by the thread that has read it, however fast others are.
const LEAST_PATIENCE: Nanos = Nanos(1_000_000_000);

/// Segments of a path that are longer are taken for names of things, not of kinds.
const LONGEST_WORD: usize = 32;

/// A request that went to an application: over which connection, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    pub call: u64,
    pub number: u64,
}

/// What a request is to have that is sent for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// That one's tag.
    pub tag: Option<RequestTag>,
    /// Its place in its trace, as `traceparent` says it.
    pub traceparent: Option<[u8; 55]>,
}

impl From<Option<RequestTag>> for Inherited {
    fn from(tag: Option<RequestTag>) -> Self {
        Self { tag, traceparent: None }
    }
}

/// What requests have in common that the same code of an application is for, as far as a stranger can tell: the method, and the path
/// with each segment left out that has a digit in it, or is long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(u64);

impl Shape {
    /// `path`: without the query.
    pub fn of(method: &[u8], path: &[u8]) -> Self {
        // Random, so that no client can choose paths that are taken for others.
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mut hasher = KEYS.build_hasher();
        hasher.write(method);
        for segment in path.split(|byte| *byte == b'/') {
            let is_word = segment.len() <= LONGEST_WORD
                && !segment.iter().any(|byte| byte.is_ascii_digit() || *byte == b'%');
            hasher.write(if is_word { segment } else { b"*" });
            hasher.write_u8(b'/');
        }
        Self(hasher.finish())
    }
}

/// A request that went to an application.
#[derive(Clone, Copy, Debug)]
struct Request {
    inherited: Inherited,
    shape: Shape,
    began: Nanos,
    /// How long it took; `None`: it has no response yet.
    took: Option<Nanos>,
}

/// What requests of one shape have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Proof {
    /// So many were responded to by the thread that had read them.
    count: u8,
    /// The longest that one of them took.
    longest: Nanos,
}

impl Proof {
    /// For how long a request is believed to be handled by the thread that has read it: one that takes much longer than others of its
    /// shape may have been put aside.
    fn patience(self) -> Nanos {
        Nanos(self.longest.0.saturating_mul(4)).max(LEAST_PATIENCE)
    }
}

/// The requests that one pod is handling. As many as there are connections to it at most.
#[derive(Debug, Default)]
pub struct Handled {
    requests: Mutex<AHashMap<Sent, Request>>,
    proofs: Mutex<AHashMap<Shape, Proof>>,
    pipelines: AtomicBool,
}

impl Handled {
    /// It is being sent to the application.
    pub(super) fn begin(&self, sent: Sent, inherited: Inherited, shape: Shape, now: Nanos) {
        lock(&self.requests).insert(sent, Request { inherited, shape, began: now, took: None });
    }

    /// Its response has ended.
    pub(super) fn end(&self, sent: Sent, now: Nanos) {
        if let Some(request) = lock(&self.requests).get_mut(&sent) {
            request.took = Some(now.since(request.began));
        }
    }

    /// What is known of it; `None`: it is not being handled, or no more, or nobody can say by which thread.
    pub(crate) fn get(&self, sent: Sent, now: Nanos) -> Option<Inherited> {
        let request = lock(&self.requests).get(&sent).copied().filter(|request| request.took.is_none())?;
        let proof = lock(&self.proofs).get(&request.shape).copied()?;
        let is_known = proof.count >= PROOFS && now.since(request.began) <= proof.patience();
        is_known.then_some(request.inherited)
    }

    /// Its connection is used for another one, or has ended. `responded`: whether the thread that had read it was the one to respond.
    pub fn settle(&self, sent: Sent, responded: impl FnOnce() -> bool) {
        let Some(Request { shape, began, took, .. }) = lock(&self.requests).remove(&sent) else { return };
        // The connection of a server that closes it ends before the response is known to have ended.
        let took = took.unwrap_or_else(|| Nanos::now().since(began));
        let known = lock(&self.proofs).get(&shape).copied().unwrap_or_default();
        if (known.count < PROOFS || took > known.longest) && responded() {
            let mut proofs = lock(&self.proofs);
            if proofs.len() < MOST_SHAPES || proofs.contains_key(&shape) {
                let proof = proofs.entry(shape).or_default();
                proof.count = proof.count.saturating_add(1);
                proof.longest = proof.longest.max(took);
            }
        }
    }

    /// A client of the pod has sent a request before the one before it had its response.
    pub fn pipelines(&self) {
        self.pipelines.store(true, Relaxed);
    }

    pub fn has_pipelined(&self) -> bool {
        self.pipelines.load(Relaxed)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds it can leave it half-changed.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn sent(number: u64) -> Sent {
        Sent { call: 1, number }
    }

    /// A request of this shape, with a response after so many milliseconds.
    fn shows(handled: &Handled, number: u64, shape: Shape, took: u64, responded: bool) {
        handled.begin(sent(number), Inherited::default(), shape, Nanos(0));
        handled.end(sent(number), Nanos(took * MS));
        handled.settle(sent(number), || responded);
    }

    #[test]
    fn what_differs_in_names_of_things_is_of_one_shape() {
        let shape = |path: &str| Shape::of(b"GET", path.as_bytes());
        for (one, other) in [
            ("/orders/17", "/orders/4711"),
            ("/orders/17/items", "/orders/x1/items"),
            ("/u/6f9619ff-8b86-d011-b42d-00cf4fc964ff", "/u/1"),
            ("/u/averyveryveryverylongnameofsomething", "/u/%41"),
        ] {
            assert_eq!(shape(one), shape(other), "{one} {other}");
        }
        for (one, other) in [
            ("/orders", "/orders/"),
            ("/orders/17", "/orders/17/items"),
            ("/orders/new", "/orders/17"),
            ("/ab/c", "/a/bc"),
            ("/", ""),
        ] {
            assert_ne!(shape(one), shape(other), "{one} {other}");
        }
        assert_ne!(shape("/orders"), Shape::of(b"POST", b"/orders"));
    }

    #[test]
    fn only_shapes_that_were_seen_to_stay_on_their_threads_tell_something() {
        let handled = Handled::default();
        let (sync, other) = (Shape::of(b"GET", b"/sync"), Shape::of(b"GET", b"/async"));
        let gray = Inherited::from(RequestTag::new(b"gray"));
        handled.begin(sent(1), gray, sync, Nanos(0));
        handled.begin(sent(2), gray, other, Nanos(0));
        for number in 0..u64::from(PROOFS) {
            assert_eq!(handled.get(sent(1), Nanos(1)), None, "{number}");
            shows(&handled, 10 + number, sync, 1, true);
            shows(&handled, 20 + number, other, 1, false);
        }
        assert_eq!(handled.get(sent(1), Nanos(1)), Some(gray));
        assert_eq!(handled.get(sent(2), Nanos(1)), None);
        handled.end(sent(1), Nanos(2));
        assert_eq!(handled.get(sent(1), Nanos(2)), None, "it has its response");
    }

    #[test]
    fn what_has_not_ended_when_its_connection_has_shows_how_it_is_handled_all_the_same() {
        let (handled, shape) = (Handled::default(), Shape::of(b"GET", b"/"));
        let gray = Inherited::from(RequestTag::new(b"gray"));
        for number in 0..u64::from(PROOFS) {
            handled.begin(sent(number), gray, shape, Nanos::now());
            handled.settle(sent(number), || true);
            handled.end(sent(number), Nanos::now());
        }
        assert!(lock(&handled.requests).is_empty());
        handled.begin(sent(9), gray, shape, Nanos::now());
        assert_eq!(handled.get(sent(9), Nanos::now()), Some(gray));
    }

    #[test]
    fn one_that_takes_much_longer_than_others_of_its_shape_tells_nothing_any_more() {
        let handled = Handled::default();
        let shape = Shape::of(b"GET", b"/");
        let gray = Inherited::from(RequestTag::new(b"gray"));
        for number in 0..3 {
            shows(&handled, 10 + number, shape, 5, true);
        }
        handled.begin(sent(1), gray, shape, Nanos(0));
        assert_eq!(handled.get(sent(1), Nanos(1000 * MS)), Some(gray));
        assert_eq!(handled.get(sent(1), Nanos(1001 * MS)), None);
        // They are slower now, and show that they are handled as ever.
        shows(&handled, 20, shape, 2000, false);
        assert_eq!(handled.get(sent(1), Nanos(1001 * MS)), None);
        shows(&handled, 21, shape, 2000, true);
        assert_eq!(handled.get(sent(1), Nanos(8000 * MS)), Some(gray));
        assert_eq!(handled.get(sent(1), Nanos(8001 * MS)), None);
    }

    #[test]
    fn shapes_are_bounded() {
        let handled = Handled::default();
        for number in 0..2 * MOST_SHAPES as u64 {
            shows(&handled, 1, Shape(number), 1, true);
        }
        assert_eq!(lock(&handled.proofs).len(), MOST_SHAPES);
        assert!(lock(&handled.requests).is_empty(), "nothing is left of what is settled");
    }
}
