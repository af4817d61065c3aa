//! A worker's idle HTTP/1 connections to endpoints.
//!
//! A connection belongs to one pod (it was opened in that pod's network namespace, with that pod's address), to the address
//! that the pod's clients have dialled, and to one endpoint. What is kept is bounded by what the clients themselves keep, and
//! a client that keeps its connection gets one that is no older ([`Need`]). Others get the one that was used last, so that what
//! a burst has opened can grow old and go.

mod idle;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use ahash::AHashMap;

use self::idle::IdleConnections;
pub(crate) use self::idle::Need;
use super::{SocketOptions, upstream::Opened};
use crate::{clock::Nanos, govern::endpoint::Endpoint};

/// Whose connections they are: those of a pod's clients that have dialled this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) pod: u64,
    pub(crate) dialled: SocketAddr,
    /// With sockets for which this was asked.
    pub(crate) options: SocketOptions,
}

/// How often it is looked at what clients have left over. It is closed when it is of no use from one look to the next: clients
/// that open a connection for each request open the next one as soon as they run, which on a busy node is some milliseconds later.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long after it was opened a connection is given to clients that have not used it before. To a server that serves one
/// connection at a time, others that wait for it would wait for as long as there are such clients.
const PASSED_ON_FOR: Nanos = Nanos::of(Duration::from_secs(1));

/// The clients of a key, and what they leave behind.
#[derive(Default)]
struct Group {
    clients: Cell<usize>,
    /// The most that there were since what they leave over was last looked at.
    most: Cell<usize>,
    idle: RefCell<IdleConnections>,
    surplus: Cell<Surplus>,
}

/// Whether a group may have more idle connections than it has clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Surplus {
    #[default]
    None,
    /// It is among those that are looked at.
    Possible,
}

impl Group {
    /// Closes what is idle beyond one for each of the most clients since the last look. Those that were used last stay.
    fn close_surplus(&self) -> Surplus {
        let clients = self.clients.get();
        let most = self.most.replace(clients);
        self.idle.borrow_mut().trim(most);
        let surplus = if most > clients { Surplus::Possible } else { Surplus::None };
        self.surplus.set(surplus);
        surplus
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    /// A group is there as long as there is a client of its own.
    groups: RefCell<AHashMap<Key, Weak<Group>>>,
    left: Rc<Left>,
}

/// The groups that clients have left.
#[derive(Default)]
struct Left {
    groups: RefCell<Vec<Rc<Group>>>,
    /// Who closes their surplus.
    closer: RefCell<Option<Waker>>,
}

/// A client's connection, for as long as it is open.
///
/// To no endpoint are more idle connections kept than there are of these: so many the endpoint would have at most without
/// Sluice, and one that serves a connection at a time would wait for ours. When one closes, what is then too many is closed
/// [a moment](LOOK_EVERY) later: clients that open a connection for each request would take all with them otherwise, each time
/// when some leave before others have come.
pub(crate) struct Seat {
    group: Rc<Group>,
    left: Rc<Left>,
}

impl Seat {
    fn new(group: Rc<Group>, left: &Rc<Left>) -> Self {
        let clients = group.clients.get() + 1;
        group.clients.set(clients);
        group.most.set(group.most.get().max(clients));
        Self { group, left: left.clone() }
    }

    /// An idle connection to `endpoint` that is open as far as can be told, and fits the request.
    pub(crate) fn take(&self, endpoint: &Endpoint, need: Need, now: Nanos) -> Option<Opened> {
        let not_before = if need.rested.is_none() { now.0.saturating_sub(PASSED_ON_FOR.0) } else { 0 };
        self.group.idle.borrow_mut().take(endpoint, need, Nanos(not_before), now)
    }

    /// An idle connection was closed by its server, or is broken.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.group.idle.borrow().poll_closed(cx)
    }

    /// Takes back a connection after an answer that ended cleanly. `idle_seconds`: how long the endpoint says it keeps it.
    pub(crate) fn give(&self, endpoint: &Endpoint, stream: Opened, idle_seconds: Option<u32>, now: Nanos) {
        let clients = self.group.most.get();
        self.group.idle.borrow_mut().give(endpoint, stream, idle_seconds, clients, now);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let group = &self.group;
        let clients = group.clients.get() - 1;
        group.clients.set(clients);
        if group.surplus.get() == Surplus::Possible {
            return;
        }
        if group.idle.borrow().is_empty() {
            group.most.set(clients);
            return;
        }
        group.surplus.set(Surplus::Possible);
        self.left.groups.borrow_mut().push(group.clone());
        if let Some(closer) = self.left.closer.borrow_mut().take() {
            closer.wake();
        }
    }
}

impl Pool {
    /// A client's connection is open from now on.
    pub(crate) fn enter(&self, key: Key) -> Seat {
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(&key).and_then(Weak::upgrade) {
            return Seat::new(group, &self.left);
        }
        let group = Rc::<Group>::default();
        groups.insert(key, Rc::downgrade(&group));
        Seat::new(group, &self.left)
    }

    /// Closes what clients that have left leave over. Never ends.
    pub(crate) async fn close_surplus(&self) {
        loop {
            poll_fn(|cx| {
                if self.left.groups.borrow().is_empty() {
                    *self.left.closer.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            tokio::time::sleep(LOOK_EVERY).await;
            self.left.groups.borrow_mut().retain(|group| group.close_surplus() == Surplus::Possible);
        }
    }

    /// Closes what has been idle for too long, what its server has closed, and what leads to an endpoint that is shutting
    /// down: that would never be asked for again.
    pub(crate) fn sweep(&self, now: Nanos) {
        self.groups.borrow_mut().retain(|_, group| {
            let Some(group) = group.upgrade() else { return false };
            group.idle.borrow_mut().sweep(now);
            true
        });
    }

    /// Closes all. Returns how many there were.
    pub(crate) fn clear(&self) -> usize {
        self.close(|_| true)
    }

    /// Closes all connections of a pod that is gone.
    pub(crate) fn forget(&self, pod: u64) {
        self.close(|key| key.pod == pod);
    }

    fn close(&self, which: impl Fn(&Key) -> bool) -> usize {
        let groups = self.groups.borrow();
        let groups = groups.iter().filter(|(key, _)| which(key)).filter_map(|(_, group)| group.upgrade());
        groups.map(|group| group.idle.take().len()).sum()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let groups = self.groups.borrow();
        let groups = groups.values().filter_map(Weak::upgrade);
        groups.map(|group| group.idle.borrow().len()).sum()
    }
}
