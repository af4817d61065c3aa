//! A worker's idle HTTP/1 connections to endpoints.
//!
//! A connection belongs to one pod (it was opened in that pod's network namespace, with that pod's address), to the address
//! that the pod's clients have dialled, and to one endpoint. What is kept is bounded by what the clients themselves keep, and
//! a client that keeps its connection gets one that is no older ([`Need`]). Others get the one that was used last, so that what
//! a burst has opened can grow old and go.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ahash::AHashMap;
use tokio::net::TcpStream;

use super::{SocketOptions, upstream::Opened};
use crate::{
    clock::Nanos,
    govern::endpoint::{Endpoint, Load},
};

/// How long a connection is kept idle if the endpoint does not say how long it keeps it. Below the keep-alive times of
/// common servers (Tomcat 20 s, gunicorn behind a worker 5 s says so itself, nginx 75 s).
const KEPT_FOR: Nanos = Nanos::of(Duration::from_secs(15));

/// A request that cannot be sent twice does not go over a connection that has been idle for longer than this: the longer
/// a connection has been idle, the likelier it is that its server is closing it at this very moment.
const FRESH_FOR: Nanos = Nanos::of(Duration::from_millis(1500));

/// Whose connections they are: those of a pod's clients that have dialled this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) pod: u64,
    pub(crate) dialled: SocketAddr,
    /// With sockets for which this was asked.
    pub(crate) options: SocketOptions,
}

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

struct Idle {
    stream: Opened,
    /// Of the endpoint that it leads to: another may have come to its address since.
    load: Arc<Load>,
    since: Nanos,
    until: Nanos,
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
    /// By endpoint.
    idle: RefCell<AHashMap<SocketAddr, Vec<Idle>>>,
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
        self.idle.borrow_mut().retain(|_, idle| {
            idle.drain(..idle.len().saturating_sub(most));
            !idle.is_empty()
        });
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
        let mut idle = self.group.idle.borrow_mut();
        let idle = idle.get_mut(&endpoint.address)?;
        loop {
            let candidate = idle.remove(need.pick(idle, now)?);
            if now > candidate.until || !Arc::ptr_eq(&candidate.load, &endpoint.load) {
                continue;
            }
            if need.rested.is_none() && now.since(candidate.stream.since) > PASSED_ON_FOR {
                // In its place a new one is opened.
                return None;
            }
            if is_quiet(&candidate.stream) && (need.repeatable || is_quiet_in_kernel(&candidate.stream)) {
                return Some(candidate.stream);
            }
        }
    }

    /// An idle connection was closed by its server, or is broken.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.group.idle.borrow();
        let mut closed = |idle: &Idle| idle.stream.poll_read_ready(cx).is_ready() && !is_quiet(&idle.stream);
        // All are asked, so that each of them wakes.
        if idle.values().flatten().filter(|idle| closed(idle)).count() > 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Takes back a connection after an answer that ended cleanly. `idle_seconds`: how long the endpoint says it keeps it.
    /// Of an endpoint that is shutting down none is kept: it may wait for its connections to end.
    pub(crate) fn give(&self, endpoint: &Endpoint, stream: Opened, idle_seconds: Option<u32>, now: Nanos) {
        let keep = match idle_seconds {
            // One second less than it says, for the way there.
            Some(seconds) => Nanos::of(Duration::from_secs(seconds.saturating_sub(1).into())).min(KEPT_FOR),
            None => KEPT_FOR,
        };
        if keep == Nanos::ZERO || endpoint.load.terminating_since().is_some() {
            return;
        }
        let mut idle = self.group.idle.borrow_mut();
        let idle = idle.entry(endpoint.address).or_default();
        if idle.len() >= self.group.most.get() {
            idle.remove(0);
        }
        idle.push(Idle { stream, load: endpoint.load.clone(), since: now, until: now + keep });
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
            group.idle.borrow_mut().retain(|_, idle| {
                idle.retain(|candidate| {
                    now <= candidate.until
                        && candidate.load.terminating_since().is_none()
                        && is_quiet(&candidate.stream)
                });
                !idle.is_empty()
            });
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
        groups.map(|group| group.idle.take().values().map(Vec::len).sum::<usize>()).sum()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let groups = self.groups.borrow();
        let groups = groups.values().filter_map(Weak::upgrade);
        groups.map(|group| group.idle.borrow().values().map(Vec::len).sum::<usize>()).sum()
    }
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const SECOND: Nanos = Nanos::of(Duration::from_secs(1));
    /// Of a new client, and of one that has kept its connection for long.
    const AGAIN: Need = Need { repeatable: true, rested: None };
    const ONCE: Need = Need { repeatable: false, rested: Some(Nanos::ZERO) };

    async fn pair() -> (Opened, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut opened = Opened::new(client.unwrap(), &Arc::default());
        // Just now, whatever time a test takes it to be.
        opened.since = Nanos(u64::MAX);
        (opened, server.unwrap().0)
    }

    fn key(pod: u64) -> Key {
        Key { pod, dialled: "10.96.0.1:80".parse().unwrap(), options: SocketOptions::default() }
    }

    /// So many clients of pod 1.
    fn seats(pool: &Pool, clients: usize) -> Vec<Seat> {
        (0..clients).map(|_| pool.enter(key(1))).collect()
    }

    fn endpoint() -> Endpoint {
        Endpoint::new("10.0.0.1:80".parse().unwrap())
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_last_used_comes_first_and_never_another_pods() {
        let pool = Pool::default();
        let seats = seats(&pool, 2);
        let seat = &seats[0];
        let endpoint = endpoint();
        let (first, _keep1) = pair().await;
        let (second, _keep2) = pair().await;
        let last = second.local_addr().unwrap();
        seat.give(&endpoint, first, None, Nanos::ZERO);
        seat.give(&endpoint, second, None, Nanos::ZERO);
        assert_eq!(pool.len(), 2);
        assert!(pool.enter(key(2)).take(&endpoint, AGAIN, SECOND).is_none());
        assert_eq!(seat.take(&endpoint, AGAIN, SECOND).unwrap().local_addr().unwrap(), last);
        pool.forget(1);
        assert!(seat.take(&endpoint, AGAIN, SECOND).is_none());
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test]
    async fn old_ones_are_not_used() {
        let pool = Pool::default();
        let seats = seats(&pool, 2);
        let seat = &seats[0];
        let endpoint = endpoint();
        let (stream, _keep) = pair().await;
        seat.give(&endpoint, stream, Some(5), Nanos::ZERO);
        assert!(seat.take(&endpoint, AGAIN, SECOND * 5).is_none(), "a second before the server's own limit");
        let (stream, _keep) = pair().await;
        seat.give(&endpoint, stream, None, Nanos::ZERO);
        assert!(seat.take(&endpoint, ONCE, SECOND * 2).is_none(), "not for what cannot be repeated");
        assert!(seat.take(&endpoint, AGAIN, SECOND * 2).is_some(), "which leaves it to the others");
        let (stream, _keep) = pair().await;
        seat.give(&endpoint, stream, Some(0), Nanos::ZERO);
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test]
    async fn closed_and_talkative_ones_are_not_used() {
        let pool = Pool::default();
        let seats = seats(&pool, 2);
        let seat = &seats[0];
        let endpoint = endpoint();
        let (stream, server) = pair().await;
        seat.give(&endpoint, stream, None, Nanos::ZERO);
        drop(server);
        until(|| {
            pool.sweep(Nanos::ZERO);
            pool.len() == 0
        })
        .await;

        let (stream, mut server) = pair().await;
        server.write_all(b"HTTP/1.1 408 Timeout\r\n\r\n").await.unwrap();
        seat.give(&endpoint, stream, None, Nanos::ZERO);
        assert!(seat.take(&endpoint, ONCE, Nanos::ZERO).is_none(), "the kernel knows at once");
    }

    #[tokio::test]
    async fn none_that_leads_to_who_leaves_or_is_another_is_used() {
        let (pool, old) = (Pool::default(), endpoint());
        let seat = pool.enter(key(1));
        let (stream, _keep1) = pair().await;
        seat.give(&old, stream, None, Nanos::ZERO);
        assert!(seat.take(&endpoint(), AGAIN, Nanos::ZERO).is_none(), "another at the same address");
        let (stream, _keep2) = pair().await;
        seat.give(&old, stream, None, Nanos::ZERO);
        old.load.set_terminating(true, 1);
        pool.sweep(Nanos::ZERO);
        assert_eq!(pool.len(), 0);
        let (stream, _keep3) = pair().await;
        seat.give(&old, stream, None, Nanos::ZERO);
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test]
    async fn a_client_gets_one_that_is_no_older_than_its_own() {
        let (pool, endpoint) = (Pool::default(), endpoint());
        let mut seats = seats(&pool, 3);
        let seat = seats.pop().unwrap();
        let mut servers = Vec::new();
        let mut addresses = Vec::new();
        for second in 1..=3 {
            let (stream, server) = pair().await;
            addresses.push(stream.local_addr().unwrap());
            servers.push(server);
            seat.give(&endpoint, stream, None, SECOND * second);
        }
        let now = SECOND * 3;
        let take = |repeatable, rested: Option<u64>| {
            let need = Need { repeatable, rested: rested.map(|seconds| SECOND * seconds) };
            let taken = seat.take(&endpoint, need, now);
            taken.map(|stream| {
                let at = addresses.iter().position(|address| *address == stream.local_addr().unwrap());
                seat.give(&endpoint, stream, None, SECOND * (at.unwrap() as u64 + 1));
                at.unwrap() + 1
            })
        };
        // Giving back puts it at the end, so only the last is taken and given back here.
        assert_eq!(take(false, Some(3)), Some(3), "its own");
        assert_eq!(take(true, None), Some(3), "the last used");
        assert_eq!(take(false, None), None, "a new client that cannot ask again gets none");
        assert_eq!(take(false, Some(4)), None, "all are older than its own");
        assert_eq!(take(true, Some(4)), Some(3), "but it can ask again");
        let oldest_that_fits = Need { repeatable: true, rested: Some(SECOND * 2) };
        let stream = seat.take(&endpoint, oldest_that_fits, now).unwrap();
        assert_eq!(stream.local_addr().unwrap(), addresses[1], "the others have theirs");
        let once = Need { repeatable: false, rested: Some(Nanos::ZERO) };
        let stream = seat.take(&endpoint, once, now).unwrap();
        assert_eq!(stream.local_addr().unwrap(), addresses[2], "the first was idle for too long");
    }

    #[tokio::test(flavor = "local")]
    async fn no_more_is_kept_than_clients_keep() {
        let (pool, endpoint) = (Rc::new(Pool::default()), endpoint());
        let mut seats = seats(&pool, 3);
        let seat = seats.pop().unwrap();
        let mut servers = Vec::new();
        for _ in 0..4 {
            let (stream, server) = pair().await;
            servers.push(server);
            seat.give(&endpoint, stream, None, Nanos::ZERO);
        }
        assert_eq!(pool.len(), 3);
        let last = servers[3].peer_addr().unwrap();
        seats.clear();
        assert_eq!(pool.len(), 3, "until it has been looked whether others come");
        let closer = pool.clone();
        let closer = tokio::task::spawn_local(async move { closer.close_surplus().await });
        until(|| pool.len() == 1).await;
        let kept = seat.take(&endpoint, AGAIN, SECOND).unwrap();
        assert_eq!(kept.local_addr().unwrap(), last, "the last used one is the one that stays");
        seat.give(&endpoint, kept, None, SECOND);
        assert_eq!(pool.len(), 1);
        drop(seat);
        until(|| pool.len() == 0).await;
        let kept = servers[3].read(&mut [0]).await;
        assert_eq!(kept.unwrap(), 0, "it is closed");
        pool.sweep(SECOND);
        assert!(pool.groups.borrow().is_empty());
        closer.abort();
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn who_comes_when_others_leave_finds_what_they_leave() {
        let (pool, endpoint) = (Rc::new(Pool::default()), endpoint());
        let closer = pool.clone();
        let closer = tokio::task::spawn_local(async move { closer.close_surplus().await });
        let (stream, _keep) = pair().await;
        let first = pool.enter(key(1));
        first.give(&endpoint, stream, None, Nanos::ZERO);
        drop(first);
        tokio::time::sleep(LOOK_EVERY).await;
        let second = pool.enter(key(1));
        tokio::time::sleep(10 * LOOK_EVERY).await;
        let stream = second.take(&endpoint, AGAIN, SECOND).unwrap();
        second.give(&endpoint, stream, None, SECOND);
        drop(second);
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_eq!(pool.len(), 0, "nobody has come");
        closer.abort();
    }

    #[tokio::test]
    async fn clients_do_not_pass_on_a_connection_for_ever() {
        let (pool, endpoint) = (Pool::default(), endpoint());
        let seat = pool.enter(key(1));
        let (mut stream, mut server) = pair().await;
        stream.since = Nanos::ZERO;
        seat.give(&endpoint, stream, None, SECOND);
        let stream = seat.take(&endpoint, AGAIN, SECOND).unwrap();
        seat.give(&endpoint, stream, None, SECOND * 2);
        let its_own = Need { repeatable: true, rested: Some(SECOND * 2) };
        let stream = seat.take(&endpoint, its_own, SECOND * 3).unwrap();
        seat.give(&endpoint, stream, None, SECOND * 3);
        assert!(seat.take(&endpoint, AGAIN, SECOND * 3).is_none());
        assert_eq!(pool.len(), 0);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "who waits for it to end waits no longer");
    }
}
