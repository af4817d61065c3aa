//! One service: its golden signals, lanes, endpoints with their warm-up, limits and circuit breakers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Name,
    overview::{ServiceLine, Signals, distinct, number_of},
    rounded,
    sampler::Sampler,
    warmth::Warmth,
};
use crate::{
    clock::Nanos,
    cluster::model::Service,
    govern::{
        breaker,
        endpoint::Endpoint,
        governor::Breakers,
        outlier,
        policy::{Mode, Policy},
        tag::Tag,
        warmup::{self, Stage},
    },
    observe::{
        history::{Part, RECENT, Second, Track},
        metrics::{LimitCounts, ServiceMetrics},
    },
};

/// Endpoints that are listed; those that warm up, fail or are busy come first.
const MOST_ENDPOINTS: usize = 256;
/// Of those, the ones that are told second by second.
pub(super) const WITH_SERIES: usize = 32;

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
    pub endpoints_not_shown: usize,
    pub warmup: Option<WarmUp>,
    pub limits: Vec<LimitLine>,
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
    pub refused: Vec<Option<u32>>,
    /// At its end.
    pub in_flight: Vec<Option<u16>>,
    pub p50_micros: Vec<Option<u32>>,
    pub p95_micros: Vec<Option<u32>>,
    pub p99_micros: Vec<Option<u32>>,
    /// 0: requests pass. 1: the circuit breaker is half-open. 2: it is open, or the endpoint is ejected.
    pub closed_off: Vec<Option<u8>>,
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
            refused: each(seconds, |second| Some(second.refused)),
            in_flight: each(seconds, |second| Some(second.in_flight)),
            p50_micros: each(seconds, |second| second.p50_micros.map(Into::into)),
            p95_micros: each(seconds, |second| second.p95_micros.map(Into::into)),
            p99_micros: each(seconds, |second| second.p99_micros.map(Into::into)),
            closed_off: each(seconds, |second| Some(number_of(second.closed_off))),
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

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EndpointLine {
    pub address: String,
    pub pod: Option<String>,
    pub zone: Option<String>,
    /// Its tag; `null` is the baseline.
    pub tag: Option<String>,
    pub state: EndpointState,
    /// How long it stays ejected.
    pub ejected_seconds: Option<f64>,
    /// The part of a warm endpoint's share that it is to get now, 0 to 1; `null` without a warm-up policy.
    pub wanted_share: Option<f64>,
    #[serde(flatten)]
    pub signals: Signals,
    /// Of those that are told second by second.
    pub seconds: Option<EndpointSeconds>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    Ready,
    /// Ready, and held out for the delay of its warm-up.
    Delayed,
    WarmingUp,
    Ejected,
    NotReady,
    Terminating,
}

/// One number a second, `null` where nothing is known.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct EndpointSeconds {
    #[serde(flatten)]
    pub seconds: Seconds,
    /// The part of a warm endpoint's share that it was to get.
    pub wanted: Vec<Option<f64>>,
    /// What it got, as a mean of five seconds.
    pub got: Vec<Option<f64>>,
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
    pub refused: u64,
    pub would_refuse: u64,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TransitionLine {
    pub seconds_ago: f64,
    /// `null` is the baseline.
    pub tag: Option<String>,
    pub from: State,
    pub to: State,
    pub why: String,
}

/// What an endpoint line is made from.
struct Known<'s> {
    endpoint: &'s Endpoint,
    track: Track,
    line: EndpointLine,
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
        let mut endpoints = endpoints(name, services, policy, sampler, now_nanos);
        let count = endpoints.len();
        endpoints.truncate(MOST_ENDPOINTS);
        let warmth = Warmth::of(&sampler.history, name, services, seconds);
        for known in endpoints.iter_mut().take(WITH_SERIES) {
            let tag = known.endpoint.tag.as_ref();
            known.line.seconds = Some(EndpointSeconds {
                seconds: of_track(&known.track),
                wanted: warmth.wanted(&sampler.history, &known.track),
                got: warmth.got(&sampler.history, &known.track, tag),
            });
        }
        Self {
            second: sampler.history.now(),
            service: ServiceLine::of(name, services, sampler, 0, now_nanos),
            seconds: of_track(&name.track(Part::Service)),
            lanes: lanes(name, services, sampler, now_nanos, &of_track),
            endpoints: endpoints.into_iter().map(|known| known.line).collect(),
            endpoints_not_shown: count.saturating_sub(MOST_ENDPOINTS),
            warmup: policy.load_balancer.warmup.as_ref().map(|warmup| WarmUp {
                duration_seconds: warmup.duration.as_secs_f64(),
                delay_seconds: warmup.delay.as_secs_f64(),
                minimum_percent: warmup.minimum_percent,
                aggression: warmup.aggression,
            }),
            limits: limits(policy, services, numbers),
            transitions: transitions(services, now_nanos),
        }
    }
}

/// All endpoints; what is worth a look comes first.
fn endpoints<'s>(
    name: &Name,
    services: &'s [Arc<Service>],
    policy: &Policy,
    sampler: &Sampler,
    now_nanos: u64,
) -> Vec<Known<'s>> {
    let known = |endpoint: &'s Arc<Endpoint>| {
        let track = name.track(Part::Endpoint(endpoint.address));
        let recent = sampler.history.recent(&track);
        let in_flight = endpoint.load.in_flight.load(std::sync::atomic::Ordering::Relaxed);
        let until = outlier::ejected_until(policy.outlier_detection.as_ref(), endpoint, now_nanos);
        let warmup = policy.load_balancer.warmup.as_ref();
        let line = EndpointLine {
            address: endpoint.address.to_string(),
            pod: endpoint.pod.as_ref().map(ToString::to_string),
            zone: endpoint.zone.as_ref().map(ToString::to_string),
            tag: endpoint.tag.as_ref().map(ToString::to_string),
            state: state(endpoint, policy, until.is_some(), now_nanos),
            ejected_seconds: until
                .map(|until| rounded(Duration::from(Nanos(until - now_nanos)).as_secs_f64())),
            wanted_share: warmup.map(|_| rounded(warmup::factor(warmup, endpoint, now_nanos))),
            signals: Signals::of(recent.as_ref(), sampler.seconds(RECENT), in_flight),
            seconds: None,
        };
        Known { endpoint, track, line }
    };
    let mut all: Vec<_> = services.iter().flat_map(|service| &service.endpoints).map(known).collect();
    let rank = |line: &EndpointLine| match line.state {
        EndpointState::WarmingUp | EndpointState::Delayed | EndpointState::Ejected => 0,
        EndpointState::Ready => 1,
        EndpointState::Terminating => 2,
        EndpointState::NotReady => 3,
    };
    all.sort_by(|one, other| {
        let busy = other.line.signals.rate.total_cmp(&one.line.signals.rate);
        rank(&one.line)
            .cmp(&rank(&other.line))
            .then(busy)
            .then(one.endpoint.address.cmp(&other.endpoint.address))
    });
    // Among those that are shown the order is one that does not change with every second.
    let shown = all.len().min(WITH_SERIES);
    all[..shown].sort_by(|one, other| {
        let key = |known: &Known<'_>| {
            (known.endpoint.tag.clone(), known.endpoint.pod.clone(), known.endpoint.address)
        };
        key(one).cmp(&key(other))
    });
    all
}

fn state(endpoint: &Endpoint, policy: &Policy, ejected: bool, now_nanos: u64) -> EndpointState {
    if endpoint.terminating {
        return EndpointState::Terminating;
    }
    if !endpoint.ready {
        return EndpointState::NotReady;
    }
    if ejected {
        return EndpointState::Ejected;
    }
    match policy.load_balancer.warmup.as_ref().map(|warmup| warmup::stage(warmup, endpoint, now_nanos)) {
        Some(Stage::Delayed) => EndpointState::Delayed,
        Some(Stage::Warming(_)) => EndpointState::WarmingUp,
        Some(Stage::Warm) | None => EndpointState::Ready,
    }
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
    let breakers = services.first().and_then(|service| service.governor.breakers());
    for (tag, breaker) in breakers.map(Breakers::all).unwrap_or_default() {
        lanes.insert(tag, Some(state_of(breaker.state(now_nanos))));
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

fn limits(policy: &Policy, services: &[Arc<Service>], numbers: &ServiceMetrics) -> Vec<LimitLine> {
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
        refused: counts.refused,
        would_refuse: counts.would_refuse,
    };
    let counts = numbers.rate_limit_counts();
    let mut lines: Vec<_> = policy
        .rate_limits
        .iter()
        .map(|limit| {
            let counts = counts.iter().find(|(rule, _)| *rule == limit.name);
            let text = format!("{} in {}", limit.requests, span(limit.interval));
            line(
                &limit.name,
                mode(limit.mode),
                text,
                counts.map(|(_, counts)| counts.clone()).unwrap_or_default(),
            )
        })
        .collect();
    if let Some(concurrency) = &policy.concurrency {
        let limiter = services.first().and_then(|service| service.governor.limiter());
        let now = limiter.map_or(concurrency.max_requests, |limiter| limiter.limit());
        let text = format!("{now} in flight");
        lines.push(line("concurrency", mode(concurrency.mode), text, numbers.concurrency_counts()));
    }
    if let Some(breaker) = &policy.circuit_breaker {
        let text = "while it is closed".to_owned();
        lines.push(line("circuitBreaker", mode(breaker.mode), text, numbers.breaker_counts()));
    }
    lines
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
    let breakers = services.first().and_then(|service| service.governor.breakers());
    let mut all: Vec<_> = breakers
        .map(Breakers::all)
        .unwrap_or_default()
        .into_iter()
        .flat_map(|(tag, breaker)| {
            let transitions = breaker.recent_transitions();
            transitions.into_iter().map(move |transition| (tag.clone(), transition))
        })
        .collect();
    all.sort_by_key(|(_, transition)| std::cmp::Reverse(transition.at_nanos));
    all.into_iter()
        .map(|(tag, transition)| TransitionLine {
            seconds_ago: rounded(
                Duration::from(Nanos(now_nanos).since(Nanos(transition.at_nanos))).as_secs_f64(),
            ),
            tag: tag.as_ref().map(ToString::to_string),
            from: state_of(transition.from),
            to: state_of(transition.to),
            why: transition.why.to_string(),
        })
        .collect()
}
