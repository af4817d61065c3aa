//! A subset: the endpoints of a service that are alike to a request, those of one lane or the baseline.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;

use super::{
    endpoint::Endpoint,
    outcome::Outcome,
    outlier::{CallerId, Ejections, Outliers},
    policy::{OutlierDetection, StartOn, WarmUp},
    warmup::{self, Stage},
};

/// The endpoints of a lane, or of the baseline. Immutable, as they are; what the choice among them remembers is shared
/// with the subset that [follows](Subset::new) it in the next snapshot.
#[derive(Debug, Default)]
pub struct Subset {
    endpoints: Vec<Arc<Endpoint>>,
    /// How many of them may be asked, as far as the cluster is concerned.
    usable: usize,
    /// All endpoints have been found to be warm with this start, delay and duration; see [`Subset::is_warm`].
    warm_with: OnceLock<(StartOn, Duration, Duration)>,
    memory: Arc<Memory>,
}

/// What outlives a snapshot.
#[derive(Debug, Default)]
struct Memory {
    /// Whose turn it is, for `RoundRobin`.
    turn: AtomicUsize,
    outliers: Outliers,
    carried: Carried,
}

/// How many warm endpoints have carried the requests of late: the most of the span of time that goes on, and of the one before.
#[derive(Debug, Default)]
struct Carried {
    most: [AtomicUsize; 2],
    since_nanos: AtomicU64,
}

impl Carried {
    /// So many are warm now. Returns the most of late.
    fn note(&self, warm: usize, span: Duration, now_nanos: u64) -> usize {
        let [most, before] = &self.most;
        let since = self.since_nanos.load(Relaxed);
        if u128::from(now_nanos.saturating_sub(since)) > span.as_nanos() {
            // (Of two workers that do this at once the second forgets a span: less is yielded then.)
            before.store(most.swap(warm, Relaxed), Relaxed);
            self.since_nanos.store(now_nanos, Relaxed);
        } else {
            most.fetch_max(warm, Relaxed);
        }
        most.load(Relaxed).max(before.load(Relaxed))
    }

    fn copy(&self) -> Self {
        let most = self.most.each_ref().map(|most| AtomicUsize::new(most.load(Relaxed)));
        Self { most, since_nanos: AtomicU64::new(self.since_nanos.load(Relaxed)) }
    }
}

impl Subset {
    /// The subset that takes the place of `before`.
    pub fn new(endpoints: Vec<Arc<Endpoint>>, before: Option<&Self>) -> Self {
        let memory = before.map(|before| before.memory.clone()).unwrap_or_default();
        // An endpoint may come from another subset, with its ejection.
        for endpoint in &endpoints {
            memory.outliers.welcome(endpoint);
        }
        let usable = endpoints.iter().filter(|endpoint| endpoint.is_usable()).count();
        Self { endpoints, usable, warm_with: OnceLock::new(), memory }
    }

    /// The same endpoints, with a memory of their own: to choose from it takes nobody's turn.
    #[must_use]
    pub fn copy(&self) -> Self {
        let memory = Memory {
            turn: AtomicUsize::new(self.memory.turn.load(Relaxed)),
            outliers: self.memory.outliers.copy(),
            carried: self.memory.carried.copy(),
        };
        Self {
            endpoints: self.endpoints.clone(),
            usable: self.usable,
            warm_with: OnceLock::new(),
            memory: Arc::new(memory),
        }
    }

    /// How many endpoints are ready and not terminating.
    pub fn usable(&self) -> usize {
        self.usable
    }

    /// How long an answer is likely to take, on average of the endpoints that may be asked and were.
    pub fn likely(&self) -> Option<Duration> {
        let likely = self.endpoints.iter().filter(|endpoint| endpoint.is_usable());
        let likely = likely.filter_map(|endpoint| endpoint.load.cost().likely_nanos());
        let (sum, count) = likely.fold((0.0, 0.0), |(sum, count), nanos| (sum + nanos, count + 1.0));
        (count > 0.0).then(|| Duration::from_nanos((sum / count) as u64))
    }

    /// How many warm endpoints have carried the requests within about the time of a warm-up; `warm` are now.
    pub(super) fn carried(&self, policy: &WarmUp, warm: usize, now_nanos: u64) -> usize {
        self.memory.carried.note(warm, policy.delay.saturating_add(policy.duration), now_nanos)
    }

    /// The next number in turn.
    pub(super) fn turn(&self) -> usize {
        self.memory.turn.fetch_add(1, Relaxed)
    }

    /// Learns how a request of `by` to an endpoint went, and says who was ejected because of it. What the agent itself refused, or
    /// the caller gave up, is nobody's outcome. See [`Outliers::observe`].
    pub fn observe(
        &self,
        config: &OutlierDetection,
        endpoint: &Endpoint,
        by: CallerId,
        outcome: Outcome,
        now_nanos: u64,
        rng: &mut Rng,
    ) -> Ejections {
        self.memory.outliers.observe(config, self, endpoint, (by, outcome), now_nanos, rng)
    }

    /// Whether none is ejected for sure; costs a look at one number.
    pub(super) fn has_no_outliers(&self, now_nanos: u64) -> bool {
        self.memory.outliers.is_quiet(now_nanos)
    }

    /// Whether all endpoints are warm. That lasts until one of them changes, or the policy, which makes another subset: once
    /// it was found out it costs nothing.
    pub(super) fn is_warm(&self, policy: &WarmUp, now_nanos: u64) -> bool {
        let with = (policy.start_on, policy.delay, policy.duration);
        if self.warm_with.get() == Some(&with) {
            return true;
        }
        let mut usable = self.endpoints.iter().filter(|endpoint| endpoint.is_usable());
        let warm = usable.all(|endpoint| warmup::stage(policy, endpoint, now_nanos) == Stage::Warm);
        if warm {
            self.carried(policy, self.usable, now_nanos);
            // Another worker may have found out before; with another policy it is looked at every time.
            let _ = self.warm_with.set(with);
        }
        warm
    }
}

impl Deref for Subset {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }
}

impl From<Vec<Arc<Endpoint>>> for Subset {
    fn from(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self::new(endpoints, None)
    }
}

impl FromIterator<Arc<Endpoint>> for Subset {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        endpoints.into_iter().collect::<Vec<_>>().into()
    }
}

#[cfg(test)]
mod tests;
