//! Asking `govern` which endpoint a request or a tunnel goes to.

use std::{net::SocketAddr, sync::Arc};

use super::worker::{PodHere, Worker};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Service},
    govern::{
        endpoint::{Endpoint, InFlight},
        lane::RequestTag,
        route::{self, Call, Lane, Refusal, Within},
        subset::Subset,
        tag::Tag,
    },
    observe::{metrics::TagOutcome, reason::Reason},
};

/// An endpoint, with this request counted as in flight to it.
pub(crate) struct Chosen {
    pub(crate) in_flight: InFlight,
    pub(crate) lane: Lane,
    /// Chosen among those that are held out as well, because too few are left.
    pub(crate) panic: bool,
    /// The warm-up curve yielded for it.
    pub(crate) yields: bool,
}

impl Chosen {
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        self.in_flight.endpoint()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint().address
    }

    /// Where that is: its address and its lane.
    pub(crate) fn place(&self) -> (SocketAddr, Option<Tag>) {
        (self.address(), self.endpoint().tag.clone())
    }

    /// What became of the request's tag, if it had one.
    pub(crate) fn tag_outcome(&self) -> Option<TagOutcome> {
        match self.lane {
            Lane::Baseline => None,
            Lane::Routed => Some(TagOutcome::Routed),
            Lane::FellBack => Some(TagOutcome::FellBack),
        }
    }
}

/// The endpoints among which one would be chosen now for a request with `tag`.
pub(crate) fn subset<'d>(
    pod: &PodHere,
    destination: &'d Destination,
    tag: Option<&RequestTag>,
    now: Nanos,
) -> Option<&'d Subset> {
    let service = &destination.service;
    if let Some(pinned) = destination.held() {
        return service.subset_of(pinned);
    }
    let (fallback, caller) = (service.fallback(tag), pod.pod.workload.load().address());
    let call = Call { tag, fallback, caller, tried: &[], within: Within::Any, now_nanos: now.0 };
    route::subset(service.candidates(), &call)
}

/// Whether a request with `tag` could go to another endpoint, should it not get a connection to this one, nor to those `tried`.
pub(crate) fn has_another(
    pod: &PodHere,
    destination: &Destination,
    tag: Option<&RequestTag>,
    tried: &[SocketAddr],
    than: &Endpoint,
    now: Nanos,
) -> bool {
    if destination.held().is_some() {
        return false;
    }
    let service = &destination.service;
    let (fallback, caller) = (service.fallback(tag), pod.pod.workload.load().address());
    let call = Call { tag, fallback, caller, tried, within: Within::Any, now_nanos: now.0 };
    route::has_another(service.candidates(), &call, than)
}

/// Chooses an endpoint that is not among those `tried`, for a request with `tag`.
/// `Ok(None)`: all that could be chosen have been tried.
pub(crate) fn choose(
    worker: &Worker,
    pod: &PodHere,
    destination: &Destination,
    tag: Option<&RequestTag>,
    tried: &[SocketAddr],
    within: Within<'_>,
    now: Nanos,
) -> Result<Option<Chosen>, Refusal> {
    // A caller that dialled an endpoint of a headless service has chosen for itself (ARCHITECTURE.md#which-traffic-is-managed).
    if let Some(pinned) = destination.held() {
        let fresh = !tried.contains(&pinned.address);
        return Ok(fresh.then(|| Chosen {
            in_flight: InFlight::begin(pinned.clone(), now.0),
            lane: Lane::Baseline,
            panic: false,
            yields: false,
        }));
    }
    let service = &destination.service;
    let caller = pod.pod.workload.load().address();
    let call = Call { tag, fallback: service.fallback(tag), caller, tried, within, now_nanos: now.0 };
    let kept = destination.preferred().and_then(|own| route::keep(service.candidates(), &call, own));
    let routed =
        kept.map_or_else(|| route::route(service.candidates(), &call, &mut worker.rng.borrow_mut()), Ok);
    match routed {
        Ok(decision) if tried.contains(&decision.endpoint.address) => Ok(None),
        Ok(decision) => {
            decision.endpoint.load.backoff().chosen(now.0);
            Ok(Some(Chosen {
                in_flight: InFlight::begin(decision.endpoint, now.0),
                lane: decision.lane,
                panic: decision.panic,
                yields: decision.yields,
            }))
        }
        Err(refusal) => Err(refusal),
    }
}

pub(crate) fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NoEndpoint => Reason::NoEndpoint,
        Refusal::LaneUnavailable => Reason::LaneUnavailable,
    }
}

/// Which lanes have endpoints that are ready, where a request finds none because it is in none of these.
pub(crate) fn lanes_instead(service: &Service, tag: Option<&RequestTag>, refusal: Refusal) -> Option<String> {
    /// As many names as a sentence bears.
    const NAMED: usize = 5;
    let mut ready = service.lanes.iter().filter(|(_, lane)| lane.usable() > 0).map(|(tag, _)| tag.as_str());
    let named: Vec<_> = ready.by_ref().take(NAMED).collect();
    if named.is_empty() || refusal != Refusal::NoEndpoint {
        return None;
    }
    let lanes = if named.len() == 1 { "lane" } else { "lanes" };
    let others = match ready.count() {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    let has = match tag {
        None => "has no tag".to_owned(),
        Some(tag) => format!("has the tag {}", tag.as_str()),
    };
    let named = named.join(", ");
    Some(format!("those that are ready are of {lanes} {named}{others} alone, and the request {has}"))
}
