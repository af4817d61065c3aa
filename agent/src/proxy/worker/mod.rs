//! A worker: one thread that carries connections from accept to close.
//!
//! A connection, its upstream connections, its buffers and its pool live on one worker, so that nothing on the way of a
//! request is shared between threads but atomics. A pod has listeners on every worker; the kernel spreads connections
//! over them.

mod command;
mod pod;
mod tend;
mod thread;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ahash::{AHashMap, AHashSet};

pub use self::command::PodName;
pub(crate) use self::{
    command::{Command, Handle, Status},
    pod::PodHere,
    thread::start,
};
use super::{
    Direction, Options, buffers::Buffers, decisions::Decisions, http2, pool::Pool, rest::Rests,
    timer::Timers, turns::Rounds,
};
use crate::{
    clock::Nanos,
    cluster::model::Snapshot,
    govern::{jwt::cache::Cache as Tokens, lane::TagNames},
    observe::{
        access_log::{AccessLog, Lines},
        metrics::Metrics,
        trace::{Tracer, context::Scan},
    },
};

/// Services that a worker remembers to have warned of.
const MOST_WARNED: usize = 1024;

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

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
    /// What was found of tokens.
    pub(crate) tokens: RefCell<Tokens>,
    /// Timers that requests leave for those after them.
    pub(crate) timers: Timers,
    pub(crate) rounds: Rc<Rounds>,
    /// Connections that do not rest.
    pub(crate) rests: Rests,
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
            tokens: RefCell::default(),
            timers: Timers::default(),
            rounds,
            rests: Rests::default(),
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

    /// The same in whole seconds since 1970, as tokens have it.
    pub(crate) fn unix_time(&self, moment: Nanos) -> u64 {
        self.wall_clock(moment).duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
}
