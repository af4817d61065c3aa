//! Which lane and which endpoint the request goes to.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use fastrand::Rng;

use super::{
    candidates::{candidate, percentages},
    walk::{Chosen, Stopped, Walk},
};
use crate::{
    govern::{
        endpoint::Endpoint,
        lane::RequestTag,
        policy::{Detour, FallbackOn, LaneFallback, Part},
        route::{self, Candidates, Lane, Refusal, Within, Yielded},
        subset::Subset,
        tag::Tag,
    },
    proxy::{
        choose,
        explain::{Stage, Verdict},
    },
};

/// Draws that tell how often each endpoint is chosen.
const DRAWS: u32 = 1000;

impl Walk<'_> {
    pub(super) fn route(&mut self, tag: Option<&RequestTag>) -> Result<Chosen, Stopped> {
        if let Some(pinned) = self.dialled.held() {
            let what = "the client called this endpoint itself and stays with it";
            let object = self.service_object();
            self.steps.say(Stage::Endpoint, Verdict::Passes, what, object);
            return Ok(Chosen { endpoint: pinned.clone(), lane: Lane::Baseline });
        }
        let (service, original) = (self.service, self.service.candidates());
        let copied = original.baseline.copy();
        let lanes: BTreeMap<Tag, Subset> =
            original.lanes.iter().map(|(tag, subset)| (tag.clone(), subset.copy())).collect();
        let candidates = Candidates { baseline: &copied, lanes: &lanes, ..original };
        let fallback = service.fallback(tag);
        // At most one request asks such an endpoint again. That says nothing of where requests go.
        let doubted = service.endpoints.iter().filter(|one| one.load.backoff().is_doubted());
        let doubted: Vec<_> = doubted.map(|one| one.address).collect();
        let call = route::Call {
            tag,
            fallback,
            caller: self.caller.address(),
            tried: &doubted,
            within: Within::Any,
            now_nanos: self.now,
        };
        if let Some(kept) = self.dialled.preferred().and_then(|own| route::keep(original, &call, own)) {
            let what = "the client called this endpoint itself, and it is of the lane that is to answer";
            let object = self.service_object();
            self.steps.say(Stage::Endpoint, Verdict::Passes, what, object);
            return Ok(Chosen { endpoint: kept.endpoint, lane: kept.lane });
        }
        let mut rng = Rng::new();
        let decided = route::route(candidates, &call, &mut rng);
        let mut drawn: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for _ in 0..DRAWS {
            if let Ok(decision) = route::route(candidates, &call, &mut rng) {
                *drawn.entry(decision.endpoint.address).or_default() += 1;
            }
        }
        let subsets = std::iter::once(&copied).chain(lanes.values());
        let yielded = Yielded::of(service.governor.policy(), subsets, self.now);
        self.lane(tag, fallback, &decided);
        let of_lane = tag.and_then(|tag| lanes.get(tag.as_str()));
        let others = fallback.lanes.iter().filter(|_| tag.is_some()).filter_map(|other| lanes.get(other));
        let of_lanes = of_lane.into_iter().chain(others).flat_map(|lane| lane.iter());
        let endpoints: Vec<_> = of_lanes.chain(copied.iter()).collect();
        let draws = |one: &Arc<Endpoint>| drawn.get(&one.address).copied().unwrap_or_default();
        let draws: Vec<_> = endpoints.iter().map(|one| draws(one)).collect();
        for (endpoint, percent) in endpoints.into_iter().zip(percentages(&draws)) {
            self.candidates.push(candidate(service, &yielded, endpoint, percent, self.now));
        }
        match decided {
            Ok(decision) => {
                let (shown, of) = (draws.iter().filter(|draws| **draws > 0).count(), self.candidates.len());
                let mut what = format!(
                    "{} is chosen by {:?}; candidates: {shown} of {of}",
                    decision.endpoint.address,
                    service.governor.policy().load_balancer.algorithm
                );
                if service.session_affinity {
                    what = format!("{} is the caller's (sessionAffinity)", decision.endpoint.address);
                }
                if let Some(one) = doubted.iter().find(|one| **one != decision.endpoint.address) {
                    what = format!(
                        "{what}; {one} does not answer connection requests: it is asked now and then, by one request"
                    );
                }
                if decision.panic {
                    what += "; panic: too few are usable, so those that are held out are asked as well";
                }
                if decision.yields {
                    what += "; the warm-up curve yields, lest warm endpoints get too much";
                }
                let because =
                    self.rule("loadBalancer", Part::LoadBalancer).filter(|_| self.policy().is_some());
                let verdict = if decision.panic { Verdict::Changes } else { Verdict::Passes };
                self.steps.say(Stage::Endpoint, verdict, what, because);
                Ok(Chosen { endpoint: decision.endpoint, lane: decision.lane })
            }
            Err(refusal) => Err(Stopped {
                reason: choose::reason_of(refusal),
                on: Some(FallbackOn::NoEndpoint),
                because: choose::lanes_instead(service, tag, refusal),
            }),
        }
    }

    fn lane(
        &mut self,
        tag: Option<&RequestTag>,
        fallback: &Detour,
        decided: &Result<route::Decision, Refusal>,
    ) {
        let service = self.service;
        let (baseline, usable) = (service.baseline.len(), service.baseline.usable());
        let of_baseline = format!("endpoints of the baseline: {baseline}, ready: {usable}");
        let Some(tag) = tag else {
            let verdict = if decided.is_ok() { Verdict::Passes } else { Verdict::Stops };
            let object = self.service_object();
            let lanes = service.lanes.iter().filter(|(_, lane)| usable == 0 && lane.usable() > 0);
            let lanes: Vec<_> =
                lanes.map(|(tag, lane)| format!("; in lane {tag}: {}", lane.usable())).collect();
            let lanes = lanes.concat();
            self.steps.say(Stage::Lane, verdict, format!("no tag: {of_baseline}{lanes}"), object);
            return;
        };
        let tag = tag.as_str();
        let there = service.lanes.get(tag).map_or_else(
            || format!("{service} has no endpoint in lane {tag}"),
            |lane| format!("endpoints in lane {tag}: {}, ready: {}", lane.len(), lane.usable()),
        );
        let fails = fallback.then == LaneFallback::Fail;
        let because = if *fallback == Detour::default() {
            self.service_object()
        } else {
            Some(format!("fallback: {fallback} of the TrafficLane for {tag} in {}", service.namespace))
        };
        let (verdict, what) = match decided {
            Ok(decision) if decision.lane == Lane::FellBack => {
                let to = decision.endpoint.tag.as_ref().map_or_else(
                    || format!("the baseline, and keeps its tag; {of_baseline}"),
                    |other| format!("lane {other}, and keeps its tag"),
                );
                (Verdict::Changes, format!("{there}: falls back to {to}"))
            }
            Ok(_) => (Verdict::Passes, there),
            Err(_) if fails => (Verdict::Stops, format!("{there}, and it may not fall back")),
            Err(_) => (Verdict::Stops, format!("{there}; {of_baseline}")),
        };
        self.steps.say(Stage::Lane, verdict, what, because);
    }
}
