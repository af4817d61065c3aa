//! Endpoints that do not answer connection requests, as those of a node that has vanished do not: for a while they get no
//! request that another endpoint can have, so that only the first requests wait for them, and then now and then one.
//!
//! What is refused at once costs nobody time, and is left to what endpoints [cost](super::cost).

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// For how long an endpoint is passed over, the first time; twice as long each further time in a row, up to [`LONGEST`].
const FIRST: u64 = 2_000_000_000;
const LONGEST: u64 = 30_000_000_000;

/// Within this time the one request that asks it again knows, so that no other waits with it.
const ASKED_WITHIN: u64 = 2_000_000_000;

/// A connection request that was given up after less time says nothing: Linux repeats a lost one after a second
/// (RFC 6298, section 2).
pub const UNANSWERED_AFTER: Duration = Duration::from_secs(1);

/// Whether an endpoint answers connection requests. Shared by all workers; what two of them note at the same moment counts once.
#[derive(Debug)]
pub struct Backoff {
    /// Since when it is passed over, in nanoseconds of the monotonic clock; 0: it is not.
    since_nanos: AtomicU64,
    /// How often in a row.
    misses: AtomicU32,
    /// When it was last asked again.
    asked_nanos: AtomicU64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::NONE
    }
}

impl Backoff {
    /// It answers, as far as is known.
    #[expect(clippy::declare_interior_mutable_const, reason = "what a new one begins with")]
    pub(super) const NONE: Self =
        Self { since_nanos: AtomicU64::new(0), misses: AtomicU32::new(0), asked_nanos: AtomicU64::new(0) };

    /// Other endpoints are to have its requests.
    pub fn is_on(&self, now_nanos: u64) -> bool {
        let since = self.since_nanos.load(Relaxed);
        // Nearly always.
        if since == 0 {
            return false;
        }
        let misses = self.misses.load(Relaxed).clamp(1, 16);
        let time = (FIRST << (misses - 1)).min(LONGEST);
        now_nanos < since.saturating_add(time)
            || now_nanos < self.asked_nanos.load(Relaxed).saturating_add(ASKED_WITHIN)
    }

    /// It did not answer the last connection request: whether or not it is passed over at the moment, at most one request asks it
    /// where others can be asked.
    pub fn is_doubted(&self) -> bool {
        self.since_nanos.load(Relaxed) != 0
    }

    /// A request goes to the endpoint: if it was passed over, no other one does before it is known how it fares.
    pub fn chosen(&self, now_nanos: u64) {
        if self.since_nanos.load(Relaxed) != 0 {
            self.asked_nanos.store(now_nanos, Relaxed);
        }
    }

    /// A connection request, sent at `sent_nanos`, was not answered. Those that were sent before the last one was given up say
    /// nothing new.
    pub(super) fn missed(&self, sent_nanos: u64, now_nanos: u64) {
        let since = self.since_nanos.load(Relaxed);
        if sent_nanos < since {
            return;
        }
        if self.since_nanos.compare_exchange(since, now_nanos.max(1), Relaxed, Relaxed).is_ok() {
            self.misses.fetch_add(1, Relaxed);
            self.asked_nanos.store(0, Relaxed);
        }
    }

    /// It answers connection requests.
    pub fn answered(&self) {
        // Nearly always.
        if self.misses.load(Relaxed) == 0 {
            return;
        }
        self.heard();
        self.misses.store(0, Relaxed);
    }

    /// It answers a request over a connection that was open: it can be reached, and its share is its own again. If it goes on not
    /// to answer connection requests, as one does that accepts too slowly, it is passed over for longer the next time.
    pub fn heard(&self) {
        if self.since_nanos.load(Relaxed) != 0 {
            self.since_nanos.store(0, Relaxed);
            self.asked_nanos.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const START: u64 = 1000 * S;

    #[test]
    fn who_does_not_answer_is_passed_over_for_longer_each_time() {
        let backoff = Backoff::default();
        assert!(!backoff.is_on(START) && !backoff.is_doubted());
        let mut now = START;
        for seconds in [2, 4, 8, 16, 30, 30] {
            backoff.missed(now, now);
            assert!(backoff.is_on(now + seconds * S - 1), "{seconds}");
            now += seconds * S;
            assert!(!backoff.is_on(now) && backoff.is_doubted(), "{seconds}");
        }
        backoff.answered();
        assert!(!backoff.is_on(now) && !backoff.is_doubted());
        backoff.missed(now, now);
        assert!(!backoff.is_on(now + 2 * S), "it begins anew");
    }

    #[test]
    fn one_request_asks_again_and_the_others_do_not_wait_with_it() {
        let backoff = Backoff::default();
        backoff.chosen(START);
        assert!(!backoff.is_on(START), "nobody is held off from who answers");
        backoff.missed(START, START);
        let again = START + 2 * S;
        assert!(!backoff.is_on(again));
        backoff.chosen(again);
        assert!(backoff.is_on(again) && backoff.is_on(again + S));
        // It was given up for another reason, and says nothing.
        assert!(!backoff.is_on(again + 2 * S));
        backoff.chosen(again + 2 * S);
        backoff.missed(again + 2 * S, again + 3 * S);
        assert!(backoff.is_on(again + 7 * S - 1) && !backoff.is_on(again + 7 * S));
    }

    #[test]
    fn who_answers_over_an_open_connection_is_passed_over_no_longer() {
        let backoff = Backoff::default();
        backoff.heard();
        backoff.missed(START, START);
        backoff.heard();
        assert!(!backoff.is_on(START));
        backoff.chosen(START);
        assert!(!backoff.is_on(START), "and nobody is held off");
        // But it has not answered a connection request since.
        backoff.missed(START + S, START + S);
        assert!(backoff.is_on(START + 5 * S - 1) && !backoff.is_on(START + 5 * S));
        backoff.heard();
        backoff.answered();
        backoff.missed(START + 6 * S, START + 6 * S);
        assert!(!backoff.is_on(START + 8 * S), "it begins anew");
    }

    #[test]
    fn many_that_waited_together_count_once() {
        let backoff = Backoff::default();
        for millis in 0..500 {
            backoff.missed(START + millis * S / 1000, START + (1500 + millis) * S / 1000);
        }
        assert!(!backoff.is_on(START + 1500 * S / 1000 + 2 * S));
    }
}
