//! A stream on its way: what is known of it, and how it ends where no endpoint has answered. [`begin`](super::begin) makes it of a
//! request, [`attempt`](super::attempt) sends that, and [`carry`](super::carry) passes on what comes of it.

use std::future::Future;

use super::{
    answer,
    engine::{
        core::Unfit,
        fields::Fields,
        handle::{Broken, Handle},
        limits::TOO_LARGE,
        message::{Facts, Malformed},
    },
    frame::Code,
    pipe::Pipe,
};
use crate::{
    observe::{
        fault::{Fault, MessagePart, Sender},
        reason::Reason,
    },
    proxy::{
        answer::{Cause, MadeUp},
        governed::{self, Call},
        share::Taken,
    },
};

/// A stream on its way.
pub(super) struct Exchange {
    pub(super) call: Call,
    pub(super) head: Fields,
    /// The head as rules see it, if it is sent otherwise.
    pub(super) seen: Option<Fields>,
    pub(super) facts: Facts,
    pub(super) idempotent: bool,
    pub(super) up: Pipe,
    /// The caller's.
    pub(super) stream: Handle,
    /// With what an endpoint reset the last attempt, should the caller have to be told.
    pub(super) reset: Option<Code>,
}

impl Exchange {
    /// Carries the stream to its end, holding its place in the pod's budget until the last of it has left.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps room for `self` twice, and tasks are moved when they are spawned"
    )]
    pub(super) fn run(mut self, place: Taken) -> impl Future<Output = ()> {
        async move {
            governed::carry(&mut self).await;
            self.stream.give_back(std::mem::take(&mut self.head));
            self.stream.core().borrow_mut().depart(place);
        }
    }

    /// The request is answered at once, and goes nowhere.
    pub(super) fn refuse(&mut self, cause: impl Into<Cause>) {
        let cause = cause.into();
        let reason = cause.reason;
        let answer = MadeUp::of(&cause, governed::Exchange::kind(self));
        let (status, reason) = if answer::send_at_once(&self.stream, &answer) {
            (answer.status, reason)
        } else {
            // A caller that takes no answers is told so in the protocol's own way.
            self.stream.reset(Code::REFUSED_STREAM);
            (0, reason)
        };
        self.call.finish(status, Some(reason));
    }

    fn refuse_faulty(&mut self, reason: Reason, part: MessagePart, what: &'static str) {
        let fault = Fault::new(part, what);
        self.call.note_fault(Sender::Client, fault);
        self.refuse(Cause::from(reason).with(Some(fault)));
    }

    /// What came is no request that could be passed on.
    pub(super) fn refuse_unfit(&mut self, unfit: Unfit) {
        self.call.worker.complain(|| {
            tracing::info!(
                pod = %self.call.pod.name(), service = %self.call.service(), "rejected a request: {unfit}",
            );
        });
        match unfit {
            Unfit::TooLarge => {
                self.refuse_faulty(Reason::HeaderTooLarge, MessagePart::Size, TOO_LARGE);
            }
            Unfit::Malformed(Malformed(what)) => {
                self.refuse_faulty(Reason::BadRequest, MessagePart::Header, what);
                // With or without an answer it is an error of the stream (RFC 9113, section 8.1.1).
                self.stream.condemn(Code::PROTOCOL_ERROR);
            }
        }
    }

    /// The answer has begun, and goes no further.
    pub(super) fn break_off(&mut self, reason: Reason) {
        if !(self.facts.grpc && answer::break_off_grpc(&self.stream, reason)) {
            self.stream.reset(Code::INTERNAL_ERROR);
        }
    }
}

pub(super) fn reason_of(broken: Broken) -> Reason {
    if broken.fault().is_some() { Reason::UpstreamProtocol } else { Reason::UpstreamReset }
}
