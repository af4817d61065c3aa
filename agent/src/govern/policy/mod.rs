//! What a policy asks for, checked and ready for use: the words of a TrafficPolicy with every default filled in.
//!
//! The API's types turn themselves into these, and only here do defaults live. Nothing in this module has state: what a
//! rule remembers (tokens, windows, ejections) is kept beside it, so that a policy that changes keeps the state of what
//! it did not change. A service without a TrafficPolicy has [`Policy::default`]: balancing, and nothing else.

mod failures;
mod lane;
mod limits;
mod matching;
mod rule;
mod words;

use std::{sync::Arc, time::Duration};

pub use self::{
    failures::{
        BreakerScope, CircuitBreaker, Errors, Fallback, FallbackAction, FallbackOn, OutlierDetection, Retry,
        RetryOn, SlowRequest, StaleAnswer, StaleBounds, StaticAnswer, SuccessRate, Timeouts,
    },
    lane::{
        Detour, EntryRule, Lane, LaneEndpoint, LaneFallback, Percentage, PercentageKey, Requirement,
        Selector, Target,
    },
    limits::{Adaptive, Behaviour, Concurrency, LimitKey, RateLimit, Scope},
    matching::{CallerMatch, PathMatch, Pattern, RequestMatch, ValueMatch, ValueTest, is_from},
    rule::{Edits, HeaderEdits, Inherited, OnRoute, Part, Parts, Rule, StripTags},
};

/// Whether a rule refuses, or only counts what it would have rejected (ARCHITECTURE.md#observe-mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Enforce,
    Observe,
}

/// Everything that is asked for a service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// The TrafficPolicy that it comes from, as `shop/orders`; `None` if there is none.
    pub name: Option<Arc<str>>,
    pub load_balancer: LoadBalancer,
    pub drain: Drain,
    /// What counts as a failure.
    pub errors: Errors,
    /// In the order of the policy; all that match a request must admit it. Names are unique.
    pub rate_limits: Vec<Arc<RateLimit>>,
    pub concurrency: Option<Concurrency>,
    pub circuit_breaker: Option<CircuitBreaker>,
    pub outlier_detection: Option<OutlierDetection>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
    /// The first whose conditions name the failure answers.
    pub fallbacks: Vec<Arc<Fallback>>,
    pub headers: HeaderEdits,
    pub strip_tags: Option<StripTags>,
    /// The first that matches a request holds for it.
    pub rules: Vec<Arc<Rule>>,
    /// What of it is from other policies: of the Service that is called where a route sends its requests here, and of the namespace.
    pub inherited: Vec<Inherited>,
    /// What of it is from the policy of the request's route.
    pub of_route: Option<Inherited>,
}

impl Policy {
    /// What is asked for all requests, and then what each rule asks for.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.rules.iter().map(|rule| &*rule.policy))
    }

    /// Whether it limits what comes to each endpoint.
    pub fn limits_endpoints(&self) -> bool {
        self.all().any(|policy| {
            let concurrency = policy.concurrency.as_ref().map(|limit| limit.scope);
            let mut scopes = policy.rate_limits.iter().map(|limit| limit.scope).chain(concurrency);
            scopes.any(|scope| scope == Scope::Endpoint)
        })
    }

    /// Whether it limits what all clients of the cluster together ask for.
    pub fn limits_cluster(&self) -> bool {
        self.all().any(|policy| policy.rate_limits.iter().any(|limit| limit.scope == Scope::Cluster))
    }

    /// What of it holds at an endpoint: its limits, what they take for a failure, and for which requests they are.
    #[must_use]
    pub fn at_endpoint(&self) -> Self {
        let is_there = |scope: Scope| scope == Scope::Endpoint;
        let part = |policy: &Self| Self {
            name: policy.name.clone(),
            errors: policy.errors.clone(),
            rate_limits: policy.rate_limits.iter().filter(|limit| is_there(limit.scope)).cloned().collect(),
            concurrency: policy.concurrency.clone().filter(|limit| is_there(limit.scope)),
            inherited: policy.inherited.clone(),
            ..Self::default()
        };
        let rule =
            |rule: &Arc<Rule>| Arc::new(Rule { policy: Arc::new(part(&rule.policy)), ..(**rule).clone() });
        Self { rules: self.rules.iter().map(rule).collect(), ..part(self) }
    }
}

/// How an endpoint is chosen (ARCHITECTURE.md#choosing-an-endpoint).
#[derive(Clone, Debug, PartialEq)]
pub struct LoadBalancer {
    pub algorithm: Algorithm,
    pub warmup: Option<WarmUp>,
    /// Percent of a subset's endpoints that must be usable for this agent's own doubts about endpoints (ejections,
    /// warm-up delays) to count; 0 to 100, 0 turns panic off.
    pub panic_threshold_percent: f64,
    /// Whether a client that has called an endpoint itself keeps it, where endpoints are managed.
    pub direct_endpoints: DirectEndpoints,
}

/// What becomes of the choice of a client that calls an endpoint itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectEndpoints {
    /// It stands, unless a lane says otherwise or the endpoint is leaving.
    #[default]
    Keep,
    /// Each request is balanced like any other.
    Rebalance,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            warmup: None,
            panic_threshold_percent: 50.0,
            direct_endpoints: DirectEndpoints::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Power of two choices by what callers wait for ([`crate::govern::cost`]).
    #[default]
    LeastTime,
    /// Power of two choices by requests in flight.
    LeastRequest,
    RoundRobin,
    Random,
}

/// The curve along which a new endpoint's share grows:
/// `max(minimum, (max(t, 1 s) / duration) ^ (1 / aggression))`, t since its start.
/// <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start>
#[derive(Clone, Debug, PartialEq)]
pub struct WarmUp {
    /// Above 0.
    pub duration: Duration,
    /// Above 0.
    pub aggression: f64,
    /// Of a warm endpoint's share, in percent; above 0, at most 100.
    pub minimum_percent: f64,
    /// How long a new endpoint gets nothing at all, before the curve begins.
    pub delay: Duration,
    pub start_on: StartOn,
    /// Paths whose requests are health checks and never start a warm-up: exact, or a prefix that ends with `*`.
    pub health_check_paths: Vec<Arc<str>>,
    /// How long a pod waits at most to be Ready because it is not warm; see [`WarmUp::max_wait`].
    pub max_wait: Option<Duration>,
}

impl WarmUp {
    /// How long a pod with the readiness gate `sluice.dev/warm` waits at most. Twice what it takes unless something else is said.
    pub fn max_wait(&self) -> Duration {
        self.max_wait.unwrap_or_else(|| self.delay.saturating_add(self.duration).saturating_mul(2))
    }
}

impl Default for WarmUp {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(120),
            aggression: 1.0,
            minimum_percent: 10.0,
            delay: Duration::ZERO,
            start_on: StartOn::default(),
            health_check_paths: Vec::new(),
            max_wait: None,
        }
    }
}

/// When an endpoint's warm-up starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartOn {
    /// With the pod's Ready transition, which every node sees alike.
    #[default]
    Ready,
    /// With the first governed request that is not a health check.
    FirstRequest,
}

/// What becomes of the requests in flight to an endpoint that terminates. It gets no new ones, whatever is said here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// How long they may go on before they are broken off; `None`: for as long as the endpoint serves them.
    pub timeout: Option<Duration>,
    pub mode: Mode,
}
