//! From objects to the model.
//!
//! The builder keeps the objects and what it has made of each Service. A change makes it build anew the Services
//! that the change touches, no others; what comes out the same is the same `Arc` as before. The order in which
//! objects arrive makes no difference to what they add up to.

mod accesses;
mod claims;
mod doubt;
mod families;
mod firsts;
mod gates;
mod inbound;
mod kept;
mod keys;
mod lanes;
mod loads;
mod merge;
mod moment;
mod own;
#[cfg(test)]
mod own_tests;
mod part;
mod pods;
mod policies;
mod routes;
mod service;
mod store;
mod take;
#[cfg(test)]
mod tests;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use ahash::{AHashMap, AHashSet};
use smallvec::SmallVec;
use tokio::time::Instant;

pub use self::topology::Options;
use self::{
    claims::Claims,
    inbound::Guards,
    keys::KeySources,
    moment::Moment,
    routes::{Look, Routing},
    service::{Built, Owner, Rank},
    store::Store,
};
use super::{
    clients::Clients,
    first_request::Firsts,
    model::{Destination, Snapshot, Workload},
    object::{Key, Kind, Name, Object, Pod},
    problem::Problem,
    source::Change,
    verdict::{GatewayVerdicts, Reason, Verdict, Verdicts},
    warm_gate::Gates,
};
use crate::clock::Nanos;

pub struct Builder {
    options: Options,
    store: Store,
    /// What was left out of the objects.
    problems: BTreeMap<Key, Vec<Problem>>,
    /// Services to be built anew.
    dirty: AHashSet<Name>,
    /// Objects of Sluice's own kinds whose verdict may be another.
    unjudged: BTreeSet<Key>,
    verdicts: Arc<Verdicts>,
    gateway_verdicts: Arc<GatewayVerdicts>,
    built: AHashMap<Name, Built>,
    /// Services by the pods and the addresses that they were built from.
    by_pod: AHashMap<Name, Services>,
    by_address: AHashMap<IpAddr, Services>,
    destinations: Claims<SocketAddr, Owner, Destination>,
    workloads: AHashMap<Name, Arc<Workload>>,
    by_uid: Claims<Arc<str>, Name, Arc<Workload>>,
    routing: Routing,
    guards: Guards,
    keys: KeySources,
    clients: Arc<Clients>,
    /// Pods of this node with the readiness gate `sluice.dev/warm`.
    gated: AHashSet<Name>,
    gates: Arc<Gates>,
    /// What `gates` comes from may be another.
    gates_changed: bool,
    /// Pods of this node whose first request is to be told, and the Services that they come from.
    firsts: Arc<Firsts>,
    starting: AHashSet<Name>,
    /// Kinds on which the source has not said its first word.
    awaited: BTreeSet<Kind>,
    generation: u64,
    changed: bool,
    /// Of services and their endpoints.
    counts: Counts,
    /// Services with something to tell.
    troubled: BTreeSet<Name>,
    /// What there is to say of verdicts, and of which.
    judged: (Arc<Verdicts>, Vec<Problem>),
}

/// In one word each, for all pods of a cluster have this.
type Services = SmallVec<[Arc<Name>; 1]>;

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Namespaces that are opted in.
    pub namespaces: usize,
    /// Service ports that are governed (those of a dual-stack Service once a family).
    pub services: usize,
    /// Their endpoints.
    pub endpoints: usize,
    /// Governed addresses.
    pub destinations: usize,
    /// Pods in the model.
    pub pods: usize,
}

impl Builder {
    pub fn new(options: Options) -> Self {
        Self {
            store: Store::new(options.warm_gates),
            options,
            problems: BTreeMap::new(),
            dirty: AHashSet::new(),
            unjudged: BTreeSet::new(),
            verdicts: Arc::default(),
            gateway_verdicts: Arc::default(),
            built: AHashMap::new(),
            by_pod: AHashMap::new(),
            by_address: AHashMap::new(),
            destinations: Claims::default(),
            workloads: AHashMap::new(),
            by_uid: Claims::default(),
            routing: Routing::default(),
            guards: Guards::default(),
            keys: KeySources::default(),
            clients: Arc::default(),
            gated: AHashSet::new(),
            gates: Arc::default(),
            gates_changed: true,
            firsts: Arc::default(),
            starting: AHashSet::new(),
            awaited: Kind::ALL.into(),
            generation: 0,
            changed: false,
            counts: Counts::default(),
            troubled: BTreeSet::new(),
            judged: Default::default(),
        }
    }

    /// Takes a change in. Nothing is built before [`Builder::build`].
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Applied(sighting) => self.set(sighting),
            Change::Deleted(key) => self.unset(&key),
            Change::Restarted(kind, sightings) => {
                // Those that stay are never gone in between.
                let stay: AHashSet<_> = sightings.iter().map(|sighting| sighting.object.key().name).collect();
                for name in self.names(kind).into_iter().filter(|name| !stay.contains(name)) {
                    self.unset(&Key { kind, name });
                }
                for sighting in sightings {
                    self.set(sighting);
                }
                self.awaited.remove(&kind);
            }
        }
    }

    /// Whether the source has spoken of all kinds.
    pub fn is_synced(&self) -> bool {
        self.awaited.is_empty()
    }

    /// The next snapshot; `None` if it would be no different, or the source is still at its first words.
    pub fn build(&mut self, now: Instant) -> Option<Snapshot> {
        if !self.is_synced() {
            return None;
        }
        let moment = Moment { instant: now, nanos: Nanos::at(now.into_std()).0, wall: SystemTime::now() };
        let dirty = std::mem::take(&mut self.dirty);
        for name in &dirty {
            self.build_service(name.clone(), moment);
        }
        self.changed |= self.guard(dirty.iter(), moment.nanos);
        let look = Look { store: &self.store, built: &self.built };
        self.changed |= self.routing.build(look, &dirty);
        let enrolled = |name: &&Name| self.store.is_opted_in(&name.namespace);
        let policies = self.store.accesses.all_asked().filter(|(name, _)| enrolled(name));
        self.keys.want(&self.options.jwks, policies, Nanos(moment.nanos));
        self.gates_changed |= !dirty.is_empty() && !self.gated.is_empty();
        self.find_gates(moment);
        self.find_firsts(&dirty);
        self.judge();
        self.tell_verdicts();
        self.judge_gateway();
        if !self.changed && self.generation > 0 {
            return None;
        }
        self.changed = false;
        self.generation += 1;
        Some(Snapshot {
            generation: self.generation,
            destinations: self.destinations.winners().clone(),
            pods: self.by_uid.winners().clone(),
            routes: self.routing.routed().clone(),
            inbound: self.guards.ports.clone(),
            clients: self.clients.clone(),
        })
    }

    /// Everything that it knows, from which another builder comes to the same model.
    pub fn objects(&self) -> Vec<Object> {
        let Store { namespaces, services, slices, pods, policies, lanes, accesses, .. } = &self.store;
        let mut objects: Vec<_> = namespaces.values().cloned().map(Object::Namespace).collect();
        objects.extend(services.values().cloned().map(Object::Service));
        objects.extend(slices.values().cloned().map(Object::EndpointSlice));
        objects.extend(pods.iter().cloned().map(Object::Pod));
        objects.extend(policies.objects().map(Object::TrafficPolicy));
        objects.extend(lanes.objects().map(Object::TrafficLane));
        objects.extend(accesses.objects().map(Object::AccessPolicy));
        objects.extend(self.routing.objects());
        objects
    }

    pub fn zone(&self) -> Option<&Arc<str>> {
        self.options.zone.as_ref()
    }

    /// The agent's zone has become known, or is another than was thought.
    pub fn set_zone(&mut self, zone: Option<Arc<str>>) {
        if self.options.zone == zone {
            return;
        }
        self.options.zone = zone;
        self.dirty.extend(self.store.services.keys().cloned());
        for name in self.store.pods.names().cloned().collect::<Vec<_>>() {
            self.build_workload(&name);
        }
    }

    /// What became of each TrafficPolicy and TrafficLane, as of the last [`Builder::build`].
    pub fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// What is to be said of objects of Gateway API, as of the last [`Builder::build`].
    pub fn gateway_verdicts(&self) -> &Arc<GatewayVerdicts> {
        &self.gateway_verdicts
    }

    /// Lets go of what was kept for a while; true if that may change something, and [`Builder::build`] is due.
    pub fn forget(&mut self, now: Instant) -> bool {
        self.store.forget_labels();
        for (name, built) in &mut self.built {
            if built.forget(now) {
                self.dirty.insert(name.clone());
            }
        }
        // What is wrong for long enough is told.
        let unknown = |name: &Name| self.built.get(name).is_some_and(Built::has_unknown);
        !self.dirty.is_empty() || self.troubled.iter().any(unknown)
    }

    /// Everything that is wrong at the moment with what has been built.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let stripped = self.problems.values().flatten().cloned();
        let troubled = || self.troubled.iter().filter_map(|name| self.built.get_key_value(name));
        let built = troubled().flat_map(|(_, built)| &built.problems).cloned();
        let unknown = troubled().filter_map(|(name, built)| built.unknown(name, now));
        let addresses = self.destinations.contested().filter_map(|(address, winner, loser)| {
            let ((_, first, _), (rank, name, _)) = (&winner.0, &loser.0);
            // Pods may be in several Services; only a ClusterIP belongs to one.
            (*rank == Rank::ClusterIp).then(|| {
                let key = Key { kind: Kind::Service, name: name.clone() };
                Problem::of(key, format!("{address} is Service {first}'s already; it is left out here"))
                    .at("spec.clusterIP")
            })
        });
        let uids = self.by_uid.contested().map(|(uid, winner, loser)| {
            let key = Key { kind: Kind::Pod, name: loser.0.clone() };
            Problem::of(key, format!("{uid:?} is Pod {}'s already; this pod is not enrolled", winner.0))
                .at("metadata.uid")
        });
        let mut problems: Vec<_> = stripped
            .chain(built)
            .chain(unknown)
            .chain(addresses)
            .chain(uids)
            .chain(self.judged.1.iter().cloned())
            .chain(self.routing.problems())
            .chain(self.unset_gates())
            .collect();
        problems.sort();
        problems
    }

    /// Finds out what there is to say of verdicts, if they are others.
    fn tell_verdicts(&mut self) {
        if Arc::ptr_eq(&self.judged.0, &self.verdicts) {
            return;
        }
        // What makes no sense has been told field by field.
        let told = self.verdicts.iter().filter_map(|(key, judged)| {
            let Verdict { accepted, programmed, .. } = &*judged.verdict;
            let short = [accepted, programmed].into_iter().find(|condition| !condition.holds)?;
            // And in a namespace that is not enrolled nothing is wrong with the object: its status says it.
            let is_told = !matches!(short.reason, Reason::Invalid | Reason::NamespaceNotEnrolled);
            is_told.then(|| Problem::of(key.clone(), format!("{}: {}", short.reason.as_str(), short.message)))
        });
        self.judged = (self.verdicts.clone(), told.collect());
    }

    pub fn counts(&self) -> Counts {
        Counts {
            namespaces: self
                .store
                .namespaces
                .values()
                .filter(|namespace| namespace.capture == Some(true))
                .count(),
            destinations: self.destinations.len(),
            pods: self.by_uid.len(),
            ..self.counts
        }
    }

    fn build_workload(&mut self, name: &Name) {
        let opted_in = self.store.is_opted_in(&name.namespace);
        // Those of other nodes matter as endpoints only, and there are very many of them. One without a node may yet
        // become one of this.
        let mine =
            |pod: &Pod| self.options.node.is_none() || pod.node.is_none() || pod.node == self.options.node;
        let new = self.store.pods.get(name).filter(|pod| opted_in && mine(pod)).and_then(|pod| {
            let here = self.options.node.is_some() && pod.node == self.options.node;
            let for_node = pod.for_node.as_deref()?;
            Some(Workload {
                uid: for_node.cgroup_uid.clone()?,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                workload: pod.workload.as_ref().unwrap_or(&name.name).clone(),
                labels: pod.labels.clone(),
                tag: self.store.tag_of(pod).cloned(),
                ips: pod.ips.to_vec(),
                node: pod.node.clone(),
                zone: pod.zone.clone().or_else(|| self.options.zone.clone().filter(|_| here)),
                host_network: pod.host_network,
                capture: pod.capture.unwrap_or(true) && !pod.host_network,
                propagation: self.store.propagation(pod),
                ports: for_node.ports.clone(),
                probes: for_node.probes.clone(),
                own_proxy: for_node.own_proxy,
                terminating: pod.terminating,
                finished: pod.finished,
            })
        });
        let before = self.workloads.get(name);
        if before.map(|before| &**before) == new.as_ref() {
            return;
        }
        self.changed = true;
        if let Some(before) = self.workloads.remove(name) {
            self.by_uid.remove(&before.uid, name);
        }
        if let Some(new) = new.map(Arc::new) {
            self.by_uid.insert(new.uid.clone(), name.clone(), new.clone());
            self.workloads.insert(name.clone(), new);
        }
    }

    fn build_service(&mut self, name: Name, now: Moment) {
        let name = Arc::new(name);
        let before = self.built.remove(&name).unwrap_or_default();
        self.count(&before, |count, of| *count -= of);
        for pod in &before.used_pods {
            unlink(&mut self.by_pod, pod, &name);
        }
        for address in &before.used_addresses {
            unlink(&mut self.by_address, address, &name);
        }
        let claims = before.claims.clone();
        let opted_in = self.store.is_opted_in(&name.namespace);
        let Some(service) = self.store.services.get(&name).filter(|_| opted_in) else {
            self.reclaim(&claims, &[]);
            self.troubled.remove(&name);
            return;
        };
        let built = Built::build(service, &self.store, &self.options, &self.routing, before, now);
        for pod in &built.used_pods {
            link(&mut self.by_pod, pod, &name);
        }
        for address in &built.used_addresses {
            link(&mut self.by_address, address, &name);
        }
        if !built.claims_same(&claims) {
            self.reclaim(&claims, &built.claims);
        }
        self.count(&built, |count, of| *count += of);
        if built.has_unknown() || !built.problems.is_empty() {
            self.troubled.insert(Name::clone(&name));
        } else {
            self.troubled.remove(&name);
        }
        self.built.insert(Name::clone(&name), built);
    }

    fn count(&mut self, built: &Built, change: impl Fn(&mut usize, usize)) {
        for service in built.services() {
            change(&mut self.counts.services, 1);
            change(&mut self.counts.endpoints, service.endpoints.len());
        }
    }

    fn reclaim(
        &mut self,
        before: &[(SocketAddr, Owner, Destination)],
        after: &[(SocketAddr, Owner, Destination)],
    ) {
        self.changed |= !(before.is_empty() && after.is_empty());
        for (address, owner, _) in before {
            self.destinations.remove(address, owner);
        }
        for (address, owner, destination) in after {
            self.destinations.insert(*address, owner.clone(), destination.clone());
        }
    }
}

fn link<K: Hash + Eq + Clone>(index: &mut AHashMap<K, Services>, key: &K, name: &Arc<Name>) {
    let names = index.entry(key.clone()).or_default();
    // One Service after the other: it is the last, if any.
    if names.last() != Some(name) {
        names.push(name.clone());
    }
}

fn unlink<K: Hash + Eq>(index: &mut AHashMap<K, Services>, key: &K, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.retain(|other| **other != *name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
