//! One stream: what [`governed`] asks of HTTP/2.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason as Code, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header::HOST, request};

use super::{
    Caller, answer,
    attempt::Sent,
    pipe::{Broken, Pipe},
    view::View,
};
use crate::{
    clock::Nanos,
    cluster::model::{Service, Workload},
    govern::{
        self,
        edit::{self, Head},
        fallback::stale::Collector,
        lane::{TagNames, TagScan, Tagging},
    },
    observe::{
        reason::Reason,
        trace::context::{self, Scan, Sender},
    },
    proxy::{
        answer::{Kind, MadeUp},
        by_caller::ByCaller,
        choose::Chosen,
        decisions::Ids,
        governed::{self, Break, Call, Failure, Held, Left},
        known::Known,
        record::{Described, Record},
        share::Taken,
    },
};

impl Head for HeaderMap {
    fn get_all<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn add(&mut self, name: &HeaderName, value: &[u8]) {
        // Without control characters, as is asked for: so it is a value.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            self.append(name, value);
        }
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove(name);
    }
}

/// Reads the tag and puts it where the next hop looks for it. Shows the headers to `traces`, too.
fn tag(
    head: &mut request::Parts,
    names: &TagNames,
    caller: &Workload,
    service: &Service,
    mut traces: Option<&mut Scan<'_>>,
) -> Tagging {
    let mut scan = TagScan::new(names).stripping(service.strips_tags(caller));
    for (name, value) in &head.headers {
        scan.see(name.as_str().as_bytes(), value.as_bytes());
        if let Some(traces) = &mut traces {
            traces.see(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let tagging = scan.decide(caller.tag.as_ref(), || {
        service.colour(&ByCaller { view: View(head), workload: caller }, caller.address())
    });
    edit::tag(&mut head.headers, names, &tagging);
    tagging
}

/// Puts the sender where the next hop looks for it.
fn put_sender(headers: &mut HeaderMap, sender: &Sender) {
    for (name, value) in headers.iter_mut().filter(|(name, _)| context::form(name.as_ref()).is_some()) {
        let mut bytes = BytesMut::from(value.as_bytes());
        context::put(name.as_ref(), &mut bytes, sender);
        // Digits in the place of others, so it is a value.
        if let Ok(put) = HeaderValue::from_maybe_shared(bytes.freeze()) {
            *value = put;
        }
    }
}

/// A stream on its way.
pub(super) struct Exchange {
    pub(super) caller: Rc<Caller>,
    pub(super) call: Call,
    pub(super) head: request::Parts,
    /// The head as rules see it, if it is sent otherwise.
    seen: Option<request::Parts>,
    pub(super) kind: Kind,
    pub(super) idempotent: bool,
    pub(super) up: Pipe,
    pub(super) respond: SendResponse<Bytes>,
    /// With what an endpoint reset the last attempt, should the caller have to be told.
    pub(super) reset: Option<Code>,
}

/// An answer whose head has come.
pub(super) struct Answer {
    sent: Sent,
    /// Until it has been passed on.
    head: Option<Response<()>>,
    status: u16,
    /// Of an answer that has ended with its head.
    grpc_status: Option<u8>,
    down: Pipe,
    back: Option<SendStream<Bytes>>,
    /// What broke it off.
    error: Option<h2::Error>,
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
        let Caller { worker, pod, .. } = &*caller;
        let mut traces = worker.scan();
        let tagging = {
            let workload = pod.pod.workload.load();
            let service = &known.destination.service;
            tag(&mut head, &worker.options.tag_names, &workload, service, traces.as_mut())
        };
        let id = |name| head.headers.get(name).map(HeaderValue::as_bytes);
        let ids = Ids::new(id("x-request-id"), id("traceparent"));
        let request = (head.method.as_str().as_bytes(), head.uri.path().as_bytes());
        record.note(pod, &known.destination, Some(&tagging), ids, request);
        if let Some(traces) = traces {
            let found = traces.finish();
            let begun =
                record.describe(worker, pod, &known.destination, Some(&tagging), found, || Described {
                    protocol: "HTTP/2",
                    method: head.method.as_str().as_bytes(),
                    target: head.uri.path().as_bytes(),
                });
            if let Some((_, value)) = &begun {
                record.note_trace(value);
            }
            if let Some((name, value)) = begun
                && let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value))
            {
                head.headers.insert(name, value);
            }
        }
        if head.uri.scheme().is_none() {
            // Only a `host` header, no `:authority`: h2 passes that on as it is if it takes the request for one of
            // HTTP/1.1.
            head.version = Version::HTTP_11;
        }
        let kind = Kind::of(&head.method, &head.headers);
        let idempotent = head.method.is_idempotent();
        let up = Pipe::replayable(body, caller.pod.kept.take_none());
        let (worker, pod) = (caller.worker.clone(), caller.pod.clone());
        let call = Call::new(worker, pod, known, tagging, record, View(&head));
        let edits = &call.headers().request;
        let seen = (!edits.is_empty()).then(|| head.clone());
        if seen.is_some() {
            let names = &caller.worker.options.tag_names;
            edit::modify(&mut head.headers, edits, |name| names.is_listed(name));
        }
        Self { caller, call, head, seen, kind, idempotent, up, respond, reset: None }
    }

    /// Carries the stream to its end, holding its place in the pod's budget.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps room for `self` twice, and tasks are moved when they are spawned"
    )]
    pub(super) fn run(mut self, place: Taken) -> impl Future<Output = ()> {
        async move {
            governed::carry(&mut self).await;
            drop(place);
        }
    }

    /// The pod has no place left for it.
    pub(super) fn overloaded(&mut self) {
        let answer = MadeUp::of(&Reason::Overloaded.into(), self.kind);
        let (status, reason) = match self.send_made_up(&answer) {
            0 => (0, Reason::ClientClosed),
            status => (status, Reason::Overloaded),
        };
        self.call.finish(status, Some(reason));
    }

    fn send_made_up(&mut self, answer: &MadeUp) -> u16 {
        match answer::send(&mut self.respond, answer) {
            Ok(()) => answer.status,
            Err(_) => 0,
        }
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), Break>> {
        let Answer { sent, status, down, back: Some(back), error, .. } = answer else {
            return Poll::Ready(Ok(()));
        };
        match down.poll(cx, back) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Broken::From(broken))) => {
                let reason = reason_of(&broken);
                *error = Some(broken);
                return Poll::Ready(Err(Break::Answer(reason)));
            }
            Poll::Ready(Err(Broken::To(gone))) => {
                *error = Some(gone);
                return Poll::Ready(Err(Break::CallerGone(*status)));
            }
            Poll::Pending => {}
        }
        if let Poll::Ready(Err(gone)) = self.poll_up(cx, sent) {
            *error = Some(gone);
            return Poll::Ready(Err(Break::CallerGone(*status)));
        }
        back.poll_reset(cx).map(|code| {
            *error = code.ok().map(h2::Error::from);
            Err(Break::CallerGone(*status))
        })
    }
}

impl governed::Exchange for Exchange {
    type Answer = Answer;
    type Ended = ();

    fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    async fn attempt(&mut self, chosen: &Chosen) -> Result<Answer, Failure> {
        if let Some(sender) = self.call.record.sender() {
            put_sender(&mut self.head.headers, &sender);
        }
        let (sent, response) = self.send(chosen).await?;
        let (mut head, body) = response.into_parts();
        edit::modify(&mut head.headers, &self.call.headers().response, |_| false);
        let status = head.status.as_u16();
        let head = Some(Response::from_parts(head, ()));
        Ok(Answer { sent, head, status, grpc_status: None, down: Pipe::new(body), back: None, error: None })
    }

    fn status(answer: &Answer) -> u16 {
        answer.status
    }

    fn grpc_status(&self, answer: &Answer) -> Option<u8> {
        if self.kind != Kind::Grpc {
            return None;
        }
        match &answer.head {
            // With the head only if there is nothing else: an answer that goes on has not said its last word.
            Some(head) if answer.down.is_done() => grpc_status(head.headers()),
            _ => answer.grpc_status.or_else(|| answer.down.trailers().and_then(grpc_status)),
        }
    }

    fn headers(answer: &Answer) -> impl Iterator<Item = (&[u8], &[u8])> {
        let headers = answer.head.iter().flat_map(Response::headers);
        headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn show(answer: &mut Answer, collector: Collector) {
        answer.down.show(collector);
    }

    fn discard(&mut self, mut answer: Answer) {
        answer.sent.stream.send_reset(Code::CANCEL);
    }

    /// It is kept in any case.
    fn keep(&mut self) {}

    fn is_tunnel(_: &Answer) -> bool {
        false
    }

    fn sent_at(&self, answer: &Answer) -> Option<Nanos> {
        self.up.is_done().then_some(answer.sent.at)
    }

    fn can_repeat(&self) -> bool {
        self.up.can_rewind()
    }

    fn repeat(&mut self) {
        self.reset = None;
        self.up.rewind();
    }

    async fn pass_on(&mut self, answer: &mut Answer) -> Result<(), Break> {
        self.up.commit();
        if let Some(head) = answer.head.take() {
            answer.grpc_status = grpc_status(head.headers()).filter(|_| answer.down.is_done());
            match self.respond.send_response(head, answer.down.is_done()) {
                Ok(back) => answer.back = Some(back),
                Err(_) => return Err(Break::CallerGone(0)),
            }
        }
        poll_fn(|cx| self.poll_pass(cx, answer)).await
    }

    fn passed(&self, answer: Option<&Answer>) -> (u64, u64) {
        (self.up.bytes, answer.map_or(0, |answer| answer.down.bytes))
    }

    async fn conclude(&mut self, mut answer: Answer, _: Held, ended: Result<(), Break>) {
        match ended {
            Err(Break::CallerGone(_)) => {
                let code = answer.error.as_ref().and_then(h2::Error::reason);
                self.give_up(&mut answer.sent.stream, code);
            }
            Err(Break::Answer(reason)) => {
                let (Some(error), Some(back)) = (&answer.error, &mut answer.back) else { return };
                if error.is_reset() && error.is_remote() {
                    back.send_reset(error.reason().unwrap_or(Code::INTERNAL_ERROR));
                } else if self.kind != Kind::Grpc || answer::break_off_grpc(back, reason).is_err() {
                    back.send_reset(Code::INTERNAL_ERROR);
                }
            }
            Err(Break::TimedOut(elapsed)) => {
                let Some(back) = &mut answer.back else { return };
                if self.kind != Kind::Grpc || answer::break_off_grpc(back, elapsed.reason()).is_err() {
                    back.send_reset(Code::INTERNAL_ERROR);
                }
            }
            // (Streams end in order or not at all.)
            Ok(()) | Err(Break::End) => {}
        }
    }

    fn request(&self) -> impl govern::request::Request {
        self.call.asked(View(self.seen.as_ref().unwrap_or(&self.head)))
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        self.respond.poll_reset(cx).map(|code| {
            if code.is_ok() {
                self.caller.resets.count(Nanos::now());
            }
            Left::Gone
        })
    }

    fn authority(&self) -> &[u8] {
        let authority = self.head.uri.authority().map(|authority| authority.as_str().as_bytes());
        authority.or_else(|| Some(self.head.headers.get(HOST)?.as_bytes())).unwrap_or_default()
    }

    fn has_body(&self) -> bool {
        !self.up.is_done()
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    async fn make_up(&mut self, answer: &MadeUp) -> (u16, ()) {
        (self.send_made_up(answer), ())
    }

    /// What the endpoint said, the caller knows better than anyone what to make of.
    fn hand_on(&mut self) -> Option<(u16, ())> {
        self.respond.send_reset(self.reset?);
        Some((0, ()))
    }

    /// Callers that leave reset their streams.
    fn is_forsaken(&self) -> bool {
        false
    }

    fn leave(&mut self) {}
}

fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

pub(super) fn reason_of(error: &h2::Error) -> Reason {
    // What `h2` itself has found wrong is the endpoint's breach of the protocol.
    if error.is_library() { Reason::UpstreamProtocol } else { Reason::UpstreamReset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_map_is_edited_as_every_other_head() {
        let mut map = HeaderMap::new();
        for (name, value) in [("accept", "a"), ("x-twice", "1"), ("accept", "b"), ("x-twice", "2")] {
            map.append(name, HeaderValue::from_static(value));
        }
        edit::tests::behaves(&mut map);
    }
}
