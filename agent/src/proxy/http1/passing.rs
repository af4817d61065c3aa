//! Passing an answer on, and leaving both connections as they should be behind it.

use std::{future::poll_fn, task::Poll};

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::{
    attempt::{Answer, Upstream},
    exchange::{Ended, Exchange},
    flow::{Stopped, poll_read},
    sending::Halt,
};
use crate::{
    clock::Nanos,
    observe::{fault::Sender, reason::Reason},
    proxy::governed::{Attempt, Break},
};

impl Exchange<'_> {
    /// Passes the answer on, while what is left of the request goes on too.
    pub(super) async fn pass_on(&mut self, answer: &mut Answer) -> Result<(), Break> {
        let worker = self.call.worker.clone();
        let buffers = &worker.buffers;
        let Answer { upstream, response, down, .. } = answer;
        if response.tunnel {
            // What follows the head is no answer.
            return self.write_down(down, upstream).await.map_err(|_| Break::CallerGone(0));
        }
        let (mut caller_reads, mut caller_writes) = self.connection.stream.split();
        let presence = &mut self.connection.presence;
        let (mut reads, mut writes) = upstream.stream.split();
        let idle = self.call.idle.clone();
        poll_fn(|cx| {
            match self.up.poll(cx, &mut caller_reads, presence, &mut writes, self.incoming, buffers) {
                // The answer is under way: a request that breaks off does not stop it.
                Ok(()) | Err(Halt::Malformed(_)) => {}
                Err(Halt::CallerGone) => return Poll::Ready(Err(Break::CallerGone(0))),
            }
            let passed = down.poll(cx, &mut reads, &mut caller_writes, &mut upstream.incoming, buffers);
            if let Some(idle) = &idle {
                idle.note(self.up.flow.body_bytes + down.body_bytes);
            }
            if let Poll::Ready(Err(Stopped::Chunk(bad))) = &passed {
                self.call.note_fault(Sender::Upstream, bad.fault());
            }
            passed.map_err(Break::from)
        })
        .await
    }

    /// What becomes of the connections.
    pub(super) async fn conclude(
        &mut self,
        mut answer: Box<Answer>,
        attempt: Box<Attempt>,
        ended: Result<(), Break>,
    ) -> Ended {
        let Answer { upstream, down, .. } = &mut *answer;
        down.pressure.settle(&upstream.stream);
        self.call.worker.buffers.give(down.take_head());
        match ended {
            Ok(()) if answer.response.tunnel => return self.switch(answer.upstream, *attempt),
            Ok(()) => {}
            Err(Break::CallerGone(_) | Break::Answer(_) | Break::TimedOut(_)) => return Ended::Broken,
            // What came is passed on; that something is missing the caller sees as it would have without Sluice.
            Err(Break::End) => return Ended::Close,
        }
        if self.up.is_under_way() && !self.unclear {
            self.send_rest(&mut answer.upstream, answer.keep).await;
        }
        let keep = answer.keep;
        let (complete, now) = (self.up.is_complete(), Nanos::now());
        // No later than what is given back.
        self.connection.rested = Some(now);
        if answer.response.reusable && complete && answer.upstream.incoming.is_empty() {
            self.give_back(answer.upstream, answer.response.idle_seconds, now);
        }
        match (keep, self.up.flow.is_done()) {
            (true, true) => Ended::Keep,
            (false, true) => Ended::Close,
            (_, false) => Ended::Linger,
        }
    }

    /// The endpoint's connection may be used again.
    fn give_back(&self, upstream: Upstream, idle_seconds: Option<u32>, now: Nanos) {
        let Upstream { mut stream, endpoint, incoming, .. } = upstream;
        stream.proven = true;
        let worker = &self.call.worker;
        worker.buffers.give(incoming);
        if !self.request.closes {
            self.connection.seat.give(&endpoint, stream, idle_seconds, now);
        }
    }

    /// The answer is not passed on. Its connection goes with it, unless the answer has come whole.
    pub(super) fn discard(&mut self, answer: Answer) {
        let Answer { upstream, response, mut down, .. } = answer;
        let whole = down.is_taken() && upstream.incoming.is_empty();
        self.call.worker.buffers.give(down.take_head());
        if response.reusable && whole && self.up.is_complete() {
            self.give_back(upstream, response.idle_seconds, Nanos::now());
        }
    }

    /// The answer is complete and the request is not. As long as the endpoint takes the rest of it, it gets it: closing now
    /// would reset a caller that sends first and reads then, and the answer would be lost to it.
    async fn send_rest(&mut self, upstream: &mut Upstream, keep: bool) {
        let worker = self.call.worker.clone();
        if !keep {
            // The end of the answer must not wait for the end of the request. A caller that has gone is noticed below.
            let _ = self.connection.stream.shutdown().await;
        }
        let (mut caller_reads, _) = self.connection.stream.split();
        let presence = &mut self.connection.presence;
        let (mut reads, mut writes) = upstream.stream.split();
        poll_fn(|cx| {
            let sent =
                self.up.poll(cx, &mut caller_reads, presence, &mut writes, self.incoming, &worker.buffers);
            if sent.is_err() {
                self.up.stop();
            }
            if !self.up.is_under_way() {
                return Poll::Ready(());
            }
            // An endpoint that ends its side has no use for the rest; one that speaks is out of turn.
            match poll_read(cx, &mut reads, &mut upstream.incoming, &worker.buffers) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(_) => {
                    self.up.stop();
                    Poll::Ready(())
                }
            }
        })
        .await;
    }

    /// Both sides speak something else from here on.
    fn switch(&mut self, upstream: Upstream, attempt: Attempt) -> Ended {
        let rest = self.up.flow.rest_of_head();
        if !rest.is_empty() {
            // An endpoint that was in a hurry: what it has not yet got of the request goes ahead of everything else.
            let mut first = BytesMut::from(rest);
            first.extend_from_slice(self.incoming);
            *self.incoming = first;
        }
        let Upstream { stream, incoming, .. } = upstream;
        Ended::Tunnel(Box::new((stream, attempt, incoming)))
    }
}

impl From<Stopped> for Break {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Write(_) => Self::CallerGone(0),
            Stopped::Chunk(_) => Self::Answer(Reason::UpstreamProtocol),
            Stopped::Read(_) => Self::Answer(Reason::UpstreamReset),
            Stopped::End => Self::End,
        }
    }
}
