//! Passing an endpoint's response on, to its end.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
};

use super::{
    ask::Answered,
    deadline::{Elapsed, RequestDeadline},
    exchange::{Break, Exchange, Failure},
    note::{note_overdue, note_passed},
    rules::Rules,
    shed,
    stream::{self, Idle},
};
use crate::{
    clock::Nanos,
    govern::outcome::{ErrorKind, Outcome},
    observe::{metrics::Overdue, reason::Reason},
};

/// Passes a response on, and tells all how it has ended.
pub(super) async fn pass_on<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    deadline: &RequestDeadline,
    answered: Answered<E::Answer>,
) -> E::Ended {
    let Answered { mut answer, mut attempt, place } = answered;
    let mut until = deadline.attempt(attempt.began());
    let governor = rules.governor;
    exchange.call().count_tags(attempt.chosen.tag_outcome());
    let status = E::status(&answer);
    let timeouts = governor.policy().timeouts;
    if timeouts.stream_idle.is_some()
        && let Some(kind) = stream::Kind::of(E::headers(&answer))
    {
        exchange.call().idle = Idle::begin(timeouts).map(Rc::new);
        if kind == stream::Kind::Events {
            until = until.of_stream();
        }
    }
    let idle = exchange.call().idle.clone();
    keep(exchange, rules, &mut answer);
    let worker = Rc::clone(&exchange.call().worker);
    let mut handed = Nanos::ZERO;
    let passed = {
        let mut passing = pin!(exchange.pass_on(&mut answer));
        let noting = pin!(poll_fn(|cx| {
            let passed = passing.as_mut().poll(cx);
            // The head goes first, and what is left then takes as long as caller and endpoint need.
            if passed.is_pending() && handed == Nanos::ZERO {
                handed = Nanos::now();
            }
            passed
        }));
        until.wait_stream(&worker.timers, attempt.chosen.endpoint(), idle.as_deref(), noting).await
    };
    exchange.call().record.timing.passed_on(handed);
    let ended = passed.unwrap_or_else(|elapsed| Err(Break::TimedOut(elapsed)));
    note_passed(exchange, Some(&answer));
    let grpc = exchange.grpc_status(&answer);
    let forsaken = exchange.is_forsaken();
    let whole = || Some(Outcome::of_answer(&governor.policy().errors, status, grpc));
    let (got, reason, outcome) = match ended {
        Ok(()) => (status, None, whole()),
        Err(Break::CallerGone(got)) => (got, Some(Reason::ClientClosed), None),
        Err(Break::End | Break::Answer(Reason::UpstreamReset)) if forsaken => {
            (status, Some(Reason::ClientClosed), None)
        }
        Err(Break::Answer(reason)) => {
            (status, Some(reason), Failure::Broken(reason).error_kind().map(Outcome::Error))
        }
        Err(Break::End) => (status, Some(Reason::UpstreamReset), Some(ErrorKind::Reset.into())),
        // That nothing happens in a stream is no failure.
        Err(Break::TimedOut(elapsed @ Elapsed::StreamIdle)) => (status, Some(elapsed.reason()), whole()),
        Err(Break::TimedOut(elapsed)) => {
            let kind = Failure::TimedOut(elapsed).error_kind();
            let blamed = kind.filter(|_| until.blames(elapsed, Nanos::now()));
            (status, Some(elapsed.reason()), blamed.map(Outcome::Error))
        }
    };
    note_overdue(exchange, &attempt, until);
    if idle.is_some_and(|idle| idle.would_have_ended()) {
        exchange.call().resolved.numbers.overdue(Overdue::StreamIdle);
    }
    let call = exchange.call();
    if let Some(reason) = reason.filter(|reason| *reason != Reason::ClientClosed) {
        call.complain(&attempt.chosen, reason);
    }
    if outcome.is_some_and(Outcome::is_error) {
        call.record.failed();
    }
    call.record.set_grpc_status(grpc);
    let now = call.finish(got, reason);
    if shed::is_exhausted(grpc) {
        attempt.sheds(now);
    }
    attempt.settle(outcome, now);
    if E::is_tunnel(&answer) {
        attempt.keep(place);
    } else {
        attempt.release(place, outcome.is_none_or(Outcome::is_error), now);
    }
    exchange.conclude(answer, attempt, ended).await
}

/// Keeps the response, if it may stand in for one that fails later.
fn keep<E: Exchange>(exchange: &mut E, rules: &Rules<'_>, answer: &mut E::Answer) {
    let Some((stale, key)) = rules.governor.stale().zip(rules.key) else { return };
    let (status, now) = (E::status(answer), Nanos::now().0);
    let collector = {
        let (headers, request) = (E::headers(answer), exchange.request());
        stale.store.collect(key, stale.wanted.bounds, &request, status, headers, now)
    };
    if let Some(collector) = collector {
        E::show(answer, collector);
    }
}
