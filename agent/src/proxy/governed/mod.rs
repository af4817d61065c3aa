//! The way of a request through the rules, the same for HTTP/1 and HTTP/2.
//!
//! [`carry`] calls the stages in order: what policies at the endpoint say of a request from [`outside`]; the limits ([`mod@admit`]);
//! [`mod@ask`], which makes one [`attempt`] after the other: for each an endpoint, and the permit of its circuit breaker; the time
//! that it may take ([`deadline`]); and whether a failure is tried [`again`]. What comes of that is a response, to
//! [`mod@pass_on`], or what happens instead ([`mod@stand_in`]). What moves bytes is an [`Exchange`], one for each protocol: it sends
//! a request to an endpoint, passes an answer on, or answers in an endpoint's place, and decides nothing.

mod admit;
mod again;
mod ask;
mod attempt;
mod call;
mod deadline;
mod exchange;
mod note;
mod outside;
mod pass_on;
mod rules;
mod shed;
mod stand_in;
mod stream;

use self::{
    admit::admit,
    ask::ask,
    deadline::RequestDeadline,
    outside::Origin,
    pass_on::pass_on,
    rules::Rules,
    stand_in::{Instead, give, stand_in},
};
pub(crate) use self::{
    admit::{ClientClose, acquire},
    attempt::{Attempt, Parties, Purpose, ask_breaker},
    call::Call,
    deadline::{AttemptDeadline, Elapsed},
    exchange::{Break, Exchange, Failure},
    note::note_tunnel,
    stream::Idle,
};
use super::answer::{Cause, MadeUp};
use crate::govern::governor::Governor;

/// Carries a request from its head to the end of its answer.
pub(crate) async fn carry<E: Exchange>(exchange: &mut E) -> E::Ended {
    let origin = Origin::of(exchange);
    if let Some((made_up, cause)) = answer_at_once(exchange, origin) {
        exchange.call().count_tags(None);
        return give(exchange, &made_up, &cause).await;
    }
    let destination = exchange.call().resolved.destination.clone();
    let ruled = exchange.call().ruled.clone();
    let unlimited = (origin == Origin::Probe).then(Box::<Governor>::default);
    let beside = exchange.call().beside.take().filter(|_| origin != Origin::Probe);
    let governor = ruled.as_ref().map_or(&*destination.service.governor, |ruled| &ruled.governor);
    let governor = unlimited.as_deref().unwrap_or(governor);
    let rules = Rules::of(exchange, governor, beside.as_deref());
    // The clock is read where something has been waited for, not for each rule.
    let now = exchange.call().record.started;
    let deadline = {
        let (policy, queues) = (governor.policy(), rules.throttles().longest_wait().is_some());
        let timeouts = exchange.call().timeouts(policy.timeouts);
        RequestDeadline::begin(policy, timeouts, exchange.kind(), &exchange.request(), queues, now)
    };
    let answered = match admit(exchange, rules, deadline, now).await {
        Ok(admitted) => {
            if let Some(budget) = governor.budget() {
                budget.deposit(admitted.at.0);
                exchange.keep();
            }
            if exchange.call().is_mirrored() {
                exchange.copy();
            }
            ask(exchange, &rules, &deadline, admitted).await
        }
        Err(instead) => {
            if let Instead::Fail(failed) = &instead {
                outside::log_denied(exchange, &failed.cause);
                exchange.call().count_tags(None);
            }
            Err(instead)
        }
    };
    match answered {
        Ok(answered) => pass_on(exchange, &rules, &deadline, answered).await,
        Err(instead) => stand_in(exchange, &rules, instead).await,
    }
}

/// What is answered whatever the rules of the service say: its route has an answer of its own, or the policies at the endpoint do
/// not let the request in.
fn answer_at_once<E: Exchange>(exchange: &mut E, origin: Origin) -> Option<(MadeUp, Cause)> {
    if let Some(answer) = exchange.call().way.as_mut().and_then(|way| way.take_answer()) {
        let cause = answer.cause();
        return Some((answer.made_up(&cause, exchange.kind()), cause));
    }
    if origin == Origin::Outside
        && let Err(cause) = outside::admit(exchange)
    {
        outside::log_denied(exchange, &cause);
        return Some((MadeUp::of(&cause, exchange.kind()), cause));
    }
    None
}
