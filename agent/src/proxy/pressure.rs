//! What a stream of bytes takes of memory while it is on its way: in the agent, and in the kernel's buffers of both sockets,
//! which are charged to the agent's control group.
//!
//! A slow reader costs as much as is sent to it before it is waited for. Without bounds that is 10 MB a connection: the
//! kernel lets a send buffer grow to 4 MB and a receive buffer to 6 MB (`tcp_wmem`, `tcp_rmem`). So:
//!
//! - **Unsent bytes** in the kernel are few ([`UNSENT`], `TCP_NOTSENT_LOWAT`): what a peer does not take is not taken from the
//!   other side. What is on the network is as much as ever.
//! - **Receive buffers** grow as the kernel likes as long as the pod has bytes for that ([`Growth`]); so one stream is as fast as
//!   it would be alone. They are asked for each time the stream has doubled, and stop to grow where there are none left.
//! - **Crowds** get little from the beginning ([`fit`]).
//! - **What waits** for longer than a moment is measured and charged to the pod ([`Stall`]). Above its part of
//!   the agent's memory new connections of the pod go direct, and far above it its new requests are rejected.
//!
//! What a connection that carries many streams receives is bounded by their windows instead, which are charged already
//! ([`http2`](super::http2)): its receive buffer may grow when its window does.

use std::{
    future::Future as _,
    os::fd::AsFd as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, Socket};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    budget::{Growth, PodBudget, Waiting},
    worker::PodHere,
};
use crate::clock::Nanos;

/// Bytes that the kernel keeps for a peer that has no room for them. Enough for a write of the largest buffer to find the next
/// one ready: the kernel says that there is room at half of it.
pub(crate) const UNSENT: u32 = 128 * 1024;

/// The same for a stream whose buffers may grow: few large writes cost less than many small ones.
const UNSENT_OF_MUCH: u32 = 1024 * 1024;

/// A stream that has carried less is left alone: no buffer is large by then. (More than what goes to somebody who reads nothing.)
const SMALL: u64 = 256 * 1024;

/// The receive buffer of a stream that may not grow, as `SO_RCVBUF` takes it (the kernel doubles it): what most begin with.
const RECEIVED: usize = 64 * 1024;

/// What a stream that waits for its peer must have waited to be measured, and how often it is then.
const MOMENT: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_secs(1);

/// Connections of a pod from which on each new one gets buffers of so many bytes in the kernel (which doubles that), and no
/// more until it turns out to carry much. Without that a receive buffer becomes as large as what comes in one go, up to
/// `tcp_rmem` (`tcp_clamp_window` in Linux). What the first few get is what the kernel gives.
const CROWDS: [(usize, Buffers); 4] = [
    (2048, Buffers { received: 8 * 1024, sent: Some(8 * 1024) }),
    (512, Buffers { received: 16 * 1024, sent: Some(16 * 1024) }),
    (64, Buffers { received: 32 * 1024, sent: Some(32 * 1024) }),
    (8, Buffers { received: RECEIVED, sent: None }),
];

/// The kernel's buffers of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffers {
    received: usize,
    sent: Option<usize>,
}

/// What a read brings at most where there are so many: it may have to be kept for one that does not take it.
const CROWD: usize = 512;
const READ_IN_CROWD: usize = 8 * 1024;

/// The buffers of a new connection of a pod that has so many.
fn crowd(connections: usize) -> Option<Buffers> {
    CROWDS.iter().find(|(from, _)| connections >= *from).map(|(_, buffers)| *buffers)
}

/// Gives a socket that is going to be connected the receive buffer that it may have among so many of its pod.
pub(crate) fn fit_before(socket: &Socket, pod: &PodHere) {
    let small = crowd(pod.budget.connections()).filter(|buffers| buffers.received < RECEIVED);
    if let Some(buffers) = small {
        let _ = socket.set_recv_buffer_size(buffers.received);
        // If it were fixed now, the window could never grow beyond it (`tcp_connect_init` in Linux).
        let _ = pod.pod.network.let_buffers_grow(socket.as_fd());
    }
}

/// Gives a new connection the kernel's buffers that it may have among so many of its pod. One that is gone already is told by
/// reading.
pub(crate) fn fit(stream: &TcpStream, connections: usize) {
    let Some(buffers) = crowd(connections) else { return };
    let socket = SockRef::from(stream);
    let _ = socket.set_recv_buffer_size(buffers.received);
    if let Some(sent) = buffers.sent {
        let _ = socket.set_send_buffer_size(sent);
    }
}

/// What waits for a peer: measured while it does, and charged to the pod.
pub(crate) struct Stall {
    waiting: Waiting,
    timer: Option<Pin<Box<Sleep>>>,
    /// What had been carried when it was last looked at.
    seen: u64,
}

impl Stall {
    pub(crate) fn new(budget: &Arc<PodBudget>) -> Self {
        Self { waiting: budget.waiting(), timer: None, seen: 0 }
    }

    /// The peer takes nothing now; `measure` tells what that takes of memory. To be called again by the task that is woken for
    /// that. Whether the peer has taken nothing for long already.
    pub(crate) fn look(&mut self, cx: &mut Context<'_>, carried: u64, measure: impl Fn() -> usize) -> bool {
        let Self { waiting, timer, seen } = self;
        let timer = timer.get_or_insert_with(|| {
            *seen = carried;
            Box::pin(sleep(MOMENT))
        });
        while timer.as_mut().poll(cx) == Poll::Ready(()) {
            let waits = *seen == carried;
            if waits {
                waiting.set(measure(), Nanos::now());
            } else {
                waiting.set(0, Nanos::now());
                *seen = carried;
            }
            timer.as_mut().reset(Instant::now() + if waits { AGAIN } else { MOMENT });
        }
        waiting.amount() > 0
    }

    /// It has taken something.
    pub(crate) fn moved(&mut self) {
        if self.waiting.amount() > 0 {
            self.waiting.set(0, Nanos::now());
        }
    }
}

/// The memory of one direction.
pub(crate) struct Pressure {
    pod: Rc<PodHere>,
    /// When so much has been carried there is something to do.
    next: u64,
    much: Option<Box<Much>>,
}

/// What is known of a direction that carries much, or waits.
struct Much {
    growth: Growth,
    /// It may not grow any more.
    denied: bool,
    /// When so much has been carried it is to be looked at again whether it may grow.
    doubled: u64,
    stall: Stall,
}

impl Much {
    fn new(pod: &PodHere) -> Self {
        Self { growth: pod.budget.growth(), denied: false, doubled: SMALL, stall: Stall::new(&pod.budget) }
    }
}

impl Pressure {
    pub(crate) fn new(pod: &Rc<PodHere>) -> Self {
        Self { pod: pod.clone(), next: SMALL, much: None }
    }

    /// A large buffer is not to be had.
    pub(crate) fn is_denied(&self) -> bool {
        self.much.as_ref().is_some_and(|much| much.denied)
    }

    /// What the next read may bring at most.
    #[inline]
    pub(crate) fn most(&self) -> usize {
        let may_grow = || self.much.as_ref().is_some_and(|much| much.growth.amount() > 0);
        if self.pod.budget.connections() >= CROWD && !may_grow() { READ_IN_CROWD } else { usize::MAX }
    }

    /// So much has been carried from `source` to `sink`.
    #[inline]
    pub(crate) fn carried(&mut self, carried: u64, source: &TcpStream, sink: &TcpStream) {
        if carried >= self.next {
            self.carried_much(carried, source, sink);
        }
    }

    #[cold]
    fn carried_much(&mut self, carried: u64, source: &TcpStream, sink: &TcpStream) {
        let Self { pod, next, much } = self;
        let much = much.get_or_insert_with(|| Box::new(Much::new(pod)));
        much.stall.moved();
        if carried >= much.doubled {
            much.doubled = carried.saturating_mul(2);
            let socket = SockRef::from(source);
            let (first, now) = (much.growth.amount() == 0, socket.recv_buffer_size().unwrap_or_default());
            // As large it may be until it is looked at again.
            if much.growth.set(2 * now + UNSENT_OF_MUCH as usize) {
                if std::mem::take(&mut much.denied) || first {
                    // They may have been kept small, by us: from now on the kernel may let them grow.
                    for socket in [source, sink] {
                        let _ = pod.pod.network.let_buffers_grow(socket.as_fd());
                    }
                    let _ = SockRef::from(sink).set_tcp_notsent_lowat(UNSENT_OF_MUCH);
                }
            } else if !much.denied {
                much.denied = true;
                let _ = socket.set_recv_buffer_size((much.growth.amount() / 4).max(RECEIVED).min(now));
            }
        }
        *next = much.doubled;
    }

    /// What has been read is not taken by `sink`; `own` bytes of memory in the agent wait. To be called again by the task that
    /// is woken for that. Whether it waits for long already.
    pub(crate) fn stalled(
        &mut self,
        cx: &mut Context<'_>,
        carried: u64,
        own: usize,
        source: &TcpStream,
        sink: &TcpStream,
    ) -> bool {
        let Self { pod, next, much } = self;
        let much = much.get_or_insert_with(|| Box::new(Much::new(pod)));
        let network = &pod.pod.network;
        let waits = much
            .stall
            .look(cx, carried, || own + network.memory_of(source.as_fd()) + network.memory_of(sink.as_fd()));
        if waits {
            // As soon as anything moves.
            *next = 0;
        }
        waits
    }

    /// Nothing is carried any more for the moment, and the source is kept: its buffer is to be as small as that of a new one.
    pub(crate) fn settle(&mut self, source: &TcpStream) {
        if self.much.take().is_some_and(|much| much.growth.amount() > 0 || much.denied) {
            let _ = SockRef::from(source).set_recv_buffer_size(RECEIVED);
        }
        self.next = SMALL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(listener: std::net::TcpListener) -> (TcpStream, TcpStream) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_how_much_may_be_unsent_and_for_how_long() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT).unwrap();
        SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
        let (_client, server) = pair(listener).await;
        assert_eq!(SockRef::from(&server).tcp_notsent_lowat().unwrap(), UNSENT);
        assert!(server.nodelay().unwrap());
    }

    #[tokio::test]
    async fn the_more_connections_the_smaller_the_buffers_of_a_new_one() {
        let of = |stream: &TcpStream| {
            let socket = SockRef::from(stream);
            (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap())
        };
        let sizes = [
            (64, (65_536, 65_536)),
            (511, (65_536, 65_536)),
            (512, (32_768, 32_768)),
            (4000, (16_384, 16_384)),
        ];
        for (connections, expected) in sizes {
            let (stream, _peer) = pair(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).await;
            let before = of(&stream);
            fit(&stream, 7);
            assert_eq!(of(&stream), before);
            fit(&stream, 8);
            assert_eq!(of(&stream), (131_072, before.1));
            fit(&stream, connections);
            assert_eq!(of(&stream), expected, "{connections}");
        }
    }
}
