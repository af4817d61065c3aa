//! The proxy, with one worker, one pod and one endpoint, all on the loopback interface. What the agent asks of the kernel side
//! is answered by [`Loopback`].

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use sluice::{
    cluster::{
        Cluster,
        builder::Options,
        manifests,
        model::{Destination, Group, Routed, Service, Snapshot, Workload},
    },
    govern::{endpoint::Endpoint, lane::TagNames},
    observe::{
        access_log::AccessLog,
        metrics::Metrics,
        trace::{Tracer, context::Propagation},
    },
    proxy::{self, Network, Pod, Proxy},
};
use tokio::io::unix::AsyncFd;

use crate::Work;

/// What the client dials, as the pod sees it.
const DIALLED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);

struct Loopback;

impl Network for Loopback {
    fn origin(&self, _: BorrowedFd<'_>) -> io::Result<Option<proxy::Origin>> {
        Ok(Some(proxy::Origin { destination: DIALLED, socket: 1, options: proxy::SocketOptions::default() }))
    }

    fn has_closed(&self, _: u64) -> bool {
        false
    }

    fn unacknowledged(&self, _: BorrowedFd<'_>) -> io::Result<usize> {
        Ok(0)
    }

    fn redirected(&self) -> u64 {
        0
    }

    fn allow(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn connecting(&self, _: &socket2::Socket) -> io::Result<()> {
        Ok(())
    }

    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool {
        sluice::capture::is_at_urgent_byte(socket)
    }

    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
        sluice::capture::watched(listener)
    }

    fn memory_of(&self, _: BorrowedFd<'_>) -> usize {
        0
    }

    fn let_buffers_grow(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn socket(&self, to: SocketAddr, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

pub(crate) fn run(requests: u64, work: Work, directory: &Path) -> Result<()> {
    let (mut peers, origin) = start_peers(requests, work)?;
    let current = Arc::new(ArcSwap::from_pointee(snapshot(directory, origin)?));
    let proxy = Proxy::start(&proxy::Options {
        workers: 1,
        current,
        metrics: Arc::new(Metrics::new()),
        access_log: AccessLog::off(),
        tracer: Tracer::off(&[Propagation::W3c]),
        tag_names: Arc::new(TagNames::new(&["x-mse-tag".parse()?])?),
        limits: proxy::Limits::default(),
        trace_link: false,
        drain_idle_timeout: Duration::from_millis(50),
    })?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the pod cannot listen")?;
    let address = listener.local_addr()?;
    let workload = ArcSwap::from_pointee(Workload::new("uid-1", "shop", "gateway-1"));
    let pod = Arc::new(Pod::new(workload, Arc::new(Loopback)));
    let open = proxy.open(&pod, vec![listener]);
    let mut stdin = peers.stdin.take().context("the peers have no standard input")?;
    writeln!(stdin, "{address}")?;
    let status = peers.wait()?;
    ensure!(status.success(), "the client failed: {status}");
    drop(open);
    Ok(())
}

/// Starts the client and the origin, and says where the origin listens.
fn start_peers(requests: u64, work: Work) -> Result<(Child, SocketAddr)> {
    let program = std::env::current_exe()?;
    let mut peers = Command::new(program)
        .args(["peers", "--requests", &requests.to_string(), "--work", &work.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the client")?;
    let stdout = peers.stdout.take().context("the client has no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let origin = line.trim().parse().with_context(|| format!("the client said {line:?}"))?;
    Ok((peers, origin))
}

/// The Service of the manifests with its policy, and with the origin as its endpoint: a cluster knows no loopback addresses.
fn snapshot(directory: &Path, origin: SocketAddr) -> Result<Snapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let read = runtime.block_on(async {
        let feed = manifests::open(directory)?;
        let cluster = Cluster::start(feed, Options::default());
        let snapshot = cluster.synced().await.context("the manifests were not read")?;
        let problems = cluster.status().problems;
        ensure!(problems.is_empty(), "the manifests are not as they should be: {problems:?}");
        anyhow::Ok(snapshot)
    })?;
    let found =
        read.destinations.get(&DIALLED).with_context(|| format!("no Service has the address {DIALLED}"))?;
    let service = Service {
        protocol: found.service.protocol,
        governor: found.service.governor.clone(),
        entry: found.service.entry.clone(),
        ..Service::new("shop", "orders", 80).with_endpoints(vec![Arc::new(Endpoint::new(origin))])
    };
    let service = Arc::new(service);
    let routed = read.routes.iter().filter(|((_, ipv6), _)| !ipv6).map(|(port, routed)| {
        let producer = routed.producer.as_ref().map(|group| Group {
            policies: group.policies.clone(),
            routes: group.routes.clone(),
            backends: group.backends.keys().map(|port| (port.clone(), service.clone())).collect(),
        });
        (port.clone(), Arc::new(Routed { producer, consumers: std::collections::BTreeMap::new() }))
    });
    let mut snapshot = Snapshot { generation: 1, routes: Arc::new(routed.collect()), ..Snapshot::default() };
    snapshot.destinations.insert(DIALLED, Destination { service, pinned: None });
    Ok(snapshot)
}
