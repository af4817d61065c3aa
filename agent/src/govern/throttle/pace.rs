//! The arithmetic of one bucket: virtual scheduling, in integers.
//!
//! A bucket remembers one moment, its *theoretical arrival time*: when it would be full again. Every admitted request
//! moves it by the cost of a request, `interval / requests`. What is between now and that moment is the backlog; a
//! request is admitted while the backlog is at most `(burst - 1) * cost`. That is a token bucket of `burst` tokens
//! (generic cell rate algorithm, <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>), without tokens that would
//! have to be poured in and without a rounding error that grows: moments are counted in 2⁻³² nanoseconds, and the
//! cost is rounded up, so that a bucket never gives more than `burst + rate * time`.

use std::time::Duration;

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

fn span(duration: Duration) -> Ticks {
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
        Self { cost, tolerance, patience, cold, epoch: 0 }
    }

    /// The backlog up to which requests are admitted, at once or after a wait.
    pub(super) fn room(&self) -> Ticks {
        self.tolerance.saturating_add(self.patience)
    }

    /// What a bucket holds when it is full.
    pub(super) fn full(&self) -> Ticks {
        self.tolerance.saturating_add(self.cost)
    }

    /// The most that a request can cost.
    fn dearest(&self) -> Ticks {
        self.cold.as_ref().map_or(self.cost, |cold| cold.dearest(self.cost))
    }
}

/// One bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// When it would be full again, if that is still to come.
    arrival: Ticks,
    /// What it has saved up while it was idle; only for a [`ColdStart`].
    stored: f64,
    /// When a request last found less backlog than what one request costs. Giving back what was taken before that would
    /// make up tokens: without it, the bucket would have been full by then.
    low_nanos: u64,
    /// When a request was last refused; only for a [`ColdStart`].
    refused_nanos: u64,
}

/// What a request has taken from a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Until the request's turn.
    pub(super) wait: Ticks,
    pub(super) cost: Ticks,
    stored: f64,
    arrival: Ticks,
    at_nanos: u64,
    epoch: u32,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(pace: &Pace) -> Self {
        Self {
            arrival: 0,
            stored: pace.cold.as_ref().map_or(0.0, ColdStart::most),
            low_nanos: 0,
            refused_nanos: 0,
        }
    }

    /// One that has a single request left at once.
    pub(super) fn nearly_empty(pace: &Pace, now_nanos: u64) -> Self {
        Self { arrival: ticks(now_nanos).saturating_add(pace.tolerance), ..Self::new(pace) }
    }

    /// What has been taken and not been regained.
    pub(super) fn backlog(&self, now_nanos: u64) -> Ticks {
        self.arrival.saturating_sub(ticks(now_nanos))
    }

    /// Whether a new bucket would do as well.
    pub(super) fn is_as_new(&self, pace: &Pace, now_nanos: u64) -> bool {
        self.backlog(now_nanos) == 0
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

    /// Takes one request out, which the caller has found to be in the [room](Pace::room).
    pub(super) fn take(&mut self, pace: &Pace, now_nanos: u64) -> Taken {
        let backlog = self.backlog(now_nanos);
        if backlog < pace.dearest() {
            self.low_nanos = self.low_nanos.max(now_nanos);
        }
        let cost = self.cost(pace, now_nanos);
        let mut stored = 0.0;
        if let Some(cold) = &pace.cold {
            let had = self.stored_at(cold, pace, now_nanos);
            stored = had.min(1.0);
            self.stored = had - stored;
        }
        self.arrival = self.arrival.max(ticks(now_nanos)).saturating_add(cost);
        Taken {
            wait: backlog.saturating_sub(pace.tolerance),
            cost,
            stored,
            arrival: self.arrival,
            at_nanos: now_nanos,
            epoch: pace.epoch,
        }
    }

    /// Gives back what a request took that is not going to be made, as far as that cannot let more through than if it had
    /// never been there. Whether it did.
    pub(super) fn give_back(&mut self, taken: &Taken, pace: &Pace) -> bool {
        // Those who wait behind it have been given their moments, so only the last one can go.
        let unused =
            if pace.patience > 0 { self.arrival == taken.arrival } else { self.low_nanos <= taken.at_nanos };
        if !unused || taken.epoch != pace.epoch {
            return false;
        }
        self.arrival = self.arrival.saturating_sub(taken.cost);
        if let Some(cold) = &pace.cold {
            self.stored = (self.stored + taken.stored).min(cold.most());
        }
        true
    }

    /// The rule changes: the bucket keeps the requests that are left in it, as far as they fit, and those that wait keep
    /// their place.
    pub(super) fn convert(&mut self, before: &Pace, after: &Pace, now_nanos: u64) {
        let backlog = self.backlog(now_nanos);
        let scaled = |amount: Ticks| {
            if before.cost == after.cost {
                amount
            } else {
                (amount as f64 * (after.cost as f64 / before.cost as f64)) as Ticks
            }
        };
        let used = match before.full().checked_sub(backlog) {
            Some(left) => after.full().saturating_sub(scaled(left)),
            None => after.full().saturating_add(scaled(backlog - before.full())),
        };
        self.stored = match (&before.cold, &after.cold) {
            (Some(old), Some(new)) => new.most() * (self.stored_at(old, before, now_nanos) / old.most()),
            // Nothing has been asked for yet. Otherwise the service is in use, and as warm as it gets.
            (None, Some(new)) if self.arrival == 0 => new.most(),
            (_, None) | (None, Some(_)) => 0.0,
        };
        self.arrival = if self.arrival == 0 { 0 } else { ticks(now_nanos).saturating_add(used) };
        self.low_nanos = self.low_nanos.max(now_nanos);
    }

    /// What is stored by now. A request that was refused would have used the time until the next one comes: callers that
    /// come at the wrong moment do not make a quiet time.
    fn stored_at(&self, cold: &ColdStart, pace: &Pace, now_nanos: u64) -> f64 {
        let used = match self.refused_nanos {
            0 => self.arrival,
            refused => self.arrival.max(ticks(refused).saturating_add(pace.dearest())),
        };
        cold.refilled(self.stored, ticks(now_nanos).saturating_sub(used))
    }
}

#[cfg(test)]
mod tests;
