//! What the numbers and the record are told of a request as it ends.

use super::{
    attempt::Attempt,
    deadline::{AttemptDeadline, Elapsed},
    exchange::Exchange,
    stream::Idle,
};
use crate::{
    govern::endpoint::Endpoint,
    observe::metrics::{Overdue, ServiceMetrics},
};

/// Counts a tunnel that a timeout which only observes would have ended by now.
pub(crate) fn note_tunnel(
    numbers: &ServiceMetrics,
    until: AttemptDeadline,
    idle: Option<&Idle>,
    endpoint: &Endpoint,
) {
    if until.would_have_ended(endpoint).is_some() {
        numbers.overdue(Overdue::Drain);
    }
    if idle.is_some_and(Idle::would_have_ended) {
        numbers.overdue(Overdue::StreamIdle);
    }
}

/// Counts a request that a timeout which only observes would have ended by now.
pub(super) fn note_overdue<E: Exchange>(exchange: &mut E, attempt: &Attempt, until: AttemptDeadline) {
    let Some(elapsed) = until.would_have_ended(attempt.chosen.endpoint()) else { return };
    exchange.call().resolved.numbers.overdue(match elapsed {
        Elapsed::Request | Elapsed::Client => Overdue::Request,
        Elapsed::BackendRequest => Overdue::BackendRequest,
        Elapsed::StreamIdle => Overdue::StreamIdle,
        Elapsed::Drained => Overdue::Drain,
    });
}

/// Notes how much of both bodies has been passed on.
pub(super) fn note_passed<E: Exchange>(exchange: &mut E, answer: Option<&E::Answer>) {
    let (up, down) = exchange.passed(answer);
    let record = &mut exchange.call().record;
    (record.request_bytes, record.response_bytes) = (up, down);
}
