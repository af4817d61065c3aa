//! A connection from a pod: which service it is for, what is spoken on it, and who carries it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_util::io::poll_read_buf;

use super::{
    SocketOptions,
    budget::Place,
    buffers::Buffers,
    detect::{self, Spoken},
    governed::Attempt,
    http1, http2,
    pool::Seat,
    presence::Presence,
    threads::Writer,
    tunnel,
    upstream::Opened,
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Protocol},
    govern::endpoint::Endpoint,
    observe::{
        metrics::{Detection, ServiceSeries},
        reason::Reason,
    },
};

/// A caller that says nothing for this long is taken to wait for the server (MySQL, SMTP, ...).
const SILENCE: Duration = Duration::from_millis(100);

/// The same on a port that is declared to speak HTTP: hardly any server speaks first there, and a client may open connections
/// that it only uses later.
const DECLARED_SILENCE: Duration = Duration::from_secs(1);

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
    /// What the application has set on its socket, which holds for those to endpoints.
    pub(crate) options: SocketOptions,
    /// Its place in the pool of connections to endpoints.
    pub(crate) seat: Seat,
    /// Since when nothing is asked over it; `None`: nothing was yet, or not answered by an endpoint.
    pub(crate) rested: Option<Nanos>,
    /// For what its application writes to it.
    pub(crate) writer: Writer,
    pub(crate) _place: Place,
}

impl Connection {
    /// What stands behind the dialled address now; `None` once it is no longer governed.
    pub(crate) fn destination(&self) -> Option<Destination> {
        self.pod.destination(&self.worker.snapshot(), self.original).cloned()
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

    /// The same between two requests. At the endpoint a client's connection ends with the application's: it is one of an
    /// application that has ended, or that keeps idle connections for no longer.
    pub(crate) async fn read_while_open(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let Self { worker, pod, stream, seat, .. } = self;
        poll_fn(|cx| {
            if let Poll::Ready(read) = poll_read(cx, stream, into, &worker.buffers) {
                return Poll::Ready(read);
            }
            let ended = pod.arrival.is_some() && into.is_empty() && seat.poll_closed(cx).is_ready();
            if ended { Poll::Ready(Ok(0)) } else { Poll::Pending }
        })
        .await
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
    let worker = connection.worker.clone();
    worker.metrics.callers_open.inc();
    let pod = connection.pod.id;
    let _open = scopeguard(|| {
        if worker.is_inbound() {
            // Nobody else's connections are of this number.
            worker.h2.forget(pod);
        }
        worker.metrics.callers_open.dec();
    });
    let generation = worker.snapshot().generation;
    let Some(mut destination) = connection.destination() else {
        worker.metrics.detected(Detection::Unmanaged);
        return Box::pin(tunnel::pass_through(connection)).await;
    };
    let mut early = BytesMut::new();
    let heard = listen(&mut connection, &destination, &mut early).await;
    worker.metrics.detected(heard.as_detection());
    // It may have been long: what is known of the service may have changed meanwhile.
    if worker.snapshot().generation != generation {
        destination = connection.destination().unwrap_or(destination);
    }
    if matches!(heard, Heard::Bytes(_) | Heard::Dialled(..))
        && let Some(arrival) = &connection.pod.arrival
        && let Some(cause) = arrival.admit_connection(&worker, &connection.pod, !early.is_empty())
    {
        return tunnel::refuse(connection, &destination, cause.reason);
    }
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
    Dialled(Detection, Box<(Opened, Attempt)>),
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
}

/// How a port is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// Nothing is declared of it: whatever is not surely HTTP is tunnelled.
    Undeclared,
    /// The same, and a policy at the endpoint asks what is asked for: whatever a server may take for HTTP is read.
    UndeclaredGuarded,
    /// It is declared to speak HTTP: whatever is neither TLS nor HTTP/2 is for HTTP/1's reader.
    Declared,
    /// The same, and a policy at the endpoint asks what is asked for: TLS is not let through unread either.
    DeclaredGuarded,
}

impl Port {
    /// `None`: it is not listened to at all.
    fn of(connection: &Connection, protocol: Protocol) -> Option<Self> {
        let arrival = connection.pod.arrival.as_ref();
        let guarded = arrival.is_some_and(|arrival| arrival.depends_on_requests(&connection.worker));
        match (protocol, guarded) {
            (Protocol::Opaque, _) => None,
            (Protocol::Detect, false) => Some(Self::Undeclared),
            (Protocol::Detect, true) => Some(Self::UndeclaredGuarded),
            (Protocol::Http | Protocol::Http2, false) => Some(Self::Declared),
            (Protocol::Http | Protocol::Http2, true) => Some(Self::DeclaredGuarded),
        }
    }

    fn is_declared(self) -> bool {
        matches!(self, Self::Declared | Self::DeclaredGuarded)
    }

    /// How long a client may be silent before an endpoint is dialled, to hear whether that speaks first.
    fn silence(self) -> Duration {
        if self.is_declared() { DECLARED_SILENCE } else { SILENCE }
    }

    /// How long a client may take from its first bytes until it is clear what it speaks.
    fn patience(self) -> Duration {
        if self == Self::Undeclared { HESITATION } else { HEAD_TIMEOUT }
    }

    /// `None`: more bytes are needed.
    fn hear(self, bytes: &[u8]) -> Option<Heard> {
        let spoken = match self {
            Self::Undeclared => detect::classify(bytes),
            Self::UndeclaredGuarded => detect::classify_guarded(bytes),
            Self::Declared | Self::DeclaredGuarded => detect::classify_declared(bytes),
        };
        match spoken {
            Spoken::Unclear => None,
            Spoken::Http1 => Some(Heard::Http1),
            Spoken::Http2 => Some(Heard::Http2),
            Spoken::Tls if self == Self::DeclaredGuarded => Some(Heard::Http1),
            Spoken::Tls => Some(Heard::Bytes(Detection::Tls)),
            Spoken::Other => Some(Heard::Bytes(Detection::Unknown)),
        }
    }

    /// An endpoint has spoken before its client. One that speaks HTTP/2 does so (its SETTINGS), and no more follows from it.
    fn waits_for_client(self, endpoint: &[u8]) -> bool {
        self != Self::Undeclared && detect::may_be_settings(endpoint)
    }

    /// The client has ended its side before it was clear what it speaks. An end without a word may still be a question (a
    /// port scan, a half-close), which is for the endpoint to answer; an HTTP server has no answer to it.
    fn ended(self, early: &[u8]) -> Heard {
        match (self.is_declared(), early.is_empty()) {
            (false, true) => Heard::Bytes(Detection::ServerFirst),
            (false, false) => Heard::Bytes(Detection::Unknown),
            (true, true) => Heard::Nothing,
            (true, false) => Heard::Http1,
        }
    }

    /// The client's connection is broken.
    fn broken(self, early: &[u8]) -> Heard {
        if early.is_empty() { Heard::Nothing } else { self.ended(early) }
    }

    /// The client's first bytes are too few to tell, and no more have come: let the endpoint make sense of them, or HTTP/1's
    /// reader say that they took too long.
    fn timed_out(self) -> Heard {
        match self {
            Self::Undeclared => Heard::Bytes(Detection::Unknown),
            Self::UndeclaredGuarded | Self::Declared | Self::DeclaredGuarded => Heard::Http1,
        }
    }
}

/// Waits for the first bytes, as long as what the service declares allows.
async fn listen(connection: &mut Connection, destination: &Destination, early: &mut BytesMut) -> Heard {
    let Some(port) = Port::of(connection, destination.service.protocol) else {
        return Heard::Bytes(Detection::Opaque);
    };
    // An application is to see its clients' connections as they come, whoever speaks first.
    if connection.pod.arrival.is_some() {
        return Box::pin(wait_for_either(connection, destination, port, early)).await;
    }
    let worker = connection.worker.clone();
    let mut silence = worker.timers.countdown(port.silence());
    let mut patience = None;
    loop {
        let read = {
            let over = patience.as_mut().unwrap_or(&mut silence);
            let mut reading = pin!(connection.read(early));
            poll_fn(|cx| match reading.as_mut().poll(cx) {
                Poll::Pending => over.poll_over(cx).map(|()| None),
                read @ Poll::Ready(_) => read.map(Some),
            })
            .await
        };
        let Some(read) = read else {
            if patience.is_some() {
                return port.timed_out();
            }
            return Box::pin(wait_for_either(connection, destination, port, early)).await;
        };
        match read {
            Ok(0) => return port.ended(early),
            Err(_) => return port.broken(early),
            Ok(_) => {}
        }
        if let Some(heard) = port.hear(early) {
            return heard;
        }
        connection.worker.buffers.compact(early);
        patience.get_or_insert_with(|| worker.timers.countdown(port.patience()));
    }
}

/// An endpoint that was dialled because the client was silent.
struct Dialled {
    stream: Opened,
    endpoint: Arc<Endpoint>,
    /// `None` on a port that is declared to speak HTTP, where a connection that waits for requests counts as nothing.
    attempt: Option<Attempt>,
}

impl Dialled {
    fn new(port: Port, (stream, attempt): (Opened, Attempt)) -> Self {
        let endpoint = attempt.chosen.endpoint().clone();
        Self { stream, endpoint, attempt: (!port.is_declared()).then_some(attempt) }
    }

    fn tunnel(self, connection: &Connection, destination: &Destination, detection: Detection) -> Heard {
        let begin = || tunnel::begin(connection, destination, &self.endpoint, Nanos::now());
        let attempt = self.attempt.unwrap_or_else(begin);
        Heard::Dialled(detection, Box::new((self.stream, attempt)))
    }

    /// What the endpoint does, without taking it in.
    fn poll_said(&self, cx: &mut Context<'_>, port: Port) -> Poll<Said> {
        let mut bytes = [0; detect::SETTINGS_BYTES];
        let mut peeked = ReadBuf::new(&mut bytes);
        Poll::Ready(match ready!(self.stream.poll_peek(cx, &mut peeked)) {
            Ok(1..) if port.waits_for_client(peeked.filled()) => Said::Settings,
            Ok(1..) => Said::Endpoint,
            Ok(0) | Err(_) => Said::EndpointEnded,
        })
    }
}

/// Who does something first.
enum Said {
    Client(io::Result<usize>),
    Endpoint,
    /// The beginning of HTTP/2, which its client has to speak as well.
    Settings,
    EndpointEnded,
}

/// The client is silent: it waits for the server, or it has opened a connection for later use. An endpoint is dialled, and
/// whoever speaks first settles it. If that is the client, with HTTP, the connection is governed after all.
async fn wait_for_either(
    connection: &mut Connection,
    destination: &Destination,
    port: Port,
    early: &mut BytesMut,
) -> Heard {
    let dialled = {
        let mut dialling = pin!(tunnel::dial(connection, destination));
        poll_fn(|cx| match dialling.as_mut().poll(cx) {
            Poll::Ready(dialled) => Poll::Ready(Some(dialled)),
            // Its own application has been connected to in no time, or never will be.
            Poll::Pending if connection.pod.arrival.is_some() => Poll::Pending,
            // What the client says settles it, however long an endpoint takes to be connected to.
            Poll::Pending => connection.stream.poll_read_ready(cx).map(|_| None),
        })
        .await
    };
    let mut dialled = match dialled {
        Some(Ok(dialled)) => Some(Dialled::new(port, dialled)),
        Some(Err(reason)) if !port.is_declared() || connection.pod.arrival.is_some() => {
            return Heard::NoServer(reason);
        }
        // An HTTP client is told so when it asks for something.
        Some(Err(_)) | None => None,
    };
    let mut deadline = None;
    loop {
        let speaking = poll_fn(|cx| {
            if let Some(dialled) = &dialled
                && let Poll::Ready(said) = dialled.poll_said(cx, port)
            {
                return Poll::Ready(said);
            }
            poll_read(cx, &mut connection.stream, early, &connection.worker.buffers).map(Said::Client)
        });
        let said = match deadline {
            None => Some(speaking.await),
            Some(deadline) => timeout_at(deadline, speaking).await.ok(),
        };
        let heard = match said {
            Some(Said::Client(Ok(0))) => Some(port.ended(early)),
            Some(Said::Client(Ok(_))) => port.hear(early),
            Some(Said::Client(Err(_))) => Some(port.broken(early)),
            // It keeps no connection that nothing comes over. An HTTP client may still want to use its own.
            Some(Said::EndpointEnded) if port.is_declared() => {
                dialled = None;
                continue;
            }
            // HTTP/2 has connections of its own to the endpoint.
            Some(Said::Settings) => {
                dialled = None;
                continue;
            }
            Some(Said::Endpoint | Said::EndpointEnded) => {
                if port.is_declared() {
                    warn_of_server_first(connection, destination);
                }
                let first = if early.is_empty() { Detection::ServerFirst } else { Detection::Unknown };
                Some(Heard::Bytes(first))
            }
            None => Some(port.timed_out()),
        };
        match (heard, dialled) {
            (Some(Heard::Bytes(detection)), Some(dialled)) => {
                return dialled.tunnel(connection, destination, detection);
            }
            (Some(Heard::Http1), Some(Dialled { stream, endpoint, .. })) => {
                connection.seat.give(&endpoint, stream, None, Nanos::now());
                return Heard::Http1;
            }
            (Some(heard), _) => return heard,
            // A few bytes that could be the beginning of HTTP: held back until they are clear or the endpoint speaks.
            (None, still) => {
                dialled = still;
                connection.worker.buffers.compact(early);
                deadline = deadline.or_else(|| Some(Instant::now() + port.patience()));
            }
        }
    }
}

fn warn_of_server_first(connection: &Connection, destination: &Destination) {
    if connection.worker.is_first_warning(connection.original) {
        tracing::warn!(
            service = %destination.service,
            "the server speaks first on a port that is declared to speak HTTP: its connections are tunnelled, each after {} s; declare what it speaks (appProtocol: tcp)",
            DECLARED_SILENCE.as_secs()
        );
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
