//! What all pods use of the agent together, and each of them: connections, descriptors, bytes.
//!
//! The numbers are of all workers. A pod above its part ([`verdict`]) is not refused anything: its new connections go direct
//! ([`super::Network::allow`]), past the agent, as if that were not there, and what it has open is served to its end. Only
//! connections that open or close touch these numbers, and streams that wait for a slow peer; never a request.

mod clients;
mod guards;
mod metrics;
mod verdict;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use clients::Clients;
pub(crate) use clients::{Guest, Standing};
pub(crate) use guards::{Growth, Place, Waiting};
pub(crate) use metrics::register;
pub use verdict::Cause;
use verdict::{Bounds, Used};

use super::Pod;
use crate::{clock::Nanos, govern::remembered::Remembered};

/// How long a pod's connections go direct at least, so that nothing flutters.
const LEAST: Nanos = Nanos::of(Duration::from_secs(1));

/// For how long all new connections go direct after the kernel has refused a descriptor, or memory for a connection; and how
/// soon after that it makes no difference that it refuses another one.
const EXHAUSTED_FOR: Nanos = Nanos::of(Duration::from_secs(1));
const EXHAUSTED_AGAIN: Nanos = Nanos::of(Duration::from_millis(100));

/// Connections that were redirected so long ago and were never accepted do not come any more.
const GIVEN_UP_AFTER: Nanos = Nanos::of(Duration::from_secs(2));

/// What a pod is allowed that may open as many as it likes.
const AS_MANY_AS_IT_LIKES: usize = u32::MAX as usize;

/// How often the log tells of the same pod.
const TELL_EVERY: Nanos = Nanos::of(Duration::from_secs(60));

/// Descriptors of a connection: its own, and that of one to an endpoint.
const DESCRIPTORS: usize = 2;

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that a pod may have open through the proxy.
    pub connections_per_pod: usize,
    /// Descriptors for connections, and for listeners.
    pub descriptors: usize,
    /// Bytes that may wait for slow peers, of all pods, in the agent and in the kernel.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_per_pod: 4096, descriptors: usize::MAX, bytes: usize::MAX }
    }
}

/// What all pods use.
pub(crate) struct Budget {
    limits: Limits,
    connections: AtomicUsize,
    listeners: AtomicUsize,
    bytes: AtomicUsize,
    /// Bytes of receive buffers that have grown.
    grown: AtomicUsize,
    /// When the kernel last refused a descriptor ([`Nanos`]); 0: never.
    exhausted: AtomicU64,
    pods: Mutex<Vec<Weak<PodBudget>>>,
}

/// What a pod uses.
pub(crate) struct PodBudget {
    all: Arc<Budget>,
    pod: Arc<Pod>,
    listeners: usize,
    connections: AtomicUsize,
    bytes: AtomicUsize,
    grown: AtomicUsize,
    /// New requests are to be rejected.
    refuses: AtomicBool,
    /// Connections that were accepted since the kernel was last told how many it may redirect; and after how many it is to be
    /// told again.
    accepted: AtomicUsize,
    until: AtomicUsize,
    /// Who has made those that come from outside.
    clients: Clients,
    state: Mutex<State>,
}

/// Where a pod's new connections go.
#[derive(Default)]
struct State {
    /// Direct: since when, and why.
    direct: Option<(Nanos, Cause)>,
    /// How long they have gone direct, by cause, until that.
    before: [Nanos; Cause::ALL.len()],
    /// When the log last told of it.
    told: Option<Nanos>,
    /// The kernel could not be told.
    failed: bool,
    coming: Coming,
}

/// Connections that were redirected, and not yet accepted.
#[derive(Default)]
struct Coming {
    count: u64,
    /// The fewest since then.
    least: u64,
    since: Nanos,
}

impl Coming {
    /// So many more were redirected, and so many accepted. Returns how many are still on their way.
    ///
    /// Those that never come must not be waited for for ever: connect() may fail after it was redirected (without a local port
    /// left, or in time), and what is in a full queue may be given up. So as many as there were at the least for a while are
    /// taken for those.
    fn note(&mut self, redirected: u64, accepted: u64, now: Nanos) -> u64 {
        let Self { count, least, since } = self;
        // If nothing moves, all are.
        *count =
            if accepted == 0 && redirected == 0 { 0 } else { (*count + redirected).saturating_sub(accepted) };
        *least = (*least).min(*count);
        if now.since(*since) >= GIVEN_UP_AFTER {
            *count -= *least;
            (*least, *since) = (*count, now);
        }
        *count
    }
}

/// What a pod uses at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUse {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub connections: usize,
    pub bytes: usize,
    /// The client that has most of the connections from outside, and how many.
    pub client: Option<(IpAddr, usize)>,
    /// Why its new connections go direct, if they do.
    pub direct: Option<Cause>,
    /// What it has too much of now. Its new connections go direct for a moment longer.
    pub over: Option<Cause>,
    /// It has sent a request before the one before it had its response, and nothing is known by its threads since.
    pub pipelines: bool,
    /// How long they have, by cause.
    pub direct_for: [Duration; Cause::ALL.len()],
}

impl PodUse {
    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.client = self.client.or(other.client);
        self.direct = self.direct.or(other.direct);
        self.over = self.over.or(other.over);
        self.pipelines |= other.pipelines;
        for (sum, time) in self.direct_for.iter_mut().zip(other.direct_for) {
            *sum += time;
        }
    }
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            connections: AtomicUsize::default(),
            listeners: AtomicUsize::default(),
            bytes: AtomicUsize::default(),
            grown: AtomicUsize::default(),
            exhausted: AtomicU64::default(),
            pods: Mutex::default(),
        })
    }

    /// A pod with so many listeners.
    pub(crate) fn pod(self: &Arc<Self>, pod: &Arc<Pod>, listeners: usize) -> Arc<PodBudget> {
        self.listeners.fetch_add(listeners, Relaxed);
        let one = Arc::new(PodBudget {
            all: self.clone(),
            pod: pod.clone(),
            listeners,
            connections: AtomicUsize::default(),
            bytes: AtomicUsize::default(),
            grown: AtomicUsize::default(),
            refuses: AtomicBool::default(),
            accepted: AtomicUsize::default(),
            until: AtomicUsize::default(),
            clients: Clients::default(),
            state: Mutex::default(),
        });
        let mut pods = self.lock();
        pods.retain(|pod| pod.strong_count() > 0);
        pods.push(Arc::downgrade(&one));
        drop(pods);
        one.review(Nanos::now());
        one
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<PodBudget>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> Vec<Arc<PodBudget>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks at every pod anew; to be called now and then, for what one pod gives back is another's.
    pub(crate) fn review(&self, now: Nanos) {
        for pod in self.pods() {
            pod.review(now);
        }
    }

    /// The kernel has refused a descriptor, or memory for a connection: there are fewer than was counted on. New connections
    /// of all pods go direct for a while.
    pub(crate) fn exhausted(&self, now: Nanos) {
        let before = Nanos(self.exhausted.swap(now.0.max(1), Relaxed));
        if before == Nanos::ZERO || now.since(before) > EXHAUSTED_AGAIN {
            self.review(now);
        }
    }

    /// What each pod uses, in both directions.
    pub(crate) fn uses(&self, now: Nanos) -> Vec<PodUse> {
        let mut all: Vec<PodUse> = Vec::new();
        for one in self.pods().iter().map(|pod| pod.uses(now)) {
            match all.iter_mut().find(|known| (&known.namespace, &known.name) == (&one.namespace, &one.name))
            {
                Some(known) => known.add(&one),
                None => all.push(one),
            }
        }
        all
    }

    /// What is known of requests that came to this pod.
    pub(crate) fn remembered(&self, namespace: &str, name: &str) -> Option<Arc<Remembered>> {
        let is = |pod: &Arc<PodBudget>| {
            let workload = pod.pod.workload.load();
            (&*workload.namespace, &*workload.name) == (namespace, name)
        };
        Some(self.pods().into_iter().find(is)?.pod.remembered.clone())
    }

    fn used(&self) -> Used {
        Used { connections: self.connections.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    fn bounds(&self) -> Bounds {
        let Limits { connections_per_pod, descriptors, bytes } = self.limits;
        let connections = descriptors.saturating_sub(self.listeners.load(Relaxed)) / DESCRIPTORS;
        Bounds { pod_connections: connections_per_pod, connections, bytes }
    }

    /// What there is for new connections.
    fn bounds_for_new(&self, now: Nanos) -> Bounds {
        let exhausted = Nanos(self.exhausted.load(Relaxed));
        let bounds = self.bounds();
        if exhausted != Nanos::ZERO && now.since(exhausted) < EXHAUSTED_FOR {
            return Bounds { connections: 0, ..bounds };
        }
        bounds
    }
}

impl PodBudget {
    /// A connection was accepted. It is served, whatever there is.
    pub(crate) fn accepted(self: &Arc<Self>, now: Nanos) -> Place {
        self.connections.fetch_add(1, Relaxed);
        self.all.connections.fetch_add(1, Relaxed);
        let accepted = self.accepted.fetch_add(1, Relaxed) + 1;
        if accepted >= self.until.load(Relaxed) {
            self.note_refusal();
            self.review(now);
        } else {
            self.note(now);
        }
        Place::new(self.clone())
    }

    /// The kernel has refused a descriptor: see [`Budget::exhausted`].
    pub(crate) fn exhausted(&self, now: Nanos) {
        self.all.exhausted(now);
    }

    /// Whether it has refused one, to whichever pod and worker, since this time.
    pub(crate) fn is_exhausted_since(&self, since: Nanos) -> bool {
        let exhausted = Nanos(self.all.exhausted.load(Relaxed));
        exhausted != Nanos::ZERO && exhausted >= since
    }

    /// Connections that wait to be accepted have to wait longer.
    pub(crate) fn must_wait(&self) -> bool {
        verdict::must_wait(self.used(), self.all.used(), &self.all.bounds())
    }

    /// How many connections it has open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// So much waits for its peers that its new requests are to be rejected.
    pub(crate) fn refuses(&self) -> bool {
        self.refuses.load(Relaxed)
    }

    /// Bytes that wait; none yet.
    pub(crate) fn waiting(self: &Arc<Self>) -> Waiting {
        Waiting::new(self.clone())
    }

    /// A receive buffer; not grown yet.
    pub(crate) fn growth(self: &Arc<Self>) -> Growth {
        Growth::new(self.clone())
    }

    fn used(&self) -> Used {
        Used { connections: self.connections.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    /// It uses more than before.
    fn note(&self, now: Nanos) {
        self.note_refusal();
        if verdict::verdict(false, self.used(), self.all.used(), &self.all.bounds_for_new(now)).is_some() {
            self.review(now);
        }
    }

    /// (Written only where it changes: every request reads it.)
    fn note_refusal(&self) {
        let refuses = verdict::must_refuse(self.used(), self.all.used(), &self.all.bounds());
        if refuses != self.refuses() {
            self.refuses.store(refuses, Relaxed);
        }
    }

    fn review(&self, now: Nanos) {
        self.note_refusal();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_direct = state.direct.is_some();
        let bounds = self.all.bounds_for_new(now);
        let (used, all) = (self.used(), self.all.used());
        let cause = verdict::verdict(is_direct, used, all, &bounds);
        let more = verdict::more(used, all, self.all.lock().len(), &bounds);
        match (state.direct, cause) {
            (None, Some(cause)) => self.go(&mut state, Err(cause), now),
            (Some((since, _)), None) if now.since(since) >= LEAST => self.go(&mut state, Ok(more), now),
            (Some((_, was)), Some(cause)) if cause != was => {
                state.settle(now);
                state.direct = Some((now, cause));
            }
            // As many are told as before, if none was used up.
            (None, None) if self.accepted.load(Relaxed) > 0 || self.until.load(Relaxed) == 0 => {
                self.go(&mut state, Ok(more), now);
            }
            _ => {}
        }
    }

    /// Tells the kernel how many connections it may redirect. Those that are on their way here are among them: they are counted
    /// when they are accepted.
    fn allow(&self, state: &mut State, connections: usize, now: Nanos) -> io::Result<()> {
        let (accepted, redirected) = (self.accepted.swap(0, Relaxed) as u64, self.pod.network.redirected());
        let coming = state.coming.note(redirected, accepted, now);
        let connections = connections.min(AS_MANY_AS_IT_LIKES);
        // One at least where it may have any, or it would be said to go direct.
        let allowed =
            connections.saturating_sub(usize::try_from(coming).unwrap_or(usize::MAX)).max(connections.min(1));
        self.pod.network.allow(u32::try_from(allowed).unwrap_or(u32::MAX))?;
        self.until.store(allowed.div_ceil(2), Relaxed);
        Ok(())
    }

    /// From now on new connections go direct, or so many do not.
    fn go(&self, state: &mut State, more: Result<usize, Cause>, now: Nanos) {
        let workload = self.pod.workload.load();
        let (namespace, pod, used) = (&workload.namespace, &workload.name, self.used());
        if let Err(error) = self.allow(state, *more.as_ref().unwrap_or(&0), now) {
            // Tried again at the next opportunity.
            if !std::mem::replace(&mut state.failed, true) {
                tracing::error!(%namespace, %pod, %error, "cannot tell the kernel where new connections of the pod are to go");
            }
            return;
        }
        state.failed = false;
        state.settle(now);
        state.direct = more.err().map(|cause| (now, cause));
        if let Err(cause) = more
            && state.told.is_none_or(|told| now.since(told) > TELL_EVERY)
        {
            state.told = Some(now);
            tracing::warn!(
                %namespace, %pod, budget = cause.code(), connections = used.connections, bytes = used.bytes,
                of_all_pods = self.all.used().connections,
                "new connections of the pod bypass the agent: {}", cause.meaning()
            );
        }
    }

    fn uses(&self, now: Nanos) -> PodUse {
        let used = self.used();
        let bounds = self.all.bounds_for_new(now);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let workload = self.pod.workload.load();
        PodUse {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            connections: used.connections,
            bytes: used.bytes,
            client: self.clients.most(),
            direct: state.direct.map(|(_, cause)| cause),
            over: state.direct.and_then(|_| verdict::verdict(true, used, self.all.used(), &bounds)),
            pipelines: self.pod.remembered.handled.has_pipelined(),
            direct_for: state.total(now).map(Duration::from),
        }
    }
}

impl State {
    fn total(&self, now: Nanos) -> [Nanos; Cause::ALL.len()] {
        let mut total = self.before;
        if let Some((since, cause)) = self.direct {
            let at = cause as usize;
            total[at] = total[at] + now.since(since);
        }
        total
    }

    /// Counts the time until now.
    fn settle(&mut self, now: Nanos) {
        self.before = self.total(now);
        if let Some((since, _)) = &mut self.direct {
            *since = now;
        }
    }
}

impl Drop for PodBudget {
    fn drop(&mut self) {
        self.all.listeners.fetch_sub(self.listeners, Relaxed);
    }
}

#[cfg(test)]
mod tests;
