//! By what the kubelet probes the containers of a pod.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, Probe as Spec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use crate::govern::access::probe::{By, Probe};

/// Those of a pod, each once. What makes no sense is no probe.
pub(super) fn probes(spec: &PodSpec) -> Arc<[Probe]> {
    let mut found = Vec::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in probes.into_iter().flatten().filter_map(|spec| probe(spec, container)) {
            if !found.contains(&probe) {
                found.push(probe);
            }
        }
    }
    // Most pods of a large cluster are of other nodes, and have none or those of their siblings.
    if found.is_empty() { Arc::default() } else { found.into() }
}

/// A container with this probe, as manifests have it.
pub(super) fn written(probe: &Probe) -> Value {
    let port = probe.port;
    let check = match &probe.by {
        By::Http(path) => json!({ "httpGet": { "port": port, "path": path } }),
        By::Https => json!({ "httpGet": { "port": port, "scheme": "HTTPS" } }),
        By::Grpc => json!({ "grpc": { "port": port } }),
        By::Tcp => json!({ "tcpSocket": { "port": port } }),
    };
    json!({ "name": "", "livenessProbe": check })
}

fn probe(spec: &Spec, container: &Container) -> Option<Probe> {
    if let Some(http) = &spec.http_get {
        // One with a host of its own does not come here.
        let port = port(&http.port, container)?;
        let by = if http.scheme.as_deref() == Some("HTTPS") {
            By::Https
        } else {
            let path = http.path.as_deref().unwrap_or("/");
            By::Http(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
        };
        return Some(Probe { port, by });
    }
    if let Some(grpc) = &spec.grpc {
        return Some(Probe { port: u16::try_from(grpc.port).ok()?, by: By::Grpc });
    }
    Some(Probe { port: port(&spec.tcp_socket.as_ref()?.port, container)?, by: By::Tcp })
}

/// A number, or the name of one of the container's ports.
fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_kinds_of_probes_are_found_once() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [
                {
                    "name": "app",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/live"}},
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/live"}},
                    "startupProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
                },
                {
                    "name": "side",
                    "livenessProbe": {"tcpSocket": {"port": 9000}},
                    "readinessProbe": {"grpc": {"port": 9090}},
                    "startupProbe": {"httpGet": {"port": "nowhere"}},
                },
            ],
            "initContainers": [{"name": "native", "startupProbe": {"httpGet": {"port": 15021, "path": "ready"}}}],
        }))
        .unwrap();
        let wanted = [
            Probe { port: 8080, by: By::Http("/live".to_owned()) },
            Probe { port: 8443, by: By::Https },
            Probe { port: 9000, by: By::Tcp },
            Probe { port: 9090, by: By::Grpc },
            Probe { port: 15021, by: By::Http("/ready".to_owned()) },
        ];
        let found = probes(&spec);
        assert_eq!(*found, wanted);
        // Written and read again they are the same.
        let containers: Vec<_> = found.iter().map(written).collect();
        let again: PodSpec = serde_json::from_value(json!({ "containers": containers })).unwrap();
        assert_eq!(probes(&again), found);
    }
}
