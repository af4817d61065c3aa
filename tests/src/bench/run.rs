//! The rounds: every load through every proxy in turn, in one world.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    Load, ProxyKind, Work,
    http2_load::Call,
    load::Outcome,
    proxies::{Origin, Running},
};
use crate::{Capture, Pod, Process, Service, World, binary};

/// Where the origin listens, in pod B.
const HTTP: u16 = 8080;
const BULK: u16 = 8081;
const HTTP2: u16 = 8082;

/// Connections that a pod has in TIME_WAIT at most. New connections soon have all of its ports there otherwise, and what is measured
/// is how long the kernel searches for a free one.
const FEW_IN_TIME_WAIT: &str = "1000";

/// Load that is not counted, before each measurement: connections are opened, pools filled, buffers grown.
const WARMUP: Duration = Duration::from_millis(400);

#[derive(Clone, Debug)]
pub struct Plan {
    pub loads: Vec<Load>,
    pub proxies: Vec<ProxyKind>,
    pub rounds: u32,
    /// How long each proxy bears each load in a round.
    pub time: Duration,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub round: u32,
    pub load: Load,
    pub proxy: ProxyKind,
    pub outcome: Outcome,
}

/// Plays the plan; `progress` is told each sample as it is taken.
pub fn run(plan: &Plan, mut progress: impl FnMut(&Sample)) -> Result<Vec<Sample>> {
    let bench = Bench::new()?;
    let mut samples = Vec::new();
    for round in 0..plan.rounds {
        for &load in &plan.loads {
            let mut proxies: Vec<_> =
                plan.proxies.iter().copied().filter(|&proxy| bears(proxy, load)).collect();
            // Each is the first as often as the others: what the machine does besides favours nobody.
            let first = round as usize % proxies.len().max(1);
            proxies.rotate_left(first);
            for proxy in proxies {
                let outcome = bench.measure(load, proxy, plan.time);
                let outcome = outcome
                    .with_context(|| format!("load {load} through {proxy}\n{}", bench.world.logs()))?;
                let sample = Sample { round, load, proxy, outcome };
                progress(&sample);
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// Whether a load says anything of a proxy.
pub fn bears(proxy: ProxyKind, load: Load) -> bool {
    match load.work {
        // nginx speaks no HTTP/2 to its upstreams.
        Work::Http2 { .. } => proxy != ProxyKind::Nginx,
        // nghttpx is there for HTTP/2.
        _ if proxy == ProxyKind::Nghttpx => false,
        // Other proxies have no part in a connect that is not theirs.
        Work::Connect => matches!(proxy, ProxyKind::Direct | ProxyKind::Sluice),
        // Memory of a proxy.
        Work::Idle => matches!(proxy, ProxyKind::Sluice | ProxyKind::Nginx | ProxyKind::Haproxy),
        Work::KeepAlive { .. } | Work::NewConnections | Work::Close => true,
        // Rules are asked for each request, and each request is told of; at the endpoint bytes are carried in the same way.
        Work::Bulk => !matches!(
            proxy,
            ProxyKind::Rules
                | ProxyKind::Observed
                | ProxyKind::Inbound
                | ProxyKind::Both
                | ProxyKind::Threads
        ),
    }
}

/// The topology. Fields are dropped in this order: the pods before their world.
struct Bench {
    _origin: Process,
    client: Pod,
    origin: Pod,
    service: Service,
    world: World,
}

impl Bench {
    fn new() -> Result<Self> {
        let world = World::new("bench")?;
        world.namespace("bench", Capture::Enabled)?;
        let client = world.pod("bench", "client").start()?;
        let origin = world.pod("bench", "origin").label("app", "origin").start()?;
        for pod in [&client, &origin] {
            pod.netns().sysctl("net/ipv4/tcp_max_tw_buckets", FEW_IN_TIME_WAIT)?;
        }
        let service = world
            .service("bench", "origin")
            .port("http", HTTP, HTTP)
            .port("http2", HTTP2, HTTP2)
            .port("tcp-bulk", BULK, BULK)
            .apply()?;
        // What is not HTTP goes direct unless a policy asks for it; this one asks for nothing else.
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "tcp-bulk", "namespace": service.namespace},
            "spec": {
                "targetRefs": [{"kind": "Service", "name": service.name, "sectionName": "tcp-bulk"}],
                "loadBalancer": {"panicThresholdPercent": 50},
            },
        }))?;
        let [http, http2, bulk] = [HTTP, HTTP2, BULK].map(|port| port.to_string());
        let mut process =
            origin.spawn("origin", binary("sluice-bench")?, &["origin", &http, &http2, &bulk])?;
        process.says("listening")?;
        Ok(Self { _origin: process, client, origin, service, world })
    }

    /// One load through one proxy that is started for it.
    fn measure(&self, load: Load, proxy: ProxyKind, time: Duration) -> Result<Outcome> {
        let origin =
            Origin { pod: &self.origin, service: &self.service, http: HTTP, http2: HTTP2, bulk: BULK };
        let running = Running::start(proxy, &self.world, &self.client, &origin)?;
        let wait_for = match load.work {
            Work::Http2 { .. } => running.http2,
            _ => running.http,
        }
        .to_string();
        let target = match load.work {
            Work::Bulk => running.bulk,
            Work::Http2 { .. } => running.http2,
            // A pod's own address is not governed, whether the caller is enrolled or not.
            Work::Connect => (self.origin.ipv4(), HTTP).into(),
            _ => running.http,
        };
        let (target, connections) = (target.to_string(), load.connections.to_string());
        let (warmup, time) = (WARMUP.as_secs_f64().to_string(), time.as_secs_f64().to_string());
        let proxy = running.pid().map(|pid| pid.to_string());
        let mut arguments = vec!["load", &target, "--wait-for", &wait_for, "--connections", &connections];
        arguments.extend(["--warmup", &warmup, "--time", &time]);
        if let Some(pid) = &proxy {
            arguments.extend(["--proxy", pid]);
        }
        let bytes = match load.work {
            Work::KeepAlive { bytes } => bytes,
            Work::Http2 { streams, .. } => streams,
            _ => 100,
        }
        .to_string();
        arguments.extend(match load.work {
            Work::KeepAlive { .. } => ["keep-alive", &bytes],
            Work::NewConnections => ["new-connections", &bytes],
            Work::Close => ["close", &bytes],
            Work::Http2 { call: Call::Get, .. } => ["http2", &bytes],
            Work::Http2 { call: Call::Unary, .. } => ["grpc-unary", &bytes],
            Work::Http2 { call: Call::Streaming, .. } => ["grpc-streaming", &bytes],
            Work::Bulk => ["bulk", &bytes],
            Work::Connect => ["connect", &bytes],
            Work::Idle => ["idle", &bytes],
        });
        let answer = self.client.run(binary("sluice-bench")?, &arguments)?;
        serde_json::from_str(&answer).with_context(|| format!("the client's report: {answer:?}"))
    }
}
