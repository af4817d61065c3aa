//! One request and its answer.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::net::{TcpStream, tcp::ReadHalf};

use super::{
    body::Body,
    flow::{Flow, Stopped, poll_read},
    head::{HeadEnd, MAX_HEAD_BYTES},
    learn,
    request::Request,
    response::{self, Caller, Response},
};
use crate::{
    cluster::model::Destination,
    observe::{
        metrics::{RetryCause, ServiceSeries, TagOutcome},
        reason::Reason,
    },
    proxy::{
        answer,
        buffers::Buffers,
        choose::{self, Chosen},
        clock::Nanos,
        connection::Connection,
        record::Record,
        upstream::{self, CONNECT_ATTEMPTS},
    },
};

/// While an answer is awaited, this much of the caller's next requests is read ahead (which is how its leaving is noticed).
const READ_AHEAD: usize = 16 * 1024;

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
    Tunnel(Box<(TcpStream, Chosen, BytesMut)>),
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
    stream: TcpStream,
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
    /// The request, on its way up.
    up: Flow,
    /// What the caller has sent and is not yet passed on.
    incoming: &'e mut BytesMut,
    /// The caller has ended its side; answers still reach it.
    half_closed: bool,
    /// The endpoint takes no more of the request.
    deaf: bool,
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
    let Ok(up) = Flow::new(outgoing, request.body, incoming) else {
        record.finish(series, Reason::BadRequest.status(), Some(Reason::BadRequest));
        super::refuse(connection, Reason::BadRequest).await;
        return Ended::Close;
    };
    connection.worker.buffers.give_if_empty(incoming);
    let mut exchange = Exchange {
        connection,
        destination,
        series,
        record,
        request,
        up,
        incoming,
        half_closed: false,
        deaf: false,
    };
    let ended = exchange.run().await;
    let Exchange { connection, up, .. } = exchange;
    connection.worker.buffers.give(up.head);
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
            let sent = Nanos::now();
            match self.answer_head(&mut upstream).await {
                Ok((response, keep, head)) => {
                    learn(&upstream.chosen, sent, Nanos::now());
                    Record::count_tags(self.series, &self.request.tagging, upstream.chosen.tag_outcome());
                    return self.pass_on(upstream, response, keep, head).await;
                }
                Err(NoAnswer::Stale) => {
                    // Its server closed it while it was idle. The request is sent over a new connection.
                    self.series.none().retried(RetryCause::StaleConnection);
                    fresh_only = true;
                    self.up.written = 0;
                    self.deaf = false;
                }
                Err(NoAnswer::Reason(reason)) => {
                    self.connection.worker.complain(|| {
                        tracing::warn!(
                            pod = %self.connection.pod.name(), service = %self.destination.service,
                            endpoint = %upstream.chosen.address(), reason = reason.code(), "{}", reason.message(),
                        );
                    });
                    return self.make_up(reason).await;
                }
                Err(NoAnswer::CallerGone) => return Ended::Broken,
            }
        }
    }

    /// Nothing is lost if the request is sent a second time, should the first one meet a closed connection.
    fn is_repeatable(&self) -> bool {
        self.request.method.is_idempotent() && self.up.is_self_contained()
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
                if !self.deaf && !self.up.is_done() {
                    match self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, buffers) {
                        Poll::Pending | Poll::Ready(Ok(())) => {}
                        // The endpoint may have said why before it stopped listening.
                        Poll::Ready(Err(Stopped::Write(_))) => self.deaf = true,
                        Poll::Ready(Err(Stopped::Chunk(_))) => {
                            return Poll::Ready(Err(NoAnswer::Reason(Reason::BadRequest)));
                        }
                        Poll::Ready(Err(Stopped::Read(_) | Stopped::End)) => {
                            return Poll::Ready(Err(NoAnswer::CallerGone));
                        }
                    }
                } else if watch_caller(cx, &mut caller_reads, self.incoming, &mut self.half_closed, buffers) {
                    return Poll::Ready(Err(NoAnswer::CallerGone));
                }
                poll_read(cx, &mut reads, &mut upstream.incoming, buffers).map(Ok)
            })
            .await?;
            if !matches!(read, Ok(1..)) {
                return Err(self.silence(upstream));
            }
        }
    }

    /// The endpoint's connection has ended before an answer.
    fn silence(&self, upstream: &Upstream) -> NoAnswer {
        if upstream.reused && upstream.incoming.is_empty() && self.is_repeatable() {
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
        // A caller that awaits permission to send its body, and gets an answer instead, may send it or not.
        let unclear = self.request.expects && !self.up.is_done() && self.up.body_bytes == 0;
        let leaving = self.half_closed || self.connection.pod.gate.is_shut();
        let caller = Caller {
            method: self.request.method,
            http10: self.request.http10,
            upgrade: self.request.upgrade,
            keep_alive: self.request.keep_alive && !unclear && !leaving,
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
        // HTTP/1.0 knows no interim answers.
        if !self.request.http10 {
            let mut interim = Flow::new(head, Body::EMPTY, &mut BytesMut::new())
                .map_err(|_| NoAnswer::Reason(Reason::UpstreamProtocol))?;
            self.write_down(&mut interim, upstream).await.map_err(|_| NoAnswer::CallerGone)?;
        }
        Ok(None)
    }

    /// Writes an interim answer. Meanwhile the request goes on.
    async fn write_down(&mut self, down: &mut Flow, upstream: &mut Upstream) -> Result<(), Stopped> {
        let worker = self.connection.worker.clone();
        let (_, mut caller_writes) = self.connection.stream.split();
        let (mut reads, _) = upstream.stream.split();
        let mut nothing = BytesMut::new();
        poll_fn(|cx| down.poll(cx, &mut reads, &mut caller_writes, &mut nothing, &worker.buffers)).await
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
            if !self.deaf && !self.up.is_done() {
                match self.up.poll(cx, &mut caller_reads, &mut writes, self.incoming, buffers) {
                    Poll::Pending | Poll::Ready(Ok(())) => {}
                    // The answer is under way: whatever stops the request does not stop it.
                    Poll::Ready(Err(_)) => self.deaf = true,
                }
            }
            down.poll(cx, &mut reads, &mut caller_writes, &mut upstream.incoming, buffers)
        })
        .await;
        self.record.request_bytes = self.up.body_bytes;
        self.record.response_bytes = down.body_bytes;
        buffers.give(down.head);
        match passed {
            Ok(()) => {}
            Err(Stopped::Write(_)) => {
                self.record.finish(self.series, 0, Some(Reason::CallerClosed));
                return Ended::Broken;
            }
            Err(Stopped::Chunk(_)) => {
                self.record.finish(self.series, status, Some(Reason::UpstreamProtocol));
                return Ended::Broken;
            }
            Err(Stopped::Read(_)) => {
                self.record.finish(self.series, status, Some(Reason::UpstreamReset));
                return Ended::Broken;
            }
            // What came is passed on; that something is missing the caller sees as it would have without Sluice.
            Err(Stopped::End) => {
                self.record.finish(self.series, status, Some(Reason::UpstreamReset));
                return Ended::Close;
            }
        }
        self.record.finish(self.series, status, None);
        let complete = self.up.is_done() && !self.deaf;
        if response.reusable && complete && upstream.incoming.is_empty() {
            let Upstream { stream, chosen, incoming, .. } = upstream;
            buffers.give(incoming);
            let pod = self.connection.pod.id;
            worker.pool.give(pod, chosen.address(), stream, response.idle_seconds, Nanos::now());
        }
        match (keep, complete) {
            (true, true) => Ended::Keep,
            (false, true) => Ended::Close,
            (_, false) => Ended::Linger,
        }
    }

    /// Passes on the head of an answer after which both sides speak something else.
    async fn switch(&mut self, mut upstream: Upstream, head: BytesMut, status: u16) -> Ended {
        let Ok(mut down) = Flow::new(head, Body::EMPTY, &mut BytesMut::new()) else { return Ended::Broken };
        if self.write_down(&mut down, &mut upstream).await.is_err() {
            return Ended::Broken;
        }
        self.record.finish(self.series, status, None);
        let Upstream { stream, chosen, incoming, .. } = upstream;
        Ended::Tunnel(Box::new((stream, chosen, incoming)))
    }

    /// Answers in the place of an endpoint.
    async fn make_up(&mut self, reason: Reason) -> Ended {
        // With its body behind it, the caller's next request could not be told from it.
        let keep = self.request.keep_alive
            && self.up.body.is_done()
            && self.up.is_self_contained()
            && !self.half_closed
            && reason != Reason::BadRequest;
        let head_only = self.request.method == super::request::Method::Head;
        let mut head = self.connection.worker.buffers.take();
        answer::http1(reason, keep, head_only, &mut head);
        self.record.request_bytes = self.up.body_bytes;
        self.record.response_bytes = 0;
        let written = tokio::io::AsyncWriteExt::write_all(&mut self.connection.stream, &head).await;
        self.connection.worker.buffers.give(head);
        if written.is_err() {
            self.record.finish(self.series, 0, Some(Reason::CallerClosed));
            return Ended::Broken;
        }
        self.record.finish(self.series, reason.status(), Some(reason));
        if keep { Ended::Keep } else { Ended::Linger }
    }
}

/// Notices a caller that leaves while its answer is awaited. What it sends meanwhile is its next request, and is kept.
/// Returns whether it has gone; one that has only ended its side waits for its answer.
fn watch_caller(
    cx: &mut Context<'_>,
    caller: &mut ReadHalf<'_>,
    incoming: &mut BytesMut,
    half_closed: &mut bool,
    buffers: &Buffers,
) -> bool {
    while !*half_closed && incoming.len() < READ_AHEAD {
        match poll_read(cx, caller, incoming, buffers) {
            Poll::Ready(Ok(0)) => {
                *half_closed = true;
                buffers.give_if_empty(incoming);
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return error.kind() != io::ErrorKind::Interrupted,
            Poll::Pending => return false,
        }
    }
    false
}
