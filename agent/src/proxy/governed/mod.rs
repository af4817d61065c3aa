//! The way of a request through the rules, the same for HTTP/1 and HTTP/2.
//!
//! [`carry`] calls the stages in order: the limits ([`admit`]); for each [`attempt`] an endpoint, and the permit of its
//! circuit breaker; the time that it may take ([`deadline`]); whether a failure is tried [`again`]; and what is
//! answered where no endpoint did ([`mod@stand_in`]). What moves bytes is an [`Exchange`], one for each protocol: it sends a
//! request to an endpoint, passes an answer on, or answers in an endpoint's place, and decides nothing.

mod admit;
mod again;
mod attempt;
mod call;
mod deadline;
mod exchange;
mod shed;
mod stand_in;
mod stream;

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    time::Duration,
};

pub(crate) use self::{
    admit::{ClientClose, acquire},
    attempt::{Attempt, Parties, Purpose, ask_breaker},
    call::Call,
    deadline::{AttemptDeadline, Elapsed},
    exchange::{Break, Exchange, Failure},
    stream::Idle,
};
use self::{
    admit::{Limits, Stop},
    again::{Tried, error_kind},
    deadline::RequestDeadline,
    stand_in::{Failed, find, give, stand_in},
};
use super::{
    answer::{Cause, MadeUp},
    choose, traced,
    upstream::CONNECT_ATTEMPTS,
};
use crate::{
    clock::Nanos,
    govern::{
        concurrency,
        endpoint::Endpoint,
        fallback::stale,
        governor::{Governor, Stale},
        outcome::{ErrorKind, Outcome},
        policy::FallbackOn,
        retry, warmup,
    },
    observe::{
        metrics::{Overdue, RetryCause, ServiceMetrics, TagOutcome},
        reason::Reason,
    },
};

/// Carries a request from its head to the end of its answer.
pub(crate) async fn carry<E: Exchange>(exchange: &mut E) -> E::Ended {
    if let Some(answer) = exchange.call().way.as_mut().and_then(|way| way.take_answer()) {
        exchange.call().count_tags(None);
        let cause = answer.cause();
        let made_up = answer.made_up(&cause, exchange.kind());
        return give(exchange, &made_up, &cause).await;
    }
    let is_inbound = exchange.call().pod.arrival.is_some();
    let is_probe = is_inbound && is_probe(exchange);
    if is_inbound
        && !is_probe
        && let Err(cause) = admit_from_outside(exchange)
    {
        log_denied(exchange, &cause);
        exchange.call().count_tags(None);
        let made_up = MadeUp::of(&cause, exchange.kind());
        return give(exchange, &made_up, &cause).await;
    }
    let destination = Rc::clone(&exchange.call().resolved.destination);
    let worker = Rc::clone(&exchange.call().worker);
    let ruled = exchange.call().ruled.clone();
    let unlimited = is_probe.then(Box::<Governor>::default);
    let beside = exchange.call().beside.take().filter(|_| !is_probe);
    let governor = ruled.as_ref().map_or(&*destination.service.governor, |ruled| &ruled.governor);
    let governor = unlimited.as_deref().unwrap_or(governor);
    // The clock is read where something has been waited for, not for each rule.
    let now = exchange.call().record.started;
    let limits = Limits { governor, beside: beside.as_deref() };
    let (policy, queues) = (governor.policy(), limits.throttles().longest_wait());
    let deadline = {
        let timeouts = exchange.call().timeouts(policy.timeouts);
        RequestDeadline::begin(policy, timeouts, exchange.kind(), &exchange.request(), queues.is_some(), now)
    };
    let key = governor.stale().and_then(|stale| stale_key(exchange, stale));
    let admit::Admitted { place, at, queued } = match admit::admit(exchange, limits, deadline, now).await {
        Ok(admitted) => admitted,
        Err(Stop::CallerGone) => return gone(exchange),
        Err(Stop::Failed(failed)) => {
            log_denied(exchange, &failed.cause);
            exchange.call().count_tags(None);
            return stand_in(exchange, governor, key, &failed).await;
        }
    };
    if let Some(budget) = governor.budget() {
        budget.deposit(at.0);
        exchange.keep();
    }
    if exchange.call().is_mirrored() {
        exchange.copy();
    }
    let mut tried = Tried::default();
    let mut first = Some(at);
    loop {
        let now = first.take().unwrap_or_else(Nanos::now);
        let mut attempt = match begin(exchange, governor, &mut tried, now) {
            Ok(attempt) => attempt,
            Err(failed) => {
                // Nothing is in flight any more.
                drop(place);
                return stand_in(exchange, governor, key, &failed).await;
            }
        };
        let until = deadline.attempt(now);
        let responded = {
            let responding = pin!(exchange.attempt(&attempt.chosen));
            until.wait(&worker.timers, attempt.chosen.endpoint(), responding).await
        };
        if queued && let Some(most) = queues {
            note_patience(exchange, governor, &responded, most);
        }
        let failure = match responded {
            Ok(Ok(answer)) => {
                let now = Nanos::now();
                let (status, grpc) = (E::status(&answer), exchange.grpc_status(&answer));
                let outcome = Outcome::of_answer(&policy.errors, status, grpc);
                let wall = || exchange.call().worker.wall_clock(now);
                let ending = shed::ending(status, grpc, outcome, E::headers(&answer), wall);
                attempt.answered(exchange.sent_at(&answer), ending, now);
                exchange.call().record.timing.heard(now);
                let failure = retry::Failure::of_answer(status, grpc);
                if (status >= 429 || grpc.is_some()) && tried.may_retry(exchange, governor, failure) {
                    attempt.settle(Some(outcome), Nanos::now());
                    exchange.call().record.attempted(status, grpc, None);
                    exchange.discard(answer);
                    let failed = attempt.chosen.place();
                    drop(attempt);
                    match tried.begin_again(exchange, governor, failure, failed, deadline).await {
                        Ok(true) => continue,
                        Ok(false) => return gone(exchange),
                        Err(elapsed) => return timed_out(exchange, governor, key, elapsed).await,
                    }
                }
                let cause = Cause::from(Reason::UpstreamError);
                if let Some(on) = FallbackOn::of_outcome(outcome)
                    && let Some(fallback) = find(exchange, governor, key, on, &cause)
                {
                    let (call, now) = (exchange.call(), Nanos::now());
                    attempt.settle(Some(outcome), now);
                    call.record.attempted(status, grpc, None);
                    call.count_tags(attempt.chosen.tag_outcome());
                    attempt.release(place, true, now);
                    exchange.discard(answer);
                    return give(exchange, &fallback, &cause).await;
                }
                return pass_on(exchange, governor, key, answer, (attempt, place), until).await;
            }
            Ok(Err(failure)) => failure,
            Err(elapsed) => Failure::TimedOut(elapsed),
        };
        exchange.call().record.timing.heard(Nanos::now());

        exchange.call().record.attempted(0, None, Some(reason_of(failure)));
        if failure == Failure::Broken(Reason::UpstreamReset) && exchange.is_forsaken() {
            // What its caller's leaving has ended is nobody's failure, and most likely nobody waits for another attempt. One
            // that waits all the same sees what it would have seen without Sluice, unless a fallback is there for it.
            let now = Nanos::now();
            attempt.settle(None, now);
            let cause = Cause::from(Reason::UpstreamReset);
            let on = FallbackOn::of_outcome(ErrorKind::Reset.into());
            let fallback = on.and_then(|on| find(exchange, governor, key, on, &cause));
            exchange.call().count_tags(attempt.chosen.tag_outcome());
            attempt.release(place, true, now);
            return match fallback {
                Some(fallback) => give(exchange, &fallback, &cause).await,
                None => gone(exchange),
            };
        }
        let ended = Nanos::now();
        note_overdue(exchange, &attempt, until, ended);
        let kind = error_kind(failure);
        let blamed = !matches!(failure, Failure::TimedOut(elapsed) if !until.blames(elapsed, ended));
        attempt.settle(kind.filter(|_| blamed).map(Outcome::Error), ended);
        let again = kind.and_then(retry::Failure::of_error);
        match (failure, again) {
            (Failure::CallerGone, _) => {
                attempt.release(place, true, Nanos::now());
                return gone(exchange);
            }
            (Failure::Connect, _) => {
                exchange.call().rule_out(&attempt.chosen);
                tried.unconnected += 1;
            }
            // Once, and on another endpoint: if there is none, the caller hears what this one said.
            (Failure::Refused, _) if !tried.refused && exchange.can_repeat() => {
                tried.refused = true;
                exchange.call().rule_out(&attempt.chosen);
                if !matches!(tried.choose(exchange.call(), Nanos::now()), Ok(Some(_))) {
                    return fail(exchange, governor, key, (attempt, place), failure).await;
                }
                exchange.call().retried(RetryCause::StreamRefused);
                exchange.repeat();
            }
            (_, Some(again))
                if !matches!(failure, Failure::TimedOut(Elapsed::Request | Elapsed::Client))
                    && tried.may_retry(exchange, governor, again) =>
            {
                exchange.call().complain(&attempt.chosen, reason_of(failure));
                let failed = attempt.chosen.place();
                drop(attempt);
                match tried.begin_again(exchange, governor, again, failed, deadline).await {
                    Ok(true) => {}
                    Ok(false) => return gone(exchange),
                    Err(elapsed) => return timed_out(exchange, governor, key, elapsed).await,
                }
            }
            _ => return fail(exchange, governor, key, (attempt, place), failure).await,
        }
    }
}

/// Asks the policies at the endpoint about a request from outside. One that is passed on has what they change in its head, and is
/// noted, if its pod asks for that.
fn admit_from_outside<E: Exchange>(exchange: &mut E) -> Result<(), Cause> {
    let (worker, pod) = (exchange.call().worker.clone(), exchange.call().pod.clone());
    let Some(arrival) = &pod.arrival else { return Ok(()) };
    let started = exchange.call().record.started;
    let plan = arrival.admit(&worker, &exchange.request(), started)?;
    if !plan.is_empty() {
        exchange.change_head(plan)?;
    }
    let unanswered = traced::came(&pod.pod, &worker.names, &exchange.request(), Nanos::now());
    exchange.call().unanswered = unanswered;
    Ok(())
}

/// Whether it is a probe of the pod that it has come to: nothing holds for it.
fn is_probe<E: Exchange>(exchange: &mut E) -> bool {
    let pod = exchange.call().pod.clone();
    pod.arrival.as_ref().is_some_and(|arrival| arrival.is_probe(&pod, &exchange.request()))
}

/// Notes that a request from outside is passed on, where a warm-up begins with that.
fn note_arrival<E: Exchange>(exchange: &mut E, now: Nanos) {
    let pod = exchange.call().pod.clone();
    if let Some(arrival) = &pod.arrival {
        arrival.note_request(&pod, &exchange.request(), now);
    }
}

/// Logs that a request from outside is not passed on.
fn log_denied<E: Exchange>(exchange: &mut E, cause: &Cause) {
    let (worker, pod) = (exchange.call().worker.clone(), exchange.call().pod.clone());
    if let Some(arrival) = &pod.arrival {
        let shown = (E::PROTOCOL, exchange.kind());
        let started = exchange.call().record.started;
        arrival.log_denied(&worker, &exchange.request(), shown, cause, started);
    }
}

/// Chooses an endpoint, and gets the permit to ask it.
fn begin<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    tried: &mut Tried,
    now: Nanos,
) -> Result<Box<Attempt>, Failed> {
    let destination = Rc::clone(&exchange.call().resolved.destination);
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
        note_arrival(exchange, now);
    }
    let parties = exchange.call().parties();
    // In a box, as it is handed on often.
    Ok(Box::new(Attempt::begin(chosen, parties, Purpose::Request, permit, now)))
}

/// Passes an answer on.
async fn pass_on<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    key: Option<stale::Key>,
    mut answer: E::Answer,
    (mut attempt, place): (Box<Attempt>, Option<concurrency::Permit>),
    mut until: AttemptDeadline,
) -> E::Ended {
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
    if let Some((stale, key)) = governor.stale().zip(key) {
        let (headers, now) = (E::headers(&answer), Nanos::now().0);
        let request = exchange.request();
        let collector = stale.store.collect(key, stale.wanted.bounds, &request, status, headers, now);
        drop(request);
        if let Some(collector) = collector {
            E::show(&mut answer, collector);
        }
    }
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
    let (got, reason, outcome) = match ended {
        Ok(()) => (status, None, Some(Outcome::of_answer(&governor.policy().errors, status, grpc))),
        Err(Break::CallerGone(got)) => (got, Some(Reason::ClientClosed), None),
        Err(Break::End | Break::Answer(Reason::UpstreamReset)) if forsaken => {
            (status, Some(Reason::ClientClosed), None)
        }
        Err(Break::Answer(reason)) => {
            (status, Some(reason), error_kind(Failure::Broken(reason)).map(Outcome::Error))
        }
        Err(Break::End) => (status, Some(Reason::UpstreamReset), Some(ErrorKind::Reset.into())),
        // That nothing happens in a stream is no failure.
        Err(Break::TimedOut(elapsed @ Elapsed::StreamIdle)) => (
            status,
            Some(elapsed.reason()),
            Some(Outcome::of_answer(&governor.policy().errors, status, grpc)),
        ),
        Err(Break::TimedOut(elapsed)) => {
            let kind = error_kind(Failure::TimedOut(elapsed)).filter(|_| until.blames(elapsed, Nanos::now()));
            (status, Some(elapsed.reason()), kind.map(Outcome::Error))
        }
    };
    note_overdue(exchange, &attempt, until, Nanos::now());
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

/// The endpoint did not answer.
async fn fail<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    key: Option<stale::Key>,
    (attempt, place): (Box<Attempt>, Option<concurrency::Permit>),
    failure: Failure,
) -> E::Ended {
    let call = exchange.call();
    let reason = reason_of(failure);
    if !matches!(failure, Failure::Unfit(_)) {
        call.complain(&attempt.chosen, reason);
    }
    call.count_tags(attempt.chosen.tag_outcome());
    if error_kind(failure).is_some() {
        attempt.release(place, true, Nanos::now());
    }
    let on = error_kind(failure).and_then(|kind| FallbackOn::of_outcome(kind.into()));
    let cause = match failure {
        Failure::TimedOut(elapsed) => exchange.call().cause(elapsed, governor),
        _ => Cause::from(reason).with(exchange.call().take_fault()),
    };
    stand_in(exchange, governor, key, &Failed::new(cause, on)).await
}

async fn timed_out<E: Exchange>(
    exchange: &mut E,
    governor: &Governor,
    key: Option<stale::Key>,
    elapsed: Elapsed,
) -> E::Ended {
    let cause = exchange.call().cause(elapsed, governor);
    stand_in(exchange, governor, key, &Failed::new(cause, FallbackOn::Timeout)).await
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

/// Counts a tunnel that a timeout which only observes would have ended by now.
pub(crate) fn note_tunnel(
    numbers: &ServiceMetrics,
    until: AttemptDeadline,
    idle: Option<&Idle>,
    endpoint: &Endpoint,
) {
    if until.would_have_ended(endpoint, Nanos::now()).is_some() {
        numbers.overdue(Overdue::Drain);
    }
    if idle.is_some_and(Idle::would_have_ended) {
        numbers.overdue(Overdue::StreamIdle);
    }
}

/// Counts a request that a timeout which only observes would have ended by now.
fn note_overdue<E: Exchange>(exchange: &mut E, attempt: &Attempt, until: AttemptDeadline, now: Nanos) {
    let Some(elapsed) = until.would_have_ended(attempt.chosen.endpoint(), now) else { return };
    exchange.call().resolved.numbers.overdue(match elapsed {
        Elapsed::Request | Elapsed::Client => Overdue::Request,
        Elapsed::BackendRequest => Overdue::BackendRequest,
        Elapsed::StreamIdle => Overdue::StreamIdle,
        Elapsed::Drained => Overdue::Drain,
    });
}

fn gone<E: Exchange>(exchange: &mut E) -> E::Ended {
    note_passed(exchange, None);
    exchange.call().finish(0, Some(Reason::ClientClosed));
    exchange.leave()
}

fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Connect => Reason::UpstreamConnect,
        Failure::Refused => Reason::UpstreamReset,
        Failure::Broken(reason) | Failure::Unfit(reason) => reason,
        Failure::CallerGone => Reason::ClientClosed,
        Failure::TimedOut(elapsed) => elapsed.reason(),
    }
}

/// Under what an answer to this request is kept.
fn stale_key<E: Exchange>(exchange: &mut E, stale: &Stale) -> Option<stale::Key> {
    let lane = exchange.call().tagging.tag.and_then(|tag| tag.as_str().parse().ok());
    let vary_by = &stale.wanted.vary_by;
    stale.store.key(&exchange.request(), exchange.authority(), lane.as_ref(), exchange.has_body(), vary_by)
}

fn note_passed<E: Exchange>(exchange: &mut E, answer: Option<&E::Answer>) {
    let (up, down) = exchange.passed(answer);
    let record = &mut exchange.call().record;
    (record.request_bytes, record.response_bytes) = (up, down);
}
