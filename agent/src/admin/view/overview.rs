//! The node at a glance: its services with their golden signals, who calls whom, its pods, its policies.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Look, Name,
    lane::{self, LaneSummary},
    objects::{self, PodLine, PodName, PolicyLine},
    part, rounded,
    sampler::Sampler,
    service::{State, state_of},
};
use crate::{
    cluster::{model::Service, problem::Problem},
    govern::{endpoint::Endpoint, outlier, tally::Counts, warmup},
    observe::{
        history::{ClosedOff, Part, RECENT, TRACK_BYTES},
        metrics::LaneLabel,
    },
};

/// What is served at `/api/overview`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Overview {
    /// The node's name, if the agent knows it.
    pub node: Option<String>,
    pub version: &'static str,
    /// The newest second in here, counted from the start of the agent.
    pub second: u64,
    pub ready: bool,
    /// Why the agent is not ready, one sentence each; empty if it is.
    pub not_ready: Vec<String>,
    pub snapshot: SnapshotState,
    pub history: Kept,
    pub services: Vec<ServiceLine>,
    /// By tag and namespace.
    pub lanes: Vec<LaneSummary>,
    pub calls: Vec<CallLine>,
    /// Calls that are left out because there are too many.
    pub calls_omitted: usize,
    pub pods: Vec<PodLine>,
    pub policies: Vec<PolicyLine>,
}

/// How well the agent knows the cluster.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct SnapshotState {
    /// Snapshots of the cluster that were put in force; 0 while there is none.
    pub generation: u64,
    /// Since the source last knew that this is the cluster's state.
    pub age_seconds: f64,
    /// Objects that are invalid in whole or in part, one sentence each.
    pub invalid_objects: Vec<String>,
}

/// What is kept of the past.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Kept {
    pub series: usize,
    pub max_series: usize,
    pub bytes_per_series: usize,
    /// How often a series was given up, or could not be begun, for want of room.
    pub evicted: u64,
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

impl From<&Name> for ServiceName {
    fn from(name: &Name) -> Self {
        Self { namespace: name.namespace.to_string(), name: name.name.to_string(), port: name.port }
    }
}

/// What the last ten seconds were like.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Signals {
    /// Requests a second.
    pub rate: f64,
    /// Errors as a part of the requests that were not refused, 0 to 1.
    pub error_ratio: f64,
    /// Refused requests a second.
    pub rejected_rate: f64,
    pub p50_micros: Option<u32>,
    pub p95_micros: Option<u32>,
    pub p99_micros: Option<u32>,
    /// Now.
    pub in_flight: u32,
}

impl Signals {
    pub(super) fn of(recent: Option<&Counts>, seconds: usize, in_flight: u32) -> Self {
        let Some(recent) = recent else { return Self { in_flight, ..Self::default() } };
        let rate = |count: u64| rounded(count as f64 / seconds.max(1) as f64);
        Self {
            rate: rate(recent.requests),
            error_ratio: part(recent.errors, recent.requests - recent.refused.min(recent.requests)),
            rejected_rate: rate(recent.refused),
            p50_micros: recent.percentile_micros(50.0),
            p95_micros: recent.percentile_micros(95.0),
            p99_micros: recent.percentile_micros(99.0),
            in_flight,
        }
    }
}

/// A service in the overview.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServiceLine {
    #[serde(flatten)]
    pub service: ServiceName,
    #[serde(flatten)]
    pub signals: Signals,
    /// Connections that are tunnelled now.
    pub tunnels: u32,
    /// Requests that have ended since the agent started, of the pods that are there.
    pub total: Total,
    /// The two addresses of a dual-stack pod count as one.
    pub endpoints: usize,
    /// Those that are ready and not terminating.
    pub usable_endpoints: usize,
    /// Those that are ejected now.
    pub ejected: usize,
    /// Those that are warming up now.
    pub warming: usize,
    /// Tags of its lanes that have endpoints.
    pub lanes: Vec<String>,
    /// The worst of its circuit breakers; `null` if there is none.
    pub breaker: Option<State>,
    /// The TrafficPolicy in force; without one of its own, the one that it inherits.
    pub policy: Option<String>,
    /// The TrafficPolicies of which the Service has some fields beside those of `policy`: of the Service that is called where a route
    /// sends its requests here, and of its namespace.
    pub inherits_from: Vec<String>,
    /// The other Services to which routes send its requests, which are counted there.
    pub sent_to: Vec<String>,
    pub spark: Spark,
}

/// Requests that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Total {
    pub requests: u64,
    pub errors: u64,
    pub rejected: u64,
}

/// A small line: one number a second, `null` where nothing is known.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Spark {
    /// The second of the first number.
    pub from: u64,
    pub requests: Vec<Option<u32>>,
    pub errors: Vec<Option<u32>>,
}

/// A pod that has called a service.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CallLine {
    pub source: PodName,
    pub destination: ServiceName,
    /// The tag of the endpoints that answered, or `baseline`; empty if none was asked.
    pub lane: String,
    /// Requests a second, over the last ten seconds.
    pub rate: f64,
    /// Errors as a part of the requests that were not refused, 0 to 1.
    pub error_ratio: f64,
    pub rejected_rate: f64,
    pub in_flight: u32,
    pub tunnels: u32,
    pub total: Total,
}

impl Overview {
    pub(super) fn of(look: &Look, sampler: &Sampler, seconds: usize, now_nanos: u64) -> Self {
        let state = look.cluster.as_ref().map(|cluster| SnapshotState {
            generation: cluster.generation,
            age_seconds: rounded(cluster.heard.elapsed().as_secs_f64()),
            invalid_objects: cluster.all_problems().map(Problem::told).collect(),
        });
        Self {
            node: look.node.as_ref().map(ToString::to_string),
            version: env!("CARGO_PKG_VERSION"),
            second: sampler.history.now(),
            ready: look.missing.is_empty(),
            not_ready: look.missing.iter().map(|missing| missing.message.clone()).collect(),
            snapshot: state.unwrap_or_default(),
            history: Kept {
                series: sampler.history.tracks().len(),
                max_series: sampler.history.most(),
                bytes_per_series: TRACK_BYTES,
                evicted: sampler.history.lost,
            },
            services: sampler
                .services
                .all()
                .map(|(name, services)| ServiceLine::of(name, services, sampler, seconds, now_nanos))
                .collect(),
            lanes: lane::index(look, sampler),
            calls: calls(sampler),
            calls_omitted: sampler.calls.not_shown,
            pods: objects::pods(look),
            policies: objects::policies(look),
        }
    }
}

impl ServiceLine {
    pub(super) fn of(
        name: &Name,
        services: &[Arc<Service>],
        sampler: &Sampler,
        seconds: usize,
        now_nanos: u64,
    ) -> Self {
        let track = name.track(Part::Service);
        let requests = sampler.requests.get(name).copied().unwrap_or_default();
        let recent = sampler.history.recent(&track);
        let endpoints = || services.iter().flat_map(|service| &service.endpoints);
        let usable = || endpoints().filter(|endpoint| endpoint.is_usable());
        let governor = services.first().map(|service| &service.governor);
        let policy = governor.map(|governor| governor.policy());
        let outliers = policy.and_then(|policy| policy.outlier_detection.as_ref());
        let warmup = policy.and_then(|policy| policy.load_balancer.warmup.as_ref());
        let mut breakers = governor.into_iter().flat_map(|governor| governor.all_breakers()).peekable();
        let closed = breakers.peek().is_some().then_some(State::Closed);
        let states = breakers.flat_map(|(_, breakers)| breakers.all());
        let worst = states.map(|one| Some(state_of(one.breaker.state(now_nanos)))).max().flatten().or(closed);
        let mut lanes: Vec<String> =
            services.iter().flat_map(|service| service.lanes.keys()).map(ToString::to_string).collect();
        lanes.sort();
        lanes.dedup();
        Self {
            service: name.into(),
            signals: Signals::of(recent.as_ref(), sampler.seconds(RECENT), requests.in_flight),
            tunnels: requests.tunnels_in_flight,
            total: Total { requests: requests.ended, errors: requests.errors, rejected: requests.refused },
            endpoints: distinct(endpoints()),
            usable_endpoints: distinct(usable()),
            ejected: distinct(usable().filter(|endpoint| outlier::is_ejected(outliers, endpoint, now_nanos))),
            warming: distinct(usable().filter(|endpoint| warmup::factor(warmup, endpoint, now_nanos) < 1.0)),
            lanes,
            breaker: worst,
            policy: policy.and_then(|policy| policy.name.as_ref()).map(ToString::to_string),
            inherits_from: policy
                .iter()
                .flat_map(|policy| &policy.inherited)
                .map(|from| from.by.to_string())
                .collect(),
            sent_to: sampler.services.sent_to(name).to_vec(),
            spark: spark(sampler, &track, seconds),
        }
    }
}

/// How many there are; the two addresses of a dual-stack pod are one.
pub(super) fn distinct<'e>(endpoints: impl Iterator<Item = &'e Arc<Endpoint>>) -> usize {
    let mut known: Vec<_> = endpoints
        .map(|endpoint| (endpoint.pod.as_deref(), endpoint.pod.is_none().then_some(endpoint.address)))
        .collect();
    known.sort_unstable();
    known.dedup();
    known.len()
}

fn spark(sampler: &Sampler, track: &crate::observe::history::Track, seconds: usize) -> Spark {
    let seconds = sampler.seconds(seconds);
    let Some(kept) = sampler.history.last(track, seconds) else { return Spark::default() };
    Spark {
        from: sampler.history.now() + 1 - kept.len() as u64,
        requests: kept.iter().map(|second| second.map(|second| second.requests)).collect(),
        errors: kept.iter().map(|second| second.map(|second| second.errors)).collect(),
    }
}

fn calls(sampler: &Sampler) -> Vec<CallLine> {
    let seconds = sampler.seconds(RECENT).max(1) as f64;
    let mut calls: Vec<_> = sampler
        .calls
        .all()
        .map(|call| {
            let [requests, errors, refused] = sampler.calls.recent(call);
            CallLine {
                source: PodName {
                    namespace: call.source_namespace.to_string(),
                    name: call.source_pod.to_string(),
                },
                destination: (&call.destination).into(),
                lane: match &call.lane {
                    LaneLabel::None => String::new(),
                    lane => lane.as_str().to_owned(),
                },
                rate: rounded(requests as f64 / seconds),
                error_ratio: part(errors, requests - refused.min(requests)),
                rejected_rate: rounded(refused as f64 / seconds),
                in_flight: call.requests.in_flight,
                tunnels: call.requests.tunnels_in_flight,
                total: Total {
                    requests: call.requests.ended,
                    errors: call.requests.errors,
                    rejected: call.requests.refused,
                },
            }
        })
        .collect();
    calls.sort_by(|one, other| {
        let key = |call: &CallLine| {
            let to = &call.destination;
            (call.source.clone(), to.namespace.clone(), to.name.clone(), to.port, call.lane.clone())
        };
        key(one).cmp(&key(other))
    });
    calls
}

/// How the circuit breakers and the ejections of a second are told in a line of numbers.
pub(super) fn number_of(closed_off: ClosedOff) -> u8 {
    match closed_off {
        ClosedOff::No => 0,
        ClosedOff::HalfOpen => 1,
        ClosedOff::Open => 2,
    }
}
