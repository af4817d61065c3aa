//! From a tag to an endpoint: which of a service's endpoints may answer a request, and the choice among them.
//!
//! - A tagged request goes to a usable endpoint of its lane; if there is none, to the baseline, keeping its tag.
//! - An untagged request goes to the baseline and never to a tagged endpoint.
//! - Endpoints that were tried for this request already come last.
//!
//! Usable means ready and not terminating. If a service has no usable endpoint left for the request, those that
//! are shutting down but still serve are used, as kube-proxy does: the last pods of a service that is scaled down or
//! replaced all at once answer until they are gone.
//! <https://kubernetes.io/docs/concepts/services-networking/service/#traffic-to-terminating-endpoints>
//!
//! An endpoint that is not ready (and not shutting down) never gets a request: Kubernetes itself would not send
//! one there. The panic threshold of DESIGN 6.2 is no exception: it is a guard against this agent's own guesses
//! (endpoints that it ejected for errors that it saw), not against what the kubelet knows for sure. It comes with
//! outlier detection.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fastrand::Rng;

use super::{balance, endpoint::Endpoint, lane::RequestTag, tag::Tag};

/// The endpoints of a service, as far as routing needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'s> {
    /// Endpoints with no tag.
    pub baseline: &'s [Arc<Endpoint>],
    pub lanes: &'s BTreeMap<Tag, Vec<Arc<Endpoint>>>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
}

/// A request, as far as routing needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'c> {
    pub tag: Option<&'c RequestTag>,
    /// The caller pod's address.
    pub caller: IpAddr,
    /// Endpoints that this request was sent to already, in vain. One of them is chosen again only if there is no
    /// other: whoever retries looks whether that is worth it.
    pub tried: &'c [SocketAddr],
    /// Monotonic, of the same clock as the samples given to [`super::endpoint::Load::observe`].
    pub now_nanos: u64,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Decision {
    pub endpoint: Arc<Endpoint>,
    pub lane: Lane,
}

/// How the endpoint's lane and the request's tag go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The request has no tag.
    Baseline,
    /// The endpoint is of the request's lane.
    Routed,
    /// The request has a tag, its lane has no usable endpoint here, and the baseline answers.
    FellBack,
}

/// Why no endpoint may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither the request's lane nor the baseline has an endpoint to offer.
    #[error("no endpoint")]
    NoEndpoint,
    /// The service has endpoints in the request's lane, none of them can be used, and there is no baseline.
    #[error("no usable endpoint in the lane, and no baseline")]
    LaneUnavailable,
}

/// Chooses the endpoint for a request.
pub fn route(service: Candidates<'_>, call: &Call<'_>, rng: &mut Rng) -> Result<Decision, Refusal> {
    let lane = call.tag.and_then(|tag| service.lanes.get(tag.as_str())).map_or(&[][..], Vec::as_slice);
    let untagged = if call.tag.is_some() { Lane::FellBack } else { Lane::Baseline };
    let subsets = [(lane, Lane::Routed), (service.baseline, untagged)];

    for again in [false, true] {
        for eligible in [Endpoint::is_usable, is_draining] {
            for (endpoints, lane) in subsets {
                let eligible = |endpoint: &Endpoint| {
                    eligible(endpoint) && (again || !call.tried.contains(&endpoint.address))
                };
                let chosen = if service.session_affinity {
                    balance::sticky(endpoints, eligible, call.caller)
                } else {
                    balance::power_of_two(endpoints, eligible, call.now_nanos, rng)
                };
                if let Some(endpoint) = chosen {
                    return Ok(Decision { endpoint: Arc::clone(endpoint), lane });
                }
            }
        }
    }
    Err(if lane.is_empty() { Refusal::NoEndpoint } else { Refusal::LaneUnavailable })
}

/// Shutting down, but still answering.
fn is_draining(endpoint: &Endpoint) -> bool {
    endpoint.terminating && (endpoint.serving || endpoint.ready)
}

#[cfg(test)]
mod tests;
