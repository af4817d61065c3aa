//! Asking endpoints for a response: one after the other, until one has given what can be passed on, or the request has failed.

use std::{pin::pin, time::Duration};

use super::{
    admit::Admitted,
    again::Tried,
    attempt::{Attempt, Purpose, ask_breaker},
    deadline::{AttemptDeadline, Elapsed, RequestDeadline},
    exchange::{Exchange, Failure},
    note::note_overdue,
    outside,
    rules::Rules,
    shed,
    stand_in::{Failed, Instead, find},
};
use crate::{
    clock::Nanos,
    govern::{
        concurrency::Permit,
        governor::Governor,
        outcome::{ErrorKind, Outcome},
        policy::FallbackOn,
        retry, warmup,
    },
    observe::{
        metrics::{RetryCause, TagOutcome},
        reason::Reason,
    },
    proxy::{answer::Cause, choose, upstream::CONNECT_ATTEMPTS},
};

/// A response that is to be passed on: its head is there.
pub(super) struct Answered<A> {
    pub(super) answer: A,
    // In a box, as it is handed on often.
    pub(super) attempt: Box<Attempt>,
    /// The request's place among those in flight, if they are limited.
    pub(super) place: Option<Permit>,
}

/// What follows an attempt whose response is not passed on.
enum Next {
    /// The policy wants the request sent again after this, which is paid for.
    Again(retry::Failure),
    /// The endpoint has not processed it. Others are asked at once.
    Elsewhere,
    End(Instead),
}

/// Asks endpoints. What is returned in the place of a response holds nothing any more: no place among the requests in flight, no
/// endpoint, no breaker.
pub(super) async fn ask<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    deadline: &RequestDeadline,
    admitted: Admitted,
) -> Result<Answered<E::Answer>, Instead> {
    let Admitted { mut place, at, queued } = admitted;
    let timers = exchange.call().worker.clone();
    let mut tried = Tried::default();
    let mut first = Some(at);
    loop {
        let now = first.take().unwrap_or_else(Nanos::now);
        let mut attempt = begin(exchange, rules.governor, &mut tried, now).map_err(Instead::fail)?;
        let until = deadline.attempt(now);
        let responded = {
            let responding = pin!(exchange.attempt(&attempt.chosen));
            until.wait(&timers.timers, attempt.chosen.endpoint(), responding).await
        };
        if queued && let Some(most) = rules.throttles().longest_wait() {
            note_patience(exchange, rules.governor, &responded, most);
        }
        let next = match responded {
            Ok(Ok(answer)) => {
                let Some(next) = heard(exchange, rules, &tried, &mut attempt, (&answer, &mut place)) else {
                    return Ok(Answered { answer, attempt, place });
                };
                exchange.discard(answer);
                next
            }
            Ok(Err(failure)) => {
                failed(exchange, rules, &mut tried, &mut attempt, (failure, until, &mut place))
            }
            Err(elapsed) => {
                let failure = Failure::TimedOut(elapsed);
                failed(exchange, rules, &mut tried, &mut attempt, (failure, until, &mut place))
            }
        };
        match next {
            Next::Elsewhere => {}
            Next::Again(failure) => {
                let failed = attempt.chosen.place();
                drop(attempt);
                match tried.begin_again(exchange, rules.governor, failure, failed, *deadline).await {
                    Ok(true) => {}
                    Ok(false) => return Err(Instead::Leave),
                    Err(elapsed) => return Err(Instead::fail(timed_out(exchange, rules, elapsed))),
                }
            }
            Next::End(instead) => return Err(instead),
        }
    }
}

/// Chooses an endpoint, and gets the permit to ask it.
fn begin<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    tried: &mut Tried,
    now: Nanos,
) -> Result<Box<Attempt>, Failed> {
    let destination = exchange.call().resolved.destination.clone();
    let service = &*destination.service;
    let policy = governor.policy();
    let call = exchange.call();
    let chosen = match tried.choose(call, now) {
        Ok(Some(chosen)) if tried.unconnected < CONNECT_ATTEMPTS => chosen,
        Ok(_) => {
            call.count_tags(None);
            return Err(Failed::new(Reason::UpstreamConnect, FallbackOn::ConnectFailure));
        }
        Err(refusal) => {
            call.count_tags(Some(TagOutcome::Rejected));
            let lanes = choose::lanes_instead(service, call.tagging.tag.as_ref(), refusal);
            let cause = Cause::from(choose::reason_of(refusal)).because(lanes);
            return Err(Failed::new(cause, FallbackOn::NoEndpoint));
        }
    };
    let lane = chosen.endpoint().tag.as_ref();
    let permit =
        ask_breaker(service, governor, &call.pod, lane, &call.resolved.numbers, now).map_err(|open| {
            call.count_tags(chosen.tag_outcome());
            Failed::open(governor, open)
        })?;
    if tried.is_after_refused_connection() {
        call.retried(RetryCause::ConnectFailure);
    }
    if chosen.panic {
        call.resolved.numbers.panicked();
    }
    if chosen.yields {
        call.resolved.numbers.warm_up_yielded();
    }
    call.chosen(&chosen);
    call.times = call.timeouts(policy.timeouts);
    if let Some(warmup) = &policy.load_balancer.warmup {
        warmup::note_request(Some(warmup), chosen.endpoint(), &exchange.request(), now.0);
    }
    if exchange.call().pod.arrival.is_some() {
        outside::note_passed_on(exchange, now);
    }
    let parties = exchange.call().parties();
    Ok(Box::new(Attempt::begin(chosen, parties, Purpose::Request, permit, now)))
}

/// The head of a response is there. `None`: it is to be passed on.
fn heard<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    tried: &Tried,
    attempt: &mut Attempt,
    (answer, place): (&E::Answer, &mut Option<Permit>),
) -> Option<Next> {
    let now = Nanos::now();
    let (status, grpc) = (E::status(answer), exchange.grpc_status(answer));
    let outcome = Outcome::of_answer(&rules.governor.policy().errors, status, grpc);
    let wall = || exchange.call().worker.wall_clock(now);
    let ending = shed::ending(status, grpc, outcome, E::headers(answer), wall);
    attempt.answered(exchange.sent_at(answer), ending, now);
    exchange.call().record.timing.heard(now);
    let failure = retry::Failure::of_answer(status, grpc);
    if (status >= 429 || grpc.is_some()) && tried.may_retry(exchange, rules.governor, failure) {
        attempt.settle(Some(outcome), Nanos::now());
        exchange.call().record.attempted(status, grpc, None);
        return Some(Next::Again(failure));
    }
    let cause = Cause::from(Reason::UpstreamError);
    let fallback = find(exchange, rules, FallbackOn::of_outcome(outcome)?, &cause)?;
    let (call, now) = (exchange.call(), Nanos::now());
    attempt.settle(Some(outcome), now);
    call.record.attempted(status, grpc, None);
    call.count_tags(attempt.chosen.tag_outcome());
    attempt.release(place.take(), true, now);
    Some(Next::End(Instead::give(fallback, cause)))
}

/// There is no response.
fn failed<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    tried: &mut Tried,
    attempt: &mut Attempt,
    (failure, until, place): (Failure, AttemptDeadline, &mut Option<Permit>),
) -> Next {
    let ended = Nanos::now();
    let call = exchange.call();
    call.record.timing.heard(ended);
    call.record.attempted(0, None, Some(failure.reason()));
    if failure == Failure::Broken(Reason::UpstreamReset) && exchange.is_forsaken() {
        return Next::End(forsaken(exchange, rules, attempt, place));
    }
    note_overdue(exchange, attempt, until);
    let kind = failure.error_kind();
    let blamed = !matches!(failure, Failure::TimedOut(elapsed) if !until.blames(elapsed, ended));
    attempt.settle(kind.filter(|_| blamed).map(Outcome::Error), ended);
    let again = kind.and_then(retry::Failure::of_error);
    match (failure, again) {
        (Failure::CallerGone, _) => {
            attempt.release(place.take(), true, Nanos::now());
            Next::End(Instead::Leave)
        }
        (Failure::Connect, _) => {
            exchange.call().rule_out(&attempt.chosen);
            tried.unconnected += 1;
            Next::Elsewhere
        }
        // Once, and on another endpoint: if there is none, the caller hears what this one said.
        (Failure::Refused, _) if !tried.refused && exchange.can_repeat() => {
            tried.refused = true;
            let call = exchange.call();
            call.rule_out(&attempt.chosen);
            if !call.has_another(&attempt.chosen) {
                return Next::End(unanswered(exchange, rules, attempt, (failure, place)));
            }
            call.retried(RetryCause::StreamRefused);
            exchange.repeat();
            Next::Elsewhere
        }
        (_, Some(again))
            if !matches!(failure, Failure::TimedOut(Elapsed::Request | Elapsed::Client))
                && tried.may_retry(exchange, rules.governor, again) =>
        {
            exchange.call().complain(&attempt.chosen, failure.reason());
            Next::Again(again)
        }
        _ => Next::End(unanswered(exchange, rules, attempt, (failure, place))),
    }
}

/// What its caller's leaving has ended is nobody's failure, and most likely nobody waits for another attempt. One that waits all
/// the same sees what it would have seen without Sluice, unless a fallback is there for it.
fn forsaken<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    attempt: &mut Attempt,
    place: &mut Option<Permit>,
) -> Instead {
    let now = Nanos::now();
    attempt.settle(None, now);
    let cause = Cause::from(Reason::UpstreamReset);
    let on = FallbackOn::of_outcome(ErrorKind::Reset.into());
    let fallback = on.and_then(|on| find(exchange, rules, on, &cause));
    exchange.call().count_tags(attempt.chosen.tag_outcome());
    attempt.release(place.take(), true, now);
    fallback.map_or(Instead::Leave, |fallback| Instead::give(fallback, cause))
}

/// No endpoint is asked any more.
fn unanswered<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    attempt: &Attempt,
    (failure, place): (Failure, &mut Option<Permit>),
) -> Instead {
    let call = exchange.call();
    let reason = failure.reason();
    if !matches!(failure, Failure::Unfit(_)) {
        call.complain(&attempt.chosen, reason);
    }
    call.count_tags(attempt.chosen.tag_outcome());
    let kind = failure.error_kind();
    if kind.is_some() {
        attempt.release(place.take(), true, Nanos::now());
    }
    let cause = match failure {
        Failure::TimedOut(elapsed) => call.cause(elapsed, rules.governor),
        _ => Cause::from(reason).with(call.take_fault()),
    };
    Instead::fail(Failed::new(cause, kind.and_then(|kind| FallbackOn::of_outcome(kind.into()))))
}

fn timed_out<E: Exchange>(exchange: &mut E, rules: &Rules<'_>, elapsed: Elapsed) -> Failed {
    Failed::new(exchange.call().cause(elapsed, rules.governor), FallbackOn::Timeout)
}

/// How a request has fared that had to wait for its turn says how long clients wait.
fn note_patience<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    attempted: &Result<Result<E::Answer, Failure>, Elapsed>,
    most: Duration,
) {
    let (call, now) = (exchange.call(), Nanos::now());
    let after = now.since(call.record.started).into();
    let patience = governor.patience(&call.pod.caller);
    match attempted {
        Ok(Err(Failure::CallerGone)) => patience.left(after, most),
        Ok(Ok(_)) => patience.answered(after, most),
        Ok(Err(_)) | Err(_) => {}
    }
}
