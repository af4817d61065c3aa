//! Requests that stand for the others of their bucket: the trace of the last sampled one, by which it can be looked up.
//!
//! They are told in the OpenMetrics format only. A request without a sampled trace never comes here.

use std::{
    array,
    sync::{Mutex, TryLockError},
    time::SystemTime,
};

use super::series::BOUNDS_NANOS;
use crate::observe::trace::context::TraceId;

/// The bounded buckets, and what is beyond the last bound.
pub(super) const BUCKETS: usize = BOUNDS_NANOS.len() + 1;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exemplar {
    pub(super) trace: TraceId,
    pub(super) nanos: u64,
    pub(super) time: SystemTime,
}

/// The last one of each bucket.
pub(super) type Kept = [Option<Exemplar>; BUCKETS];

/// Those of a series. About 1 KB, and never more.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<Kept>);

impl Exemplars {
    /// Never waits: while another worker writes, or somebody reads, this one is not kept.
    pub(super) fn keep(&self, exemplar: Exemplar) {
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < exemplar.nanos);
        match self.0.try_lock() {
            Ok(mut kept) => kept[bucket] = Some(exemplar),
            // Nothing that holds it panics; if something did, the array is whole all the same.
            Err(TryLockError::Poisoned(kept)) => kept.into_inner()[bucket] = Some(exemplar),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    pub(super) fn kept(&self) -> Kept {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Of two, the newer one in each bucket.
pub(super) fn newer(one: &Kept, other: &Kept) -> Kept {
    array::from_fn(|bucket| one[bucket].into_iter().chain(other[bucket]).max_by_key(|exemplar| exemplar.time))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn exemplar(trace: u128, nanos: u64, second: u64) -> Exemplar {
        let time = UNIX_EPOCH + Duration::from_secs(second);
        Exemplar { trace: TraceId::new(trace).unwrap(), nanos, time }
    }

    #[test]
    fn the_last_of_each_bucket_is_kept() {
        let exemplars = Exemplars::default();
        let beyond = BOUNDS_NANOS[BUCKETS - 2] + 1;
        for (trace, nanos) in [(1, 400_000), (2, 500_000), (3, 500_001), (4, beyond), (5, u64::MAX)] {
            exemplars.keep(exemplar(trace, nanos, 0));
        }
        let kept = exemplars.kept();
        let traces: Vec<_> = kept.iter().map(|one| one.map_or(0, |exemplar| exemplar.trace.get())).collect();
        assert_eq!((traces[0], traces[1], traces[BUCKETS - 1]), (2, 3, 5), "bounds are inclusive");
        assert_eq!(traces.iter().filter(|trace| **trace != 0).count(), 3);
        // Whoever reads does not hold up whoever counts.
        let reading = exemplars.0.lock().unwrap();
        exemplars.keep(exemplar(6, 1, 0));
        drop(reading);
        assert_eq!(exemplars.kept(), kept);
    }

    #[test]
    fn of_two_pods_of_one_name_the_newer_one_counts() {
        let (mut one, mut other) = ([None; BUCKETS], [None; BUCKETS]);
        one[0] = Some(exemplar(1, 1, 10));
        one[1] = Some(exemplar(2, 1, 10));
        other[0] = Some(exemplar(3, 1, 11));
        other[2] = Some(exemplar(4, 1, 1));
        let both = newer(&one, &other);
        assert_eq!((both[0], both[1], both[2], both[3]), (other[0], one[1], other[2], None));
    }
}
