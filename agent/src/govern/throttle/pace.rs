//! The arithmetic of one bucket: virtual scheduling, in integers.
//!
//! A bucket remembers one moment, its *theoretical arrival time*: when it would be full again. Every admitted request
//! moves it by the cost of a request, `interval / requests`. What is between now and that moment is the backlog; a
//! request is admitted while the backlog is at most `(burst - 1) * cost`. That is a token bucket of `burst` tokens
//! (generic cell rate algorithm, <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>), without tokens that would
//! have to be poured in and without a rounding error that grows: moments are counted in 2⁻³² nanoseconds, and the
//! cost is rounded up, so that a bucket never gives more than `burst + rate * time`.
//!
//! Three things go beyond that:
//!
//! - **A burst below two.** Such a bucket is full as soon as one request is regained, and what it would regain until the
//!   next request comes is lost: clients that come at random get 44 of 50 a second. So a request that comes late by at most
//!   what is missing to two tokens does not move the ones behind it. The bound is that of a burst of two while requests
//!   keep coming; after a quiet time there is still one.
//! - **A cold start** makes requests dear, and a burst would be a way around that. What may come at once grows with the square
//!   of how warm the bucket is, from a single request.
//! - **A place in a queue that is given back** is kept open for the next request that comes, which goes at that moment. So
//!   clients that leave a queue do not leave gaps in what the service gets, and nobody who waits is told another moment.

use std::{collections::BTreeSet, time::Duration};

use super::cold::ColdStart;
use crate::govern::policy::{Behaviour, RateLimit};

/// A moment or a span, in 2⁻³² nanoseconds: 96 bits for the nanoseconds, which nothing sane overflows; what is insane
/// saturates.
pub(super) type Ticks = u128;

const FRACTION_BITS: u32 = 32;

pub(super) fn ticks(nanos: u64) -> Ticks {
    u128::from(nanos) << FRACTION_BITS
}

/// Rounded up: nobody who waits that long comes too early.
pub(super) fn duration(ticks: Ticks) -> Duration {
    let nanos = ticks.div_ceil(1 << FRACTION_BITS);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

pub(super) fn span(duration: Duration) -> Ticks {
    duration.as_nanos().saturating_mul(1 << FRACTION_BITS)
}

/// What a rule means for a bucket.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pace {
    /// What a request costs: the time in which the bucket regains it. At least 1.
    pub(super) cost: Ticks,
    /// The backlog up to which requests are admitted at once.
    pub(super) tolerance: Ticks,
    /// How long a request may wait beyond that; 0 unless requests queue.
    pub(super) patience: Ticks,
    pub(super) cold: Option<ColdStart>,
    /// How late a request may come without moving those behind it.
    pub(super) grace: Ticks,
    /// Counts the changes of the rule: what was taken under another one is not given back.
    pub(super) epoch: u32,
}

impl Pace {
    pub(super) fn of(rule: &RateLimit) -> Self {
        // The conversions saturate, and NaN becomes the dearest there is.
        let cost = (span(rule.interval) as f64 / rule.requests).ceil();
        let cost = if cost.is_nan() { Ticks::MAX } else { (cost as Ticks).max(1) };
        let more = (rule.burst - 1.0).max(0.0);
        // In integers, so that of a burst of a million not one is lost.
        let tolerance =
            cost.saturating_mul(more.trunc() as u128).saturating_add((cost as f64 * more.fract()) as Ticks);
        let (mut patience, mut cold) = (0, None);
        match rule.behaviour {
            Behaviour::Reject => {}
            Behaviour::Queue { timeout } => patience = span(timeout),
            Behaviour::WarmUp { duration, cold_factor } => {
                cold = ColdStart::new(cost, span(duration), cold_factor);
            }
        }
        // A queue regains nothing in vain: whoever waits takes it at once.
        let grace = if patience == 0 { cost.saturating_sub(tolerance) } else { 0 };
        Self { cost, tolerance, patience, cold, grace, epoch: 0 }
    }

    /// The most that a request can cost.
    fn dearest(&self) -> Ticks {
        self.cold.as_ref().map_or(self.cost, |cold| cold.dearest(self.cost))
    }
}

/// How much there is room for in a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What a request costs in a warm bucket.
    pub(super) cost: Ticks,
    /// The backlog up to which requests are admitted, at once or after a wait.
    pub(super) backlog: Ticks,
}

/// One bucket.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// When it would be full again, if that is still to come.
    arrival: Ticks,
    /// Nothing was taken yet.
    fresh: bool,
    /// What it has saved up while it was idle; only for a [`ColdStart`].
    stored: f64,
    /// When a request was last refused; only for a [`ColdStart`].
    refused_nanos: u64,
    /// How many requests were taken out.
    taken: u32,
    found: Found,
    open: Open,
}

/// What a request has taken from a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Until the request's turn.
    pub(super) wait: Ticks,
    pub(super) cost: Ticks,
    stored: f64,
    /// The moment to which it moved the bucket's, or would have if it had not got an open place.
    arrival: Ticks,
    number: u32,
    epoch: u32,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(pace: &Pace) -> Self {
        Self {
            arrival: 0,
            fresh: true,
            stored: pace.cold.as_ref().map_or(0.0, ColdStart::most),
            refused_nanos: 0,
            taken: 0,
            found: Found::default(),
            open: Open::default(),
        }
    }

    /// One that has a single request left at once.
    pub(super) fn nearly_empty(pace: &Pace, now_nanos: u64) -> Self {
        let mut bucket = Self::new(pace);
        bucket.arrival = ticks(now_nanos).saturating_add(bucket.tolerance(pace, now_nanos));
        bucket.fresh = false;
        bucket
    }

    /// One of which so much is taken.
    pub(super) fn with_backlog(pace: &Pace, backlog: Ticks, now_nanos: u64) -> Self {
        Self { arrival: ticks(now_nanos).saturating_add(backlog), fresh: false, ..Self::new(pace) }
    }

    /// How many requests are left in it; below 0 if more were taken than there were.
    pub(super) fn left(&self, pace: &Pace, now_nanos: u64) -> f64 {
        let backlog = self.arrival.saturating_sub(ticks(now_nanos));
        1.0 + (pace.tolerance as f64 - backlog as f64) / pace.cost as f64
    }

    /// What has been taken and not been regained.
    pub(super) fn backlog(&self, pace: &Pace, now_nanos: u64) -> Ticks {
        let now = ticks(now_nanos);
        let open = self.open.from(now).saturating_mul(pace.cost);
        self.arrival.saturating_sub(now).saturating_sub(open)
    }

    /// How much backlog it admits requests with.
    pub(super) fn room(&self, pace: &Pace, now_nanos: u64) -> Room {
        let backlog = self.tolerance(pace, now_nanos).saturating_add(pace.patience);
        Room { cost: pace.cost, backlog }
    }

    /// After what time a request that waits no longer than `at_most` would be admitted, if no other came before: 0 is now.
    pub(super) fn short(&self, pace: &Pace, at_most: Ticks, now_nanos: u64) -> Ticks {
        let now = ticks(now_nanos);
        let patience = pace.patience.min(at_most);
        let end = self.arrival.saturating_sub(now).saturating_sub(self.tolerance(pace, now_nanos));
        let turn = self.open.next(now).map_or(end, |turn| (turn - now).min(end));
        turn.saturating_sub(patience)
    }

    /// Whether a new bucket would do as well.
    pub(super) fn is_as_new(&self, pace: &Pace, now_nanos: u64) -> bool {
        self.arrival <= ticks(now_nanos)
            && pace.cold.as_ref().is_none_or(|cold| self.stored_at(cold, pace, now_nanos) >= cold.most())
    }

    /// What a request would cost now.
    pub(super) fn cost(&self, pace: &Pace, now_nanos: u64) -> Ticks {
        match &pace.cold {
            None => pace.cost,
            Some(cold) => cold.cost(pace.cost, self.stored_at(cold, pace, now_nanos)),
        }
    }

    /// There is no room for a request.
    pub(super) fn refuse(&mut self, pace: &Pace, now_nanos: u64) {
        if pace.cold.is_some() {
            self.refused_nanos = self.refused_nanos.max(now_nanos);
        }
    }

    /// Takes one request out, which is not [short](Self::short) of anything.
    pub(super) fn take(&mut self, pace: &Pace, now_nanos: u64) -> Taken {
        let now = ticks(now_nanos);
        let tolerance = self.tolerance(pace, now_nanos);
        let cost = self.cost(pace, now_nanos);
        self.taken = self.taken.wrapping_add(1);
        let fresh = std::mem::replace(&mut self.fresh, false);
        let mut taken =
            Taken { wait: 0, cost, stored: 0.0, arrival: 0, number: self.taken, epoch: pace.epoch };
        if let Some(turn) = self.open.take(now) {
            taken.wait = turn - now;
            taken.arrival = turn.saturating_add(tolerance).saturating_add(cost);
            return taken;
        }
        if let Some(cold) = &pace.cold {
            let had = self.stored_at(cold, pace, now_nanos);
            taken.stored = had.min(1.0);
            self.stored = had - taken.stored;
        }
        taken.wait = self.arrival.saturating_sub(now).saturating_sub(tolerance);
        // How much could have been missing before without making a difference now.
        // The first request is not late: before it there was no bucket.
        let grace = if fresh { 0 } else { pace.grace };
        let spare = self.arrival.saturating_add(grace).saturating_sub(now);
        self.found.note(self.taken, spare.min(pace.cost.saturating_mul(PLENTY)));
        let from = if spare > 0 { self.arrival } else { now };
        self.arrival = from.saturating_add(cost);
        taken.arrival = self.arrival;
        taken
    }

    /// Gives back what a request took that is not going to be made, as far as that cannot let more through than if it had
    /// never been there. Whether it did.
    pub(super) fn give_back(&mut self, taken: &Taken, pace: &Pace, now_nanos: u64) -> bool {
        if taken.epoch != pace.epoch {
            return false;
        }
        if pace.patience > 0 {
            return self.leave(taken, pace, now_nanos);
        }
        if !self.found.remove(taken.number, taken.cost) {
            return false;
        }
        self.arrival = self.arrival.saturating_sub(taken.cost);
        if let Some(cold) = &pace.cold {
            self.stored = (self.stored + taken.stored).min(cold.most());
        }
        true
    }

    /// A place in the queue is free again. Those behind it have been given their moments, so it stays where it is.
    fn leave(&mut self, taken: &Taken, pace: &Pace, now_nanos: u64) -> bool {
        let turn = |arrival: Ticks| arrival.saturating_sub(taken.cost).saturating_sub(pace.tolerance);
        if self.arrival == taken.arrival {
            self.arrival = self.arrival.saturating_sub(taken.cost);
            // Nobody is left behind the open ones at the end.
            while self.open.close_last(turn(self.arrival)) {
                self.arrival = self.arrival.saturating_sub(taken.cost);
            }
            return true;
        }
        turn(taken.arrival) >= ticks(now_nanos) && self.open.open(turn(taken.arrival), ticks(now_nanos))
    }

    /// The rule changes: the bucket keeps the requests that are left in it, as far as they fit, and those that wait keep
    /// their place.
    pub(super) fn convert(&mut self, before: &Pace, after: &Pace, now_nanos: u64) {
        let backlog = self.arrival.saturating_sub(ticks(now_nanos));
        let scaled = |amount: Ticks| {
            if before.cost == after.cost {
                amount
            } else {
                (amount as f64 * (after.cost as f64 / before.cost as f64)) as Ticks
            }
        };
        let full = |pace: &Pace| pace.tolerance.saturating_add(pace.cost);
        let used = match full(before).checked_sub(backlog) {
            Some(left) => full(after).saturating_sub(scaled(left)),
            None => full(after).saturating_add(scaled(backlog - full(before))),
        };
        self.stored = match (&before.cold, &after.cold) {
            (Some(old), Some(new)) => new.most() * (self.stored_at(old, before, now_nanos) / old.most()),
            // Nothing has been asked for yet. Otherwise the service is in use, and as warm as it gets.
            (None, Some(new)) if self.fresh => new.most(),
            (_, None) | (None, Some(_)) => 0.0,
        };
        self.arrival = if self.fresh { 0 } else { ticks(now_nanos).saturating_add(used) };
        // What was taken before is not given back, so nobody asks.
        (self.found, self.open) = (Found::default(), Open::default());
    }

    /// The backlog up to which requests are admitted at once.
    fn tolerance(&self, pace: &Pace, now_nanos: u64) -> Ticks {
        let Some(cold) = &pace.cold else { return pace.tolerance };
        let warmth = cold.warmth(self.stored_at(cold, pace, now_nanos));
        if warmth < 1.0 { (pace.tolerance as f64 * warmth * warmth) as Ticks } else { pace.tolerance }
    }

    /// What is stored by now. A request that was refused would have used the time until the next one comes: callers that
    /// come at the wrong moment do not make a quiet time.
    fn stored_at(&self, cold: &ColdStart, pace: &Pace, now_nanos: u64) -> f64 {
        let used = match self.refused_nanos {
            0 => self.arrival,
            refused => self.arrival.max(ticks(refused).saturating_add(pace.dearest())),
        };
        let idle = ticks(now_nanos).saturating_sub(used);
        // Time by which a request may be late without moving others is not lost, so it is not saved up either.
        cold.refilled(self.stored, if idle > pace.grace { idle } else { 0 })
    }
}

/// How much backlog the requests of late have found: as much could be given back of what was taken before them, and none
/// of them would have noticed.
///
/// Of all requests since one only the lowest counts, so what is kept are those behind which none found less: in the order
/// in which they came, each has found more than the one before. Of more than [`LOWS`] the two oldest are taken together, and
/// what is more than [`PLENTY`] requests is not told apart. Both may forbid to give back what could have been, and never
/// the other way round.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    lows: [Low; LOWS],
    count: u8,
}

const LOWS: usize = 4;
const PLENTY: Ticks = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Low {
    /// Of the request.
    number: u32,
    /// In 2⁻¹⁶ nanoseconds, rounded down; what does not fit is as good as for ever.
    spare: u64,
}

impl Low {
    fn shorten(ticks: Ticks) -> u64 {
        u64::try_from(ticks >> (FRACTION_BITS / 2)).unwrap_or(u64::MAX)
    }
}

impl Found {
    /// A request has found so much.
    fn note(&mut self, number: u32, spare: Ticks) {
        let spare = Low::shorten(spare);
        while self.last().is_some_and(|last| last.spare >= spare) {
            self.count -= 1;
        }
        if usize::from(self.count) == LOWS {
            self.lows[1].spare = self.lows[0].spare;
            self.lows.rotate_left(1);
            self.count -= 1;
        }
        self.lows[usize::from(self.count)] = Low { number, spare };
        self.count += 1;
    }

    /// The request of this number goes, and with it its cost, if none since then would have noticed. Whether it does.
    fn remove(&mut self, number: u32, cost: Ticks) -> bool {
        let cost = Low::shorten(cost);
        let count = usize::from(self.count);
        // Numbers run in a circle.
        let is_later = |low: &Low| low.number.wrapping_sub(number).cast_signed() > 0;
        let Some(first) = self.lows[..count].iter().position(is_later) else { return true };
        if self.lows[first].spare < cost {
            return false;
        }
        for low in &mut self.lows[first..count] {
            low.spare -= cost;
        }
        // Those before it that have found more than it has found now are no lows any more.
        let spare = self.lows[first].spare;
        let kept = self.lows[..first].iter().take_while(|low| low.spare < spare).count();
        self.lows.copy_within(first..count, kept);
        self.count -= (first - kept) as u8;
        true
    }

    fn last(&self) -> Option<&Low> {
        self.lows[..usize::from(self.count)].last()
    }
}

/// Places in a queue whose owners have left, by the moments of their turns, of which no two are the same. Nearly always none.
#[derive(Clone, Debug, Default)]
struct Open(BTreeSet<Ticks>);

/// Open places of a queue that are kept; of more than that the moments pass unused.
const MOST_OPEN: usize = 4096;

impl Open {
    /// Keeps a place open. Whether it does.
    fn open(&mut self, turn: Ticks, now: Ticks) -> bool {
        self.forget_passed(now);
        self.0.len() < MOST_OPEN && self.0.insert(turn)
    }

    /// The next one whose turn is still to come.
    fn next(&self, now: Ticks) -> Option<Ticks> {
        self.0.range(now..).next().copied()
    }

    fn take(&mut self, now: Ticks) -> Option<Ticks> {
        self.forget_passed(now);
        self.0.pop_first()
    }

    /// How many turns are still to come.
    fn from(&self, now: Ticks) -> Ticks {
        if self.0.is_empty() { 0 } else { self.0.range(now..).count() as Ticks }
    }

    /// Closes the last one if it is the one of this turn. Whether it was.
    fn close_last(&mut self, turn: Ticks) -> bool {
        self.0.last() == Some(&turn) && self.0.pop_last().is_some()
    }

    fn forget_passed(&mut self, now: Ticks) {
        while self.0.first().is_some_and(|turn| *turn < now) {
            self.0.pop_first();
        }
    }
}

#[cfg(test)]
mod tests;
