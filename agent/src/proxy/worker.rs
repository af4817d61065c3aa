//! A worker: one thread that carries connections from accept to close.
//!
//! A connection, its upstream connections, its buffers and its pool live on one worker, so that nothing on the way of a
//! request is shared between threads but atomics. A pod has listeners on every worker; the kernel spreads connections
//! over them.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ahash::{AHashMap, AHashSet};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::{
    Direction, Options, Pod, SocketOptions, accept,
    alarm::Alarms,
    arrival::Arrival,
    budget::{Budget, PodBudget, Waiting},
    buffers::Buffers,
    connection::{self, Connection},
    decisions::{Decision, Decisions, Wanted, newest_of},
    gate::Gate,
    gauges, http2, mirror,
    pool::{self, Pool},
    presence::Presence,
    pressure::UNSENT,
    pulse::{self, Pulse},
    share::Share,
    turns::{self, Rounds, Turns},
};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Snapshot},
    govern::{lane::TagNames, outlier::CallerId, per_pod::CallingPod},
    observe::{
        access_log::{AccessLog, Lines},
        metrics::{Metrics, PodMetrics},
        trace::{Tracer, context::Scan},
    },
};

/// How often a worker looks at the clock on the wall, and hands over what it has logged.
const LOOK: Duration = Duration::from_millis(200);

/// Services that a worker remembers to have warned of.
const MOST_WARNED: usize = 1024;

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// After how many sweeps the numbers of services that are gone are looked for.
const FORGET_EVERY: u32 = 60;

/// HTTP/2 requests that a pod may have in flight for each connection that it may have open: they cost less.
const STREAMS_PER_CONNECTION: usize = 4;

/// How the threads' names begin.
const THREADS: &str = "sluice-worker-";

/// Bytes of bodies that a pod's HTTP/2 requests may keep on one worker, to be sent again if an endpoint refuses them.
/// Requests beyond that are passed on all the same, but cannot be sent again.
const KEPT_BYTES_PER_POD: usize = 8 * 1024 * 1024;

/// Bytes that the HTTP/2 connections of a pod may hold on one worker: what was not yet passed on, heads, windows. With three
/// quarters of it used up new requests are rejected, so that those that are there have the rest. On all workers no more than
/// a quarter of what all connections may take.
const HELD_BYTES_PER_POD: usize = 48 * 1024 * 1024;

/// What the rest of the agent asks of a worker.
pub(crate) enum Command {
    Open {
        id: u64,
        pod: Arc<Pod>,
        caller: Arc<CallingPod>,
        budget: Arc<PodBudget>,
        listeners: Vec<std::net::TcpListener>,
        direction: Direction,
    },
    /// Answered when the pod's listeners are closed.
    Close { id: u64, direction: Direction, closed: oneshot::Sender<()> },
    /// Decisions that were kept.
    Decisions { wanted: Wanted, found: oneshot::Sender<Vec<Decision>> },
    /// The pod of this namespace and name.
    Find { name: PodName, found: oneshot::Sender<Option<Arc<Pod>>> },
    /// A connection that somebody has made as this pod to `original`; what is decided about the request with the id
    /// `awaited` is kept.
    Carry { name: PodName, stream: std::net::TcpStream, original: SocketAddr, awaited: u64 },
    /// All pods' connections are to end; answered when the last in-flight one has.
    Drain { drained: oneshot::Sender<()> },
    /// How many tunnels are open.
    Tunnels { open: oneshot::Sender<usize> },
}

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What the rest of the agent sees of a worker.
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    pub(crate) status: Arc<Status>,
}

impl Handle {
    /// A worker that has ended carries nothing any more: there is nobody to tell.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Written by the worker, read by anyone.
#[derive(Default)]
pub(crate) struct Status {
    /// When the worker last beat ([`Nanos`]). Capture stops redirecting when that is a second ago.
    pub(crate) beat: AtomicU64,
    /// When its thread last ran, however much it has to do ([`Nanos`]).
    pub(crate) ran: AtomicU64,
    /// The longest that a ready task had to wait of late ([`Nanos`]).
    pub(crate) delay: AtomicU64,
}

/// The parts of a worker that its connections share.
pub(crate) struct Worker {
    pub(crate) options: Rc<Options>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: Lines,
    pub(crate) tracer: Tracer,
    pub(crate) buffers: Buffers,
    pub(crate) pool: Pool,
    pub(crate) h2: http2::Pool,
    pub(crate) rng: RefCell<fastrand::Rng>,
    pub(crate) decisions: Decisions,
    /// Timers that requests leave for those after them.
    pub(crate) alarms: Alarms,
    pub(crate) rounds: Rc<Rounds>,
    pods: RefCell<AHashMap<u64, Rc<PodHere>>>,
    /// Exchanges and tunnels that are going on.
    busy: Cell<usize>,
    /// Of these, the tunnels.
    tunnels: Cell<usize>,
    complained: Cell<Nanos>,
    /// Addresses whose service has been warned of, so that it is done once.
    warned: RefCell<AHashSet<SocketAddr>>,
    /// What the wall clock said at a moment, not long ago.
    wall: Cell<(Nanos, SystemTime)>,
    /// The part of it that carries what comes from outside; `None`: it is that itself.
    inbound: Option<Rc<Worker>>,
    /// Connections from outside, so far.
    arrived: Cell<u64>,
    /// What is served of metrics, by whichever part.
    pub(crate) served: Arc<Metrics>,
    /// By what tags are read, by whichever part.
    pub(crate) names: Arc<TagNames>,
    /// Where requests from outside are logged that are not passed on.
    pub(crate) denials: Lines,
}

/// A pod on this worker.
pub(crate) struct PodHere {
    pub(crate) id: u64,
    pub(crate) pod: Arc<Pod>,
    /// As state is kept that is its own.
    pub(crate) caller: Arc<CallingPod>,
    /// Its workload, as what goes wrong with an endpoint is noted.
    pub(crate) by: CallerId,
    /// Shut when the pod's connections are to end.
    pub(crate) gate: Rc<Gate>,
    pub(crate) metrics: Arc<PodMetrics>,
    /// Accept loops that have not ended.
    listening: Cell<usize>,
    turns: Rc<Turns>,
    /// What it uses, on all workers.
    pub(crate) budget: Arc<PodBudget>,
    /// HTTP/2 requests in flight. Over HTTP/1 a connection carries one at a time, so that its own share will do.
    pub(crate) streams: Rc<Share>,
    /// Bytes of requests that are kept to be sent again.
    pub(crate) kept: Rc<Share>,
    /// What copies of its requests may use.
    pub(crate) mirrors: mirror::Allowance,
    /// What its HTTP/2 connections may hold, and what their peers may make us do.
    pub(crate) http2: Rc<http2::Allowance>,
    /// What they were last seen to hold.
    held_by_http2: RefCell<Waiting>,
    /// Who calls the pod's application; `None`: the pod calls.
    pub(crate) arrival: Option<Arrival>,
}

impl PodHere {
    /// `shop/orders-7d9f`, as logs name it.
    pub(crate) fn name(&self) -> String {
        let workload = self.pod.workload.load();
        format!("{}/{}", workload.namespace, workload.name)
    }

    /// The pod as this client's connection from outside sees it: nothing that is kept for one client is another's.
    pub(crate) fn of_client(
        self: &Rc<Self>,
        worker: &Worker,
        arrival: Arrival,
        client: Option<Arc<CallingPod>>,
    ) -> Rc<Self> {
        let number = worker.arrived.get() + 1;
        worker.arrived.set(number);
        Rc::new(Self {
            // Pods are counted from 0, and never get there.
            id: u64::MAX - number,
            pod: self.pod.clone(),
            caller: client.unwrap_or_else(|| self.caller.clone()),
            by: self.by,
            gate: self.gate.clone(),
            metrics: self.metrics.clone(),
            listening: Cell::new(0),
            turns: self.turns.clone(),
            budget: self.budget.clone(),
            streams: self.streams.clone(),
            kept: self.kept.clone(),
            mirrors: self.mirrors.clone(),
            http2: self.http2.clone(),
            held_by_http2: RefCell::new(self.budget.waiting()),
            arrival: Some(arrival),
        })
    }

    /// What stands behind an address that was dialled.
    pub(crate) fn destination<'s>(
        &self,
        snapshot: &'s Snapshot,
        dialled: SocketAddr,
    ) -> Option<&'s Destination> {
        match self.arrival {
            None => snapshot.destinations.get(&dialled),
            Some(_) => snapshot.inbound.port(dialled).map(|port| &port.destination),
        }
    }

    /// Starts a task of the pod, which takes turns with those of other pods.
    pub(crate) fn spawn(&self, worker: &Worker, task: impl Future<Output = ()> + 'static) {
        drop(tokio::task::spawn_local(self.turns.of(&worker.rounds, task)));
    }
}

/// Counts an accept loop as going on, however it ends.
struct Listening(Rc<PodHere>);

impl Listening {
    fn begin(pod: &Rc<PodHere>) -> Self {
        pod.listening.set(pod.listening.get() + 1);
        Self(pod.clone())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.set(self.0.listening.get() - 1);
    }
}

/// Counts an exchange or a tunnel as going on, for draining.
pub(crate) struct Busy(Rc<Worker>);

impl Busy {
    pub(crate) fn worker(&self) -> &Worker {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

/// Counts a tunnel as going on.
pub(crate) struct BusyTunnel(Busy);

impl Drop for BusyTunnel {
    fn drop(&mut self) {
        let tunnels = &self.0.worker().tunnels;
        tunnels.set(tunnels.get() - 1);
    }
}

/// What carries connections from outside: it tells of them in other ways than of those that the pods make, and changes nothing
/// in requests.
fn inbound(options: &Options) -> Options {
    Options {
        metrics: Arc::default(),
        access_log: AccessLog::off(),
        tracer: Tracer::off(&[]),
        tag_names: Arc::new(TagNames::none()),
        ..options.clone()
    }
}

impl Worker {
    fn new(options: Rc<Options>) -> Self {
        let (served, names) = (options.metrics.clone(), options.tag_names.clone());
        let rounds = Rc::<Rounds>::default();
        let denials = options.access_log.lines();
        let part = |options, inbound, denials| {
            Self::part(options, rounds.clone(), served.clone(), names.clone(), inbound, denials)
        };
        let inbound = part(Rc::new(inbound(&options)), None, denials);
        part(options, Some(Rc::new(inbound)), AccessLog::off().lines())
    }

    fn part(
        options: Rc<Options>,
        rounds: Rc<Rounds>,
        served: Arc<Metrics>,
        names: Arc<TagNames>,
        inbound: Option<Rc<Self>>,
        denials: Lines,
    ) -> Self {
        let decisions = Decisions::new(options.workers);
        Self {
            inbound,
            arrived: Cell::default(),
            served,
            names,
            denials,
            metrics: options.metrics.clone(),
            access_log: options.access_log.lines(),
            tracer: options.tracer.clone(),
            options,
            buffers: Buffers::default(),
            pool: Pool::default(),
            h2: http2::Pool::default(),
            rng: RefCell::new(fastrand::Rng::new()),
            decisions,
            alarms: Alarms::default(),
            rounds,
            pods: RefCell::default(),
            busy: Cell::new(0),
            tunnels: Cell::new(0),
            complained: Cell::default(),
            warned: RefCell::default(),
            wall: Cell::new((Nanos::now(), SystemTime::now())),
        }
    }

    /// The part that carries connections of this direction.
    fn of(self: &Rc<Self>, direction: Direction) -> &Rc<Self> {
        match (direction, &self.inbound) {
            (Direction::Inbound, Some(inbound)) => inbound,
            _ => self,
        }
    }

    /// It carries what comes from outside.
    pub(crate) fn is_inbound(&self) -> bool {
        self.inbound.is_none()
    }

    /// The cluster as of now.
    pub(crate) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.options.current.load()
    }

    /// What the wall clock says at this moment, which is now or just was. That costs nothing; the clock itself was read at the
    /// last beat.
    pub(crate) fn wall_clock(&self, moment: Nanos) -> SystemTime {
        let (then, wall) = self.wall.get();
        wall + Duration::from(moment.since(then))
    }

    /// What to show a request's headers to; `None` if nobody will be told of their traces.
    pub(crate) fn scan(&self) -> Option<Scan<'_>> {
        (self.tracer.is_on() || self.access_log.is_on()).then(|| self.tracer.scan())
    }

    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.busy.set(self.busy.get() + 1);
        Busy(self.clone())
    }

    pub(crate) fn busy_tunnel(self: &Rc<Self>) -> BusyTunnel {
        self.tunnels.set(self.tunnels.get() + 1);
        BusyTunnel(self.busy())
    }

    /// Whether this service, by the address that was dialled, has not been warned of before. Of a great many it is forgotten.
    pub(crate) fn is_first_warning(&self, dialled: SocketAddr) -> bool {
        let mut warned = self.warned.borrow_mut();
        if warned.len() >= MOST_WARNED {
            warned.clear();
        }
        warned.insert(dialled)
    }

    /// Logs, but not more than once a second: what a peer can cause at will must not fill the log.
    pub(crate) fn complain(&self, log: impl FnOnce()) {
        let now = Nanos::now();
        if self.complained.get() == Nanos::ZERO || now.since(self.complained.get()) > Nanos::of(SWEEP) {
            self.complained.set(now);
            log();
        }
    }

    fn open(
        self: &Rc<Self>,
        id: u64,
        pod: Arc<Pod>,
        caller: Arc<CallingPod>,
        budget: Arc<PodBudget>,
        listeners: Vec<std::net::TcpListener>,
    ) {
        let connections = self.options.limits.connections_per_pod.div_ceil(self.options.workers).max(1);
        let held_by_http2 = RefCell::new(budget.waiting());
        let held = HELD_BYTES_PER_POD.min(self.options.limits.bytes / 4 / self.options.workers);
        let workload = pod.workload.load();
        let metrics = self.metrics.pod(&workload.uid, &workload.namespace, &workload.name);
        let by = CallerId::of(workload.caller());
        drop(workload);
        let here = Rc::new(PodHere {
            id,
            pod,
            caller,
            by,
            gate: Rc::default(),
            metrics,
            listening: Cell::new(0),
            turns: Rc::default(),
            budget,
            streams: Share::new(connections * STREAMS_PER_CONNECTION),
            kept: Share::new(KEPT_BYTES_PER_POD),
            mirrors: mirror::Allowance::default(),
            http2: http2::Allowance::new(held),
            held_by_http2,
            arrival: None,
        });
        for listener in listeners {
            // Accepted sockets inherit it.
            let prepared = socket2::SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT);
            let prepared = prepared.and_then(|()| listener.set_nonblocking(true));
            match prepared.and_then(|()| TcpListener::from_std(listener)) {
                Ok(listener) => {
                    let (worker, pod) = (self.clone(), here.clone());
                    let listening = Listening::begin(&here);
                    here.spawn(self, async move {
                        let _listening = listening;
                        accept::accept(&worker, &pod, listener).await;
                    });
                }
                Err(error) => tracing::error!(pod = %here.name(), %error, "cannot listen in the pod"),
            }
        }
        self.pods.borrow_mut().insert(id, here);
    }

    fn close(self: &Rc<Self>, id: u64, closed: oneshot::Sender<()>) {
        let pod = self.pods.borrow_mut().remove(&id);
        let Some(pod) = pod else {
            // Nobody waits any more, or there is nothing to wait for.
            let _ = closed.send(());
            return;
        };
        pod.gate.shut();
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            while pod.listening.get() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            worker.pool.forget(id);
            worker.h2.forget(id);
            worker.metrics.evict_pod(&pod.pod.workload.load().uid);
            let _ = closed.send(());
        });
    }

    /// Decisions of both directions.
    fn find_decisions(&self, wanted: &Wanted) -> Vec<Decision> {
        let mut found = self.decisions.find(wanted);
        found.extend(self.inbound.iter().flat_map(|inbound| inbound.decisions.find(wanted)));
        newest_of(found, wanted.most)
    }

    fn find(&self, name: &PodName) -> Option<Rc<PodHere>> {
        let is = |pod: &&Rc<PodHere>| {
            let workload = pod.pod.workload.load();
            (&workload.namespace, &workload.name) == (&name.namespace, &name.name)
        };
        self.pods.borrow().values().find(is).cloned()
    }

    /// Serves a connection as if the pod had made it. One that cannot be served is closed.
    fn carry(
        self: &Rc<Self>,
        name: &PodName,
        stream: std::net::TcpStream,
        original: SocketAddr,
        awaited: u64,
    ) {
        let Some(pod) = self.find(name) else { return };
        let place = pod.budget.accepted(Nanos::now());
        let prepared = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let Ok(stream) = prepared else { return };
        self.decisions.await_one(awaited);
        // Nobody's socket: the desk holds the other end.
        let presence = Presence::new(&pod, 0);
        let options = SocketOptions::default();
        let seat = self.pool.enter(pool::Key { pod: pod.id, dialled: original, options });
        let connection = Connection {
            worker: self.clone(),
            pod: pod.clone(),
            stream,
            original,
            presence,
            options,
            seat,
            rested: None,
            _place: place,
        };
        pod.spawn(self, connection::serve(connection));
    }

    fn drain(self: &Rc<Self>, drained: oneshot::Sender<()>) {
        let parts = || std::iter::once(self).chain(&self.inbound);
        for pod in parts().flat_map(|part| part.pods.borrow().values().cloned().collect::<Vec<_>>()) {
            pod.gate.shut();
        }
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            // Callers with a connection that is idle now learn at their next request that they are to reconnect.
            tokio::time::sleep(worker.options.drain_idle_timeout).await;
            let busy = || worker.busy.get() + worker.inbound.as_ref().map_or(0, |inbound| inbound.busy.get());
            while busy() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = drained.send(());
        });
    }

    /// `budget`: for the one of the workers that does what is done once for all of them.
    async fn tend(self: Rc<Self>, budget: Option<Arc<Budget>>) {
        let mut every = tokio::time::interval(SWEEP);
        for sweep in 0_u32.. {
            every.tick().await;
            let now = Nanos::now();
            if let Some(budget) = &budget {
                budget.review(now);
                if sweep % FORGET_EVERY == 0 {
                    gauges::forget_gone(&self.metrics, &self.snapshot());
                }
            }
            for pod in self.pods.borrow().values() {
                let (held, known) = (pod.http2.held(), &mut *pod.held_by_http2.borrow_mut());
                if held != known.amount() {
                    known.set(held, now);
                }
            }
            self.pool.sweep(now);
            self.h2.sweep(now, self.is_inbound());
        }
    }
}

/// Ends the process when its thread panics. (A connection's task that panics is caught, and only ends that connection.)
/// A worker cannot be replaced, and without it connects would be redirected to listeners that are closed until its
/// beat is missed. When the process ends the kernel lets go of the programs first, and whoever watches it starts another.
struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker has panicked: ending the agent, so that connections go direct");
            std::process::abort();
        }
    }
}

/// Shows that the worker keeps up, if it does.
async fn beat(status: Arc<Status>) {
    let mut pulse = Pulse::default();
    let mut every = tokio::time::interval(pulse::EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = every.tick().await;
        let now = Nanos::now();
        if pulse.measured(Nanos::of(due.elapsed()), now) {
            status.beat.store(now.0, Ordering::Relaxed);
        }
        status.delay.store(pulse.longest().0, Ordering::Relaxed);
    }
}

/// Starts a worker thread.
pub(crate) fn start(index: usize, options: &Options, budget: &Arc<Budget>) -> std::io::Result<Handle> {
    let (commands, mut inbox) = mpsc::unbounded_channel();
    let status = Arc::new(Status::default());
    let beats = status.clone();
    let options = options.clone();
    // One of the workers does what is done once for all of them.
    let budget = (index == 0).then(|| budget.clone());
    let runtime_failed = |error: std::io::Error| std::io::Error::other(format!("worker {index}: {error}"));
    // Built on its own thread, because a local runtime cannot move; its failure is passed back.
    let (report, reported) = std::sync::mpsc::channel();
    std::thread::Builder::new().name(format!("{THREADS}{index}")).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(turns::next_round)
            .build_local(<_>::default());
        let runtime = match built {
            Ok(runtime) => {
                let _ = report.send(Ok(()));
                runtime
            }
            Err(error) => {
                let _ = report.send(Err(error));
                return;
            }
        };
        // Dropped before the runtime, whose tasks hold the listeners.
        let _vital = Vital;
        runtime.block_on(async move {
            let worker = Rc::new(Worker::new(Rc::new(options)));
            tokio::task::spawn_local(worker.clone().tend(budget));
            if let Some(inbound) = &worker.inbound {
                tokio::task::spawn_local(inbound.clone().tend(None));
            }
            tokio::task::spawn_local(beat(beats.clone()));
            let rounds = worker.rounds.clone();
            tokio::task::spawn_local(async move { rounds.go_on().await });
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    biased;
                    _ = look.tick() => {
                        beats.ran.store(Nanos::now().0, Ordering::Relaxed);
                        let wall = (Nanos::now(), SystemTime::now());
                        worker.wall.set(wall);
                        if let Some(inbound) = &worker.inbound {
                            inbound.wall.set(wall);
                            inbound.denials.flush();
                        }
                        worker.access_log.flush();
                    }
                    command = inbox.recv() => match command {
                        Some(Command::Open { id, pod, caller, budget, listeners, direction }) => {
                            worker.of(direction).open(id, pod, caller, budget, listeners);
                        }
                        Some(Command::Close { id, direction, closed }) => worker.of(direction).close(id, closed),
                        Some(Command::Drain { drained }) => worker.drain(drained),
                        // Whoever asked may have given up.
                        Some(Command::Tunnels { open }) => {
                            let _ = open.send(worker.tunnels.get());
                        }
                        Some(Command::Decisions { wanted, found }) => {
                            let _ = found.send(worker.find_decisions(&wanted));
                        }
                        Some(Command::Find { name, found }) => {
                            let _ = found.send(worker.find(&name).map(|pod| pod.pod.clone()));
                        }
                        Some(Command::Carry { name, stream, original, awaited }) => {
                            worker.carry(&name, stream, original, awaited);
                        }
                        None => return,
                    },
                }
            }
        });
    })?;
    reported
        .recv()
        .map_err(|_| std::io::Error::other(format!("worker {index} did not start")))?
        .map_err(runtime_failed)?;
    Ok(Handle { commands, status })
}
