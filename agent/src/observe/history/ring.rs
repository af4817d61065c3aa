//! One track's seconds: a ring of fixed size, and a small one of those that just were, with their latencies.

use super::{ClosedOff, Sample};
use crate::govern::tally::Counts;

/// Seconds that are kept: 15 minutes.
pub const SECONDS: usize = 900;

/// Seconds over which rates and percentiles of "now" are told: one alone says little of a service that is asked seldom.
pub const RECENT: usize = 10;

/// What happened in one second. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Second {
    pub requests: u32,
    pub errors: u32,
    pub refused: u32,
    /// At its end.
    pub in_flight: u16,
    /// In parts of 50,000, so that a fine curve is drawn finely; `u16::MAX`: not an endpoint that warms up.
    warm_up: u16,
    /// Latencies; `None` if no request was answered.
    pub p50_micros: Option<Micros>,
    pub p95_micros: Option<Micros>,
    pub p99_micros: Option<Micros>,
    pub closed_off: ClosedOff,
}

/// At least one, so that an optional one takes no more room.
pub type Micros = std::num::NonZeroU32;

const WARM_UP_PARTS: f64 = 50_000.0;

impl Second {
    pub(super) fn of(sample: &Sample) -> Self {
        let since = &sample.counts;
        let clamp = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let percentile = |percent| Micros::new(since.percentile_micros(percent)?.max(1));
        Self {
            requests: clamp(since.requests),
            errors: clamp(since.errors),
            refused: clamp(since.refused),
            in_flight: u16::try_from(sample.in_flight).unwrap_or(u16::MAX),
            warm_up: sample.warm_up.map_or(u16::MAX, |share| (share.clamp(0.0, 1.0) * WARM_UP_PARTS) as u16),
            p50_micros: percentile(50.0),
            p95_micros: percentile(95.0),
            p99_micros: percentile(99.0),
            closed_off: sample.closed_off,
        }
    }

    /// Of a warm endpoint's share, 0 to 1.
    pub fn warm_up(&self) -> Option<f64> {
        (self.warm_up != u16::MAX).then(|| f64::from(self.warm_up) / WARM_UP_PARTS)
    }
}

/// The last [`SECONDS`] seconds.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Grows to its full size as seconds come.
    seconds: Vec<Option<Second>>,
    /// The number of the newest second.
    newest: u64,
}

impl Ring {
    /// Adds a second that is newer than all; those between are empty.
    pub(super) fn push(&mut self, number: u64, second: Second) {
        if self.seconds.is_empty() {
            self.newest = number - 1;
        }
        let missed = (number - self.newest - 1).min(SECONDS as u64);
        for empty in (number - missed)..number {
            self.put(empty, None);
        }
        self.put(number, Some(second));
        self.newest = number;
    }

    fn put(&mut self, number: u64, second: Option<Second>) {
        let index = (number % SECONDS as u64) as usize;
        if self.seconds.len() <= index {
            // Reserved exactly: a vector that doubles would take up to twice the room that is stated.
            if self.seconds.capacity() == 0 {
                self.seconds.reserve_exact(SECONDS);
            }
            self.seconds.resize(index + 1, None);
        }
        self.seconds[index] = second;
    }

    pub(super) fn get(&self, number: u64) -> Option<Second> {
        let known = number <= self.newest && self.newest - number < SECONDS as u64;
        known.then(|| *self.seconds.get((number % SECONDS as u64) as usize)?).flatten()
    }
}

/// What was counted in each of the last [`RECENT`] seconds.
#[derive(Debug)]
pub(super) struct Recent(Box<[(u64, Counts); RECENT]>);

impl Default for Recent {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| (0, Counts::default()))))
    }
}

impl Recent {
    pub(super) fn push(&mut self, number: u64, counts: &Counts) {
        let (second, kept) = &mut self.0[(number % RECENT as u64) as usize];
        *second = number;
        kept.clone_from(counts);
    }

    pub(super) fn sum(&self, now: u64) -> Counts {
        let mut sum = Counts::default();
        for (_, counts) in self.0.iter().filter(|(second, _)| *second > 0 && now - second < RECENT as u64) {
            sum.add(counts);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_as_small_as_stated() {
        assert_eq!(size_of::<Second>(), 32);
        assert_eq!(size_of::<Option<Second>>(), 32);
        let entry = size_of::<(super::super::Track, super::super::Entry)>();
        let track = SECONDS * size_of::<Option<Second>>() + RECENT * size_of::<(u64, Counts)>() + 2 * entry;
        assert!(track <= super::super::TRACK_BYTES, "{track}");
    }
}
