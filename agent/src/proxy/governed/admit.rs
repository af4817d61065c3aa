//! Whether a request may be made at all: the rate limits, at which it may have to wait for its turn, and the limit on
//! requests in flight (ARCHITECTURE.md#rate-limits and the section after it).

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    Call, Exchange,
    attempt::open_breaker,
    deadline::{Elapsed, RequestDeadline},
    rules::Rules,
    stand_in::{Failed, Instead},
};
use crate::{
    clock::Nanos,
    govern::{
        concurrency::{Full, Limiter, Permit},
        governor::Governor,
        policy::{FallbackOn, Mode, Part},
        subset::Subset,
        throttle::{Admission, Verdict},
    },
    observe::{
        metrics::{LimitDecision, ServiceMetrics},
        reason::Reason,
    },
    proxy::{answer::Cause, choose, decisions::Event, timer::Timers, worker::PodHere},
};

/// When it is worth asking again where as many requests are in flight as may be: nobody knows, but not at once.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a caller does while its request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientClose {
    /// It is gone.
    Gone,
    /// It has ended its side. Most likely it is gone; if it is not, it still hears an answer.
    Ended,
}

/// A request that may be made.
pub(super) struct Admitted {
    /// Its place among the requests in flight, if they are limited.
    pub(super) place: Option<Permit>,
    /// Since when.
    pub(super) at: Nanos,
    /// It had to wait for its turn.
    pub(super) queued: bool,
}

/// Asks the limits about a request that comes `now`, the pod's own budget first. Without any it costs a look at each.
pub(super) async fn admit<E: Exchange>(
    exchange: &mut E,
    rules: Rules<'_>,
    deadline: RequestDeadline,
    now: Nanos,
) -> Result<Admitted, Instead> {
    let governor = rules.governor;
    if exchange.call().pod.budget.refuses() {
        return Err(Instead::fail(Failed::new(Cause::from(Reason::Overloaded), FallbackOn::LimitExceeded)));
    }
    let (verdict, at) = match rules.throttles() {
        throttles if throttles.is_empty() => (None, now),
        // Nobody waits to be refused.
        throttles
            if throttles.longest_wait().is_some()
                && let Some(failed) = broken(exchange, governor, now) =>
        {
            return Err(Instead::fail(failed));
        }
        _ => {
            let verdict = ask(exchange, rules, deadline, now)?;
            if verdict.wait().is_zero() {
                (Some(verdict), now)
            } else {
                // Boxed, for few requests wait, and every request's task would carry the state of one that does.
                let verdict = Box::pin(take_turn(exchange, rules, deadline, verdict)).await?;
                (Some(verdict), Nanos::now())
            }
        }
    };
    let queued = verdict.as_ref().is_some_and(|verdict| !verdict.wait().is_zero());
    let mut admitted = Admitted { place: None, at, queued };
    for (limiter, policy) in rules.limiters() {
        let call = exchange.call();
        let at_endpoint = call.limited();
        let numbers = at_endpoint.as_ref().unwrap_or(&call.resolved.numbers);
        let Ok(place) = acquire(limiter, &call.pod, numbers, at) else {
            if let Some(verdict) = verdict {
                verdict.give_back(Nanos::now().0);
            }
            let name = "concurrency.maxRequests".into();
            let policy = policy.said_by(Part::Concurrency);
            let cause = Cause::of_rule(Reason::ConcurrencyLimited, &name, policy, Some(RETRY_AFTER));
            return Err(Instead::fail(Failed::new(cause, FallbackOn::LimitExceeded)));
        };
        admitted.place = match (admitted.place.take(), place) {
            (Some(first), Some(place)) => Some(first.and(place)),
            (first, place) => first.or(place),
        };
    }
    Ok(admitted)
}

/// Refuses what would be sent to a lane whose circuit breaker is open.
fn broken<E: Exchange>(exchange: &mut E, governor: &Governor, now: Nanos) -> Option<Failed> {
    governor.breakers()?;
    let call = exchange.call();
    let lane = match call.resolved.destination.held() {
        Some(pinned) => pinned.tag.clone(),
        None => subset(call, now)?.first()?.tag.clone(),
    };
    let service = &*call.resolved.destination.service;
    let open = open_breaker(service, governor, &call.pod, lane.as_ref(), &call.resolved.numbers, now)?;
    call.count_tags(None);
    Some(Failed::open(governor, open))
}

/// What the request would be sent to.
fn subset(call: &Call, now: Nanos) -> Option<&Subset> {
    choose::subset(&call.pod, &call.resolved.destination, call.tagging.tag.as_ref(), now)
}

/// Asks the limit on what is in flight; `None`: it only observes, and there is no room.
pub(crate) fn acquire(
    limiter: &Arc<Limiter>,
    pod: &PodHere,
    numbers: &ServiceMetrics,
    now: Nanos,
) -> Result<Option<Permit>, Full> {
    let enforced = limiter.config().mode == Mode::Enforce;
    let (permit, decision) = match limiter.try_acquire(&pod.caller, now.0) {
        Ok(permit) => (Ok(Some(permit)), LimitDecision::Allowed),
        Err(full) if enforced => (Err(full), LimitDecision::Rejected),
        Err(_) => (Ok(None), LimitDecision::WouldReject),
    };
    numbers.concurrency_limited(decision);
    permit
}

/// Asks the rate rules.
fn ask<'g, E: Exchange>(
    exchange: &mut E,
    rules: Rules<'g>,
    deadline: RequestDeadline,
    now: Nanos,
) -> Result<Verdict<'g>, Instead> {
    let pod = Rc::clone(&exchange.call().pod);
    let (governor, throttles) = (rules.governor, rules.throttles());
    let may_wait = throttles.longest_wait().and_then(|_| {
        let call = exchange.call();
        let shown = governor.patience(&call.pod.caller).shown();
        deadline.may_wait(shown, || subset(call, now)?.likely(), now)
    });
    let verdict = throttles.admit(&exchange.request(), &pod.caller.uid, may_wait, now.0);
    count(exchange, &verdict);
    let Some(refusal) = verdict.refusal() else { return Ok(verdict) };
    let policy = rules.said_by(refusal.rule);
    let cause = Cause::of_rule(Reason::RateLimited, &refusal.rule.name, policy, Some(refusal.retry_after));
    Err(Instead::fail(Failed::new(cause, FallbackOn::LimitExceeded)))
}

/// Waits as long as the rate limits say.
async fn take_turn<'g, E: Exchange>(
    exchange: &mut E,
    rules: Rules<'g>,
    deadline: RequestDeadline,
    verdict: Verdict<'g>,
) -> Result<Verdict<'g>, Instead> {
    let (governor, most) = (rules.governor, rules.throttles().longest_wait());
    let wait = verdict.wait();
    for (rule, admission) in verdict.decisions() {
        if let (Admission::After(wait), Mode::Enforce) = (admission, rule.mode) {
            exchange.call().record.decided(|| Event::Queued { rule: rule.name.clone(), wait });
        }
    }
    let paused = pause(exchange, wait, deadline, true).await;
    if let (Ok(Some(_)), Some(most)) = (&paused, most) {
        let (call, now) = (exchange.call(), Nanos::now());
        governor.patience(&call.pod.caller).left(now.since(call.record.started).into(), most);
    }
    match paused {
        Ok(None) => Ok(verdict),
        Ok(Some(left)) => {
            let queued = verdict.decisions().find(|(_, admission)| matches!(admission, Admission::After(_)));
            let policy = queued.as_ref().and_then(|(rule, _)| rules.said_by(rule));
            let name = queued.map_or_else(|| "rateLimits".into(), |(rule, _)| rule.name.clone());
            verdict.give_back(Nanos::now().0);
            Err(match left {
                ClientClose::Gone => Instead::Leave,
                ClientClose::Ended => {
                    let cause = Cause::of_rule(Reason::RateLimited, &name, policy, None);
                    Instead::fail(Failed::new(cause, FallbackOn::LimitExceeded))
                }
            })
        }
        Err(elapsed) => {
            verdict.give_back(Nanos::now().0);
            Err(Instead::fail(Failed::new(exchange.call().cause(elapsed, governor), FallbackOn::Timeout)))
        }
    }
}

/// Waits, while the caller is watched. One that has ended its side leaves only if that `ends` the request.
pub(super) async fn pause<E: Exchange>(
    exchange: &mut E,
    time: Duration,
    deadline: RequestDeadline,
    ends: bool,
) -> Result<Option<ClientClose>, Elapsed> {
    let mut over = pin!(tokio::time::sleep(time));
    let waiting = poll_fn(|cx: &mut Context<'_>| match exchange.poll_client_close(cx) {
        Poll::Ready(left) if ends || left == ClientClose::Gone => Poll::Ready(Some(left)),
        _ => over.as_mut().poll(cx).map(|()| None),
    });
    deadline.request().wait_only(&Timers::default(), pin!(waiting)).await
}

fn count<E: Exchange>(exchange: &mut E, verdict: &Verdict<'_>) {
    let call = exchange.call();
    let at_endpoint = call.limited();
    let mut series = call.resolved.series();
    for (rule, admission) in verdict.decisions() {
        let decision = match (admission, rule.mode) {
            (Admission::After(_), Mode::Enforce) => LimitDecision::Queued,
            // What only observes makes nobody wait either.
            (Admission::Now | Admission::After(_), _) => LimitDecision::Allowed,
            (Admission::Refused { .. }, Mode::Enforce) => LimitDecision::Rejected,
            (Admission::Refused { .. }, Mode::Observe) => LimitDecision::WouldReject,
        };
        match &at_endpoint {
            Some(metrics) => metrics.rate_limited(&rule.name, decision),
            None => series.rate_limited(&rule.name, decision),
        }
        if decision == LimitDecision::WouldReject {
            call.record.decided(|| Event::WouldRefuse { rule: rule.name.clone() });
        }
    }
}
