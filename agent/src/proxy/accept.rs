//! Accepting the connections that the kernel has redirected to a pod's listener.

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use socket2::SockRef;
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Origin,
    arrival::{self, Arrival},
    budget::Place,
    connection::{self, Connection},
    pool,
    presence::Presence,
    pressure::{self, UNSENT},
    threads::Writer,
    worker::{PodHere, Worker},
};
use crate::{clock::Nanos, govern::per_pod::CallingPod, observe::metrics::Detection};

/// A connect() that was redirected just before the pod was taken out of the kernel's map is still on its way.
const LAST_CALL: Duration = Duration::from_millis(200);

/// When the listener is closed even if there is always one more connection in it: somebody in the pod keeps dialling it.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// Wait after an error that concerns the process and not the connection (no file descriptors, no memory), and while a pod has
/// so many connections that further ones have to wait.
const BREATHER: Duration = Duration::from_millis(50);

/// After how long of that those that wait are accepted all the same, into what is kept of descriptors beside: their clients have
/// been connected to, and cannot go anywhere else.
const WAITS_AT_MOST: Duration = Duration::from_secs(1);

/// Connections that are accepted before others have their turn.
const IN_A_ROW: u32 = 8;

/// A listener in a pod.
pub(crate) struct Listener(AsyncFd<net::TcpListener>);

impl Listener {
    pub(crate) fn new(pod: &PodHere, listener: net::TcpListener) -> io::Result<Self> {
        let socket = SockRef::from(&listener);
        // What it accepts inherits these, at no system call for each. Sluice passes on what it has as soon as it has it; waiting
        // for more would only add latency.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.set_nonblocking(true)?;
        pod.pod.network.watched(listener).map(Self)
    }

    /// The next connection.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let mut ready = self.0.readable().await?;
            match acceptfrom_with(self.0.get_ref(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((stream, peer)) => {
                    // To accept in vain costs several times as much as to ask: the kernel makes a socket for it first.
                    if !is_one_waiting(self.0.get_ref()) {
                        ready.clear_ready();
                    }
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let peer = peer.ok_or(io::ErrorKind::ConnectionAborted)?;
                    return Ok((TcpStream::from_std(stream.into())?, peer));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a connection waits to be accepted, as far as the kernel says.
fn is_one_waiting(listener: &net::TcpListener) -> bool {
    let asked = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&Timespec::default()));
    !matches!(asked, Ok(0))
}

/// Accepts until the pod's gate is shut, then for a moment longer, and closes the listener when nothing waits in it.
pub(crate) async fn accept(worker: &Rc<Worker>, pod: &Rc<PodHere>, listener: Listener) {
    let gate = pod.gate.watch();
    let mut count = 0_u32;
    // Since when one waits that has to.
    let mut waits_since = None;
    loop {
        count = count.wrapping_add(1);
        if count.is_multiple_of(IN_A_ROW) {
            tokio::task::yield_now().await;
        }
        if pod.budget.must_wait() {
            if !is_one_waiting(listener.0.get_ref()) {
                waits_since = None;
                tokio::select! {
                    biased;
                    _ = listener.0.readable() => {}
                    () = gate.shut() => break,
                }
            }
            let began = *waits_since.get_or_insert_with(Instant::now);
            if began.elapsed() < WAITS_AT_MOST && !pod.gate.is_shut() {
                // What the pod only keeps for later makes room.
                worker.pool.forget(pod.id);
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        } else {
            waits_since = None;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = gate.shut() => break,
        };
        admit(worker, pod, accepted).await;
    }
    let began = Instant::now();
    while began.elapsed() < CLOSING_TIME {
        // What waits is taken before the time is looked at.
        match timeout_at(began + LAST_CALL, listener.accept()).await {
            Ok(accepted) => admit(worker, pod, accepted).await,
            Err(_) => break,
        }
    }
}

async fn admit(worker: &Rc<Worker>, pod: &Rc<PodHere>, accepted: io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((stream, peer)) => {
            let now = Nanos::now();
            let guest = if worker.is_inbound() {
                match arrival::receive(worker, pod, &stream, peer, now) {
                    Ok(guest) => guest,
                    Err(refused) => {
                        worker.complain(|| {
                            tracing::warn!(pod = %pod.name(), client = %peer.ip(), "reset a connection from outside: {refused}");
                        });
                        return super::upstream::reset(stream);
                    }
                }
            } else {
                None
            };
            let client = guest.as_ref().map(|guest| guest.caller().clone());
            // At once, so that those behind it are not accepted beyond what there is.
            let place = pod.budget.accepted(now).of(guest);
            let (worker_here, pod_here) = (worker.clone(), pod.clone());
            // On its own from here on, so that whatever goes wrong with it is no other connection's affair.
            pod.spawn(worker, async move {
                if let Some(connection) = identify(worker_here, pod_here, stream, (peer, client), place) {
                    connection::serve(connection).await;
                }
            });
        }
        // The peer was gone before it was accepted.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
        Err(error) => {
            pod.budget.exhausted(Nanos::now());
            worker.complain(|| {
                tracing::error!(pod = %pod.name(), %error, "cannot accept connections: new ones bypass the agent, and those that are connected wait");
            });
            // What is only kept for later makes room.
            if worker.pool.clear() == 0 {
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

/// Finds out where the connection was meant to go. One that was not redirected is closed: the listener is nobody's service.
fn identify(
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    stream: TcpStream,
    (peer, client): (SocketAddr, Option<Arc<CallingPod>>),
    place: Place,
) -> Option<Connection> {
    let Origin { destination: original, socket, options } = match pod.pod.network.origin(stream.as_fd()) {
        Ok(Some(origin)) => origin,
        Ok(None) => {
            worker.metrics.detected(Detection::NotRedirected);
            worker.complain(|| {
                tracing::warn!(pod = %pod.name(), "closed a connection straight to Sluice's listener: only redirected connections are served");
            });
            super::upstream::reset(stream);
            return None;
        }
        Err(error) => {
            worker.metrics.detected(Detection::NotRedirected);
            worker.complain(|| {
                tracing::error!(pod = %pod.name(), %error, "closed a connection whose original destination cannot be read");
            });
            super::upstream::reset(stream);
            return None;
        }
    };
    pressure::fit(&stream, pod.budget.connections());
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    let pod = if worker.is_inbound() {
        let arrival = Arrival::new(&worker, &pod, peer, original);
        pod.of_client(&worker, arrival, client)
    } else {
        pod
    };
    let presence = Presence::new(&pod, socket);
    let seat = worker.pool.enter(pool::Key { pod: pod.id, dialled: original, options });
    // What is dialled for a client from outside is there before its first request, whatever that is.
    let rested = pod.arrival.is_some().then(Nanos::now);
    Some(Connection {
        worker,
        pod,
        stream,
        original,
        presence,
        options,
        seat,
        rested,
        writer: Writer::new(socket),
        _place: place,
    })
}
