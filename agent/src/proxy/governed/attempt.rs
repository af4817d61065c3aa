//! An attempt at an endpoint: the leave to make it, and what is learnt from how it ends (ARCHITECTURE.md#choosing-an-endpoint,
//! ARCHITECTURE.md#circuit-breaker).

use std::sync::Arc;

use super::Call;
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Service},
    govern::{
        breaker::{self, Breaker, Open},
        concurrency,
        cost::Ending,
        governor::{Breakers, Governor, Ruled},
        outcome::Outcome,
        outlier::{self, CallerId},
        policy::{Mode, Part, Timeouts},
        tag::Tag,
    },
    observe::metrics::{Attempt, EjectionCause, LimitDecision, ServiceMetrics},
    proxy::{
        choose::Chosen,
        worker::{PodHere, Worker},
    },
};

/// What a request holds as long as it lasts, or the tunnel that it becomes.
pub(crate) struct Held {
    pub(crate) chosen: Chosen,
    /// The circuit breaker's leave, until it has been told what came of it.
    leave: Option<breaker::Permit>,
    /// Its place among the requests in flight, if they are limited.
    place: Option<concurrency::Permit>,
    /// The rule whose breaker it is.
    ruled: Option<Arc<Ruled>>,
    began: Nanos,
    /// How long the endpoint took to its answer's head, since it had the whole request.
    latency: Option<u64>,
    /// The same, or where that is not known since the attempt began.
    answered_after: Option<u64>,
    /// How it has ended has been told to the balancer.
    told: bool,
}

impl Held {
    pub(crate) fn new(
        chosen: Chosen,
        leave: Option<breaker::Permit>,
        place: Option<concurrency::Permit>,
        began: Nanos,
    ) -> Self {
        Self { chosen, leave, place, ruled: None, began, latency: None, answered_after: None, told: false }
    }

    /// A rule of the policy holds for the request.
    pub(super) fn under(mut self, ruled: Option<Arc<Ruled>>) -> Self {
        self.ruled = ruled;
        self
    }

    /// The policy's times for it.
    pub(crate) fn timeouts(&self, service: &Service) -> Timeouts {
        let governor = self.ruled.as_ref().map_or(&*service.governor, |ruled| &ruled.governor);
        governor.policy().timeouts
    }

    /// Takes a place among the requests in flight, if they are limited.
    pub(crate) fn set_place(&mut self, place: Option<concurrency::Permit>) {
        self.place = place;
    }

    /// Gives the place back for the next attempt.
    pub(super) fn take_place(&mut self) -> Option<concurrency::Permit> {
        self.place.take()
    }

    /// The answer's head is there, now. `sent`: since when the endpoint had the whole request. `ending`: what the head says of
    /// the endpoint, if that is not good.
    pub(crate) fn answered(&mut self, sent: Option<Nanos>, ending: Option<Ending>, now: Nanos) {
        let after = now.since(sent.unwrap_or(self.began)).0;
        self.answered_after = Some(after);
        self.chosen.endpoint().load.backoff.heard();
        if let Some(leave) = &mut self.leave {
            leave.answered(now.0);
        }
        // While the request goes on the endpoint may have waited for it: that says nothing of the endpoint.
        self.latency = sent.map(|sent| now.since(sent).0);
        match ending {
            None => self.chosen.in_flight.answered(self.latency, now.0),
            Some(ending) => self.tell_balancer(ending, after, now),
        }
    }

    /// The end of the answer says of the endpoint what its head did not.
    pub(super) fn sheds(&mut self, now: Nanos) {
        self.tell_balancer(Ending::Shed(None), self.waited(now), now);
    }

    fn tell_balancer(&mut self, ending: Ending, after: u64, now: Nanos) {
        if !std::mem::replace(&mut self.told, true) {
            self.chosen.in_flight.ended(ending, after, now.0);
        }
    }

    /// How long the endpoint took to answer, or has not answered by now.
    pub(super) fn waited(&self, now: Nanos) -> u64 {
        self.answered_after.unwrap_or_else(|| now.since(self.began).0)
    }

    /// The attempt has ended; `None`: the caller left, so that nobody knows how it would have.
    pub(crate) fn settle(
        &mut self,
        worker: &Worker,
        pod: &PodHere,
        numbers: &ServiceMetrics,
        destination: &Destination,
        outcome: Option<Outcome>,
        now: Nanos,
    ) {
        let service = &*destination.service;
        match outcome {
            Some(outcome) if outcome.is_error() => self.tell_balancer(Ending::Failed, self.waited(now), now),
            Some(_) => self.tell_balancer(Ending::Good, 0, now),
            None if self.answered_after.is_none() => self.tell_balancer(Ending::Left, self.waited(now), now),
            None => {}
        }
        if let Some(mut leave) = self.leave.take() {
            leave.end(outcome, now.0);
            let governor = self.ruled.as_ref().map_or(&*service.governor, |ruled| &ruled.governor);
            tell_of_breaker(leave.breaker(), service, governor, pod, self.chosen.endpoint().tag.as_ref());
        }
        // A caller that has chosen for itself is not to be given another endpoint, so there is nothing to eject it from.
        if destination.held().is_none()
            && let Some(outcome) = outcome
        {
            observe_outlier(worker, numbers, service, &self.chosen, (pod.by, outcome), now);
        }
    }

    /// The request has ended, and its place is free. What an endpoint took to answer tells an adaptive limit how the
    /// service copes.
    pub(super) fn complete(&mut self, failed: bool, now: Nanos) {
        let Some(place) = self.place.take() else { return };
        // One that was not answered took at least so long.
        if let Some(latency) = self.latency.or_else(|| failed.then(|| now.since(self.began).0)) {
            place.complete(latency, now.0, failed);
        }
    }
}

/// Whether the breaker that holds for a pod's requests to a lane is open, for one that would have to wait first.
pub(super) fn open_breaker(
    service: &Service,
    governor: &Governor,
    pod: &PodHere,
    lane: Option<&Tag>,
    numbers: &ServiceMetrics,
    now: Nanos,
) -> Option<Open> {
    let breakers = governor.breakers()?;
    let breaker = breakers.of(&pod.caller, lane);
    let open = breaker.would_refuse(now.0)?;
    numbers.broken(LimitDecision::Rejected);
    tell_of_breaker(&breaker, service, governor, pod, lane);
    Some(open)
}

/// Asks the breaker that holds for a pod's requests to a lane.
pub(crate) fn ask_breaker(
    service: &Service,
    governor: &Governor,
    pod: &PodHere,
    lane: Option<&Tag>,
    numbers: &ServiceMetrics,
    now: Nanos,
) -> Result<Option<breaker::Permit>, Open> {
    let Some(breakers) = governor.breakers() else { return Ok(None) };
    breakers.with(&pod.caller, lane, |breaker| {
        let asked = breaker.try_acquire(now.0);
        numbers.broken(match &asked {
            Ok(leave) if leave.would_reject().is_some() => LimitDecision::WouldReject,
            Ok(_) => LimitDecision::Allowed,
            Err(_) => LimitDecision::Rejected,
        });
        tell_of_breaker(breaker, service, governor, pod, lane);
        asked.map(Some)
    })
}

/// Logs what a breaker has gone through since it was last told of.
fn tell_of_breaker(
    breaker: &Breaker,
    service: &Service,
    governor: &Governor,
    pod: &PodHere,
    lane: Option<&Tag>,
) {
    let shared = || governor.breakers().is_some_and(Breakers::are_shared);
    for transition in breaker.news() {
        tracing::warn!(
            pod = if shared() { "all of the node" } else { &*pod.caller.name },
            %service, lane = lane.map_or("baseline", Tag::as_str),
            policy = governor.policy().said_by(Part::CircuitBreaker).map_or("", |name| name),
            from = transition.from.code(), to = transition.to.code(),
            "the circuit breaker changed its state: {}", transition.why,
        );
    }
}

fn observe_outlier(
    worker: &Worker,
    numbers: &ServiceMetrics,
    service: &Service,
    chosen: &Chosen,
    (by, outcome): (CallerId, Outcome),
    now: Nanos,
) {
    let endpoint: &Arc<_> = chosen.endpoint();
    let Some(config) = &service.governor.policy().outlier_detection else { return };
    let Some(subset) = service.subset_of(endpoint) else { return };
    let ejections = subset.observe(config, endpoint, by, outcome, now.0, &mut worker.rng.borrow_mut());
    for ejection in ejections {
        let enforced = ejection.mode == Mode::Enforce;
        numbers.ejected(
            match ejection.cause {
                outlier::Cause::ConsecutiveErrors => EjectionCause::ConsecutiveErrors,
                outlier::Cause::SuccessRate => EjectionCause::SuccessRate,
            },
            enforced,
        );
        let seconds = Nanos(ejection.until_nanos).since(now).0 / 1_000_000_000;
        tracing::warn!(
            %service, endpoint = %ejection.endpoint.address, pod = ejection.endpoint.pod.as_deref().unwrap_or("-"),
            cause = ejection.cause.as_str(), seconds, enforced,
            "ejected an endpoint that fails: it gets no requests for a while",
        );
    }
}

impl Call {
    /// See [`Held::settle`]. The endpoint's numbers have every attempt, those of the service have the request.
    pub(super) fn settle(&self, held: &mut Held, outcome: Option<Outcome>, now: Nanos) {
        let tally = held.chosen.endpoint().load.tally();
        match outcome {
            Some(outcome) => {
                tally.answered(held.waited(now), outcome.is_error());
            }
            None => tally.left(),
        }
        self.record.settled(match outcome {
            Some(outcome) if outcome.is_error() => Attempt::Failed,
            Some(_) => Attempt::Answered,
            None => Attempt::Left,
        });
        held.settle(&self.worker, &self.pod, &self.known.numbers, &self.known.destination, outcome, now);
    }
}
