//! A worker's HTTP/2 connections to endpoints.
//!
//! A connection belongs to one pod and one endpoint, and many streams share it: another is opened only when the
//! endpoint allows no more streams on those there are, does not take what they have to say, or takes too little for all that send. It is
//! driven by a task of its own, and ends when it has left the pool and its last stream has ended.

mod opening;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::OnceCell;

use super::engine::{
    handle::{self, Handle},
    limits::{FIRST_SENDERS, MAX_STREAMS},
};
use crate::{
    clock::Nanos,
    govern::endpoint::{Endpoint, Load},
    proxy::worker::{PodHere, Worker},
};

/// Streams that are opened on a new connection before the endpoint has said how many it allows (RFC 9113, section
/// 6.5.2, recommends at least 100).
const FIRST_STREAMS: usize = 100;

/// Connections of a pod to an endpoint. When all are full, requests wait for their turn.
pub(super) const MAX_CONNECTIONS: usize = 16;

/// How long a connection without streams is kept.
const KEPT_FOR: Nanos = Nanos::of(Duration::from_secs(60));

/// A pod and an endpoint.
type Key = (u64, SocketAddr);

/// No address is before it.
const LEAST_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[derive(Default)]
pub(crate) struct Pool {
    /// In their order, so that those of a pod stand together.
    connections: RefCell<BTreeMap<Key, Connections>>,
    /// The number of the next turn.
    next: Cell<u64>,
}

/// The connections of a pod to an endpoint.
struct Connections {
    /// Streams that the endpoint allows on one, as far as is known.
    limit: usize,
    open: Vec<Rc<Shared>>,
    /// Requests that wait for a place, the first one first.
    waiting: VecDeque<Rc<Turn>>,
}

/// A request's turn, once there is a place.
struct Turn {
    /// Of those that wait, the one with the lowest number has waited longest.
    number: u64,
    waker: RefCell<Option<Waker>>,
    /// It has been called.
    called: Cell<bool>,
}

impl Turn {
    fn new(number: u64) -> Self {
        Self { number, waker: RefCell::new(None), called: Cell::new(false) }
    }
}

/// A connection that is open or about to be.
struct Shared {
    key: Key,
    /// Where it leads to, once it is open: one of the endpoint's addresses.
    to: Cell<SocketAddr>,
    /// Of the endpoint that it leads to: another may come to its address.
    load: Arc<Load>,
    /// Streams that it is expected to allow.
    guess: usize,
    opened: OnceCell<Result<handle::Shared, Rc<io::Error>>>,
    /// Streams that are open, or wait for the connection to be.
    streams: Cell<usize>,
    /// Those with a body that are yet to be opened.
    coming: Cell<usize>,
    idle_since: Cell<Nanos>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody opens streams on it any more.
        if let Some(Ok(core)) = self.opened.get() {
            core.borrow_mut().retire();
        }
    }
}

impl Shared {
    /// How many streams may be open at once.
    fn limit(&self) -> usize {
        match self.opened.get() {
            None => self.guess,
            Some(Err(_)) => 0,
            Some(Ok(core)) => {
                let core = core.borrow();
                let limit = match core.remote() {
                    _ if !core.takes_streams() => 0,
                    remote if !remote.known => self.guess,
                    remote => remote.max_streams.map_or(MAX_STREAMS, |max| max as usize),
                };
                limit.min(MAX_STREAMS)
            }
        }
    }

    /// Its endpoint has told how many streams it allows.
    fn is_known(&self) -> bool {
        matches!(self.opened.get(), Some(Ok(core)) if core.borrow().remote().known)
    }

    /// The endpoint does not take what was sent to it.
    fn is_stuck(&self) -> bool {
        matches!(self.opened.get(), Some(Ok(core)) if core.borrow().is_stuck())
    }

    /// How many streams send on it, or will; and how many may, as far as is known what its endpoint takes.
    fn senders(&self) -> (usize, usize) {
        let (open, most) = match self.opened.get() {
            Some(Ok(core)) => {
                let core = core.borrow();
                (core.senders(), core.most_senders())
            }
            _ => (0, FIRST_SENDERS),
        };
        (open + self.coming.get(), most)
    }

    /// Those that send leave too little for one more.
    fn is_crowded(&self) -> bool {
        let (senders, most) = self.senders();
        senders >= most
    }

    /// It has borne as many resets as its endpoint may bear.
    fn is_worn(&self) -> bool {
        matches!(self.opened.get(), Some(Ok(core)) if core.borrow().is_worn())
    }

    fn has_ended(&self) -> bool {
        match self.opened.get() {
            Some(Ok(core)) => !core.borrow().takes_streams(),
            Some(Err(_)) => true,
            None => false,
        }
    }
}

/// A place for one stream on a connection.
pub(super) struct Place {
    worker: Rc<Worker>,
    shared: Rc<Shared>,
    /// The connection was there before this request needed it.
    pub(super) reused: bool,
    /// Its stream has a body, and is not open yet.
    coming: Cell<bool>,
}

impl Place {
    fn new(worker: Rc<Worker>, shared: Rc<Shared>, sends: bool) -> Self {
        shared.coming.set(shared.coming.get() + usize::from(sends));
        Self { reused: shared.opened.initialized(), worker, shared, coming: Cell::new(sends) }
    }

    /// Its stream is open, or will never be: it counts as others do.
    fn has_come(&self) {
        if self.coming.take() {
            self.shared.coming.set(self.shared.coming.get() - 1);
        }
    }

    /// Where its connection leads to.
    pub(super) fn to(&self) -> SocketAddr {
        self.shared.to.get()
    }

    /// Whether the endpoint takes extended CONNECT, once it has said; `None`: the connection has ended before.
    pub(super) fn poll_settings(&self, cx: &Context<'_>) -> Poll<Option<bool>> {
        match self.shared.opened.get() {
            Some(Ok(core)) => core.borrow_mut().poll_connect(cx),
            _ => Poll::Ready(None),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.has_come();
        let streams = self.shared.streams.get() - 1;
        self.shared.streams.set(streams);
        if streams == 0 {
            self.shared.idle_since.set(Nanos::now());
        }
        self.worker.h2.call_next(self.shared.key);
    }
}

/// A request that waits for a place. One that leaves after it was called calls the next.
struct Waiting<'p> {
    pool: &'p Pool,
    key: Key,
    turn: Option<Rc<Turn>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        if turn.called.get() {
            self.pool.call_next(self.key);
        } else if let Some(connections) = self.pool.connections.borrow_mut().get_mut(&self.key) {
            connections.waiting.retain(|other| !Rc::ptr_eq(other, &turn));
        }
    }
}

impl Pool {
    /// A place on a connection of the pod to an endpoint, which is opened if there is none with room. `sends`: for a stream with a body.
    pub(super) async fn place(
        &self,
        worker: &Rc<Worker>,
        pod: &Rc<PodHere>,
        endpoint: &Arc<Endpoint>,
        sends: bool,
        within: impl FnOnce() -> Option<Duration>,
    ) -> Result<Place, Rc<io::Error>> {
        let key = (pod.id, endpoint.address);
        let shared = match self.take(key, &endpoint.load, sends, true) {
            Some(shared) => shared,
            None => self.wait(key, &endpoint.load, sends).await,
        };
        let place = Place::new(worker.clone(), shared, sends);
        if place.reused && matches!(place.shared.opened.get(), Some(Ok(_))) {
            return Ok(place);
        }
        // Boxed, for it is rare, and every request's task would carry its state.
        match Box::pin(opening::opened(worker, pod, endpoint, within(), &place.shared)).await {
            Ok(()) => Ok(place),
            Err(error) => {
                self.retire(&place.shared);
                Err(error)
            }
        }
    }

    /// Opens a stream on the connection; `None`: it takes no new ones.
    pub(super) fn open(&self, place: &Place) -> Option<Handle> {
        let Some(Ok(core)) = place.shared.opened.get() else { return None };
        let key = core.borrow_mut().open();
        place.has_come();
        let Some(key) = key else {
            // It has ended, or was told to go away.
            self.retire(&place.shared);
            return None;
        };
        Some(Handle::new(core, key))
    }

    /// Waits until a place is free, or a connection may be opened.
    async fn wait(&self, key: Key, load: &Arc<Load>, sends: bool) -> Rc<Shared> {
        let mut waiting = Waiting { pool: self, key, turn: None };
        poll_fn(|cx| {
            // Whoever is called is the first; whoever is not, is behind those that wait.
            let called = waiting.turn.as_ref().is_some_and(|turn| turn.called.get());
            if let Some(shared) = self.take(key, load, sends, called) {
                waiting.turn = None;
                return Poll::Ready(shared);
            }
            let turn = match waiting.turn.take() {
                Some(turn) if !turn.called.get() => turn,
                before => {
                    // Who was called in vain, since somebody else was faster, stays before those that came later.
                    let number =
                        before.map_or_else(|| self.next.replace(self.next.get() + 1), |turn| turn.number);
                    let turn = Rc::new(Turn::new(number));
                    if let Some(connections) = self.connections.borrow_mut().get_mut(&key) {
                        let at = connections.waiting.partition_point(|other| other.number < number);
                        connections.waiting.insert(at, turn.clone());
                    }
                    turn
                }
            };
            *turn.waker.borrow_mut() = Some(cx.waker().clone());
            waiting.turn = Some(turn);
            Poll::Pending
        })
        .await
    }

    /// The request that has waited longest may look for a place.
    fn call_next(&self, key: Key) {
        let mut pools = self.connections.borrow_mut();
        let Some(connections) = pools.get_mut(&key) else { return };
        if let Some(turn) = connections.waiting.pop_front() {
            turn.called.set(true);
            let waker = turn.waker.borrow_mut().take();
            drop(pools);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// All that wait may look: there may be many places.
    pub(super) fn call_all(&self, key: Key) {
        let waiting = match self.connections.borrow_mut().get_mut(&key) {
            Some(connections) => std::mem::take(&mut connections.waiting),
            None => return,
        };
        for turn in waiting {
            turn.called.set(true);
            if let Some(waker) = turn.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Takes a place on a connection with room, or on one that is to be opened; `None`: all are full. `sends`: for a stream with a
    /// body. `first`: nobody has waited for longer.
    fn take(&self, key: Key, load: &Arc<Load>, sends: bool, first: bool) -> Option<Rc<Shared>> {
        let mut pools = self.connections.borrow_mut();
        let connections = pools.entry(key).or_insert_with(|| Connections {
            limit: FIRST_STREAMS,
            open: Vec::new(),
            waiting: VecDeque::new(),
        });
        // They end when their last stream has.
        connections.open.retain(|shared| Arc::ptr_eq(&shared.load, load) && !shared.is_worn());
        if !first && !connections.waiting.is_empty() {
            return None;
        }
        // Worse than a further connection, and better than to wait.
        let mut crowded: Vec<&Rc<Shared>> = Vec::new();
        let take = |shared: &Rc<Shared>| {
            shared.streams.set(shared.streams.get() + 1);
            Some(Rc::clone(shared))
        };
        for shared in &connections.open {
            let limit = shared.limit();
            if shared.streams.get() < limit {
                if shared.is_stuck() || sends && shared.is_crowded() {
                    crowded.push(shared);
                } else {
                    return take(shared);
                }
            }
            // A further connection will be told the same.
            if limit > 0 && shared.is_known() {
                connections.limit = limit;
            }
        }
        if connections.open.len() >= MAX_CONNECTIONS {
            let least = crowded.into_iter().min_by_key(|shared| (shared.is_stuck(), shared.senders().0));
            return least.and_then(take);
        }
        let shared = Rc::new(Shared {
            key,
            to: Cell::new(key.1),
            load: load.clone(),
            guess: connections.limit,
            opened: OnceCell::new(),
            streams: Cell::new(1),
            coming: Cell::new(0),
            idle_since: Cell::new(Nanos::now()),
        });
        connections.open.push(Rc::clone(&shared));
        Some(shared)
    }

    /// No new stream goes over this connection.
    fn retire(&self, shared: &Rc<Shared>) {
        self.retain(shared.key, |other| !Rc::ptr_eq(other, shared));
    }

    fn retain(&self, key: Key, keep: impl Fn(&Rc<Shared>) -> bool) {
        // Another one may be opened in the place of what goes.
        self.call_all(key);
        let gone: Vec<_> = {
            let mut pools = self.connections.borrow_mut();
            let Some(connections) = pools.get_mut(&key) else { return };
            let gone = connections.open.extract_if(.., |shared| !keep(shared)).collect();
            if connections.open.is_empty() {
                pools.remove(&key);
            }
            gone
        };
        drop(gone);
    }

    /// Drops the connections of `key` that have ended.
    fn drop_ended(&self, key: Key) {
        self.retain(key, |shared| !shared.has_ended());
    }

    /// Lets connections go that have had no stream for too long, and those to endpoints that are shutting down: their streams
    /// go on to the end.
    ///
    /// Those for clients from outside (`inbound`) are kept for as long as their client's own, as the application would see it.
    pub(crate) fn sweep(&self, now: Nanos, inbound: bool) {
        let mut gone = Vec::new();
        self.connections.borrow_mut().retain(|_, connections| {
            gone.extend(connections.open.extract_if(.., |shared| {
                let fresh =
                    inbound || shared.streams.get() > 0 || now.since(shared.idle_since.get()) < KEPT_FOR;
                !fresh || shared.load.terminating_since().is_some()
            }));
            !connections.open.is_empty() || !connections.waiting.is_empty()
        });
    }

    /// Lets all connections of a pod go. Streams that are open go on to their end.
    pub(crate) fn forget(&self, pod: u64) {
        let gone: Vec<_> = {
            let mut pools = self.connections.borrow_mut();
            let addresses = pools.range((pod, LEAST_ADDRESS)..).take_while(|((owner, _), _)| *owner == pod);
            let keys: Vec<_> = addresses.map(|(key, _)| *key).collect();
            keys.iter().filter_map(|key| pools.remove(key)).collect()
        };
        for connections in gone {
            // They find none, and open another.
            for turn in &connections.waiting {
                turn.called.set(true);
                if let Some(waker) = turn.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin};

    use super::*;

    fn key(pod: u64, port: u16) -> Key {
        (pod, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
    }

    #[test]
    fn a_request_that_is_called_in_vain_keeps_its_place() {
        let (pool, load, key) = (Pool::default(), Arc::<Load>::default(), key(1, 80));
        let taken: Vec<_> = (0..FIRST_STREAMS * MAX_CONNECTIONS)
            .map(|_| pool.take(key, &load, false, true).expect("there is room"))
            .collect();
        assert!(pool.take(key, &load, false, true).is_none());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut first = pin!(pool.wait(key, &load, false));
        let mut second = pin!(pool.wait(key, &load, false));
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        // The place that it is called for is gone before it comes.
        pool.call_next(key);
        assert!(first.as_mut().poll(cx).is_pending());
        let free = |shared: &Rc<Shared>| shared.streams.set(shared.streams.get() - 1);
        free(&taken[0]);
        pool.call_next(key);
        assert!(second.as_mut().poll(cx).is_pending(), "it is not its turn");
        assert!(first.as_mut().poll(cx).is_ready());
    }

    #[test]
    fn only_a_pods_own_connections_are_forgotten() {
        let (pool, load) = (Pool::default(), Arc::<Load>::default());
        for (pod, port) in [(1, 9), (2, 1), (2, 65535), (3, 0)] {
            pool.take(key(pod, port), &load, false, true).expect("there is room");
        }
        pool.forget(2);
        let left: Vec<_> = pool.connections.borrow().keys().copied().collect();
        assert_eq!(left, [key(1, 9), key(3, 0)]);
    }
}
