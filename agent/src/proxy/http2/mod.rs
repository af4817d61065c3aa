//! HTTP/2 with prior knowledge: the streams of one caller's connection, each to an endpoint of its own.
//!
//! [`serve`] takes the caller's streams and starts a task for each, an [`exchange`]: it tags the
//! request and goes where [`governed`](super::governed) says, over a stream of a connection that [`attempt`] borrows from
//! the [`pool`]; both bodies flow through a [`pipe`] each. The tasks, the caller's connection and those to endpoints take turns on one thread, so what many
//! streams have to say in a turn goes out in one write.
//!
//! Framing, HPACK and flow control are the `h2` crate's. What may be held in memory is bounded here: windows are
//! small and only given back as bytes are passed on, and floods end the connection with `ENHANCE_YOUR_CALM`.

mod answer;
mod attempt;
mod exchange;
#[allow(
    dead_code,
    unused_imports,
    reason = "read and written by its tests alone until the connection is ours"
)]
mod frame;
#[allow(
    dead_code,
    unused_imports,
    reason = "read and written by its tests alone until the connection is ours"
)]
mod hpack;
mod io;
mod pipe;
mod pool;
mod view;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::Request;

use self::io::Resumed;
pub(crate) use self::pool::Pool;
use super::{
    connection::Connection,
    gate::Watch,
    http1::MAX_HEAD_BYTES,
    known::Known,
    worker::{PodHere, Worker},
};
use crate::{clock::Nanos, cluster::model::Destination};

/// Streams that a caller may have open on one connection. gRPC servers have no limit of their own by default, and
/// clients put everything on one connection, so a low one would be felt; each stream costs a few KiB.
const MAX_STREAMS: u32 = 1024;

/// What one stream may have under way towards an endpoint before it waits: the protocol's default.
const STREAM_WINDOW: u32 = 65_535;

/// The same for all streams of a caller's connection together, which bounds the memory that it can take.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// What may be held for a stream that its receiver does not take.
const SEND_BUFFER: usize = 128 * 1024;

/// Streams that a caller may give up within a second. Each has cost an endpoint a request by then (rapid reset,
/// CVE-2023-44487); a caller whose deadlines pass stays far below.
const RESETS_PER_SECOND: u32 = 1000;

/// Streams whose frames are still expected after they were reset: they are dropped instead of answered.
const RESET_STREAMS: usize = 512;

/// A caller's connection, as its streams see it.
struct Caller {
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    original: SocketAddr,
    known: RefCell<Known>,
    resets: Resets,
}

/// How many streams the caller gave up, counted by the second.
#[derive(Default)]
struct Resets {
    second: Cell<u64>,
    count: Cell<u32>,
}

impl Resets {
    fn count(&self, now: Nanos) {
        let second = now.0 / Nanos::of(Duration::from_secs(1)).0;
        if self.second.replace(second) != second {
            self.count.set(0);
        }
        self.count.set(self.count.get().saturating_add(1));
    }

    fn are_too_many(&self) -> bool {
        self.count.get() > RESETS_PER_SECOND
    }
}

impl Caller {
    /// What stands behind the dialled address now. A service that is no longer governed is served from what was last
    /// known of it, and its caller is told to reconnect.
    fn look_up(&self) -> Known {
        let mut known = self.known.borrow_mut();
        known.refresh(&self.worker, &self.pod, self.original);
        known.clone()
    }
}

/// What a caller's connection brings next.
#[expect(clippy::large_enum_variant, reason = "nearly always the large one, and never kept")]
enum Next {
    Stream(Request<RecvStream>, SendResponse<Bytes>),
    /// The gate was shut: the caller is to reconnect.
    Leave,
    /// More than is good for anyone.
    Flood,
    End,
}

/// Carries a caller's HTTP/2 connection.
pub(crate) async fn serve(connection: Connection, destination: Destination, early: BytesMut) {
    // In the same turn in which the destination was found.
    let known = Known::new(&connection.worker, &connection.pod, destination);
    let Connection { worker, pod, stream, original, _place } = connection;
    let gate = pod.gate.watch();
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .handshake::<_, Bytes>(Resumed::new(early, stream, worker.clone()));
    let Ok(mut streams) = handshake.await else { return };
    let caller =
        Rc::new(Caller { worker, pod, original, known: RefCell::new(known), resets: Resets::default() });
    let mut leaving = false;
    loop {
        match poll_fn(|cx| poll_next(cx, &mut streams, &caller, &gate, leaving)).await {
            Next::Stream(request, mut respond) => {
                // Given up before it was looked at: no endpoint need hear of it.
                let given_up = respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
                if given_up {
                    caller.resets.count(Nanos::now());
                    continue;
                }
                let known = caller.look_up();
                if !known.governed && !leaving {
                    leaving = true;
                    streams.graceful_shutdown();
                }
                let mut exchange = exchange::Exchange::begin(caller.clone(), known, request, respond);
                match caller.pod.streams.take_one() {
                    Some(place) => drop(tokio::task::spawn_local(exchange.run(place))),
                    None => exchange.overloaded(),
                }
            }
            Next::Leave => {
                leaving = true;
                // GOAWAY: streams that are open go on to their end, new ones go elsewhere.
                streams.graceful_shutdown();
            }
            Next::Flood => {
                caller.worker.complain(|| {
                    tracing::warn!(
                        pod = %caller.pod.name(), service = %caller.known.borrow().destination.service,
                        "closed an HTTP/2 connection: the caller gives up more than {RESETS_PER_SECOND} streams a second",
                    );
                });
                streams.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                // Sends the GOAWAY; that the connection then ends with it as its error is no news.
                let _ = poll_fn(|cx| streams.poll_closed(cx)).await;
                return;
            }
            Next::End => return,
        }
    }
}

fn poll_next(
    cx: &mut Context<'_>,
    streams: &mut h2::server::Connection<Resumed, Bytes>,
    caller: &Caller,
    gate: &Watch,
    leaving: bool,
) -> Poll<Next> {
    if !leaving && gate.poll_shut(cx).is_ready() {
        return Poll::Ready(Next::Leave);
    }
    let next = streams.poll_accept(cx);
    if caller.resets.are_too_many() {
        return Poll::Ready(Next::Flood);
    }
    next.map(|next| match next {
        Some(Ok((request, respond))) => Next::Stream(request, respond),
        Some(Err(error)) => {
            // A caller that just leaves is no news; one that breaks the protocol has been told so with GOAWAY.
            if !error.is_io() {
                caller.worker.complain(|| {
                    tracing::info!(pod = %caller.pod.name(), %error, "closed an HTTP/2 connection");
                });
            }
            Next::End
        }
        None => Next::End,
    })
}

#[cfg(test)]
mod tests;
