//! One direction of a stream: data as it comes, then trailers, with the flow control of both ends tied together.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::{govern::fallback::stale::Collector, proxy::share::Taken};

/// Bytes of a request's body that are kept until its answer begins, should it have to be sent again (DESIGN 6.5).
const REPLAYED: usize = 64 * 1024;

/// Which end broke a pipe.
#[derive(Debug)]
pub(super) enum Broken {
    From(h2::Error),
    To(h2::Error),
}

/// A body on its way.
pub(super) struct Pipe {
    from: RecvStream,
    /// What is to be sent next.
    held: Chunk,
    /// What was sent before, to be sent again before anything new.
    again: VecDeque<Chunk>,
    /// What was sent, while it may have to be sent again.
    sent: Option<Sent>,
    done: bool,
    /// Who sees the data pass.
    shown: Option<Box<Collector>>,
    trailers: Option<HeaderMap>,
    /// Bytes of data passed on, each counted once.
    pub(super) bytes: u64,
}

#[derive(Default)]
struct Chunk {
    data: Bytes,
    /// It still counts against the window of its sender: it was never passed on.
    new: bool,
}

struct Sent {
    chunks: Vec<Bytes>,
    kept: Taken,
}

impl Pipe {
    /// A pipe for an answer.
    pub(super) fn new(from: RecvStream) -> Self {
        let done = from.is_end_stream();
        Self {
            from,
            held: Chunk::default(),
            again: VecDeque::new(),
            sent: None,
            done,
            shown: None,
            trailers: None,
            bytes: 0,
        }
    }

    /// A pipe for a request, which can be [rewound](Self::rewind) until it is told to [commit](Self::commit).
    /// What is kept for that is charged to `kept`.
    pub(super) fn replayable(from: RecvStream, kept: Taken) -> Self {
        Self { sent: Some(Sent { chunks: Vec::new(), kept }), ..Self::new(from) }
    }

    /// Shows the data to `collector` as it passes.
    pub(super) fn show(&mut self, collector: Collector) {
        if self.done {
            collector.finish();
        } else {
            self.shown = Some(Box::new(collector));
        }
    }

    /// The trailers that have been passed on.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
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
        let chunks = std::mem::take(&mut sent.chunks);
        // They are held to be sent now, and charged once more as they are.
        sent.kept.release();
        if chunks.is_empty() {
            // Nothing but the request's end can have been sent, which goes with its head now.
            return;
        }
        let held = std::mem::take(&mut self.held);
        let rest = std::mem::take(&mut self.again);
        let sent = chunks.into_iter().map(|data| Chunk { data, new: false });
        let held = Some(held).filter(|held| !held.data.is_empty());
        self.again = sent.chain(held).chain(rest).collect();
        self.done = false;
    }

    /// Moves what can be moved. Ready when all of it, to the last trailer, has been handed to `to`.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Broken>> {
        while !self.done {
            if self.held.data.is_empty() {
                match ready!(self.poll_next(cx))? {
                    Some(chunk) => self.held = chunk,
                    None => return self.poll_end(cx, to),
                }
            }
            if !self.held.data.is_empty() {
                ready!(self.poll_send(cx, to))?;
            } else if self.is_last() {
                to.send_data(Bytes::new(), true).map_err(Broken::To)?;
                self.done = true;
                self.end_show();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next chunk; `None` when only trailers can follow.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, Broken>> {
        if let Some(chunk) = self.again.pop_front() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        Poll::Ready(match ready!(self.from.poll_data(cx)) {
            Some(Ok(data)) => Ok(Some(Chunk { data, new: true })),
            Some(Err(error)) => Err(Broken::From(error)),
            None => Ok(None),
        })
    }

    /// Sends of `held` what `to` has room for.
    fn poll_send(&mut self, cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<(), Broken>> {
        to.reserve_capacity(self.held.data.len());
        let mut room = to.capacity();
        while room == 0 {
            room = match ready!(to.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(Broken::To(error))),
                None => return Poll::Ready(Err(Broken::To(Reason::STREAM_CLOSED.into()))),
            };
        }
        let length = room.min(self.held.data.len());
        let data = self.held.data.split_to(length);
        if let Some(sent) = &mut self.sent {
            if sent.kept.amount() + length <= REPLAYED && sent.kept.grow(length) {
                sent.chunks.push(data.clone());
            } else {
                self.sent = None;
            }
        }
        if let Some(shown) = &mut self.shown
            && !shown.see(&data)
        {
            self.shown = None;
        }
        let last = self.is_last();
        to.send_data(data, last).map_err(Broken::To)?;
        self.done = last;
        if last {
            self.end_show();
        }
        if self.held.new {
            self.bytes += length as u64;
            // Fails only for a stream that has ended, whose window is of no interest any more.
            let _ = self.from.flow_control().release_capacity(length);
        }
        Poll::Ready(Ok(()))
    }

    fn end_show(&mut self) {
        if let Some(shown) = self.shown.take() {
            shown.finish();
        }
    }

    /// Nothing is left and nothing will come, no trailers either.
    fn is_last(&self) -> bool {
        self.held.data.is_empty() && self.again.is_empty() && self.from.is_end_stream()
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<(), Broken>> {
        let trailers = match ready!(self.from.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(error) => return Poll::Ready(Err(Broken::From(error))),
        };
        match trailers {
            Some(trailers) => {
                // Not kept, so it cannot be sent again.
                self.sent = None;
                // Nor can what came before them be given again without them.
                self.shown = None;
                if trailers.contains_key("grpc-status") {
                    self.trailers = Some(trailers.clone());
                }
                to.send_trailers(trailers).map_err(Broken::To)?;
            }
            None => to.send_data(Bytes::new(), true).map_err(Broken::To)?,
        }
        self.done = true;
        self.end_show();
        Poll::Ready(Ok(()))
    }
}
