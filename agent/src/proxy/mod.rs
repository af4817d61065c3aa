//! What happens to a captured connection: accept, detect, HTTP or tunnel, pool, upstream.
//!
//! The stages, in the order in which a connection meets them: [`accept`] takes it from a pod's listener and reads where it
//! was meant to go; [`connection`] finds the service and, with [`detect`], what is spoken; [`http1`] and [`http2`] carry
//! requests, through the rules of [`governed`], [`tunnel`] carries everything else; [`choose`] asks `govern` for an endpoint; [`pool`] and [`upstream`] give a
//! connection to it; [`answer`] makes up what no endpoint answers. A [`worker`] is the thread on which all of it happens.
//!
//! The proxy knows nothing of eBPF or namespaces. Capture gives it, for each enrolled pod, a [`Pod`]: who the
//! caller is and how to make sockets where it lives.

mod accept;
mod answer;
mod arrival;
mod budget;
mod buffers;
mod by_caller;
mod choose;
mod connection;
mod decisions;
mod detect;
pub mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod gate;
mod gauges;
mod governed;
mod http1;
mod http2;
mod mirror;
mod pool;
mod presence;
mod pressure;
mod pulse;
mod record;
mod resolved;
mod rest;
mod share;
#[cfg(test)]
pub(crate) mod testing;
mod threads;
mod timer;
mod timing;
mod traced;
mod tunnel;
mod turns;
mod upstream;
mod way;
mod worker;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{io::unix::AsyncFd, sync::oneshot};

use self::{budget::Budget, decisions::Wanted, explain::Explanation};
pub use budget::{Cause, Limits, PodUse};
pub use threads::Tie;
pub use worker::PodName;

use crate::{
    clock::Nanos,
    cluster::model::{Current, Workload},
    govern::{handled::Sent, lane::TagNames, per_pod::CallingPod, remembered::Remembered},
    observe::{access_log::AccessLog, metrics::Metrics, trace::Tracer},
};

/// What capture gives the proxy for an enrolled pod, besides its listeners.
pub struct Pod {
    /// Who calls. Swapped when the pod's labels or annotations change.
    pub workload: ArcSwap<Workload>,
    pub network: Arc<dyn Network>,
    /// The traces that came to it, for those that go out: the same for both.
    pub remembered: Arc<Remembered>,
}

impl Pod {
    pub fn new(workload: ArcSwap<Workload>, network: Arc<dyn Network>) -> Self {
        Self { workload, network, remembered: Arc::default() }
    }

    /// The same for connections from outside to this pod.
    #[must_use]
    pub fn with(mut self, remembered: Arc<Remembered>) -> Self {
        self.remembered = remembered;
        self
    }
}

/// The pod's network, as far as the proxy needs it.
pub trait Network: Send + Sync + 'static {
    /// Where a socket comes from that was accepted from one of the pod's listeners.
    /// `None`: nobody was redirected here, somebody dialled the listener itself.
    fn origin(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Origin>>;

    /// Whether the application has closed its socket, named as in [`Origin`]: it does not listen any more, and did not only
    /// end what it sends. False where that cannot be known.
    fn has_closed(&self, socket: u64) -> bool;

    /// How many bytes that were written to a TCP socket its peer has not acknowledged; those of a connection that was reset
    /// among them.
    fn unacknowledged(&self, socket: BorrowedFd<'_>) -> io::Result<usize>;

    /// How many connections of the pod were redirected here since [`Self::allow`] was last called.
    fn redirected(&self) -> u64;

    /// From now on so many new connections of the pod are redirected here, and further ones go direct.
    fn allow(&self, connections: u32) -> io::Result<()>;

    /// Bytes of memory that the kernel keeps for a TCP socket. 0 where that cannot be known.
    fn memory_of(&self, socket: BorrowedFd<'_>) -> usize;

    /// The kernel may let the buffers of a socket grow again whose sizes were set.
    fn let_buffers_grow(&self, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// A new non-blocking TCP socket inside the pod's network namespace, for the family of `to`. `client`: the application there
    /// is to see this one at the other end. What it connects to is not redirected here.
    fn socket(&self, to: SocketAddr, client: Option<SocketAddr>) -> io::Result<socket2::Socket>;

    /// The connect of such a socket has begun: it is as any other from now on.
    fn connecting(&self, socket: &socket2::Socket) -> io::Result<()>;

    /// Whether the next byte that is read from a socket, which keeps urgent data in line, is urgent.
    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool;

    /// Lets the calling thread's runtime tell when a connection waits in one of the pod's listeners.
    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>>;

    /// The pod's own application has refused a connection that came from outside.
    fn refused(&self, _address: SocketAddr) {}

    /// For which request that came to the pod its application writes to a socket that was redirected here, named as in [`Origin`].
    fn tie(&self, _socket: u64) -> Tie {
        Tie::default()
    }

    /// What names a connection to the pod's own application, whose threads are followed; `None`: they are not.
    fn call(&self, _socket: BorrowedFd<'_>) -> Option<u64> {
        None
    }

    /// This request is the next that is sent over such a connection. False: there is no room to note that.
    fn sends(&self, _request: Sent) -> bool {
        false
    }

    /// Whether the thread that has read it was the one to respond to it, of the request that was the last over its connection.
    fn responded(&self, _request: Sent) -> bool {
        false
    }

    /// Such a connection has ended.
    fn forget(&self, _call: u64) {}

    /// Whether this is an address of the node itself, from which it probes its pods.
    fn is_node(&self, _address: IpAddr) -> bool {
        false
    }
}

/// Which way a pod's connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the pod's applications to Services.
    Outbound,
    /// From clients outside to the pod's applications.
    Inbound,
}

/// Where an accepted connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address that the application dialled.
    pub destination: SocketAddr,
    /// What names the application's socket, to [`Network::has_closed`].
    pub socket: u64,
    pub options: SocketOptions,
}

/// For how long an application lets its socket wait for a silent peer, as far as it has said so before it connected: it is meant
/// for the way to the endpoint, and holds there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketOptions {
    /// `TCP_USER_TIMEOUT` in milliseconds; 0: not set.
    pub user_timeout: u32,
    /// `TCP_KEEPIDLE` in seconds; 0: `SO_KEEPALIVE` is off.
    pub keepalive_time: u32,
    /// `TCP_KEEPINTVL` in seconds.
    pub keepalive_interval: u32,
    /// `TCP_KEEPCNT`
    pub keepalive_probes: u32,
}

/// What the proxy works with.
#[derive(Clone)]
pub struct Options {
    /// Threads that carry traffic; at least one.
    pub workers: usize,
    pub current: Current,
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    pub tracer: Tracer,
    pub tag_names: Arc<TagNames>,
    /// What pods may use, so that none can starve the others.
    pub limits: Limits,
    /// Pods' requests whose trace is told in B3's forms alone, and came to the pod, get a `traceparent`, too.
    pub trace_link: bool,
    /// How long draining waits for callers with idle connections to learn at their next request that they are to reconnect.
    pub drain_idle_timeout: Duration,
}

/// Registers the numbers that a proxy has besides those of its [`Metrics`], without one.
pub(crate) fn describe(metrics: &Arc<Metrics>) -> Result<(), prometheus::Error> {
    gauges::register(metrics, &Current::default())?;
    budget::register(metrics, &Budget::new(Limits::default()))?;
    pulse::register(metrics, Vec::new())
}

/// How long ago the first of these moments was; `None`: there is none.
fn since_first<'m>(moments: impl Iterator<Item = &'m AtomicU64>) -> Option<Duration> {
    let first = moments.map(|moment| moment.load(Ordering::Relaxed)).min()?;
    Some(Nanos::now().since(Nanos(first)).into())
}

/// The running proxy. Clones are handles to the same one; its threads end when the last is gone.
#[derive(Clone)]
pub struct Proxy {
    workers: Arc<[worker::Handle]>,
    budget: Arc<Budget>,
    next_pod: Arc<AtomicU64>,
    trace_link: bool,
}

impl Proxy {
    /// Starts the worker threads.
    pub fn start(options: &Options) -> io::Result<Self> {
        gauges::register(&options.metrics, &options.current).map_err(io::Error::other)?;
        let budget = Budget::new(options.limits);
        budget::register(&options.metrics, &budget).map_err(io::Error::other)?;
        let workers: io::Result<Vec<_>> =
            (0..options.workers.max(1)).map(|index| worker::start(index, options, &budget)).collect();
        let workers = workers?;
        let statuses = workers.iter().map(|worker| worker.status.clone()).collect();
        pulse::register(&options.metrics, statuses).map_err(io::Error::other)?;
        let trace_link = options.trace_link;
        Ok(Self { workers: workers.into(), budget, next_pod: Arc::default(), trace_link })
    }

    /// How many threads carry traffic. A pod needs at least as many listeners for all of them to carry its own.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Begins to accept on a pod's listeners, which are dealt out to the workers in turn. Connections that arrive before a
    /// worker has come to it wait in the listener.
    pub fn open(&self, pod: &Arc<Pod>, listeners: Vec<TcpListener>) -> OpenPod {
        self.open_for(pod, listeners, Direction::Outbound)
    }

    /// The same for listeners to which connections from outside are steered that are for the pod's own applications.
    pub fn open_inbound(&self, pod: &Arc<Pod>, listeners: Vec<TcpListener>) -> OpenPod {
        self.open_for(pod, listeners, Direction::Inbound)
    }

    fn open_for(&self, pod: &Arc<Pod>, listeners: Vec<TcpListener>, direction: Direction) -> OpenPod {
        let id = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let budget = self.budget.pod(pod, listeners.len());
        let mut dealt: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (index, listener) in listeners.into_iter().enumerate() {
            dealt[index % self.workers.len()].push(listener);
        }
        let workload = pod.workload.load();
        let caller = CallingPod::new(&workload.uid, &format!("{}/{}", workload.namespace, workload.name));
        for (worker, listeners) in self.workers.iter().zip(dealt) {
            let (pod, caller, budget) = (pod.clone(), caller.clone(), budget.clone());
            worker.send(worker::Command::Open { id, pod, caller, budget, listeners, direction });
        }
        OpenPod { proxy: self.clone(), id, direction, closed: false }
    }

    /// How long ago the worker that has been silent for the longest has shown that it keeps up.
    pub fn silent_for(&self) -> Duration {
        since_first(self.workers.iter().map(|worker| &worker.status.beat)).unwrap_or_default()
    }

    /// How long ago the worker that has not run for the longest has: one that only has too much to do runs.
    pub fn hangs_for(&self) -> Duration {
        since_first(self.workers.iter().map(|worker| &worker.status.ran)).unwrap_or_default()
    }

    /// [`Self::hangs_for`] for whoever must not keep the workers alive; `None` when they have ended.
    pub fn silence(&self) -> impl Fn() -> Option<Duration> + Send + use<> {
        let workers: Vec<_> = self.workers.iter().map(|worker| Arc::downgrade(&worker.status)).collect();
        move || {
            let there: Vec<_> = workers.iter().filter_map(Weak::upgrade).collect();
            since_first(there.iter().map(|status| &status.ran))
        }
    }

    /// What each pod uses of the proxy, and whose new connections go direct because of that.
    pub fn uses(&self) -> Vec<PodUse> {
        self.budget.uses(Nanos::now())
    }

    /// What is known of requests that came to an enrolled pod.
    pub fn remembered(&self, namespace: &str, name: &str) -> Option<Arc<Remembered>> {
        self.budget.remembered(namespace, name)
    }

    /// Whether requests get a `traceparent` of their B3 context.
    pub fn links_traces(&self) -> bool {
        self.trace_link
    }

    /// What became of requests that have ended, the newest first, no more than `most`: of those that are kept (all that
    /// failed or were refused, a sample of the others) those with this request id and this trace id.
    pub async fn past(
        &self,
        request_id: Option<&str>,
        trace_id: Option<u128>,
        most: usize,
    ) -> Vec<Explanation> {
        let request = request_id.map(|id| decisions::hash(id.as_bytes()));
        let wanted = Wanted { request, trace: trace_id, most };
        let mut asked = Vec::new();
        for worker in &*self.workers {
            let (found, wait) = oneshot::channel();
            worker.send(worker::Command::Decisions { wanted, found });
            asked.push(wait);
        }
        let mut found = Vec::new();
        for wait in asked {
            // A worker that has ended keeps nothing.
            found.extend(wait.await.unwrap_or_default());
        }
        let now = Nanos::now();
        decisions::newest_of(found, most).iter().map(|decision| explain::tell(decision, now)).collect()
    }

    /// The enrolled pod of this name.
    pub async fn pod(&self, name: &PodName) -> Option<Arc<Pod>> {
        let (found, wait) = oneshot::channel();
        self.workers[0].send(worker::Command::Find { name: name.clone(), found });
        wait.await.ok().flatten()
    }

    /// Serves a connection as if this pod had made it to `original`: everything that is decided about the pod's own is
    /// decided about it. What is decided about the request with the id `awaited` is kept. One of a pod that is not
    /// enrolled is closed.
    pub fn carry(&self, name: PodName, stream: std::net::TcpStream, original: SocketAddr, awaited: &str) {
        let awaited = decisions::hash(awaited.as_bytes());
        self.workers[0].send(worker::Command::Carry { name, stream, original, awaited });
    }

    /// Tells all callers to reconnect and waits until nothing is in flight.
    /// Listeners stay open: [`OpenPod::close`] closes them.
    pub async fn drain(&self) {
        let mut waiting = Vec::new();
        for worker in &*self.workers {
            let (drained, wait) = oneshot::channel();
            worker.send(worker::Command::Drain { drained });
            waiting.push(wait);
        }
        for wait in waiting {
            // A worker that has ended has nothing in flight.
            let _ = wait.await;
        }
    }

    /// How many tunnels are open.
    pub async fn tunnels(&self) -> usize {
        let mut sum = 0;
        for worker in &*self.workers {
            let (open, wait) = oneshot::channel();
            worker.send(worker::Command::Tunnels { open });
            // A worker that has ended has none.
            sum += wait.await.unwrap_or_default();
        }
        sum
    }

    /// Waits until no tunnel is open.
    pub async fn tunnels_end(&self) {
        while self.tunnels().await > 0 {
            tokio::time::sleep(LOOK_FOR_TUNNELS).await;
        }
    }
}

/// How often it is looked whether tunnels are left.
const LOOK_FOR_TUNNELS: Duration = Duration::from_millis(200);

/// A pod whose connections are accepted. Dropping it closes the pod without waiting.
pub struct OpenPod {
    proxy: Proxy,
    id: u64,
    direction: Direction,
    closed: bool,
}

impl OpenPod {
    /// Takes what waits in the listeners, closes them, and asks the pod's connections to end at their next request.
    /// Returns when the listeners are closed; connections go on for as long as they need.
    pub async fn close(mut self) {
        for wait in self.begin_close() {
            // A worker that has ended has closed its listeners.
            let _ = wait.await;
        }
    }

    fn begin_close(&mut self) -> Vec<oneshot::Receiver<()>> {
        if std::mem::replace(&mut self.closed, true) {
            return Vec::new();
        }
        let ask = |worker: &worker::Handle| {
            let (closed, wait) = oneshot::channel();
            worker.send(worker::Command::Close { id: self.id, direction: self.direction, closed });
            wait
        };
        self.proxy.workers.iter().map(ask).collect()
    }
}

impl Drop for OpenPod {
    fn drop(&mut self) {
        self.begin_close();
    }
}
