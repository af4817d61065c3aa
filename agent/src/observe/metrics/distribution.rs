//! A histogram of durations: atomics with constant bounds, and what several of them add up to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::{Bucket, Histogram, LabelPair, Metric};

/// Counts by bucket, not cumulative: `N` bounded ones and what is beyond the last bound. 8 bytes each, and 8 for the sum.
#[derive(Debug)]
pub(super) struct Distribution<const N: usize> {
    buckets: [AtomicU64; N],
    beyond: AtomicU64,
    sum_nanos: AtomicU64,
}

impl<const N: usize> Default for Distribution<N> {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; N],
            beyond: AtomicU64::default(),
            sum_nanos: AtomicU64::default(),
        }
    }
}

impl<const N: usize> Distribution<N> {
    /// Counts a duration into the first bucket whose bound is not below it.
    pub(super) fn observe(&self, bounds: &[u64; N], nanos: u64) {
        let bucket = self.buckets.get(bounds.partition_point(|bound| *bound < nanos));
        bucket.unwrap_or(&self.beyond).fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }
}

/// The sum of some distributions with the same bounds.
#[derive(Debug)]
pub(super) struct Total<const N: usize> {
    buckets: [u64; N],
    beyond: u64,
    sum_nanos: u64,
}

impl<const N: usize> Default for Total<N> {
    fn default() -> Self {
        Self { buckets: [0; N], beyond: 0, sum_nanos: 0 }
    }
}

impl<const N: usize> Total<N> {
    pub(super) fn add(&mut self, distribution: &Distribution<N>) {
        for (sum, count) in self.buckets.iter_mut().zip(&distribution.buckets) {
            *sum += count.load(Relaxed);
        }
        self.beyond += distribution.beyond.load(Relaxed);
        self.sum_nanos += distribution.sum_nanos.load(Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.beyond == 0 && self.buckets.iter().all(|count| *count == 0)
    }

    /// In the form of the `prometheus` crate: seconds, cumulative.
    pub(super) fn metric(&self, labels: Vec<LabelPair>, bounds: &[u64; N]) -> Metric {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(N);
        for (bound, inside) in bounds.iter().zip(&self.buckets) {
            count += inside;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e9);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + self.beyond);
        histogram.set_sample_sum(self.sum_nanos as f64 / 1e9);
        let mut metric = Metric::from_label(labels);
        metric.set_histogram(histogram);
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_pass() {
        const BOUNDS: [u64; 2] = [1_000_000, 2_000_000_000];
        let distribution = Distribution::default();
        for nanos in [0, 1_000_000, 1_000_001, 2_000_000_000, 2_000_000_001] {
            distribution.observe(&BOUNDS, nanos);
        }
        let mut total = Total::default();
        assert!(total.is_empty());
        total.add(&distribution);
        total.add(&distribution);
        assert!(!total.is_empty());
        let metric = total.metric(Vec::new(), &BOUNDS);
        let histogram = metric.get_histogram();
        let buckets: Vec<_> = histogram
            .get_bucket()
            .iter()
            .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
            .collect();
        assert_eq!(buckets, [(0.001, 4), (2.0, 8)]);
        assert_eq!(histogram.get_sample_count(), 10);
        assert!((histogram.get_sample_sum() - 8.004_000_004).abs() < 1e-9);
    }
}
