//! Connections to endpoints, opened where the caller lives.

use std::{
    io,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};

use super::{
    pressure::{self, UNSENT},
    worker::{PodHere, Worker},
};
use crate::{
    govern::endpoint::Endpoint,
    observe::metrics::{Connect, Metrics},
};

/// How long an endpoint may take to accept a connection. The caller's own connect timeout ended when it was redirected,
/// so a node that vanished would otherwise hold a request for the two minutes that the kernel tries. (Envoy: 5 s.)
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent endpoint is asked whether it is there, as often as the kernel does by default (9 times). What the application
/// set on its own socket ends at the agent; and a pod that has ended must not be kept in the agent by a tunnel whose
/// endpoint can no longer be heard.
const ASK_AFTER: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(15);

/// Endpoints that are tried for one request, if connecting fails: nothing has been processed then, so the next one may
/// have it, whatever the method.
pub(crate) const CONNECT_ATTEMPTS: usize = 3;

/// A connection to an endpoint, counted as open until it is dropped.
pub(crate) struct Opened {
    stream: TcpStream,
    counted: Counted,
}

/// Counts something as open.
pub(crate) struct Counted(Arc<Metrics>);

impl Opened {
    pub(crate) fn new(stream: TcpStream, metrics: &Arc<Metrics>) -> Self {
        metrics.endpoints_open.inc();
        Self { stream, counted: Counted(metrics.clone()) }
    }

    /// See [`reset`].
    pub(crate) fn reset(self) {
        reset(self.stream);
    }

    /// The stream, and what is to be kept as long as it is open.
    pub(crate) fn into_parts(self) -> (TcpStream, Counted) {
        (self.stream, self.counted)
    }
}

impl Deref for Opened {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.endpoints_open.dec();
    }
}

/// Opens a connection to `to` from inside the pod's network namespace.
pub(crate) async fn dial(worker: &Worker, pod: &PodHere, to: SocketAddr) -> io::Result<Opened> {
    let network = &pod.pod.network;
    let socket = match network.socket(to) {
        // What is only kept for later makes room.
        Err(error) if is_exhausted(&error) && worker.pool.clear() > 0 => network.socket(to),
        made => made,
    }?;
    // Sluice passes on what it has as soon as it has it; waiting for more would only add latency.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY))?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    pressure::fit_before(&socket, pod);
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => {
            let stream = connected?;
            pressure::fit(&stream, pod.budget.connections());
            Ok(Opened::new(stream, &worker.metrics))
        }
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection request within 5 s"))
        }
    }
}

/// The process, or the system, has no descriptor left.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Opens a connection to an endpoint, and counts how it went.
pub(crate) async fn connect(worker: &Worker, pod: &PodHere, endpoint: &Arc<Endpoint>) -> io::Result<Opened> {
    let connected = dial(worker, pod, endpoint.address).await;
    worker.metrics.connected(match &connected {
        Ok(_) => Connect::Opened,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Connect::Refused,
            io::ErrorKind::TimedOut => Connect::Timeout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Connect::Unreachable,
            _ => Connect::Failed,
        },
    });
    connected
}

/// Makes the peer see a reset, not an orderly end: a broken conversation must not look like a finished one.
pub(crate) fn reset(stream: TcpStream) {
    // Fails only for a socket that is gone already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
