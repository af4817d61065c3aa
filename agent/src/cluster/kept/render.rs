//! An object as one line of text: its kind, and Kubernetes's own JSON of what Sluice uses of it.
//!
//! It is read by what reads the API server's objects ([`strip`]), so that nothing has a second form which would have to be kept
//! true: what is rendered and read again is the same object. Of pods there is nothing in it that is secret; of Sluice's own
//! kinds there is what anybody reads who may read policies.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    jiff::Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{
    api::{self, TagPropagation},
    cluster::{
        mesh,
        model::Protocol,
        object::{
            EndpointSlice, Frontend, Kind, Mesh, Name, Namespace, Object, Own, Pod, Prefer, ReferenceGrant,
            Route, Service, SliceEndpoint, Told,
        },
        probes,
        source::Sighting,
        strip,
    },
    govern::caller::Labels,
    observe::sampling::Ratio,
};

/// Appends the object's line.
pub(super) fn write(object: &Object, line: &mut Vec<u8>) -> io::Result<()> {
    let kind = object.key().kind;
    let json = match object {
        Object::Namespace(object) => namespace(object),
        Object::Service(object) => service(object),
        Object::EndpointSlice(object) => slice(object),
        Object::Pod(object) => pod(object),
        Object::TrafficPolicy(object) => own(kind, object),
        Object::TrafficLane(object) => own(kind, object),
        Object::AccessPolicy(object) => own(kind, object),
        Object::Route(_, object) => route(kind, object),
        Object::Mesh(object) => mesh_of_gateway(object),
        Object::ReferenceGrant(object) => grant(object),
    };
    line.extend_from_slice(kind.as_str().as_bytes());
    line.push(b' ');
    serde_json::to_writer(&mut *line, &json)?;
    line.push(b'\n');
    Ok(())
}

/// Reads such a line, without its end.
pub(super) fn read(line: &[u8]) -> Result<Sighting, String> {
    fn parse<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
        serde_json::from_slice(json)
    }
    let space = line.iter().position(|byte| *byte == b' ').ok_or("a line without a kind")?;
    let (kind, json) = (&line[..space], &line[space + 1..]);
    let kind = Kind::ALL.into_iter().find(|known| known.as_str().as_bytes() == kind);
    let kind = kind.ok_or("a kind that is not known")?;
    let wrong = |e: serde_json::Error| format!("an object of kind {kind} that cannot be read: {e}");
    let sighting = match kind {
        Kind::Namespace => strip::namespace(&parse::<core::Namespace>(json).map_err(wrong)?),
        Kind::Service => strip::service(parse::<core::Service>(json).map_err(wrong)?),
        Kind::EndpointSlice => strip::endpoint_slice(parse::<discovery::EndpointSlice>(json).map_err(wrong)?),
        Kind::Pod => strip::pod(parse::<core::Pod>(json).map_err(wrong)?),
        Kind::TrafficPolicy => strip::traffic_policy(&parse(json).map_err(wrong)?),
        Kind::TrafficLane => strip::traffic_lane(&parse(json).map_err(wrong)?),
        Kind::AccessPolicy => strip::access_policy(&parse(json).map_err(wrong)?),
        Kind::HttpRoute => strip::http_route(&parse(json).map_err(wrong)?),
        Kind::GrpcRoute => strip::grpc_route(&parse(json).map_err(wrong)?),
        Kind::ReferenceGrant => strip::reference_grant(&parse(json).map_err(wrong)?),
        Kind::Mesh => strip::x_mesh(&parse(json).map_err(wrong)?),
    };
    sighting.map_err(|problem| problem.to_string())
}

fn namespace(namespace: &Namespace) -> Value {
    let said = annotations(namespace.capture, namespace.access_log, namespace.reclaim, namespace.endpoints);
    let annotations = with_propagation(said, namespace.propagation);
    json!({ "metadata": { "name": namespace.name.as_ref(), "annotations": annotations } })
}

fn service(service: &Service) -> Value {
    let (kind, ips) = match &service.frontend {
        Frontend::ClusterIps(ips) => ("ClusterIP", json!(ips)),
        Frontend::Headless => ("ClusterIP", json!(["None"])),
        Frontend::None => ("ExternalName", json!([])),
    };
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| {
            let protocol = match port.protocol {
                // Its name says nothing either, or it would not be this.
                Protocol::Detect => None,
                Protocol::Http => Some("http"),
                Protocol::Http2 => Some("http2"),
                Protocol::Opaque => Some("tcp"),
            };
            json!({ "name": port.name.as_deref(), "port": port.port, "appProtocol": protocol })
        })
        .collect();
    json!({
        "metadata": {
            "namespace": service.name.namespace.as_ref(),
            "name": service.name.name.as_ref(),
            "annotations": annotations(None, service.access_log, service.reclaim, service.endpoints),
            "creationTimestamp": service.created.and_then(|created| Timestamp::from_second(created).ok()),
        },
        "spec": {
            "type": kind,
            "clusterIPs": ips,
            "ports": ports,
            "sessionAffinity": service.session_affinity.then_some("ClientIP"),
            "internalTrafficPolicy": service.node_local.then_some("Local"),
            "trafficDistribution": match service.prefer {
                Prefer::Any => None,
                Prefer::SameZone => Some("PreferSameZone"),
                Prefer::SameNode => Some("PreferSameNode"),
            },
            "publishNotReadyAddresses": service.publish_not_ready_addresses,
            "selector": pairs(&service.selector),
        },
    })
}

fn slice(slice: &EndpointSlice) -> Value {
    let endpoint = |endpoint: &SliceEndpoint| {
        let hints = |all: &[std::sync::Arc<str>]| -> Vec<_> {
            all.iter().map(|name| json!({ "name": name.as_ref() })).collect()
        };
        json!({
            "addresses": [endpoint.ip],
            "conditions": {
                "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating,
            },
            "zone": endpoint.zone.as_deref(),
            "nodeName": endpoint.node.as_deref(),
            "targetRef": endpoint.pod.as_ref().map(|pod| json!({
                "kind": "Pod",
                "namespace": pod.name.namespace.as_ref(),
                "name": pod.name.name.as_ref(),
                "uid": pod.uid.as_deref(),
            })),
            "hints": endpoint.hints.as_ref().map(|of| {
                json!({ "forZones": hints(&of.for_zones), "forNodes": hints(&of.for_nodes) })
            }),
        })
    };
    let mut metadata = metadata(&slice.name, &Value::Null);
    metadata["labels"] = json!({ strip::SERVICE_NAME_LABEL: slice.service.as_deref() });
    if slice.service.is_none() {
        metadata["labels"] = Value::Null;
    }
    json!({
        "metadata": metadata,
        "addressType": if slice.ipv6 { "IPv6" } else { "IPv4" },
        "endpoints": slice.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": slice.ports.iter().map(|port| json!({ "name": port.name.as_deref(), "port": port.port })).collect::<Vec<_>>(),
    })
}

fn pod(pod: &Pod) -> Value {
    let mut annotations = with_propagation(annotations(pod.capture, None, None, None), pod.propagation);
    let mut containers = Vec::new();
    if let Some(for_node) = &pod.for_node {
        if for_node.cgroup_uid != pod.uid {
            annotations[strip::MIRROR_ANNOTATION] = json!(for_node.cgroup_uid.as_deref());
        }
        match for_node.own_proxy.map(mesh::sign) {
            Some(Ok(container)) => containers.push(json!({ "name": container })),
            Some(Err((annotation, value))) => annotations[annotation] = value.into(),
            None => {}
        }
        containers.extend(for_node.probes.iter().map(probes::written));
    }
    let mut metadata = metadata(&pod.name, &annotations);
    metadata["uid"] = json!(pod.uid.as_deref());
    metadata["labels"] = pairs(&pod.labels);
    if pod.terminating {
        metadata["deletionTimestamp"] = json!(Timestamp::UNIX_EPOCH.to_string());
    }
    if let Some(workload) = &pod.workload {
        let owner = json!({ "kind": "Workload", "name": workload.as_ref(), "controller": true });
        metadata["ownerReferences"] = json!([owner]);
    }
    let condition = |kind: &str, is_true: bool, reason: &str, since: Option<SystemTime>| {
        json!({ "type": kind, "status": if is_true { "True" } else { "False" }, "reason": reason,
            "lastTransitionTime": since.and_then(timestamp).map(|since| since.to_string()) })
    };
    let mut conditions: Vec<_> =
        pod.ready_since.map(|since| condition("Ready", true, "", Some(since))).into_iter().collect();
    let first = pod.first_request.map(|first| UNIX_EPOCH + Duration::from_secs(first.get().into()));
    conditions.extend(first.map(|first| condition(api::FIRST_REQUEST_CONDITION, true, "", Some(first))));
    let container = |state: Value| json!({ "name": "", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state });
    let started = pod.started.and_then(|seconds| Timestamp::from_second(seconds.get().into()).ok());
    let mut statuses: Vec<_> = started
        .map(|started| container(json!({ "running": { "startedAt": started.to_string() } })))
        .into_iter()
        .collect();
    let gate = pod.warm_gate.as_deref();
    if let Some(gate) = gate {
        let told = gate.told.as_ref();
        let waits = gate.waits_since.map(|since| condition("ContainersReady", true, "", Some(since)));
        let told = told.map(|told| condition(api::WARM_CONDITION, told.is_warm, &told.reason, told.since));
        conditions.extend(waits.into_iter().chain(told));
        if gate.is_down {
            statuses.push(container(json!({ "waiting": {} })));
        }
    }
    json!({
        "metadata": metadata,
        "spec": { "nodeName": pod.node.as_deref(), "hostNetwork": pod.host_network, "containers": containers,
            "serviceAccountName": pod.service_account.as_ref(),
            "readinessGates": gate.map(|_| json!([{ "conditionType": api::WARM_CONDITION }])) },
        "status": {
            "phase": if pod.finished { "Succeeded" } else { "Running" },
            "podIPs": pod.ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
            "conditions": conditions,
            "containerStatuses": statuses,
        },
    })
}

fn route(kind: Kind, route: &Route) -> Value {
    let parents = route.told.iter().map(|at| {
        json!({
            "parentRef": at.reference,
            "controllerName": api::gateway::CONTROLLER,
            "conditions": told(at.conditions.as_deref().unwrap_or_default()),
        })
    });
    let mut object = own(kind, &route.own);
    object["status"] = json!({ "parents": parents.collect::<Vec<_>>() });
    object
}

fn mesh_of_gateway(mesh: &Mesh) -> Value {
    let controller = if mesh.ours { api::gateway::CONTROLLER } else { "" };
    let features = mesh.features.iter().map(|name| json!({ "name": name.as_ref() }));
    json!({
        "metadata": {
            "name": mesh.name.name.as_ref(), "uid": mesh.uid.as_deref(), "generation": mesh.generation,
        },
        "spec": {
            "controllerName": controller,
            "parametersRef": mesh.has_parameters.then(|| json!({})),
        },
        "status": { "conditions": told(&mesh.told), "supportedFeatures": features.collect::<Vec<_>>() },
    })
}

fn told(conditions: &[Told]) -> Value {
    let told = |told: &Told| {
        json!({
            "type": told.kind.as_ref(),
            "status": told.status.as_ref(),
            "reason": told.reason.as_ref(),
            "message": told.message.as_ref(),
            "observedGeneration": told.generation,
            "lastTransitionTime": told.since.as_ref(),
        })
    };
    conditions.iter().map(told).collect()
}

fn own<T>(kind: Kind, object: &Own<T>) -> Value {
    let mut metadata = metadata(&object.name, &Value::Null);
    metadata["uid"] = json!(object.uid.as_deref());
    metadata["generation"] = json!(object.generation);
    let created = object.created.and_then(|seconds| Timestamp::from_second(seconds).ok());
    metadata["creationTimestamp"] = json!(created.map(|created| created.to_string()));
    json!({
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "metadata": metadata,
        "spec": *object.spec,
        "status": { "conditions": told(&object.told), "targets": object.shown.as_deref() },
    })
}

fn grant(grant: &ReferenceGrant) -> Value {
    let kind = Kind::ReferenceGrant;
    let metadata = metadata(&grant.name, &Value::Null);
    json!({ "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": metadata, "spec": *grant.spec })
}

fn metadata(name: &Name, annotations: &Value) -> Value {
    json!({ "namespace": name.namespace.as_ref(), "name": name.name.as_ref(), "annotations": annotations })
}

fn annotations(
    capture: Option<bool>,
    access_log: Option<Ratio>,
    reclaim: Option<bool>,
    endpoints: Option<bool>,
) -> Value {
    let mut annotations = json!({});
    for (name, said) in [(api::CAPTURE_ANNOTATION, capture), (api::RECLAIM_ANNOTATION, reclaim)] {
        if let Some(said) = said {
            annotations[name] = if said { "enabled" } else { "disabled" }.into();
        }
    }
    if let Some(ratio) = access_log {
        annotations[api::ACCESS_LOG_ANNOTATION] = ratio.to_string().into();
    }
    if let Some(endpoints) = endpoints {
        annotations[api::ENDPOINTS_ANNOTATION] = if endpoints { "governed" } else { "direct" }.into();
    }
    annotations
}

fn with_propagation(mut annotations: Value, propagation: Option<TagPropagation>) -> Value {
    if let Some(propagation) = propagation {
        annotations[api::PROPAGATION_ANNOTATION] = propagation.as_str().into();
    }
    annotations
}

fn pairs(labels: &Labels) -> Value {
    labels.iter().map(|(key, value)| (key.to_owned(), value.into())).collect::<Map<_, _>>().into()
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sightings() -> Vec<Sighting> {
        let all = json!([
            ["Namespace", { "metadata": { "name": "shop", "annotations": {
                "sluice.dev/capture": "enabled", "sluice.dev/access-log": "0.1", "sluice.dev/reclaim": "enabled", "sluice.dev/endpoints": "governed", "sluice.dev/propagation": "trace" } } }],
            ["Namespace", { "metadata": { "name": "bank", "annotations": { "sluice.dev/capture": "disabled" } } }],
            ["Namespace", { "metadata": { "name": "plain" } }],
            ["Service", { "metadata": { "namespace": "shop", "name": "orders", "creationTimestamp": "2026-01-02T03:04:05Z", "annotations": {
                "sluice.dev/access-log": "1", "sluice.dev/reclaim": "disabled", "sluice.dev/endpoints": "direct" } },
                "spec": {
                    "clusterIPs": ["10.96.0.1", "fd00::1"], "sessionAffinity": "ClientIP",
                    "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose", "selector": { "app": "orders" },
                    "ports": [
                        { "name": "http", "port": 80 }, { "name": "web", "port": 81, "appProtocol": "kubernetes.io/h2c" },
                        { "name": "mysql-main", "port": 82 }, { "name": "other", "port": 83 },
                        { "name": "udp", "port": 84, "protocol": "UDP" },
                    ],
                } }],
            ["Service", { "metadata": { "namespace": "shop", "name": "hidden" }, "spec": {
                "clusterIP": "None", "publishNotReadyAddresses": true, "trafficDistribution": "PreferSameNode",
                "ports": [{ "port": 80 }] } }],
            ["Service", { "metadata": { "namespace": "shop", "name": "outside" }, "spec": {
                "type": "ExternalName", "externalName": "example.com" } }],
            ["EndpointSlice", { "metadata": { "namespace": "shop", "name": "orders-1",
                    "labels": { "kubernetes.io/service-name": "orders" } },
                "addressType": "IPv6", "ports": [{ "name": "http", "port": 8080 }, { "port": 8081 }],
                "endpoints": [
                    { "addresses": ["fd00:1::1"] },
                    { "addresses": ["fd00:1::2"], "zone": "a", "nodeName": "n1",
                      "conditions": { "ready": false, "serving": true, "terminating": true },
                      "targetRef": { "kind": "Pod", "namespace": "shop", "name": "orders-1", "uid": "u1" },
                      "hints": { "forZones": [{ "name": "a" }], "forNodes": [{ "name": "n1" }] } },
                ] }],
            ["Pod", { "metadata": { "namespace": "shop", "name": "orders-1", "uid": "u1",
                    "labels": { "app": "orders", "sluice.dev/tag": "gray", "topology.kubernetes.io/zone": "a",
                                "pod-template-hash": "7d9" },
                    "annotations": { "sluice.dev/capture": "disabled" },
                    "deletionTimestamp": "2026-01-01T00:00:00Z",
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-7d9",
                                          "uid": "r", "controller": true }] },
                "spec": { "nodeName": "n1", "serviceAccountName": "shop", "containers": [{ "name": "app",
                    "livenessProbe": { "httpGet": { "port": 8080, "path": "/live" } },
                    "readinessProbe": { "grpc": { "port": 9090 } } }] },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.0.1" }, { "ip": "fd00:1::2" }],
                    "conditions": [
                        { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z" },
                        { "type": "sluice.dev/first-request", "status": "True", "lastTransitionTime": "2026-01-01T00:00:07Z" }],
                    "containerStatuses": [{ "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } }] } }],
            ["Pod", { "metadata": { "namespace": "shop", "name": "static", "uid": "u2",
                    "annotations": { "kubernetes.io/config.mirror": "m2" } },
                "spec": { "hostNetwork": true, "containers": [{ "name": "linkerd-proxy" }] },
                "status": { "phase": "Failed" } }],
            ["Pod", { "metadata": { "namespace": "shop", "name": "ambient", "uid": "u3",
                    "annotations": { "ambient.istio.io/redirection": "enabled" } } }],
            ["Pod", { "metadata": { "namespace": "shop", "name": "warming", "uid": "u5" },
                "spec": { "containers": [], "readinessGates": [{ "conditionType": "sluice.dev/warm" }] },
                "status": {
                    "conditions": [
                        { "type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z" },
                        { "type": "sluice.dev/warm", "status": "False", "reason": "WarmingUp", "lastTransitionTime": "2026-01-01T00:00:02Z" }],
                    "containerStatuses": [{ "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                        "state": { "waiting": {} } }] } }],
            ["Pod", { "metadata": { "namespace": "shop", "name": "labelled", "uid": "u4",
                    "labels": { "istio.io/dataplane-mode": "ambient" } } }],
            ["TrafficPolicy", { "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy",
                "metadata": { "namespace": "shop", "name": "orders", "uid": "p1", "generation": 3,
                              "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "targetRefs": [{ "kind": "Service", "name": "orders" }], "timeout": "1s" },
                "status": { "conditions": [{ "type": "Accepted", "status": "True", "reason": "Accepted",
                    "message": "m", "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z" }] } }],
            ["TrafficLane", { "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
                "metadata": { "namespace": "shop", "name": "gray" },
                "spec": { "tag": "gray", "workloadSelector": { "matchLabels": { "app": "x" } } } }],
            ["AccessPolicy", { "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy",
                "metadata": { "namespace": "shop", "name": "orders", "uid": "a1", "generation": 2 },
                "spec": { "targetRefs": [{ "name": "orders" }], "mode": "Observe",
                    "rules": [{ "name": "ours", "from": [{ "serviceAccount": "gateway" }] }] } }],
            ["HTTPRoute", { "metadata": { "namespace": "shop", "name": "r", "uid": "r1" },
                "spec": { "parentRefs": [{ "kind": "Service", "group": "", "name": "orders" }] },
                "status": { "parents": [{
                    "parentRef": { "kind": "Service", "group": "", "name": "orders" },
                    "controllerName": "sluice.dev/agent",
                    "conditions": [{ "type": "Accepted", "status": "True", "reason": "Accepted", "message": "m",
                        "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z" }] }] } }],
            ["XMesh", { "metadata": { "name": "sluice", "uid": "m1", "generation": 1 },
                "spec": { "controllerName": "sluice.dev/agent", "parametersRef": { "name": "x" } },
                "status": {
                    "conditions": [{ "type": "Accepted", "status": "False", "reason": "InvalidParameters", "message": "m",
                        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                    "supportedFeatures": [{ "name": "Mesh" }] } }],
            ["ReferenceGrant", { "metadata": { "namespace": "shop", "name": "g" }, "spec": {
                "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "bank" }],
                "to": [{ "group": "", "kind": "Service" }] } }],
        ]);
        let line = |entry: &Value| format!("{} {}", entry[0].as_str().unwrap(), entry[1]);
        all.as_array().unwrap().iter().map(|entry| read(line(entry).as_bytes()).unwrap()).collect()
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let all = sightings();
        let kinds: std::collections::BTreeSet<_> = all.iter().map(|one| one.object.key().kind).collect();
        for sighting in all {
            let mut line = Vec::new();
            write(&sighting.object, &mut line).unwrap();
            assert_eq!(line.pop(), Some(b'\n'));
            assert!(!line.contains(&b'\n'));
            let again = read(&line).unwrap();
            assert_eq!(again.object, sighting.object, "{}", String::from_utf8_lossy(&line));
        }
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::GrpcRoute) {
            assert!(kinds.contains(&kind), "{kind} is not tried");
        }
    }

    #[test]
    fn an_object_that_makes_no_sense_stays_what_it_is() {
        let policy = br#"TrafficPolicy {"metadata":{"namespace":"shop","name":"p","generation":2},"spec":{"timeout":7}}"#;
        let sighting = read(policy).unwrap();
        assert!(!sighting.problems.is_empty());
        let mut line = Vec::new();
        write(&sighting.object, &mut line).unwrap();
        assert_eq!(read(line.trim_ascii_end()).unwrap(), sighting);
    }

    #[test]
    fn an_access_policy_that_makes_no_sense_denies_if_it_says_so() {
        let policy = br#"AccessPolicy {"metadata":{"namespace":"shop","name":"p"},"spec":{"targetRefs":[{"name":"orders"}],"onInvalid":"Deny"}}"#;
        let sighting = read(policy).unwrap();
        let Object::AccessPolicy(own) = &sighting.object else { panic!("{sighting:?}") };
        assert!(own.asked.is_err() && own.instead.is_some());
        let mut line = Vec::new();
        write(&sighting.object, &mut line).unwrap();
        assert_eq!(read(line.trim_ascii_end()).unwrap(), sighting);
    }

    #[test]
    fn what_is_no_object_is_told() {
        for line in ["", "Pod", "Pod {", "Gnu {}", "Pod {\"metadata\":{}}", "Service 7"] {
            assert!(read(line.as_bytes()).is_err(), "{line:?}");
        }
    }
}
