//! The ports at which an agent does not listen in a pod.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};

use crate::cluster::model::LOWEST_LISTENER_PORT;

/// The ports that containers declare, and those at which they are probed by number. Below the first port that the agent may listen
/// at none is kept.
pub(super) fn declared(spec: &core::PodSpec) -> Box<[u16]> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports: Vec<u16> = containers
        .flat_map(|container| {
            let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
            let probed = probes.into_iter().flatten().filter_map(|probe| {
                let named = probe.http_get.as_ref().map(|get| &get.port);
                match named.or(probe.tcp_socket.as_ref().map(|socket| &socket.port)) {
                    Some(IntOrString::Int(port)) => Some(*port),
                    Some(IntOrString::String(_)) => None,
                    None => probe.grpc.as_ref().map(|grpc| grpc.port),
                }
            });
            container.ports.iter().flatten().map(|port| port.container_port).chain(probed)
        })
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port >= LOWEST_LISTENER_PORT)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn declared_and_probed_ports_are_known() {
        let spec = json!({
            "initContainers": [{ "name": "sidecar", "ports": [{ "containerPort": 61_001 }] }],
            "containers": [
                {
                    "name": "a",
                    "ports": [{ "containerPort": 8080 }, { "containerPort": 65_000, "name": "grpc" }],
                    "readinessProbe": { "httpGet": { "path": "/", "port": 62_000 } },
                    "livenessProbe": { "httpGet": { "path": "/", "port": "grpc" } },
                },
                {
                    "name": "b",
                    "ports": [{ "containerPort": 61_001, "protocol": "UDP" }, { "containerPort": -1 }],
                    "startupProbe": { "grpc": { "port": 63_000 } },
                    "livenessProbe": { "tcpSocket": { "port": 64_000 } },
                    "readinessProbe": { "exec": { "command": ["true"] } },
                },
            ],
        });
        let spec: core::PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(*declared(&spec), [61_001, 62_000, 63_000, 64_000, 65_000]);
        assert!(declared(&core::PodSpec::default()).is_empty());
    }
}
