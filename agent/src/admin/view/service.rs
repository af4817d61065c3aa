//! One service: its golden signals, lanes, endpoints with their warm-up, limits and circuit breakers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Name,
    endpoints::{self, EndpointLine},
    overview::{ServiceLine, Signals, distinct, number_of},
    rounded,
    routes::RouteLine,
    sampler::Sampler,
    shared::{self, ClusterShare, KeysLine, LimitStore},
};
use crate::{
    api::effective::{self, Effective},
    clock::Nanos,
    cluster::model::Service,
    govern::{
        breaker,
        governor::OneBreaker,
        policy::{Mode, Policy},
        tag::Tag,
    },
    observe::{
        history::{Part, RECENT, Second, Track},
        metrics::{LimitCounts, ServiceMetrics},
    },
};

/// What is served at `/api/service`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Detail {
    /// The newest second in here, counted from the start of the agent.
    pub second: u64,
    pub service: ServiceLine,
    pub seconds: Seconds,
    pub lanes: Vec<LaneLine>,
    pub endpoints: Vec<EndpointLine>,
    /// Endpoints that are left out because there are too many.
    pub endpoints_omitted: usize,
    pub warm_up: Option<WarmUp>,
    /// Rules of routes for requests to it, in the order in which they apply.
    pub routes: Vec<RouteLine>,
    pub limits: Vec<LimitLine>,
    /// The store by which agents share limits with scope Cluster; `null` if it has none.
    pub limit_store: Option<LimitStore>,
    /// Where the keys of tokens are from that its AccessPolicy names (`jwks.uri`).
    pub token_keys: Vec<KeysLine>,
    /// Every value that is in force, and which policy says it; empty if no policy does.
    pub policy_values: Vec<PolicyValue>,
    /// The last changes of its circuit breakers, the newest first.
    pub transitions: Vec<TransitionLine>,
}

/// One number a second, `null` where nothing is known.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Seconds {
    /// The second of the first number.
    pub from: u64,
    pub requests: Vec<Option<u32>>,
    pub errors: Vec<Option<u32>>,
    pub rejected: Vec<Option<u32>>,
    /// At its end.
    pub in_flight: Vec<Option<u16>>,
    pub p50_micros: Vec<Option<u32>>,
    pub p95_micros: Vec<Option<u32>>,
    pub p99_micros: Vec<Option<u32>>,
    /// 0: closed, requests pass. 1: the circuit breaker is half-open. 2: it is open, or the endpoint is ejected.
    pub circuit: Vec<Option<u8>>,
}

impl Seconds {
    fn of(from: u64, seconds: &[Option<Second>]) -> Self {
        fn each<T>(seconds: &[Option<Second>], number: impl Fn(&Second) -> Option<T>) -> Vec<Option<T>> {
            seconds.iter().map(|second| second.as_ref().and_then(&number)).collect()
        }
        Self {
            from,
            requests: each(seconds, |second| Some(second.requests)),
            errors: each(seconds, |second| Some(second.errors)),
            rejected: each(seconds, |second| Some(second.refused)),
            in_flight: each(seconds, |second| Some(second.in_flight)),
            p50_micros: each(seconds, |second| second.p50_micros.map(Into::into)),
            p95_micros: each(seconds, |second| second.p95_micros.map(Into::into)),
            p99_micros: each(seconds, |second| second.p99_micros.map(Into::into)),
            circuit: each(seconds, |second| Some(number_of(second.closed_off))),
        }
    }
}

/// The baseline, or a lane.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LaneLine {
    /// `null` is the baseline.
    pub tag: Option<String>,
    #[serde(flatten)]
    pub signals: Signals,
    pub endpoints: usize,
    pub usable_endpoints: usize,
    pub breaker: Option<State>,
    pub seconds: Seconds,
}

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Closed,
    HalfOpen,
    Open,
}

pub(super) fn state_of(state: breaker::State) -> State {
    match state {
        breaker::State::Closed => State::Closed,
        breaker::State::HalfOpen => State::HalfOpen,
        breaker::State::Open => State::Open,
    }
}

/// The warm-up of the policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WarmUp {
    pub duration_seconds: f64,
    pub delay_seconds: f64,
    pub minimum_percent: f64,
    pub aggression: f64,
}

/// A rule that refuses, and what it has said since the agent started.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LimitLine {
    pub rule: String,
    pub mode: &'static str,
    pub limit: String,
    pub allowed: u64,
    pub queued: u64,
    pub rejected: u64,
    pub would_reject: u64,
    /// This agent's part of a limit with scope Cluster; `null`: it has another scope.
    pub cluster: Option<ClusterShare>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TransitionLine {
    pub seconds_ago: f64,
    /// The policy's rule whose breaker it is; `null`: the policy's own.
    pub rule: Option<String>,
    /// The calling pod whose requests it counts, as in `shop/client`; `null`: those of the node.
    pub source: Option<String>,
    /// `null` is the baseline.
    pub tag: Option<String>,
    pub from: State,
    pub to: State,
    pub reason: String,
}

impl Detail {
    pub(super) fn of(
        name: &Name,
        services: &[Arc<Service>],
        numbers: &ServiceMetrics,
        sampler: &Sampler,
        seconds: usize,
        now_nanos: u64,
    ) -> Self {
        let default = Arc::default();
        let policy = services.first().map_or(&default, |service| service.governor.policy());
        let seconds = sampler.seconds(seconds);
        let from = sampler.history.now() + 1 - seconds as u64;
        let of_track = |track: &Track| {
            let kept = sampler.history.last(track, seconds).unwrap_or_else(|| vec![None; seconds]);
            Seconds::of(from, &kept)
        };
        let endpoints = endpoints::list(name, services, policy, sampler, (seconds, now_nanos), &of_track);
        Self {
            second: sampler.history.now(),
            service: ServiceLine::of(name, services, sampler, 0, now_nanos),
            seconds: of_track(&name.track(Part::Service)),
            lanes: lanes(name, services, sampler, now_nanos, &of_track),
            endpoints: endpoints.lines,
            endpoints_omitted: endpoints.not_shown,
            warm_up: policy.load_balancer.warmup.as_ref().map(|warmup| WarmUp {
                duration_seconds: warmup.duration.as_secs_f64(),
                delay_seconds: warmup.delay.as_secs_f64(),
                minimum_percent: warmup.minimum_percent,
                aggression: warmup.aggression,
            }),
            routes: Vec::new(),
            limits: limits(policy, services, numbers, now_nanos),
            limit_store: None,
            token_keys: Vec::new(),
            policy_values: policy_values(services),
            transitions: transitions(services, now_nanos),
        }
    }
}

/// A value of the policy in force.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolicyValue {
    /// As in `rateLimits[0].burst`.
    pub field: String,
    pub value: serde_json::Value,
    /// The TrafficPolicy that says it, as in `shop/orders`; `null`: it is a default.
    pub source: Option<String>,
}

fn policy_values(services: &[Arc<Service>]) -> Vec<PolicyValue> {
    let Some((service, said)) = services.first().and_then(|service| Some((service, service.said.as_ref()?)))
    else {
        return Vec::new();
    };
    let effective = Effective { spec: said.clone(), policy: service.governor.policy().clone() };
    let value = |(effect, by): (effective::Effect, Option<&Arc<str>>)| PolicyValue {
        field: effect.field,
        value: effect.value,
        source: by.map(ToString::to_string),
    };
    effective.values().map(value).collect()
}

fn lanes(
    name: &Name,
    services: &[Arc<Service>],
    sampler: &Sampler,
    now_nanos: u64,
    of_track: &impl Fn(&Track) -> Seconds,
) -> Vec<LaneLine> {
    let mut lanes: BTreeMap<Option<Tag>, Option<State>> = BTreeMap::from([(None, None)]);
    let endpoints = || services.iter().flat_map(|service| &service.endpoints);
    for endpoint in endpoints() {
        lanes.entry(endpoint.tag.clone()).or_default();
    }
    if services.first().is_some_and(|service| service.governor.all_breakers().next().is_some()) {
        // Nobody has called yet, perhaps.
        lanes.insert(None, Some(State::Closed));
    }
    for (_, one) in breakers(services) {
        let state = state_of(one.breaker.state(now_nanos));
        let worst = lanes.entry(one.lane).or_default();
        *worst = (*worst).max(Some(state));
    }
    let line = |(tag, breaker): (Option<Tag>, _)| {
        let own = || endpoints().filter(|endpoint| endpoint.tag == tag);
        let track = name.track(Part::Lane(tag.clone()));
        let recent = sampler.history.recent(&track);
        let newest = sampler.history.last(&track, 1).and_then(|seconds| seconds[0]);
        let in_flight = newest.map_or(0, |second| u32::from(second.in_flight));
        LaneLine {
            tag: tag.as_ref().map(ToString::to_string),
            signals: Signals::of(recent.as_ref(), sampler.seconds(RECENT), in_flight),
            endpoints: distinct(own()),
            usable_endpoints: distinct(own().filter(|endpoint| endpoint.is_usable())),
            breaker,
            seconds: of_track(&track),
        }
    };
    lanes.into_iter().map(line).collect()
}

fn limits(
    policy: &Policy,
    services: &[Arc<Service>],
    numbers: &ServiceMetrics,
    now_nanos: u64,
) -> Vec<LimitLine> {
    let mode = |mode: Mode| match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let line = |rule: &str, mode, limit, counts: LimitCounts| LimitLine {
        rule: rule.to_owned(),
        mode,
        limit,
        allowed: counts.allowed,
        queued: counts.queued,
        rejected: counts.rejected,
        would_reject: counts.would_reject,
        cluster: None,
    };
    let counts = numbers.rate_limit_counts();
    let of_routes = services.first().into_iter().flat_map(|service| service.governor.routes());
    let of_routes = of_routes.map(|ruled| &**ruled.governor.policy());
    let mut lines: Vec<_> = policy
        .all()
        .chain(of_routes)
        .flat_map(|policy| &policy.rate_limits)
        .map(|limit| {
            let counts = counts.iter().find(|(rule, _)| *rule == limit.name);
            let text = format!("{} in {}", limit.requests, span(limit.interval));
            let counts = counts.map(|(_, counts)| counts.clone()).unwrap_or_default();
            let cluster = shared::share(services, &limit.name, now_nanos);
            LimitLine { cluster, ..line(&limit.name, mode(limit.mode), text, counts) }
        })
        .collect();
    // Rules that say nothing else have the very limits of the policy.
    let mut seen = Vec::new();
    lines.retain(|line| {
        let first = !seen.contains(&line.rule);
        seen.push(line.rule.clone());
        first
    });
    for (rule, limiter) in services.first().into_iter().flat_map(|service| service.governor.all_limiters()) {
        let text = format!("{} in flight", limiter.limit());
        // What was decided is counted for the service as a whole.
        let counts = if rule.is_none() { numbers.concurrency_counts() } else { LimitCounts::default() };
        lines.push(line(&of_rule(rule, "concurrency"), mode(limiter.config().mode), text, counts));
    }
    if let Some(breaker) = &policy.circuit_breaker {
        let text = "while it is closed".to_owned();
        lines.push(line("circuitBreaker", mode(breaker.mode), text, numbers.breaker_counts()));
    }
    lines
}

/// `reports/concurrency`
fn of_rule(rule: Option<&Arc<str>>, name: &str) -> String {
    rule.map_or_else(|| name.to_owned(), |rule| format!("{rule}/{name}"))
}

/// The circuit breakers, with the rules that they are of.
fn breakers(services: &[Arc<Service>]) -> Vec<(Option<Arc<str>>, OneBreaker)> {
    let all = services.first().into_iter().flat_map(|service| service.governor.all_breakers());
    all.flat_map(|(rule, breakers)| breakers.all().into_iter().map(move |one| (rule.cloned(), one))).collect()
}

/// As policies write it, as in `90s` or `1h`.
fn span(time: Duration) -> String {
    match (time.as_secs(), time.subsec_nanos()) {
        (seconds, 0) if seconds >= 3600 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        (seconds, 0) if seconds >= 60 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{time:?}"),
    }
}

fn transitions(services: &[Arc<Service>], now_nanos: u64) -> Vec<TransitionLine> {
    let mut all: Vec<_> = breakers(services)
        .into_iter()
        .flat_map(|(rule, one)| {
            let transitions = one.breaker.recent_transitions();
            transitions.into_iter().map(move |transition| (rule.clone(), one.clone(), transition))
        })
        .collect();
    all.sort_by_key(|(_, _, transition)| std::cmp::Reverse(transition.at_nanos));
    all.into_iter()
        .map(|(rule, one, transition)| TransitionLine {
            rule: rule.as_deref().map(str::to_owned),
            seconds_ago: rounded(
                Duration::from(Nanos(now_nanos).since(Nanos(transition.at_nanos))).as_secs_f64(),
            ),
            source: one.caller.as_deref().map(str::to_owned),
            tag: one.lane.as_ref().map(ToString::to_string),
            from: state_of(transition.from),
            to: state_of(transition.to),
            reason: transition.why.to_string(),
        })
        .collect()
}
