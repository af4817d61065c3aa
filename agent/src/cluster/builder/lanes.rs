//! What TrafficLanes ask for: which pods are of a lane, which requests enter it, and what those get that it cannot serve.
//!
//! A pod's own label goes before all lanes. Of several lanes that select a pod the oldest has it, and of several lanes
//! with one tag the oldest says what the fallback is. A lane is about the pods and Services of its own namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ahash::AHashMap;
use smallvec::SmallVec;

use super::{kept::Kept, policies::look_for};
use crate::{
    cluster::{
        object::{Age, Name, Pod, Service, TrafficLane},
        verdict::{Reason, Shortfall, Verdict},
    },
    govern::{
        entry::Entry,
        policy::{Detour, Lane, LaneEndpoint, Target},
        tag::Tag,
    },
};

#[derive(Default)]
pub(super) struct Lanes {
    all: AHashMap<Name, Kept<Arc<Lane>>>,
    namespaces: AHashMap<Arc<str>, OfNamespace>,
    /// Pods that lanes select.
    pods: AHashMap<Name, Selected>,
    counts: AHashMap<Name, Counts>,
}

/// The lanes of a namespace.
#[derive(Default)]
struct OfNamespace {
    lanes: BTreeSet<Age>,
    detours: Detours,
    /// The entry rules of lanes that target no Service in particular. Most Services have just these, and share them.
    common: Arc<Entry>,
}

/// Where the requests of lanes go that cannot answer them.
#[derive(Default, PartialEq, Eq)]
struct Detours {
    /// At Services that no lane names.
    common: Arc<BTreeMap<Tag, Detour>>,
    /// At those that lanes name.
    named: BTreeMap<Arc<str>, Arc<BTreeMap<Tag, Detour>>>,
}

/// Who selects a pod.
#[derive(Clone, PartialEq, Eq)]
struct Selected {
    by: Name,
    tag: Tag,
    /// Those that would give it another tag.
    losers: SmallVec<[Name; 1]>,
}

/// How a lane fares with the pods that it selects.
#[derive(Default)]
struct Counts {
    pods: usize,
    /// Those that another lane has.
    lost: BTreeMap<Name, usize>,
}

/// What a change of a lane concerns.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Concerned {
    /// All pods of its namespace have to be looked at.
    pub(super) pods: bool,
    /// So have these Services of its namespace.
    pub(super) services: Services,
    /// The verdicts on the other lanes of its namespace may change.
    pub(super) lanes: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Services {
    #[default]
    None,
    Some(BTreeSet<Arc<str>>),
    All,
}

impl Lanes {
    /// As they are to be kept: see [`Kept::versions`].
    pub(super) fn objects(&self) -> impl Iterator<Item = TrafficLane> {
        self.all.values().flat_map(Kept::versions)
    }

    /// Puts a lane in, or takes it out. The pods that are concerned must be shown to [`Lanes::select`].
    pub(super) fn set(&mut self, name: &Name, lane: Option<TrafficLane>) -> Option<Concerned> {
        if self.all.get(name).map(|kept| &kept.object) == lane.as_ref() {
            return None;
        }
        let before = self.all.remove(name);
        let was = before.as_ref().and_then(|kept| Some((kept.age(), kept.asked()?.clone())));
        let after = lane.map(|lane| Kept::new(lane, before));
        let is = after.as_ref().and_then(|kept| Some((kept.age(), kept.asked()?.clone())));
        if let Some(after) = after {
            self.all.insert(name.clone(), after);
        }
        if was == is {
            return Some(Concerned::default());
        }
        let namespace = self.namespaces.entry(name.namespace.clone()).or_default();
        if let Some((age, _)) = &was {
            namespace.lanes.remove(age);
        }
        if let Some((age, _)) = &is {
            namespace.lanes.insert(age.clone());
        }
        let detours = Detours::of(&namespace.lanes, &self.all);
        let fallback_changes = namespace.detours != detours;
        if fallback_changes {
            namespace.detours = detours;
        }
        let everywhere = asked(&namespace.lanes, &self.all).filter(|lane| lane.targets.is_empty());
        namespace.common = Arc::new(Entry::new(everywhere));
        if namespace.lanes.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
        let selects = |side: &Option<(Age, Arc<Lane>)>| {
            side.as_ref()
                .and_then(|(age, lane)| Some((age.clone(), lane.tag.clone(), lane.selector.clone()?)))
        };
        let enters = |side: &Option<(Age, Arc<Lane>)>| {
            let (age, lane) = side.as_ref().filter(|(_, lane)| !lane.entry.is_empty())?;
            let rules = (lane.targets.clone(), lane.entry.clone(), lane.priority, lane.trusts_incoming_tag);
            Some((age.clone(), lane.tag.clone(), rules))
        };
        let services = if fallback_changes {
            Services::All
        } else if enters(&was) == enters(&is) {
            Services::None
        } else {
            let sides = [&was, &is].into_iter().flatten().filter(|(_, lane)| !lane.entry.is_empty());
            sides.fold(Services::None, |services, (_, lane)| services.and(&lane.targets))
        };
        // Who has them, and what they are called.
        let outside = |side: &Option<(Age, Arc<Lane>)>| {
            let (age, lane) = side.as_ref().filter(|(_, lane)| !lane.endpoints.is_empty())?;
            Some((age.clone(), lane.tag.clone(), lane.endpoints.clone()))
        };
        let services = if outside(&was) == outside(&is) {
            services
        } else {
            let sides = [&was, &is].into_iter().flatten();
            let targets: Vec<_> =
                sides.flat_map(|(_, lane)| &lane.endpoints).map(|endpoint| endpoint.target.clone()).collect();
            services.and(&targets)
        };
        Some(Concerned { pods: selects(&was) != selects(&is), services, lanes: true })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.all.keys()
    }

    pub(super) fn get(&self, name: &Name) -> Option<&TrafficLane> {
        self.all.get(name).map(|kept| &kept.object)
    }

    /// What is active of a lane.
    pub(super) fn active(&self, name: &Name) -> Option<&Arc<Lane>> {
        self.all.get(name)?.asked()
    }

    /// The lanes of a namespace, oldest first.
    pub(super) fn of<'s>(&'s self, namespace: &str) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.ages(namespace).map(|age| &age.name)
    }

    /// The tag that a lane gives a pod.
    pub(super) fn tag_of(&self, pod: &Name) -> Option<&Tag> {
        self.pods.get(pod).map(|selected| &selected.tag)
    }

    /// Looks which lane has a pod (`None`: it is gone). Tells whether its tag is another now, and the lanes whose verdicts
    /// may be.
    pub(super) fn select(&mut self, name: &Name, pod: Option<&Pod>) -> (bool, SmallVec<[Name; 2]>) {
        let after = pod.and_then(|pod| self.selected(pod));
        let mut lanes = SmallVec::new();
        let before = match &after {
            Some(after) if self.pods.get(name) == Some(after) => return (false, lanes),
            Some(after) => self.pods.insert(name.clone(), after.clone()),
            None => self.pods.remove(name),
        };
        let new_tag =
            before.as_ref().map(|selected| &selected.tag) != after.as_ref().map(|selected| &selected.tag);
        if let Some(before) = before {
            self.count(&before, false, &mut lanes);
        }
        if let Some(after) = after {
            self.count(&after, true, &mut lanes);
        }
        (new_tag, lanes)
    }

    /// The entry rules of a service port.
    pub(super) fn entry(&self, service: &Name, port: Option<&Arc<str>>) -> Arc<Entry> {
        let here = |target: &Target| {
            target.service == service.name && (target.port.is_none() || target.port.as_ref() == port)
        };
        let Some(namespace) = self.namespaces.get(&service.namespace) else { return Arc::default() };
        let lanes = || asked(&namespace.lanes, &self.all);
        if lanes().any(|lane| lane.targets.iter().any(here)) {
            let lanes = lanes().filter(|lane| lane.targets.is_empty() || lane.targets.iter().any(here));
            return Arc::new(Entry::new(lanes));
        }
        namespace.common.clone()
    }

    /// The endpoints outside the cluster that lanes have for a service port, each address once.
    pub(super) fn endpoints(
        &self,
        service: &Name,
        port: Option<&Arc<str>>,
    ) -> impl Iterator<Item = (SocketAddr, &Tag)> {
        let here = move |target: &Target, service: &Name| {
            target.service == service.name && (target.port.is_none() || target.port.as_ref() == port)
        };
        let mut all: BTreeMap<SocketAddr, &Tag> = BTreeMap::new();
        for lane in self.in_force(&service.namespace) {
            for endpoint in lane.endpoints.iter().filter(|endpoint| here(&endpoint.target, service)) {
                all.entry(endpoint.address).or_insert(&lane.tag);
            }
        }
        all.into_iter()
    }

    /// Where requests of lanes go that cannot answer at a Service.
    pub(super) fn detours(&self, service: &Name) -> Arc<BTreeMap<Tag, Detour>> {
        let Some(namespace) = self.namespaces.get(&service.namespace) else { return Arc::default() };
        let Detours { common, named } = &namespace.detours;
        named.get(&service.name).unwrap_or(common).clone()
    }

    pub(super) fn verdict<'s>(
        &self,
        name: &Name,
        service: impl Fn(&Name) -> Option<&'s Service>,
    ) -> Option<Verdict> {
        let kept = self.all.get(name)?;
        if let Some(invalid) = kept.invalid() {
            return Some(invalid);
        }
        let lane = kept.asked()?;
        let mut in_force = false;
        let mut shortfalls = Vec::new();
        let mut conflict = |message| shortfalls.push(Shortfall { reason: Reason::Conflicted, message });
        if let Some(counts) = self.counts.get(name) {
            in_force |= counts.pods > 0;
            for winner in counts.lost.keys() {
                conflict(format!("TrafficLane {winner}, which is older, has pods that it selects as well"));
            }
        }
        // Nobody is in the way of a lane whose pods are still to come, or have the label.
        in_force |= shortfalls.is_empty();
        let first = self.in_force(&name.namespace).find(|other| other.tag == lane.tag);
        let falls_back = |lane: &Lane| (lane.fallback.clone(), lane.service_fallbacks.clone());
        if let Some(first) = first.filter(|first| falls_back(first) != falls_back(lane)) {
            let message = format!(
                "TrafficLane {}, which is older and has the same tag, says fallback: {}",
                first.name, first.fallback
            );
            shortfalls.push(Shortfall { reason: Reason::Conflicted, message });
        }
        if !lane.entry.is_empty() {
            in_force |= lane.targets.is_empty();
            for target in &lane.targets {
                let at = Name { namespace: name.namespace.clone(), name: target.service.clone() };
                match look_for(target, service(&at)) {
                    Ok(()) => in_force = true,
                    Err(missing) => shortfalls.push(missing),
                }
            }
        }
        for LaneEndpoint { target, .. } in &lane.endpoints {
            let at = Name { namespace: name.namespace.clone(), name: target.service.clone() };
            if let Err(missing) = look_for(target, service(&at)) {
                shortfalls.push(missing);
            }
        }
        let what = || format!("lane {} is active", lane.tag);
        Some(Verdict::of(in_force.then(what), &shortfalls))
    }

    /// Lanes whose entry rules or endpoints are about a Service, by name.
    pub(super) fn targeting<'s>(&'s self, service: &'s Name) -> impl Iterator<Item = &'s Name> {
        self.ages(&service.namespace).map(|age| &age.name).filter(|name| {
            let asked = self.all.get(*name).and_then(Kept::asked);
            asked.is_some_and(|lane| {
                let outside = lane.endpoints.iter().map(|endpoint| &endpoint.target);
                lane.targets.iter().chain(outside).any(|target| target.service == service.name)
            })
        })
    }

    fn ages<'s>(&'s self, namespace: &str) -> impl Iterator<Item = &'s Age> + use<'s> {
        self.namespaces.get(namespace).into_iter().flat_map(|namespace| &namespace.lanes)
    }

    fn in_force<'s>(&'s self, namespace: &str) -> impl Iterator<Item = &'s Arc<Lane>> + use<'s> {
        self.ages(namespace).filter_map(|age| self.all.get(&age.name)?.asked())
    }

    fn selected(&self, pod: &Pod) -> Option<Selected> {
        if pod.tag.is_some() {
            return None;
        }
        let mut selecting = self.ages(&pod.name.namespace).filter_map(|age| {
            let lane = self.all.get(&age.name)?.asked()?;
            lane.selector.as_ref().filter(|selector| selector.selects(|key| pod.labels.get(key)))?;
            Some((&age.name, lane))
        });
        let (by, lane) = selecting.next()?;
        let losers =
            selecting.filter(|(_, loser)| loser.tag != lane.tag).map(|(name, _)| name.clone()).collect();
        Some(Selected { by: by.clone(), tag: lane.tag.clone(), losers })
    }

    /// Counts a pod, or no longer.
    fn count(&mut self, selected: &Selected, more: bool, lanes: &mut SmallVec<[Name; 2]>) {
        let step = |count: &mut usize| if more { *count += 1 } else { *count -= 1 };
        let winner = self.counts.entry(selected.by.clone()).or_default();
        step(&mut winner.pods);
        lanes.push(selected.by.clone());
        for loser in &selected.losers {
            let lost = &mut self.counts.entry(loser.clone()).or_default().lost;
            let count = lost.entry(selected.by.clone()).or_default();
            step(count);
            if *count == 0 {
                lost.remove(&selected.by);
            }
            lanes.push(loser.clone());
        }
        for lane in std::iter::once(&selected.by).chain(&selected.losers) {
            if self.counts.get(lane).is_some_and(|counts| counts.pods == 0 && counts.lost.is_empty()) {
                self.counts.remove(lane);
            }
        }
    }
}

impl Services {
    /// With those that these targets are about.
    fn and(self, targets: &[Target]) -> Self {
        let named = targets.iter().map(|target| target.service.clone());
        match self {
            _ if targets.is_empty() => Self::All,
            Self::All => Self::All,
            Self::None => Self::Some(named.collect()),
            Self::Some(services) => Self::Some(services.into_iter().chain(named).collect()),
        }
    }
}

/// What lanes ask for, the oldest first.
fn asked<'s>(
    lanes: &'s BTreeSet<Age>,
    all: &'s AHashMap<Name, Kept<Arc<Lane>>>,
) -> impl Iterator<Item = &'s Arc<Lane>> {
    lanes.iter().filter_map(|age| all.get(&age.name)?.asked())
}

impl Detours {
    fn of(lanes: &BTreeSet<Age>, all: &AHashMap<Name, Kept<Arc<Lane>>>) -> Self {
        let named: BTreeSet<_> =
            asked(lanes, all).flat_map(|lane| lane.service_fallbacks.keys()).cloned().collect();
        // The oldest lane of each tag says it; what falls back to the baseline need not be said.
        let at = |service: Option<&Arc<str>>| {
            let mut first = BTreeMap::new();
            for lane in asked(lanes, all) {
                let own = service.and_then(|service| lane.service_fallbacks.get(service));
                first.entry(lane.tag.clone()).or_insert_with(|| own.unwrap_or(&lane.fallback).clone());
            }
            first.retain(|_, detour| *detour != Detour::default());
            Arc::new(first)
        };
        let common = at(None);
        Self {
            named: named.into_iter().map(|service| (service.clone(), at(Some(&service)))).collect(),
            common,
        }
    }
}
