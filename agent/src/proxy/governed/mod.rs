//! The way of a request through the rules, the same for HTTP/1 and HTTP/2.
//!
//! [`carry`] calls the stages in order. What moves bytes is an [`Exchange`], one for each protocol: it sends a request to
//! an endpoint, passes an answer on, or answers in an endpoint's place, and decides nothing.

mod admit;
mod call;
mod deadline;

use std::{
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use smallvec::SmallVec;

use self::{
    admit::Stop,
    deadline::{Deadline, Elapsed, Until},
};
pub(crate) use self::{
    admit::{Left, acquire},
    call::Call,
};
use super::{
    answer::{Cause, Kind, MadeUp},
    choose::{self, Chosen},
    upstream::CONNECT_ATTEMPTS,
};
use crate::{
    clock::Nanos,
    govern::{concurrency::Permit, governor::Governor, request::Request},
    observe::{
        metrics::{RetryCause, TagOutcome},
        reason::Reason,
    },
};

/// A request and its answer, as their protocol moves them.
pub(crate) trait Exchange {
    /// An answer of an endpoint whose head is there, and the way to the rest of it.
    type Answer;
    /// What the caller's connection is told at the end.
    type Ended;

    fn call(&mut self) -> &mut Call;

    /// Sends the request to an endpoint and waits for the head of its answer, which is not passed on yet (those of interim
    /// answers are).
    async fn attempt(&mut self, chosen: &Chosen) -> Result<Self::Answer, Failure>;

    fn status(answer: &Self::Answer) -> u16;

    /// What follows the head is another protocol.
    fn is_tunnel(answer: &Self::Answer) -> bool;

    /// When the endpoint had been given the whole request; `None` if it has not.
    fn sent_at(&self, answer: &Self::Answer) -> Option<Nanos>;

    /// Everything that was sent can be sent again, and the caller has heard nothing yet.
    fn can_repeat(&self) -> bool;

    /// The next attempt begins with the beginning.
    fn repeat(&mut self);

    /// Passes the answer on, to its end.
    async fn pass_on(&mut self, answer: &mut Self::Answer) -> Result<(), Break>;

    /// Bytes of bodies that have been passed on, of the request and of the answer.
    fn passed(&self, answer: Option<&Self::Answer>) -> (u64, u64);

    /// The answer has ended, and how: leaves both connections as they should be.
    async fn conclude(&mut self, answer: Self::Answer, held: Held, ended: Result<(), Break>) -> Self::Ended;

    /// Answers in the place of an endpoint. Returns the status that the caller got; 0 if it has gone.
    async fn make_up(&mut self, answer: &MadeUp) -> (u16, Self::Ended);

    /// The request as rules see it, for as long as it can be sent again.
    fn request(&self) -> impl Request;

    /// Whether the caller leaves, while its request is not yet sent.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Left>;

    /// What the caller understands.
    fn kind(&self) -> Kind;

    /// Gives the last attempt's failure to the caller in the protocol's own way, if it has one. Returns as [`make_up`].
    fn hand_on(&mut self) -> Option<(u16, Self::Ended)>;

    /// There is nobody to answer.
    fn leave(&mut self) -> Self::Ended;
}

/// What a request holds as long as it lasts, or the tunnel that it becomes.
pub(crate) struct Held {
    pub(crate) chosen: Chosen,
    /// Its place among the requests in flight, if they are limited.
    pub(crate) permit: Option<Permit>,
}

/// Why an attempt brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint cannot be connected to.
    Connect,
    /// The endpoint said that it has not processed the request, and will not.
    Refused,
    /// The way to the endpoint broke, or what came back is no answer.
    Broken(Reason),
    /// The request cannot be sent on.
    Unfit(Reason),
    CallerGone,
    TimedOut(Elapsed),
}

/// Why an answer that had begun did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Having got this status, or 0 for none.
    CallerGone(u16),
    /// The endpoint's connection broke, or what came over it was not valid.
    Answer(Reason),
    /// The endpoint's connection ended in order, but too early.
    End,
    /// Its time was over.
    TimedOut,
}

/// Carries a request from its head to the end of its answer.
pub(crate) async fn carry<E: Exchange>(exchange: &mut E) -> E::Ended {
    let destination = Rc::clone(&exchange.call().known.destination);
    let governor = &*destination.service.governor;
    let deadline = Deadline::begin(governor.policy().timeouts, exchange.kind(), &exchange.request());
    let mut permit = match admit::admit(exchange, governor, deadline).await {
        Ok(permit) => permit,
        Err(stop) => return stopped(exchange, governor, stop).await,
    };
    let mut tried = SmallVec::<[SocketAddr; CONNECT_ATTEMPTS]>::new();
    let mut unconnected = 0;
    let mut refused = false;
    loop {
        let chosen = match choose(exchange.call(), &tried) {
            Ok(Some(chosen)) if unconnected < CONNECT_ATTEMPTS => chosen,
            Ok(_) => return answer(exchange, Reason::UpstreamConnect).await,
            Err(reason) => {
                exchange.call().count_tags(Some(TagOutcome::Refused));
                return answer(exchange, reason).await;
            }
        };
        if unconnected > 0 {
            exchange.call().retried(RetryCause::ConnectRefused);
        }
        exchange.call().chosen(&chosen);
        let until = deadline.attempt();
        let attempted = until.wait(pin!(exchange.attempt(&chosen))).await;
        let failure = match attempted {
            Ok(Ok(answer)) => {
                let held = Held { chosen, permit: permit.take() };
                return pass_on(exchange, answer, held, until).await;
            }
            Ok(Err(failure)) => failure,
            Err(elapsed) => Failure::TimedOut(elapsed),
        };
        match failure {
            Failure::Connect => {
                tried.push(chosen.address());
                unconnected += 1;
            }
            // Once, and on another endpoint: if there is none, the caller hears what this one said.
            Failure::Refused if !refused && exchange.can_repeat() => {
                refused = true;
                tried.push(chosen.address());
                if !matches!(choose(exchange.call(), &tried), Ok(Some(_))) {
                    return fail(exchange, &chosen, Reason::UpstreamReset).await;
                }
                exchange.call().retried(RetryCause::StreamRefused);
                exchange.repeat();
            }
            Failure::Refused => return fail(exchange, &chosen, Reason::UpstreamReset).await,
            Failure::Broken(reason) => return fail(exchange, &chosen, reason).await,
            Failure::Unfit(reason) => return answer(exchange, reason).await,
            Failure::TimedOut(elapsed) => {
                let call = exchange.call();
                call.complain(&chosen, Reason::Timeout);
                call.count_tags(chosen.tag_outcome());
                return answer(exchange, elapsed.cause(governor)).await;
            }
            Failure::CallerGone => {
                note_passed(exchange, None);
                exchange.call().finish(0, Some(Reason::CallerClosed));
                return exchange.leave();
            }
        }
    }
}

/// The request is not made.
async fn stopped<E: Exchange>(exchange: &mut E, governor: &Governor, stop: Stop) -> E::Ended {
    let cause = match stop {
        Stop::CallerGone => {
            exchange.call().finish(0, Some(Reason::CallerClosed));
            return exchange.leave();
        }
        Stop::Refused(cause) => cause,
        Stop::TimedOut(elapsed) => elapsed.cause(governor),
    };
    exchange.call().count_tags(None);
    answer(exchange, cause).await
}

/// An endpoint for the next attempt; `None` if all have been tried.
fn choose(call: &Call, tried: &[SocketAddr]) -> Result<Option<Chosen>, Reason> {
    let Call { worker, pod, known, tagging, .. } = call;
    choose::choose(worker, pod, &known.destination, tagging.tag.as_ref(), tried, Nanos::now())
}

async fn pass_on<E: Exchange>(
    exchange: &mut E,
    mut answer: E::Answer,
    mut held: Held,
    until: Until,
) -> E::Ended {
    // While the request goes on the endpoint may have waited for it: that says nothing of the endpoint.
    let latency = exchange.sent_at(&answer).map(|sent| {
        let now = Nanos::now();
        let latency = now.since(sent).0;
        held.chosen.in_flight.observe(latency, now.0);
        latency
    });
    exchange.call().count_tags(held.chosen.tag_outcome());
    let status = E::status(&answer);
    let ended = until.wait(pin!(exchange.pass_on(&mut answer))).await.unwrap_or(Err(Break::TimedOut));
    note_passed(exchange, Some(&answer));
    let call = exchange.call();
    match ended {
        Ok(()) => call.finish(status, None),
        Err(Break::CallerGone(got)) => call.finish(got, Some(Reason::CallerClosed)),
        Err(Break::Answer(reason)) => {
            call.complain(&held.chosen, reason);
            call.finish(status, Some(reason));
        }
        Err(Break::End) => call.finish(status, Some(Reason::UpstreamReset)),
        Err(Break::TimedOut) => {
            call.complain(&held.chosen, Reason::Timeout);
            call.finish(status, Some(Reason::Timeout));
        }
    }
    if let (Some(latency), Some(permit)) = (latency, held.permit.take_if(|_| !E::is_tunnel(&answer))) {
        permit.complete(latency, Nanos::now().0, ended.is_err() || status >= 500);
    }
    exchange.conclude(answer, held, ended).await
}

/// The endpoint did not answer.
async fn fail<E: Exchange>(exchange: &mut E, chosen: &Chosen, reason: Reason) -> E::Ended {
    let call = exchange.call();
    call.complain(chosen, reason);
    call.count_tags(chosen.tag_outcome());
    match exchange.hand_on() {
        Some((status, ended)) => {
            note_passed(exchange, None);
            exchange.call().finish(status, Some(reason));
            ended
        }
        None => answer(exchange, reason).await,
    }
}

/// Answers in the place of an endpoint.
async fn answer<E: Exchange>(exchange: &mut E, cause: impl Into<Cause>) -> E::Ended {
    let cause = cause.into();
    let answer = MadeUp::of(&cause, exchange.kind());
    let (status, ended) = exchange.make_up(&answer).await;
    note_passed(exchange, None);
    let reason = if status == 0 { Reason::CallerClosed } else { cause.reason };
    exchange.call().finish(status, Some(reason));
    ended
}

fn note_passed<E: Exchange>(exchange: &mut E, answer: Option<&E::Answer>) {
    let (up, down) = exchange.passed(answer);
    let record = &mut exchange.call().record;
    (record.request_bytes, record.response_bytes) = (up, down);
}
