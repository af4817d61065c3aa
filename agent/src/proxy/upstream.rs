//! Connections to endpoints, opened where the caller lives.

mod families;

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{Socket, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Pod, SocketOptions,
    pressure::{self, UNSENT},
    threads::Followed,
    timer::Timers,
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    govern::{
        backoff::UNANSWERED_AFTER,
        endpoint::Endpoint,
        policy::{Mode, Timeouts},
    },
    observe::metrics::{Connect, Metrics},
};

/// How long an endpoint may take to accept a connection while there is another one to be tried, if the policy does not say
/// (`timeouts.connect`): a node that has vanished would otherwise hold requests for the two minutes that the kernel tries.
/// Linux repeats a connection request that was lost after a second (RFC 6298, section 2): that one is still answered in time,
/// by whoever is nearer than half a second. The last one has as long as the kernel takes, as it would have without Sluice.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// A client that has closed its connection while one to an endpoint is being opened is looked for from then on: what it had sent
/// before reaches an endpoint that is there.
const LOOK_FOR_CLIENT: Duration = Duration::from_secs(1);

/// A silent endpoint is asked whether it is there, as often as the kernel does by default (9 times), if the application has not
/// said for its own socket when that is to be ([`SocketOptions`]): a pod that has ended must not be kept in the agent by a tunnel whose
/// endpoint can no longer be heard.
const ASK_AFTER: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(15);

/// Endpoints that are tried for one request, if connecting fails: nothing has been processed then, so the next one may
/// have it, whatever the method.
pub(crate) const CONNECT_ATTEMPTS: usize = 4;

/// A connection to an endpoint, counted as open until it is dropped.
pub(crate) struct Opened {
    stream: TcpStream,
    counted: Counted,
    /// Where it leads to: one of the endpoint's addresses.
    pub(crate) to: SocketAddr,
    /// It leads to an application whose threads are followed.
    followed: Option<Followed>,
    /// When it was opened.
    pub(crate) since: Nanos,
    /// It has brought a response. One that has not is no server's that has grown tired of it.
    pub(crate) proven: bool,
}

/// Counts something as open.
pub(crate) struct Counted(Arc<Metrics>);

impl Opened {
    pub(crate) fn new(stream: TcpStream, to: SocketAddr, metrics: &Arc<Metrics>) -> Self {
        metrics.endpoints_open.inc();
        let counted = Counted(metrics.clone());
        Self { stream, counted, to, followed: None, since: Nanos::now(), proven: false }
    }

    /// The requests that come to the pod over it, if its application's threads are followed.
    pub(crate) fn followed(&mut self, pod: &Pod) -> Option<&mut Followed> {
        if self.followed.is_none() {
            self.followed = Followed::of(pod, &self.stream);
        }
        self.followed.as_mut()
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

/// How a connection to an endpoint is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// What the client has set on its own socket.
    pub(crate) options: SocketOptions,
    /// How long the endpoint may take; `None`: as long as the kernel tries.
    pub(crate) within: Option<Duration>,
}

/// How long an endpoint may take to accept a connection; `has_another`: a further one could be tried.
pub(crate) fn time_to_connect(timeouts: Timeouts, has_another: impl FnOnce() -> bool) -> Option<Duration> {
    let of_policy = timeouts.connect.filter(|_| timeouts.mode == Mode::Enforce);
    of_policy.or_else(|| has_another().then_some(CONNECT_TIMEOUT))
}

/// Opens a connection to `to` from inside the pod's network namespace.
pub(crate) async fn dial(worker: &Worker, pod: &PodHere, to: SocketAddr, terms: Terms) -> io::Result<Opened> {
    let network = &pod.pod.network;
    let client = pod.arrival.as_ref().map(|arrival| arrival.client);
    let socket = match network.socket(to, client) {
        Err(error) if is_exhausted(&error) => {
            pod.budget.exhausted(Nanos::now());
            // What is only kept for later makes room.
            if worker.pool.clear() == 0 {
                return Err(error);
            }
            network.socket(to, client)
        }
        made => made,
    }?;
    // Sluice passes on what it has as soon as it has it; waiting for more would only add latency.
    socket.set_tcp_nodelay(true)?;
    wait_as(&socket, &terms.options)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    pressure::fit_before(&socket, pod);
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        begun => begun?,
    }
    network.connecting(&socket)?;
    let stream = TcpStream::from_std(socket.into())?;
    let connecting = async {
        stream.writable().await?;
        stream.take_error()?.map_or(Ok(()), Err)
    };
    match terms.within {
        None => connecting.await?,
        Some(within) => {
            let connected = worker.timers.within(within, pin!(connecting)).await;
            connected.unwrap_or_else(|| Err(unanswered(within)))?;
        }
    }
    pressure::fit(&stream, pod.budget.connections());
    Ok(Opened::new(stream, to, &worker.metrics))
}

fn unanswered(within: Duration) -> io::Error {
    let why = format!("no answer to the connection request within {within:?}");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Waits for a connection request that may be another's, who may wait for longer. `own`: whether it is one's own, which has the time
/// as its own.
pub(crate) async fn wait_within<T>(
    endpoint: &Endpoint,
    within: Option<Duration>,
    own: impl Fn() -> bool,
    opened: impl Future<Output = Result<T, Rc<io::Error>>>,
) -> Result<T, Rc<io::Error>> {
    let Some(within) = within else { return opened.await };
    let began = Nanos::now();
    let (mut opened, mut over) = (pin!(opened), pin!(sleep(within)));
    poll_fn(|cx| {
        if let Poll::Ready(opened) = opened.as_mut().poll(cx) {
            return Poll::Ready(opened);
        }
        if own() {
            return Poll::Pending;
        }
        ready!(over.as_mut().poll(cx));
        endpoint.load.missed(began.0, Nanos::now().0);
        Poll::Ready(Err(Rc::new(unanswered(within))))
    })
    .await
}

/// Lets a socket wait for a silent peer as long as the client's own would.
fn wait_as(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let keepalive = match options.keepalive_time {
        0 => TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY),
        time => TcpKeepalive::new()
            .with_time(seconds(time))
            .with_interval(seconds(options.keepalive_interval))
            .with_retries(options.keepalive_probes),
    };
    socket.set_tcp_keepalive(&keepalive)?;
    if options.user_timeout > 0 {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(options.user_timeout.into())))?;
    }
    Ok(())
}

/// Waits for a connection to be opened, but in vain no longer than its client does; `None`: `gone` says that it has gone.
pub(crate) async fn while_awaited<F: Future>(
    timers: &Timers,
    mut connecting: Pin<&mut F>,
    mut gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Option<F::Output> {
    let mut later = timers.countdown(LOOK_FOR_CLIENT);
    poll_fn(|cx| {
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(Some(connected));
        }
        ready!(later.poll_over(cx));
        gone(cx).map(|()| None)
    })
    .await
}

/// The process, or the system, has no descriptor left.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Opens a connection to an endpoint, at whichever of its addresses takes it.
pub(crate) async fn connect(
    worker: &Worker,
    pod: &PodHere,
    endpoint: &Arc<Endpoint>,
    terms: Terms,
) -> io::Result<Opened> {
    let request = Request::begin(endpoint);
    let connected = families::open(worker, pod, endpoint, terms).await;
    request.end(&connected);
    if pod.arrival.is_some()
        && connected.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        pod.pod.network.refused(endpoint.address);
    }
    connected
}

/// Asks one address for a connection, and counts how it went.
async fn attempt(worker: &Worker, pod: &PodHere, to: SocketAddr, terms: Terms) -> io::Result<Opened> {
    let connected = dial(worker, pod, to, terms).await;
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

/// A connection request. An endpoint that does not answer it gets no others for a while, if there is another.
struct Request<'e> {
    endpoint: &'e Endpoint,
    sent: Nanos,
    ended: bool,
}

impl<'e> Request<'e> {
    fn begin(endpoint: &'e Endpoint) -> Self {
        Self { endpoint, sent: Nanos::now(), ended: false }
    }

    fn end(mut self, connected: &io::Result<Opened>) {
        self.ended = true;
        let load = &self.endpoint.load;
        match connected.as_ref().map_err(io::Error::kind) {
            Ok(_) | Err(io::ErrorKind::ConnectionRefused) => load.backoff().answered(),
            Err(
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable,
            ) => load.missed(self.sent.0, Nanos::now().0),
            // Of this side.
            Err(_) => {}
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let now = Nanos::now();
        // Whoever wanted the connection waits for it no longer.
        if !self.ended && now.since(self.sent) >= Nanos::of(UNANSWERED_AFTER) {
            self.endpoint.load.missed(self.sent.0, now.0);
        }
    }
}

/// How long the end of a connection is looked at to learn what became of the last that was sent over it: more than a round
/// trip within any cluster.
const VERDICT: Duration = Duration::from_millis(250);
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Whether nothing can have been read of the `sent` bytes that were written last to a connection whose peer has ended its side.
///
/// A peer that had closed the connection before they came answers them with a reset, and never acknowledges them (Linux:
/// `tcp_rcv_state_process`, `TCPABORTONDATA`). Its end acknowledges all that it had got before. So end, reset and nothing
/// acknowledged say together that they came too late. (`unacknowledged`: see [`Network`](super::Network).) A reset alone does not: acknowledgements are delayed.
pub(crate) async fn was_unread(
    stream: &TcpStream,
    unacknowledged: impl Fn() -> io::Result<usize>,
    sent: usize,
    write_failed: bool,
) -> bool {
    let deadline = Instant::now() + VERDICT;
    let mut wait = FIRST_LOOK;
    loop {
        // In this order: what the peer acknowledges it does before its reset.
        let reset = write_failed || !matches!(stream.take_error(), Ok(None));
        match unacknowledged() {
            Ok(left) if left >= sent => {}
            _ => return false,
        }
        if reset || sent == 0 {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(wait).await;
        wait *= 2;
    }
}

/// Makes the peer see a reset, not an orderly end: a broken conversation must not look like a finished one.
pub(crate) fn reset(stream: TcpStream) {
    // Fails only for a socket that is gone already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{ASK_AFTER, Duration, Socket, SocketOptions, TcpStream, wait_as};

    /// The same, on this machine.
    async fn was_unread(stream: &TcpStream, sent: usize, write_failed: bool) -> bool {
        let unacknowledged = || crate::capture::unacknowledged(stream.as_fd());
        super::was_unread(stream, unacknowledged, sent, write_failed).await
    }

    #[test]
    fn a_socket_waits_as_long_as_the_clients_own() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let none = SocketOptions::default();
        wait_as(&socket, &none).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        let options = SocketOptions {
            user_timeout: 1500,
            keepalive_time: 7,
            keepalive_interval: 3,
            keepalive_probes: 2,
        };
        wait_as(&socket, &options).unwrap();
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1500)));
    }

    /// A connection over which a request and its answer have gone.
    async fn used() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        client.write_all(b"first").await.unwrap();
        server.read_exact(&mut [0; 5]).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        (client, server)
    }

    #[tokio::test]
    async fn what_a_closed_peer_resets_was_unread() {
        let (mut client, server) = used().await;
        drop(server);
        client.write_all(b"second").await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(was_unread(&client, 6, false).await);
    }

    #[tokio::test]
    async fn what_could_not_be_written_was_unread() {
        let (mut client, server) = used().await;
        drop(server);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(was_unread(&client, 0, false).await);
        client.write_all(b"half").await.unwrap();
        while client.write_all(b"rest").await.is_ok() {}
        assert!(was_unread(&client, 4, true).await);
    }

    #[tokio::test]
    async fn what_a_peer_has_got_before_it_ended_may_have_been_read() {
        let (mut client, mut server) = used().await;
        client.write_all(b"second").await.unwrap();
        server.read_exact(&mut [0; 6]).await.unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(!was_unread(&client, 6, false).await);
    }

    #[tokio::test]
    async fn what_a_peer_gets_that_has_only_ended_its_side_may_be_read() {
        let (mut client, mut server) = used().await;
        server.shutdown().await.unwrap();
        client.write_all(b"second").await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(!was_unread(&client, 6, false).await);
        server.read_exact(&mut [0; 6]).await.unwrap();
    }
}
