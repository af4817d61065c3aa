//! The cluster of the soak: the API server's double, filled, and then changed all the time.
//!
//! Says on its standard output what it does: `ready`, and a line for each change that can be seen in a snapshot.

use std::{
    io::{BufRead as _, Write as _},
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_tests::api_server::ApiServer;

use crate::{Size, monotonic_nanos};

/// Nodes that pods are spread over; the agent under test is on the first.
const NODES: usize = 1000;

/// What is known of one endpoint.
#[derive(Clone)]
struct Endpoint {
    pod: String,
    ip: Ipv4Addr,
    node: usize,
    ready: bool,
}

struct Service {
    namespace: String,
    name: String,
    endpoints: Vec<Endpoint>,
}

/// The address at which the service of this number is called.
pub(crate) fn cluster_ip(service: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service as u32)
}

fn pod_ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 1)) + number as u32)
}

/// Runs until its standard input ends.
pub(crate) fn run(size: &Size, directory: &Path) -> Result<()> {
    let server = ApiServer::start()?;
    // As often as a real one.
    server.set_bookmarks(Some(Duration::from_secs(60)));
    let mut pods = 0;
    let mut services = fill(&server, size, &mut pods);
    server.kubeconfig(directory, "soak")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let seconds: f64 = line.trim().parse().context("for how many seconds?")?;

    let sent = server.sent();
    let began = Instant::now();
    let mut random = fastrand::Rng::with_seed(7);
    let mut changes = 0_u64;
    while began.elapsed().as_secs_f64() < seconds {
        let due = began + Duration::from_secs_f64(changes as f64 / size.changes as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let number = random.usize(..services.len());
        let service = &mut services[number];
        let index = random.usize(..service.endpoints.len());
        match random.u8(..10) {
            // An endpoint becomes ready, or is so no more.
            0..5 => {
                let endpoint = &mut service.endpoints[index];
                endpoint.ready = !endpoint.ready;
                let (ip, ready) = (endpoint.ip, u8::from(endpoint.ready));
                writeln!(out, "{} {number} {ip} {ready}", monotonic_nanos())?;
                server.apply("endpointslices", slice(service));
                changes += 1;
            }
            // A pod takes another's place.
            5..8 => {
                let old = std::mem::replace(&mut service.endpoints[index], endpoint(pods));
                pods += 1;
                let new = service.endpoints[index].clone();
                server.apply("pods", pod(&service.namespace, &new, pods));
                writeln!(out, "{} {number} {} 1", monotonic_nanos(), new.ip)?;
                server.apply("endpointslices", slice(service));
                server.delete("pods", &service.namespace, &old.pod);
                changes += 3;
            }
            // Something that is of no interest: the kubelet writes a pod's status.
            _ => {
                server.apply("pods", pod(&service.namespace, &service.endpoints[index], changes as usize));
                changes += 1;
            }
        }
        out.flush()?;
    }
    writeln!(out, "done {changes} {}", server.sent() - sent)?;
    out.flush()?;
    line.clear();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(())
}

fn fill(server: &ApiServer, size: &Size, pods: &mut usize) -> Vec<Service> {
    let mut services = Vec::with_capacity(size.services);
    for namespace in 0..size.namespaces {
        let annotations = json!({ "sluice.dev/capture": "enabled" });
        let name = format!("team-{namespace}");
        server.apply("namespaces", json!({ "metadata": { "name": name, "annotations": annotations } }));
    }
    for namespace in 0..size.namespaces {
        server.apply("namespaces", json!({ "metadata": { "name": format!("other-{namespace}") } }));
    }
    for number in 0..size.others.div_ceil(10) {
        let first = size.endpoints * 2 + number * 10;
        let count = (size.others - number * 10).min(10);
        let namespace = format!("other-{}", number % size.namespaces);
        let endpoints: Vec<_> = (0..count).map(|offset| endpoint(first + offset)).collect();
        for endpoint in &endpoints {
            server.apply("pods", pod(&namespace, endpoint, 0));
        }
        let service = Service { namespace, name: format!("other-{number}"), endpoints };
        server.apply("endpointslices", slice(&service));
    }
    for number in 0..size.services {
        let namespace = format!("team-{}", number % size.namespaces);
        let count = size.endpoints * (number + 1) / size.services - size.endpoints * number / size.services;
        let endpoints: Vec<_> = (0..count.max(1)).map(|offset| endpoint(*pods + offset)).collect();
        *pods += endpoints.len();
        for endpoint in &endpoints {
            server.apply("pods", pod(&namespace, endpoint, 0));
        }
        let service = Service { namespace, name: format!("service-{number}"), endpoints };
        server.apply(
            "services",
            json!({
                "metadata": { "name": service.name, "namespace": service.namespace, "managedFields": managed() },
                "spec": {
                    "clusterIP": cluster_ip(number), "clusterIPs": [cluster_ip(number)],
                    "selector": { "app": service.name },
                    "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
                },
            }),
        );
        server.apply("endpointslices", slice(&service));
        services.push(service);
    }
    services
}

fn endpoint(number: usize) -> Endpoint {
    Endpoint {
        pod: format!("pod-{number}-7d4b9c6f5-x2x4z"),
        ip: pod_ip(number),
        node: number % NODES,
        ready: true,
    }
}

fn uid(pod: &str) -> String {
    format!("{pod:-<36}")
}

fn slice(service: &Service) -> Value {
    let endpoints: Vec<_> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.ip],
                "conditions": { "ready": endpoint.ready, "serving": endpoint.ready, "terminating": false },
                "nodeName": format!("node-{}", endpoint.node),
                "zone": format!("zone-{}", endpoint.node % 3),
                "targetRef": {
                    "kind": "Pod", "namespace": service.namespace, "name": endpoint.pod,
                    "uid": uid(&endpoint.pod),
                },
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("{}-abcde", service.name), "namespace": service.namespace,
            "labels": { "kubernetes.io/service-name": service.name },
            "managedFields": managed(),
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

/// About as much as a pod of a real cluster says.
fn pod(namespace: &str, endpoint: &Endpoint, round: usize) -> Value {
    let variables: Vec<_> = (0..12)
        .map(|n| json!({ "name": format!("SETTING_{n}"), "value": "a value of usual length" }))
        .collect();
    let conditions: Vec<_> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .into_iter()
        .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }))
        .collect();
    json!({
        "metadata": {
            "name": endpoint.pod, "namespace": namespace, "uid": uid(&endpoint.pod),
            "labels": { "app": "service", "pod-template-hash": "7d4b9c6f5", "team": namespace },
            "managedFields": managed(),
        },
        "spec": {
            "nodeName": format!("node-{}", endpoint.node),
            "containers": [{
                "name": "app", "image": "registry.example/app:1", "env": variables,
                "ports": [{ "containerPort": 8080, "name": "http" }],
                "resources": { "requests": { "cpu": "100m", "memory": "256Mi" } },
            }],
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute" }],
        },
        "status": {
            "phase": "Running", "podIP": endpoint.ip, "podIPs": [{ "ip": endpoint.ip }],
            "conditions": conditions, "message": round.to_string(),
        },
    })
}

fn managed() -> Value {
    let fields: serde_json::Map<_, _> =
        (0..10).map(|n| (format!("f:field{n}"), json!({ "f:of": {} }))).collect();
    json!([{ "manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields }])
}
