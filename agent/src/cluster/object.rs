//! Kubernetes objects, stripped to what Sluice uses of them and checked: ports are ports, addresses addresses.
//!
//! Sources yield these ([`super::strip`] makes them), the builder joins them into the model. What is not here is
//! not kept in memory, whatever the object carries.

use std::{fmt, net::IpAddr, num::NonZeroU32, sync::Arc, time::SystemTime};

use serde_json::Value;
use smallvec::SmallVec;

use super::model::Protocol;
use crate::{
    api::{self, FieldError, TagPropagation, effective::Effective, gateway},
    govern::{
        access::{Access, probe::Probe},
        caller::Labels,
        policy::{Lane, Target},
        routes,
        tag::Tag,
    },
    observe::sampling::Ratio,
};

/// The kinds that Sluice reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Pod,
    TrafficPolicy,
    TrafficLane,
    AccessPolicy,
    HttpRoute,
    GrpcRoute,
    ReferenceGrant,
    /// Gateway API's own word for what a mesh can do.
    Mesh,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::TrafficPolicy,
        Self::TrafficLane,
        Self::AccessPolicy,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::Mesh,
    ];

    /// Those of Sluice's own API.
    pub const OWN: [Self; 3] = [Self::TrafficPolicy, Self::TrafficLane, Self::AccessPolicy];

    /// Those of Gateway API that Sluice reads.
    pub const OF_GATEWAY: [Self; 4] = [Self::HttpRoute, Self::GrpcRoute, Self::ReferenceGrant, Self::Mesh];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::TrafficLane => "TrafficLane",
            Self::AccessPolicy => "AccessPolicy",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Mesh => "XMesh",
        }
    }

    /// `group/version`, as Sluice reads it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Service | Self::Pod => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::TrafficPolicy | Self::TrafficLane | Self::AccessPolicy => api::API_VERSION,
            Self::HttpRoute | Self::GrpcRoute | Self::ReferenceGrant => gateway::VERSION,
            Self::Mesh => gateway::MESH_VERSION,
        }
    }

    /// Whether it is of Sluice's own API.
    pub fn is_own(self) -> bool {
        Self::OWN.contains(&self)
    }

    /// Whether it is of Gateway API.
    pub fn is_of_gateway(self) -> bool {
        Self::OF_GATEWAY.contains(&self)
    }

    /// Whether its objects are in no namespace.
    pub fn is_cluster_wide(self) -> bool {
        matches!(self, Self::Namespace | Self::Mesh)
    }

    /// Whether a cluster may go without it: its definition need not be installed.
    pub fn is_optional(self) -> bool {
        self.is_own() || self.is_of_gateway()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name within a namespace. Ordered by namespace, then name: that order decides wherever two objects claim the
/// same thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Empty for what lives in no namespace.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub name: Name,
}

/// `Service shop/orders`
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// An object of one of the kinds that Sluice reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    EndpointSlice(Arc<EndpointSlice>),
    Pod(Arc<Pod>),
    TrafficPolicy(TrafficPolicy),
    TrafficLane(TrafficLane),
    AccessPolicy(AccessPolicy),
    /// Of one of the two kinds.
    Route(Kind, Route),
    ReferenceGrant(ReferenceGrant),
    Mesh(Mesh),
}

impl Object {
    pub fn key(&self) -> Key {
        let (kind, name) = match self {
            Self::Namespace(namespace) => {
                (Kind::Namespace, Name { namespace: "".into(), name: namespace.name.clone() })
            }
            Self::Service(service) => (Kind::Service, service.name.clone()),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, slice.name.clone()),
            Self::Pod(pod) => (Kind::Pod, pod.name.clone()),
            Self::TrafficPolicy(policy) => (Kind::TrafficPolicy, policy.name.clone()),
            Self::TrafficLane(lane) => (Kind::TrafficLane, lane.name.clone()),
            Self::AccessPolicy(policy) => (Kind::AccessPolicy, policy.name.clone()),
            Self::Route(kind, route) => (*kind, route.own.name.clone()),
            Self::ReferenceGrant(grant) => (Kind::ReferenceGrant, grant.name.clone()),
            Self::Mesh(mesh) => (Kind::Mesh, mesh.name.clone()),
        };
        Key { kind, name }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    /// The annotation `sluice.dev/capture`: enabled, disabled or not set.
    pub capture: Option<bool>,
    /// The annotation `sluice.dev/access-log`.
    pub access_log: Option<Ratio>,
    /// The annotation `sluice.dev/reclaim`.
    pub reclaim: Option<bool>,
    /// The annotation `sluice.dev/endpoints`: governed, direct or not set.
    pub endpoints: Option<bool>,
    /// The annotation `sluice.dev/propagation`.
    pub propagation: Option<TagPropagation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
    /// `creationTimestamp` in seconds of Unix time; `None` in manifests.
    pub created: Option<i64>,
    pub frontend: Frontend,
    /// TCP ports only, in the order of the object; names and numbers are unique.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
    /// `internalTrafficPolicy: Local`: only endpoints on the caller's node.
    pub node_local: bool,
    /// `trafficDistribution`.
    pub prefer: Prefer,
    pub publish_not_ready_addresses: bool,
    /// The labels of the pods behind it; empty where somebody else writes its EndpointSlices.
    pub selector: Labels,
    /// The annotation `sluice.dev/access-log`.
    pub access_log: Option<Ratio>,
    /// The annotation `sluice.dev/reclaim`.
    pub reclaim: Option<bool>,
    /// The annotation `sluice.dev/endpoints`: governed, direct or not set.
    pub endpoints: Option<bool>,
}

/// How callers reach a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// Through these addresses, one a family at most.
    ClusterIps(Vec<IpAddr>),
    /// `clusterIP: None`: callers dial the endpoints' own addresses.
    Headless,
    /// `ExternalName`, or no address that could be used: there is nothing to govern.
    None,
}

/// `spec.trafficDistribution`: which endpoints should be preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    #[default]
    Any,
    /// `PreferSameZone`, and `PreferClose`, its older name.
    SameZone,
    /// `PreferSameNode`: the node, else the zone.
    SameNode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// EndpointSlices' ports are matched by it; a single port may go without.
    pub name: Option<Arc<str>>,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    /// The Service's name, from the label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// All addresses are of this family.
    pub ipv6: bool,
    pub endpoints: Vec<SliceEndpoint>,
    /// TCP ports only.
    pub ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Option<Arc<str>>,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zone: Option<Arc<str>>,
    pub node: Option<Arc<str>>,
    /// `targetRef`, where it names a Pod.
    pub pod: Option<PodReference>,
    /// In a box, for most have none.
    pub hints: Option<Box<Hints>>,
}

/// Which clients an endpoint is for, as the cluster proposes; empty: for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones`
    pub for_zones: Box<[Arc<str>]>,
    /// `hints.forNodes`
    pub for_nodes: Box<[Arc<str>]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReference {
    pub name: Name,
    pub uid: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Name,
    /// `metadata.uid`
    pub uid: Option<Arc<str>>,
    pub ips: SmallVec<[IpAddr; 1]>,
    /// The label `sluice.dev/tag`.
    pub tag: Option<Tag>,
    /// All labels, for selectors.
    pub labels: Labels,
    /// The name of what owns it, as far as the pod tells: its Deployment's, StatefulSet's, DaemonSet's, CronJob's. `None`:
    /// nothing does.
    pub workload: Option<Arc<str>>,
    /// The annotation `sluice.dev/capture`.
    pub capture: Option<bool>,
    /// The annotation `sluice.dev/propagation`.
    pub propagation: Option<TagPropagation>,
    pub node: Option<Arc<str>>,
    /// The label `topology.kubernetes.io/zone`, which recent clusters copy from the node.
    pub zone: Option<Arc<str>>,
    pub host_network: bool,
    /// When its condition `Ready` became true; `None` where it is not, or nobody says.
    pub ready_since: Option<SystemTime>,
    /// It has the readiness gate `sluice.dev/warm`.
    pub warm_gate: Option<Box<WarmGate>>,
    /// When the last of its containers started that runs now, in seconds of Unix time; `None` where nobody says.
    pub started: Option<NonZeroU32>,
    /// When its first request came, as its condition `sluice.dev/first-request` says, in seconds of Unix time. It may be one of before
    /// its containers started: [`super::first_request::told`].
    pub first_request: Option<NonZeroU32>,
    pub service_account: Arc<str>,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed.
    pub finished: bool,
    /// `None` where it runs on another node: in a large cluster nearly all pods do.
    pub for_node: Option<Box<ForNode>>,
}

/// What only the agent of a pod's node needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForNode {
    /// The UID that the pod's cgroup is named after: for a static pod's mirror the hash of its manifest, else its own.
    pub cgroup_uid: Option<Arc<str>>,
    /// Ports that its containers declare, or are probed at, as far as a listener of the agent could be in their way.
    pub ports: Box<[u16]>,
    /// What the kubelet probes it by.
    pub probes: Arc<[Probe]>,
    /// The mesh whose proxy takes the pod's connections already.
    pub own_proxy: Option<&'static str>,
}

/// Of a pod that becomes Ready only when an agent says that it is warm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmGate {
    /// Since when it waits for nothing else: its containers are ready, and its other readiness gates hold. `None`: it does wait
    /// for something else.
    pub waits_since: Option<SystemTime>,
    /// One of its containers does not run.
    pub is_down: bool,
    /// What stands in its status.
    pub told: Option<ToldWarm>,
}

/// The condition `sluice.dev/warm` of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldWarm {
    pub is_warm: bool,
    pub reason: Arc<str>,
    pub since: Option<SystemTime>,
}

pub type TrafficPolicy = Own<Attached>;
pub type TrafficLane = Own<Arc<Lane>>;
pub type AccessPolicy = Own<Guarded>;

/// An HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What it asks for; `None`: it is about no Service.
    pub own: Own<Option<Arc<gateway::Asked>>>,
    /// Its parents that are Services, also where it is invalid.
    pub parents: Arc<[gateway::Named]>,
    /// What its status says of them in Sluice's name, as it stands there.
    pub told: Arc<[AtParent]>,
}

/// An XMesh of Gateway API, which tells what a mesh supports.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub name: Name,
    pub uid: Option<Arc<str>>,
    pub generation: Option<i64>,
    /// Its controller is Sluice.
    pub ours: bool,
    /// It refers to parameters.
    pub has_parameters: bool,
    pub told: Arc<[Told]>,
    pub features: Arc<[Arc<str>]>,
}

/// A ReferenceGrant of Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    pub name: Name,
    pub grant: gateway::Grant,
    /// As it came.
    pub spec: Arc<Value>,
}

/// A policy and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    pub targets: Vec<Target>,
    /// Routes of its namespace; then it has no other targets.
    pub routes: Vec<routes::Target>,
    /// It is for the Services of its namespace, as far as their own policies say nothing.
    pub for_namespace: bool,
    /// What it says, alone.
    pub effective: Effective,
}

/// Who may call, and what.
#[derive(Clone, Debug, PartialEq)]
pub struct Guarded {
    pub targets: Vec<Target>,
    /// It is for the Services of its namespace that have no policy of their own.
    pub for_namespace: bool,
    pub access: Arc<Access>,
}

/// An object of Sluice's own API, or what a route asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Own<T> {
    pub name: Name,
    pub uid: Option<Arc<str>>,
    /// Counts changes of the spec; `None` in manifests.
    pub generation: Option<i64>,
    /// `creationTimestamp` in seconds of Unix time; `None` in manifests.
    pub created: Option<i64>,
    /// What it asks for; or all that is wrong with it.
    pub asked: Result<T, Arc<[FieldError]>>,
    /// What is active while it is invalid, and no valid version of it is known.
    pub instead: Option<Box<T>>,
    /// What its status says of it.
    pub told: Arc<[Told]>,
    /// The targets that its status shows.
    pub shown: Option<Arc<str>>,
    /// As it came.
    pub spec: Arc<Value>,
}

impl<T> Own<T> {
    pub fn age(&self) -> Age {
        Age { created: self.created.unwrap_or(i64::MAX), name: self.name.clone() }
    }
}

/// Orders objects that want the same thing: the older first, of two of the same second the first by name, and those that
/// do not say when they were created (in manifests) last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Age {
    created: i64,
    pub name: Name,
}

/// A condition that stands in an object's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub kind: Arc<str>,
    pub status: Arc<str>,
    pub reason: Arc<str>,
    pub message: Arc<str>,
    pub generation: Option<i64>,
    /// As it stands there.
    pub since: Arc<str>,
}

/// What a route's status says, or is to say, of one of its parents.
#[derive(Clone, Debug, PartialEq)]
pub struct AtParent {
    /// The parent, as the route names it.
    pub reference: Value,
    /// `None`: what stands there is to stay, as not enough is known of the parent.
    pub conditions: Option<Arc<[Told]>>,
}
