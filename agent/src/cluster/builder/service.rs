//! From one Service, its slices and its pods to what the model has of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use tokio::time::Instant;

use super::{
    families,
    loads::LoadKey,
    merge::{Described, merge},
    moment::Moment,
    part::{Known, Part, Rules},
    policies::Called,
    routes::Routing,
    store::Store,
    topology::Options,
};
use crate::{
    cluster::{
        cause::Cause,
        model::{self, Destination},
        object::{EndpointSlice, Frontend, Key, Kind, Name, Service, ServicePort, SliceEndpoint},
        problem::Problem,
    },
    govern::{endpoint::Endpoint, governor::Governor},
};

/// A pod's end is often seen a moment before that of its endpoint, and an endpoint a moment before its pod: that is
/// nothing to speak of.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

/// Who claims an address: by rank, then by name, then by port.
pub(super) type Owner = (Rank, Name, usize);

/// How good the claim to an address is. Those of endpoints that clients may call themselves come last: first those of Services that
/// a policy or a lane is about, then the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    ClusterIp,
    Headless,
    AskedFor(Option<i64>),
    Governed(Option<i64>),
}

/// What was built of a Service.
#[derive(Default)]
pub(super) struct Built {
    pub(super) claims: Vec<(SocketAddr, Owner, Destination)>,
    /// What the outcome depends on, besides the Service and its slices; some of it more than once.
    pub(super) used_pods: Vec<Name>,
    pub(super) used_addresses: Vec<IpAddr>,
    pub(super) problems: Vec<Problem>,
    /// Endpoints whose pod is not there, and since when.
    unknown: Vec<Unknown>,
    /// By port.
    governors: AHashMap<u16, Arc<Governor>>,
    /// By port and family.
    parts: Vec<((u16, bool), Part)>,
}

/// An endpoint whose pod is not there.
struct Unknown {
    since: Instant,
    address: SocketAddr,
    pod: String,
}

impl Built {
    /// Builds anew. What is as before is shared with `before`.
    pub(super) fn build(
        service: &Service,
        store: &Store,
        options: &Options,
        routing: &Routing,
        mut before: Self,
        now: Moment,
    ) -> Self {
        let mut built = Self::default();
        let endpoints = || store.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
        built.used_pods.reserve_exact(endpoints().filter(|endpoint| endpoint.pod.is_some()).count());
        let slices: Vec<(&EndpointSlice, Vec<Described<'_>>)> = store
            .slices_of(&service.name)
            .map(|slice| (slice, slice.endpoints.iter().map(|e| built.describe(e, service, store)).collect()))
            .collect();
        let families: &[bool] = match &service.frontend {
            Frontend::None => &[],
            Frontend::Headless => &[false, true],
            Frontend::ClusterIps(ips) => {
                match (ips.iter().any(IpAddr::is_ipv4), ips.iter().any(IpAddr::is_ipv6)) {
                    (true, true) => &[false, true],
                    (false, true) => &[true],
                    (true, false) => &[false],
                    (false, false) => &[],
                }
            }
        };
        let namespace = store.namespaces.get(&service.name.namespace);
        let on_routes = routing.policies_to(&service.name, store);
        for (index, port) in service.ports.iter().enumerate() {
            built.check_port_name(service, port, &slices);
            let called = routing.called_for(&service.name, port.port, store);
            let called = built.giver(service, port, &called, store);
            let effective = store.policies.in_force(&service.name, port.name.as_ref(), called);
            let effective = effective.as_deref();
            let called = called.and_then(|called| store.services.get(&called.service));
            let (policy, said) =
                effective.map(|effective| (effective.policy.clone(), effective.spec.clone())).unzip();
            let last = before.governors.get(&port.port).unwrap_or(&store.seed);
            let on_routes = on_routes.iter().filter(|(of, _)| *of == port.port);
            let on_routes =
                on_routes.filter_map(|(_, on)| store.policies.on_route(on, effective)).map(Arc::new);
            let policy = policy.unwrap_or_default();
            let governor = Governor::next_on(Some(last), policy, on_routes.collect(), now.nanos);
            built.governors.insert(port.port, governor.clone());
            let rules = Rules {
                governor,
                said,
                entry: store.lanes.entry(&service.name, port.name.as_ref()),
                detours: store.lanes.detours(&service.name),
                access: store.accesses.in_force(&service.name, port.name.as_ref()).cloned(),
                access_log: service
                    .access_log
                    .or_else(|| called.and_then(|called| called.access_log))
                    .or_else(|| namespace.and_then(|namespace| namespace.access_log)),
                reclaim: service
                    .reclaim
                    .or_else(|| namespace.and_then(|namespace| namespace.reclaim))
                    .unwrap_or(false),
                direct: service
                    .endpoints
                    .or_else(|| namespace.and_then(|namespace| namespace.endpoints))
                    .unwrap_or(false),
            };
            built.parts.reserve_exact(families.len());
            let warms = rules.governor.policy().load_balancer.warmup.is_some();
            let merged: Vec<_> = families.iter().map(|&ipv6| merge(port, ipv6, warms, &slices)).collect();
            let others = families::across(&merged);
            for ((&ipv6, described), others) in families.iter().zip(merged).zip(&others) {
                let unknown: Vec<_> = described
                    .iter()
                    .filter(|(_, described)| described.unknown)
                    .map(|(address, described)| {
                        let pod = described.slice.pod.as_ref().map(|pod| pod.name.to_string());
                        (LoadKey { address: *address, pod: described.pod_uid() }, pod.unwrap_or_default())
                    })
                    .collect();
                let part = before.parts.iter().position(|(of, _)| *of == (port.port, ipv6));
                let part = part.map(|at| before.parts.swap_remove(at).1);
                let known = Known { store, options };
                let described = (described, others);
                let part = Part::build(service, (port, ipv6), described, known, &rules, part, now);
                built.check_held(service, &part.held);
                built.unknown.extend(unknown.into_iter().filter_map(|(key, pod)| {
                    let since = part.loads.get(&key)?.unknown?;
                    Some(Unknown { since, address: key.address, pod })
                }));
                let missing: AHashSet<_> = built.unknown.iter().map(|unknown| unknown.address).collect();
                built.claim(service, index, ipv6, &part.service, &missing);
                built.parts.push(((port.port, ipv6), part));
            }
        }
        built
    }

    /// Whether callers would see no difference.
    pub(super) fn claims_same(&self, before: &[(SocketAddr, Owner, Destination)]) -> bool {
        self.claims.len() == before.len()
            && self.claims.iter().zip(before).all(|((address, owner, one), (address2, owner2, two))| {
                (address, owner) == (address2, owner2) && one.is_same(two)
            })
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<model::Service>> {
        self.parts.iter().map(|(_, part)| &part.service)
    }

    /// By port.
    pub(super) fn governors(&self) -> impl Iterator<Item = (u16, &Arc<Governor>)> {
        self.governors.iter().map(|(port, governor)| (*port, governor))
    }

    /// A port in one family; `None`: it has no such port, or no address of that family.
    pub(super) fn part(&self, port: u16, ipv6: bool) -> Option<&Arc<model::Service>> {
        let part = self.parts.iter().find(|(of, _)| *of == (port, ipv6));
        part.map(|(_, part)| &part.service)
    }

    /// Lets go of the load of endpoints that are long gone; true if it must be built anew.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        let mut used = false;
        for (_, part) in &mut self.parts {
            used |= part.forget(now);
        }
        used
    }

    /// Whether the pod of an endpoint is not there.
    pub(super) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// What to say of endpoints whose pods have not been there for a while.
    pub(super) fn unknown(&self, name: &Name, now: Instant) -> Option<Problem> {
        let mut unknown = self.unknown.iter().filter(|unknown| now >= unknown.since + UNKNOWN_FOR);
        let Unknown { address, pod, .. } = unknown.next()?;
        let more = match unknown.count() {
            0 => String::new(),
            more => format!(" ({more} more like this)"),
        };
        let message = format!(
            "endpoint {address} is Pod {pod}, which is not there{more}: its tag is not known, so it is used only while \
             no other endpoint can be"
        );
        let problem = Problem::of(Key { kind: Kind::Service, name: name.clone() }, message);
        Some(problem.by(Cause::PodUnknown))
    }

    fn describe<'a>(
        &mut self,
        endpoint: &'a SliceEndpoint,
        service: &Service,
        store: &'a Store,
    ) -> Described<'a> {
        match &endpoint.pod {
            Some(reference) => {
                self.used_pods.push(reference.name.clone());
            }
            None => {
                self.used_addresses.push(endpoint.ip);
            }
        }
        Described::new(endpoint, service, store)
    }

    /// `missing`: endpoints whose pod is not there, so that another one may have come to the address.
    fn claim(
        &mut self,
        service: &Service,
        index: usize,
        ipv6: bool,
        part: &Arc<model::Service>,
        missing: &AHashSet<SocketAddr>,
    ) {
        let owner = |rank| (rank, service.name.clone(), index);
        match &service.frontend {
            Frontend::None => {}
            Frontend::ClusterIps(ips) => {
                self.claims.reserve_exact(1);
                for ip in ips.iter().filter(|ip| ip.is_ipv6() == ipv6) {
                    let destination = Destination { service: part.clone(), pinned: None };
                    self.claims.push((SocketAddr::new(*ip, part.port), owner(Rank::ClusterIp), destination));
                }
                if !part.direct {
                    return;
                }
                let rank = if part.is_asked_for() {
                    Rank::AskedFor(service.created)
                } else {
                    Rank::Governed(service.created)
                };
                let own = part.endpoints.iter().filter(|endpoint| endpoint.pod.is_some());
                for endpoint in own.filter(|endpoint| !missing.contains(&endpoint.address)) {
                    let destination = Destination { service: part.clone(), pinned: Some(endpoint.clone()) };
                    self.claims.push((endpoint.address, owner(rank), destination));
                }
            }
            Frontend::Headless => {
                for endpoint in &part.endpoints {
                    let pinned = Some(endpoint.clone());
                    let destination = Destination { service: part.clone(), pinned };
                    self.claims.push((endpoint.address, owner(Rank::Headless), destination));
                }
            }
        }
    }

    /// Of the Services whose requests routes send here the one from whose policy this one takes: the first that has one. Where
    /// others have other ones, somebody has to say what is meant.
    fn giver<'c>(
        &mut self,
        service: &Service,
        port: &ServicePort,
        called: &'c BTreeSet<Called>,
        store: &Store,
    ) -> Option<&'c Called> {
        let mut governed = called.iter().filter_map(|called| Some((called, store.policies.own(called)?)));
        let Some((giver, policy)) = governed.next() else { return called.first() };
        let rivals: Vec<_> = governed.filter(|(_, other)| *other != policy).collect();
        if let Some((rival, other)) = rivals.first() {
            let message = format!(
                "port {}: routes send requests of Services {} and {} here, whose TrafficPolicies {policy} and {other} differ: it takes \
                 from {policy} alone what its own does not say. Give it a TrafficPolicy with `inherit: None`, or each of them \
                 Services of their own to send to",
                port.port, giver.service.name, rival.service.name
            );
            let key = Key { kind: Kind::Service, name: service.name.clone() };
            self.problems.push(Problem::of(key, message));
        }
        Some(giver)
    }

    /// Slices with endpoints but none with this port: nearly always a name written differently.
    fn check_port_name(
        &mut self,
        service: &Service,
        port: &ServicePort,
        slices: &[(&EndpointSlice, Vec<Described<'_>>)],
    ) {
        let used = || slices.iter().map(|(slice, _)| slice).filter(|slice| !slice.endpoints.is_empty());
        let mut names = used().flat_map(|slice| &slice.ports).map(|port| &port.name).peekable();
        if used().next().is_none() || names.any(|name| *name == port.name) {
            return;
        }
        let show = |name: &Option<Arc<str>>| name.as_ref().map_or("no name".to_owned(), |n| format!("{n:?}"));
        let mut found: Vec<_> = used().flat_map(|slice| &slice.ports).map(|port| show(&port.name)).collect();
        found.sort();
        found.dedup();
        let found = if found.is_empty() { "no ports at all".to_owned() } else { found.join(", ") };
        self.problem(
            service,
            format!(
                "port {} ({}) has no endpoints: ports are matched by name, and the EndpointSlices have {found}",
                port.port,
                show(&port.name),
            ),
            "spec.ports",
        );
    }

    fn check_held(&mut self, service: &Service, held: &[Arc<Endpoint>]) {
        let pods = held.iter().filter_map(|endpoint| endpoint.pod.clone());
        let namespace = &service.name.namespace;
        self.used_pods.extend(pods.map(|name| Name { namespace: namespace.clone(), name }));
        if !held.is_empty() {
            let message = format!(
                "{} endpoints are in none of its EndpointSlices any more, though their pods are ready: they are used \
                 on for a minute, unless their pods go",
                held.len()
            );
            self.problem(service, message, "");
        }
    }

    fn problem(&mut self, service: &Service, message: String, field: &str) {
        let problem = Problem::of(Key { kind: Kind::Service, name: service.name.clone() }, message);
        self.problems.push(if field.is_empty() { problem } else { problem.at(field) });
    }
}
