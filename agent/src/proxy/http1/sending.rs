//! The caller's side of an exchange: its request on the way up, and then the watch over the caller itself.
//!
//! Whatever the caller does meanwhile, its endpoint sees what it would have seen without Sluice: the end of the request,
//! the end of the caller's side, or a connection that breaks off.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::{
    io::AsyncWrite,
    net::tcp::{ReadHalf, WriteHalf},
};

use super::{
    body::BadChunk,
    flow::{Flow, Stopped, poll_read},
};
use crate::{
    clock::Nanos,
    proxy::{buffers::Buffers, presence::Presence},
};

/// While an answer is awaited, this much of the caller's next requests is read ahead (which is how its leaving is noticed).
const READ_AHEAD: usize = 16 * 1024;

/// Why an exchange cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// There is nobody to answer.
    CallerGone,
    /// The body is no body.
    Malformed(BadChunk),
}

pub(super) struct Sending {
    pub(super) flow: Flow,
    /// When the endpoint had been given the whole request; until then, when it was begun.
    pub(super) sent: Nanos,
    /// The endpoint takes no more of the request.
    pub(super) deaf: bool,
    /// The caller has ended its side; answers still reach it.
    pub(super) half_closed: bool,
    /// The caller ended its side within its request.
    pub(super) broken_off: bool,
    /// The endpoint was told that nothing more comes.
    pub(super) ended: bool,
}

impl Sending {
    pub(super) fn new(flow: Flow) -> Self {
        Self { flow, sent: Nanos::ZERO, deaf: false, half_closed: false, broken_off: false, ended: false }
    }

    /// Over another connection, from the beginning.
    pub(super) fn repeat(&mut self) {
        self.flow.repeat();
        self.deaf = false;
        self.ended = false;
    }

    /// The endpoint has got all of the request and may get another one.
    pub(super) fn is_complete(&self) -> bool {
        self.flow.is_done() && !self.deaf && !self.ended
    }

    /// There is more of the request to come, and somebody who takes it.
    pub(super) fn is_under_way(&self) -> bool {
        !self.flow.is_done() && !self.deaf
    }

    /// Passes on what there is of the request. After its end, what the caller sends is its next one, and kept in
    /// `incoming`.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut ReadHalf<'_>,
        presence: &mut Presence,
        endpoint: &mut WriteHalf<'_>,
        incoming: &mut BytesMut,
        buffers: &Buffers,
    ) -> Result<(), Halt> {
        if self.is_under_way() {
            match self.flow.poll(cx, caller, endpoint, incoming, buffers) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {
                    // What was there at once was sent at once.
                    if !self.flow.was_whole() {
                        self.sent = Nanos::now();
                    }
                }
                // The endpoint may have said why before it stopped listening.
                Poll::Ready(Err(Stopped::Write(_))) => self.deaf = true,
                Poll::Ready(Err(Stopped::Chunk(bad))) => {
                    self.break_off(cx, endpoint);
                    return Err(Halt::Malformed(bad));
                }
                // The caller may still listen, and the endpoint have something to say.
                Poll::Ready(Err(Stopped::End)) => {
                    self.half_closed = true;
                    self.broken_off = true;
                    self.break_off(cx, endpoint);
                }
                Poll::Ready(Err(Stopped::Read(_))) => return Err(Halt::CallerGone),
            }
        }
        self.watch(cx, caller, incoming, buffers)?;
        if self.half_closed && incoming.is_empty() && self.is_complete() {
            self.end(cx, endpoint);
        }
        // The endpoint has got all that its caller had sent, and would have without Sluice.
        if self.half_closed && presence.poll_gone(cx).is_ready() {
            return Err(Halt::CallerGone);
        }
        Ok(())
    }

    /// Notices a caller that leaves.
    pub(super) fn watch(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut ReadHalf<'_>,
        incoming: &mut BytesMut,
        buffers: &Buffers,
    ) -> Result<(), Halt> {
        while !self.half_closed && incoming.len() < READ_AHEAD {
            match poll_read(cx, caller, incoming, buffers) {
                Poll::Ready(Ok(0)) => {
                    self.half_closed = true;
                    buffers.give_if_empty(incoming);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(_)) => return Err(Halt::CallerGone),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// No more of the request comes, and what has come is not all.
    fn break_off(&mut self, cx: &mut Context<'_>, endpoint: &mut WriteHalf<'_>) {
        self.deaf = true;
        self.end(cx, endpoint);
    }

    /// Tells the endpoint that nothing more comes. One that would have stopped working for a caller that has left
    /// does so, one that answers it all the same is still heard.
    fn end(&mut self, cx: &mut Context<'_>, endpoint: &mut WriteHalf<'_>) {
        self.ended = true;
        // Shutting down a socket takes effect at once; it fails only for one that is gone already, which reading tells.
        let _ = Pin::new(endpoint).poll_shutdown(cx);
    }
}
