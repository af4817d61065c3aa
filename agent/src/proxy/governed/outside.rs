//! Requests from outside to a pod whose agent this is: what the policies at the endpoint say of them, before all that is said of
//! requests to a service (ARCHITECTURE.md#at-the-endpoint).

use super::Exchange;
use crate::{
    clock::Nanos,
    proxy::{answer::Cause, traced},
};

/// Where a request comes from, as far as rules differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A pod of this node has sent it.
    Pod,
    /// It has come to a pod of this node.
    Outside,
    /// The kubelet probes the pod: nothing holds for it.
    Probe,
}

impl Origin {
    pub(super) fn of<E: Exchange>(exchange: &mut E) -> Self {
        if exchange.call().pod.arrival.is_none() {
            return Self::Pod;
        }
        let pod = exchange.call().pod.clone();
        let is_probe =
            pod.arrival.as_ref().is_some_and(|arrival| arrival.is_probe(&pod, &exchange.request()));
        if is_probe { Self::Probe } else { Self::Outside }
    }
}

/// Asks the policies at the endpoint about a request from outside. One that is passed on has what they change in its head, and is
/// noted, if its pod asks for that.
pub(super) fn admit<E: Exchange>(exchange: &mut E) -> Result<(), Cause> {
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

/// Notes that a request from outside is passed on, where a warm-up begins with that.
pub(super) fn note_passed_on<E: Exchange>(exchange: &mut E, now: Nanos) {
    let pod = exchange.call().pod.clone();
    if let Some(arrival) = &pod.arrival {
        arrival.note_request(&pod, &exchange.request(), now);
    }
}

/// Logs that a request from outside is not passed on.
pub(super) fn log_denied<E: Exchange>(exchange: &mut E, cause: &Cause) {
    let (worker, pod) = (exchange.call().worker.clone(), exchange.call().pod.clone());
    if let Some(arrival) = &pod.arrival {
        let shown = (E::PROTOCOL, exchange.kind());
        let started = exchange.call().record.started;
        arrival.log_denied(&worker, &exchange.request(), shown, cause, started);
    }
}
