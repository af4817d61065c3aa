//! From objects to the model.
//!
//! The builder keeps the objects and what it has made of each Service. A change makes it build anew the Services
//! that the change touches, no others; what comes out the same is the same `Arc` as before. The order in which
//! objects arrive makes no difference to what they add up to.

mod accesses;
mod claims;
mod doubt;
mod gates;
mod inbound;
mod kept;
mod keys;
mod lanes;
mod merge;
mod moment;
mod own;
#[cfg(test)]
mod own_tests;
mod policies;
mod routes;
mod service;
mod store;
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
    model::{Destination, Snapshot, Workload},
    object::{self, Key, Kind, Name, Object, Pod, Service},
    problem::Problem,
    source::{Change, Sighting},
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
    by_pod: AHashMap<Name, SmallVec<[Name; 1]>>,
    by_address: AHashMap<IpAddr, SmallVec<[Name; 1]>>,
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
        self.keys.want(&self.options.jwks, policies.map(|(_, guarded)| guarded), Nanos(moment.nanos));
        self.gates_changed |= !dirty.is_empty() && !self.gated.is_empty();
        self.find_gates(moment);
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
        objects.extend(pods.values().cloned().map(Object::Pod));
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
        for name in self.store.pods.keys().cloned().collect::<Vec<_>>() {
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

    fn set(&mut self, Sighting { object, mut problems }: Sighting) {
        let key = object.key();
        match object {
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let propagation = namespace.propagation;
                let said = (namespace.access_log, namespace.reclaim, namespace.endpoints);
                let before = self.store.namespaces.insert(name.clone(), namespace);
                let now = self.store.is_opted_in(&name);
                if before.as_ref().and_then(|before| before.propagation) != propagation {
                    self.propagation_changed(&name);
                }
                let said_before = before.as_ref().map_or((None, None, None), |before| {
                    (before.access_log, before.reclaim, before.endpoints)
                });
                if before.is_none_or(|before| (before.capture == Some(true)) != now) {
                    self.namespace_changed(&name);
                } else if said != said_before {
                    let services = self.store.services.keys().filter(|service| service.namespace == name);
                    self.dirty.extend(services.cloned());
                }
            }
            Object::Service(service) => self.set_service(&key.name, Some(service)),
            Object::EndpointSlice(slice) => {
                let services = self.store.set_slice(&key.name, Some(slice));
                self.dirty.extend(services);
            }
            Object::Pod(pod) => self.set_pod(&key.name, Some(pod)),
            Object::TrafficPolicy(mut policy) => {
                problems.extend(policies::keep_tag(&mut policy, &self.options.tag_headers));
                self.set_policy(&key.name, Some(policy));
            }
            Object::TrafficLane(lane) => self.set_lane(&key.name, Some(lane)),
            Object::AccessPolicy(policy) => self.set_access(&key.name, Some(policy)),
            Object::Route(_, route) => self.set_route(&key, Some(route)),
            Object::ReferenceGrant(grant) => self.routing.set_grant(&key.name, Some(grant)),
            Object::Mesh(mesh) => self.routing.set_mesh(&key.name, Some(mesh)),
        }
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, problems);
        }
    }

    fn unset(&mut self, key: &Key) {
        self.problems.remove(key);
        match key.kind {
            Kind::Namespace => {
                if self.store.namespaces.remove(&key.name.name).is_some() {
                    self.namespace_changed(&key.name.name);
                }
            }
            Kind::Service => self.set_service(&key.name, None),
            Kind::EndpointSlice => {
                let services = self.store.set_slice(&key.name, None);
                self.dirty.extend(services);
            }
            Kind::Pod => self.set_pod(&key.name, None),
            Kind::TrafficPolicy => self.set_policy(&key.name, None),
            Kind::TrafficLane => self.set_lane(&key.name, None),
            Kind::AccessPolicy => self.set_access(&key.name, None),
            Kind::HttpRoute | Kind::GrpcRoute => self.set_route(key, None),
            Kind::ReferenceGrant => self.routing.set_grant(&key.name, None),
            Kind::Mesh => self.routing.set_mesh(&key.name, None),
        }
    }

    fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::Namespace => {
                let names = self.store.namespaces.keys();
                names.map(|name| Name { namespace: "".into(), name: name.clone() }).collect()
            }
            Kind::Service => self.store.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.store.slices.keys().cloned().collect(),
            Kind::Pod => self.store.pods.keys().cloned().collect(),
            Kind::TrafficPolicy => self.store.policies.names().cloned().collect(),
            Kind::TrafficLane => self.store.lanes.names().cloned().collect(),
            Kind::AccessPolicy => self.store.accesses.names().cloned().collect(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::ReferenceGrant | Kind::Mesh => self.routing.names(kind),
        }
    }

    /// It came, went, or was opted in or out, which concerns all that is in it.
    fn namespace_changed(&mut self, namespace: &Arc<str>) {
        self.routing.namespace_changed();
        self.keys.changed = true;
        self.gates_changed = true;
        let services = self.store.services.keys().filter(|name| name.namespace == *namespace);
        self.dirty.extend(services.cloned());
        let pods = self.store.pods.keys().filter(|name| name.namespace == *namespace);
        for name in pods.cloned().collect::<Vec<_>>() {
            self.build_workload(&name);
            self.name_clients(self.store.pods.get(&name).into_iter().flat_map(|pod| &pod.ips));
        }
        let (policies, lanes) = (self.store.policies.names(), self.store.lanes.names());
        let own = policies
            .map(|name| (Kind::TrafficPolicy, name))
            .chain(lanes.map(|name| (Kind::TrafficLane, name)))
            .chain(self.store.accesses.names().map(|name| (Kind::AccessPolicy, name)));
        let here = own.filter(|(_, name)| name.namespace == *namespace);
        self.unjudged.extend(here.map(|(kind, name)| Key { kind, name: name.clone() }));
    }

    /// Its pods may ask for something else now at their ports.
    fn propagation_changed(&mut self, namespace: &Arc<str>) {
        let pods = self.store.pods.keys().filter(|name| name.namespace == *namespace);
        for name in pods.cloned().collect::<Vec<_>>() {
            self.pod_changed(&name, &[]);
        }
    }

    fn set_service(&mut self, name: &Name, service: Option<Service>) {
        if self.store.services.get(name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.store.services.insert(name.clone(), service),
            None => self.store.services.remove(name),
        };
        self.dirty.insert(name.clone());
        self.dirty.extend(self.routing.successors(name));
        let policies = self.store.policies.of(name).map(|name| (Kind::TrafficPolicy, name));
        let lanes = self.store.lanes.targeting(name).map(|name| (Kind::TrafficLane, name));
        let accesses = self.store.accesses.of(name).map(|name| (Kind::AccessPolicy, name));
        let own = policies.chain(lanes).chain(accesses);
        self.unjudged.extend(own.map(|(kind, name)| Key { kind, name: name.clone() }));
    }

    fn set_route(&mut self, key: &Key, route: Option<object::Route>) {
        let policies: Vec<_> = self.store.policies.of_route(key).cloned().collect();
        let (before, services) = (self.routing.handed_on(key), self.routing.services_of(key));
        self.routing.set(key, route);
        // Weights change all the time, and nothing of a Service with them.
        if policies.is_empty() && self.routing.handed_on(key) == before {
            return;
        }
        self.dirty.extend(services);
        self.dirty.extend(self.routing.services_of(key));
        self.unjudged.extend(policies.into_iter().map(|name| Key { kind: Kind::TrafficPolicy, name }));
    }

    fn set_pod(&mut self, name: &Name, pod: Option<Arc<Pod>>) {
        if self.store.pods.get(name) == pod.as_ref() {
            return;
        }
        let before = self.store.set_pod(name, pod);
        self.note_gate(name);
        self.select(name);
        self.pod_changed(name, before.as_ref().map(|pod| &*pod.ips).unwrap_or_default());
    }

    /// What was built from a pod is built anew, also from the addresses that it had.
    fn pod_changed(&mut self, name: &Name, had: &[IpAddr]) {
        self.dirty.extend(self.by_pod.get(name).into_iter().flatten().cloned());
        let has = self.store.pods.get(name).map(|pod| &*pod.ips).unwrap_or_default();
        for ip in had.iter().chain(has) {
            self.dirty.extend(self.by_address.get(ip).into_iter().flatten().cloned());
        }
        self.name_clients(had.iter().chain(has));
        self.build_workload(name);
    }

    fn build_workload(&mut self, name: &Name) {
        let opted_in = self.store.is_opted_in(&name.namespace);
        // Those of other nodes matter as endpoints only, and there are very many of them. One without a node may yet
        // become one of this.
        let mine =
            |pod: &Pod| self.options.node.is_none() || pod.node.is_none() || pod.node == self.options.node;
        let new = self.store.pods.get(name).filter(|pod| opted_in && mine(pod)).and_then(|pod| {
            let here = self.options.node.is_some() && pod.node == self.options.node;
            Some(Workload {
                uid: pod.cgroup_uid.clone()?,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                workload: pod.workload.as_ref().unwrap_or(&name.name).clone(),
                labels: pod.labels.clone(),
                tag: self.store.tag_of(pod).cloned(),
                ips: pod.ips.clone(),
                node: pod.node.clone(),
                zone: pod.zone.clone().or_else(|| self.options.zone.clone().filter(|_| here)),
                host_network: pod.host_network,
                capture: pod.capture.unwrap_or(true) && !pod.host_network,
                remembers_traces: self.store.remembers_traces(pod),
                ports: pod.ports.clone(),
                probes: pod.probes.clone(),
                own_proxy: pod.own_proxy,
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
            self.by_pod.entry(pod.clone()).or_default().push(name.clone());
        }
        for address in &built.used_addresses {
            self.by_address.entry(*address).or_default().push(name.clone());
        }
        if !built.claims_same(&claims) {
            self.reclaim(&claims, &built.claims);
        }
        self.count(&built, |count, of| *count += of);
        if built.has_unknown() || !built.problems.is_empty() {
            self.troubled.insert(name.clone());
        } else {
            self.troubled.remove(&name);
        }
        self.built.insert(name, built);
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

fn unlink<K: Hash + Eq>(index: &mut AHashMap<K, SmallVec<[Name; 1]>>, key: &K, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.retain(|other| other != name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
