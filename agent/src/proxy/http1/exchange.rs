//! One request and its answer: what [`governed`] asks of HTTP/1.

use std::task::{Context, Poll};

use bytes::BytesMut;
use http::header;
use tokio::io::AsyncWriteExt;

use super::{
    Refusal,
    attempt::Answer,
    body::Body,
    flow::Flow,
    mirror::Sender as MirrorSender,
    outgoing::{change_request, edit_request},
    request::{Method, Request},
    sending::Sending,
    view::View,
};
use crate::{
    clock::Nanos,
    govern::{self, fallback::stale::Collector, jwt::HeaderPlan},
    observe::{
        fault::{Fault, MessagePart, Sender},
        reason::Reason,
        trace::context,
    },
    proxy::{
        answer::{self, Cause, Kind, MadeUp},
        choose::Chosen,
        connection::Connection,
        governed::{self, Attempt, Break, Call, ClientClose, Failure},
        mirror::{self, Copy},
        pool,
        upstream::Opened,
    },
};

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
    Tunnel(Box<(Opened, Attempt, BytesMut)>),
}

/// Whether the caller has got an interim answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interim {
    None,
    /// One is being written. If that ends before it is whole, nothing else can be written behind it.
    Underway,
    PassedOn,
}

/// A request on its way, and where its caller is.
pub(super) struct Exchange<'e> {
    pub(super) connection: &'e mut Connection,
    pub(super) call: &'e mut Call,
    pub(super) request: &'e Request,
    pub(super) up: Sending,
    /// The head as rules see it, if it is sent otherwise.
    seen: Option<BytesMut>,
    /// What the caller has sent and is not yet passed on.
    pub(super) incoming: &'e mut BytesMut,
    pub(super) interim: Interim,
    /// The caller awaited permission to send its body and got an answer instead: it may send it or not.
    pub(super) unclear: bool,
}

/// Carries one exchange. `outgoing` is the head to be sent on; `incoming` is what the caller has sent behind its own. (What is
/// large is lent: whatever is given to a future is copied into it.)
pub(super) async fn exchange(
    connection: &mut Connection,
    call: &mut Call,
    request: &Request,
    incoming: &mut BytesMut,
    outgoing: BytesMut,
) -> Ended {
    let edits = &call.headers().request;
    let (seen, outgoing) = if edits.is_empty() {
        (None, outgoing)
    } else {
        let mut edited = connection.worker.buffers.take();
        let names = &connection.worker.options.tag_names;
        edit_request(&outgoing, edits, |name| names.is_listed(name), &mut edited);
        (Some(outgoing), edited)
    };
    let flow = match Flow::repeatable(outgoing, request.body, incoming, &call.pod) {
        Ok(flow) => flow,
        Err(bad) => {
            call.note_fault(Sender::Client, bad.fault());
            let cause = Cause::from(Reason::BadRequest).with(Some(bad.fault()));
            call.finish(cause.reason.status(), Some(cause.reason));
            return match super::refuse(connection, &cause).await {
                Refusal::Told => Ended::Linger,
                Refusal::Unheard => Ended::Broken,
            };
        }
    };
    connection.worker.buffers.give_if_empty(incoming);
    let up = Sending::new(flow);
    let mut exchange =
        Exchange { connection, call, request, up, seen, incoming, interim: Interim::None, unclear: false };
    let ended = governed::carry(&mut exchange).await;
    let Exchange { connection, up, seen, .. } = &mut exchange;
    up.flow.pressure.settle(&connection.stream);
    connection.worker.buffers.give(up.flow.take_head());
    if let Some(seen) = seen.take() {
        connection.worker.buffers.give(seen);
    }
    ended
}

impl Exchange<'_> {
    /// The caller has ended its side, and there is nothing behind this request.
    pub(super) fn is_last_of_caller(&self) -> bool {
        self.up.is_half_closed() && self.incoming.is_empty()
    }
}

impl governed::Exchange for Exchange<'_> {
    // In a box, as it is handed on often.
    type Answer = Box<Answer>;
    type Ended = Ended;

    const PROTOCOL: &'static str = "HTTP/1.1";

    fn call(&mut self) -> &mut Call {
        self.call
    }

    async fn attempt(&mut self, chosen: &Chosen) -> Result<Box<Answer>, Failure> {
        if let Some(sender) = self.call.record.sender() {
            self.up.flow.edit_head(|name, value| context::put(name, value, &sender));
        }
        self.send(chosen).await
    }

    fn status(answer: &Box<Answer>) -> u16 {
        answer.response.status
    }

    fn grpc_status(&self, _: &Box<Answer>) -> Option<u8> {
        None
    }

    fn headers(answer: &Box<Answer>) -> impl Iterator<Item = (&[u8], &[u8])> {
        View(answer.down.head()).lines()
    }

    fn show(answer: &mut Box<Answer>, collector: Collector) {
        answer.down.show(collector, &answer.upstream.incoming);
    }

    fn discard(&mut self, answer: Box<Answer>) {
        self.discard(*answer);
    }

    fn change_head(&mut self, plan: HeaderPlan) -> Result<(), Cause> {
        if plan.minds_trailers() && self.up.flow.forbid_trailers(self.incoming).is_err() {
            let fault = Fault::new(
                MessagePart::Chunk,
                "trailers, where a policy says what headers have a token or its claims",
            );
            self.call.note_fault(Sender::Client, fault);
            return Err(Cause::from(Reason::BadRequest).with(Some(fault)));
        }
        let buffers = &self.connection.worker.buffers;
        let mut changed = buffers.take();
        change_request(self.up.flow.head_alone(), &plan, &mut changed);
        self.up.flow.replace_head(&changed);
        if let Some(seen) = &mut self.seen {
            changed.clear();
            change_request(seen, &plan, &mut changed);
            std::mem::swap(seen, &mut changed);
        }
        buffers.give(changed);
        Ok(())
    }

    fn keep(&mut self) {
        self.up.flow.record(self.call.pod.kept.take_none(), self.incoming);
        self.call.worker.buffers.give_if_empty(self.incoming);
    }

    fn copy(&mut self) {
        let Connection { pod, original, options, .. } = &*self.connection;
        let Request { method, http10, upgrade, .. } = *self.request;
        let key = pool::Key { pod: pod.id, dialled: *original, options: *options };
        let sends = MirrorSender { method, http10, key };
        let entered = mirror::entered(self.call, &self.request());
        let head = self.up.flow.head_alone();
        let Some(copy) = Copy::begin(self.call, entered, sends, head, 0) else { return };
        if upgrade || method == Method::Connect {
            copy.refuse();
        } else {
            self.up.flow.copy(copy, self.incoming);
        }
    }

    fn is_tunnel(answer: &Box<Answer>) -> bool {
        answer.response.tunnel
    }

    fn sent_at(&self, _: &Box<Answer>) -> Option<Nanos> {
        self.up.flow.is_done().then_some(self.up.sent)
    }

    fn can_repeat(&self) -> bool {
        self.interim != Interim::Underway && self.up.flow.is_repeatable()
    }

    fn repeat(&mut self) {
        self.up.repeat();
    }

    async fn pass_on(&mut self, answer: &mut Box<Answer>) -> Result<(), Break> {
        self.pass_on(answer).await
    }

    fn passed(&self, answer: Option<&Box<Answer>>) -> (u64, u64) {
        (self.up.flow.body_bytes, answer.map_or(0, |answer| answer.down.body_bytes))
    }

    async fn conclude(
        &mut self,
        answer: Box<Answer>,
        attempt: Box<Attempt>,
        ended: Result<(), Break>,
    ) -> Ended {
        self.conclude(answer, attempt, ended).await
    }

    fn request(&self) -> impl govern::request::Request {
        self.call.asked(View(self.seen.as_deref().unwrap_or(self.up.flow.head())))
    }

    fn poll_client_close(&mut self, cx: &mut Context<'_>) -> Poll<ClientClose> {
        let (mut reads, _) = self.connection.stream.split();
        let presence = &mut self.connection.presence;
        match self.up.watch(cx, &mut reads, self.incoming, &self.call.worker.buffers) {
            Err(_) => Poll::Ready(ClientClose::Gone),
            Ok(()) if self.up.is_half_closed() && presence.poll_gone(cx).is_ready() => {
                Poll::Ready(ClientClose::Gone)
            }
            Ok(()) if self.up.is_half_closed() => Poll::Ready(ClientClose::Ended),
            Ok(()) => Poll::Pending,
        }
    }

    fn authority(&self) -> &[u8] {
        View(self.up.flow.head()).find(&header::HOST).unwrap_or_default()
    }

    fn has_body(&self) -> bool {
        self.request.body != Body::EMPTY
    }

    fn kind(&self) -> Kind {
        if self.request.method == Method::Head { Kind::Head } else { Kind::Http }
    }

    async fn make_up(&mut self, answer: &MadeUp) -> (u16, Ended) {
        if self.interim == Interim::Underway {
            return (0, Ended::Broken);
        }
        // With its body behind it, the caller's next request could not be told from it.
        let keep =
            self.request.keep_alive && self.up.flow.is_taken() && !self.is_last_of_caller() && !answer.closes;
        let mut head = self.connection.worker.buffers.take();
        answer::http1(answer, keep, &mut head);
        let written = self.connection.stream.write_all(&head).await;
        self.connection.worker.buffers.give(head);
        if written.is_err() {
            return (0, Ended::Broken);
        }
        (answer.status, if keep { Ended::Keep } else { Ended::Linger })
    }

    fn hand_on(&mut self) -> Option<(u16, Ended)> {
        None
    }

    fn is_forsaken(&self) -> bool {
        self.up.has_told_end()
    }

    fn leave(&mut self) -> Ended {
        if self.is_forsaken() { Ended::Close } else { Ended::Broken }
    }
}
