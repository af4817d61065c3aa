//! An attempt at an endpoint: the circuit breaker's permit to make it, and what is learnt from how it ends (ARCHITECTURE.md#choosing-an-endpoint,
//! ARCHITECTURE.md#circuit-breaker).

use std::{cell::RefCell, rc::Rc, sync::Arc};

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
    observe::metrics::{AttemptOutcome, EjectionCause, LimitDecision, ServiceMetrics, ServiceSeries},
    proxy::{
        choose::Chosen,
        worker::{PodHere, Worker},
    },
};

/// Who makes an attempt of whom, and whose numbers it is in. Cheap to clone: nothing of it is shared between workers.
#[derive(Clone)]
pub(crate) struct Parties {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<PodHere>,
    pub(crate) destination: Rc<Destination>,
    pub(crate) series: Rc<RefCell<ServiceSeries>>,
    /// The rule of the policy that holds for the request, if one does.
    pub(crate) ruled: Option<Arc<Ruled>>,
}

impl Parties {
    fn governor(&self) -> &Governor {
        self.ruled.as_ref().map_or(&*self.destination.service.governor, |ruled| &ruled.governor)
    }
}

/// What an attempt is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is counted with the attempts of the service and of the endpoint.
    Request,
    /// A connection of which is carried what comes.
    Tunnel,
}

/// How far an attempt has come. It goes on in this order, and skips what does not happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The endpoint has not answered.
    Awaited,
    /// The head of its response has come.
    Answered,
    /// And what it says of the endpoint, which is not good, was told to the balancer.
    Blamed,
    /// All were told how it has ended.
    Settled,
}

/// When an endpoint answered.
#[derive(Clone, Copy, Debug)]
struct Answered {
    /// After it had the whole request; `None`: it answered before that, so that it may have waited for the request.
    latency: Option<u64>,
    /// The same, or where that is not known after the attempt began.
    after: u64,
}

/// One try to get a response from one endpoint, or the tunnel that it becomes.
///
/// Whatever ends it, the balancer, the circuit breaker, outlier detection and the endpoint's numbers are told once:
/// by [`Self::settle`], or when it is dropped before that, which means that its client has left.
pub(crate) struct Attempt {
    pub(crate) chosen: Chosen,
    parties: Parties,
    /// The circuit breaker's.
    permit: Option<breaker::Permit>,
    purpose: Purpose,
    /// Kept for as long as a tunnel lasts.
    place: Option<concurrency::Permit>,
    began: Nanos,
    answered: Option<Answered>,
    phase: Phase,
}

impl Attempt {
    pub(crate) fn begin(
        chosen: Chosen,
        parties: Parties,
        purpose: Purpose,
        permit: Option<breaker::Permit>,
        began: Nanos,
    ) -> Self {
        let phase = Phase::Awaited;
        Self { chosen, parties, purpose, permit, place: None, began, answered: None, phase }
    }

    pub(super) fn began(&self) -> Nanos {
        self.began
    }

    /// The policy's times for it.
    pub(crate) fn timeouts(&self) -> Timeouts {
        self.parties.governor().policy().timeouts
    }

    /// Keeps a place among the requests in flight, if they are limited, until it is dropped.
    pub(crate) fn keep(&mut self, place: Option<concurrency::Permit>) {
        self.place = place;
    }

    /// The response's head is there, now. `sent`: since when the endpoint had the whole request. `ending`: what the head says of
    /// the endpoint, if that is not good.
    pub(crate) fn answered(&mut self, sent: Option<Nanos>, ending: Option<Ending>, now: Nanos) {
        // While the request goes on the endpoint may have waited for it: that says nothing of the endpoint.
        let latency = sent.map(|sent| now.since(sent).0);
        let after = latency.unwrap_or_else(|| now.since(self.began).0);
        self.answered = Some(Answered { latency, after });
        self.phase = Phase::Answered;
        self.chosen.endpoint().load.backoff().heard();
        if let Some(permit) = &mut self.permit {
            permit.answered(now.0);
        }
        match ending {
            None => self.chosen.in_flight.answered(latency, now.0),
            Some(ending) => self.blame(ending, after, now),
        }
    }

    /// The end of the response says of the endpoint what its head did not: that it is asked too much.
    pub(super) fn sheds(&mut self, now: Nanos) {
        if self.phase < Phase::Blamed {
            self.blame(Ending::Shed(None), self.waited(now), now);
        }
    }

    fn blame(&mut self, ending: Ending, after: u64, now: Nanos) {
        self.chosen.in_flight.ended(ending, after, now.0);
        self.phase = Phase::Blamed;
    }

    /// How long the endpoint took to answer, or has not answered by now.
    fn waited(&self, now: Nanos) -> u64 {
        self.answered.map_or_else(|| now.since(self.began).0, |answered| answered.after)
    }

    /// The attempt has ended; `None`: nobody knows how it would have, since its client left or had no time left.
    pub(crate) fn settle(&mut self, outcome: Option<Outcome>, now: Nanos) {
        let before = std::mem::replace(&mut self.phase, Phase::Settled);
        let waited = self.waited(now);
        let ending = match outcome {
            Some(outcome) if outcome.is_error() => Some((Ending::Failed, waited)),
            Some(_) => Some((Ending::Good, 0)),
            None if self.answered.is_none() => Some((Ending::Left, waited)),
            None => None,
        };
        match before {
            Phase::Settled => return,
            Phase::Blamed => {}
            Phase::Awaited | Phase::Answered => {
                if let Some((ending, after)) = ending {
                    self.chosen.in_flight.ended(ending, after, now.0);
                }
            }
        }
        let Parties { worker, pod, destination, series, .. } = &self.parties;
        let service = &*destination.service;
        let lane = self.chosen.endpoint().tag.as_ref();
        if self.purpose == Purpose::Request {
            let tally = self.chosen.endpoint().load.tally();
            match outcome {
                Some(outcome) => tally.answered(waited, outcome.is_error()),
                None => tally.left(),
            }
            series.borrow_mut().lane(lane).attempted(match outcome {
                Some(outcome) if outcome.is_error() => AttemptOutcome::Failed,
                Some(_) => AttemptOutcome::Answered,
                None => AttemptOutcome::Left,
            });
        }
        if let Some(mut permit) = self.permit.take() {
            permit.end(outcome, now.0);
            tell_of_breaker(permit.breaker(), service, self.parties.governor(), pod, lane);
        }
        // A client that has chosen for itself is not to be given another endpoint, so there is nothing to eject it from.
        if destination.held().is_none()
            && let Some(outcome) = outcome
        {
            observe_outlier(worker, &series.borrow(), service, &self.chosen, (pod.by, outcome), now);
        }
    }

    /// The request has ended with this attempt, and its place is free. What an endpoint took to answer tells an adaptive limit
    /// how the service copes.
    pub(super) fn release(&self, place: Option<concurrency::Permit>, failed: bool, now: Nanos) {
        let Some(place) = place else { return };
        let latency = self.answered.and_then(|answered| answered.latency);
        // One that was not answered took at least so long.
        if let Some(latency) = latency.or_else(|| failed.then(|| now.since(self.began).0)) {
            place.complete(latency, now.0, failed);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.phase != Phase::Settled {
            self.settle(None, Nanos::now());
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
            Ok(permit) if permit.would_reject().is_some() => LimitDecision::WouldReject,
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
    series: &ServiceSeries,
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
        series.service().ejected(
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
