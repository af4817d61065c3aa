//! When the keys of a source are fetched again: as often as its policies say, sooner after a failure, and now and then because a
//! token has a key that is not known.
//!
//! Clients cannot make the agent fetch more often than that: what tokens ask for is bounded, however many there are, and no request
//! ever waits for it. Time and randomness are arguments.

use std::time::Duration;

/// After a failure it is tried again after so long, twice as long after each further one, and at most after so long.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// What tokens ask for is fetched at most so often.
pub const ASKED_EVERY: Duration = Duration::from_secs(30);

/// A part of the time by which it is shorter, so that the agents of a cluster do not ask all at once.
const JITTER: f64 = 0.2;
const JITTER_OF_FAILURES: f64 = 0.5;

/// When the keys of one source are fetched. Times are in nanoseconds of the monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Refresh {
    /// When the last try ended; `None`: there was none.
    ended: Option<u64>,
    /// How many failed in a row.
    failures: u32,
    /// Of this turn, from 0 to 1.
    random: f64,
    is_running: bool,
    /// A token has asked since the last try began.
    is_asked: bool,
    /// When the last try began that was made because of that.
    asked: Option<u64>,
}

impl Refresh {
    /// Whether it is to be fetched now. `asked`: a token has a key that is not known.
    pub fn is_due(&mut self, now: u64, every: Duration, asked: bool) -> bool {
        self.is_asked |= asked;
        !self.is_running && (self.is_turn(now, every) || (self.is_asked && self.may_be_asked(now)))
    }

    /// A try begins.
    pub fn begin(&mut self, now: u64, every: Duration) {
        if !self.is_turn(now, every) {
            self.asked = Some(now);
        }
        self.is_running = true;
        self.is_asked = false;
    }

    /// It has ended. `random` is from 0 to 1.
    pub fn end(&mut self, now: u64, succeeded: bool, random: f64) {
        self.is_running = false;
        self.ended = Some(now);
        self.failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
        self.random = random.clamp(0.0, 1.0);
    }

    fn is_turn(&self, now: u64, every: Duration) -> bool {
        self.ended.is_none_or(|ended| now.saturating_sub(ended) >= self.pause(every).as_nanos() as u64)
    }

    fn may_be_asked(&self, now: u64) -> bool {
        self.asked.is_none_or(|last| now.saturating_sub(last) >= ASKED_EVERY.as_nanos() as u64)
    }

    /// From the end of a try to the next.
    fn pause(&self, every: Duration) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else {
            return every.mul_f64(1.0 - JITTER * self.random);
        };
        let pause = FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST);
        pause.mul_f64(1.0 - JITTER_OF_FAILURES * self.random).max(FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(300);

    fn seconds(seconds: f64) -> u64 {
        Duration::from_secs_f64(seconds).as_nanos() as u64
    }

    /// When it is due by itself, found by looking each tenth of a second.
    fn due(refresh: &mut Refresh, from: f64) -> f64 {
        let mut at = from;
        while !refresh.is_due(seconds(at), EVERY, false) {
            at += 0.1;
            assert!(at < from + 1000.0, "never due");
        }
        at - from
    }

    #[test]
    fn it_is_fetched_at_once_and_then_as_often_as_is_said() {
        for (random, wanted) in [(0.0, 300.0), (0.5, 270.0), (1.0, 240.0)] {
            let mut refresh = Refresh::default();
            assert!(refresh.is_due(0, EVERY, false));
            refresh.begin(0, EVERY);
            assert!(!refresh.is_due(seconds(900.0), EVERY, false), "one at a time");
            refresh.end(seconds(2.0), true, random);
            assert!((due(&mut refresh, 2.0) - wanted).abs() < 0.2);
            // A policy that has come since wants it sooner.
            assert!(refresh.is_due(seconds(33.0), Duration::from_secs(30), false));
        }
    }

    #[test]
    fn failures_are_repeated_more_and_more_slowly() {
        for random in [0.0, 1.0] {
            let mut refresh = Refresh::default();
            let mut now = 0.0;
            let mut pauses = Vec::new();
            for _ in 0..40 {
                refresh.begin(seconds(now), EVERY);
                refresh.end(seconds(now), false, random);
                let pause = due(&mut refresh, now);
                assert!((0.99..300.2).contains(&pause), "{pause}");
                now += pause;
                pauses.push(pause);
            }
            assert!(pauses[0] < 1.2 && pauses.windows(2).all(|two| two[1] > two[0] - 0.2), "{pauses:?}");
            let longest = if random == 0.0 { 300.0 } else { 150.0 };
            assert!((pauses[39] - longest).abs() < 0.2, "{pauses:?}");
            refresh.begin(seconds(now), EVERY);
            refresh.end(seconds(now), true, 0.0);
            assert!((due(&mut refresh, now) - 300.0).abs() < 0.2, "a success ends it");
        }
    }

    #[test]
    fn a_flood_of_unknown_keys_is_bounded() {
        let mut refresh = Refresh::default();
        refresh.begin(0, EVERY);
        refresh.end(0, true, 0.0);
        let mut fetches = 0;
        for tenth in 1..2990 {
            let now = seconds(f64::from(tenth) / 10.0);
            if refresh.is_due(now, EVERY, true) {
                refresh.begin(now, EVERY);
                refresh.end(now, true, 0.0);
                fetches += 1;
            }
        }
        assert_eq!(fetches, 10, "at once, and then each 30 seconds");
    }

    #[test]
    fn who_asks_too_early_is_remembered() {
        let mut refresh = Refresh::default();
        refresh.begin(0, EVERY);
        refresh.end(0, true, 0.0);
        assert!(refresh.is_due(seconds(1.0), EVERY, true));
        refresh.begin(seconds(1.0), EVERY);
        assert!(!refresh.is_due(seconds(1.5), EVERY, true), "it is under way");
        refresh.end(seconds(2.0), true, 0.0);
        assert!(!refresh.is_due(seconds(3.0), EVERY, false));
        assert!(refresh.is_due(seconds(31.0), EVERY, false), "somebody has asked while it was fetched");
    }

    #[test]
    fn who_asks_does_not_wait_for_a_source_that_fails_for_long() {
        let mut refresh = Refresh::default();
        for _ in 0..20 {
            refresh.begin(0, EVERY);
            refresh.end(0, false, 0.0);
        }
        assert!(!refresh.is_due(seconds(31.0), EVERY, false));
        assert!(refresh.is_due(seconds(31.0), EVERY, true));
    }
}
