//! A limit that grows after a quiet time: the cold start of Guava's `SmoothWarmingUp`, which Sentinel took over.
//!
//! While it is not used, a bucket stores requests, up to `M`, and then it is cold. Requests out of the store above `W` are
//! dearer than `1 / c`: what they cost falls along a line from `f / c` at `M` to `1 / c` at `W`, so that the allowed rate
//! grows from `c / f` to `c`, and the way from `M` to `W` takes exactly the warm-up time `T`.
//!
//! `W = T * c / (f - 1)`, `M = W + 2 * T * c / (1 + f)`, slope `(f - 1) / c / (M - W)`. The store fills while there is no
//! backlog, at `M / T`: half the load keeps a service of `f = 3` warm, a quarter of it does not.
//! <https://github.com/google/guava/blob/master/guava/src/com/google/common/util/concurrent/SmoothRateLimiter.java>
//! <https://github.com/alibaba/Sentinel/blob/master/sentinel-core/src/main/java/com/alibaba/csp/sentinel/slots/block/flow/controller/WarmUpController.java>

use super::pace::Ticks;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ColdStart {
    /// `W`, in requests.
    threshold: f64,
    /// `M`, in requests.
    most: f64,
    /// By how much a request gets dearer with each one that is stored, in ticks.
    slope: f64,
    /// Requests that are stored in a tick.
    refill: f64,
    cold_factor: f64,
}

impl ColdStart {
    /// `None` if there is nothing to warm up: no time, or a cold rate that is not below the warm one.
    pub(super) fn new(cost: Ticks, duration: Ticks, cold_factor: f64) -> Option<Self> {
        // `T * c`: what the warm rate admits in the warm-up time.
        let warm = duration as f64 / cost as f64;
        let threshold = warm / (cold_factor - 1.0);
        let most = threshold + 2.0 * warm / (1.0 + cold_factor);
        let slope = (cold_factor - 1.0) * cost as f64 / (most - threshold);
        let refill = most / duration as f64;
        let usable = cold_factor > 1.0 && [threshold, most, slope, refill].iter().all(|x| x.is_normal());
        usable.then_some(Self { threshold, most, slope, refill, cold_factor })
    }

    /// How many requests it stores: so many make it cold.
    pub(super) fn most(&self) -> f64 {
        self.most
    }

    /// How much of the way from cold (0) to warm (1) is done with so many stored.
    pub(super) fn warmth(&self, stored: f64) -> f64 {
        (1.0 - (stored - self.threshold) / (self.most - self.threshold)).clamp(0.0, 1.0)
    }

    /// What is stored when the bucket has been without backlog for `idle`.
    pub(super) fn refilled(&self, stored: f64, idle: Ticks) -> f64 {
        (stored + idle as f64 * self.refill).min(self.most)
    }

    /// What a request costs with so many stored: the area under the line over the one that it takes from the store.
    pub(super) fn cost(&self, warm_cost: Ticks, stored: f64) -> Ticks {
        let above = (stored - self.threshold).max(0.0);
        let taken = above.min(1.0);
        warm_cost.saturating_add((taken * self.slope * (above - taken / 2.0)) as Ticks)
    }

    pub(super) fn dearest(&self, warm_cost: Ticks) -> Ticks {
        (warm_cost as f64 * self.cold_factor) as Ticks
    }
}

#[cfg(test)]
mod tests;
