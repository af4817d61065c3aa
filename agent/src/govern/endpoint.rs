//! An endpoint as the decisions see it: what the cluster says of it, and what this agent has seen of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    backoff::Backoff,
    cost::{Cost, Ending},
    outlier,
    tag::Tag,
    tally::Tally,
};

/// One address of a service. Immutable: a change in the cluster makes a new `Endpoint` that shares the [`Load`].
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The same pod's address of the other family, where it is an endpoint of the same port there, too. In a box, for in most clusters
    /// none has one.
    pub other_family: Option<Box<SocketAddr>>,
    /// The tag of the workload behind it; `None` is baseline.
    pub tag: Option<Tag>,
    /// `conditions.ready`, or `publishNotReadyAddresses`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`, or the pod has a deletionTimestamp.
    pub terminating: bool,
    /// When it became ready, in nanoseconds of this process's monotonic clock: negative if that was before the process
    /// began. `None`: it is not ready, or nobody knows since when; then it counts as warm.
    pub ready_since_nanos: Option<i64>,
    pub zone: Option<Arc<str>>,
    pub node: Option<Arc<str>>,
    /// The pod's name, where a pod stands behind the address.
    pub pod: Option<Arc<str>>,
    pub load: Arc<Load>,
}

impl Endpoint {
    /// A ready endpoint of the baseline of which nothing else is known.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            other_family: None,
            tag: None,
            ready: true,
            serving: true,
            terminating: false,
            ready_since_nanos: None,
            zone: None,
            node: None,
            pod: None,
            load: Arc::default(),
        }
    }

    /// May new requests be sent to it, as far as the cluster is concerned.
    pub fn is_usable(&self) -> bool {
        self.ready && !self.terminating
    }

    /// Shutting down, but still answering.
    pub fn is_draining(&self) -> bool {
        self.terminating && (self.serving || self.ready)
    }
}

/// What this agent has seen of an endpoint. Outlives snapshots; shared by all workers, hence atomics.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests (or tunnelled connections) in flight.
    pub in_flight: AtomicU32,
    /// See [`Load::first_request`]; 0 while there was none.
    first_request_nanos: AtomicI64,
    /// See [`Load::terminating_since`]; 0 while it is not terminating.
    terminating_since_nanos: AtomicU64,
    /// Made with the first request: most endpoints of a cluster are never asked from this node.
    asked: OnceLock<Box<Asked>>,
}

/// What is kept of an endpoint that was asked.
#[derive(Debug, Default)]
struct Asked {
    cost: Cost,
    backoff: Backoff,
    tally: Tally,
    record: outlier::Record,
    /// See [`Load::answers_in_other_family`].
    in_other_family: AtomicBool,
}

/// What there is to say of an endpoint that was never asked. Nothing is ever noted here: costs are with [`Load::cost_to_note`], and
/// what can be noted of one that answers is nothing.
static NEVER_ASKED: (Cost, Backoff) = (Cost::UNKNOWN, Backoff::NONE);

impl Load {
    /// What its callers wait for.
    pub fn cost(&self) -> &Cost {
        self.asked.get().map_or(&NEVER_ASKED.0, |asked| &asked.cost)
    }

    /// Where that is noted.
    pub(super) fn cost_to_note(&self) -> &Cost {
        &self.asked.get_or_init(Box::default).cost
    }

    /// Whether it answers connection requests.
    pub fn backoff(&self) -> &Backoff {
        self.asked.get().map_or(&NEVER_ASKED.1, |asked| &asked.backoff)
    }

    /// A connection request to it, sent at `sent_nanos`, was not answered: see [`Backoff::missed`].
    pub fn missed(&self, sent_nanos: u64, now_nanos: u64) {
        let asked = self.asked.get_or_init(Box::default);
        asked.backoff.missed(sent_nanos, now_nanos);
        // What waits costs more than what is refused: the next one goes where the client meant to go.
        asked.in_other_family.store(false, Relaxed);
    }

    /// The last connection was opened to its pod's address of the other family ([`Endpoint::other_family`]). The next one begins there, so
    /// that a server which listens on one family does not cost a refused connection each time.
    pub fn answers_in_other_family(&self) -> bool {
        self.asked.get().is_some_and(|asked| asked.in_other_family.load(Relaxed))
    }

    /// Notes to which family a connection was opened. True: it is another than that of the last one.
    pub fn note_family(&self, other: bool) -> bool {
        // Nearly always, and then nothing is written that all workers read.
        if self.answers_in_other_family() == other {
            return false;
        }
        self.asked.get_or_init(Box::default).in_other_family.swap(other, Relaxed) != other
    }

    /// Where the requests to it are counted as they end.
    pub fn tally(&self) -> &Tally {
        &self.asked.get_or_init(Box::default).tally
    }

    /// The same; `None`: it was never asked.
    pub fn tallied(&self) -> Option<&Tally> {
        self.asked.get().map(|asked| &asked.tally)
    }

    /// What outlier detection remembers of it.
    pub(super) fn record(&self) -> &outlier::Record {
        &self.asked.get_or_init(Box::default).record
    }

    /// The same; `None`: it was never asked.
    pub(super) fn recorded(&self) -> Option<&outlier::Record> {
        self.asked.get().map(|asked| &asked.record)
    }

    /// When its first request since it is ready came, as far as is known here; `None`: none did.
    pub fn first_request(&self, ready_since_nanos: Option<i64>) -> Option<i64> {
        let first = self.first_request_nanos.load(Relaxed);
        (first != 0 && ready_since_nanos.is_none_or(|ready| first >= ready)).then_some(first)
    }

    /// Notes that its first request was sent at this moment; `ready_since_nanos` tells it from one before a restart.
    pub fn note_first_request(&self, ready_since_nanos: Option<i64>, at_nanos: i64) {
        // Clocks of nodes differ: a request may seem to come before the endpoint is ready.
        let at = at_nanos.max(ready_since_nanos.unwrap_or(i64::MIN));
        let at = if at == 0 { 1 } else { at };
        // Of several workers the first counts, all within the same moment.
        let _ = self.first_request_nanos.fetch_update(Relaxed, Relaxed, |first| {
            let known = first != 0 && ready_since_nanos.is_none_or(|ready| first >= ready);
            (!known).then_some(at)
        });
    }

    /// Takes over from elsewhere when its first request since it is ready came: the earliest that is known counts.
    pub fn hear_first_request(&self, ready_since_nanos: i64, at_nanos: i64) {
        let at = at_nanos.max(ready_since_nanos);
        let at = if at == 0 { 1 } else { at };
        let _ = self.first_request_nanos.fetch_update(Relaxed, Relaxed, |first| {
            let known = first != 0 && first >= ready_since_nanos;
            (!known || at < first).then_some(at)
        });
    }

    /// It was not ready for so long, and goes on with its warm-up where it was.
    pub fn pause_warm_up(&self, paused_nanos: i64) {
        let later = |first: i64| (first != 0).then(|| first.saturating_add(paused_nanos));
        // (None asked for: nothing to move.)
        let _ = self.first_request_nanos.fetch_update(Relaxed, Relaxed, later);
    }

    /// When this agent learnt that it is terminating, in nanoseconds of its monotonic clock. Whoever has a request in
    /// flight holds an [`Endpoint`] of before; here it is seen all the same.
    ///
    /// Not the time that the pod's deletionTimestamp tells: a clock that is a few seconds ahead would break requests off
    /// too early, and an agent that has begun since has none of before.
    pub fn terminating_since(&self) -> Option<u64> {
        let since = self.terminating_since_nanos.load(Relaxed);
        (since != 0).then_some(since)
    }

    /// Says whether it terminates. The first time counts.
    pub fn set_terminating(&self, terminating: bool, now_nanos: u64) {
        if !terminating {
            self.terminating_since_nanos.store(0, Relaxed);
        } else if self.terminating_since_nanos.load(Relaxed) == 0 {
            self.terminating_since_nanos.store(now_nanos.max(1), Relaxed);
        }
    }
}

/// A request or a tunnelled connection in flight to an endpoint: counted from `begin` until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    number: u64,
    heard: bool,
}

impl InFlight {
    pub fn begin(endpoint: Arc<Endpoint>, now_nanos: u64) -> Self {
        endpoint.load.in_flight.fetch_add(1, Relaxed);
        let number = endpoint.load.cost_to_note().ask(now_nanos);
        Self { endpoint, number, heard: false }
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint has answered, which may have taken it so long.
    pub fn answered(&mut self, waited_nanos: Option<u64>, now_nanos: u64) {
        self.hear();
        self.endpoint.load.cost_to_note().answered(waited_nanos, now_nanos);
    }

    /// The attempt has ended so, after this time.
    pub fn ended(&mut self, ending: Ending, waited_nanos: u64, now_nanos: u64) {
        self.hear();
        self.endpoint.load.cost_to_note().ended(ending, waited_nanos, now_nanos);
    }

    fn hear(&mut self) {
        if !std::mem::replace(&mut self.heard, true) {
            self.endpoint.load.cost_to_note().hear(self.number);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.hear();
        self.endpoint.load.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
