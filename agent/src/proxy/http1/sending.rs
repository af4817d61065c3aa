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

/// What the caller still does on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallerSide {
    /// It may send.
    Open,
    /// It has ended its side behind its request; answers still reach it.
    Ended,
    /// It has ended its side within its request.
    EndedWithin,
}

/// What the endpoint still gets of the request over its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndpointSide {
    /// All that there is.
    Open,
    /// Nothing: it takes no more.
    Deaf,
    /// It was told that nothing comes behind the request, of which it has got all.
    Ended,
    /// It was told so, and has not got all of the request.
    CutShort,
}

impl EndpointSide {
    /// Nothing more is sent to it.
    fn silenced(self) -> Self {
        match self {
            Self::Open | Self::Deaf => Self::Deaf,
            Self::Ended | Self::CutShort => Self::CutShort,
        }
    }

    /// It is told that nothing more comes.
    fn ended(self) -> Self {
        match self {
            Self::Open | Self::Ended => Self::Ended,
            Self::Deaf | Self::CutShort => Self::CutShort,
        }
    }
}

pub(super) struct Sending {
    pub(super) flow: Flow,
    /// When the endpoint had been given the whole request; until then, when it was begun.
    pub(super) sent: Nanos,
    caller: CallerSide,
    endpoint: EndpointSide,
}

impl Sending {
    pub(super) fn new(flow: Flow) -> Self {
        Self { flow, sent: Nanos::ZERO, caller: CallerSide::Open, endpoint: EndpointSide::Open }
    }

    /// Over another connection, from the beginning.
    pub(super) fn repeat(&mut self) {
        self.flow.repeat();
        self.endpoint = EndpointSide::Open;
    }

    /// The endpoint takes no more of the request.
    pub(super) fn stop(&mut self) {
        self.endpoint = self.endpoint.silenced();
    }

    /// The endpoint takes no more of the request.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.endpoint, EndpointSide::Deaf | EndpointSide::CutShort)
    }

    /// The endpoint was told that nothing more comes.
    pub(super) fn has_told_end(&self) -> bool {
        matches!(self.endpoint, EndpointSide::Ended | EndpointSide::CutShort)
    }

    /// The caller has ended its side; answers still reach it.
    pub(super) fn is_half_closed(&self) -> bool {
        self.caller != CallerSide::Open
    }

    /// The caller ended its side within its request.
    pub(super) fn is_broken_off(&self) -> bool {
        self.caller == CallerSide::EndedWithin
    }

    /// The endpoint has got all of the request and may get another one.
    pub(super) fn is_complete(&self) -> bool {
        self.flow.is_done() && self.endpoint == EndpointSide::Open
    }

    /// There is more of the request to come, and somebody who takes it.
    pub(super) fn is_under_way(&self) -> bool {
        !self.flow.is_done() && !self.is_stopped()
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
                Poll::Ready(Err(Stopped::Write(_))) => self.stop(),
                Poll::Ready(Err(Stopped::Chunk(bad))) => {
                    self.break_off(cx, endpoint);
                    return Err(Halt::Malformed(bad));
                }
                // The caller may still listen, and the endpoint have something to say.
                Poll::Ready(Err(Stopped::End)) => {
                    self.caller = CallerSide::EndedWithin;
                    self.break_off(cx, endpoint);
                }
                Poll::Ready(Err(Stopped::Read(_))) => return Err(Halt::CallerGone),
            }
        }
        self.watch(cx, caller, incoming, buffers)?;
        if self.is_half_closed() && incoming.is_empty() && self.is_complete() {
            self.end(cx, endpoint);
        }
        // The endpoint has got all that its caller had sent, and would have without Sluice.
        if self.is_half_closed() && presence.poll_gone(cx).is_ready() {
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
        while self.caller == CallerSide::Open && incoming.len() < READ_AHEAD {
            match poll_read(cx, caller, incoming, buffers) {
                Poll::Ready(Ok(0)) => {
                    self.caller = CallerSide::Ended;
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
        self.stop();
        self.end(cx, endpoint);
    }

    /// Tells the endpoint that nothing more comes. One that would have stopped working for a caller that has left
    /// does so, one that answers it all the same is still heard.
    fn end(&mut self, cx: &mut Context<'_>, endpoint: &mut WriteHalf<'_>) {
        self.endpoint = self.endpoint.ended();
        // Shutting down a socket takes effect at once; it fails only for one that is gone already, which reading tells.
        let _ = Pin::new(endpoint).poll_shutdown(cx);
    }
}
