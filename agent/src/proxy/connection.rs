//! A connection from a pod: which service it is for, what is spoken on it, and who carries it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_util::io::poll_read_buf;

use super::{
    budget::Place,
    buffers::Buffers,
    detect::{self, Spoken},
    governed::Held,
    http1, http2,
    presence::Presence,
    tunnel,
    upstream::Opened,
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Protocol},
    observe::{
        metrics::{Detection, ServiceSeries},
        reason::Reason,
    },
};

/// A caller that says nothing for this long is taken to wait for the server (MySQL, SMTP, ...).
const SILENCE: Duration = Duration::from_millis(100);

/// How long a caller whose first bytes could be the beginning of HTTP may leave it at that, on a port of which nothing is
/// declared, before its endpoint gets them: it may be another protocol's greeting, which awaits an answer.
const HESITATION: Duration = Duration::from_secs(1);

/// How long a caller may take from the first byte of a head to its last.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The least room that a read is given.
const LEAST_ROOM: usize = 4 * 1024;

/// A connection that a pod's application has opened.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<PodHere>,
    pub(crate) stream: TcpStream,
    /// Where the application meant to go; IPv4 as such, also when it was dialled as an IPv4-mapped address.
    pub(crate) original: SocketAddr,
    /// Whether the application still listens.
    pub(crate) presence: Presence,
    pub(crate) _place: Place,
}

impl Connection {
    /// What stands behind the dialled address now; `None` once it is no longer governed.
    pub(crate) fn destination(&self) -> Option<Destination> {
        self.worker.snapshot().destinations.get(&self.original).cloned()
    }

    pub(crate) fn series(&self, destination: &Destination) -> ServiceSeries {
        let service = &destination.service;
        self.pod.metrics.service(&service.namespace, &service.name, service.port)
    }

    /// Reads what has come; 0 is the end. Holds no buffer while it waits.
    pub(crate) async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let buffers = &self.worker.buffers;
        poll_fn(|cx| poll_read(cx, &mut self.stream, into, buffers)).await
    }
}

/// Reads into `into`, which gets memory only when there is something to read.
pub(crate) fn poll_read(
    cx: &mut Context<'_>,
    stream: &mut TcpStream,
    into: &mut BytesMut,
    buffers: &Buffers,
) -> Poll<io::Result<usize>> {
    ready!(stream.poll_read_ready(cx))?;
    buffers.fill(into);
    if into.capacity() - into.len() < LEAST_ROOM {
        into.reserve(LEAST_ROOM);
    }
    let read = poll_read_buf(Pin::new(stream), cx, into);
    if read.is_pending() {
        buffers.give_if_empty(into);
    }
    read
}

/// Carries a connection to its end.
pub(crate) async fn serve(mut connection: Connection) {
    let metrics = connection.worker.metrics.clone();
    metrics.callers_open.inc();
    let _open = scopeguard(|| metrics.callers_open.dec());
    let Some(destination) = connection.destination() else {
        metrics.detected(Detection::Unmanaged);
        return Box::pin(tunnel::pass_through(connection)).await;
    };
    let mut early = BytesMut::new();
    let heard = listen(&mut connection, &destination, &mut early).await;
    metrics.detected(heard.as_detection());
    // It may have been long: what is known of the service may have changed meanwhile.
    let destination = connection.destination().unwrap_or(destination);
    match heard {
        Heard::Http1 => http1::serve(connection, destination, early).await,
        Heard::Http2 => Box::pin(http2::serve(connection, destination, early)).await,
        Heard::Nothing => {}
        Heard::Bytes(_) => Box::pin(tunnel::serve(connection, destination, None, early)).await,
        Heard::Dialled(_, dialled) => {
            Box::pin(tunnel::serve(connection, destination, Some(*dialled), early)).await;
        }
        Heard::NoServer(reason) => tunnel::refuse(connection, &destination, reason),
    }
}

/// What detection has heard.
enum Heard {
    Http1,
    Http2,
    /// Bytes to be tunnelled, or to be tunnelled without a look.
    Bytes(Detection),
    /// Bytes to be tunnelled to an endpoint that has been dialled meanwhile.
    Dialled(Detection, Box<(Opened, Held)>),
    /// The caller waits for the server, and there is none.
    NoServer(Reason),
    /// The caller has left.
    Nothing,
}

impl Heard {
    fn as_detection(&self) -> Detection {
        match self {
            Self::Http1 => Detection::Http1,
            Self::Http2 => Detection::Http2,
            Self::Bytes(detection) | Self::Dialled(detection, _) => *detection,
            Self::NoServer(_) => Detection::ServerFirst,
            Self::Nothing => Detection::ClosedEarly,
        }
    }

    /// `None`: more bytes are needed.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match detect::classify(bytes) {
            Spoken::Unclear => None,
            Spoken::Http1 => Some(Self::Http1),
            Spoken::Http2 => Some(Self::Http2),
            Spoken::Tls => Some(Self::Bytes(Detection::Tls)),
            Spoken::Other => Some(Self::Bytes(Detection::Unknown)),
        }
    }
}

/// Waits for the first bytes, as long as what the service declares allows.
async fn listen(connection: &mut Connection, destination: &Destination, early: &mut BytesMut) -> Heard {
    if destination.service.protocol == Protocol::Opaque {
        return Heard::Bytes(Detection::Opaque);
    }
    let undeclared = destination.service.protocol == Protocol::Detect;
    let patience = if undeclared { HESITATION } else { HEAD_TIMEOUT };
    let silence = Instant::now() + SILENCE;
    let mut deadline = None;
    loop {
        let read = match deadline {
            Some(deadline) => match timeout_at(deadline, connection.read(early)).await {
                Ok(read) => read,
                // Neither HTTP nor anything else that is known, and no more of it: let the endpoint make sense of it.
                Err(_) => return Heard::Bytes(Detection::Unknown),
            },
            None if undeclared => match timeout_at(silence, connection.read(early)).await {
                Ok(read) => read,
                Err(_) => return Box::pin(wait_for_either(connection, destination, early)).await,
            },
            // Declared as HTTP: the caller speaks first, whenever it likes. Idle connections are kept for later.
            None => connection.read(early).await,
        };
        match read {
            Ok(0) | Err(_) if early.is_empty() => return Heard::Nothing,
            Ok(0) | Err(_) => return Heard::Bytes(Detection::Unknown),
            Ok(_) => {}
        }
        if let Some(heard) = Heard::from_bytes(early) {
            return heard;
        }
        connection.worker.buffers.compact(early);
        deadline = deadline.or_else(|| Some(Instant::now() + patience));
    }
}

/// The caller is silent: it waits for the server, or it has opened a connection for later use. An endpoint is dialled,
/// and whoever speaks first settles it. If that is the caller, with HTTP, the connection is governed after all.
async fn wait_for_either(
    connection: &mut Connection,
    destination: &Destination,
    early: &mut BytesMut,
) -> Heard {
    let dialled = {
        let mut dialling = pin!(tunnel::dial(connection, destination));
        poll_fn(|cx| match dialling.as_mut().poll(cx) {
            Poll::Ready(dialled) => Poll::Ready(Some(dialled)),
            // What the caller says settles it, however long an endpoint takes to be connected to.
            Poll::Pending => connection.stream.poll_read_ready(cx).map(|_| None),
        })
        .await
    };
    let mut dialled = match dialled {
        Some(Ok(dialled)) => Some(dialled),
        Some(Err(reason)) => return Heard::NoServer(reason),
        None => None,
    };
    let mut deadline = None;
    loop {
        let spoke = poll_fn(|cx| {
            if let Some((endpoint, _)) = &dialled
                && endpoint.poll_read_ready(cx).is_ready()
            {
                return Poll::Ready(None);
            }
            poll_read(cx, &mut connection.stream, early, &connection.worker.buffers).map(Some)
        });
        let caller_spoke = match deadline {
            None => spoke.await,
            Some(deadline) => timeout_at(deadline, spoke).await.unwrap_or_default(),
        };
        let heard = match caller_spoke {
            Some(Ok(1..)) => Heard::from_bytes(early),
            Some(Err(_)) if early.is_empty() => Some(Heard::Nothing),
            // An end without a word may still be a question (a port scan, a half-close): let the endpoint answer.
            _ if early.is_empty() => Some(Heard::Bytes(Detection::ServerFirst)),
            _ => Some(Heard::Bytes(Detection::Unknown)),
        };
        match (heard, dialled) {
            (Some(Heard::Bytes(detection)), Some(dialled)) => {
                return Heard::Dialled(detection, Box::new(dialled));
            }
            (Some(Heard::Http1), Some((endpoint, held))) => {
                let Connection { worker, pod, .. } = &*connection;
                worker.pool.give(pod.id, held.chosen.endpoint(), endpoint, None, Nanos::now());
                return Heard::Http1;
            }
            (Some(heard), _) => return heard,
            // A few bytes that could be the beginning of HTTP: held back until they are clear or the endpoint speaks.
            (None, still) => {
                dialled = still;
                connection.worker.buffers.compact(early);
                deadline = deadline.or_else(|| Some(Instant::now() + HESITATION));
            }
        }
    }
}

/// Runs `end` when dropped, so that a count goes down however a connection ends.
fn scopeguard<F: FnMut()>(end: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}
