//! One stream: from its head to the last trailer of its answer.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, request};
use smallvec::SmallVec;

use super::{
    Caller, Known,
    answer::{self, Kind},
    pipe::{Broken, Pipe},
    pool::{NotOpened, Place},
};
use crate::{
    clock::Nanos,
    govern::{
        baggage,
        lane::{TagNames, TagScan, Tagging},
        tag::Tag,
    },
    observe::{
        metrics::{RetryCause, TagOutcome},
        reason::Reason,
    },
    proxy::{
        choose::{self, Chosen},
        record::Record,
        share::Taken,
        upstream::CONNECT_ATTEMPTS,
    },
};

/// How often a request is sent again because nothing had processed it.
const RETRIES: u32 = 2;

static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Reads the tag and puts it where the next hop looks for it.
fn tag(headers: &mut HeaderMap, names: &TagNames, caller: Option<&Tag>) -> Tagging {
    let mut scan = TagScan::new(names);
    for (name, value) in &*headers {
        scan.see(name.as_str().as_bytes(), value.as_bytes());
    }
    let tagging = scan.decide(caller);
    let Some(tag) = tagging.tag else { return tagging };
    if tagging.set_baggage {
        let lines = headers.get_all(&BAGGAGE).iter().map(HeaderValue::as_bytes);
        let edited = baggage::set(lines, names.baggage_key(), tag.as_bytes());
        // Made of header values and a tag, so it is one.
        if let Some(Ok(value)) = edited.map(HeaderValue::from_maybe_shared) {
            headers.insert(&BAGGAGE, value);
        }
    }
    if tagging.set_header
        && let Ok(value) = HeaderValue::from_bytes(tag.as_bytes())
    {
        headers.insert(names.header(), value);
    }
    tagging
}

/// A stream on its way.
pub(super) struct Exchange {
    caller: Rc<Caller>,
    known: Known,
    record: Record,
    tagging: Tagging,
    head: request::Parts,
    kind: Kind,
    idempotent: bool,
    up: Pipe,
    respond: SendResponse<Bytes>,
}

/// A request that has been sent to an endpoint.
struct Sent {
    place: Place,
    chosen: Chosen,
    /// When the endpoint's turn began: with the request's head, then with the end of its body.
    at: Nanos,
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    /// The endpoint takes no more of the request; its answer may still come.
    deaf: bool,
}

/// Why there is no answer to pass on.
enum NoAnswer {
    /// The caller gave the stream up, with this code if it was one.
    CallerGone(Option<Code>),
    /// The endpoint, or the way to it.
    Endpoint(h2::Error),
}

impl Exchange {
    /// A request has come: reads its tag, and sets it.
    pub(super) fn begin(
        caller: Rc<Caller>,
        known: Known,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Self {
        let mut record = Record::begin(&caller.worker);
        let (mut head, body) = request.into_parts();
        let tagging = {
            let workload = caller.pod.pod.workload.load();
            tag(&mut head.headers, &caller.worker.options.tag_names, workload.tag.as_ref())
        };
        record.describe(&caller.worker, &caller.pod, &known.destination, "HTTP/2", Some(&tagging), || {
            let path = head.uri.path_and_query().map_or(&b""[..], |path| path.as_str().as_bytes());
            let traceparent = head.headers.get("traceparent").map(HeaderValue::as_bytes);
            (head.method.as_str().as_bytes(), path, traceparent)
        });
        if head.uri.scheme().is_none() {
            // Only a `host` header, no `:authority`: h2 passes that on as it is if it takes the request for one of
            // HTTP/1.1.
            head.version = Version::HTTP_11;
        }
        let kind = Kind::of(&head.method, &head.headers);
        let idempotent = head.method.is_idempotent();
        let up = Pipe::replayable(body, caller.pod.kept.take_none());
        Self { caller, known, record, tagging, head, kind, idempotent, up, respond }
    }

    /// Carries the stream to its end, holding its place in the pod's budget.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps room for `self` twice, and tasks are moved when they are spawned"
    )]
    pub(super) fn run(mut self, place: Taken) -> impl Future<Output = ()> {
        async move {
            self.drive().await;
            drop(place);
        }
    }

    async fn drive(&mut self) {
        let mut tried = SmallVec::<[SocketAddr; CONNECT_ATTEMPTS]>::new();
        let mut retries = 0;
        loop {
            let mut sent = match self.send(&mut tried, retries == 0).await {
                Ok(sent) => sent,
                Err(reason) => return self.refuse(reason),
            };
            match poll_fn(|cx| self.poll_answer(cx, &mut sent)).await {
                Ok(response) => return self.pass_on(&mut sent, response).await,
                Err(NoAnswer::CallerGone(code)) => return self.give_up(&mut sent, code, 0),
                Err(NoAnswer::Endpoint(error)) => {
                    let again = if retries < RETRIES { self.may_retry(&error, &sent) } else { None };
                    let Some(cause) = again else { return self.fail(&sent, &error) };
                    retries += 1;
                    if refused(&error) {
                        tried.push(sent.chosen.address());
                        // Once, and on another endpoint: if there is none, the caller hears what this one said.
                        if retries > 1 || !self.has_other(&tried) {
                            return self.fail(&sent, &error);
                        }
                    }
                    self.up.rewind();
                    self.known.series.borrow_mut().none().retried(cause);
                }
            }
        }
    }

    /// Whether nothing has processed the request, and it can be sent again as it was.
    fn may_retry(&self, error: &h2::Error, sent: &Sent) -> Option<RetryCause> {
        if !self.up.can_rewind() {
            return None;
        }
        // GOAWAY fails exactly the streams that it says were not processed; the others go on.
        if refused(error) || (error.is_go_away() && error.is_remote()) {
            return Some(RetryCause::StreamRefused);
        }
        // A pooled connection that was closed without a word. Most likely it was while it was idle, but what cannot be
        // done twice is not.
        (error.is_io() && sent.place.reused && self.idempotent).then_some(RetryCause::StaleConnection)
    }

    fn has_other(&self, tried: &[SocketAddr]) -> bool {
        let Caller { worker, pod, .. } = &*self.caller;
        let tag = self.tagging.tag.as_ref();
        choose::choose(worker, pod, &self.known.destination, tag, tried, Nanos::now())
            .is_ok_and(|other| other.is_some())
    }

    /// Sends the request's head to an endpoint. Those that cannot be connected to are added to `tried`.
    async fn send(
        &mut self,
        tried: &mut SmallVec<[SocketAddr; CONNECT_ATTEMPTS]>,
        first: bool,
    ) -> Result<Sent, Reason> {
        let Caller { worker, pod, .. } = &*self.caller;
        let mut failed = 0;
        let mut retired = 0;
        loop {
            // The clock is not read twice for the first attempt: it begins with the request.
            let begins = first && failed + retired == 0;
            let at = if begins { self.record.started } else { Nanos::now() };
            let tag = self.tagging.tag.as_ref();
            let chosen = match choose::choose(worker, pod, &self.known.destination, tag, tried, at)? {
                Some(chosen) if failed < CONNECT_ATTEMPTS => chosen,
                _ => return Err(Reason::UpstreamConnect),
            };
            if failed > 0 {
                self.known.series.borrow_mut().none().retried(RetryCause::ConnectRefused);
            }
            self.record.chosen(&mut self.known.series.borrow_mut(), &chosen);
            let place = match worker.h2.place(worker, pod, chosen.endpoint(), at).await {
                Ok(place) => place,
                Err(error) => {
                    worker.complain(|| {
                        tracing::warn!(
                            pod = %pod.name(), service = %self.known.destination.service,
                            endpoint = %chosen.address(), %error, "cannot connect to an endpoint",
                        );
                    });
                    tried.push(chosen.address());
                    failed += 1;
                    continue;
                }
            };
            let request = || Request::from_parts(self.head.clone(), ());
            match worker.h2.send(&place, request, self.up.is_done()) {
                Ok((response, stream)) => {
                    // Opening a connection is not the endpoint's latency.
                    let at = if place.reused { at } else { Nanos::now() };
                    return Ok(Sent { place, chosen, at, response, stream, deaf: false });
                }
                // Nothing was sent. The next connection is another one, if need be a new one.
                Err(NotOpened::Retired) if retired < CONNECT_ATTEMPTS => retired += 1,
                Err(NotOpened::Retired) => return Err(Reason::UpstreamReset),
                Err(NotOpened::Unfit(error)) => {
                    worker.complain(|| {
                        tracing::info!(pod = %pod.name(), %error, "refused a request that cannot be sent over HTTP/2");
                    });
                    return Err(Reason::BadRequest);
                }
            }
        }
    }

    /// Waits for the answer's head, passing interim ones on. Meanwhile the request goes on.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        sent: &mut Sent,
    ) -> Poll<Result<Response<RecvStream>, NoAnswer>> {
        if let Poll::Ready(Err(error)) = self.poll_up(cx, sent) {
            return Poll::Ready(Err(NoAnswer::CallerGone(error.reason())));
        }
        if let Poll::Ready(code) = self.respond.poll_reset(cx) {
            return Poll::Ready(Err(NoAnswer::CallerGone(code.ok())));
        }
        while let Poll::Ready(Some(Ok(interim))) = sent.response.poll_informational(cx) {
            // That the caller is gone is noticed above.
            let _ = self.respond.send_informational(interim);
        }
        Pin::new(&mut sent.response).poll(cx).map_err(NoAnswer::Endpoint)
    }

    /// Moves the request's body. Only a caller that breaks is an error: an endpoint may stop listening and still answer.
    fn poll_up(&mut self, cx: &mut Context<'_>, sent: &mut Sent) -> Poll<Result<(), h2::Error>> {
        if sent.deaf || self.up.is_done() {
            return Poll::Ready(Ok(()));
        }
        match self.up.poll(cx, &mut sent.stream) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                sent.at = Nanos::now();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::To(_))) => {
                sent.deaf = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::From(error))) => Poll::Ready(Err(error)),
        }
    }

    /// Passes the answer on, while what is left of the request goes on too.
    async fn pass_on(&mut self, sent: &mut Sent, response: Response<RecvStream>) {
        self.up.commit();
        // While the request goes on the endpoint may have waited for it: that says nothing of the endpoint.
        if self.up.is_done() {
            let now = Nanos::now();
            sent.chosen.in_flight.observe(now.since(sent.at).0, now.0);
        }
        Record::count_tags(&mut self.known.series.borrow_mut(), &self.tagging, sent.chosen.tag_outcome());
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        let mut down = Pipe::new(body);
        let Ok(mut back) = self.respond.send_response(Response::from_parts(head, ()), down.is_done()) else {
            return self.give_up(sent, None, 0);
        };
        let ended = poll_fn(|cx| self.poll_pass(cx, sent, &mut down, &mut back)).await;
        self.record.response_bytes = down.bytes;
        match ended {
            Ok(()) => self.finish(status, None),
            Err(NoAnswer::CallerGone(code)) => self.give_up(sent, code, status),
            Err(NoAnswer::Endpoint(error)) => {
                self.complain(sent, &error);
                let reason = reason_of(&error);
                if error.is_reset() && error.is_remote() {
                    back.send_reset(error.reason().unwrap_or(Code::INTERNAL_ERROR));
                } else if self.kind != Kind::Grpc || answer::break_off_grpc(&mut back, reason).is_err() {
                    back.send_reset(Code::INTERNAL_ERROR);
                }
                self.finish(status, Some(reason));
            }
        }
    }

    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        sent: &mut Sent,
        down: &mut Pipe,
        back: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), NoAnswer>> {
        match down.poll(cx, back) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Broken::From(error))) => return Poll::Ready(Err(NoAnswer::Endpoint(error))),
            Poll::Ready(Err(Broken::To(error))) => {
                return Poll::Ready(Err(NoAnswer::CallerGone(error.reason())));
            }
            Poll::Pending => {}
        }
        if let Poll::Ready(Err(error)) = self.poll_up(cx, sent) {
            return Poll::Ready(Err(NoAnswer::CallerGone(error.reason())));
        }
        back.poll_reset(cx).map(|code| Err(NoAnswer::CallerGone(code.ok())))
    }

    /// The caller gave up: so does its request.
    fn give_up(&mut self, sent: &mut Sent, code: Option<Code>, status: u16) {
        if code.is_some() {
            self.caller.resets.count(Nanos::now());
        }
        sent.stream.send_reset(code.unwrap_or(Code::CANCEL));
        self.finish(status, Some(Reason::CallerClosed));
    }

    /// The endpoint did not answer.
    fn fail(&mut self, sent: &Sent, error: &h2::Error) {
        self.complain(sent, error);
        let reason = reason_of(error);
        Record::count_tags(&mut self.known.series.borrow_mut(), &self.tagging, sent.chosen.tag_outcome());
        if error.is_reset() && error.is_remote() {
            // What it said, the caller knows better than anyone what to make of.
            self.respond.send_reset(error.reason().unwrap_or(Code::INTERNAL_ERROR));
            return self.finish(0, Some(reason));
        }
        self.make_up(reason);
    }

    /// Answers in the place of an endpoint that was not even asked.
    pub(super) fn refuse(&mut self, reason: Reason) {
        let lost = matches!(reason, Reason::NoEndpoint | Reason::LaneUnavailable);
        let outcome = lost.then_some(TagOutcome::Refused);
        Record::count_tags(&mut self.known.series.borrow_mut(), &self.tagging, outcome);
        self.make_up(reason);
    }

    fn make_up(&mut self, reason: Reason) {
        match answer::send(&mut self.respond, self.kind, reason) {
            Ok(()) => self.finish(self.kind.status(reason), Some(reason)),
            Err(_) => self.finish(0, Some(Reason::CallerClosed)),
        }
    }

    fn finish(&mut self, status: u16, reason: Option<Reason>) {
        self.record.request_bytes = self.up.bytes;
        self.record.finish(&mut self.known.series.borrow_mut(), status, reason);
    }

    fn complain(&self, sent: &Sent, error: &h2::Error) {
        self.caller.worker.complain(|| {
            tracing::warn!(
                pod = %self.caller.pod.name(), service = %self.known.destination.service,
                endpoint = %sent.chosen.address(), %error, "an endpoint broke a request off",
            );
        });
    }
}

/// The endpoint said that it has not processed the stream (RFC 9113, section 8.7).
fn refused(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Code::REFUSED_STREAM)
}

fn reason_of(error: &h2::Error) -> Reason {
    // What `h2` itself has found wrong is the endpoint's breach of the protocol.
    if error.is_library() { Reason::UpstreamProtocol } else { Reason::UpstreamReset }
}
