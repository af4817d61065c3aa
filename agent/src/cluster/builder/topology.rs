//! Which endpoints of a subset are near enough: topology hints and `trafficDistribution`, as kube-proxy reads them.
//!
//! The rules are those of `topologyModeFromHints` in
//! <https://github.com/kubernetes/kubernetes/blob/release-1.33/pkg/proxy/topology.go>: hints count only if every ready
//! endpoint has them and at least one means us, else all endpoints are used. They are applied to each lane by
//! itself: that a lane has no instance in this zone must not send its requests to the baseline.

use std::sync::Arc;

use http::HeaderName;

use crate::{
    cluster::{
        jwks::Sources,
        object::{Hints, Prefer},
    },
    govern::endpoint::Endpoint,
};

/// Where this agent runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The node's name. Without it `internalTrafficPolicy: Local` and node hints restrict nothing.
    pub node: Option<Arc<str>>,
    /// The node's zone. Without it zone hints restrict nothing.
    pub zone: Option<Arc<str>>,
    /// The headers that carry the tag.
    pub tag_headers: Vec<HeaderName>,
    /// Agents set the readiness gate of pods that are warm.
    pub warm_gates: bool,
    /// Why nothing can refuse connections on this node while no agent is there.
    pub refuse_trouble: Option<Arc<str>>,
    /// Where the sources of keys go that policies name.
    pub jwks: Arc<Sources>,
    /// There is a store by which the agents of the cluster share limits.
    pub limit_store: bool,
}

/// An endpoint and for whom it is meant.
pub(super) struct Candidate<'a> {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) hints: Option<&'a Hints>,
    /// Kubernetes has not written hints for it yet, as it does for what is ready: it is for those that are nearest to it.
    pub(super) without_hints: bool,
}

/// Those of the candidates that are for us.
pub(super) fn near<'a>(
    candidates: &[&'a Candidate<'a>],
    options: &Options,
    prefer: Prefer,
) -> Vec<Arc<Endpoint>> {
    // Where nobody has written hints (the EndpointSlice controller does), `trafficDistribution` says what they would be.
    let zones = |candidate: &'a Candidate<'a>| match candidate.hints.map_or(&[][..], |hints| &hints.for_zones)
    {
        [] if prefer != Prefer::Any || candidate.without_hints => candidate.endpoint.zone.as_slice(),
        hints => hints,
    };
    let nodes = |candidate: &'a Candidate<'a>| match candidate.hints.map_or(&[][..], |hints| &hints.for_nodes)
    {
        [] if prefer == Prefer::SameNode || candidate.without_hints => candidate.endpoint.node.as_slice(),
        hints => hints,
    };
    // One that has no hints yet says nothing of whether the others have.
    let decides = |candidate: &Candidate<'a>| prefer != Prefer::Any || !candidate.without_hints;
    pick(candidates, options.node.as_ref(), decides, nodes)
        .or_else(|| pick(candidates, options.zone.as_ref(), decides, zones))
        .unwrap_or_else(|| candidates.iter().map(|candidate| candidate.endpoint.clone()).collect())
}

fn pick<'a>(
    candidates: &[&'a Candidate<'a>],
    here: Option<&Arc<str>>,
    decides: impl Fn(&Candidate<'a>) -> bool,
    hints: impl Fn(&'a Candidate<'a>) -> &'a [Arc<str>],
) -> Option<Vec<Arc<Endpoint>>> {
    let here = here?;
    let mut usable =
        candidates.iter().filter(|candidate| candidate.endpoint.is_usable() && decides(candidate));
    let all_hinted = usable.clone().all(|candidate| !hints(candidate).is_empty());
    if !all_hinted || !usable.any(|candidate| hints(candidate).contains(here)) {
        return None;
    }
    let near = candidates.iter().filter(|candidate| hints(candidate).contains(here));
    Some(near.map(|candidate| candidate.endpoint.clone()).collect())
}
