//! One request and its answer.

use std::{future::poll_fn, net::SocketAddr, task::Poll};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::AsyncWriteExt;

use super::{
    body::Body,
    flow::{Flow, Stopped, poll_read},
    head::{HeadEnd, MAX_HEAD_BYTES},
    request::Request,
    response::{self, Caller, Response},
    sending::{Halt, Sending},
};
use crate::{
    clock::Nanos,
    cluster::model::Destination,
    observe::{
        metrics::{RetryCause, ServiceSeries, TagOutcome},
        reason::Reason,
    },
    proxy::{
        answer,
        choose::{self, Chosen},
        connection::Connection,
        record::Record,
        upstream::{self, CONNECT_ATTEMPTS, Opened},
    },
};

/// What every answer begins with.
const VERSION: &[u8] = b"HTTP/1.";

/// What becomes of the caller's connection after an exchange.
pub(super) enum Ended {
    /// The next request may come.
    Keep,
    Close,
    /// The answer is complete, but the caller is still sending.
    Linger,
    /// The answer was broken off, or the caller has gone.
    Broken,
    /// Both sides have agreed to speak something else.
    Tunnel(Box<(Opened, Chosen, BytesMut)>),
}

/// Why no answer of an endpoint came.
enum NoAnswer {
    /// Nothing came back over a connection that was idle before: its server had closed it.
    Stale,
    /// An answer is made up.
    Reason(Reason),
    /// There is nobody to answer.
    CallerGone,
}

/// A connection to an endpoint, for one exchange.
struct Upstream {
    stream: Opened,
    chosen: Chosen,
    reused: bool,
    /// What was read and not yet passed on.
    incoming: BytesMut,
}

/// The parts of an exchange that its stages share.
struct Exchange<'e> {
    connection: &'e mut Connection,
    destination: &'e Destination,
    series: &'e mut ServiceSeries,
    record: &'e mut Record,
    request: Request,
    up: Sending,
    /// What the caller has sent and is not yet passed on.
    incoming: &'e mut BytesMut,
    /// An interim answer has been passed on.
    interim: bool,
    /// The caller awaited permission to send its body and got an answer instead: it may send it or not.
    unclear: bool,
}

/// Carries one exchange. `outgoing` is the head to be sent on; `incoming` is what the caller has sent behind its own.
pub(super) async fn exchange(
    connection: &mut Connection,
    destination: &Destination,
    series: &mut ServiceSeries,
    record: &mut Record,
    request: Request,
    incoming: &mut BytesMut,
    outgoing: BytesMut,
) -> Ended {
    let Ok(flow) = Flow::repeatable(outgoing, request.body, incoming) else {
        record.finish(series, Reason::BadRequest.status(), Some(Reason::BadRequest));
        super::refuse(connection, Reason::BadRequest).await;
        return Ended::Close;
    };
    connection.worker.buffers.give_if_empty(incoming);
    let up = Sending::new(flow);
    let mut exchange = Exchange {
        connection,
        destination,
        series,
        record,
        request,
        up,
        incoming,
        interim: false,
        unclear: false,
    };
    let ended = exchange.run().await;
    let Exchange { connection, up, .. } = exchange;
    connection.worker.buffers.give(up.flow.into_head());
    ended
}

impl Exchange<'_> {
    async fn run(&mut self) -> Ended {
        let mut tried = SmallVec::new();
        let mut fresh_only = false;
        loop {
            let mut upstream = match self.obtain(&mut tried, fresh_only).await {
                Ok(upstream) => upstream,
                Err(reason) => {
                    if reason != Reason::UpstreamConnect {
                        Record::count_tags(self.series, &self.request.tagging, Some(TagOutcome::Refused));
                    }
                    return self.make_up(reason).await;
                }
            };
            self.up.sent = Nanos::now();
            match self.answer_head(&mut upstream).await {
                Ok((response, keep, head)) => {
                    if self.up.flow.is_done() {
                        let now = Nanos::now();
                        upstream.chosen.in_flight.observe(now.since(self.up.sent).0, now.0);
                    }
                    Record::count_tags(self.series, &self.request.tagging, upstream.chosen.tag_outcome());
                    return self.pass_on(upstream, response, keep, head).await;
                }
                Err(NoAnswer::Stale) => {
                    // Its server closed it while it was idle. The request is sent over a new connection.
                    self.series.none().retried(RetryCause::StaleConnection);
                    fresh_only = true;
                    self.up.repeat();
                }
                Err(NoAnswer::Reason(reason)) => {
                    self.connection.worker.complain(|| {
                        tracing::warn!(
                            pod = %self.connection.pod.name(), service = %self.destination.service,
                            endpoint = %upstream.chosen.address(), reason = reason.code(), "{}", reason.message(),
                        );
                    });
                    drop(upstream);
                    return self.make_up(reason).await;
                }
                Err(NoAnswer::CallerGone) => return Ended::Broken,
            }
        }
    }

    /// The caller has ended its side, and there is nothing behind this request.
    fn is_last_of_caller(&self) -> bool {
        self.up.half_closed && self.incoming.is_empty()
    }

    /// Nothing is lost if the request is sent a second time, should the first one meet a closed connection.
    fn is_repeatable(&self) -> bool {
        self.request.method.is_idempotent() && self.up.flow.is_repeatable()
    }

    /// A connection to an endpoint: an idle one, or a new one. Endpoints that cannot be connected to are added to `tried`.
    async fn obtain(
        &mut self,
        tried: &mut SmallVec<[SocketAddr; CONNECT_ATTEMPTS]>,
        fresh_only: bool,
    ) -> Result<Upstream, Reason> {
        let repeatable = self.is_repeatable();
        let worker = self.connection.worker.clone();
        let pod = self.connection.pod.clone();
        loop {
            let now = Nanos::now();
            let tag = self.request.tagging.tag.as_ref();
            let chosen = choose::choose(&worker, &pod, self.destination, tag, tried, now)?;
            let Some(chosen) = chosen.filter(|_| tried.len() < CONNECT_ATTEMPTS) else {
                return Err(Reason::UpstreamConnect);
            };
            if !tried.is_empty() {
                self.series.none().retried(RetryCause::ConnectRefused);
            }
            self.record.chosen(self.series, &chosen);
            let idle =
                if fresh_only { None } else { worker.pool.take(pod.id, chosen.address(), repeatable, now) };
            if let Some(stream) = idle {
                return Ok(Upstream { stream, chosen, reused: true, incoming: BytesMut::new() });
            }
            match upstream::connect(&worker, &*pod.pod.network, chosen.endpoint(), now).await {
                Ok(stream) => {
                    return Ok(Upstream { stream, chosen, reused: false, incoming: BytesMut::new() });
                }
                Err(error) => {
                    worker.complain(|| {
                        tracing::warn!(pod = %pod.name(), service = %self.destination.service, endpoint = %chosen.address(), %error, "cannot connect to an endpoint");
                    });
                    tried.push(chosen.address());
                }
            }
        }
    }

    /// Sends the request and reads the answer's head, passing interim ones on. Returns the head as it goes to the caller.
    async fn answer_head(&mut self, upstream: &mut Upstream) -> Result<(Response, bool, BytesMut), NoAnswer> {
        let buffers_of = self.connection.worker.clone();
        let buffers = &buffers_of.buffers;
        let mut end = HeadEnd::default();
        loop {
            if !upstream.incoming.is_empty() {
                match end.find(&upstream.incoming, true) {
                    Ok(Some(length)) if length <= MAX_HEAD_BYTES => {
                        if let Some(answer) = self.read_head(upstream, length).await? {
                            return Ok(answer);
                        }
                        end = HeadEnd::default();
                        continue;
                    }
                    Ok(None) if upstream.incoming.len() <= MAX_HEAD_BYTES => {}
                    _ => return Err(NoAnswer::Reason(Reason::UpstreamProtocol)),
                }
            }
            let (mut caller_reads, _) = self.connection.stream.split();
            let (mut reads, mut writes) = upstream.stream.split();
            let read = poll_fn(|cx| {
                match self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, buffers) {
                    Ok(()) => {}
                    Err(Halt::Malformed) => return Poll::Ready(Err(NoAnswer::Reason(Reason::BadRequest))),
                    Err(Halt::CallerGone) => return Poll::Ready(Err(NoAnswer::CallerGone)),
                }
                poll_read(cx, &mut reads, &mut upstream.incoming, buffers).map(Ok)
            })
            .await?;
            if !matches!(read, Ok(1..)) {
                return Err(self.silence(upstream));
            }
            let common = upstream.incoming.len().min(VERSION.len());
            if upstream.incoming[..common] != VERSION[..common] {
                return Err(NoAnswer::Reason(Reason::UpstreamProtocol));
            }
        }
    }

    /// The endpoint's connection has ended before an answer.
    fn silence(&self, upstream: &Upstream) -> NoAnswer {
        if self.up.broken_off {
            NoAnswer::CallerGone
        } else if upstream.reused && upstream.incoming.is_empty() && !self.interim && self.is_repeatable() {
            NoAnswer::Stale
        } else {
            NoAnswer::Reason(Reason::UpstreamReset)
        }
    }

    /// Reads a whole head; `None` if it was an interim one, which has been passed on.
    async fn read_head(
        &mut self,
        upstream: &mut Upstream,
        length: usize,
    ) -> Result<Option<(Response, bool, BytesMut)>, NoAnswer> {
        let sending = !self.up.flow.is_done();
        self.unclear = self.request.expects && sending && self.up.flow.body_bytes == 0;
        let leaving = self.is_last_of_caller() || self.connection.pod.gate.is_shut();
        let caller = Caller {
            method: self.request.method,
            http10: self.request.http10,
            upgrade: self.request.upgrade,
            keep_alive: self.request.keep_alive && !self.unclear && !leaving,
            sending,
        };
        let mut head = self.connection.worker.buffers.take();
        let read = response::read(&upstream.incoming[..length], caller, &mut head);
        let (response, keep) = read.map_err(|error| {
            self.connection.worker.complain(|| {
                tracing::warn!(service = %self.destination.service, endpoint = %upstream.chosen.address(), "cannot pass on: {error}");
            });
            NoAnswer::Reason(Reason::UpstreamProtocol)
        })?;
        upstream.incoming.advance(length);
        if !response.is_interim() {
            return Ok(Some((response, keep, head)));
        }
        self.interim = true;
        // HTTP/1.0 knows no interim answers.
        if !self.request.http10 {
            self.write_down(head, upstream).await?;
        }
        Ok(None)
    }

    /// Writes the head of an answer without a body. Meanwhile the request goes on.
    async fn write_down(&mut self, head: BytesMut, upstream: &mut Upstream) -> Result<(), NoAnswer> {
        let worker = self.connection.worker.clone();
        let buffers = &worker.buffers;
        let mut nothing = BytesMut::new();
        let mut down = Flow::new(head, Body::EMPTY, &mut nothing)
            .map_err(|_| NoAnswer::Reason(Reason::UpstreamProtocol))?;
        let (mut caller_reads, mut caller_writes) = self.connection.stream.split();
        let (mut reads, mut writes) = upstream.stream.split();
        poll_fn(|cx| {
            match self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, buffers) {
                Ok(()) => {}
                Err(Halt::Malformed) => return Poll::Ready(Err(NoAnswer::Reason(Reason::BadRequest))),
                Err(Halt::CallerGone) => return Poll::Ready(Err(NoAnswer::CallerGone)),
            }
            let written = down.poll(cx, &mut reads, &mut caller_writes, &mut nothing, buffers);
            written.map_err(|_| NoAnswer::CallerGone)
        })
        .await
    }

    /// Passes the answer on, while what is left of the request goes on too.
    async fn pass_on(
        &mut self,
        mut upstream: Upstream,
        response: Response,
        keep: bool,
        head: BytesMut,
    ) -> Ended {
        let worker = self.connection.worker.clone();
        let buffers = &worker.buffers;
        let status = response.status;
        if response.tunnel {
            return self.switch(upstream, head, status).await;
        }
        let Ok(mut down) = Flow::new(head, response.body, &mut upstream.incoming) else {
            return self.make_up(Reason::UpstreamProtocol).await;
        };
        let (mut caller_reads, mut caller_writes) = self.connection.stream.split();
        let (mut reads, mut writes) = upstream.stream.split();
        let passed = poll_fn(|cx| {
            match self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, buffers) {
                // The answer is under way: a request that breaks off does not stop it.
                Ok(()) | Err(Halt::Malformed) => {}
                Err(Halt::CallerGone) => return Poll::Ready(Err(Broken::CallerGone)),
            }
            let passed = down.poll(cx, &mut reads, &mut caller_writes, &mut upstream.incoming, buffers);
            passed.map_err(Broken::from)
        })
        .await;
        self.record.request_bytes = self.up.flow.body_bytes;
        self.record.response_bytes = down.body_bytes;
        buffers.give(down.into_head());
        let (status, reason, ended) = match passed {
            Ok(()) => (status, None, None),
            Err(Broken::CallerGone) => (0, Some(Reason::CallerClosed), Some(Ended::Broken)),
            Err(Broken::Answer(reason)) => (status, Some(reason), Some(Ended::Broken)),
            // What came is passed on; that something is missing the caller sees as it would have without Sluice.
            Err(Broken::End) => (status, Some(Reason::UpstreamReset), Some(Ended::Close)),
        };
        self.record.finish(self.series, status, reason);
        if let Some(ended) = ended {
            return ended;
        }
        if self.up.is_under_way() && !self.unclear {
            self.send_rest(&mut upstream, keep).await;
        }
        let complete = self.up.is_complete();
        if response.reusable && complete && upstream.incoming.is_empty() {
            let Upstream { stream, chosen, incoming, .. } = upstream;
            buffers.give(incoming);
            let pod = self.connection.pod.id;
            worker.pool.give(pod, chosen.address(), stream, response.idle_seconds, Nanos::now());
        }
        match (keep, self.up.flow.is_done()) {
            (true, true) => Ended::Keep,
            (false, true) => Ended::Close,
            (_, false) => Ended::Linger,
        }
    }

    /// The answer is complete and the request is not. As long as the endpoint takes the rest of it, it gets it: closing now
    /// would reset a caller that sends first and reads then, and the answer would be lost to it.
    async fn send_rest(&mut self, upstream: &mut Upstream, keep: bool) {
        let worker = self.connection.worker.clone();
        if !keep {
            // The end of the answer must not wait for the end of the request. A caller that has gone is noticed below.
            let _ = self.connection.stream.shutdown().await;
        }
        let (mut caller_reads, _) = self.connection.stream.split();
        let (mut reads, mut writes) = upstream.stream.split();
        poll_fn(|cx| {
            let sent = self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, &worker.buffers);
            if sent.is_err() {
                self.up.deaf = true;
            }
            if !self.up.is_under_way() {
                return Poll::Ready(());
            }
            // An endpoint that ends its side has no use for the rest; one that speaks is out of turn.
            match poll_read(cx, &mut reads, &mut upstream.incoming, &worker.buffers) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(_) => {
                    self.up.deaf = true;
                    Poll::Ready(())
                }
            }
        })
        .await;
    }

    /// Passes on the head of an answer after which both sides speak something else.
    async fn switch(&mut self, mut upstream: Upstream, head: BytesMut, status: u16) -> Ended {
        if self.write_down(head, &mut upstream).await.is_err() {
            return Ended::Broken;
        }
        self.record.finish(self.series, status, None);
        let rest = self.up.flow.rest_of_head();
        if !rest.is_empty() {
            // An endpoint that was in a hurry: what it has not yet got of the request goes ahead of everything else.
            let mut first = BytesMut::from(rest);
            first.extend_from_slice(self.incoming);
            *self.incoming = first;
        }
        let Upstream { stream, chosen, incoming, .. } = upstream;
        Ended::Tunnel(Box::new((stream, chosen, incoming)))
    }

    /// Answers in the place of an endpoint.
    async fn make_up(&mut self, reason: Reason) -> Ended {
        // With its body behind it, the caller's next request could not be told from it.
        let keep = self.request.keep_alive
            && self.up.flow.is_taken()
            && !self.is_last_of_caller()
            && reason != Reason::BadRequest;
        let head_only = self.request.method == super::request::Method::Head;
        let mut head = self.connection.worker.buffers.take();
        answer::http1(reason, keep, head_only, &mut head);
        self.record.request_bytes = self.up.flow.body_bytes;
        self.record.response_bytes = 0;
        let written = self.connection.stream.write_all(&head).await;
        self.connection.worker.buffers.give(head);
        if written.is_err() {
            self.record.finish(self.series, 0, Some(Reason::CallerClosed));
            return Ended::Broken;
        }
        self.record.finish(self.series, reason.status(), Some(reason));
        if keep { Ended::Keep } else { Ended::Linger }
    }
}

/// Why an answer that had begun did not come to its end.
enum Broken {
    CallerGone,
    /// The endpoint's connection broke, or what came over it was not valid.
    Answer(Reason),
    /// The endpoint's connection ended in order, but too early.
    End,
}

impl From<Stopped> for Broken {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Write(_) => Self::CallerGone,
            Stopped::Chunk(_) => Self::Answer(Reason::UpstreamProtocol),
            Stopped::Read(_) => Self::Answer(Reason::UpstreamReset),
            Stopped::End => Self::End,
        }
    }
}
