//! What [`governed`] asks of HTTP/2: an attempt, and what becomes of both bodies once its answer's head has come.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use super::{
    answer,
    attempt::{Sent, give_up},
    engine::{handle::Broken, message::Response, writer::Pseudo},
    exchange::{Exchange, reason_of},
    frame::Code,
    mirror::Sender as MirrorSender,
    pipe::{Cut, Pipe, number},
    view::View,
};
use crate::{
    clock::Nanos,
    govern::{self, edit, fallback::stale::Collector, jwt::HeaderPlan},
    observe::{fault::Sender, reason::Reason, trace::context},
    proxy::{
        answer::{Cause, Kind, MadeUp},
        choose::Chosen,
        governed::{self, Attempt, AttemptDeadline, Break, Call, ClientClose, Failure, Idle},
        mirror::{self, Copy},
        timer::Timers,
    },
};

/// An answer whose head has come.
pub(super) struct Answer {
    sent: Sent,
    /// Until it has been passed on.
    head: Option<Response>,
    status: u16,
    /// Of an answer that has ended with its head.
    grpc_status: Option<u8>,
    down: Pipe,
    /// What broke it off.
    error: Option<Broken>,
    /// What follows is another protocol.
    tunnel: bool,
}

impl governed::Exchange for Exchange {
    type Answer = Answer;
    type Ended = ();

    const PROTOCOL: &'static str = "HTTP/2";

    fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    async fn attempt(&mut self, chosen: &Chosen) -> Result<Answer, Failure> {
        if let Some(sender) = self.call.record.sender() {
            self.head.edit(|name, value| context::put(name, value, &sender));
        }
        let (sent, mut response) = self.send(chosen).await?;
        for edits in self.call.response_edits() {
            edit::modify(&mut response.fields, edits, |_| false);
        }
        let status = response.status;
        let down = Pipe::new(&sent.stream);
        let tunnel = self.facts.connect && (200..300).contains(&status);
        Ok(Answer { sent, head: Some(response), status, grpc_status: None, down, error: None, tunnel })
    }

    fn status(answer: &Answer) -> u16 {
        answer.status
    }

    fn grpc_status(&self, answer: &Answer) -> Option<u8> {
        if !self.facts.grpc {
            return None;
        }
        match &answer.head {
            // With the head only if there is nothing else: an answer that goes on has not said its last word.
            Some(head) if answer.down.is_done() => head.fields.get(b"grpc-status").and_then(number),
            _ => answer.grpc_status.or_else(|| answer.down.grpc_status()),
        }
    }

    fn headers(answer: &Answer) -> impl Iterator<Item = (&[u8], &[u8])> {
        let fields = answer.head.iter().flat_map(|head| head.fields.iter());
        fields.filter(|field| field.name.first() != Some(&b':')).map(|field| (field.name, field.value))
    }

    fn show(answer: &mut Answer, collector: Collector) {
        answer.down.show(collector);
    }

    fn discard(&mut self, answer: Answer) {
        answer.sent.stream.reset(Code::CANCEL);
    }

    fn change_head(&mut self, plan: HeaderPlan) -> Result<(), Cause> {
        for head in std::iter::once(&mut self.head).chain(&mut self.seen) {
            head.remove(|name| plan.removes(name));
            for (name, value) in &plan.set {
                head.add(name.as_str().as_bytes(), value.as_bytes());
            }
        }
        self.up.without_trailers(plan);
        Ok(())
    }

    /// It is kept in any case.
    fn keep(&mut self) {}

    fn copy(&mut self) {
        let sends = MirrorSender { head: Rc::new(self.head.clone()), bodiless: self.facts.head };
        let entered = mirror::entered(&self.call, &self.request());
        let beside = self.head.held();
        let Some(copy) = Copy::begin(&mut self.call, entered, sends, &[], beside) else { return };
        if self.facts.connect || self.facts.protocol {
            copy.refuse();
        } else {
            self.up.copy(copy);
        }
    }

    fn is_tunnel(answer: &Answer) -> bool {
        answer.tunnel
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
        poll_fn(|cx| self.poll_pass(cx, answer)).await
    }

    fn passed(&self, answer: Option<&Answer>) -> (u64, u64) {
        (self.up.bytes, answer.map_or(0, |answer| answer.down.bytes))
    }

    async fn conclude(&mut self, mut answer: Answer, attempt: Box<Attempt>, ended: Result<(), Break>) {
        match ended {
            // Boxed, for they are rare, and every request's task would carry their state.
            Ok(()) if answer.tunnel => Box::pin(self.carry_tunnel(&mut answer, attempt)).await,
            Ok(()) if !self.up.is_done() && !answer.sent.is_deaf() => {
                Box::pin(self.send_rest(&mut answer.sent)).await;
            }
            ended => self.leave_streams(&answer, ended),
        }
    }

    fn request(&self) -> impl govern::request::Request {
        self.call.asked(View(self.seen.as_ref().unwrap_or(&self.head)))
    }

    fn poll_client_close(&mut self, cx: &mut Context<'_>) -> Poll<ClientClose> {
        self.stream.poll_broken(cx).map(|_| ClientClose::Gone)
    }

    fn authority(&self) -> &[u8] {
        View(&self.head).authority_of()
    }

    fn has_body(&self) -> bool {
        !self.up.is_done()
    }

    fn kind(&self) -> Kind {
        if self.facts.grpc {
            Kind::Grpc
        } else if self.facts.head {
            Kind::Head
        } else {
            Kind::Http
        }
    }

    async fn make_up(&mut self, made_up: &MadeUp) -> (u16, ()) {
        match answer::send(&self.stream, made_up).await {
            Ok(()) => (made_up.status, ()),
            Err(_) => (0, ()),
        }
    }

    /// What the endpoint said, the caller knows better than anyone what to make of.
    fn hand_on(&mut self) -> Option<(u16, ())> {
        self.stream.reset(self.reset?);
        Some((0, ()))
    }

    /// Callers that leave reset their streams.
    fn is_forsaken(&self) -> bool {
        false
    }

    fn leave(&mut self) {}
}

impl Exchange {
    fn poll_pass(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), Break>> {
        if answer.head.is_some() {
            if let Err(gone) = ready!(self.poll_head(cx, answer)) {
                answer.error = Some(gone);
                return Poll::Ready(Err(Break::CallerGone(0)));
            }
            if answer.tunnel {
                return Poll::Ready(Ok(()));
            }
        }
        let passed = self.poll_both(cx, answer);
        if let Some(idle) = &self.call.idle {
            idle.note(self.up.bytes + answer.down.bytes);
        }
        passed
    }

    /// Passes the answer's head on. Meanwhile the request goes on.
    fn poll_head(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), Broken>> {
        if let Poll::Ready(broken) = self.stream.poll_broken(cx) {
            return Poll::Ready(Err(broken));
        }
        if let Poll::Ready(Err(broken)) = self.poll_up(cx, &mut answer.sent) {
            return Poll::Ready(Err(broken));
        }
        ready!(self.stream.poll_room_for_head(cx))?;
        let Some(head) = answer.head.take() else { return Poll::Ready(Ok(())) };
        let ends = answer.down.is_done();
        if ends {
            answer.grpc_status = head.fields.get(b"grpc-status").and_then(number);
        }
        let passed = self.stream.send_head(&Pseudo::Within, &head.fields, ends);
        answer.sent.stream.give_back(head.fields);
        if passed {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(self.stream.broken().unwrap_or(Broken::Dropped)))
    }

    /// Moves both bodies until that of the answer has come to its end.
    fn poll_both(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), Break>> {
        let Answer { sent, status, down, error, .. } = answer;
        match down.poll(cx, &sent.stream, &self.stream) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Cut::From(broken))) => {
                *error = Some(broken);
                if let Some(fault) = broken.fault() {
                    self.call.note_fault(Sender::Upstream, fault);
                }
                return Poll::Ready(Err(Break::Answer(reason_of(broken))));
            }
            Poll::Ready(Err(Cut::To(gone))) => {
                *error = Some(gone);
                return Poll::Ready(Err(Break::CallerGone(*status)));
            }
            Poll::Pending => {}
        }
        let gone = match self.poll_up(cx, sent) {
            Poll::Ready(Err(gone)) => Poll::Ready(gone),
            _ => self.stream.poll_broken(cx),
        };
        gone.map(|gone| {
            *error = Some(gone);
            Err(Break::CallerGone(*status))
        })
    }

    /// The answer is complete and the request is not. As long as the endpoint takes the rest of it, it gets it, as it would
    /// without Sluice.
    async fn send_rest(&mut self, sent: &mut Sent) {
        let ended = poll_fn(|cx| {
            if let Poll::Ready(broken) = self.stream.poll_broken(cx) {
                return Poll::Ready(Err(Cut::From(broken)));
            }
            if let Poll::Ready(broken) = sent.stream.poll_broken(cx) {
                return Poll::Ready(Err(Cut::To(broken)));
            }
            self.up.poll(cx, &self.stream, &sent.stream)
        });
        match ended.await {
            Ok(()) => {}
            Err(Cut::From(gone)) => give_up(&sent.stream, gone),
            // It has no use for the rest, and says so with NO_ERROR (RFC 9113, section 8.1), or otherwise.
            Err(Cut::To(broken)) => self.stream.reset(broken.code().unwrap_or(Code::NO_ERROR)),
        }
    }

    /// Both sides speak another protocol, within the streams: bytes go both ways until both have ended.
    async fn carry_tunnel(&mut self, answer: &mut Answer, attempt: Box<Attempt>) {
        let _busy = self.call.worker.busy_tunnel();
        let destination = self.call.resolved.destination.clone();
        let active = {
            let mut series = self.call.resolved.series();
            series.lane(attempt.chosen.endpoint().tag.as_ref()).begin_tunnel()
        };
        let until = AttemptDeadline::drained(destination.service.governor.policy().drain);
        let idle = Idle::begin(attempt.timeouts());
        let (mut up, mut down) = (0, 0);
        let both = poll_fn(|cx| {
            let ended = match self.poll_both(cx, answer) {
                Poll::Ready(Ok(())) if answer.sent.is_deaf() || self.up.is_done() => Poll::Ready(Ok(())),
                // The endpoint has ended its side; the caller may have more to say.
                Poll::Ready(Ok(())) => match self.poll_up(cx, &mut answer.sent) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                    Poll::Ready(Err(gone)) => {
                        answer.error = Some(gone);
                        Poll::Ready(Err(Break::CallerGone(answer.status)))
                    }
                    Poll::Pending => self.stream.poll_broken(cx).map(|gone| {
                        answer.error = Some(gone);
                        Err(Break::CallerGone(answer.status))
                    }),
                },
                other => other,
            };
            let (sent, got) = (self.up.bytes, answer.down.bytes);
            active.series().add_request_bytes(sent - std::mem::replace(&mut up, sent));
            active.series().add_response_bytes(got - std::mem::replace(&mut down, got));
            if let Some(idle) = &idle {
                idle.note(sent + got);
            }
            ended
        });
        let timers = Timers::default();
        let ended = until.wait_stream(&timers, attempt.chosen.endpoint(), idle.as_ref(), pin!(both)).await;
        governed::note_tunnel(&self.call.resolved.numbers, until, idle.as_ref(), attempt.chosen.endpoint());
        let ended = ended.unwrap_or_else(|elapsed| Err(Break::TimedOut(elapsed)));
        active.finish(match ended {
            Ok(()) => None,
            Err(Break::CallerGone(_)) => Some(Reason::ClientClosed),
            Err(Break::Answer(reason)) => Some(reason),
            Err(Break::End) => Some(Reason::UpstreamReset),
            Err(Break::TimedOut(elapsed)) => Some(elapsed.reason()),
        });
        self.leave_streams(answer, ended);
    }

    /// Both streams end as their other one has.
    fn leave_streams(&mut self, answer: &Answer, ended: Result<(), Break>) {
        match ended {
            Err(Break::CallerGone(_)) => {
                give_up(&answer.sent.stream, answer.error.unwrap_or(Broken::Lost));
            }
            Err(Break::Answer(reason)) => match answer.error.and_then(Broken::code) {
                Some(code) => self.stream.reset(code),
                None => self.break_off(reason),
            },
            Err(Break::TimedOut(elapsed)) => self.break_off(elapsed.reason()),
            // (Streams end in order or not at all.)
            Ok(()) | Err(Break::End) => {}
        }
    }
}
