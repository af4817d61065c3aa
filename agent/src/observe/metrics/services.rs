//! What is counted for a service, whoever calls it: what its rules decided.
//!
//! Counters are atomics that a connection finds once ([`super::ServiceSeries::service`]). Rules have names that users
//! give; how many there are is bounded by policies, and a service that is gone takes its numbers with it
//! ([`Services::retain`]).

mod collect;
mod named;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

pub(super) use self::collect::Collected;
use self::named::{Named, loaded};
use super::{
    EVICTION_GRACE, RetryCause, TagOutcome,
    distribution::Distribution,
    outcomes::{
        AccessDecision, CLASSES, EjectionCause, FallbackAction, LimitCounts, LimitDecision, MODES,
        MirrorOutcome, Overdue, TOKENS,
    },
};
use crate::{
    govern::{jwt::Failure, routes, tally::Tally},
    observe::fault::{Fault, MessagePart, Sender},
};
use ahash::AHashMap;

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
    routes: Named<{ CLASSES.len() }, RouteRule>,
    access: Named<{ AccessDecision::ALL.len() }>,
    /// Tokens of requests: those that are valid, then the others by [`Failure`].
    tokens: [AtomicU64; TOKENS],
    /// By who calls.
    clients: Named<{ AccessDecision::ALL.len() }, ClientName>,
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

impl From<&routes::Rule> for RouteRule {
    fn from(rule: &routes::Rule) -> Self {
        Self { kind: rule.kind.as_str(), route: rule.route.clone(), rule: rule.name.clone() }
    }
}

/// Who calls pods of this node, by the name of its workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientName {
    /// Empty of one that is no pod of an enrolled namespace.
    pub namespace: Arc<str>,
    pub workload: Arc<str>,
}

/// Workloads that a service port counts by themselves. Further ones are one together, [`OTHER_CLIENTS`].
const MOST_CLIENTS: usize = 100;
const OTHER_CLIENTS: &str = "other";

/// What AccessPolicies have said of the requests of a client.
#[derive(Clone, Debug)]
pub struct ClientCounts(Arc<[AtomicU64; AccessDecision::ALL.len()]>);

impl ClientCounts {
    pub fn count(&self, decision: AccessDecision) {
        self.0[decision as usize].fetch_add(1, Relaxed);
    }
}

/// How the requests have ended that a rule of a route held for.
#[derive(Clone, Debug)]
pub struct RouteCounts(Arc<[AtomicU64; CLASSES.len()]>);

impl RouteCounts {
    /// With this status (0: without any).
    pub fn count(&self, status: u16) {
        self.0[class(status)].fetch_add(1, Relaxed);
    }
}

/// Of [`CLASSES`].
fn class(status: u16) -> usize {
    let class = usize::from(status / 100);
    if class < CLASSES.len() { class } else { 0 }
}

/// The requests that a rule of a policy held for.
#[derive(Debug, Default)]
struct OfRule {
    classes: [AtomicU64; CLASSES.len()],
    took: Distribution<{ BOUNDS_NANOS.len() }>,
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
        self.rate_limits.of(rule.clone())
    }

    pub fn rate_limited(&self, rule: &str, decision: LimitDecision) {
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

    /// What was found of the token of a request.
    pub fn token(&self, failure: Option<Failure>) {
        self.tokens[failure.map_or(0, |failure| 1 + failure.index())].fetch_add(1, Relaxed);
    }

    /// Where it is counted what AccessPolicies say of this client, to be kept by a connection.
    pub fn client(&self, name: &ClientName) -> ClientCounts {
        let others = || ClientName { namespace: "".into(), workload: OTHER_CLIENTS.into() };
        ClientCounts(self.clients.of_at_most(name, MOST_CLIENTS, others))
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
        of_rule.classes[class(status)].fetch_add(1, Relaxed);
        of_rule.took.observe(&BOUNDS_NANOS, nanos);
    }

    /// Where the requests are counted that a rule of a route holds for, to be kept by a connection.
    pub fn route(&self, rule: RouteRule) -> RouteCounts {
        RouteCounts(self.routes.of(rule))
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
        self.routes.retain(route);
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

    /// How many requests each rule of a route has held for, wherever they went.
    pub(super) fn route_totals(&self) -> AHashMap<RouteRule, u64> {
        let mut totals = AHashMap::new();
        for (_, metrics) in self.all() {
            for (rule, counts) in metrics.routes.all() {
                *totals.entry(rule).or_default() += counts.iter().sum::<u64>();
            }
        }
        totals
    }

    fn all(&self) -> Vec<(Name, Arc<ServiceMetrics>)> {
        let mut all: Vec<_> =
            self.lock().iter().map(|(name, entry)| (name.clone(), Arc::clone(&entry.metrics))).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}
