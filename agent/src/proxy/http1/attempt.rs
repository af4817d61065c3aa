//! Sending a request to an endpoint, up to the head of its answer.

use std::{
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};

use super::{
    body::Body,
    exchange::{Exchange, Interim},
    flow::{Flow, poll_read_most},
    head::{HeadEnd, LineEnds, MAX_HEAD_BYTES},
    outgoing::edit_response,
    response::{self, Caller, Response},
    sending::Halt,
};
use crate::{
    clock::Nanos,
    govern::{endpoint::Endpoint, handled::Sent},
    observe::{
        fault::{Fault, MessagePart, Sender},
        metrics::RetryCause,
        reason::Reason,
    },
    proxy::{
        choose::Chosen,
        governed::{Call, ClientClose, Exchange as _, Failure},
        pool::Need,
        threads::Followed,
        upstream::{self, Opened, Terms},
    },
};

/// What every answer begins with.
const VERSION: &[u8] = b"HTTP/1.";

/// A connection to an endpoint, for one exchange.
pub(super) struct Upstream {
    pub(super) stream: Opened,
    pub(super) endpoint: Arc<Endpoint>,
    reused: bool,
    /// What was read and not yet passed on.
    pub(super) incoming: BytesMut,
}

/// An answer whose head has come.
pub(super) struct Answer {
    pub(super) upstream: Upstream,
    pub(super) response: Response,
    /// The caller's connection is kept after it.
    pub(super) keep: bool,
    pub(super) down: Flow,
}

/// Why no answer came over a connection.
enum NoAnswer {
    /// Nothing came back over one that was idle before, and sending the request again does no harm: its server had closed it.
    Stale,
    Failed(Failure),
}

impl From<Failure> for NoAnswer {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Exchange<'_> {
    /// Sends the request over an idle connection, or a new one.
    pub(super) async fn send(&mut self, chosen: &Chosen) -> Result<Box<Answer>, Failure> {
        let mut fresh_only = false;
        loop {
            let now = Nanos::now();
            let mut upstream = self.obtain(chosen, fresh_only, now).await?;
            self.call.record.connected(chosen, upstream.stream.to);
            self.up.sent = if upstream.reused { now } else { Nanos::now() };
            self.call.record.timing.asked(self.up.sent);
            self.number(&mut upstream, Followed::next);
            match self.answer(&mut upstream).await {
                Ok((response, keep, head)) => {
                    // What follows a switch of protocols is no body.
                    let body = if response.tunnel { Body::EMPTY } else { response.body };
                    let down = Flow::new(head, body, &mut upstream.incoming, &self.call.pod)
                        .map_err(|bad| self.unfit(&upstream.endpoint, bad.fault()))?;
                    return Ok(Box::new(Answer { upstream, response, keep, down }));
                }
                Err(NoAnswer::Failed(failure)) => return Err(failure),
                Err(NoAnswer::Stale) => {
                    // Its server closed it while it was idle. The request is sent over a new connection.
                    self.call.retried(RetryCause::StaleConnection);
                    fresh_only = true;
                    self.up.repeat();
                }
            }
        }
    }

    /// What is sent over the connection next is this request, if threads of the application are followed.
    fn number(&mut self, upstream: &mut Upstream, next: impl FnOnce(&mut Followed) -> Option<Sent>) {
        let call = &mut *self.call;
        if let Some(unanswered) = &mut call.unanswered
            && let Some(sent) = upstream.stream.followed(&call.pod.pod).and_then(next)
        {
            unanswered.sent(sent);
        }
    }

    /// Nothing is lost if the request is sent a second time, should the first one meet a closed connection.
    fn is_repeatable(&self) -> bool {
        self.request.method.is_idempotent() && self.up.flow.is_repeatable()
    }

    async fn obtain(&mut self, chosen: &Chosen, fresh_only: bool, now: Nanos) -> Result<Upstream, Failure> {
        let endpoint = chosen.endpoint();
        let (worker, pod) = (self.call.worker.clone(), self.call.pod.clone());
        let upstream = |stream, reused| Upstream {
            stream,
            endpoint: endpoint.clone(),
            reused,
            incoming: BytesMut::new(),
        };
        let need = Need { repeatable: self.is_repeatable(), rested: self.connection.rested };
        if !fresh_only && let Some(stream) = self.connection.seat.take(endpoint, need, now) {
            if !self.up.flow.is_repeatable() {
                // Its body has not all come. What is sent of it is kept, should the connection have been closed.
                self.up.flow.record(pod.kept.take_none(), self.incoming);
            }
            return Ok(upstream(stream, true));
        }
        let terms = Terms { options: self.connection.options, within: self.call.time_to_connect(chosen) };
        let connecting = pin!(upstream::connect(&worker, &pod, endpoint, terms));
        let gone = |cx: &mut Context<'_>| match self.poll_client_close(cx) {
            Poll::Ready(ClientClose::Gone) => Poll::Ready(()),
            _ => Poll::Pending,
        };
        match upstream::while_awaited(&worker.timers, connecting, gone).await {
            None => Err(Failure::CallerGone),
            Some(Ok(stream)) => Ok(upstream(stream, false)),
            Some(Err(error)) => {
                worker.complain(|| {
                    tracing::warn!(pod = %pod.name(), service = %self.call.service(), endpoint = %endpoint.address, %error, "cannot connect to an endpoint");
                });
                Err(Failure::Connect)
            }
        }
    }

    /// Sends the request and reads the answer's head, passing interim ones on. Returns the head as it goes to the caller.
    async fn answer(&mut self, upstream: &mut Upstream) -> Result<(Response, bool, BytesMut), NoAnswer> {
        let worker = self.call.worker.clone();
        let buffers = &worker.buffers;
        let mut end = HeadEnd::default();
        loop {
            if !upstream.incoming.is_empty() {
                match end.find(&upstream.incoming, true) {
                    Ok(Some(length)) if length <= MAX_HEAD_BYTES => {
                        if let Some(answer) = self.read_head(upstream, length, end.line_ends()).await? {
                            return Ok(answer);
                        }
                        end = HeadEnd::default();
                        continue;
                    }
                    Ok(None) if upstream.incoming.len() <= MAX_HEAD_BYTES => {}
                    _ => {
                        let fault = Fault::new(MessagePart::Size, "headers of more than 64 KiB");
                        return Err(self.unfit(&upstream.endpoint, fault).into());
                    }
                }
            }
            let (mut caller_reads, _) = self.connection.stream.split();
            let presence = &mut self.connection.presence;
            let (mut reads, mut writes) = upstream.stream.split();
            let read = poll_fn(|cx| {
                let sent = self.up.poll(cx, &mut caller_reads, presence, &mut writes, self.incoming, buffers);
                if let Err(halt) = sent {
                    return Poll::Ready(Err(failure_of(self.call, halt)));
                }
                let most = self.up.flow.pressure.most();
                poll_read_most(cx, &mut reads, &mut upstream.incoming, buffers, most).map(Ok)
            })
            .await?;
            if !matches!(read, Ok(1..)) {
                return Err(self.silence(upstream, &read).await);
            }
            let common = upstream.incoming.len().min(VERSION.len());
            if upstream.incoming[..common] != VERSION[..common] {
                let fault = Fault::new(MessagePart::Protocol, "something else than HTTP/1.1");
                return Err(self.unfit(&upstream.endpoint, fault).into());
            }
        }
    }

    /// The endpoint's connection, which has ended, had been closed before the request came, and the request may be sent
    /// again: doing it twice is doing it once, or nothing of it can have been read. Only the latter counts where the connection has
    /// brought no response yet, and at the endpoint, where a client that hears of the end decides for itself. If the endpoint was told that its caller
    /// has ended its side, it may have closed it for that, having seen the request.
    async fn is_stale(&self, upstream: &Upstream, read: &io::Result<usize>) -> bool {
        let unheard = upstream.incoming.is_empty() && self.interim == Interim::None;
        if !upstream.reused || !unheard || self.up.has_told_end() || !self.up.flow.is_repeatable() {
            return false;
        }
        let guessed = upstream.stream.proven && self.call.pod.arrival.is_none();
        if guessed && self.request.method.is_idempotent() {
            return true;
        }
        let stream = &*upstream.stream;
        let unacknowledged = || self.call.pod.pod.network.unacknowledged(stream.as_fd());
        let (sent, failed) = (self.up.flow.written(), self.up.is_stopped());
        // Boxed, for it is rare, and every request's task would carry its state.
        matches!(read, Ok(0)) && Box::pin(upstream::was_unread(stream, unacknowledged, sent, failed)).await
    }

    /// The endpoint's connection has ended before an answer.
    async fn silence(&self, upstream: &Upstream, read: &io::Result<usize>) -> NoAnswer {
        if self.up.is_broken_off() {
            Failure::CallerGone.into()
        } else if self.is_stale(upstream, read).await {
            NoAnswer::Stale
        } else {
            Failure::Broken(Reason::UpstreamReset).into()
        }
    }

    /// What the endpoint has sent cannot be passed on.
    fn unfit(&mut self, endpoint: &Endpoint, fault: Fault) -> Failure {
        self.call.note_fault(Sender::Upstream, fault);
        self.call.worker.complain(|| {
            tracing::warn!(service = %self.call.service(), endpoint = %endpoint.address, "cannot pass a response on: it has {fault}");
        });
        Failure::Broken(Reason::UpstreamProtocol)
    }

    /// Reads a whole head; `None` if it was an interim one, which has been passed on.
    async fn read_head(
        &mut self,
        upstream: &mut Upstream,
        length: usize,
        ends: LineEnds,
    ) -> Result<Option<(Response, bool, BytesMut)>, Failure> {
        let sending = !self.up.flow.is_done();
        self.unclear = self.request.expects && sending && self.up.flow.body_bytes == 0;
        let leaving = self.is_last_of_caller() || self.call.pod.gate.is_shut();
        let caller = Caller {
            method: self.request.method,
            http10: self.request.http10,
            upgrade: self.request.upgrade,
            keep_alive: self.request.keep_alive && !self.unclear && !leaving,
            ends_with_endpoint: sending || self.connection.pod.arrival.is_some(),
        };
        let mut head = self.call.worker.buffers.take();
        let read = response::read(&upstream.incoming[..length], ends, caller, &mut head);
        let (response, keep) = read.map_err(|fault| self.unfit(&upstream.endpoint, fault))?;
        upstream.incoming.advance(length);
        if !response.is_interim() {
            for edits in self.call.response_edits() {
                let mut edited = self.call.worker.buffers.take();
                edit_response(&head, edits, &mut edited);
                self.call.worker.buffers.give(std::mem::replace(&mut head, edited));
            }
            return Ok(Some((response, keep, head)));
        }
        if self.unclear {
            // The body comes when the client has read this: who reads that has not responded to it.
            self.number(upstream, Followed::go_on);
        }
        // HTTP/1.0 knows no interim answers.
        if !self.request.http10 {
            let mut nothing = BytesMut::new();
            let mut down = Flow::new(head, Body::EMPTY, &mut nothing, &self.call.pod)
                .map_err(|_| Failure::Broken(Reason::UpstreamProtocol))?;
            // Whoever gives up on this attempt does not wait for the rest.
            self.interim = Interim::Underway;
            self.write_down(&mut down, upstream).await?;
        }
        self.interim = Interim::PassedOn;
        Ok(None)
    }

    /// Writes the head of an answer without a body. Meanwhile the request goes on.
    pub(super) async fn write_down(
        &mut self,
        down: &mut Flow,
        upstream: &mut Upstream,
    ) -> Result<(), Failure> {
        let worker = self.call.worker.clone();
        let buffers = &worker.buffers;
        let mut nothing = BytesMut::new();
        let (mut caller_reads, mut caller_writes) = self.connection.stream.split();
        let presence = &mut self.connection.presence;
        let (mut reads, mut writes) = upstream.stream.split();
        poll_fn(|cx| {
            let sent = self.up.poll(cx, &mut caller_reads, presence, &mut writes, self.incoming, buffers);
            if let Err(halt) = sent {
                return Poll::Ready(Err(failure_of(self.call, halt)));
            }
            let written = down.poll(cx, &mut reads, &mut caller_writes, &mut nothing, buffers);
            written.map_err(|_| Failure::CallerGone)
        })
        .await
    }
}

fn failure_of(call: &mut Call, halt: Halt) -> Failure {
    match halt {
        Halt::CallerGone => Failure::CallerGone,
        Halt::Malformed(bad) => {
            call.note_fault(Sender::Client, bad.fault());
            Failure::Unfit(Reason::BadRequest)
        }
    }
}
