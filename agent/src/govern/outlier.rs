//! Outlier detection: an endpoint that fails is taken out of the choice for a while (ARCHITECTURE.md#outlier-detection).
//!
//! Two signs of failing, as in Envoy
//! (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>):
//! - errors in a row, seen with every outcome;
//! - a success rate well below that of the others: `mean - factor * standard deviation`, compared once an interval.
//!
//! Endpoints are compared within their [subset](super::subset), a lane or the baseline, and so is what may be ejected: no
//! more than `max_ejection_percent` of the subset's endpoints that the cluster says are usable, but one of two or more in
//! any case, and never the last. What stands between that and a subset of which nothing is left after all (the others
//! went away in the meantime) is the panic threshold of [`super::route`].
//!
//! What one caller does wrong must not be answered to another: an endpoint that fails the requests of one calling workload, and
//! is fine with those of another, is not ejected, for it is most likely the requests that are wrong. (Who cannot connect is
//! the exception: no request has been seen.) So each endpoint remembers who was last answered well ([`Fine`]).
//!
//! There are no timers. An ejection ends when its time is over, because whoever chooses looks at the time; intervals are
//! closed by the first outcome after their end. An ejection is this agent's own: agents see other callers, and another
//! network between.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};

use fastrand::Rng;
use smallvec::SmallVec;

use super::{
    caller::Caller,
    endpoint::Endpoint,
    outcome::{ErrorKind, Outcome},
    policy::{Mode, OutlierDetection, SuccessRate},
};

/// By how much of itself an ejection may be shorter, so that those ejected together do not all come back at once.
const JITTER: f64 = 0.1;

/// Somebody was ejected, or with [`Mode::Observe`] would have been.
#[derive(Clone, Debug)]
pub struct Ejection {
    pub endpoint: Arc<Endpoint>,
    pub cause: Cause,
    pub until_nanos: u64,
    pub mode: Mode,
}

/// Nearly always none.
pub type Ejections = SmallVec<[Ejection; 1]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    ConsecutiveErrors,
    SuccessRate,
}

impl Cause {
    pub const ALL: [Self; 2] = [Self::ConsecutiveErrors, Self::SuccessRate];

    /// As metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveErrors => "consecutive_errors",
            Self::SuccessRate => "success_rate",
        }
    }
}

/// What is remembered of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Record {
    consecutive_errors: AtomicU32,
    /// In the interval.
    successes: AtomicU32,
    errors: AtomicU32,
    /// Whose they were.
    failed: Whose,
    /// And those in a row.
    row: Whose,
    fine: Fine,
    /// How often it was ejected, less the healthy intervals since.
    ejections: AtomicU32,
    ejected_until_nanos: AtomicU64,
}

/// Tells one calling workload from others: a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerId(u64);

impl CallerId {
    const NOBODY: u64 = 0;
    const SEVERAL: u64 = u64::MAX;

    pub fn of(caller: Caller<'_>) -> Self {
        let mut hasher = DefaultHasher::new();
        (caller.namespace, caller.workload).hash(&mut hasher);
        Self::new(hasher.finish())
    }

    /// `hash`: of what makes it that caller.
    pub fn new(hash: u64) -> Self {
        Self(hash.clamp(Self::NOBODY + 1, Self::SEVERAL - 1))
    }
}

/// Whose requests have failed: nobody's, those of one caller, or of several.
#[derive(Debug, Default)]
struct Whose(AtomicU64);

impl Whose {
    fn note(&self, by: CallerId) {
        match self.0.load(Relaxed) {
            CallerId::NOBODY => self.0.store(by.0, Relaxed),
            one if one == by.0 => {}
            _ => self.0.store(CallerId::SEVERAL, Relaxed),
        }
    }

    /// The one whose they were all; forgets them.
    fn take(&self) -> Option<CallerId> {
        match self.0.swap(CallerId::NOBODY, Relaxed) {
            CallerId::NOBODY | CallerId::SEVERAL => None,
            one => Some(CallerId(one)),
        }
    }
}

/// The two callers that an endpoint has answered well of late, and nothing else since. Two threads that write at the same moment
/// may lose one of them until it is answered again.
#[derive(Debug, Default)]
struct Fine([Answered; 2]);

#[derive(Debug, Default)]
struct Answered {
    caller: AtomicU64,
    nanos: AtomicU64,
}

impl Fine {
    fn answered(&self, by: CallerId, now_nanos: u64) {
        let [last, before] = &self.0;
        let other = last.caller.load(Relaxed);
        if other != by.0 {
            before.nanos.store(last.nanos.load(Relaxed), Relaxed);
            before.caller.store(other, Relaxed);
            last.caller.store(by.0, Relaxed);
        }
        last.nanos.store(now_nanos, Relaxed);
    }

    fn failed(&self, by: CallerId) {
        for one in self.0.iter().filter(|one| one.caller.load(Relaxed) == by.0) {
            one.caller.store(CallerId::NOBODY, Relaxed);
        }
    }

    /// Whether it has answered another than this well, since then.
    fn other_than(&self, by: CallerId, since_nanos: u64) -> bool {
        self.0.iter().any(|one| {
            let other = one.caller.load(Relaxed);
            other != CallerId::NOBODY && other != by.0 && one.nanos.load(Relaxed) >= since_nanos
        })
    }
}

/// What is remembered of a subset.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    /// When the interval began; 0 while there was none.
    began_nanos: AtomicU64,
    /// No ejection lasts longer than this.
    latest_until_nanos: AtomicU64,
    /// Who decides on an ejection has counted those that there are. Not taken for outcomes as such.
    deciding: Mutex<()>,
}

/// Until when an endpoint gets no requests, if it is ejected now.
pub fn ejected_until(config: Option<&OutlierDetection>, endpoint: &Endpoint, now_nanos: u64) -> Option<u64> {
    config.filter(|config| config.mode == Mode::Enforce)?;
    let until = endpoint.load.recorded()?.ejected_until_nanos.load(Relaxed);
    (until > now_nanos).then_some(until)
}

/// Whether an endpoint is ejected now. Without outlier detection none is, whatever was decided before.
pub fn is_ejected(config: Option<&OutlierDetection>, endpoint: &Endpoint, now_nanos: u64) -> bool {
    ejected_until(config, endpoint, now_nanos).is_some()
}

impl Outliers {
    /// The same, to be asked but not told anything.
    pub(super) fn copy(&self) -> Self {
        Self {
            began_nanos: AtomicU64::new(self.began_nanos.load(Relaxed)),
            latest_until_nanos: AtomicU64::new(self.latest_until_nanos.load(Acquire)),
            deciding: Mutex::new(()),
        }
    }

    /// An endpoint that is of the subset from now on.
    pub(super) fn welcome(&self, endpoint: &Endpoint) {
        if let Some(record) = endpoint.load.recorded() {
            self.latest_until_nanos.fetch_max(record.ejected_until_nanos.load(Relaxed), AcqRel);
        }
    }

    /// Whether no endpoint is ejected for sure.
    pub(super) fn is_quiet(&self, now_nanos: u64) -> bool {
        now_nanos >= self.latest_until_nanos.load(Acquire)
    }

    /// Learns how a request went, and whose it was. `endpoints` are those of the subset.
    ///
    /// Outcomes of an endpoint that is ejected are of requests that were under way already, or of a panic. They change
    /// nothing: how long it is out is settled.
    pub(super) fn observe(
        &self,
        config: &OutlierDetection,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        (by, outcome): (CallerId, Outcome),
        now_nanos: u64,
        rng: &mut Rng,
    ) -> Ejections {
        let mut ejections = Ejections::new();
        self.close_interval(config, endpoints, now_nanos, rng, &mut ejections);
        let record = endpoint.load.record();
        if record.is_out(now_nanos) {
            return ejections;
        }
        match outcome {
            Outcome::Success => {
                record.successes.fetch_add(1, Relaxed);
                record.fine.answered(by, now_nanos);
                if record.consecutive_errors.load(Relaxed) != 0 {
                    record.consecutive_errors.store(0, Relaxed);
                    record.row.take();
                }
            }
            Outcome::Error(kind) => {
                record.errors.fetch_add(1, Relaxed);
                record.fine.failed(by);
                record.failed.note(by);
                record.row.note(by);
                let in_a_row = record.consecutive_errors.fetch_add(1, Relaxed).saturating_add(1);
                if config.consecutive_errors.is_some_and(|limit| in_a_row >= limit) {
                    // Also where it may not be ejected: then it is looked at again after as many.
                    record.consecutive_errors.store(0, Relaxed);
                    let since = now_nanos.saturating_sub(nanos(config.interval));
                    let of_one = record.row.take().filter(|_| kind != ErrorKind::Connect);
                    if of_one.is_some_and(|by| record.fine.other_than(by, since)) {
                        return ejections;
                    }
                    let cause = Cause::ConsecutiveErrors;
                    ejections.extend(self.eject(config, endpoints, endpoint, cause, now_nanos, rng));
                }
            }
        }
        ejections
    }

    /// Ends the interval if its time is over: compares success rates, and forgets ejections that were not repeated.
    fn close_interval(
        &self,
        config: &OutlierDetection,
        endpoints: &[Arc<Endpoint>],
        now_nanos: u64,
        rng: &mut Rng,
        ejections: &mut Ejections,
    ) {
        let interval = nanos(config.interval).max(1);
        let began = self.began_nanos.load(Relaxed);
        if began != 0 && now_nanos.saturating_sub(began) < interval {
            return;
        }
        // One of the workers that come by does it.
        if self.began_nanos.compare_exchange(began, now_nanos.max(1), AcqRel, Relaxed).is_err() {
            return;
        }
        let mut rates: SmallVec<[(f64, &Arc<Endpoint>); 32]> = SmallVec::new();
        for endpoint in endpoints {
            let Some(record) = endpoint.load.recorded() else { continue };
            let healthy = now_nanos.saturating_sub(began.max(record.ejected_until_nanos.load(Relaxed)));
            record.forgive(u32::try_from(healthy / interval).unwrap_or(u32::MAX));
            let (successes, errors) = (record.successes.swap(0, Relaxed), record.errors.swap(0, Relaxed));
            let all = u64::from(successes) + u64::from(errors);
            let failed = record.failed.take();
            let enough =
                config.success_rate.is_some_and(|rate| all >= u64::from(rate.minimum_requests.max(1)));
            // It has failed one alone, and not another.
            let of_one = failed.is_some_and(|by| record.fine.other_than(by, began));
            if enough && !of_one && !record.is_out(now_nanos) {
                rates.push((f64::from(successes) / all as f64, endpoint));
            }
        }
        // What nobody has looked at in time says nothing of now.
        if now_nanos.saturating_sub(began) >= interval.saturating_mul(2) {
            return;
        }
        let Some(least) = config.success_rate.and_then(|rate| least_rate(&rate, &rates)) else {
            return;
        };
        rates.retain(|(rate, _)| *rate < least);
        // No more may be ejected than the cap allows: the worst.
        rates.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        for (_, endpoint) in rates {
            let cause = Cause::SuccessRate;
            ejections.extend(self.eject(config, endpoints, endpoint, cause, now_nanos, rng));
        }
    }

    /// Ejects an endpoint, if that leaves enough of the others.
    fn eject(
        &self,
        config: &OutlierDetection,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        cause: Cause,
        now_nanos: u64,
        rng: &mut Rng,
    ) -> Option<Ejection> {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        // As it is now: those with requests in flight may hold one of an older snapshot. One that is gone need not be ejected.
        let of_now = endpoints.iter().find(|other| Arc::ptr_eq(&other.load, &endpoint.load))?;
        let record = of_now.load.record();
        let usable = || endpoints.iter().filter(|endpoint| endpoint.is_usable());
        let out = usable()
            .filter(|endpoint| endpoint.load.recorded().is_some_and(|record| record.is_out(now_nanos)))
            .count();
        if record.is_out(now_nanos) || !of_now.is_usable() || out >= cap(config, usable().count()) {
            return None;
        }
        let time = ejection_time(config, record.count_ejection(config), rng);
        let until_nanos = now_nanos.saturating_add(nanos(time));
        record.consecutive_errors.store(0, Relaxed);
        record.ejected_until_nanos.store(until_nanos, Relaxed);
        self.latest_until_nanos.fetch_max(until_nanos, AcqRel);
        Some(Ejection { endpoint: of_now.clone(), cause, until_nanos, mode: config.mode })
    }
}

impl Record {
    fn is_out(&self, now_nanos: u64) -> bool {
        self.ejected_until_nanos.load(Relaxed) > now_nanos
    }

    /// One more ejection: gives its number. It does not grow once ejections cannot last longer, lest it take for ever to be
    /// forgotten.
    fn count_ejection(&self, config: &OutlierDetection) -> u32 {
        let enough = config.max_ejection.as_secs_f64() / config.base_ejection.as_secs_f64();
        // A quotient that is no number or too large is the largest number there is.
        let most = (enough.ceil() as u32).max(1);
        let next = self.ejections.load(Relaxed).saturating_add(1).min(most);
        self.ejections.store(next, Relaxed);
        next
    }

    /// So many intervals have passed in which it was not ejected.
    fn forgive(&self, healthy_intervals: u32) {
        let ejections = self.ejections.load(Relaxed);
        if ejections != 0 && healthy_intervals != 0 {
            self.ejections.store(ejections.saturating_sub(healthy_intervals), Relaxed);
        }
    }
}

/// How many of so many endpoints may be ejected at once.
fn cap(config: &OutlierDetection, usable: usize) -> usize {
    let share = (usable as f64 * config.max_ejection_percent / 100.0).floor() as usize;
    share.max(1).min(usable.saturating_sub(1))
}

/// How long the n-th ejection lasts.
fn ejection_time(config: &OutlierDetection, n: u32, rng: &mut Rng) -> Duration {
    let full = config.base_ejection.saturating_mul(n).min(config.max_ejection);
    full.mul_f64(1.0 - JITTER * rng.f64())
}

/// The success rate below which an endpoint is ejected; `None`: too few to compare.
fn least_rate(config: &SuccessRate, rates: &[(f64, &Arc<Endpoint>)]) -> Option<f64> {
    if rates.is_empty() || rates.len() < config.minimum_endpoints as usize {
        return None;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(rate, _)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(rate, _)| (rate - mean).powi(2)).sum::<f64>() / count;
    Some(mean - config.stdev_factor * variance.sqrt())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
