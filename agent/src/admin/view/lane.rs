//! A lane: its pods by Service, where its requests go where it has none, and how it fares beside the baseline.
//!
//! A lane is a tag, and in the cluster it spans all namespaces: a view of it is of all, or of one. What is said of the
//! TrafficLanes of the tag comes from their verdicts; pods may have the tag by their label, without any TrafficLane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ahash::AHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Look, Name,
    endpoints::{self, EndpointState},
    objects::{PodName, PolicyLine, policy},
    overview::{ServiceName, Signals, distinct},
    part, rounded,
    sampler::Sampler,
};
use crate::{
    cluster::{
        model::Service,
        object::Kind,
        verdict::{Extent, OfLane},
    },
    govern::{
        endpoint::Endpoint,
        lane::RequestTag,
        outlier,
        policy::{Lane, LaneFallback},
        route::{self, Call, Within},
        tag::Tag,
        tally::Counts,
    },
    observe::history::{Part, RECENT},
};

/// Services that are listed; those with endpoints of the lane come before others.
const MOST_SERVICES: usize = 500;
/// Pods that are named of a Service.
const MOST_MEMBERS: usize = 64;

/// Which lane is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneName {
    pub tag: String,
    /// `None`: all.
    pub namespace: Option<String>,
}

/// A lane in the overview, in one namespace.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LaneSummary {
    pub tag: String,
    pub namespace: String,
    /// Names of the TrafficLanes with the tag.
    pub traffic_lanes: Vec<String>,
    /// Whether each of them is active as a whole; `null` if there is none.
    pub programmed: Option<bool>,
    /// Its pods, as far as they are endpoints or on this node, and its endpoints outside of the cluster.
    pub pods: usize,
    /// Service ports with usable endpoints of it.
    pub services: usize,
    #[serde(flatten)]
    pub share: Share,
}

/// What the last ten seconds were like at some endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Share {
    /// Attempts a second.
    pub rate: f64,
    /// Errors as a part of them, 0 to 1.
    pub error_ratio: f64,
}

/// What is served at `/api/lane`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LaneDetail {
    /// The newest second in here, counted from the start of the agent.
    pub second: u64,
    pub tag: String,
    /// The one that is looked at; `null`: all that have to do with the lane.
    pub namespace: Option<String>,
    /// All that have to do with the lane.
    pub namespaces: Vec<String>,
    pub traffic_lanes: Vec<TrafficLaneLine>,
    /// The rules by which requests enter, in the order in which a Service asks them of this lane.
    pub entry: Vec<EntryLine>,
    /// All that its endpoints were asked.
    pub lane: Share,
    /// The same of endpoints without a tag, at the Services where the lane has endpoints.
    pub baseline: Share,
    /// By name.
    pub services: Vec<LaneService>,
    /// Service ports that are left out because there are too many.
    pub services_omitted: usize,
    /// Its pods on this node that are no endpoints of any of these Services.
    pub other_pods: Vec<PodName>,
    /// Workloads of these namespaces with pods on this node that have lost tags.
    pub losses: Vec<LossLine>,
}

/// A TrafficLane with the tag.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TrafficLaneLine {
    #[serde(flatten)]
    pub object: PolicyLine,
    /// As in `staging, Baseline`; `null` if nothing of it is active.
    pub fallback: Option<String>,
    /// Whether requests keep the tag that they come with where they may enter; `null` if nothing of it is active.
    pub trusts_incoming_tag: Option<bool>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EntryLine {
    /// As in `shop/gray`.
    pub traffic_lane: String,
    /// Counted from 0.
    pub rule: usize,
    pub priority: i32,
    /// The Services, or ports of them, at which it is asked; empty: all of the namespace.
    pub services: Vec<String>,
    /// The requests that enter, as in `10 % by cookie user of all requests`.
    pub requests: String,
}

/// A service port, as the lane sees it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LaneService {
    #[serde(flatten)]
    pub service: ServiceName,
    /// Its endpoints that are of the lane.
    pub members: Vec<Member>,
    /// Those that are left out because there are too many.
    pub members_omitted: usize,
    pub usable_members: usize,
    /// Who gets requests of the lane now.
    pub answered_by: AnsweredBy,
    /// The other lane, if it is one.
    pub other_lane: Option<String>,
    /// What happens where the lane has no usable endpoint, as in `staging, Baseline`.
    pub fallback: String,
    pub lane: Signals,
    pub baseline: Signals,
}

/// An endpoint of the lane.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Member {
    /// `null`: it is none, but outside of the cluster.
    pub pod: Option<String>,
    pub address: String,
    pub node: Option<String>,
    pub state: EndpointState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    Lane,
    OtherLane,
    Baseline,
    /// They are rejected: the lane is not to fall back to the baseline.
    Rejected,
    /// No endpoint can be used.
    Nobody,
}

/// A workload that has lost tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LossLine {
    pub namespace: String,
    /// The name of its Deployment, StatefulSet or the like.
    pub workload: String,
    /// Its pods on this node that have lost some.
    pub pods: usize,
    /// As in `sluice_tags_lost_total`, of all lanes: which tag a request has lost is not known.
    pub tags_lost: u64,
    /// Some of them in the last five minutes.
    pub is_losing: bool,
}

/// The lanes of which there is anything.
pub(super) fn index(look: &Look, sampler: &Sampler) -> Vec<LaneSummary> {
    #[derive(Default)]
    struct Found {
        traffic_lanes: Vec<String>,
        programmed: Option<bool>,
        pods: BTreeSet<String>,
        services: usize,
        counts: Counts,
    }
    let mut all: BTreeMap<(String, String), Found> = BTreeMap::new();
    for (key, judged, OfLane { tag, .. }) in traffic_lanes(look) {
        let found = all.entry((tag.to_string(), key.name.namespace.to_string())).or_default();
        found.traffic_lanes.push(key.name.name.to_string());
        let whole = judged.verdict.extent == Extent::All;
        found.programmed = Some(found.programmed.unwrap_or(true) && whole);
    }
    for (name, services) in sampler.services.all() {
        for tag in tags(services) {
            let found = all.entry((tag.to_string(), name.namespace.to_string())).or_default();
            let subsets = || services.iter().filter_map(|service| service.lanes.get(tag));
            found.services += usize::from(subsets().any(|subset| subset.usable() > 0));
            found.pods.extend(subsets().flat_map(|subset| subset.iter()).map(|endpoint| called(endpoint)));
            if let Some(recent) = sampler.history.recent(&name.track(Part::Lane(Some(tag.clone())))) {
                found.counts.add(&recent);
            }
        }
    }
    for pod in look.snapshot.pods.values().filter(|pod| !pod.finished) {
        let Some(tag) = &pod.tag else { continue };
        let found = all.entry((tag.to_string(), pod.namespace.to_string())).or_default();
        found.pods.insert(pod.name.to_string());
    }
    let seconds = sampler.seconds(RECENT);
    let line = |((tag, namespace), found): ((String, String), Found)| LaneSummary {
        tag,
        namespace,
        traffic_lanes: found.traffic_lanes,
        programmed: found.programmed,
        pods: found.pods.len(),
        services: found.services,
        share: Share::of(&found.counts, seconds),
    };
    all.into_iter().map(line).collect()
}

/// All that is known of a lane; `None`: there is none of that name.
pub(super) fn detail(lane: &LaneName, look: &Look, sampler: &Sampler, now_nanos: u64) -> Option<LaneDetail> {
    let tag: Tag = lane.tag.parse().ok()?;
    let all = index(look, sampler);
    let namespaces: Vec<_> =
        all.into_iter().filter(|line| line.tag == lane.tag).map(|line| line.namespace).collect();
    let here = |namespace: &str| match &lane.namespace {
        Some(only) => only == namespace,
        None => namespaces.iter().any(|one| one == namespace),
    };
    if !namespaces.iter().any(|namespace| here(namespace)) {
        return None;
    }
    let of_tag =
        || traffic_lanes(look).filter(|(key, _, of)| *of.tag == *lane.tag && here(&key.name.namespace));
    let lines = of_tag().map(|(key, judged, of)| TrafficLaneLine {
        object: policy(key, judged),
        fallback: of.active.as_ref().map(|active| active.fallback.to_string()),
        trusts_incoming_tag: of.active.as_ref().map(|active| active.trusts_incoming_tag),
    });
    let mut entry: Vec<_> = of_tag().filter_map(|(_, _, of)| of.active.as_ref()).flat_map(entries).collect();
    entry.sort_by_key(|line| std::cmp::Reverse(line.priority));
    let (mut of_lane, mut of_baseline) = (Counts::default(), Counts::default());
    let mut known = BTreeSet::new();
    let mut services = Vec::new();
    for (name, same) in sampler.services.all().filter(|(name, _)| here(&name.namespace)) {
        let line = LaneService::of(name, same, &tag, sampler, now_nanos);
        let pods = line.members.iter().filter_map(|member| member.pod.clone());
        known.extend(pods.map(|pod| (name.namespace.to_string(), pod)));
        if !line.members.is_empty() {
            let recent = |tag| sampler.history.recent(&name.track(Part::Lane(tag)));
            of_lane.add(&recent(Some(tag.clone())).unwrap_or_default());
            of_baseline.add(&recent(None).unwrap_or_default());
        }
        services.push(line);
    }
    let services_omitted = services.len().saturating_sub(MOST_SERVICES);
    if services_omitted > 0 {
        services.sort_by_key(|line| line.members.is_empty());
        services.truncate(MOST_SERVICES);
        services.sort_by(|one, other| {
            let key = |line: &LaneService| {
                (line.service.namespace.clone(), line.service.name.clone(), line.service.port)
            };
            key(one).cmp(&key(other))
        });
    }
    let pods = look.snapshot.pods.values().filter(|pod| !pod.finished && pod.tag.as_ref() == Some(&tag));
    let mut other_pods: Vec<_> = pods
        .filter(|pod| here(&pod.namespace))
        .map(|pod| PodName { namespace: pod.namespace.to_string(), name: pod.name.to_string() })
        .filter(|pod| !known.contains(&(pod.namespace.clone(), pod.name.clone())))
        .collect();
    other_pods.sort();
    let seconds = sampler.seconds(RECENT);
    Some(LaneDetail {
        second: sampler.history.now(),
        tag: lane.tag.clone(),
        namespace: lane.namespace.clone(),
        traffic_lanes: lines.collect(),
        entry,
        lane: Share::of(&of_lane, seconds),
        baseline: Share::of(&of_baseline, seconds),
        services,
        services_omitted,
        other_pods,
        losses: losses(look, &tag, here),
        namespaces,
    })
}

/// The TrafficLanes that say a tag.
fn traffic_lanes(
    look: &Look,
) -> impl Iterator<Item = (&crate::cluster::object::Key, &crate::cluster::verdict::Judged, &OfLane)> {
    let lanes = look.verdicts.iter().filter(|(key, _)| key.kind == Kind::TrafficLane);
    lanes.filter_map(|(key, judged)| Some((key, judged, judged.lane.as_ref()?)))
}

/// The tags of a Service's endpoints, each once.
fn tags(services: &[Arc<Service>]) -> BTreeSet<&Tag> {
    services.iter().flat_map(|service| service.lanes.keys()).collect()
}

/// A pod's name, or the address outside of the cluster.
fn called(endpoint: &Endpoint) -> String {
    endpoint.pod.as_ref().map_or_else(|| endpoint.address.to_string(), ToString::to_string)
}

fn entries(lane: &Arc<Lane>) -> impl Iterator<Item = EntryLine> {
    lane.entry.iter().enumerate().map(|(rule, entry)| EntryLine {
        traffic_lane: lane.name.to_string(),
        rule,
        priority: lane.priority,
        services: lane.targets.iter().map(ToString::to_string).collect(),
        requests: entry.to_string(),
    })
}

impl Share {
    fn of(counts: &Counts, seconds: usize) -> Self {
        Self {
            rate: rounded(counts.requests as f64 / seconds.max(1) as f64),
            error_ratio: part(counts.errors, counts.requests - counts.refused.min(counts.requests)),
        }
    }
}

impl LaneService {
    fn of(name: &Name, services: &[Arc<Service>], tag: &Tag, sampler: &Sampler, now_nanos: u64) -> Self {
        let own = || {
            services.iter().flat_map(|service| &service.endpoints).filter(|one| one.tag.as_ref() == Some(tag))
        };
        let mut members: Vec<_> = services
            .iter()
            .flat_map(|service| service.endpoints.iter().map(move |endpoint| (service, endpoint)))
            .filter(|(_, endpoint)| endpoint.tag.as_ref() == Some(tag))
            .map(|(service, endpoint)| Member::of(service, endpoint, now_nanos))
            .collect();
        members.sort_by(|one, other| (&one.pod, &one.address).cmp(&(&other.pod, &other.address)));
        // The two addresses of a dual-stack pod are one member.
        members.dedup_by(|one, other| one.pod.is_some() && one.pod == other.pod);
        let members_omitted = members.len().saturating_sub(MOST_MEMBERS);
        members.truncate(MOST_MEMBERS);
        let answered = services.iter().map(|service| answered_by(service, tag, now_nanos));
        // Of two families the one that is not as it should be.
        let answered = answered.max_by_key(|(by, _)| *by != AnsweredBy::Lane);
        let (answered_by, other_lane) = answered.unwrap_or((AnsweredBy::Nobody, None));
        let request = RequestTag::from(tag);
        let fallback = services.first().map(|service| service.fallback(Some(&request)).to_string());
        let signals = |tag: Option<Tag>| {
            let track = name.track(Part::Lane(tag));
            let newest = sampler.history.last(&track, 1).and_then(|seconds| seconds[0]);
            let in_flight = newest.map_or(0, |second| u32::from(second.in_flight));
            Signals::of(sampler.history.recent(&track).as_ref(), sampler.seconds(RECENT), in_flight)
        };
        Self {
            service: name.into(),
            members,
            members_omitted,
            usable_members: distinct(own().filter(|endpoint| endpoint.is_usable())),
            answered_by,
            other_lane,
            fallback: fallback.unwrap_or_default(),
            lane: signals(Some(tag.clone())),
            baseline: signals(None),
        }
    }
}

impl Member {
    fn of(service: &Service, endpoint: &Endpoint, now_nanos: u64) -> Self {
        let policy = service.governor.policy();
        let ejected = outlier::is_ejected(policy.outlier_detection.as_ref(), endpoint, now_nanos);
        Self {
            pod: endpoint.pod.as_ref().map(ToString::to_string),
            address: endpoint.address.to_string(),
            node: endpoint.node.as_ref().map(ToString::to_string),
            state: endpoints::state(endpoint, policy, ejected, now_nanos),
        }
    }
}

/// Who gets a request of the lane, as routing decides it.
fn answered_by(service: &Service, tag: &Tag, now_nanos: u64) -> (AnsweredBy, Option<String>) {
    let request = RequestTag::from(tag);
    let fallback = service.fallback(Some(&request));
    let call = Call {
        tag: Some(&request),
        fallback,
        caller: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        tried: &[],
        within: Within::Any,
        now_nanos,
    };
    let first = route::subset(service.candidates(), &call).and_then(|subset| subset.iter().next());
    match first.map(|endpoint| &endpoint.tag) {
        Some(Some(of)) if of == tag => (AnsweredBy::Lane, None),
        Some(Some(of)) => (AnsweredBy::OtherLane, Some(of.to_string())),
        Some(None) => (AnsweredBy::Baseline, None),
        None if fallback.then == LaneFallback::Fail => (AnsweredBy::Rejected, None),
        None => (AnsweredBy::Nobody, None),
    }
}

/// Workloads that have lost tags. One that is of another lane loses none of this one: its requests have its own tag.
fn losses(look: &Look, tag: &Tag, here: impl Fn(&str) -> bool) -> Vec<LossLine> {
    let losing: Vec<_> = look.tags.iter().filter(|tags| tags.lost > 0 && here(&tags.namespace)).collect();
    if losing.is_empty() {
        return Vec::new();
    }
    let pods = look.snapshot.pods.values();
    let pods: AHashMap<_, _> = pods.map(|pod| ((&*pod.namespace, &*pod.name), pod)).collect();
    let mut lines: BTreeMap<(String, String), LossLine> = BTreeMap::new();
    for tags in losing {
        let pod = pods.get(&(&*tags.namespace, &*tags.name));
        if pod.and_then(|pod| pod.tag.as_ref()).is_some_and(|own| own != tag) {
            continue;
        }
        let namespace = tags.namespace.to_string();
        let workload = pod.map_or(&tags.name, |pod| &pod.workload).to_string();
        let line = lines.entry((namespace.clone(), workload.clone())).or_insert(LossLine {
            namespace,
            workload,
            pods: 0,
            tags_lost: 0,
            is_losing: false,
        });
        line.pods += 1;
        line.tags_lost += tags.lost;
        line.is_losing |= tags.is_losing;
    }
    lines.into_values().collect()
}
