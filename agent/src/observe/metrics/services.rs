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
    proto::{LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    EVICTION_GRACE, RetryCause, TagOutcome,
    distribution::{Distribution, Total},
    families::{counter, family, label},
    outcomes::{
        AccessDecision, CLASSES, EjectionCause, FallbackAction, LimitCounts, LimitDecision, MODES,
        MirrorOutcome, Overdue,
    },
};
use crate::{
    govern::tally::Tally,
    observe::fault::{Fault, MessagePart, Sender},
};

/// Upper bounds of the histograms of what endpoints take and of what Sluice adds, in nanoseconds: 10 us to 10 s.
const BOUNDS_NANOS: [u64; 18] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// What a rate limit has decided.
pub(super) type RateLimitCounts = [AtomicU64; LimitDecision::ALL.len()];

/// The numbers of one service port.
#[derive(Debug, Default)]
pub struct ServiceMetrics {
    /// All requests to it.
    pub(super) tally: Arc<Tally>,
    tags: [AtomicU64; TagOutcome::ALL.len()],
    retries: [AtomicU64; RetryCause::ALL.len()],
    /// Copies of requests to other Services.
    mirrored: [AtomicU64; MirrorOutcome::ALL.len()],
    budget_exhausted: AtomicU64,
    rate_limits: Named<{ LimitDecision::ALL.len() }>,
    concurrency: [AtomicU64; LimitDecision::ALL.len()],
    breaker: [AtomicU64; LimitDecision::ALL.len()],
    /// By cause and mode.
    ejections: [[AtomicU64; MODES.len()]; EjectionCause::ALL.len()],
    panics: AtomicU64,
    /// Requests routed while the warm-up curve yielded.
    yields: AtomicU64,
    /// Requests that an observed timeout would have ended.
    overdue: [AtomicU64; Overdue::ALL.len()],
    /// Messages that were not valid, by who sent them and by the part that is wrong.
    invalid: [[AtomicU64; MessagePart::ALL.len()]; Sender::ALL.len()],
    fallbacks: Named<{ FallbackAction::ALL.len() }>,
    /// Requests by the rule of a route that sent them here, or was asked for them: how they ended.
    routes: RwLock<AHashMap<RouteRule, Arc<[AtomicU64; CLASSES.len()]>>>,
    access: Named<{ AccessDecision::ALL.len() }>,
    /// Requests by the rule that held for them: how they ended, and what they took.
    rules: RwLock<AHashMap<Arc<str>, Arc<OfRule>>>,
    upstream: Distribution<{ BOUNDS_NANOS.len() }>,
    added: Distribution<{ BOUNDS_NANOS.len() }>,
}

/// A rule of a route, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteRule {
    /// `HTTPRoute`
    pub kind: &'static str,
    /// `shop/orders`
    pub route: Arc<str>,
    pub rule: Arc<str>,
}

/// The requests that a rule of a policy held for.
#[derive(Debug, Default)]
struct OfRule {
    classes: [AtomicU64; CLASSES.len()],
    took: Distribution<{ BOUNDS_NANOS.len() }>,
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
    fn count(&self, name: &str, index: usize) {
        if let Some(counters) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            counters[index].fetch_add(1, Relaxed);
            return;
        }
        self.of(name)[index].fetch_add(1, Relaxed);
    }

    /// The counters of a name, to be kept.
    fn of(&self, name: &str) -> Arc<[AtomicU64; N]> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let none = || Arc::new(std::array::from_fn(|_| AtomicU64::default()));
        Arc::clone(all.entry(name.into()).or_insert_with(none))
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

    /// A copy of a request has come to its end.
    pub fn mirrored(&self, outcome: MirrorOutcome) {
        self.mirrored[outcome as usize].fetch_add(1, Relaxed);
    }

    /// A request would have been tried again, but the budget was used up.
    pub fn budget_exhausted(&self) {
        self.budget_exhausted.fetch_add(1, Relaxed);
    }

    /// The counters of a rate limit, by decision.
    pub(super) fn of_rate_limit(&self, rule: &Arc<str>) -> Arc<RateLimitCounts> {
        self.rate_limits.of(rule)
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

    /// A request was routed while the warm-up curve yielded, lest warm endpoints get too much.
    pub fn warm_up_yielded(&self) {
        self.yields.fetch_add(1, Relaxed);
    }

    /// A timeout that only observes would have ended a request.
    pub fn overdue(&self, timeout: Overdue) {
        self.overdue[timeout as usize].fetch_add(1, Relaxed);
    }

    /// A message is not passed on, because it is not valid.
    pub fn invalid(&self, sender: Sender, fault: Fault) {
        self.invalid[sender as usize][fault.part as usize].fetch_add(1, Relaxed);
    }

    /// What an AccessPolicy said of a request, by the name of the rule.
    pub fn accessed(&self, rule: &str, decision: AccessDecision) {
        self.access.count(rule, decision as usize);
    }

    pub fn fell_back(&self, fallback: &Arc<str>, action: FallbackAction) {
        self.fallbacks.count(fallback, action as usize);
    }

    /// A request that a rule of the policy held for has ended, with this status (0: without any).
    pub fn ruled(&self, rule: &Arc<str>, status: u16, nanos: u64) {
        let known = self.rules.read().unwrap_or_else(PoisonError::into_inner).get(rule).cloned();
        let of_rule = known.unwrap_or_else(|| {
            let mut all = self.rules.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(Arc::clone(rule)).or_default().clone()
        });
        let class = usize::from(status / 100);
        of_rule.classes[if class < CLASSES.len() { class } else { 0 }].fetch_add(1, Relaxed);
        of_rule.took.observe(&BOUNDS_NANOS, nanos);
    }

    /// A request that a rule of a route held for has ended, with this status (0: without any).
    pub fn routed(&self, rule: RouteRule, status: u16) {
        let known = self.routes.read().unwrap_or_else(PoisonError::into_inner).get(&rule).cloned();
        let classes = known.unwrap_or_else(|| {
            let mut all = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            let none = || Arc::new(std::array::from_fn(|_| AtomicU64::default()));
            all.entry(rule).or_insert_with(none).clone()
        });
        let class = usize::from(status / 100);
        classes[if class < CLASSES.len() { class } else { 0 }].fetch_add(1, Relaxed);
    }

    fn of_routes(&self) -> Vec<(RouteRule, Arc<[AtomicU64; CLASSES.len()]>)> {
        let all = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.iter().map(|(rule, classes)| (rule.clone(), classes.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// What endpoints took for a request: from when they were sent its head until theirs was there, or until the attempt
    /// failed; all attempts together.
    pub fn took(&self, upstream_nanos: u64) {
        self.upstream.observe(&BOUNDS_NANOS, upstream_nanos);
    }

    /// What Sluice added to a request that an endpoint has answered: the rest of the time until the answer's head was
    /// handed to the caller.
    pub fn added(&self, nanos: u64) {
        self.added.observe(&BOUNDS_NANOS, nanos);
    }

    fn of_rules(&self) -> Vec<(Arc<str>, Arc<OfRule>)> {
        let all = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.iter().map(|(rule, of_rule)| (rule.clone(), of_rule.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// What its rate limits have said so far, by rule.
    pub fn rate_limit_counts(&self) -> Vec<(Arc<str>, LimitCounts)> {
        self.rate_limits.all().into_iter().map(|(rule, counts)| (rule, counts.into())).collect()
    }

    /// What its limit on requests in flight has said so far.
    pub fn concurrency_counts(&self) -> LimitCounts {
        loaded(&self.concurrency).into()
    }

    /// What its circuit breakers have said so far.
    pub fn breaker_counts(&self) -> LimitCounts {
        loaded(&self.breaker).into()
    }

    /// Forgets limits, fallbacks and rules that no policy speaks of any more, and rules of routes that are gone.
    pub fn retain(
        &self,
        limit: impl Fn(&str) -> bool,
        fallback: impl Fn(&str) -> bool,
        rule: impl Fn(&str) -> bool,
        route: impl Fn(&RouteRule) -> bool,
        access: impl Fn(&str) -> bool,
    ) {
        self.access.retain(access);
        self.rate_limits.retain(limit);
        self.fallbacks.retain(fallback);
        let gone = self.routes.read().unwrap_or_else(PoisonError::into_inner).keys().any(|one| !route(one));
        if gone {
            self.routes.write().unwrap_or_else(PoisonError::into_inner).retain(|one, _| route(one));
        }
        let gone = self.rules.read().unwrap_or_else(PoisonError::into_inner).keys().any(|name| !rule(name));
        if gone {
            self.rules.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| rule(name));
        }
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

    pub(super) fn has(&self, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> bool {
        let name = Name { namespace: Arc::clone(namespace), service: Arc::clone(service), port };
        self.lock().contains_key(&name)
    }

    /// How many requests a rule of a route has held for, wherever they went.
    pub(super) fn route_total(&self, rule: &RouteRule) -> u64 {
        let of = |(_, metrics): (Name, Arc<ServiceMetrics>)| {
            let all = metrics.routes.read().unwrap_or_else(PoisonError::into_inner);
            all.get(rule).map_or(0, |classes| loaded(classes).iter().sum())
        };
        self.all().into_iter().map(of).sum()
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
const FAMILIES: [(&str, &str, &[&str]); 19] = [
    ("sluice_tags_total", "Tags of requests to a service, by what routing made of them.", &["outcome"]),
    ("sluice_retries_total", "Retries of requests to a service, by cause.", &["cause"]),
    (
        "sluice_retry_budget_exhausted_total",
        "Requests that were not retried because the retry budget was exhausted.",
        &[],
    ),
    (
        "sluice_rate_limit_requests_total",
        "Requests that a rate limit applies to, by its decision.",
        &["rule", "decision"],
    ),
    (
        "sluice_concurrency_limit_requests_total",
        "Requests that a concurrency limit applies to, by its decision.",
        &["decision"],
    ),
    (
        "sluice_circuit_breaker_requests_total",
        "Attempts that a circuit breaker applies to, by its decision.",
        &["decision"],
    ),
    (
        "sluice_ejections_total",
        "Ejections of endpoints by outlier detection, by cause; with mode observe the endpoint stayed in use.",
        &["cause", "mode"],
    ),
    (
        "sluice_panic_requests_total",
        "Requests routed in panic: fewer endpoints than the panic threshold were ready for them, so all were used.",
        &[],
    ),
    ("sluice_fallbacks_total", "Uses of a fallback, by what came of it.", &["fallback", "action"]),
    (
        "sluice_rule_requests_total",
        "Requests that a rule of a policy applied to, by class of the status.",
        &["policy_rule", "code"],
    ),
    (
        "sluice_timeouts_observed_total",
        "Requests that took longer than a timeout with mode Observe, which would have ended them.",
        &["timeout"],
    ),
    (
        "sluice_warm_up_yields_total",
        "Requests routed while the warm-up curve yielded: warming endpoints got more than it says, because warm ones would have got more than 1.5 times what they carried before.",
        &[],
    ),
    (
        "sluice_invalid_messages_total",
        "Requests and responses that were not passed on because they are not valid, by the part of the message that is wrong.",
        &["peer", "part"],
    ),
    (
        "sluice_mirrored_requests_total",
        "Copies of requests for a service that a route names as a mirror, by what became of them.",
        &["outcome"],
    ),
    (
        "sluice_route_requests_total",
        "Requests that a rule of a route applied to, by the service that they went to and by class of the status. What the route answers itself (redirects, preflights, missing backends) is counted for the service that was called.",
        &["route_kind", "route", "route_rule", "code"],
    ),
    (
        "sluice_access_requests_total",
        "Requests to pods of this node, and connections that are not HTTP, that an AccessPolicy applies to, by its rule and decision.",
        &["policy_rule", "decision"],
    ),
    (
        "sluice_rule_request_duration_seconds",
        "Time from the headers of a request to the end of its response, by the rule of a policy that applied.",
        &["policy_rule"],
    ),
    (
        "sluice_upstream_duration_seconds",
        "Time that endpoints took for a request, all attempts together: from sending its headers until those of the response came, or until the attempt failed.",
        &[],
    ),
    (
        "sluice_added_duration_seconds",
        "Time that Sluice added to a request: from its headers until those of the response were passed on, less the time that endpoints took. Connecting, and queueing by a rule, are in it.",
        &[],
    ),
];

/// Those from here on are histograms.
const HISTOGRAMS: usize = 16;

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
        self.families[at].push(counter(self.labels(at, further), value as f64));
    }

    fn labels(&self, at: usize, further: &[&str]) -> Vec<LabelPair> {
        let names = DESTINATION.iter().chain(FAMILIES[at].2);
        names.zip(self.own.iter().chain(further)).map(|(name, value)| label(name, value)).collect()
    }

    fn write_histogram<const N: usize>(
        &mut self,
        at: usize,
        further: &[&str],
        distribution: &Distribution<N>,
        bounds: &[u64; N],
    ) {
        let mut total = Total::default();
        total.add(distribution);
        if !total.is_empty() {
            self.families[at].push(total.metric(self.labels(at, further), bounds));
        }
    }

    /// Those that have counted anything; then all of them, so that rates see the next first one.
    fn write_all<T, const N: usize>(
        &mut self,
        at: usize,
        name: Option<&str>,
        words: &[(T, &str, &str); N],
        values: [u64; N],
    ) {
        if values.iter().all(|value| *value == 0) {
            return;
        }
        for ((_, word, _), value) in words.iter().zip(values) {
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
            for ((_, cause, _), modes) in EjectionCause::ALL.iter().zip(&metrics.ejections) {
                for (((), mode, _), value) in MODES.iter().zip(loaded(modes)) {
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
            for (rule, of_rule) in metrics.of_rules() {
                for (((), class, _), count) in CLASSES.iter().zip(loaded(&of_rule.classes)) {
                    if count > 0 {
                        writer.write(9, &[&rule, class], count);
                    }
                }
                writer.write_histogram(16, &[&rule], &of_rule.took, &BOUNDS_NANOS);
            }
            for (rule, values) in metrics.access.all() {
                writer.write_all(15, Some(&rule), &AccessDecision::ALL, values);
            }
            writer.write_all(10, None, &Overdue::ALL, loaded(&metrics.overdue));
            let yields = metrics.yields.load(Relaxed);
            if yields > 0 {
                writer.write(11, &[], yields);
            }
            for ((_, peer, _), parts) in Sender::ALL.iter().zip(&metrics.invalid) {
                for ((_, part, _), count) in MessagePart::ALL.iter().zip(loaded(parts)) {
                    if count > 0 {
                        writer.write(12, &[peer, part], count);
                    }
                }
            }
            writer.write_all(13, None, &MirrorOutcome::ALL, loaded(&metrics.mirrored));
            for (RouteRule { kind, route, rule }, classes) in metrics.of_routes() {
                for (((), class, _), count) in CLASSES.iter().zip(loaded(&classes)) {
                    // Success is there from the start, so that rates see the first ones.
                    if count > 0 || class == &"2xx" {
                        writer.write(14, &[kind, &route, &rule, class], count);
                    }
                }
            }
            writer.write_histogram(17, &[], &metrics.upstream, &BOUNDS_NANOS);
            writer.write_histogram(18, &[], &metrics.added, &BOUNDS_NANOS);
        }
        let all = self.descs.iter().zip(families).enumerate();
        all.map(|(at, (desc, metrics))| {
            let kind = if at < HISTOGRAMS { MetricType::COUNTER } else { MetricType::HISTOGRAM };
            family(desc, kind, metrics)
        })
        .collect()
    }
}
