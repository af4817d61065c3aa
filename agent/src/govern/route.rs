//! From a tag to an endpoint: which of a service's endpoints may answer a request, and the choice among them.
//!
//! - A tagged request goes to a usable endpoint of its lane; if there is none, to one of the lanes that its lane names, and
//!   else to the baseline, keeping its tag, unless its lane says that its requests are to fail then.
//! - An untagged request goes to the baseline and never to a tagged endpoint.
//! - Endpoints that did not answer [connection requests](super::backoff) of late come after those that may; and last those
//!   that were tried for this request already.
//!
//! Usable means ready, not terminating, and not held out by this agent: [ejected](super::outlier), or in the delay before
//! its [warm-up](super::warmup).
//!
//! Panic: that an endpoint is held out is a guess of this agent, and where it would hold out too many it is more likely
//! wrong than right, or at least too much for the rest. So if fewer than the panic threshold of a subset's endpoints (those
//! that the cluster says are ready and do not terminate) are usable, all of these are used. That is about a lane as it is
//! about the baseline: a lane of which all endpoints are ejected keeps its requests, for a request that means to see the new
//! version is better answered by an ailing new version than by the old one. Below the threshold, or with a threshold
//! of 0, it falls back as a lane without endpoints does; and what is held out comes after all that is usable, rather
//! than nobody.
//!
//! If a service has no ready endpoint left for the request, those that are shutting down but still serve are used, as
//! kube-proxy does: the last pods of a service that is scaled down or replaced all at once answer until they are gone.
//! <https://kubernetes.io/docs/concepts/services-networking/service/#traffic-to-terminating-endpoints>
//!
//! An endpoint that is not ready (and not shutting down) never gets a request: Kubernetes itself would not send
//! one there, and panic is no exception: it is a guard against this agent's own guesses, not against what the kubelet
//! knows for sure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use smallvec::SmallVec;

use super::{
    balance::How,
    endpoint::Endpoint,
    lane::RequestTag,
    outlier,
    policy::{Detour, DirectEndpoints, LaneFallback, OutlierDetection, Policy, WarmUp},
    subset::Subset,
    tag::Tag,
    warmup::{self, Stage},
};

/// The endpoints of a service, as far as routing needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'s> {
    /// Endpoints with no tag.
    pub baseline: &'s Subset,
    pub lanes: &'s BTreeMap<Tag, Subset>,
    /// `sessionAffinity: ClientIP`: goes before the policy's algorithm. Warm-up, ejection and panic are as without it.
    pub session_affinity: bool,
    pub policy: &'s Policy,
}

/// A request, as far as routing needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'c> {
    pub tag: Option<&'c RequestTag>,
    /// What is to become of it if its lane has nobody to answer.
    pub fallback: &'c Detour,
    /// The caller pod's address.
    pub caller: IpAddr,
    /// Endpoints that this request was sent to already, in vain. One of them is chosen again only if there is no
    /// other: whoever retries looks whether that is worth it.
    pub tried: &'c [SocketAddr],
    /// Where it is to be sent.
    pub within: Within<'c>,
    /// Monotonic, of the same clock as the samples given to [`super::endpoint::InFlight::answered`].
    pub now_nanos: u64,
}

/// Which of the lanes that may answer a request it is sent to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Within<'c> {
    /// The first that can, as its tag says.
    #[default]
    Any,
    /// This one, of which it was an endpoint that failed it; `None` is the baseline.
    Lane(Option<&'c Tag>),
}

impl Within<'_> {
    fn contains(self, lane: Option<&Tag>) -> bool {
        match self {
            Self::Any => true,
            Self::Lane(only) => only == lane,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Decision {
    pub endpoint: Arc<Endpoint>,
    pub lane: Lane,
    /// Too few endpoints are usable, so that those that are held out were chosen from as well.
    pub panic: bool,
    /// The warm-up curve yields: those that warm up get more than it says, for others would get too much.
    pub yields: bool,
}

/// How the endpoint's lane and the request's tag go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The request has no tag.
    Baseline,
    /// The endpoint is of the request's lane.
    Routed,
    /// The request has a tag, its lane has no usable endpoint here, and the baseline answers, or another lane.
    FellBack,
}

/// Why no endpoint may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither the request's lane nor the baseline has an endpoint to offer.
    #[error("no endpoint")]
    NoEndpoint,
    /// None of the endpoints in the request's lane can be used, and there is no baseline, or it must not be used.
    #[error("no usable endpoint in the lane, and no baseline for it")]
    LaneUnavailable,
}

/// The subsets that may answer a request, the best first.
type Subsets<'s> = SmallVec<[(&'s Subset, Lane); 4]>;

fn subsets<'s>(service: Candidates<'s>, call: &Call<'_>) -> Subsets<'s> {
    let lane = call.tag.and_then(|tag| service.lanes.get_key_value(tag.as_str()));
    let untagged = if call.tag.is_some() { Lane::FellBack } else { Lane::Baseline };
    let others: &[Tag] = if call.tag.is_some() { &call.fallback.lanes } else { &[] };
    let mut subsets = Subsets::new();
    let mut add = |tag: Option<&Tag>, subset: &'s Subset, lane: Lane| {
        if call.within.contains(tag) {
            subsets.push((subset, lane));
        }
    };
    if let Some((tag, subset)) = lane {
        add(Some(tag), subset, Lane::Routed);
    }
    for tag in others {
        if let Some(subset) = service.lanes.get(tag) {
            add(Some(tag), subset, Lane::FellBack);
        }
    }
    if may_fall_back(call) {
        add(None, service.baseline, untagged);
    }
    subsets
}

fn may_fall_back(call: &Call<'_>) -> bool {
    call.tag.is_none() || call.fallback.then == LaneFallback::Baseline
}

/// The subset that [`route`] would choose from; `None`: nobody can answer.
pub fn subset<'s>(service: Candidates<'s>, call: &Call<'_>) -> Option<&'s Subset> {
    let subsets = subsets(service, call);
    let doubts = Doubts::new(service.policy, call.now_nanos);
    let can = |subset: &Subset, rank: Rank| match rank {
        Rank::Usable if doubts.is_none(subset) => subset.usable() > 0,
        Rank::Usable => doubts.shares(subset, |_| true).shares.iter().any(|share| *share > 0.0),
        Rank::HeldOut => subset.usable() > 0,
        Rank::Draining => subset.iter().any(|endpoint| endpoint.is_draining()),
    };
    let first = |rank: Rank| subsets.iter().map(|(subset, _)| *subset).find(|subset| can(subset, rank));
    first(Rank::Usable).or_else(|| first(Rank::HeldOut)).or_else(|| first(Rank::Draining))
}

/// The endpoint that a client has called itself, if its request stays there; `None`: one is to be chosen.
///
/// It stays unless the policy wants all requests balanced, the endpoint is leaving, has not answered connection requests of late or
/// has been tried in vain, or is of another lane than the one that is to answer.
pub fn keep(service: Candidates<'_>, call: &Call<'_>, own: &Arc<Endpoint>) -> Option<Decision> {
    let stands = service.policy.load_balancer.direct_endpoints == DirectEndpoints::Keep
        && !own.terminating
        && own.load.terminating_since().is_none()
        && !own.load.backoff().is_on(call.now_nanos)
        && !call.tried.contains(&own.address)
        && call.within.contains(own.tag.as_ref());
    if !stands {
        return None;
    }
    let asks_for = |tag: &Tag| call.tag.is_some_and(|wanted| wanted.as_str() == tag.as_str());
    let fits = match subset(service, call).and_then(|subset| subset.iter().next()) {
        Some(one) => one.tag == own.tag,
        // Nobody is ready. Whom a client knows all the same it finds.
        None => own.tag.as_ref().map_or_else(|| may_fall_back(call), asks_for),
    };
    let lane = match (call.tag, &own.tag) {
        (None, _) => Lane::Baseline,
        (Some(_), Some(tag)) if asks_for(tag) => Lane::Routed,
        (Some(_), _) => Lane::FellBack,
    };
    fits.then(|| Decision { endpoint: own.clone(), lane, panic: false, yields: false })
}

/// Chooses the endpoint for a request.
pub fn route(service: Candidates<'_>, call: &Call<'_>, rng: &mut Rng) -> Result<Decision, Refusal> {
    let subsets = subsets(service, call);
    let doubts = Doubts::new(service.policy, call.now_nanos);
    let how = How {
        algorithm: service.policy.load_balancer.algorithm,
        caller: service.session_affinity.then_some(call.caller),
        now_nanos: call.now_nanos,
    };

    for whom in [Whom::Fresh, Whom::Untried, Whom::All] {
        for rank in [Rank::Usable, Rank::HeldOut, Rank::Draining] {
            for &(subset, lane) in &subsets {
                let fresh = |endpoint: &Endpoint| whom.includes(endpoint, call);
                let (chosen, panic, yields) = match rank {
                    Rank::Usable if doubts.is_none(subset) => {
                        (how.choose(subset, |e| e.is_usable() && fresh(e), rng), false, false)
                    }
                    Rank::Usable => {
                        let Parts { shares, panic, yields } = doubts.shares(subset, fresh);
                        let share = |e: &Endpoint| if fresh(e) { doubts.share(e, panic) } else { 0.0 };
                        (how.choose_by_share(subset, &shares, share, rng), panic, yields)
                    }
                    Rank::HeldOut if doubts.is_none(subset) => (None, false, false),
                    Rank::HeldOut => {
                        let share = |e: &Endpoint| if fresh(e) { doubts.share(e, true) } else { 0.0 };
                        let shares: Shares = subset.iter().map(|e| share(e)).collect();
                        (how.choose_by_share(subset, &shares, share, rng), true, false)
                    }
                    Rank::Draining => {
                        (how.choose(subset, |e| e.is_draining() && fresh(e), rng), false, false)
                    }
                };
                if let Some(endpoint) = chosen {
                    return Ok(Decision { endpoint: Arc::clone(endpoint), lane, panic, yields });
                }
            }
        }
    }
    let lane = call.tag.and_then(|tag| service.lanes.get(tag.as_str()));
    let lane_is_there = lane.is_some_and(|lane| !lane.is_empty());
    Err(if lane_is_there || !may_fall_back(call) { Refusal::LaneUnavailable } else { Refusal::NoEndpoint })
}

/// Whether a request could go elsewhere if this endpoint did not take it.
pub fn has_another(service: Candidates<'_>, call: &Call<'_>, than: &Endpoint) -> bool {
    subsets(service, call).iter().any(|(subset, _)| {
        subset.iter().any(|endpoint| {
            endpoint.is_usable() && endpoint.address != than.address && Whom::Fresh.includes(endpoint, call)
        })
    })
}

/// Which endpoints are considered, as far as this request or connecting to them is concerned.
#[derive(Clone, Copy)]
enum Whom {
    /// Those that may answer.
    Fresh,
    /// Those as well that did not answer connection requests of late.
    Untried,
    /// Those as well that were tried in vain for this request.
    All,
}

impl Whom {
    fn includes(self, endpoint: &Endpoint, call: &Call<'_>) -> bool {
        let untried = || !call.tried.contains(&endpoint.address);
        match self {
            Self::Fresh => !endpoint.load.backoff().is_on(call.now_nanos) && untried(),
            Self::Untried => untried(),
            Self::All => true,
        }
    }
}

/// What is chosen from first, and what only if there is nothing better.
#[derive(Clone, Copy)]
enum Rank {
    Usable,
    /// Ready, and held out by this agent.
    HeldOut,
    /// Shutting down, but still answering.
    Draining,
}

/// What this agent holds against endpoints that the cluster says are usable.
struct Doubts<'p> {
    warmup: Option<&'p WarmUp>,
    outliers: Option<&'p OutlierDetection>,
    /// Of the subset's endpoints, 0 to 1.
    threshold: f64,
    now_nanos: u64,
}

/// Those of a subset's endpoints, in their order; 0 is nothing.
type Shares = SmallVec<[f64; 64]>;

/// What the endpoints of a subset are to get.
struct Parts {
    shares: Shares,
    panic: bool,
    yields: bool,
}

/// What warm-up curves that yield give endpoints beyond what they say; nearly always nobody anything.
#[derive(Clone, Debug, Default)]
pub struct Yielded(SmallVec<[(SocketAddr, f64); 4]>);

impl Yielded {
    /// Of a service with these subsets.
    pub fn of<'s>(policy: &Policy, subsets: impl Iterator<Item = &'s Subset>, now_nanos: u64) -> Self {
        let doubts = Doubts::new(policy, now_nanos);
        let Some(warmup) = doubts.warmup else { return Self::default() };
        let warming = subsets.filter(|subset| !subset.is_warm(warmup, now_nanos));
        let parts = warming.map(|subset| (subset, doubts.shares(subset, |_| true)));
        let raised = parts.filter(|(_, parts)| parts.yields).flat_map(|(subset, parts)| {
            let addresses = subset.iter().map(|endpoint| endpoint.address);
            addresses.zip(parts.shares).filter(|(_, share)| *share > 0.0)
        });
        Self(raised.collect())
    }

    /// The part of a warm endpoint's share that this one gets, 0 to 1; for metrics.
    pub fn factor(&self, policy: &Policy, endpoint: &Endpoint, now_nanos: u64) -> f64 {
        let raised = self.0.iter().find(|(address, _)| *address == endpoint.address);
        let curve = || warmup::factor(policy.load_balancer.warmup.as_ref(), endpoint, now_nanos);
        raised.map_or_else(curve, |(_, share)| *share)
    }
}

impl<'p> Doubts<'p> {
    fn new(policy: &'p Policy, now_nanos: u64) -> Self {
        Self {
            warmup: policy.load_balancer.warmup.as_ref(),
            outliers: policy.outlier_detection.as_ref(),
            threshold: policy.load_balancer.panic_threshold_percent / 100.0,
            now_nanos,
        }
    }

    /// Whether there are none about any endpoint of a subset: nearly always, and then known without looking at them.
    fn is_none(&self, subset: &Subset) -> bool {
        (self.outliers.is_none() || subset.has_no_outliers(self.now_nanos))
            && self.warmup.is_none_or(|warmup| subset.is_warm(warmup, self.now_nanos))
    }

    /// What each endpoint of a subset is to get, and whether it is panic. Those that are not `fresh` get nothing.
    fn shares(&self, subset: &Subset, fresh: impl Fn(&Endpoint) -> bool) -> Parts {
        let mut shares: Shares = subset.iter().map(|endpoint| self.share(endpoint, false)).collect();
        let used = shares.iter().filter(|share| **share > 0.0).count();
        let panic = (used as f64) < subset.usable() as f64 * self.threshold;
        for (share, endpoint) in shares.iter_mut().zip(subset.iter()) {
            if !fresh(endpoint) {
                *share = 0.0;
            } else if panic {
                *share = self.share(endpoint, true);
            }
        }
        let yields = self.warmup.is_some_and(|warmup| {
            let is_warm = |endpoint: &&Arc<Endpoint>| {
                (endpoint.is_usable() || endpoint.is_draining())
                    && warmup::stage(warmup, endpoint, self.now_nanos) == Stage::Warm
            };
            let warm = subset.iter().filter(is_warm).count();
            warmup::yield_shares(&mut shares, subset.carried(warmup, warm, self.now_nanos))
        });
        Parts { shares, panic, yields }
    }

    /// The part of an endpoint's share that it is to get, 0 to 1. With `all`, those that are held out get theirs too.
    fn share(&self, endpoint: &Endpoint, all: bool) -> f64 {
        if !endpoint.is_usable() || (!all && outlier::is_ejected(self.outliers, endpoint, self.now_nanos)) {
            return 0.0;
        }
        match self.warmup.map(|warmup| (warmup, warmup::stage(warmup, endpoint, self.now_nanos))) {
            None | Some((_, Stage::Warm)) => 1.0,
            Some((_, Stage::Warming(share))) => share,
            // Before its time, if need be, with what it would begin with.
            Some((warmup, Stage::Delayed)) if all => warmup::curve(warmup, Duration::ZERO),
            Some((_, Stage::Delayed)) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests;
