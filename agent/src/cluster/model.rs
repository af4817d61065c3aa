//! The model that consumers read: immutable snapshots of the opted-in part of the cluster.
//!
//! A consumer loads a [`Snapshot`] once per event and holds no lock. What lives longer than a snapshot
//! (an endpoint's load) hangs on it by `Arc`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use arc_swap::ArcSwap;
use serde_json::Value;

use super::{clients::Clients, shared::SharedMap};
use crate::{
    api::TagPropagation,
    govern::{
        access::{Access, probe::Probe},
        caller::{Caller, Labels},
        endpoint::Endpoint,
        entry::Entry,
        governor::Governor,
        lane::{Distrust, RequestTag},
        policy::{Detour, LaneFallback, StartOn, is_from},
        request::Request,
        route::{Candidates, Yielded},
        routes::{Routes, Rule, backends::ServicePort},
        subset::Subset,
        tag::Tag,
    },
    observe::sampling::Ratio,
};

/// The current snapshot. Readers on the data path use `arc_swap::Cache`.
pub type Current = Arc<ArcSwap<Snapshot>>;

/// Everything the agent knows about the opted-in part of the cluster, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts snapshots; 0 is "no source has answered yet".
    pub generation: u64,
    /// Governed destinations, by the address that a caller dials (IPv4-mapped addresses are normalised to IPv4 by the caller).
    pub destinations: SharedMap<SocketAddr, Destination>,
    /// Pods of opted-in namespaces, by the UID that their control group is named after: those of this agent's node, or
    /// all where its name is not known.
    pub pods: SharedMap<Arc<str>, Arc<Workload>>,
    /// What routes say of ports of Services.
    pub routes: Arc<AHashMap<PortKey, Arc<Routed>>>,
    /// What is asked for at the endpoints of this node.
    pub inbound: Arc<Inbound>,
    /// Pods by their addresses; the same ones in all snapshots.
    pub clients: Arc<Clients>,
}

/// A port of a Service, and whether it is meant in the family of IPv6.
pub type PortKey = (ServicePort, bool);

/// The routes of a port, for each kind of client.
#[derive(Debug)]
pub struct Routed {
    /// Of the Service's own namespace: for all clients.
    pub producer: Option<Group>,
    /// For clients in the namespace, in the place of the producer's.
    pub consumers: BTreeMap<Arc<str>, Group>,
}

/// Routes, and the Services that they may send to. What is not in it cannot be sent to.
#[derive(Debug)]
pub struct Group {
    pub routes: Arc<Routes>,
    pub backends: BTreeMap<ServicePort, Arc<Service>>,
    /// The policies that target rules of them, or their routes, as `shop/slow`.
    pub policies: AHashMap<RuleId, Arc<str>>,
}

/// A rule of [`Group::routes`], told from others by where it is: as long as the group is there, so is the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(usize);

impl RuleId {
    pub fn of(rule: &Arc<Rule>) -> Self {
        Self(Arc::as_ptr(rule).addr())
    }
}

impl Routed {
    /// What holds for clients in this namespace.
    pub fn of(&self, namespace: &str) -> Option<&Group> {
        self.consumers.get(namespace).or(self.producer.as_ref())
    }

    /// Those for all clients, and those for the clients of single namespaces.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.producer.iter().chain(self.consumers.values())
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identities().eq(other.identities())
    }

    fn identities(&self) -> impl Iterator<Item = (Option<&Arc<str>>, Identity<'_>)> {
        let consumers = self.consumers.iter().map(|(namespace, group)| (Some(namespace), group.identity()));
        self.producer.iter().map(|group| (None, group.identity())).chain(consumers)
    }
}

/// What makes a group the same as another.
type Identity<'g> = (*const Routes, Vec<*const Service>, &'g AHashMap<RuleId, Arc<str>>);

impl Group {
    fn identity(&self) -> Identity<'_> {
        let backends = self.backends.values().map(Arc::as_ptr).collect();
        (Arc::as_ptr(&self.routes), backends, &self.policies)
    }

    /// Whether any of the Services has endpoints of a lane.
    pub fn has_lanes(&self) -> bool {
        self.backends.values().any(|service| !service.lanes.is_empty())
    }

    /// The policy that targets a rule, or its route.
    pub fn policy_on(&self, rule: &Arc<Rule>) -> Option<&Arc<str>> {
        // Mostly there is none at all.
        if self.policies.is_empty() { None } else { self.policies.get(&RuleId::of(rule)) }
    }
}

impl Snapshot {
    /// The routes of what stands behind a governed address. Whoever dialled an endpoint of a headless Service has chosen
    /// already.
    pub fn routed(&self, address: SocketAddr, destination: &Destination) -> Option<&Arc<Routed>> {
        routed(&self.routes, address, destination)
    }

    /// Whether new connections to this address are to come to the agent: also those to a Service without endpoints, if routes
    /// send its requests elsewhere.
    pub fn is_redirected(&self, address: SocketAddr, destination: &Destination) -> bool {
        destination.is_redirected() || self.routed(address, destination).is_some()
    }

    /// Every rule of every route, each once.
    pub fn route_rules(&self) -> Vec<&Arc<Rule>> {
        let mut seen = AHashSet::new();
        let groups = self.routes.values().flat_map(|routed| routed.groups());
        let rules = groups.flat_map(|group| group.routes.rules());
        rules.filter(|rule| seen.insert(RuleId::of(rule))).collect()
    }

    /// What is governed at this address, which may be IPv4-mapped (`::ffff:10.96.7.3`).
    pub fn destination(&self, address: SocketAddr) -> Option<&Destination> {
        self.destinations.get(&SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

/// See [`Snapshot::routed`].
pub fn routed<'r>(
    routes: &'r AHashMap<PortKey, Arc<Routed>>,
    address: SocketAddr,
    destination: &Destination,
) -> Option<&'r Arc<Routed>> {
    if routes.is_empty() || destination.pinned.is_some() {
        return None;
    }
    let service = &destination.service;
    let (namespace, name) = (service.namespace.clone(), service.name.clone());
    routes.get(&(ServicePort { namespace, name, port: service.port }, address.is_ipv6()))
}

/// Ports of this node's pods for which policies ask something at the endpoint.
#[derive(Debug, Default)]
pub struct Inbound(AHashMap<IpAddr, BTreeMap<u16, Arc<InboundPort>>>);

/// A port of a pod.
#[derive(Debug)]
pub struct InboundPort {
    /// The application, as the only endpoint of a Service that asks for nothing but the limits at the endpoint: those of the first
    /// of its guards that has any, whose name it has.
    pub destination: Destination,
    /// The Services that have it as an endpoint and a policy that asks for something there. What each says about who may call
    /// holds. Empty if the pod only asks for what comes to it to be read ([`Workload::is_read`]).
    pub guards: Vec<Arc<Service>>,
    /// Where is noted that the first request has come, for warm-ups that begin with it.
    pub starts: Vec<Start>,
}

/// The port as an endpoint of a Service whose warm-up begins with the first request.
#[derive(Clone, Debug)]
pub struct Start {
    pub service: Arc<Service>,
    pub endpoint: Arc<Endpoint>,
}

impl InboundPort {
    /// How long connections are refused there while no agent attends it; `None`: they go direct.
    pub fn closed_unattended(&self) -> Option<Duration> {
        let policies = self.guards.iter().filter_map(|guard| guard.access.as_ref());
        policies.filter_map(|access| access.closed_unattended()).max()
    }
}

impl Inbound {
    pub(super) fn insert(&mut self, address: SocketAddr, port: InboundPort) {
        self.0.entry(address.ip()).or_default().insert(address.port(), Arc::new(port));
    }

    /// What is asked for at this address.
    pub fn port(&self, address: SocketAddr) -> Option<&Arc<InboundPort>> {
        self.0.get(&address.ip())?.get(&address.port())
    }

    /// The ports of a pod with this address.
    pub fn ports(&self, ip: IpAddr) -> Vec<u16> {
        self.0.get(&ip).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Arc<InboundPort>)> {
        let ports = |(ip, ports): (&IpAddr, _)| {
            let ip = *ip;
            let ports: &BTreeMap<u16, Arc<InboundPort>> = ports;
            ports.iter().map(move |(port, it)| (SocketAddr::new(ip, *port), it))
        };
        self.0.iter().flat_map(ports)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What stands behind a governed address.
#[derive(Clone, Debug)]
pub struct Destination {
    pub service: Arc<Service>,
    /// Set for the address of an endpoint: the caller chose this one. With a headless Service it stays with it; where the Service's
    /// endpoints are managed ([`Service::direct`]) it does so unless there is a reason ([`crate::govern::route::keep`]).
    pub pinned: Option<Arc<Endpoint>>,
}

impl Destination {
    /// Whether it is the same one, and not one that was built anew.
    pub fn is_same(&self, other: &Self) -> bool {
        let pinned = |destination: &Self| destination.pinned.as_ref().map(Arc::as_ptr);
        Arc::ptr_eq(&self.service, &other.service) && pinned(self) == pinned(other)
    }

    /// The endpoint with which the caller stays in any case.
    pub fn held(&self) -> Option<&Arc<Endpoint>> {
        self.pinned.as_ref().filter(|_| !self.service.direct)
    }

    /// The endpoint that the caller has chosen, where another may be better.
    pub fn preferred(&self) -> Option<&Arc<Endpoint>> {
        self.pinned.as_ref().filter(|_| self.service.direct)
    }

    /// Whether new connections are to come to the agent at all. It leaves those alone for which it could do nothing, so that
    /// their clients find what they would without it: a service that has nobody to answer refuses; a client that knows all
    /// addresses of a headless service is refused by one that is gone, and tries the next; a database has no proxy before it.
    pub fn is_redirected(&self) -> bool {
        let service = &*self.service;
        if self.held().is_some() || service.protocol == Protocol::Opaque {
            return service.is_asked_for();
        }
        service.endpoints.iter().any(|endpoint| endpoint.is_usable() || endpoint.is_draining())
            || service.governor.policy().all().any(|policy| !policy.fallbacks.is_empty())
    }
}

/// One port of a Kubernetes Service with its endpoints.
#[derive(Debug)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The Service's port number (not the target port).
    pub port: u16,
    pub port_name: Option<Arc<str>>,
    /// What the port is declared to speak; `Detect` where nothing is declared.
    pub protocol: Protocol,
    /// All endpoints, also those that are not usable, by address. Of the family of the address that was dialled: a
    /// dual-stack Service is one of these a family.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Endpoints with no tag; where topology hints say so, only those meant for this agent's zone or node.
    pub baseline: Subset,
    /// Endpoints by tag; topology hints are applied to each by itself.
    pub lanes: BTreeMap<Tag, Subset>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
    /// Colours requests that come without a tag.
    pub entry: Arc<Entry>,
    /// The policy in force, and the state of its rules. The same for both families, and from one snapshot to the next.
    pub governor: Arc<Governor>,
    /// What its policies say, as they say it; `None`: there is none.
    pub said: Option<Arc<Value>>,
    /// Where requests of a lane go that has no usable endpoint here; tags that are not in it fall back to the baseline.
    pub detours: Arc<BTreeMap<Tag, Detour>>,
    /// How many of its requests are logged; `None`: nobody has said it.
    pub access_log: Option<Ratio>,
    /// Idle connections to it that are older than their pod's enrolment are ended.
    pub reclaim: bool,
    /// Connections to its endpoints' own addresses are managed as those to the Service.
    pub direct: bool,
    /// Who may call; enforced at the endpoints.
    pub access: Option<Arc<Access>>,
}

impl Service {
    /// A service port of which nothing else is known: no endpoints, no policy.
    pub fn new(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            port,
            port_name: None,
            protocol: Protocol::default(),
            endpoints: Vec::new(),
            baseline: Subset::default(),
            lanes: BTreeMap::new(),
            session_affinity: false,
            entry: Arc::default(),
            governor: Arc::default(),
            said: None,
            detours: Arc::default(),
            access_log: None,
            reclaim: false,
            direct: false,
            access: None,
        }
    }

    /// Whether connections to it that are older than their pod's enrolment may be ended when they are idle. What a connection
    /// of another protocol than HTTP/1 is idle cannot be told by its bytes.
    pub fn is_reclaimed(&self) -> bool {
        self.reclaim && self.protocol == Protocol::Http
    }

    /// Whether policies ask for anything at its endpoints.
    pub(super) fn asks_at_endpoints(&self) -> bool {
        self.access.is_some() || self.governor.policy().limits_endpoints()
    }

    /// Whether the warm-up of its endpoints begins with their first request.
    pub(super) fn starts_on_first_request(&self) -> bool {
        let warmup = self.governor.policy().load_balancer.warmup.as_ref();
        warmup.is_some_and(|warmup| warmup.start_on == StartOn::FirstRequest)
    }

    /// Whether a policy or a lane asks for anything.
    pub(super) fn is_asked_for(&self) -> bool {
        let lane = !self.lanes.is_empty() || !self.entry.is_empty() || !self.detours.is_empty();
        let logged = self.access_log.is_some() && self.protocol != Protocol::Opaque;
        self.said.is_some() || lane || logged
    }

    /// The same with these endpoints, each in the subset of its tag. They are kept in the order of their addresses.
    #[must_use]
    pub fn with_endpoints(mut self, mut endpoints: Vec<Arc<Endpoint>>) -> Self {
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let mut subsets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for endpoint in &endpoints {
            subsets.entry(endpoint.tag.clone()).or_default().push(endpoint.clone());
        }
        self.baseline = subsets.remove(&None).unwrap_or_default().into();
        self.lanes = subsets.into_iter().filter_map(|(tag, subset)| Some((tag?, subset.into()))).collect();
        self.endpoints = endpoints;
        self
    }

    /// The tag that a request without one gets where it enters here.
    pub fn colour(&self, request: &impl Request, caller: IpAddr) -> Option<RequestTag> {
        if self.entry.is_empty() {
            return None;
        }
        let coloured = self.entry.colour(request, caller)?;
        Some(coloured.tag.into())
    }

    /// Which tags of this caller's requests come from outside, and are not believed.
    pub fn distrusts(&self, caller: &Workload) -> Distrust<'_> {
        let strip = self.governor.policy().strip_tags.as_ref();
        let all =
            strip.is_some_and(|strip| strip.from.is_empty() || is_from(&strip.from, Some(caller.caller())));
        Distrust::new(all, self.entry.untrusted())
    }

    /// What becomes of a request with this tag where its lane has nobody to answer.
    pub fn fallback(&self, tag: Option<&RequestTag>) -> &Detour {
        static TO_BASELINE: Detour = Detour { lanes: Vec::new(), then: LaneFallback::Baseline };
        tag.and_then(|tag| self.detours.get(tag.as_str())).unwrap_or(&TO_BASELINE)
    }

    /// How far its endpoints are from the lane of a request: 0 if it has one of the lane that can be used, else the place of
    /// the first of the lanes that the lane falls back to. `None`: it has none of any of these.
    pub fn distance_to_lane(&self, tag: &RequestTag) -> Option<usize> {
        let serves = |lane: &str| self.lanes.get(lane).is_some_and(|lane| lane.usable() > 0);
        if serves(tag.as_str()) {
            return Some(0);
        }
        let others = &self.fallback(Some(tag)).lanes;
        others.iter().position(|lane| serves(lane.as_str())).map(|at| at + 1)
    }

    /// What routing needs to know of it.
    pub fn candidates(&self) -> Candidates<'_> {
        Candidates {
            baseline: &self.baseline,
            lanes: &self.lanes,
            session_affinity: self.session_affinity,
            policy: self.governor.policy(),
        }
    }

    /// What its warm-up curve gives endpoints beyond what it says.
    pub fn yielded(&self, now_nanos: u64) -> Yielded {
        let subsets = std::iter::once(&self.baseline).chain(self.lanes.values());
        Yielded::of(self.governor.policy(), subsets, now_nanos)
    }

    /// The subset that an endpoint is of.
    pub fn subset_of(&self, endpoint: &Endpoint) -> Option<&Subset> {
        match &endpoint.tag {
            None => Some(&self.baseline),
            Some(tag) => self.lanes.get(tag),
        }
    }
}

/// `orders.shop:8080`, as logs and metrics name it.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.name, self.namespace, self.port)
    }
}

/// What a service port is declared to speak: `appProtocol` first, then the port name's prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing declared: the first bytes tell.
    #[default]
    Detect,
    /// `http`, `http-*`, `kubernetes.io/ws`: HTTP/1 or HTTP/2, told apart by the preface; never waits on a timer.
    Http,
    /// `http2`, `grpc`, `grpc-web`, `kubernetes.io/h2c`: HTTP/2 with prior knowledge (HTTP/1 is still understood).
    Http2,
    /// `tls`, `https`, `kubernetes.io/wss`, `tcp`, database names: bytes, at once.
    Opaque,
}

/// Below this no agent listens in a pod: ports there are applications' own, whether or not they declare them.
pub const LOWEST_LISTENER_PORT: u16 = 20_000;

/// A pod, as caller or as endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// What it is a part of, for rules about callers: the name of its Deployment, StatefulSet or the like, or its own.
    pub workload: Arc<str>,
    pub labels: Labels,
    pub tag: Option<Tag>,
    pub ips: Vec<IpAddr>,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    pub host_network: bool,
    /// The outcome of the namespace's opt-in and the pod's override (false for host-network pods).
    pub capture: bool,
    /// By what its own requests get the tag of those that they are sent for (`sluice.dev/propagation`).
    pub propagation: TagPropagation,
    /// Ports that it declares: the agent listens at none of them.
    pub ports: Box<[u16]>,
    /// What the kubelet probes it by.
    pub probes: Arc<[Probe]>,
    /// The mesh whose proxy takes the pod's connections already: it is left alone then, `capture` or not.
    pub own_proxy: Option<&'static str>,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed.
    pub finished: bool,
}

impl Workload {
    /// The address that tells it from other pods, where one is needed; 0.0.0.0 while it has none.
    pub fn address(&self) -> IpAddr {
        self.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// The pod as rules see it that are about callers.
    pub fn caller(&self) -> Caller<'_> {
        Caller { namespace: &self.namespace, workload: &self.workload, labels: &self.labels }
    }

    /// Whether what comes to it is read, so that its own requests get the tag of those that they are sent for.
    pub fn is_read(&self) -> bool {
        self.propagation >= TagPropagation::Trace
    }

    /// Whether its threads are followed.
    pub fn follows_threads(&self) -> bool {
        self.propagation >= TagPropagation::Thread
    }

    /// A pod that runs, is captured, and of which nothing else is known.
    pub fn new(uid: &str, namespace: &str, name: &str) -> Self {
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            workload: name.into(),
            labels: Labels::default(),
            tag: None,
            ips: Vec::new(),
            node: None,
            zone: None,
            host_network: false,
            capture: true,
            propagation: TagPropagation::default(),
            ports: Box::default(),
            probes: Arc::default(),
            own_proxy: None,
            terminating: false,
            finished: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::policy::{Fallback, FallbackAction, FallbackOn, Policy, StaticAnswer};

    fn endpoint(change: impl FnOnce(&mut Endpoint)) -> Arc<Endpoint> {
        let mut endpoint = Endpoint::new(([10, 244, 0, 1], 80).into());
        change(&mut endpoint);
        Arc::new(endpoint)
    }

    fn is_redirected(service: Service, pinned: bool) -> bool {
        let pinned = service.endpoints.first().filter(|_| pinned).cloned();
        Destination { service: Arc::new(service), pinned }.is_redirected()
    }

    fn service(protocol: Protocol, endpoints: Vec<Arc<Endpoint>>) -> Service {
        Service { protocol, ..Service::new("shop", "orders", 80).with_endpoints(endpoints) }
    }

    #[test]
    fn a_service_is_redirected_that_has_somebody_to_answer() {
        let ready = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (true, true));
        let leaving = || endpoint(|one| (one.ready, one.serving, one.terminating) = (false, true, true));
        let down = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (false, false));
        for protocol in [Protocol::Detect, Protocol::Http, Protocol::Http2] {
            assert!(is_redirected(service(protocol, vec![ready()]), false));
            assert!(is_redirected(service(protocol, vec![leaving()]), false));
            assert!(!is_redirected(service(protocol, vec![down()]), false));
            assert!(!is_redirected(service(protocol, Vec::new()), false));
        }
        let answer = StaticAnswer { status: 200, headers: Vec::new(), body: bytes::Bytes::new() };
        let fallback = Fallback {
            name: "a".into(),
            on: vec![FallbackOn::NoEndpoint],
            action: FallbackAction::Static(answer),
        };
        let policy = Policy { fallbacks: vec![Arc::new(fallback)], ..Policy::default() };
        let governor = Governor::next(None, Arc::new(policy), 0);
        assert!(is_redirected(Service { governor, ..service(Protocol::Http, Vec::new()) }, false));
    }

    #[test]
    fn what_is_opaque_or_headless_is_redirected_where_a_policy_or_a_lane_asks_for_it() {
        let ready = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (true, true));
        let gray = || endpoint(|endpoint| endpoint.tag = "gray".parse().ok());
        for (protocol, pinned) in
            [(Protocol::Opaque, false), (Protocol::Opaque, true), (Protocol::Http, true)]
        {
            assert!(!is_redirected(service(protocol, vec![ready()]), pinned));
            assert!(is_redirected(service(protocol, vec![ready(), gray()]), pinned), "a lane");
            let said = Some(Arc::new(Value::Null));
            assert!(is_redirected(Service { said, ..service(protocol, vec![ready()]) }, pinned), "a policy");
        }
        let logged = |protocol| Service { access_log: "1".parse().ok(), ..service(protocol, vec![ready()]) };
        assert!(is_redirected(logged(Protocol::Http), true));
        assert!(!is_redirected(logged(Protocol::Opaque), false), "there are no requests to be logged");
    }
}
