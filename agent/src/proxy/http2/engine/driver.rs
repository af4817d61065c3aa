//! Moves a connection's bytes: what is unsent to its socket, and what has come to its [core](super::core).
//!
//! A turn writes, then reads once, and takes what was read as far as it may in one go. Whatever the streams have to say to
//! that they say before the next turn, so that it leaves in one write. A connection that has nothing to read or write
//! holds no buffer.

use std::{
    future::Future,
    io::{self, IoSlice},
    os::fd::AsFd as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use super::{
    core::{Ended, Leaving, Role},
    handle::Shared,
    limits::OUT_STOP,
    out::SLICES,
    reader::Fed,
};
use crate::{
    clock::Nanos,
    proxy::{
        buffers::BUFFER_BYTES,
        pressure::Stall,
        worker::{Busy, PodHere, Worker},
    },
};

/// How long a connection that is closed on this side waits for its peer to take what is unsent, and again to close it too.
/// If it were gone when the peer's next frame comes, the kernel would answer with a reset, and what is still in its buffers
/// be lost (RFC 9112, section 9.6, tells the same of HTTP/1). What the peer still sends is read and dropped, so that its end
/// is seen, but only 64 KiB in such a pause: whoever does not listen must not have us read as fast as it sends.
const LINGER: Nanos = Nanos::of(Duration::from_secs(5));
const LINGER_READS: usize = 16;
const LINGER_PAUSE: Nanos = Nanos::of(Duration::from_millis(50));

/// How long the answer to the PING behind a first GOAWAY is waited for.
const ANNOUNCED: Nanos = Nanos::of(Duration::from_secs(1));

/// When a connection looks again whether its pod has bytes for its window.
const STARVED: Nanos = Nanos::of(Duration::from_millis(50));

/// The most that a read may bring. Grows to it while reads bring all that they may.
const LARGEST_READ: usize = 128 * 1024;

/// The least room that a read is given.
const LEAST_ROOM: usize = 4 * 1024;

pub(crate) struct Driver {
    core: Shared,
    stream: TcpStream,
    worker: Rc<Worker>,
    input: BytesMut,
    /// What a read may bring.
    room: usize,
    /// Something was read that could not be taken yet.
    left_over: bool,
    /// Nothing is read until then.
    paused: Option<Nanos>,
    timer: Option<(Nanos, Pin<Box<Sleep>>)>,
    announced: Option<Nanos>,
    pod: Rc<PodHere>,
    /// Its peer takes nothing, or did so once.
    stall: Option<Box<Stall>>,
    /// Its receive buffer may be larger than that of a new connection.
    grown: bool,
    /// A stream has ended for who carries it when the last of it is appended to what is unsent, which may stay here for as
    /// long as the peer does not read.
    unsent: Option<Busy>,
    closing: Closing,
}

/// How far the end of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// What is unsent is written, until then at most.
    Flushing(Nanos),
    /// All was written; what still comes is dropped.
    Lingering {
        until: Nanos,
        next_read: Nanos,
    },
}

impl Driver {
    /// `early` was read before.
    pub(crate) fn new(
        core: Shared,
        stream: TcpStream,
        worker: Rc<Worker>,
        pod: Rc<PodHere>,
        early: BytesMut,
    ) -> Self {
        Self {
            core,
            pod,
            stall: None,
            grown: false,
            stream,
            worker,
            left_over: !early.is_empty(),
            input: early,
            room: BUFFER_BYTES,
            paused: None,
            timer: None,
            announced: None,
            unsent: None,
            closing: Closing::No,
        }
    }

    pub(crate) fn core(&self) -> &Shared {
        &self.core
    }

    /// A turn. Ready when the connection is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.core.borrow_mut().set_driver(cx.waker());
        if let Closing::Lingering { until, next_read } = self.closing {
            return self.poll_linger(cx, until, next_read);
        }
        if self.write(cx).is_err() {
            self.core.borrow_mut().end(Ended::Lost);
        }
        let now = {
            let mut core = self.core.borrow_mut();
            if core.serve_waiting() {
                cx.waker().wake_by_ref();
            }
            if core.is_done() {
                core.finish();
            }
            if core.ended().is_some() {
                drop(core);
                return self.poll_close(cx);
            }
            let waits = self.paused.is_some() || core.leaving() == Leaving::Announced || core.is_starved();
            if waits { Some(Nanos::now()) } else { None }
        };
        if let Some(now) = now {
            self.look_at_clock(cx, now);
        }
        self.read(cx);
        self.weigh(cx);
        Poll::Pending
    }

    /// Charges the pod for what the connection holds: in the agent at once, in the kernel when its peer takes nothing for
    /// a while.
    fn weigh(&mut self, cx: &mut Context<'_>) {
        let mut core = self.core.borrow_mut();
        core.charge(if self.left_over { self.input.capacity() } else { 0 });
        let network = &self.pod.pod.network;
        if core.has_grown() && !std::mem::replace(&mut self.grown, true) {
            let _ = network.let_buffers_grow(self.stream.as_fd());
        }
        if self.unsent.is_some() {
            let stall = self.stall.get_or_insert_with(|| Box::new(Stall::new(&self.pod.budget)));
            stall.look(cx, core.out().written(), || network.memory_of(self.stream.as_fd()));
        }
    }

    /// What is done at a time.
    fn look_at_clock(&mut self, cx: &mut Context<'_>, now: Nanos) {
        let mut next = None;
        let mut at = |moment: Nanos| next = Some(next.map_or(moment, |other: Nanos| other.min(moment)));
        match self.paused {
            Some(until) if until <= now => self.paused = None,
            Some(until) => at(until),
            None => {}
        }
        let mut core = self.core.borrow_mut();
        if core.leaving() == Leaving::Announced {
            let until = *self.announced.get_or_insert(now + ANNOUNCED);
            if until <= now { core.leave_finally() } else { at(until) }
        }
        if core.is_starved() {
            core.replenish();
            if core.is_starved() {
                at(now + STARVED);
            }
        }
        drop(core);
        if let Some(next) = next {
            self.wake_at(cx, next);
        }
    }

    /// Is woken then.
    fn wake_at(&mut self, cx: &mut Context<'_>, moment: Nanos) {
        if self.timer.as_ref().is_none_or(|(at, _)| *at != moment) {
            self.timer = Some((moment, Box::pin(sleep_until(moment.instant()))));
        }
        if let Some((_, sleep)) = &mut self.timer
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
            cx.waker().wake_by_ref();
        }
    }

    /// Writes what can be.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut core = self.core.borrow_mut();
        while !core.out().is_empty() {
            let out = core.out();
            let written = if let Some(bytes) = out.single() {
                Pin::new(&mut self.stream).poll_write(cx, bytes)
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = out.slices(&mut slices);
                Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count])
            };
            match written {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(amount)) => {
                    core.wrote(amount);
                    if let Some(stall) = &mut self.stall {
                        stall.moved();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    if self.unsent.is_none() {
                        self.unsent = Some(self.worker.busy());
                    }
                    return Ok(());
                }
            }
        }
        core.rest();
        self.unsent = None;
        Ok(())
    }

    /// Reads, and takes what was read.
    fn read(&mut self, cx: &mut Context<'_>) {
        if self.paused.is_some() {
            return;
        }
        // There is more to be written than streams may have left: answers that nobody takes. It goes on when they are.
        if self.core.borrow().out().len() >= OUT_STOP {
            return;
        }
        self.core.borrow_mut().settle();
        if !self.left_over {
            match self.poll_read(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => {
                    self.core.borrow_mut().end(Ended::Lost);
                    cx.waker().wake_by_ref();
                    return;
                }
            }
        }
        let now = Nanos::now();
        let mut core = self.core.borrow_mut();
        let fed = core.feed(&mut self.input, now);
        self.left_over = fed != Fed::All && !self.input.is_empty();
        drop(core);
        if let Fed::Pause(until) = fed {
            self.worker.buffers.compact(&mut self.input);
            self.paused = Some(until);
            self.wake_at(cx, until);
        }
        // In the next turn what streams have to say to it is there; and what waits in the socket is read.
        cx.waker().wake_by_ref();
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { stream, input, worker, room, .. } = self;
        let readable = stream.poll_read_ready(cx);
        if readable.is_pending() {
            worker.buffers.give_if_empty(input);
            *room = BUFFER_BYTES;
            return Poll::Pending;
        }
        ready!(readable)?;
        worker.buffers.fill(input);
        if input.capacity() - input.len() < LEAST_ROOM.max(*room / 2) {
            input.reserve(*room);
        }
        let spare = input.capacity() - input.len();
        let read = ready!(poll_read_buf(Pin::new(stream), cx, input))?;
        if read == spare {
            *room = (*room * 2).min(LARGEST_READ);
        }
        Poll::Ready(Ok(read))
    }

    /// The connection has ended: what is unsent is written, and its peer gets the time to take it.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closing == Closing::No {
            self.hand_over();
        }
        let (flushed, lingers) = {
            let core = self.core.borrow();
            let lingers = match core.ended() {
                Some(Ended::Violation(..)) => true,
                // Endpoints have been heard to the end.
                Some(Ended::Finished) => core.role() == Role::Server,
                Some(Ended::Lost) | None => false,
            };
            (core.out().is_empty(), lingers)
        };
        self.input = BytesMut::new();
        if !flushed {
            let until = match self.closing {
                Closing::Flushing(until) => until,
                _ => Nanos::now() + LINGER,
            };
            self.closing = Closing::Flushing(until);
            if until <= Nanos::now() {
                return Poll::Ready(());
            }
            self.wake_at(cx, until);
            return Poll::Pending;
        }
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        match closed {
            Poll::Ready(Ok(())) if lingers => {
                self.unsent.get_or_insert_with(|| self.worker.busy());
                let until = Nanos::now() + LINGER;
                self.poll_linger(cx, until, Nanos::ZERO)
            }
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// A peer that breaks the protocol is told so although it hardly reads: the kernel takes as much as it can.
    fn hand_over(&mut self) {
        let socket = SockRef::from(&self.stream);
        let mut core = self.core.borrow_mut();
        let is_told = matches!(core.ended(), Some(Ended::Violation(..))) && !core.out().is_empty();
        if !is_told || socket.set_tcp_notsent_lowat(u32::MAX).is_err() {
            return;
        }
        while !core.out().is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = core.out().slices(&mut slices);
            // What it does not take, and why, the next write finds.
            let Ok(written @ 1..) = socket.send_vectored(&slices[..count]) else { return };
            core.wrote(written);
        }
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>, until: Nanos, mut next_read: Nanos) -> Poll<()> {
        let now = Nanos::now();
        if until <= now {
            return Poll::Ready(());
        }
        let mut wake = next_read;
        if next_read <= now {
            next_read = now + LINGER_PAUSE;
            wake = next_read;
            let mut late = [0; 4096];
            for _ in 0..LINGER_READS {
                let mut late = ReadBuf::new(&mut late);
                match Pin::new(&mut self.stream).poll_read(cx, &mut late) {
                    Poll::Ready(Ok(())) if !late.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {
                        // Nothing is left unread: what comes next is looked at when it comes.
                        next_read = Nanos::ZERO;
                        wake = until;
                        break;
                    }
                }
            }
        }
        self.closing = Closing::Lingering { until, next_read };
        self.wake_at(cx, wake.min(until));
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Its streams must not wait for what never comes.
        self.core.borrow_mut().end(Ended::Lost);
    }
}
