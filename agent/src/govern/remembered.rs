//! Which tags came to a pod with which trace, for requests of the pod that carry no more than the trace's id.
//!
//! A tracer passes the id of a trace on, and many pass on nothing else. Of a pod that asks for it
//! (`sluice.dev/propagation: trace`) the agent reads the requests that come to it, before they reach the application, and notes the
//! ids of their traces with their tags. A request that the pod sends, and that says no tag itself, gets that of its trace.
//!
//! It is never a guess: requests without a tag are noted as well, and a trace of which requests with different tags came, or one
//! with and one without, says nothing any more. What is kept is the pod's own, bounded, and forgotten after a while: such a request
//! loses its tag, as it would without this.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use ahash::AHashMap;

use super::{
    handled::{Handled, Inherited, Sent, Shape},
    lane::RequestTag,
};
use crate::clock::Nanos;

/// The id of a trace.
pub type Trace = u128;

/// Traces that are noted before the older half of them is forgotten. With those of the half before, a pod's take up 2.4 MB.
const MOST: usize = 32 * 1024;

/// How long a trace is known at least after a request with it came, if there are not too many: twice as long at most.
const KEPT: Nanos = Nanos(60 * 1_000_000_000);

/// Different tags that are noted in one half.
const MOST_TAGS: usize = 250;

/// What came to one pod.
#[derive(Debug, Default)]
pub struct Remembered {
    traces: Mutex<Traces>,
    /// Requests that came and have not been answered: those with a tag in the upper half, those without in the lower one.
    unanswered: AtomicU64,
    /// Those that are with the application now, where its threads are followed.
    pub handled: Handled,
}

const ONE_TAGGED: u64 = 1 << 32;

impl Remembered {
    /// A request has come. Its response has ended when what this returns is dropped.
    pub(crate) fn came(
        self: &Arc<Self>,
        traces: impl IntoIterator<Item = Trace>,
        said: impl Into<Inherited>,
        now: Nanos,
    ) -> Unanswered {
        let said = said.into();
        let tag = said.tag;
        let mut kept = self.lock();
        for trace in traces {
            kept.note(trace, tag, now);
        }
        drop(kept);
        let weight = if tag.is_some() { ONE_TAGGED } else { 1 };
        self.unanswered.fetch_add(weight, Relaxed);
        Unanswered { of: self.clone(), weight, said, shape: Shape::default(), sent: None }
    }

    /// The tag of the requests that came with these ids; `None` if there were none, or not all say the same.
    pub(crate) fn tag(&self, traces: impl IntoIterator<Item = Trace>, now: Nanos) -> Option<RequestTag> {
        let mut kept = self.lock();
        let mut said = traces.into_iter().filter_map(|trace| kept.find(trace, now));
        let first = said.next()?;
        said.all(|other| other == first).then_some(first)?.tag()
    }

    /// Whether a request of that trace has come, whatever its tag.
    pub(crate) fn knows(&self, trace: Trace, now: Nanos) -> bool {
        self.lock().find(trace, now).is_some()
    }

    /// Requests are being answered in the pod, and all of them came with a tag: what it sends now ought to have one.
    pub fn has_only_tagged(&self) -> bool {
        let unanswered = self.unanswered.load(Relaxed);
        unanswered >= ONE_TAGGED && unanswered.is_multiple_of(ONE_TAGGED)
    }

    fn lock(&self) -> MutexGuard<'_, Traces> {
        // Nothing that holds it can leave it half-changed.
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that came and is being answered.
#[derive(Debug)]
pub struct Unanswered {
    of: Arc<Remembered>,
    weight: u64,
    /// What it has, for those that are sent for it.
    said: Inherited,
    /// Where threads are followed.
    shape: Shape,
    sent: Option<Sent>,
}

impl Unanswered {
    /// The same of a pod whose threads are followed.
    #[must_use]
    pub(crate) fn shaped(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// It is being sent to the application, whose threads are followed.
    pub(crate) fn sent(&mut self, sent: Sent) {
        self.end();
        self.of.handled.begin(sent, self.said, self.shape, Nanos::now());
        self.sent = Some(sent);
    }

    /// Its response has ended.
    pub(crate) fn end(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.of.handled.end(sent, Nanos::now());
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.end();
        self.of.unanswered.fetch_sub(self.weight, Relaxed);
    }
}

/// What is known of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Tagged(RequestTag),
    Untagged,
    /// Requests came that say different things.
    Ambiguous,
}

impl Known {
    fn of(tag: Option<RequestTag>) -> Self {
        tag.map_or(Self::Untagged, Self::Tagged)
    }

    fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Ambiguous }
    }

    fn tag(self) -> Option<RequestTag> {
        match self {
            Self::Tagged(tag) => Some(tag),
            Self::Untagged | Self::Ambiguous => None,
        }
    }
}

/// What came since `since`, and what came before that.
#[derive(Debug, Default)]
struct Traces {
    since: Nanos,
    young: Half,
    old: Half,
}

impl Traces {
    fn note(&mut self, trace: Trace, tag: Option<RequestTag>, now: Nanos) {
        let before = self.find(trace, now);
        if self.young.traces.len() >= MOST && !self.young.traces.contains_key(&trace.to_ne_bytes()) {
            self.turn(now);
        }
        let known = Known::of(tag);
        self.young.put(trace, before.map_or(known, |before| before.and(known)));
    }

    fn find(&mut self, trace: Trace, now: Nanos) -> Option<Known> {
        let age = now.since(self.since);
        if age >= KEPT {
            self.turn(now);
            if age.0 >= 2 * KEPT.0 {
                self.old = Half::default();
            }
        }
        self.young.get(trace).or_else(|| self.old.get(trace))
    }

    fn turn(&mut self, now: Nanos) {
        self.old = std::mem::take(&mut self.young);
        self.since = now;
    }
}

/// Traces by their ids. Not as numbers, which would be aligned and take up twice as much.
#[derive(Debug, Default)]
struct Half {
    traces: AHashMap<[u8; 16], u8>,
    tags: Vec<RequestTag>,
}

const UNTAGGED: u8 = u8::MAX;
const AMBIGUOUS: u8 = u8::MAX - 1;

impl Half {
    fn get(&self, trace: Trace) -> Option<Known> {
        Some(match *self.traces.get(&trace.to_ne_bytes())? {
            UNTAGGED => Known::Untagged,
            index => self.tags.get(usize::from(index)).copied().map_or(Known::Ambiguous, Known::Tagged),
        })
    }

    fn put(&mut self, trace: Trace, known: Known) {
        let number = match known {
            Known::Untagged => UNTAGGED,
            Known::Ambiguous => AMBIGUOUS,
            // Beyond so many tags no more of them is said.
            Known::Tagged(tag) => self.number(tag).unwrap_or(AMBIGUOUS),
        };
        self.traces.insert(trace.to_ne_bytes(), number);
    }

    fn number(&mut self, tag: RequestTag) -> Option<u8> {
        let index = self.tags.iter().position(|known| *known == tag).or_else(|| {
            (self.tags.len() < MOST_TAGS).then(|| {
                self.tags.push(tag);
                self.tags.len() - 1
            })
        })?;
        u8::try_from(index).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn tag(name: &str) -> RequestTag {
        RequestTag::new(name.as_bytes()).expect("a tag")
    }

    fn at(seconds: u64) -> Nanos {
        Nanos(1000 * SECOND + seconds * SECOND)
    }

    fn remembered() -> Arc<Remembered> {
        Arc::default()
    }

    #[test]
    fn a_trace_has_the_tag_that_came_with_it() {
        let pod = remembered();
        let (gray, blue) = (Some(tag("gray")), Some(tag("blue")));
        drop(pod.came([1], gray, at(0)));
        drop(pod.came([2], None, at(0)));
        drop(pod.came([3, 4], blue, at(0)));
        assert_eq!(pod.tag([1], at(1)), gray);
        assert_eq!(pod.tag([2], at(1)), None, "without a tag");
        assert_eq!(pod.tag([4], at(1)), blue, "each of a request's ids");
        assert_eq!(pod.tag([5], at(1)), None, "never came");
        assert_eq!(pod.tag([5, 1], at(1)), gray);
        assert_eq!(pod.tag([1, 3], at(1)), None, "two traces that say different things");
        assert_eq!(pod.tag([1, 2], at(1)), None);
        assert_eq!(pod.tag([], at(1)), None);
        assert_eq!([1, 2, 5].map(|trace| pod.knows(trace, at(1))), [true, true, false]);
        assert!(!pod.knows(1, at(1000)), "it is long ago");
    }

    #[test]
    fn a_trace_of_different_requests_says_nothing() {
        for (first, second) in [(Some("gray"), Some("blue")), (Some("gray"), None), (None, Some("gray"))] {
            let (first, second) = (first.map(tag), second.map(tag));
            let pod = remembered();
            drop(pod.came([1], first, at(0)));
            drop(pod.came([1], second, at(1)));
            assert_eq!(pod.tag([1], at(1)), None, "{first:?} {second:?}");
            // Whatever comes then.
            drop(pod.came([1], first, at(2)));
            assert_eq!(pod.tag([1], at(2)), None);
            // It is known across the turn to another half, too.
            drop(pod.came([1], first, at(65)));
            assert_eq!(pod.tag([1], at(66)), None);
        }
    }

    #[test]
    fn traces_are_forgotten_after_a_while() {
        let pod = remembered();
        drop(pod.came([9], None, at(0)));
        drop(pod.came([1], Some(tag("gray")), at(59)));
        assert_eq!(pod.tag([1], at(118)), Some(tag("gray")), "nearly a minute after it came");
        assert_eq!(pod.tag([1], at(180)), None);
        // A pod that nothing came to for long.
        drop(pod.came([1], Some(tag("gray")), at(200)));
        assert_eq!(pod.tag([1], at(1000)), None);
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let pod = remembered();
        let all = 3 * MOST as u128;
        for number in 1..=all {
            drop(pod.came([number], Some(tag("gray")), at(0)));
        }
        let kept = pod.lock();
        assert!(kept.young.traces.len() <= MOST && kept.old.traces.len() <= MOST);
        drop(kept);
        assert_eq!(pod.tag([all], at(0)), Some(tag("gray")), "the last");
        assert_eq!(pod.tag([1], at(0)), None, "the first");
    }

    #[test]
    fn beyond_so_many_tags_nothing_is_said() {
        let pod = remembered();
        let name = |number: u128| tag(&format!("t{number}"));
        for number in 1..=300 {
            drop(pod.came([number], Some(name(number)), at(0)));
        }
        assert_eq!(pod.tag([1], at(0)), Some(name(1)));
        assert_eq!(pod.tag([300], at(0)), None);
    }

    #[test]
    fn a_pod_that_answers_tagged_requests_only_is_known() {
        let pod = remembered();
        assert!(!pod.has_only_tagged(), "it answers none");
        let gray = pod.came([], Some(tag("gray")), at(0));
        assert!(pod.has_only_tagged());
        let plain = pod.came([], None, at(0));
        assert!(!pod.has_only_tagged());
        drop(plain);
        assert!(pod.has_only_tagged());
        drop(gray);
        assert!(!pod.has_only_tagged());
    }

    proptest! {
        /// Whatever comes, in whatever order, at whatever time: a tag that is said is that of all requests of the trace that came
        /// in the last minute.
        #[test]
        fn what_is_said_is_true(came in prop::collection::vec((1..8_u128, prop::option::of(0..3_u8), 0..40_u64), 0..60)) {
            let pod = remembered();
            let mut now = 0;
            let mut all: HashMap<u128, Vec<(u64, Option<RequestTag>)>> = HashMap::new();
            for (number, which, later) in came {
                now += later;
                let which = which.map(|which| tag(&format!("t{which}")));
                drop(pod.came([number], which, at(now)));
                all.entry(number).or_default().push((now, which));
                for (number, requests) in &all {
                    let late: Vec<_> = requests.iter().filter(|(at, _)| now - at < 60).collect();
                    let said = pod.tag([*number], at(now));
                    if let Some(said) = said {
                        prop_assert!(late.iter().all(|(_, tag)| *tag == Some(said)));
                    } else if let Some((_, first)) = requests.first()
                        && requests.len() == late.len()
                        && requests.iter().all(|(_, tag)| tag == first)
                    {
                        prop_assert_eq!(*first, None, "it was known");
                    }
                }
            }
        }
    }
}
