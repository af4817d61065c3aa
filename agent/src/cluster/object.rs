//! Kubernetes objects, stripped to what Sluice uses of them and checked: ports are ports, addresses addresses.
//!
//! Sources yield these ([`super::strip`] makes them), the builder joins them into the model. What is not here is
//! not kept in memory, whatever the object carries.

use std::{fmt, net::IpAddr, sync::Arc, time::SystemTime};

use super::model::Protocol;
use crate::govern::tag::Tag;

/// The kinds that Sluice reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Pod,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Namespace, Self::Service, Self::EndpointSlice, Self::Pod];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
        }
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
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
        };
        Key { kind, name }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    /// The annotation `sluice.dev/capture`: enabled, disabled or not set.
    pub capture: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
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
    /// `hints.forZones`
    pub for_zones: Vec<Arc<str>>,
    /// `hints.forNodes`
    pub for_nodes: Vec<Arc<str>>,
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
    /// The UID that the pod's cgroup is named after: for a static pod's mirror the hash of its manifest, else `uid`.
    pub cgroup_uid: Option<Arc<str>>,
    pub ips: Vec<IpAddr>,
    pub tag: Option<Tag>,
    /// The annotation `sluice.dev/capture`.
    pub capture: Option<bool>,
    pub node: Option<Arc<str>>,
    /// The label `topology.kubernetes.io/zone`, which recent clusters copy from the node.
    pub zone: Option<Arc<str>>,
    pub host_network: bool,
    /// When its condition `Ready` became true; `None` where it is not, or nobody says.
    pub ready_since: Option<SystemTime>,
    /// The mesh whose proxy takes the pod's connections already.
    pub own_proxy: Option<&'static str>,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed.
    pub finished: bool,
}
