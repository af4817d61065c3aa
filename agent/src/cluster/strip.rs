//! From Kubernetes's types to [`super::object`]: the one place that says which fields Sluice uses, and checks them.
//!
//! A field that is wrong is left out and named; only an object without a usable name is refused as a whole. The API
//! server has checked all of this for its own objects; a directory of manifests has nobody else to do it.

mod gateway;
mod own;
mod pod;
mod ports;
mod warm_gate;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{Debug, Display},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

pub use self::{
    gateway::{
        GrpcRoute, HttpRoute, Mesh, ReferenceGrant, grpc_route, http_route, mesh as x_mesh, reference_grant,
    },
    own::{Loose, Named, access_policy, told, traffic_lane, traffic_policy},
    pod::pod,
};
use super::{
    intern::intern,
    object::{
        EndpointSlice, Frontend, Hints, Key, Kind, Name, Namespace, Object, PodReference, Prefer, Service,
        ServicePort, SliceEndpoint, SlicePort,
    },
    problem::Problem,
    protocol,
    source::Sighting,
};
use crate::{
    api::{self, TagPropagation},
    govern::caller::Labels,
    observe::sampling::Ratio,
};

/// On an EndpointSlice: the Service that it belongs to.
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// On the API server's mirror of a static pod: the UID by which the kubelet itself knows the pod.
pub(super) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

const PORT: &str = "is no port: allowed are 1 to 65535; it is left out";

pub fn namespace(object: &core::Namespace) -> Result<Sighting, Problem> {
    let mut check = Check::begin(Kind::Namespace, &object.metadata)?;
    let namespace = Namespace {
        name: check.key.name.name.clone(),
        capture: check.capture(object.metadata.annotations.as_ref()),
        access_log: check.access_log(object.metadata.annotations.as_ref()),
        reclaim: check.reclaim(object.metadata.annotations.as_ref()),
        endpoints: check.endpoints(object.metadata.annotations.as_ref()),
        propagation: check.propagation(object.metadata.annotations.as_ref()),
    };
    Ok(check.end(Object::Namespace(namespace)))
}

pub fn service(object: core::Service) -> Result<Sighting, Problem> {
    let mut check = Check::begin(Kind::Service, &object.metadata)?;
    let spec = object.spec.unwrap_or_default();
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    let mut ports = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name| format!("spec.ports[{i}].{name}");
        if !check.is_tcp(port.protocol.as_deref(), || field("protocol")) {
            continue;
        }
        let Some(number) = port_number(port.port) else {
            check.note(field("port"), format!("{} {PORT}", port.port));
            continue;
        };
        let name = text(port.name.as_deref());
        if !numbers.insert(number) {
            check.note(field("port"), format!("{number} is there already; this one is left out"));
        } else if !names.insert(name.clone()) {
            let message = match &name {
                Some(name) => format!("{name:?} is there already; this port is left out"),
                None => "not set on more than one port: each needs a name; this port is left out".to_owned(),
            };
            check.note(field("name"), message);
        } else {
            let protocol = protocol::declared(port.app_protocol.as_deref(), name.as_deref());
            ports.push(ServicePort { name, port: number, protocol });
        }
    }
    let frontend = check.frontend(&spec);
    let affinity = spec.session_affinity.as_deref();
    let policy = spec.internal_traffic_policy.as_deref();
    let distribution = spec.traffic_distribution.as_deref();
    let service = Service {
        name: check.key.name.clone(),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        frontend,
        ports,
        session_affinity: check.one_of("spec.sessionAffinity", affinity, "None", &[("ClientIP", true)]),
        node_local: check.one_of("spec.internalTrafficPolicy", policy, "Cluster", &[("Local", true)]),
        prefer: check.one_of(
            "spec.trafficDistribution",
            distribution,
            "",
            &[
                ("PreferClose", Prefer::SameZone),
                ("PreferSameZone", Prefer::SameZone),
                ("PreferSameNode", Prefer::SameNode),
            ],
        ),
        publish_not_ready_addresses: spec.publish_not_ready_addresses.unwrap_or(false),
        selector: pairs(spec.selector.as_ref()),
        access_log: check.access_log(object.metadata.annotations.as_ref()),
        reclaim: check.reclaim(object.metadata.annotations.as_ref()),
        endpoints: check.endpoints(object.metadata.annotations.as_ref()),
    };
    Ok(check.end(Object::Service(service)))
}

pub fn endpoint_slice(object: discovery::EndpointSlice) -> Result<Sighting, Problem> {
    let mut check = Check::begin(Kind::EndpointSlice, &object.metadata)?;
    let service =
        object.metadata.labels.as_ref().and_then(|labels| text(labels.get(SERVICE_NAME_LABEL).map(|s| &**s)));
    if service.is_none() {
        check.note(
            format!("metadata.labels[\"{SERVICE_NAME_LABEL}\"]"),
            "not set: the slice belongs to no Service and is not used",
        );
    }
    let family = match &*object.address_type {
        "IPv4" => Some(false),
        "IPv6" => Some(true),
        other => {
            check.note(
                "addressType",
                format!(
                    "{other:?} is not used: allowed are \"IPv4\" and \"IPv6\"; its endpoints are left out"
                ),
            );
            None
        }
    };
    let mut ports = Vec::new();
    for (i, port) in object.ports.iter().flatten().enumerate() {
        let field = |name| format!("ports[{i}].{name}");
        if !check.is_tcp(port.protocol.as_deref(), || field("protocol")) {
            continue;
        }
        let name = text(port.name.as_deref());
        match port.port.map(|number| port_number(number).ok_or(number)) {
            Some(Ok(number)) => ports.push(SlicePort { name, port: number }),
            Some(Err(number)) => check.note(field("port"), format!("{number} {PORT}")),
            // "If this is not specified, ports are not restricted": means nothing to a Service, which has ports.
            None => check.note(field("port"), "not set; it is left out"),
        }
    }
    // Not collected in the place of the API's much larger objects: the list would keep their memory, or leave a hole behind it.
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    if let Some(ipv6) = family {
        let all = object.endpoints.into_iter().enumerate();
        endpoints.extend(all.filter_map(|(i, endpoint)| check.endpoint(i, endpoint, ipv6)));
    }
    ports.shrink_to_fit();
    let slice = EndpointSlice {
        name: check.key.name.clone(),
        service,
        ipv6: family.unwrap_or_default(),
        endpoints,
        ports,
    };
    Ok(check.end(Object::EndpointSlice(Arc::new(slice))))
}

/// Why this can be the name of no object, nor of a namespace.
pub(crate) fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("not set".to_owned());
    }
    let start = || name.chars().take(80).collect::<String>();
    (!is_name(name)).then(|| {
        format!(
            "{:?} is no name: allowed are 1 to 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit",
            start()
        )
    })
}

/// Collects what is wrong with one object while it is stripped.
struct Check {
    key: Key,
    problems: Vec<Problem>,
}

impl Check {
    fn begin(kind: Kind, metadata: &ObjectMeta) -> Result<Self, Problem> {
        let key = key(kind, metadata.namespace.as_deref(), metadata.name.as_deref());
        for (field, name) in [("metadata.name", &key.name.name), ("metadata.namespace", &key.name.namespace)]
        {
            let without_namespace = kind.is_cluster_wide() && field == "metadata.namespace";
            if !without_namespace && let Some(wrong) = wrong_name(name) {
                return Err(Problem::of(key.clone(), format!("{wrong}; the object is left out")).at(field));
            }
        }
        Ok(Self { key, problems: Vec::new() })
    }

    fn note(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::of(self.key.clone(), message).at(field));
    }

    fn end(self, object: Object) -> Sighting {
        Sighting { object, problems: self.problems }
    }

    fn capture(&mut self, annotations: Option<&BTreeMap<String, String>>) -> Option<bool> {
        self.annotation(annotations, api::CAPTURE_ANNOTATION, api::parse_capture)
    }

    fn access_log(&mut self, annotations: Option<&BTreeMap<String, String>>) -> Option<Ratio> {
        self.annotation(annotations, api::ACCESS_LOG_ANNOTATION, api::parse_access_log)
    }

    fn reclaim(&mut self, annotations: Option<&BTreeMap<String, String>>) -> Option<bool> {
        self.annotation(annotations, api::RECLAIM_ANNOTATION, api::parse_capture)
    }

    fn endpoints(&mut self, annotations: Option<&BTreeMap<String, String>>) -> Option<bool> {
        self.annotation(annotations, api::ENDPOINTS_ANNOTATION, api::parse_endpoints)
    }

    fn propagation(&mut self, annotations: Option<&BTreeMap<String, String>>) -> Option<TagPropagation> {
        self.annotation(annotations, api::PROPAGATION_ANNOTATION, api::parse_propagation)
    }

    fn annotation<T, E: Display>(
        &mut self,
        annotations: Option<&BTreeMap<String, String>>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(annotations?.get(key)?) {
            Ok(value) => Some(value),
            Err(e) => {
                self.note(format!("metadata.annotations[\"{key}\"]"), e.to_string());
                None
            }
        }
    }

    fn is_tcp(&mut self, protocol: Option<&str>, field: impl FnOnce() -> String) -> bool {
        match protocol {
            None | Some("" | "TCP") => true,
            Some("UDP" | "SCTP") => false,
            Some(other) => {
                self.note(
                    field(),
                    format!("{other:?} is none of \"TCP\", \"UDP\", \"SCTP\"; the port is left out"),
                );
                false
            }
        }
    }

    fn one_of<T: Copy + Default>(
        &mut self,
        field: &str,
        value: Option<&str>,
        default: &str,
        allowed: &[(&str, T)],
    ) -> T {
        let Some(value) = value.filter(|value| !value.is_empty() && *value != default) else {
            return T::default();
        };
        if let Some((_, meaning)) = allowed.iter().find(|(word, _)| *word == value) {
            return *meaning;
        }
        let words = std::iter::once(default).filter(|word| !word.is_empty());
        let words: Vec<_> =
            words.chain(allowed.iter().map(|(word, _)| *word)).map(|word| format!("{word:?}")).collect();
        self.note(field, format!("{value:?} is none of {}; it counts as not set", words.join(", ")));
        T::default()
    }

    fn frontend(&mut self, spec: &core::ServiceSpec) -> Frontend {
        if spec.type_.as_deref() == Some("ExternalName") {
            return Frontend::None;
        }
        let listed = spec.cluster_ips.iter().flatten().enumerate();
        let mut addresses: Vec<_> = listed.map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), &**ip)).collect();
        if addresses.is_empty() {
            addresses.extend(spec.cluster_ip.as_deref().map(|ip| ("spec.clusterIP".to_owned(), ip)));
        }
        addresses.retain(|(_, address)| !address.is_empty());
        if addresses.iter().any(|(_, address)| *address == "None") {
            return Frontend::Headless;
        }
        if addresses.is_empty() {
            self.note(
                "spec.clusterIP",
                "not set: the Service cannot be called, and is not managed until it is set",
            );
            return Frontend::None;
        }
        let mut ips: Vec<IpAddr> = Vec::new();
        for (field, address) in addresses {
            match usable_address(address) {
                Ok(ip) if ips.iter().any(|other| other.is_ipv6() == ip.is_ipv6()) => {
                    self.note(field, format!("{ip} is a second address of its family; it is left out"));
                }
                Ok(ip) => ips.push(ip),
                Err(message) => self.note(field, message),
            }
        }
        if ips.is_empty() { Frontend::None } else { Frontend::ClusterIps(ips) }
    }

    fn endpoint(&mut self, i: usize, endpoint: discovery::Endpoint, ipv6: bool) -> Option<SliceEndpoint> {
        let field = |name: &str| format!("endpoints[{i}].{name}");
        // "No semantics are defined for additional addresses beyond the first, and kube-proxy does not look at them."
        let Some(address) = endpoint.addresses.first() else {
            self.note(field("addresses"), "empty; the endpoint is left out");
            return None;
        };
        if endpoint.addresses.len() > 1 {
            let all = endpoint.addresses.len();
            self.note(
                field("addresses"),
                format!("only the first of {all} is used, as Kubernetes does: give each its own endpoint"),
            );
        }
        let ip = match usable_address(address) {
            Ok(ip) if ip.is_ipv6() == ipv6 => ip,
            Ok(ip) => {
                let family = if ipv6 { "IPv6" } else { "IPv4" };
                self.note(
                    field("addresses[0]"),
                    format!("{ip} is not of addressType {family:?}; it is left out"),
                );
                return None;
            }
            Err(message) => {
                self.note(field("addresses[0]"), message);
                return None;
            }
        };
        let conditions = endpoint.conditions.unwrap_or_default();
        // Defaults as the API documents them: "a nil value should be interpreted as" true, the same as ready, false.
        let ready = conditions.ready.unwrap_or(true);
        let hints = endpoint.hints.map(|hints| Hints {
            for_zones: hints.for_zones.iter().flatten().filter_map(|zone| common(Some(&zone.name))).collect(),
            for_nodes: hints.for_nodes.iter().flatten().filter_map(|node| common(Some(&node.name))).collect(),
        });
        let says_something = |hints: &Hints| !hints.for_zones.is_empty() || !hints.for_nodes.is_empty();
        Some(SliceEndpoint {
            ip,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            zone: common(endpoint.zone.as_deref()),
            node: common(endpoint.node_name.as_deref()),
            pod: endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(
                |target| {
                    let namespace = common(target.namespace.as_deref())
                        .unwrap_or_else(|| self.key.name.namespace.clone());
                    let name = Name { namespace, name: text(target.name.as_deref())? };
                    Some(PodReference { name, uid: text(target.uid.as_deref()) })
                },
            ),
            hints: hints.filter(says_something).map(Box::new),
        })
    }
}

/// The key of an object with this metadata. Without a namespace it lives in `default`, as with kubectl.
pub(crate) fn key(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> Key {
    let namespace = match kind {
        Kind::Namespace => "",
        _ => namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default"),
    };
    Key { kind, name: Name { namespace: intern(namespace), name: name.unwrap_or_default().into() } }
}

/// Whether the API server could have taken this as a name: a DNS subdomain.
fn is_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 253
        && edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// [`text`] that many objects have in common.
fn common(value: Option<&str>) -> Option<Arc<str>> {
    value.filter(|value| !value.is_empty()).map(intern)
}

fn text(value: Option<&str>) -> Option<Arc<str>> {
    value.filter(|value| !value.is_empty()).map(Arc::from)
}

fn pairs(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn no_address(value: &(impl Debug + ?Sized)) -> String {
    format!("{value:?} is no IP address; it is left out")
}

/// An address that a Service or an endpoint may have. Kubernetes refuses the rest too: a caller's own loopback, or
/// the node's metadata server on a link-local address, is nobody's service.
fn usable_address(address: &str) -> Result<IpAddr, String> {
    let ip = address.parse::<IpAddr>().map_err(|_| no_address(address))?;
    if api::address::is_special(ip) {
        Err(format!(
            "{ip} cannot be a service's address: not allowed are unspecified, loopback, link-local, multicast, \
             broadcast and IPv4-mapped ones; it is left out"
        ))
    } else {
        Ok(ip)
    }
}
