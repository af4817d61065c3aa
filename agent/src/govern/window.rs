//! Counts over the last while: a ring of buckets, each a tenth of it, that threads add to without waiting for each other.
//!
//! What leaves the window does so a tenth at a time, so that a sum covers between nine tenths and the whole of it.
//! A thread that is held up within [`Window::add`] for nine tenths of the window puts its count into a newer bucket:
//! nothing is lost.

use std::{
    array,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

const BUCKETS: usize = 10;

/// `C` counts side by side.
#[derive(Debug)]
pub struct Window<const C: usize> {
    bucket_nanos: u64,
    buckets: [Bucket<C>; BUCKETS],
    /// Held by the thread that empties a bucket for new use.
    emptying: Mutex<()>,
}

#[derive(Debug)]
struct Bucket<const C: usize> {
    /// Which tenth since the beginning of time it counts.
    number: AtomicU64,
    counts: [AtomicU64; C],
}

impl<const C: usize> Window<C> {
    pub fn new(length: Duration) -> Self {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self {
            bucket_nanos: (nanos / BUCKETS as u64).max(1),
            buckets: array::from_fn(|_| Bucket {
                number: AtomicU64::new(0),
                counts: array::from_fn(|_| AtomicU64::new(0)),
            }),
            emptying: Mutex::new(()),
        }
    }

    /// Adds to each count. One who sees a later count of an `add` sees the earlier ones too: with a part counted behind
    /// its whole, no share is ever seen above 1.
    pub fn add(&self, counts: [u64; C], now_nanos: u64) {
        let number = now_nanos / self.bucket_nanos;
        let bucket = &self.buckets[(number % BUCKETS as u64) as usize];
        if bucket.number.load(Acquire) < number {
            self.empty(bucket, number);
        }
        for (count, by) in bucket.counts.iter().zip(counts) {
            if by > 0 {
                count.fetch_add(by, Release);
            }
        }
    }

    fn empty(&self, bucket: &Bucket<C>, number: u64) {
        let _emptying = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.number.load(Acquire) < number {
            bucket.counts.iter().for_each(|count| count.store(0, Release));
            bucket.number.store(number, Release);
        }
    }

    /// What was counted within the window that ends now.
    pub fn sum(&self, now_nanos: u64) -> [u64; C] {
        let now = now_nanos / self.bucket_nanos;
        let mut sum = [0_u64; C];
        let is_live = |bucket: &&Bucket<C>| now.saturating_sub(bucket.number.load(Acquire)) < BUCKETS as u64;
        let live = self.buckets.iter().filter(is_live);
        for bucket in live {
            for (count, sum) in bucket.counts.iter().zip(&mut sum).rev() {
                *sum = sum.saturating_add(count.load(Acquire));
            }
        }
        sum
    }

    /// One that holds the same, and shares nothing with it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = |from: &AtomicU64| AtomicU64::new(from.load(Acquire));
        Self {
            bucket_nanos: self.bucket_nanos,
            buckets: array::from_fn(|index| {
                let bucket = &self.buckets[index];
                Bucket { number: copy(&bucket.number), counts: array::from_fn(|c| copy(&bucket.counts[c])) }
            }),
            emptying: Mutex::new(()),
        }
    }

    /// Forgets one of the counts.
    pub fn forget(&self, index: usize) {
        self.buckets.iter().for_each(|bucket| bucket.counts[index].store(0, Release));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_is_older_than_the_window_is_gone() {
        let window = Window::new(Duration::from_secs(10));
        window.add([1, 0], 0);
        window.add([2, 1], SECOND - 1);
        window.add([4, 0], SECOND);
        window.add([8, 1], 9 * SECOND);
        for (now, sum) in [
            (0, [15, 2]),
            (9 * SECOND, [15, 2]),
            (10 * SECOND - 1, [15, 2]),
            (10 * SECOND, [12, 1]),
            (11 * SECOND, [8, 1]),
            (19 * SECOND - 1, [8, 1]),
            (19 * SECOND, [0, 0]),
            (u64::MAX, [0, 0]),
        ] {
            assert_eq!(window.sum(now), sum, "at {now}");
        }
        // A bucket is used anew.
        window.add([16, 16], 10 * SECOND);
        assert_eq!(window.sum(10 * SECOND), [28, 17]);
        window.forget(1);
        assert_eq!(window.sum(10 * SECOND), [28, 0]);
    }

    #[test]
    fn a_late_count_goes_into_a_newer_bucket() {
        let window = Window::new(Duration::from_secs(10));
        window.add([1], 10 * SECOND);
        window.add([1], 0);
        assert_eq!(window.sum(10 * SECOND), [2]);
    }

    #[test]
    fn windows_of_any_length_count() {
        for length in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1), Duration::MAX] {
            let window = Window::new(length);
            window.add([u64::MAX], u64::MAX);
            assert_eq!(window.sum(u64::MAX), [u64::MAX], "{length:?}");
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let window = Window::new(Duration::from_secs(10));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // All within one window, over all of its buckets.
                    for n in 0..20_000_u64 {
                        window.add([1, n % 2], 10 * SECOND + n * SECOND / 2_000);
                        let [all, part] = window.sum(10 * SECOND);
                        assert!(part <= all);
                    }
                });
            }
        });
        assert_eq!(window.sum(19 * SECOND), [80_000, 40_000]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_all_that_was_counted(
            steps in prop::collection::vec((0..3_000_u64, 0..5_u64), 1..200),
        ) {
            let window = Window::new(Duration::from_micros(1));
            let mut all = Vec::new();
            let mut now = 0;
            for (wait, count) in steps {
                now += wait / 3;
                window.add([count], now);
                all.push((now / 100, count));
                let expected: u64 =
                    all.iter().filter(|(bucket, _)| bucket + 10 > now / 100).map(|(_, count)| count).sum();
                prop_assert_eq!(window.sum(now), [expected]);
            }
        }
    }
}
