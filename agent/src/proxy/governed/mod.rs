//! The way of a request through the rules, the same for HTTP/1 and HTTP/2.
//!
//! [`carry`] calls the stages in order. What moves bytes is an [`Exchange`], one for each protocol: it sends a request to
//! an endpoint, passes an answer on, or answers in an endpoint's place, and decides nothing.

mod call;

use std::net::SocketAddr;

use smallvec::SmallVec;

pub(crate) use self::call::Call;
use super::{
    choose::{self, Chosen},
    upstream::CONNECT_ATTEMPTS,
};
use crate::{
    clock::Nanos,
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
    async fn conclude(
        &mut self,
        answer: Self::Answer,
        chosen: Chosen,
        ended: Result<(), Break>,
    ) -> Self::Ended;

    /// Answers in the place of an endpoint. Returns the status that the caller got; 0 if it has gone.
    async fn make_up(&mut self, reason: Reason) -> (u16, Self::Ended);

    /// Gives the last attempt's failure to the caller in the protocol's own way, if it has one. Returns as [`make_up`].
    fn hand_on(&mut self) -> Option<(u16, Self::Ended)>;

    /// There is nobody to answer.
    fn leave(&mut self) -> Self::Ended;
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
}

/// Carries a request from its head to the end of its answer.
pub(crate) async fn carry<E: Exchange>(exchange: &mut E) -> E::Ended {
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
        let failure = match exchange.attempt(&chosen).await {
            Ok(answer) => return pass_on(exchange, answer, chosen).await,
            Err(failure) => failure,
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
            Failure::CallerGone => {
                note_passed(exchange, None);
                exchange.call().finish(0, Some(Reason::CallerClosed));
                return exchange.leave();
            }
        }
    }
}

/// An endpoint for the next attempt; `None` if all have been tried.
fn choose(call: &Call, tried: &[SocketAddr]) -> Result<Option<Chosen>, Reason> {
    let Call { worker, pod, known, tagging, .. } = call;
    choose::choose(worker, pod, &known.destination, tagging.tag.as_ref(), tried, Nanos::now())
}

async fn pass_on<E: Exchange>(exchange: &mut E, mut answer: E::Answer, chosen: Chosen) -> E::Ended {
    // While the request goes on the endpoint may have waited for it: that says nothing of the endpoint.
    if let Some(sent) = exchange.sent_at(&answer) {
        let now = Nanos::now();
        chosen.in_flight.observe(now.since(sent).0, now.0);
    }
    exchange.call().count_tags(chosen.tag_outcome());
    let status = E::status(&answer);
    let ended = exchange.pass_on(&mut answer).await;
    note_passed(exchange, Some(&answer));
    let call = exchange.call();
    match ended {
        Ok(()) => call.finish(status, None),
        Err(Break::CallerGone(got)) => call.finish(got, Some(Reason::CallerClosed)),
        Err(Break::Answer(reason)) => {
            call.complain(&chosen, reason);
            call.finish(status, Some(reason));
        }
        Err(Break::End) => call.finish(status, Some(Reason::UpstreamReset)),
    }
    exchange.conclude(answer, chosen, ended).await
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
async fn answer<E: Exchange>(exchange: &mut E, reason: Reason) -> E::Ended {
    let (status, ended) = exchange.make_up(reason).await;
    note_passed(exchange, None);
    let reason = if status == 0 { Reason::CallerClosed } else { reason };
    exchange.call().finish(status, Some(reason));
    ended
}

fn note_passed<E: Exchange>(exchange: &mut E, answer: Option<&E::Answer>) {
    let (up, down) = exchange.passed(answer);
    let record = &mut exchange.call().record;
    (record.request_bytes, record.response_bytes) = (up, down);
}
