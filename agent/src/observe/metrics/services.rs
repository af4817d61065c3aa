//! What is counted for a service, whoever calls it: what its rules decided.
//!
//! Counters are atomics that a connection finds once ([`super::ServiceSeries::service`]). Rules have names that users
//! give; how many there are is bounded by policies, and a service that is gone takes its numbers with it
//! ([`Services::retain`]).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use ahash::AHashMap;
use prometheus::{
    core::{Collector, Desc},
    proto::{Metric, MetricFamily},
};

use super::{
    EVICTION_GRACE, Kind, RetryCause, TagOutcome,
    families::{counter, family, label},
};

/// What a rule said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitDecision {
    Allowed,
    /// It had to wait.
    Queued,
    Refused,
    /// It only observes.
    WouldRefuse,
}

impl LimitDecision {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Allowed, "allowed"),
        (Self::Queued, "queued"),
        (Self::Refused, "refused"),
        (Self::WouldRefuse, "would_refuse"),
    ];
}

/// What came of looking for an answer of a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackAction {
    Static,
    Stale,
    /// There was no stale answer to the request.
    Missed,
}

impl FallbackAction {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Static, "static"), (Self::Stale, "stale"), (Self::Missed, "missed")];
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    ConsecutiveErrors,
    SuccessRate,
}

impl EjectionCause {
    const ALL: [(Self, &'static str); 2] =
        [(Self::ConsecutiveErrors, "consecutive_errors"), (Self::SuccessRate, "success_rate")];
}

/// Whether a rule is in force.
const MODES: [&str; 2] = ["enforce", "observe"];

/// The numbers of one service port.
#[derive(Debug, Default)]
pub struct ServiceMetrics {
    tags: [AtomicU64; TagOutcome::ALL.len()],
    retries: [AtomicU64; RetryCause::ALL.len()],
    budget_exhausted: AtomicU64,
    rate_limits: Named<{ LimitDecision::ALL.len() }>,
    concurrency: [AtomicU64; LimitDecision::ALL.len()],
    breaker: [AtomicU64; LimitDecision::ALL.len()],
    /// By cause and mode.
    ejections: [[AtomicU64; MODES.len()]; EjectionCause::ALL.len()],
    panics: AtomicU64,
    fallbacks: Named<{ FallbackAction::ALL.len() }>,
}

/// Counters of what has a name in a policy.
#[derive(Debug)]
struct Named<const N: usize>(RwLock<AHashMap<Arc<str>, Arc<[AtomicU64; N]>>>);

impl<const N: usize> Default for Named<N> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<const N: usize> Named<N> {
    fn count(&self, name: &Arc<str>, index: usize) {
        if let Some(counters) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            counters[index].fetch_add(1, Relaxed);
            return;
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let counters = all
            .entry(Arc::clone(name))
            .or_insert_with(|| Arc::new(std::array::from_fn(|_| AtomicU64::default())));
        counters[index].fetch_add(1, Relaxed);
    }

    fn retain(&self, exists: impl Fn(&str) -> bool) {
        // Nearly always all are there, and nobody is kept from counting.
        let gone = |all: &AHashMap<Arc<str>, _>| all.keys().any(|name| !exists(name));
        if gone(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| exists(name));
        }
    }

    fn all(&self) -> Vec<(Arc<str>, [u64; N])> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            all.iter().map(|(name, counters)| (Arc::clone(name), loaded(counters))).collect();
        all.sort();
        all
    }
}

fn loaded<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    counters.each_ref().map(|counter| counter.load(Relaxed))
}

impl ServiceMetrics {
    /// What became of a request's tag.
    pub fn tag(&self, outcome: TagOutcome) {
        self.tags[outcome as usize].fetch_add(1, Relaxed);
    }

    /// A request is tried again.
    pub fn retried(&self, cause: RetryCause) {
        self.retries[cause as usize].fetch_add(1, Relaxed);
    }

    /// A request would have been tried again, but the budget was used up.
    pub fn budget_exhausted(&self) {
        self.budget_exhausted.fetch_add(1, Relaxed);
    }

    pub fn rate_limited(&self, rule: &Arc<str>, decision: LimitDecision) {
        self.rate_limits.count(rule, decision as usize);
    }

    pub fn concurrency_limited(&self, decision: LimitDecision) {
        self.concurrency[decision as usize].fetch_add(1, Relaxed);
    }

    /// What the circuit breakers said of an attempt.
    pub fn broken(&self, decision: LimitDecision) {
        self.breaker[decision as usize].fetch_add(1, Relaxed);
    }

    /// An endpoint was ejected, or would have been.
    pub fn ejected(&self, cause: EjectionCause, enforced: bool) {
        self.ejections[cause as usize][usize::from(!enforced)].fetch_add(1, Relaxed);
    }

    /// A request was routed in panic: too many endpoints are held out.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub fn fell_back(&self, fallback: &Arc<str>, action: FallbackAction) {
        self.fallbacks.count(fallback, action as usize);
    }

    /// Forgets rules and fallbacks that no policy speaks of any more.
    pub fn retain(&self, rule: impl Fn(&str) -> bool, fallback: impl Fn(&str) -> bool) {
        self.rate_limits.retain(rule);
        self.fallbacks.retain(fallback);
    }
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    namespace: Arc<str>,
    service: Arc<str>,
    port: u16,
}

/// The numbers of all services.
#[derive(Debug, Default)]
pub(super) struct Services(Mutex<AHashMap<Name, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    metrics: Arc<ServiceMetrics>,
    gone_at: Option<Instant>,
}

impl Services {
    fn lock(&self) -> MutexGuard<'_, AHashMap<Name, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> Arc<ServiceMetrics> {
        let name = Name { namespace: Arc::clone(namespace), service: Arc::clone(service), port };
        Arc::clone(&self.lock().entry(name).or_default().metrics)
    }

    /// Forgets services that are gone, after a grace in which their last numbers can be scraped.
    pub(super) fn retain(&self, exists: impl Fn(&str, &str, u16) -> bool, now: Instant) {
        self.lock().retain(|name, entry| {
            if exists(&name.namespace, &name.service, name.port) {
                entry.gone_at = None;
                return true;
            }
            let since = *entry.gone_at.get_or_insert(now);
            now.saturating_duration_since(since) < EVICTION_GRACE
        });
    }

    fn all(&self) -> Vec<(Name, Arc<ServiceMetrics>)> {
        let mut all: Vec<_> =
            self.lock().iter().map(|(name, entry)| (name.clone(), Arc::clone(&entry.metrics))).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}

const DESTINATION: [&str; 3] = ["destination_namespace", "destination_service", "destination_port"];

/// The families, in the order in which they are collected: name, help, further labels.
const FAMILIES: [(&str, &str, &[&str]); 9] = [
    (
        "sluice_tags_total",
        "Tags on requests to a service: routed to their lane, fallen back to the baseline, refused, or invalid and ignored.",
        &["outcome"],
    ),
    ("sluice_retries_total", "Requests to a service that were tried again, by cause.", &["cause"]),
    (
        "sluice_retry_budget_exhausted_total",
        "Requests that were not tried again because the retry budget was used up.",
        &[],
    ),
    (
        "sluice_rate_limit_requests_total",
        "Requests that a rate limit is about, by what it said; would_refuse is what it only observed.",
        &["rule", "decision"],
    ),
    (
        "sluice_concurrency_limit_requests_total",
        "Requests to a service with a limit of requests in flight, by what it said.",
        &["decision"],
    ),
    (
        "sluice_circuit_breaker_requests_total",
        "Attempts at a service with a circuit breaker, by what it said.",
        &["decision"],
    ),
    (
        "sluice_ejections_total",
        "Endpoints that were ejected, or with mode observe would have been.",
        &["cause", "mode"],
    ),
    (
        "sluice_panic_requests_total",
        "Requests that were routed in panic, because too many of a service's endpoints were held out.",
        &[],
    ),
    (
        "sluice_fallbacks_total",
        "Answers that a fallback gave in the place of a service; missed is a stale one that was not there.",
        &["fallback", "action"],
    ),
];

/// The collector of [`Services`].
pub(super) struct Collected {
    services: Arc<Services>,
    descs: Vec<Desc>,
}

impl Collected {
    pub(super) fn new(services: Arc<Services>) -> Self {
        let descs = FAMILIES
            .iter()
            .map(|(name, help, further)| {
                let labels = DESTINATION.iter().chain(*further).map(ToString::to_string).collect();
                Desc::new((*name).to_owned(), (*help).to_owned(), labels, HashMap::new())
                    .expect("names and labels are constant and valid")
            })
            .collect();
        Self { services, descs }
    }
}

/// Collects one service's counters.
struct Writer<'w> {
    own: [&'w str; 3],
    families: &'w mut [Vec<Metric>; FAMILIES.len()],
}

impl Writer<'_> {
    fn write(&mut self, at: usize, further: &[&str], value: u64) {
        let names = DESTINATION.iter().chain(FAMILIES[at].2);
        let labels =
            names.zip(self.own.iter().chain(further)).map(|(name, value)| label(name, value)).collect();
        self.families[at].push(counter(labels, value as f64));
    }

    /// Those that have counted anything; then all of them, so that rates see the next first one.
    fn write_all<T, const N: usize>(
        &mut self,
        at: usize,
        name: Option<&str>,
        words: &[(T, &str); N],
        values: [u64; N],
    ) {
        if values.iter().all(|value| *value == 0) {
            return;
        }
        for ((_, word), value) in words.iter().zip(values) {
            match name {
                None => self.write(at, &[word], value),
                Some(name) => self.write(at, &[name, word], value),
            }
        }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families: [Vec<Metric>; FAMILIES.len()] = Default::default();
        for (name, metrics) in self.services.all() {
            let port = name.port.to_string();
            let mut writer = Writer { own: [&name.namespace, &name.service, &port], families: &mut families };
            writer.write_all(0, None, &TagOutcome::ALL, loaded(&metrics.tags));
            writer.write_all(1, None, &RetryCause::ALL, loaded(&metrics.retries));
            let exhausted = metrics.budget_exhausted.load(Relaxed);
            if exhausted > 0 {
                writer.write(2, &[], exhausted);
            }
            for (rule, values) in metrics.rate_limits.all() {
                writer.write_all(3, Some(&rule), &LimitDecision::ALL, values);
            }
            writer.write_all(4, None, &LimitDecision::ALL, loaded(&metrics.concurrency));
            writer.write_all(5, None, &LimitDecision::ALL, loaded(&metrics.breaker));
            for ((_, cause), modes) in EjectionCause::ALL.iter().zip(&metrics.ejections) {
                for (mode, value) in MODES.iter().zip(loaded(modes)) {
                    if value > 0 {
                        writer.write(6, &[cause, mode], value);
                    }
                }
            }
            let panics = metrics.panics.load(Relaxed);
            if panics > 0 {
                writer.write(7, &[], panics);
            }
            for (fallback, values) in metrics.fallbacks.all() {
                writer.write_all(8, Some(&fallback), &FallbackAction::ALL, values);
            }
        }
        self.descs.iter().zip(families).map(|(desc, metrics)| family(desc, Kind::Counter, metrics)).collect()
    }
}
