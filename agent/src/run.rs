//! The agent: wires the rooms together; owns start, drain and stop.
//!
//! Start: the cluster is read, the proxy's workers are started, and only then does capture attach the programs that bring
//! connections here. Stop is the reverse: the programs go first, so that every new connection goes direct or to the agent
//! that takes over; callers are told to reconnect; what is in flight ends; then the process does.

mod flows;
mod limits;
mod numbers;
mod ready;
mod seen;
mod telemetry;
mod watchdog;

pub use limits::small_pages;

use std::{
    num::NonZero,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::task::AbortOnDropHandle;

use self::telemetry::Telemetry;
use crate::{
    admin::{Admin, AdminSocket, BindError, Pages, SocketError, desk::Desk, view::View},
    capture::{self, Capture, CaptureError, Reclaim},
    cluster::{
        self, Cluster, builder,
        jwks::{self, https::Https},
        kept::StateFile,
        kubernetes::{
            self, Patience,
            first_request::FirstWriter,
            status::{self, StatusWriter},
            warm_gate::GateWriter,
        },
        manifests,
        source::{Feed, Health},
    },
    config::{AccessLogFormat, Config, NoNodeAddress, Settings},
    govern::lane::{TagNames, TagNamesError},
    lease::{self, Leases},
    observe::{
        access_log::Trouble,
        log::LogFilter,
        metrics::{Description, Metrics},
        otlp,
    },
    proxy::{self, Proxy},
    tls::NoTrust,
};

/// Threads that carry traffic, if the operator does not say: more than this rarely pays on a node that others share.
const MOST_WORKERS: usize = 4;

/// How often is looked whether the agent is ready, until it is.
const LOOK_AT_READY: Duration = Duration::from_millis(250);

/// Why the agent did not run. One line each, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("--manifests: {0}")]
    Manifests(#[from] manifests::Error),
    #[error("{0}; to run from a directory of manifests instead, give --manifests")]
    Kubernetes(#[from] kubernetes::Error),
    #[error("--tag-header: {0}")]
    TagNames(#[from] TagNamesError),
    #[error(transparent)]
    NodeAddress(#[from] NoNodeAddress),
    #[error(transparent)]
    Admin(#[from] BindError),
    #[error(transparent)]
    AdminSocket(#[from] SocketError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the cluster's objects were never read: their source has stopped; the log says why")]
    Source,
    #[error("--access-log-file: cannot open {}: {source}", path.display())]
    AccessLogFile { path: PathBuf, source: std::io::Error },
    #[error("--jwks-ca-file: {0}")]
    JwksCaFile(#[from] NoTrust),
    #[error(transparent)]
    LimitStore(#[from] lease::Unusable),
    #[error("--otlp-traces: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("--otlp-metrics: {0}")]
    SentMetrics(#[from] otlp::metrics::StartError),
    #[error("cannot start the {what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
    #[error("metrics are defined twice: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl RunError {
    /// 2 for what is wrong with the command line, 1 for what is wrong with the machine.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Manifests(_)
            | Self::TagNames(_)
            | Self::NodeAddress(_)
            | Self::Admin(_)
            | Self::AdminSocket(_)
            | Self::AccessLogFile { .. }
            | Self::JwksCaFile(_)
            | Self::LimitStore(_)
            | Self::Traces(_)
            | Self::SentMetrics(_) => 2,
            Self::Kubernetes(_) | Self::Capture(_) | Self::Source | Self::Start { .. } | Self::Metrics(_) => {
                1
            }
        }
    }
}

/// What metrics an agent serves.
///
/// # Errors
/// Two of them have one name.
pub fn metrics() -> Result<Vec<Description>, prometheus::Error> {
    let metrics = Arc::new(Metrics::new());
    numbers::pull(&metrics, &Shared::default())?;
    flows::pull(&metrics, &Shared::default())?;
    proxy::describe(&metrics)?;
    Ok(metrics.descriptions())
}

/// What is asked about the running agent; empty while it starts.
#[derive(Default)]
struct Running {
    capture: Option<Capture>,
    /// Until it is to end.
    proxy: Option<Proxy>,
    cluster: Option<Arc<Cluster>>,
    /// How the source fares, for as long as there is no cluster.
    source: Option<watch::Receiver<Health>>,
    access_log_trouble: Trouble,
    leases: Option<Arc<Leases>>,
    /// Everything that was there at the start has been taken up. Later troubles of single pods are told by metrics.
    ready: bool,
    stopping: bool,
}

type Shared = Arc<Mutex<Running>>;

/// Runs until it is told to stop (SIGTERM or SIGINT), then drains. A second signal ends it at once.
pub async fn run(config: Config, settings: Settings, log: LogFilter) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(|source| RunError::Start { what: "signal handlers", source })?;
    pass_over_idle_signals().map_err(|source| RunError::Start { what: "signal handlers", source })?;
    let tag_names = Arc::new(TagNames::new(&config.tag_header)?);
    let addresses = config.admin_addresses()?;
    let fetched_by = Https::new(config.jwks_ca_file.clone())?;
    let directory = config.manifests.as_deref().map(manifests::open).transpose()?;
    // Before anything else is logged, and after what a mistake on the command line ends with one line of its own.
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %settings, "starting");
    small_pages();
    let (feed, client) = match directory {
        Some(feed) => (feed, None),
        None => cluster().await?,
    };
    let metrics = Arc::new(Metrics::new());
    let running = Shared::default();
    let asked = running.clone();
    if !settings.unknown_variables.is_empty() {
        tracing::warn!(
            variables = settings.unknown_variables.join(" "),
            "unknown environment variables are ignored: `sluice agent --help` lists the known ones"
        );
    }
    let readiness = Arc::new(ready::Ready(asked));
    let seen = Arc::new(seen::Seen {
        running: running.clone(),
        node: config.node.as_deref().map(Into::into),
        without_access_log: config.access_log == AccessLogFormat::None,
        reclaim: config.reclaim_rate > 0,
        metrics: metrics.clone(),
    });
    let desk = Desk::new(seen.clone(), tag_names.clone());
    let view = View::new(seen, metrics.clone(), config.history_series as usize);
    let following = view.clone().follow();
    let pages =
        Arc::new(Pages { metrics: metrics.clone(), readiness, settings, log, view, desk: desk.clone() });
    let admins = addresses
        .iter()
        .map(|address| Admin::bind(*address, pages.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let admin_socket = config.admin_socket.path().map(|path| AdminSocket::bind(path, pages)).transpose()?;
    let (access_log, tracer, telemetry) = Telemetry::start(&config, &metrics)?;
    lock(&running).access_log_trouble = access_log.trouble();

    numbers::pull(&metrics, &running)?;
    flows::pull(&metrics, &running)?;
    let mut asking = JoinSet::new();
    asking.spawn(following);
    let listening: Vec<_> = admins.into_iter().map(|admin| asking.spawn(admin.serve())).collect();
    if let Some(socket) = admin_socket {
        asking.spawn(socket.serve());
    }
    lock(&running).source = Some(feed.health.clone());
    let jwks = Arc::new(jwks::Sources::new(config.jwks_hosts.clone()));
    // To the end, for as long as there may be requests with tokens.
    let _fetching = AbortOnDropHandle::new(tokio::spawn(jwks::fetch::run(jwks.clone(), fetched_by)));
    let _following = client.clone().map(|client| {
        let following = kubernetes::follow_keys(client, jwks.clone(), Patience::default());
        AbortOnDropHandle::new(tokio::spawn(following))
    });
    let warm_gates = config.warm_gate && config.node.is_some();
    if config.warm_gate && !warm_gates {
        tracing::warn!(
            "--warm-gate has no effect without --node: it is not known which pods are this node's"
        );
    }
    if config.startup_taint.is_some() && config.node.is_none() {
        tracing::warn!(
            "--startup-taint has no effect without --node: it is not known which node has the taint"
        );
    }
    let options = builder::Options {
        node: config.node.as_deref().map(Into::into),
        zone: config.zone.as_deref().map(Into::into),
        tag_headers: config.tag_header.clone(),
        warm_gates,
        refuse_trouble: capture::pinning_trouble(&config.bpf_file_system).map(Into::into),
        jwks,
        limit_store: config.limit_store.limit_store.is_some(),
    };
    let cluster = Arc::new(follow(feed, options, &config, client.as_ref()));
    lock(&running).cluster = Some(cluster.clone());
    let (leases, leasing) = Leases::start(&config.limit_store, cluster.current())?;
    lock(&running).leases = Some(leases);
    asking.spawn(leasing);
    let workers = config.workers.map_or_else(default_workers, usize::from);
    let proxy = Proxy::start(&proxy::Options {
        workers,
        current: cluster.current(),
        metrics: metrics.clone(),
        access_log,
        tracer,
        tag_names,
        limits: limits::limits(config.connections_per_pod, config.connection_memory),
        trace_link: config.telemetry.trace_link,
        drain_idle_timeout: config.drain_idle_timeout.min(config.drain_timeout),
    })
    .map_err(|source| RunError::Start { what: "proxy's threads", source })?;
    desk.open(proxy.clone());
    watchdog::start(&proxy).map_err(|source| RunError::Start { what: "watchdog's thread", source })?;
    lock(&running).proxy = Some(proxy.clone());
    tokio::select! {
        synced = cluster.synced() => { synced.ok_or(RunError::Source)?; }
        () = signals.any() => return Ok(()),
    }

    let capturing = capture::Options {
        pods_cgroup: config.pods_cgroup.clone(),
        without_flows: !config.kernel_flows,
        node_is_known: config.node.is_some(),
        reclaim: Reclaim { per_second: config.reclaim_rate.into(), idle: config.reclaim_idle },
        bpf_file_system: config.bpf_file_system.clone(),
        ..capture::Options::default()
    };
    let capture = Capture::start(&capturing, proxy.clone(), cluster.snapshots())?;
    lock(&running).capture = Some(capture);
    let taint = client.as_ref().zip(config.node.as_ref()).zip(config.startup_taint.as_ref());
    let untainting = taint.map(|((client, node), taint)| {
        let taking = take_off_taint(client.clone(), node.clone(), taint.clone(), &running, &cluster);
        AbortOnDropHandle::new(tokio::spawn(taking))
    });
    let gates = client.as_ref().zip(config.node.as_ref()).filter(|_| warm_gates);
    let gating = gates.map(|(client, node)| {
        let setting = set_gates(client.clone(), cluster.clone(), node.clone());
        AbortOnDropHandle::new(tokio::spawn(setting))
    });
    let status_writer = client.map(|client| {
        let writing = write_statuses(client, cluster.clone(), config.node.clone());
        AbortOnDropHandle::new(tokio::spawn(writing))
    });
    tracing::info!(admin = ?addresses, workers, "running");

    signals.any().await;
    drop((status_writer, untainting, gating));
    tokio::select! {
        () = drain(&running, &proxy, config.drain_timeout, config.tunnel_drain_timeout, &listening) => {}
        () = signals.any() => tracing::warn!("stopping at once: told to stop a second time"),
    }
    // The workers end with the last handle to the proxy, and with them the last line and the last span are handed over.
    desk.close();
    lock(&running).proxy = None;
    drop(proxy);
    telemetry.end().await;
    // Last of all, so that somebody can ask to the end; and waited for, so that the socket's file goes.
    asking.shutdown().await;
    Ok(())
}

/// The API server as the source of the cluster's objects, with a client for it.
async fn cluster() -> Result<(Feed, Option<kube::Client>), RunError> {
    let client = kubernetes::client().await?;
    Ok((kubernetes::open(client.clone()), Some(client)))
}

/// The cluster, which begins with what is kept on the node, and with the zone that the API server tells.
fn follow(feed: Feed, options: builder::Options, config: &Config, client: Option<&kube::Client>) -> Cluster {
    // A directory of manifests is there when the agent is.
    let Some(client) = client.cloned() else { return Cluster::start(feed, options) };
    let node: Option<Arc<str>> = config.node.as_deref().map(Into::into);
    let state = config.state_file.clone().map(|path| StateFile { path, node: node.clone() });
    let Some(node) = node.filter(|_| config.zone.is_none()) else {
        return Cluster::start_with(feed, options, cluster::Start { state, ..cluster::Start::default() });
    };
    let (reached, is_reached) = watch::channel(false);
    let (tell, zone) = mpsc::channel(1);
    let start = cluster::Start { state, zone: Some(zone), reached: Some(reached) };
    let cluster = Cluster::start_with(feed, options, start);
    let asking =
        kubernetes::Asking { client, node, tell, troubles: cluster.troubles(), later: kubernetes::LATER };
    tokio::spawn(asking.run(move || *is_reached.borrow()));
    cluster
}

/// Lets pods come to the node, once the agent is ready.
fn take_off_taint(
    client: kube::Client,
    node: String,
    taint: String,
    running: &Shared,
    cluster: &Cluster,
) -> impl Future<Output = ()> + Send + 'static {
    let (running, troubles) = (running.clone(), cluster.troubles());
    async move {
        while !ready::missing(&running).is_empty() {
            tokio::time::sleep(LOOK_AT_READY).await;
        }
        kubernetes::take_off_taint(&client, &node, &taint, &troubles).await;
    }
}

/// Tells of pods that are warm, and of first requests, once it is known what the API server says now.
async fn set_gates(client: kube::Client, cluster: Arc<Cluster>, node: String) {
    cluster.fresh().await;
    let (gates, trouble) = (cluster.gates(), cluster.troubles());
    let _writer = GateWriter::start(
        client.clone(),
        &node,
        gates,
        trouble.clone(),
        status::Pace::default(),
        Patience::default(),
    );
    let _firsts = FirstWriter::start(client, cluster.firsts(), trouble, status::Pace::default());
    std::future::pending::<()>().await;
}

/// Writes statuses, once they are of what the API server says now.
async fn write_statuses(client: kube::Client, cluster: Arc<Cluster>, node: Option<String>) {
    cluster.fresh().await;
    // Two agents of a node are there at once while one takes over from the other.
    let identity = format!("{}_{:08x}", node.as_deref().unwrap_or("sluice"), fastrand::u32(..));
    let (verdicts, of_gateway) = (cluster.verdicts(), cluster.gateway_verdicts());
    let (troubles, pace) = (cluster.troubles(), status::Pace::default());
    let _writer = StatusWriter::start(client, verdicts, of_gateway, identity, troubles, pace);
    std::future::pending::<()>().await;
}

/// Lets everything that is in flight end: requests within `limit`, tunnels within `tunnels`. Nobody can tell the two ends of a
/// tunnel to make another one, so it goes on beside the agent that takes over, which then answers at our addresses.
async fn drain(
    running: &Shared,
    proxy: &Proxy,
    limit: Duration,
    tunnels: Duration,
    listening: &[AbortHandle],
) {
    tracing::info!(limit_seconds = limit.as_secs(), "draining: new connections no longer come here");
    let capture = {
        let mut running = lock(running);
        running.stopping = true;
        if let Some(capture) = &running.capture {
            capture.stop_redirecting();
        }
        running.capture.take()
    };
    // Kept until the end: its programs still tell applications the addresses that they have dialled.
    let mut capture = capture;
    let draining = async {
        let close = async {
            if let Some(capture) = &mut capture {
                capture.close_listeners().await;
            }
        };
        tokio::join!(proxy.drain(), close);
    };
    if tokio::time::timeout(limit, draining).await.is_ok() {
        tracing::info!("drained");
        return;
    }
    let open = proxy.tunnels().await;
    if open > 0 && tunnels > limit {
        tracing::info!(tunnels = open, limit_hours = tunnels.as_secs() / 3600, "going on with tunnels only");
        listening.iter().for_each(AbortHandle::abort);
        if tokio::time::timeout(tunnels.saturating_sub(limit), proxy.tunnels_end()).await.is_ok() {
            tracing::info!("the last tunnel has ended");
            return;
        }
        tracing::warn!("--tunnel-drain-timeout is over: closing the tunnels that are open");
    } else {
        tracing::warn!("--drain-timeout is over: closing what is still in flight");
    }
}

fn lock(running: &Shared) -> std::sync::MutexGuard<'_, Running> {
    // Nothing that holds it can leave it half-changed.
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_WORKERS)
}

/// Signals that end a process which does not look at them: a terminal that is closed, a logrotate that means well. There is
/// nothing for the agent to do, and to end would reset what is under way.
const IDLE: [(SignalKind, &str); 4] = [
    (SignalKind::hangup(), "SIGHUP"),
    (SignalKind::user_defined1(), "SIGUSR1"),
    (SignalKind::user_defined2(), "SIGUSR2"),
    (SignalKind::alarm(), "SIGALRM"),
];

/// Says that a signal has no effect.
fn pass_over_idle_signals() -> std::io::Result<()> {
    for (kind, name) in IDLE {
        let mut signal = signal(kind)?;
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                tracing::info!(
                    signal = name,
                    "a signal that has no effect: SIGTERM drains and ends the agent"
                );
            }
        });
    }
    Ok(())
}

/// What tells the agent to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
