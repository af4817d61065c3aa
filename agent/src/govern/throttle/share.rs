//! A limit of the whole cluster, as far as it is this agent's: a number that changes.
//!
//! A limit with `scope: Cluster` has one bucket on each node, like one with `scope: Node`. What the bucket regains is told
//! from outside ([`Share`]): either requests that are leased, a few at a time, or a part of the limit, as a limit of its
//! own. Who tells it, and how it is known, is nothing that is decided here.
//!
//! A leased bucket regains nothing by time: its clock stands still but for the requests that it is given, a second each. So
//! the arithmetic of buckets, and that of the accounts of those who share one, is the same for both.

use std::sync::Arc;

use super::{
    Throttle,
    fair::Moment,
    keyed::Shared,
    pace::{Bucket, Pace, Ticks, span},
};
use crate::govern::policy::Scope;

/// What a leased request is on the bucket's clock.
const REQUEST: std::time::Duration = std::time::Duration::from_secs(1);
/// After so long a client may come again at the latest that no request is leased for.
const MOST_SECONDS: f64 = 86_400.0;

/// This agent's share of a limit of the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Requests that it holds, and no others until it is told again.
    Lease {
        /// How many it held when [`Tally::taken`] was `taken`: what was taken since then is off it.
        held: f64,
        taken: u64,
        /// Requests a second that it may expect.
        rate: f64,
    },
    /// A part of the limit, above 0 and at most 1, as a limit of its own.
    Part(f64),
}

/// What a bucket of a limit of the whole cluster holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holds {
    /// Requests that are leased.
    Leased,
    /// A part of the limit, which is 1 as long as no share has been told.
    Part(f64),
}

/// What was asked of a bucket since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Requests that the rule is about.
    pub asked: u64,
    /// Requests that were taken out, without those that were given back.
    pub taken: u64,
    /// How many are left in it.
    pub left: f64,
}

/// By what a bucket regains requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Clock {
    /// By time, as this part of the limit says.
    Time { part: f64 },
    /// By what it is given.
    Leased { nanos: u64, rate: f64 },
}

impl Default for Clock {
    fn default() -> Self {
        Self::Time { part: 1.0 }
    }
}

impl Clock {
    pub(super) fn is_leased(self) -> bool {
        matches!(self, Self::Leased { .. })
    }

    /// The bucket's own time.
    pub(super) fn now(self, now_nanos: u64) -> u64 {
        match self {
            Self::Time { .. } => now_nanos,
            Self::Leased { nanos, .. } => nanos,
        }
    }

    pub(super) fn moment(self, now_nanos: u64) -> Moment {
        let turn_nanos = match self {
            Self::Time { .. } => None,
            Self::Leased { rate, .. } => Some((1e9 / rate) as u64),
        };
        Moment { nanos: self.now(now_nanos), real_nanos: now_nanos, turn_nanos }
    }

    /// How long it is likely to take until so much is regained.
    pub(super) fn time_for(self, short: Ticks) -> Ticks {
        match self {
            Self::Time { .. } => short,
            Self::Leased { rate, .. } => {
                let seconds = (short as f64 / span(REQUEST) as f64 / rate).clamp(0.0, MOST_SECONDS);
                (seconds * span(REQUEST) as f64) as Ticks
            }
        }
    }
}

impl Throttle {
    /// What was asked of it; `None` if it is no limit of the whole cluster.
    pub fn tally(&self, now_nanos: u64) -> Option<Tally> {
        if self.rule.scope != Scope::Cluster {
            return None;
        }
        let shared = self.state.buckets.as_shared()?;
        let left = shared.bucket.left(&shared.pace, shared.clock.now(now_nanos));
        Some(Tally { left, ..shared.tally })
    }

    /// What its bucket holds; `None` if it is no limit of the whole cluster.
    pub fn holds(&self) -> Option<Holds> {
        if self.rule.scope != Scope::Cluster {
            return None;
        }
        Some(match self.state.buckets.as_shared()?.clock {
            Clock::Leased { .. } => Holds::Leased,
            Clock::Time { part } => Holds::Part(part),
        })
    }

    /// How many requests a second it may expect; `None` if it is no limit of the whole cluster.
    pub fn share_rate(&self) -> Option<f64> {
        if self.rule.scope != Scope::Cluster {
            return None;
        }
        Some(match self.state.buckets.as_shared()?.clock {
            Clock::Leased { rate, .. } => rate,
            Clock::Time { part } => part * self.rule.rate(),
        })
    }

    /// Gives a limit of the whole cluster another share; nothing else has one.
    pub fn set_share(&self, share: Share, now_nanos: u64) {
        if self.rule.scope != Scope::Cluster {
            return;
        }
        let Some(mut shared) = self.state.buckets.as_shared() else { return };
        match share {
            Share::Lease { held, taken, rate } => shared.lease(held, taken, rate, now_nanos),
            Share::Part(part) => {
                let pace = Pace::of(&self.rule.part(part));
                shared.part(part, pace, now_nanos);
            }
        }
    }

    /// Whether both are the same limit, before and after a change of its words.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// The part of the limit that its bucket is for.
    pub(super) fn part(&self) -> f64 {
        match self.state.buckets.as_shared().map(|shared| shared.clock) {
            Some(Clock::Time { part }) => part,
            Some(Clock::Leased { .. }) | None => 1.0,
        }
    }
}

impl Shared {
    fn lease(&mut self, held: f64, taken: u64, rate: f64, now_nanos: u64) {
        let Self { pace, bucket, accounts, clock, tally } = self;
        let had = if clock.is_leased() { bucket.left(pace, clock.now(now_nanos)) } else { 0.0 };
        let since = tally.taken.wrapping_sub(taken).cast_signed() as f64;
        let left = held - since;
        let more = (left - had).max(0.0);
        let before = match *clock {
            Clock::Leased { nanos, .. } => nanos,
            Clock::Time { .. } => 0,
        };
        if !clock.is_leased() || left < had {
            accounts.convert(before);
        }
        let nanos = before.saturating_add((more * REQUEST.as_nanos() as f64) as u64);
        // As large as what is in it, so that accounts are shares of that.
        let most = left.max(1.0);
        let cost = span(REQUEST);
        let of = |requests: f64| (requests * cost as f64) as Ticks;
        *clock = Clock::Leased { nanos, rate };
        *pace = Pace {
            cost,
            tolerance: of(most - 1.0),
            patience: 0,
            cold: None,
            grace: 0,
            epoch: pace.epoch.wrapping_add(1),
        };
        *bucket = Bucket::with_backlog(pace, of(most - left), nanos);
    }

    fn part(&mut self, part: f64, after: Pace, now_nanos: u64) {
        let Self { pace, bucket, accounts, clock, .. } = self;
        let after = Pace { epoch: pace.epoch.wrapping_add(1), ..after };
        match *clock {
            Clock::Time { part: before } if before.to_bits() == part.to_bits() => return,
            Clock::Time { .. } => bucket.convert(pace, &after, now_nanos),
            Clock::Leased { nanos, .. } => {
                // No burst comes of it that others lose their share.
                let left = bucket.left(pace, nanos).clamp(0.0, 1.0);
                let full = after.tolerance.saturating_add(after.cost);
                let kept = (left * after.cost as f64) as Ticks;
                *bucket = Bucket::with_backlog(&after, full.saturating_sub(kept), now_nanos);
            }
        }
        *pace = after;
        *clock = Clock::Time { part };
        accounts.convert(now_nanos);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::govern::{
        policy::{Behaviour, LimitKey, Mode, RateLimit, RequestMatch},
        request::tests::Plain,
        throttle::Admission,
    };

    const SECOND: u64 = 1_000_000_000;

    fn limit(requests: f64) -> Throttle {
        Throttle::new(Arc::new(RateLimit {
            name: "all".into(),
            requests,
            interval: Duration::from_secs(1),
            burst: requests,
            behaviour: Behaviour::Reject,
            key: LimitKey::None,
            scope: Scope::Cluster,
            matches: RequestMatch::default(),
            mode: Mode::Enforce,
        }))
    }

    /// How many of so many requests of this caller are admitted.
    fn admitted(throttle: &Throttle, caller: &str, requests: u32, now: u64) -> u32 {
        let admit = |_: &u32| throttle.admit(&Plain::get("/"), caller, now) == Some(Admission::Now);
        (0..requests).filter(admit).count() as u32
    }

    #[test]
    fn what_is_leased_is_given_out_and_nothing_else() {
        let throttle = limit(100.0);
        throttle.set_share(Share::Lease { held: 7.5, taken: 0, rate: 50.0 }, 0);
        assert_eq!(admitted(&throttle, "a", 20, 0), 7);
        // However much time passes.
        assert_eq!(admitted(&throttle, "a", 20, 60 * SECOND), 0);
        let tally = throttle.tally(60 * SECOND).unwrap();
        assert_eq!((tally.asked, tally.taken, tally.left), (40, 7, 0.5));
        // The next lease was made out when two less were taken.
        throttle.set_share(Share::Lease { held: 10.0, taken: 5, rate: 50.0 }, 61 * SECOND);
        assert_eq!(admitted(&throttle, "a", 20, 61 * SECOND), 8);
        // When it is likely to have one more.
        let refused = throttle.admit(&Plain::get("/"), "a", 61 * SECOND);
        let retry_after = Duration::from_millis(20);
        assert_eq!(refused, Some(Admission::Refused { retry_after }));
        // Less than was taken meanwhile: that is off the next one.
        throttle.set_share(Share::Lease { held: 1.0, taken: 12, rate: 50.0 }, 61 * SECOND);
        assert!((throttle.tally(61 * SECOND).unwrap().left + 2.0).abs() < 1e-9);
        assert_eq!(admitted(&throttle, "a", 5, 61 * SECOND), 0);
    }

    #[test]
    fn a_part_is_a_limit_of_its_own_and_begins_without_a_burst() {
        let throttle = limit(100.0);
        throttle.set_share(Share::Lease { held: 50.0, taken: 0, rate: 50.0 }, 0);
        throttle.set_share(Share::Part(0.2), SECOND);
        assert_eq!(admitted(&throttle, "a", 100, SECOND), 1);
        assert_eq!(admitted(&throttle, "a", 100, SECOND + SECOND / 2), 10);
        // Said again, it changes nothing.
        throttle.set_share(Share::Part(0.2), SECOND + SECOND / 2);
        assert_eq!(admitted(&throttle, "a", 100, 10 * SECOND), 20);
        // Another policy: a part of that.
        let throttle = Arc::new(throttle);
        let rule = Arc::new(RateLimit { requests: 50.0, burst: 50.0, ..(**throttle.rule()).clone() });
        let after = throttle.with_rule(rule, 20 * SECOND);
        assert!(after.is_same(&throttle));
        admitted(&after, "a", 100, 20 * SECOND);
        assert_eq!(admitted(&after, "a", 100, 30 * SECOND), 10);
    }

    #[test]
    fn callers_of_a_node_share_what_is_leased() {
        let throttle = limit(100.0);
        let mut taken = [0, 0];
        for round in 0..50 {
            let tally = throttle.tally(0).unwrap();
            let left = if round == 0 { 0.0 } else { tally.left };
            throttle.set_share(Share::Lease { held: left + 20.0, taken: tally.taken, rate: 200.0 }, 0);
            taken[0] += admitted(&throttle, "greedy", 200, 0);
            taken[1] += admitted(&throttle, "modest", 3, 0);
        }
        // The first round knows nobody else.
        assert!(taken[1] >= 3 * 49, "{taken:?}");
        assert!(taken[0] + taken[1] <= 50 * 20 && taken[0] + taken[1] >= 50 * 20 - 20, "{taken:?}");
    }

    #[test]
    fn other_limits_have_no_share() {
        let throttle = limit(10.0);
        let rule = RateLimit { scope: Scope::Node, ..(**throttle.rule()).clone() };
        let throttle = Throttle::new(Arc::new(rule));
        assert_eq!(throttle.share_rate(), None);
        throttle.set_share(Share::Part(0.1), 0);
        assert_eq!((throttle.tally(0), admitted(&throttle, "a", 20, 0)), (None, 10));
    }
}
