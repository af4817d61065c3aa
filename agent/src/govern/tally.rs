//! What this agent has counted of an endpoint, or of a service: requests, errors, latencies. Written by the workers as
//! requests end, read once a second by whoever keeps the history.
//!
//! Latencies are kept in log-linear buckets (four to an octave, from 64 us to 69 s), so that a percentile of one
//! second's requests is told with an error of at most an eighth, in 1/3 KiB an endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The first bucket holds everything below this; buckets of 16 us follow.
const FIRST_MICROS: u64 = 64;
/// Buckets to an octave, as a power of two.
const STEPS_BITS: u32 = 2;
const OCTAVES: usize = 20;
/// The first, those of the octaves, and one for what is longer.
pub const BUCKETS: usize = 2 + (OCTAVES << STEPS_BITS);

/// Counters that only grow, and wrap: readers take differences.
#[derive(Debug)]
pub struct Tally {
    requests: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    latencies: [AtomicU32; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: AtomicU64::default(),
            errors: AtomicU64::default(),
            refused: AtomicU64::default(),
            latencies: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }
}

/// A reading of a [`Tally`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub errors: u64,
    /// Of the requests, those that the agent itself refused; they have no latency and are no errors.
    pub refused: u64,
    pub latencies: [u32; BUCKETS],
}

impl Default for Counts {
    fn default() -> Self {
        Self { requests: 0, errors: 0, refused: 0, latencies: [0; BUCKETS] }
    }
}

impl Tally {
    /// A request that an endpoint answered, or failed to.
    pub fn answered(&self, latency_nanos: u64, error: bool) {
        self.requests.fetch_add(1, Relaxed);
        if error {
            self.errors.fetch_add(1, Relaxed);
        }
        self.latencies[bucket(latency_nanos / 1000)].fetch_add(1, Relaxed);
    }

    /// A request that the agent refused by a rule, or because it is none that could be passed on.
    pub fn refused(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.refused.fetch_add(1, Relaxed);
    }

    /// A request whose caller left before there was an answer: nobody knows how long it would have taken, and it is
    /// nobody's error.
    pub fn left(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// How many there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub fn read(&self) -> Counts {
        Counts {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            refused: self.refused.load(Relaxed),
            latencies: std::array::from_fn(|index| self.latencies[index].load(Relaxed)),
        }
    }
}

impl Counts {
    /// What was counted since an earlier reading of the same tally.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.wrapping_sub(before.requests),
            errors: self.errors.wrapping_sub(before.errors),
            refused: self.refused.wrapping_sub(before.refused),
            latencies: std::array::from_fn(|index| {
                self.latencies[index].wrapping_sub(before.latencies[index])
            }),
        }
    }

    /// Adds another tally's counts.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.wrapping_add(other.requests);
        self.errors = self.errors.wrapping_add(other.errors);
        self.refused = self.refused.wrapping_add(other.refused);
        for (sum, count) in self.latencies.iter_mut().zip(&other.latencies) {
            *sum = sum.wrapping_add(*count);
        }
    }

    /// The latency that `percent` of the answered requests stay below, in microseconds, interpolated within its bucket;
    /// `None` if there were none.
    pub fn percentile_micros(&self, percent: f64) -> Option<u32> {
        let total: u64 = self.latencies.iter().map(|count| u64::from(*count)).sum();
        if total == 0 {
            return None;
        }
        let rank = (percent / 100.0 * total as f64).clamp(1.0, total as f64);
        let mut below = 0.0;
        for (index, count) in self.latencies.iter().enumerate() {
            let count = f64::from(*count);
            if count > 0.0 && below + count >= rank {
                let (from, to) = (lower_bound(index) as f64, lower_bound(index + 1) as f64);
                return Some((from + (to - from) * (rank - below) / count) as u32);
            }
            below += count;
        }
        None
    }
}

fn bucket(micros: u64) -> usize {
    if micros < FIRST_MICROS {
        return 0;
    }
    let octave = micros.ilog2() - FIRST_MICROS.ilog2();
    let step = (micros >> (micros.ilog2() - STEPS_BITS)) as usize & ((1 << STEPS_BITS) - 1);
    (1 + ((octave as usize) << STEPS_BITS) + step).min(BUCKETS - 1)
}

/// In microseconds.
fn lower_bound(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        None => 0,
        Some(index) => {
            let (octave, step) = (index >> STEPS_BITS, (index & ((1 << STEPS_BITS) - 1)) as u64);
            let base = FIRST_MICROS << octave;
            base + (base >> STEPS_BITS) * step
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_a_quarter_of_an_octave() {
        for (micros, wanted) in [(0, 0), (63, 0), (64, 1), (79, 1), (80, 2), (127, 4), (128, 5), (160, 6)] {
            assert_eq!(bucket(micros), wanted, "{micros}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(lower_bound(BUCKETS - 1), 64 << OCTAVES);
    }

    #[test]
    fn percentiles_are_those_of_the_requests() {
        let tally = Tally::default();
        assert_eq!(tally.read().percentile_micros(50.0), None);
        for millis in 1..=100 {
            tally.answered(millis * 1_000_000, false);
        }
        let counts = tally.read();
        for (percent, micros) in [(50.0, 50_000.0), (95.0, 95_000.0), (99.0, 99_000.0)] {
            let told = f64::from(counts.percentile_micros(percent).unwrap());
            assert!((told - micros).abs() / micros < 0.125, "{percent}: {told}");
        }
    }

    #[test]
    fn refused_requests_are_neither_errors_nor_slow() {
        let tally = Tally::default();
        tally.answered(1_000_000, false);
        let before = tally.read();
        tally.refused();
        tally.left();
        tally.answered(2_000_000, true);
        let since = tally.read().since(&before);
        assert_eq!((since.requests, since.errors, since.refused), (3, 1, 1));
        assert_eq!(since.latencies.iter().sum::<u32>(), 1);
    }

    proptest! {
        #[test]
        fn every_latency_lies_in_its_bucket(micros in 0..u64::MAX / 2) {
            let index = bucket(micros);
            prop_assert!(lower_bound(index) <= micros);
            prop_assert!(index == BUCKETS - 1 || micros < lower_bound(index + 1));
        }
    }
}
