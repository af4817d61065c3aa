//! What one endpoint's change costs the model, by the size of the cluster: the builder alone, on the CPU's clock.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use sluice::cluster::{
    builder::{Builder, Options},
    model::Protocol,
    object::{
        EndpointSlice, Frontend, Kind, Name, Namespace, Object, Pod, PodReference, Prefer, Service,
        ServicePort, SliceEndpoint, SlicePort,
    },
    source::{Change, Sighting},
};
use sluice::govern::caller::Labels;
use tokio::time::Instant;

/// To a Service.
const ENDPOINTS: usize = 10;
const FLIPS: usize = 2000;

/// Prints it for clusters of these sizes.
pub(crate) fn run() -> Result<()> {
    for endpoints in [1_000, 10_000, 100_000] {
        let services = endpoints / ENDPOINTS;
        let mut builder = filled(services);
        let mut last = builder.build(Instant::now()).context("the first snapshot always comes")?;
        let began = cpu()?;
        for flip in 0..FLIPS {
            // All over the cluster; all are ready at first.
            let service = flip * 7919 % services;
            let slice = slice(service, !(flip / services).is_multiple_of(2));
            builder.apply(Change::Applied(sighting(Object::EndpointSlice(Arc::new(slice)))));
            last = builder.build(Instant::now()).context("an endpoint has changed")?;
            let _ = (builder.counts(), builder.problems(Instant::now()));
        }
        let each = cpu()?.saturating_sub(began) / FLIPS as u32;
        println!("{endpoints} endpoints: {each:.1?} a change of one; generation {}", last.generation);
    }
    Ok(())
}

fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn sighting(object: Object) -> Sighting {
    Sighting { object, problems: Vec::new() }
}

fn name(name: String) -> Name {
    Name { namespace: "shop".into(), name: name.into() }
}

fn ip(first: u8, number: usize) -> std::net::IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(first, 0, 0, 1)) + number as u32).into()
}

fn filled(services: usize) -> Builder {
    let mut builder = Builder::new(Options { node: Some("node-0".into()), ..Options::default() });
    let all = |make: fn(usize) -> Object, count: usize| (0..count).map(|n| sighting(make(n))).collect();
    for kind in Kind::ALL {
        let objects = match kind {
            Kind::Namespace => all(namespace, 1),
            Kind::Service => all(service, services),
            Kind::EndpointSlice => {
                all(|number| Object::EndpointSlice(Arc::new(slice(number, true))), services)
            }
            Kind::Pod => all(pod, services * ENDPOINTS),
            _ => Vec::new(),
        };
        builder.apply(Change::Restarted(kind, objects));
    }
    builder
}

fn namespace(_: usize) -> Object {
    Object::Namespace(Namespace {
        name: "shop".into(),
        capture: Some(true),
        access_log: None,
        reclaim: None,
        endpoints: None,
        propagation: None,
    })
}

fn service(number: usize) -> Object {
    Object::Service(Service {
        name: name(format!("s{number}")),
        frontend: Frontend::ClusterIps(vec![ip(11, number)]),
        ports: vec![ServicePort { name: None, port: 80, protocol: Protocol::Http }],
        session_affinity: false,
        node_local: false,
        prefer: Prefer::Any,
        publish_not_ready_addresses: false,
        selector: Labels::default(),
        access_log: None,
        reclaim: None,
        endpoints: None,
        created: None,
    })
}

fn pod_name(number: usize) -> Name {
    name(format!("s{}-{}", number / ENDPOINTS, number % ENDPOINTS))
}

fn slice(service: usize, ready: bool) -> EndpointSlice {
    let endpoint = |n: usize| {
        let number = service * ENDPOINTS + n;
        SliceEndpoint {
            ip: ip(10, number),
            ready: ready || n > 0,
            serving: true,
            terminating: false,
            zone: None,
            node: Some("node-1".into()),
            pod: Some(PodReference { name: pod_name(number), uid: None }),
            hints: None,
        }
    };
    EndpointSlice {
        name: name(format!("s{service}-a")),
        service: Some(format!("s{service}").into()),
        ipv6: false,
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        ports: vec![SlicePort { name: None, port: 8080 }],
    }
}

fn pod(number: usize) -> Object {
    Object::Pod(Arc::new(Pod {
        name: pod_name(number),
        uid: Some(format!("u{number}").into()),
        ips: [ip(10, number)].into(),
        tag: None,
        labels: [("app", "a")].into_iter().collect(),
        workload: None,
        capture: None,
        propagation: None,
        node: Some("node-1".into()),
        zone: None,
        host_network: false,
        ready_since: None,
        warm_gate: None,
        started: None,
        first_request: None,
        terminating: false,
        finished: false,
        // As of another node.
        for_node: None,
        service_account: "default".into(),
    }))
}
