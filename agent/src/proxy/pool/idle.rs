//! The idle connections of the clients of one address: which of them a request gets, and how many are kept.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ahash::AHashMap;
use tokio::net::TcpStream;

use crate::{
    clock::Nanos,
    govern::endpoint::{Endpoint, Load},
    proxy::upstream::Opened,
};

/// How long a connection is kept idle if the endpoint does not say how long it keeps it. Below the keep-alive times of
/// common servers (Tomcat 20 s, gunicorn behind a worker 5 s says so itself, nginx 75 s).
const KEPT_FOR: Nanos = Nanos::of(Duration::from_secs(15));

/// A request that cannot be sent twice does not go over a connection that has been idle for longer than this: the longer
/// a connection has been idle, the likelier it is that its server is closing it at this very moment.
const FRESH_FOR: Nanos = Nanos::of(Duration::from_millis(1500));

/// What a request needs of an idle connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// The request can be sent again, should its server have closed the connection.
    pub(crate) repeatable: bool,
    /// Since when its client's connection is idle; `None`: the client has not used it before.
    pub(crate) rested: Option<Nanos>,
}

impl Need {
    /// Which of those to try, which are in the order in which they became idle.
    ///
    /// Each client gets one that has been idle for no longer than its own connection, and the oldest of these, so that the
    /// others have theirs. A request that cannot be sent twice has no other: so it meets a server that closes idle
    /// connections no more often than it would without Sluice, and one of a new client never does.
    fn pick(self, idle: &[Idle], now: Nanos) -> Option<usize> {
        let fresh = Nanos(now.0.saturating_sub(FRESH_FOR.0));
        let since = if self.repeatable { self.rested } else { self.rested.map(|rested| rested.max(fresh)) };
        let fits = since.map(|since| idle.partition_point(|one| one.since < since));
        match fits.filter(|index| *index < idle.len()) {
            Some(index) => Some(index),
            None if self.repeatable => idle.len().checked_sub(1),
            None => None,
        }
    }
}

/// An idle connection.
struct Idle {
    stream: Opened,
    /// Of the endpoint that it leads to: another may have come to its address since.
    load: Arc<Load>,
    since: Nanos,
    until: Nanos,
}

impl Idle {
    fn is_of_use(&self, now: Nanos) -> bool {
        now <= self.until && self.load.terminating_since().is_none() && is_quiet(&self.stream)
    }
}

/// How many connections are kept beside one for each client, to all endpoints together: requests of a few clients go to all
/// endpoints in turn, and each should find one. Without this, many clients of many endpoints would have the agent keep one for
/// each pair of them.
pub(super) const SPARE: usize = 256;

/// Idle connections, by endpoint. To each as many as there are clients at the most, so many it would have without Sluice.
#[derive(Default)]
pub(super) struct IdleConnections {
    /// Those to each in the order in which they became idle.
    to: AHashMap<SocketAddr, Vec<Idle>>,
    count: usize,
}

impl IdleConnections {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One to `endpoint` that is open as far as can be told, and fits the request. One that was opened before
    /// `not_before` is closed in its place.
    pub(super) fn take(
        &mut self,
        endpoint: &Endpoint,
        need: Need,
        not_before: Nanos,
        now: Nanos,
    ) -> Option<Opened> {
        let idle = self.to.get_mut(&endpoint.address)?;
        let before = idle.len();
        let taken = loop {
            let Some(index) = need.pick(idle, now) else { break None };
            let candidate = idle.remove(index);
            if now > candidate.until || !Arc::ptr_eq(&candidate.load, &endpoint.load) {
                continue;
            }
            if candidate.stream.since < not_before {
                break None;
            }
            if is_quiet(&candidate.stream) && (need.repeatable || is_quiet_in_kernel(&candidate.stream)) {
                break Some(candidate.stream);
            }
        };
        self.count -= before - idle.len();
        taken
    }

    /// Keeps one, of `clients` that there are. `idle_seconds`: how long the endpoint says it keeps it. Of an endpoint that is
    /// shutting down none is kept: it may wait for its connections to end.
    pub(super) fn give(
        &mut self,
        endpoint: &Endpoint,
        stream: Opened,
        idle_seconds: Option<u32>,
        clients: usize,
        now: Nanos,
    ) {
        let keep = match idle_seconds {
            // One second less than it says, for the way there.
            Some(seconds) => Nanos::of(Duration::from_secs(seconds.saturating_sub(1).into())).min(KEPT_FOR),
            None => KEPT_FOR,
        };
        if keep == Nanos::ZERO || endpoint.load.terminating_since().is_some() {
            return;
        }
        if self.count >= clients + SPARE {
            self.close_oldest();
        }
        let to = self.to.entry(endpoint.address).or_default();
        if to.len() >= clients && !to.is_empty() {
            to.remove(0);
            self.count -= 1;
        }
        to.push(Idle { stream, load: endpoint.load.clone(), since: now, until: now + keep });
        self.count += 1;
    }

    fn close_oldest(&mut self) {
        let oldest = self.to.values_mut().filter(|to| !to.is_empty()).min_by_key(|to| to[0].since);
        if let Some(to) = oldest {
            to.remove(0);
            self.count -= 1;
        }
    }

    /// Closes those that were used least lately, where there are more than this to one endpoint.
    pub(super) fn trim(&mut self, most: usize) {
        self.edit(|to| drop(to.drain(..to.len().saturating_sub(most))));
    }

    /// Closes those that are of no use any more.
    pub(super) fn sweep(&mut self, now: Nanos) {
        self.edit(|to| to.retain(|idle| idle.is_of_use(now)));
    }

    fn edit(&mut self, mut edit: impl FnMut(&mut Vec<Idle>)) {
        let mut count = 0;
        self.to.retain(|_, to| {
            edit(to);
            count += to.len();
            !to.is_empty()
        });
        self.count = count;
    }

    /// One of them was closed by its server, or is broken.
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        // All are asked, so that each of them wakes.
        if self.to.values().flatten().filter(|idle| is_closed(cx, &idle.stream)).count() > 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Whether something has come in. If not, whoever asks is woken when something does.
fn is_closed(cx: &mut Context<'_>, stream: &TcpStream) -> bool {
    // That a look finds nothing takes a readiness back that was left over from the last read. Only who is told to wait is woken.
    while stream.poll_read_ready(cx).is_ready() {
        if !is_quiet(stream) {
            return true;
        }
    }
    false
}

/// Nothing has come in: neither the end of the connection, nor bytes that nobody asked for. Asks the runtime's readiness,
/// so it costs no system call while nothing has. (Polling would, for a task that has done much already, always find that
/// nothing has.)
fn is_quiet(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The same, asked of the kernel: the runtime may not have been told yet.
fn is_quiet_in_kernel(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(stream).peek(&mut byte);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
