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
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use ahash::{AHashMap, RandomState};

use super::lane::RequestTag;

/// So many requests of a shape have to show it.
const PROOFS: u8 = 3;

/// Shapes of a pod that are known at a time. What is beyond tells nothing, until the pod is served by another agent.
const MOST_SHAPES: usize = 4096;

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

/// The requests that one pod is handling. As many as there are connections to it at most.
#[derive(Debug, Default)]
pub struct Handled {
    requests: Mutex<AHashMap<Sent, (Inherited, Shape)>>,
    /// How many requests of each shape were responded to by the thread that had read them.
    proofs: Mutex<AHashMap<Shape, u8>>,
}

impl Handled {
    /// It is being sent to the application.
    pub(super) fn begin(&self, sent: Sent, inherited: Inherited, shape: Shape) {
        lock(&self.requests).insert(sent, (inherited, shape));
    }

    /// Its response has ended.
    pub(super) fn end(&self, sent: Sent) {
        lock(&self.requests).remove(&sent);
    }

    /// What is known of it; `None`: it is not being handled, or no more, or nobody can say by which thread.
    pub fn get(&self, sent: Sent) -> Option<Inherited> {
        let (inherited, shape) = lock(&self.requests).get(&sent).copied()?;
        self.is_proven(shape).then_some(inherited)
    }

    /// Whether requests of this shape are known to be responded to by the thread that reads them.
    pub fn is_proven(&self, shape: Shape) -> bool {
        lock(&self.proofs).get(&shape).is_some_and(|proofs| *proofs >= PROOFS)
    }

    /// One more of them was.
    pub fn prove(&self, shape: Shape) {
        let mut proofs = lock(&self.proofs);
        if proofs.len() < MOST_SHAPES || proofs.contains_key(&shape) {
            let proofs = proofs.entry(shape).or_default();
            *proofs = proofs.saturating_add(1);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds it can leave it half-changed.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let sent = |call| Sent { call, number: 1 };
        let gray = Inherited::from(RequestTag::new(b"gray"));
        handled.begin(sent(1), gray, sync);
        handled.begin(sent(2), gray, other);
        for proofs in 0..PROOFS {
            assert_eq!(handled.get(sent(1)), None, "{proofs}");
            handled.prove(sync);
        }
        assert_eq!(handled.get(sent(1)), Some(gray));
        assert_eq!(handled.get(sent(2)), None);
        handled.end(sent(1));
        assert_eq!(handled.get(sent(1)), None);
    }

    #[test]
    fn shapes_are_bounded() {
        let handled = Handled::default();
        for number in 0..2 * MOST_SHAPES as u64 {
            handled.prove(Shape(number));
        }
        assert_eq!(lock(&handled.proofs).len(), MOST_SHAPES);
        handled.prove(Shape(1));
        handled.prove(Shape(1));
        assert!(handled.is_proven(Shape(1)) && !handled.is_proven(Shape(2)));
    }
}
