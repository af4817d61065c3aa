//! One direction of a stream: data as it comes, then trailers, from one connection to another.
//!
//! Data leaves the stream it came on only when there is room for it on the other, and with that its sender's window is
//! given again: what one side does not take is not taken from the other.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::{
    engine::handle::{Broken, Handle},
    mirror::Sender,
};
use crate::{
    govern::{fallback::stale::Collector, jwt::HeaderPlan},
    proxy::{mirror::Copy, share::Taken},
};

/// Bytes of a request's body that are kept until its answer begins, should it have to be retried
/// (ARCHITECTURE.md#timeouts-retries-and-fallbacks).
const REPLAYED: usize = 64 * 1024;

/// Which end broke a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    From(Broken),
    To(Broken),
}

/// A body on its way.
pub(super) struct Pipe {
    /// What was sent before, to be sent again before anything new.
    again: Bytes,
    /// What was sent, while it may have to be sent again.
    sent: Option<Sent>,
    done: bool,
    /// Who sees the data pass.
    shown: Option<Box<Collector>>,
    /// What copies the data as it passes.
    copied: Option<Box<Copy<Sender>>>,
    /// Trailers that do not get through.
    without: Option<Box<HeaderPlan>>,
    /// The status of gRPC, if trailers with one have been passed on.
    grpc_status: Option<u8>,
    /// Bytes of data passed on, each counted once.
    pub(super) bytes: u64,
}

/// In memory of its own: a slice would keep alive what it is a part of.
struct Sent {
    data: BytesMut,
    kept: Taken,
}

impl Pipe {
    /// A pipe for an answer.
    pub(super) fn new(from: &Handle) -> Self {
        Self {
            again: Bytes::new(),
            sent: None,
            done: from.is_taken(),
            shown: None,
            copied: None,
            without: None,
            grpc_status: None,
            bytes: 0,
        }
    }

    /// A pipe for a request, which can be [rewound](Self::rewind) until it is told to [commit](Self::commit).
    /// What is kept for that is charged to `kept`.
    pub(super) fn replayable(from: &Handle, kept: Taken) -> Self {
        Self { sent: Some(Sent { data: BytesMut::new(), kept }), ..Self::new(from) }
    }

    /// Trailers of these names do not get through.
    pub(super) fn without_trailers(&mut self, plan: HeaderPlan) {
        self.without = Some(Box::new(plan));
    }

    /// Shows the data to `collector` as it passes.
    pub(super) fn show(&mut self, collector: Collector) {
        if self.done {
            collector.finish();
        } else {
            self.shown = Some(Box::new(collector));
        }
    }

    /// Shows the data to `copy` as it passes. Trailers are not copied.
    pub(super) fn copy(&mut self, copy: Box<Copy<Sender>>) {
        if self.done {
            copy.finish();
        } else {
            self.copied = Some(copy);
        }
    }

    /// That of the trailers that have been passed on.
    pub(super) fn grpc_status(&self) -> Option<u8> {
        self.grpc_status
    }

    /// Everything has been passed on.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// The request will not be sent again.
    pub(super) fn commit(&mut self) {
        self.sent = None;
    }

    /// Whether all that was sent can be sent again.
    pub(super) fn can_rewind(&self) -> bool {
        self.sent.is_some()
    }

    /// Begins anew, for another stream.
    pub(super) fn rewind(&mut self) {
        let Some(sent) = &mut self.sent else { return };
        // It is to be sent now, and charged once more as it is.
        sent.kept.release();
        if sent.data.is_empty() {
            // Nothing but the request's end can have been sent, which goes with its head now.
            return;
        }
        sent.data.extend_from_slice(&self.again);
        self.again = sent.data.split().freeze();
        self.done = false;
    }

    /// Moves what can be moved. Ready when all of it, to the last trailer, has been handed to `to`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &Handle, to: &Handle) -> Poll<Result<(), Cut>> {
        while !self.done {
            let again = !self.again.is_empty();
            if !again && !from.has_data() {
                if from.is_whole() {
                    return self.poll_end(cx, from, to);
                }
                return match from.poll_broken(cx) {
                    Poll::Ready(broken) => Poll::Ready(Err(Cut::From(broken))),
                    Poll::Pending => Poll::Pending,
                };
            }
            let wanted = if again { self.again.len() } else { from.data_len() };
            let room = match to.poll_room(cx, wanted) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(Cut::To(broken))),
                Poll::Pending => {
                    from.watch(cx);
                    return Poll::Pending;
                }
            };
            let data = if again {
                self.again.split_to(room.min(self.again.len()))
            } else {
                let data = from.take_data(room);
                self.bytes += data.len() as u64;
                if let Some(copy) = &mut self.copied {
                    copy.see(&data);
                }
                data
            };
            self.note(&data);
            let last = self.again.is_empty() && from.is_taken();
            if !to.send_data(data, last) {
                return Poll::Ready(Err(Cut::To(to.broken().unwrap_or(Broken::Dropped))));
            }
            if last {
                self.end();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn note(&mut self, data: &Bytes) {
        if let Some(sent) = &mut self.sent {
            if sent.kept.amount() + data.len() <= REPLAYED && sent.kept.grow(data.len()) {
                sent.data.extend_from_slice(data);
            } else {
                self.sent = None;
            }
        }
        if let Some(shown) = &mut self.shown
            && !shown.see(data)
        {
            self.shown = None;
        }
    }

    fn end(&mut self) {
        self.done = true;
        if let Some(shown) = self.shown.take() {
            shown.finish();
        }
        if let Some(copy) = self.copied.take() {
            copy.finish();
        }
    }

    /// There is no more data: trailers, or the end alone.
    fn poll_end(&mut self, cx: &mut Context<'_>, from: &Handle, to: &Handle) -> Poll<Result<(), Cut>> {
        if let Err(broken) = ready!(to.poll_room_for_head(cx)) {
            return Poll::Ready(Err(Cut::To(broken)));
        }
        let passed = match from.take_trailers() {
            Some(mut trailers) => {
                if let Some(without) = &self.without {
                    trailers.remove(|name| without.removes_trailer(name));
                }
                // Not kept, so it cannot be sent again.
                self.sent = None;
                // Nor can what came before them be given again without them.
                self.shown = None;
                self.grpc_status = trailers.get(b"grpc-status").and_then(number);
                let passed = to.send_trailers(&trailers);
                to.give_back(trailers);
                passed
            }
            None => to.send_data(Bytes::new(), true),
        };
        if !passed {
            return Poll::Ready(Err(Cut::To(to.broken().unwrap_or(Broken::Dropped))));
        }
        self.end();
        Poll::Ready(Ok(()))
    }
}

/// A small number in decimal digits.
pub(super) fn number(text: &[u8]) -> Option<u8> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
