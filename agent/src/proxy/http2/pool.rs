//! A worker's HTTP/2 connections to endpoints.
//!
//! A connection belongs to one pod and one endpoint, and many streams share it: another is opened only when the
//! endpoint allows no more streams on those there are. It is driven by a task of its own, and ends when it has left the
//! pool and its last stream has ended.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ahash::AHashMap;
use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::{net::TcpStream, sync::OnceCell};

use super::{MAX_STREAMS, RESET_STREAMS, SEND_BUFFER};
use crate::{
    clock::Nanos,
    govern::endpoint::{Endpoint, Load},
    proxy::{
        http1::MAX_HEAD_BYTES,
        upstream,
        worker::{PodHere, Worker},
    },
};

/// Streams that are opened on a new connection before the endpoint has said how many it allows (RFC 9113, section
/// 6.5.2, recommends at least 100).
const FIRST_STREAMS: usize = 100;

/// Connections of a pod to an endpoint. When all are full, requests wait for their turn on the one with the fewest.
pub(super) const MAX_CONNECTIONS: usize = 16;

/// What one answer may have under way before its caller takes it. Larger than towards the caller, who is on this node:
/// an endpoint two milliseconds away can still send 128 MiB/s.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;

/// What all answers on one connection together may have under way before their callers take it.
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

/// How long a connection without streams is kept.
const KEPT_FOR: Nanos = Nanos::of(Duration::from_secs(60));

/// A connection is shared by many requests and lives long, so one to a node that has vanished must be found out: what
/// was sent must be acknowledged by the endpoint's kernel within this time, and a silent one is asked whether it is there.
/// (Not by HTTP/2 pings: gRPC servers take more than one in five minutes for abuse.)
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(20);
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);

/// A pod and an endpoint.
type Key = (u64, SocketAddr);

#[derive(Default)]
pub(crate) struct Pool {
    connections: RefCell<AHashMap<Key, Connections>>,
}

/// The connections of a pod to an endpoint.
struct Connections {
    /// Streams that the endpoint allows on one, as far as is known.
    limit: usize,
    open: Vec<Rc<Shared>>,
}

/// A connection that is open or about to be.
struct Shared {
    key: Key,
    /// Of the endpoint that it leads to: another may come to its address.
    load: Arc<Load>,
    /// Streams that it is expected to allow.
    guess: usize,
    /// Only ever cloned: a handle that has sent a request may stand for one that waits for its turn, and asking it
    /// whether it is ready would take that one's waker.
    opened: OnceCell<Result<SendRequest<Bytes>, Rc<io::Error>>>,
    /// Streams that are open, or wait for the connection to be.
    streams: Cell<usize>,
    idle_since: Cell<Nanos>,
}

impl Shared {
    /// How many streams may be open at once; `guess` while the endpoint has not said.
    fn limit(&self, guess: usize) -> usize {
        match self.opened.get() {
            None => guess,
            Some(Err(_)) => 0,
            Some(Ok(sender)) => sender.current_max_send_streams().min(MAX_STREAMS as usize),
        }
    }
}

/// A place for one stream on a connection.
pub(super) struct Place {
    shared: Rc<Shared>,
    /// The connection was there before this request needed it.
    pub(super) reused: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let streams = self.shared.streams.get() - 1;
        self.shared.streams.set(streams);
        if streams == 0 {
            self.shared.idle_since.set(Nanos::now());
        }
    }
}

/// Why a stream could not be opened. In neither case has anything been sent.
pub(super) enum NotOpened {
    /// The connection takes no new streams: another may.
    Retired,
    /// The request cannot be sent over HTTP/2.
    Unfit(h2::Error),
}

impl Pool {
    /// A place on a connection of the pod to an endpoint, which is opened if there is none with room.
    pub(super) async fn place(
        &self,
        worker: &Rc<Worker>,
        pod: &PodHere,
        endpoint: &Arc<Endpoint>,
        started: Nanos,
    ) -> Result<Place, Rc<io::Error>> {
        let key = (pod.id, endpoint.address);
        let shared = self.shared(key, &endpoint.load);
        shared.streams.set(shared.streams.get() + 1);
        let place = Place { reused: shared.opened.initialized(), shared };
        // Streams that come while the connection is being opened wait for it together.
        let opened = place.shared.opened.get_or_init(|| async {
            // Boxed, for it is rare, and every request's task would carry its state.
            Box::pin(open(worker, pod, endpoint, &place.shared, started)).await.map_err(Rc::new)
        });
        match opened.await {
            Ok(_) => Ok(place),
            Err(error) => {
                let error = Rc::clone(error);
                self.retire(&place.shared);
                Err(error)
            }
        }
    }

    /// Opens a stream on the connection.
    pub(super) fn send(
        &self,
        place: &Place,
        request: impl FnOnce() -> Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), NotOpened> {
        let Some(Ok(sender)) = place.shared.opened.get() else { return Err(NotOpened::Retired) };
        let mut sender = sender.clone();
        // It has ended, or was told to go away. (A clone never has to wait.)
        if !matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))) {
            self.retire(&place.shared);
            return Err(NotOpened::Retired);
        }
        sender.send_request(request(), end).map_err(NotOpened::Unfit)
    }

    fn shared(&self, key: Key, load: &Arc<Load>) -> Rc<Shared> {
        let mut pools = self.connections.borrow_mut();
        let connections =
            pools.entry(key).or_insert_with(|| Connections { limit: FIRST_STREAMS, open: Vec::new() });
        // They end when their last stream has.
        connections.open.retain(|shared| Arc::ptr_eq(&shared.load, load));
        for shared in &connections.open {
            let limit = shared.limit(connections.limit);
            if shared.streams.get() < limit {
                return Rc::clone(shared);
            }
            // A further connection will be told the same.
            if limit > 0 {
                connections.limit = limit;
            }
        }
        if connections.open.len() >= MAX_CONNECTIONS
            && let Some(shared) = connections.open.iter().min_by_key(|shared| shared.streams.get())
        {
            return Rc::clone(shared);
        }
        let shared = Rc::new(Shared {
            key,
            load: load.clone(),
            guess: connections.limit,
            opened: OnceCell::new(),
            streams: Cell::new(0),
            idle_since: Cell::new(Nanos::now()),
        });
        connections.open.push(Rc::clone(&shared));
        shared
    }

    /// No new stream goes over this connection.
    fn retire(&self, shared: &Rc<Shared>) {
        self.retain(shared.key, |other| !Rc::ptr_eq(other, shared));
    }

    fn retain(&self, key: Key, keep: impl Fn(&Rc<Shared>) -> bool) {
        let mut pools = self.connections.borrow_mut();
        if let Some(connections) = pools.get_mut(&key) {
            connections.open.retain(keep);
            if connections.open.is_empty() {
                pools.remove(&key);
            }
        }
    }

    /// Drops the connections of `key` that have ended.
    fn drop_ended(&self, key: Key) {
        self.retain(key, |shared| match shared.opened.get() {
            Some(Ok(sender)) => {
                let ready = sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
                matches!(ready, Poll::Ready(Ok(())))
            }
            Some(Err(_)) => false,
            None => true,
        });
    }

    /// Lets connections go that have had no stream for too long, and those to endpoints that are shutting down: their streams
    /// go on to the end.
    pub(crate) fn sweep(&self, now: Nanos) {
        self.connections.borrow_mut().retain(|_, connections| {
            connections.open.retain(|shared| {
                let fresh = shared.streams.get() > 0 || now.since(shared.idle_since.get()) < KEPT_FOR;
                fresh && shared.load.terminating_since().is_none()
            });
            !connections.open.is_empty()
        });
    }

    /// Lets all connections of a pod go. Streams that are open go on to their end.
    pub(crate) fn forget(&self, pod: u64) {
        self.connections.borrow_mut().retain(|(owner, _), _| *owner != pod);
    }
}

/// Opens a connection and starts the task that drives it.
async fn open(
    worker: &Rc<Worker>,
    pod: &PodHere,
    endpoint: &Arc<Endpoint>,
    shared: &Shared,
    started: Nanos,
) -> io::Result<SendRequest<Bytes>> {
    let (stream, counted) =
        upstream::connect(worker, &*pod.pod.network, endpoint, started).await?.into_parts();
    watch_over(&stream)?;
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(shared.guess)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .handshake(stream);
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    let (worker, key) = (Rc::clone(worker), shared.key);
    tokio::task::spawn_local(async move {
        let _counted = counted;
        if let Err(error) = connection.await {
            // Its requests have failed with the same error, and said so.
            tracing::debug!(endpoint = %key.1, %error, "an HTTP/2 connection to an endpoint has ended");
        }
        worker.h2.drop_ended(key);
    });
    Ok(sender)
}

fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(ACKNOWLEDGED_WITHIN))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY))
}
