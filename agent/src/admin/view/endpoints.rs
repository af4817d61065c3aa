//! The endpoints of a service: what each is asked, whether it is held out, and how it warms up.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Name, overview::Signals, rounded, sampler::Sampler, service::Seconds, warmth::Warmth};
use crate::{
    clock::Nanos,
    cluster::model::Service,
    govern::{
        endpoint::Endpoint,
        outlier,
        policy::Policy,
        route::Yielded,
        warmup::{self, Stage},
    },
    observe::history::{Part, RECENT, Track},
};

/// Endpoints that are listed; those that warm up, fail or are busy come first.
const MOST: usize = 256;
/// Of those, the ones that are told second by second.
const WITH_SERIES: usize = 32;

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
    pub target_share: Option<f64>,
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
    pub target_shares: Vec<Option<f64>>,
    /// What it got, as a mean of five seconds.
    pub actual_shares: Vec<Option<f64>>,
}

/// What is listed.
pub(super) struct Listed {
    pub(super) lines: Vec<EndpointLine>,
    pub(super) not_shown: usize,
}

/// Those of a service. `of_track` gives the seconds of a track, `seconds` of them.
pub(super) fn list(
    name: &Name,
    services: &[Arc<Service>],
    policy: &Policy,
    sampler: &Sampler,
    (seconds, now_nanos): (usize, u64),
    of_track: &impl Fn(&Track) -> Seconds,
) -> Listed {
    let mut all = ranked(name, services, policy, sampler, now_nanos);
    let count = all.len();
    all.truncate(MOST);
    let warmth = Warmth::of(&sampler.history, name, services, seconds);
    for known in all.iter_mut().take(WITH_SERIES) {
        let tag = known.endpoint.tag.as_ref();
        known.line.seconds = Some(EndpointSeconds {
            seconds: of_track(&known.track),
            target_shares: warmth.wanted(&sampler.history, &known.track),
            actual_shares: warmth.got(&sampler.history, &known.track, tag),
        });
    }
    let lines = all.into_iter().map(|known| known.line).collect();
    Listed { lines, not_shown: count.saturating_sub(MOST) }
}

/// What a line is made from.
struct Known<'s> {
    endpoint: &'s Endpoint,
    track: Track,
    line: EndpointLine,
}

/// All endpoints; what is worth a look comes first.
fn ranked<'s>(
    name: &Name,
    services: &'s [Arc<Service>],
    policy: &Policy,
    sampler: &Sampler,
    now_nanos: u64,
) -> Vec<Known<'s>> {
    let known = |yielded: &Yielded, endpoint: &'s Arc<Endpoint>| {
        let track = name.track(Part::Endpoint(endpoint.address));
        let recent = sampler.history.recent(&track);
        let in_flight = endpoint.load.in_flight.load(Relaxed);
        let until = outlier::ejected_until(policy.outlier_detection.as_ref(), endpoint, now_nanos);
        let warms_up = policy.load_balancer.warmup.is_some();
        let line = EndpointLine {
            address: endpoint.address.to_string(),
            pod: endpoint.pod.as_ref().map(ToString::to_string),
            zone: endpoint.zone.as_ref().map(ToString::to_string),
            tag: endpoint.tag.as_ref().map(ToString::to_string),
            state: state(endpoint, policy, until.is_some(), now_nanos),
            ejected_seconds: until
                .map(|until| rounded(Duration::from(Nanos(until - now_nanos)).as_secs_f64())),
            target_share: warms_up.then(|| rounded(yielded.factor(policy, endpoint, now_nanos))),
            signals: Signals::of(recent.as_ref(), sampler.seconds(RECENT), in_flight),
            seconds: None,
        };
        Known { endpoint, track, line }
    };
    let of_service = |service: &'s Arc<Service>| {
        let yielded = service.yielded(now_nanos);
        service.endpoints.iter().map(|endpoint| known(&yielded, endpoint)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = services.iter().flat_map(of_service).collect();
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

pub(super) fn state(endpoint: &Endpoint, policy: &Policy, ejected: bool, now_nanos: u64) -> EndpointState {
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
