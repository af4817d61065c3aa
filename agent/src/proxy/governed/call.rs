//! A request on its way, as far as no protocol matters.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{Elapsed, attempt::Parties, stream::Idle};
use crate::{
    clock::Nanos,
    cluster::model::Service,
    govern::{
        governor::{Beside, Governor, Ruled},
        lane::Tagging,
        policy::{Edits, HeaderEdits, Timeouts},
        remembered::Unanswered,
        request::Request,
    },
    observe::{
        fault::{Fault, Sender},
        metrics::{RetryCause, ServiceMetrics, TagOutcome},
        reason::Reason,
    },
    proxy::{
        answer::Cause,
        by_caller::{ByCaller, OfLate},
        choose::{self, Chosen},
        decisions::Event,
        record::Record,
        resolved::Resolved,
        traced,
        upstream::{self, CONNECT_ATTEMPTS},
        way::Way,
        worker::{PodHere, Worker},
    },
};

/// Addresses of endpoints.
pub(super) type Addresses = SmallVec<[SocketAddr; CONNECT_ATTEMPTS]>;

/// Who calls what, and what will be told of it.
pub(crate) struct Call {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<PodHere>,
    pub(crate) resolved: Resolved,
    pub(crate) tagging: Tagging,
    pub(crate) record: Record,
    /// The rule of the policy that holds for the request, if one does.
    pub(crate) ruled: Option<Arc<Ruled>>,
    /// The limits of others that could.
    pub(super) beside: Option<Box<Beside>>,
    /// Who is told of what passes, if its answer is a stream that may not be silent.
    pub(crate) idle: Option<Rc<Idle>>,
    /// What its routes have decided, if it has any.
    pub(crate) way: Option<Box<Way>>,
    /// The times that hold for it.
    pub(super) times: Timeouts,
    /// Endpoints that did not take it: they are not asked again.
    pub(super) ruled_out: Addresses,
    /// What is wrong with the message that could not be passed on.
    fault: Option<Fault>,
    /// It came from outside to a pod that wants it to be known until it is answered.
    pub(crate) unanswered: Option<Unanswered>,
}

impl Call {
    /// A request has come. `view`: its head with its tag.
    pub(crate) fn new(
        worker: Rc<Worker>,
        pod: Rc<PodHere>,
        resolved: Resolved,
        tagging: Tagging,
        mut record: Record,
        view: impl Request,
        way: Option<Box<Way>>,
    ) -> Self {
        match tagging.source {
            Some(source) => pod.metrics.tagged(source, record.started),
            None if !tagging.strip && pod.arrival.is_none() && traced::has_lost_tag(&pod.pod) => {
                pod.metrics.lost_tag(record.started);
            }
            None => {}
        }
        if let Some(way) = &way {
            record.routed(way);
        }
        let governor = &resolved.destination.service.governor;
        let on_route = way.as_ref().and_then(|way| way.course.policy.as_deref());
        let (ruled, beside) = if governor.rules().is_empty() && on_route.is_none() {
            (None, None)
        } else {
            let asked = ByCaller { view, workload: OfLate::new(&pod) };
            (governor.ruled(on_route, &asked).cloned(), governor.beside(on_route, &asked))
        };
        if let Some(ruled) = &ruled {
            record.decided(|| Event::Matched { rule: ruled.rule.name.clone() });
        }
        Self {
            worker,
            pod,
            resolved,
            tagging,
            record,
            ruled,
            beside,
            idle: None,
            way,
            times: Timeouts::default(),
            ruled_out: Addresses::new(),
            fault: None,
            unanswered: None,
        }
    }

    /// What is changed in the headers of a response, one after the other.
    pub(crate) fn response_edits(&self) -> impl Iterator<Item = &Edits> {
        let of_routes = self.way.iter().flat_map(|way| way.course.response_edits());
        std::iter::once(&self.headers().response).chain(of_routes).filter(|edits| !edits.is_empty())
    }

    /// How long the request may take.
    pub(crate) fn timeouts(&self, of_policy: Timeouts) -> Timeouts {
        self.way.as_ref().map_or(of_policy, |way| way.course.timeouts(of_policy))
    }

    /// Whether others get copies of it.
    pub(super) fn is_mirrored(&self) -> bool {
        self.way.as_ref().is_some_and(|way| !way.mirrors.is_empty())
    }

    /// Where it is counted what limits at the endpoint decide; `None`: it is not at the endpoint.
    pub(super) fn limited(&self) -> Option<Arc<ServiceMetrics>> {
        let arrival = self.pod.arrival.as_ref()?;
        Some(arrival.limited(&self.worker, &self.resolved.destination.service))
    }

    /// How long an endpoint that was chosen may take to accept a connection; `None`: as long as the kernel tries.
    pub(crate) fn time_to_connect(&self, chosen: &Chosen) -> Option<Duration> {
        upstream::time_to_connect(self.times, || self.has_another(chosen))
    }

    /// Whether it could go to another endpoint that has not refused it either.
    pub(super) fn has_another(&self, than: &Chosen) -> bool {
        let (destination, tag) = (&self.resolved.destination, self.tagging.tag.as_ref());
        choose::has_another(&self.pod, destination, tag, &self.ruled_out, than.endpoint(), Nanos::now())
    }

    /// Why its time is over.
    pub(super) fn cause(&self, elapsed: Elapsed, governor: &Governor) -> Cause {
        let whole = elapsed != Elapsed::BackendRequest;
        let route = self.way.as_ref().and_then(|way| way.course.limits_time(whole));
        elapsed.cause(governor, route.as_deref())
    }

    /// What is changed in headers.
    pub(crate) fn headers(&self) -> &HeaderEdits {
        let policy = match &self.ruled {
            Some(ruled) => ruled.governor.policy(),
            None => self.resolved.destination.service.governor.policy(),
        };
        &policy.headers
    }

    /// The request as rules see it, given the view of its head.
    pub(crate) fn asked<V: Request>(&self, view: V) -> impl Request {
        ByCaller { view, workload: OfLate::new(&self.pod) }
    }

    /// Who makes its attempts.
    pub(super) fn parties(&self) -> Parties {
        Parties {
            worker: Rc::clone(&self.worker),
            pod: Rc::clone(&self.pod),
            destination: Rc::clone(&self.resolved.destination),
            series: self.resolved.later_series(),
            ruled: self.ruled.clone(),
        }
    }

    pub(crate) fn service(&self) -> &Service {
        &self.resolved.destination.service
    }

    /// The request goes to this endpoint.
    pub(super) fn chosen(&mut self, chosen: &Chosen) {
        self.record.chosen(&mut self.resolved.series(), chosen);
    }

    /// The endpoint did not take the request.
    pub(super) fn rule_out(&mut self, chosen: &Chosen) {
        self.ruled_out.push(chosen.address());
    }

    pub(crate) fn retried(&mut self, cause: RetryCause) {
        self.resolved.numbers.retried(cause);
        self.record.retried();
    }

    /// What became of the request's tags; `None`: it had none, or nothing became of it.
    pub(super) fn count_tags(&mut self, outcome: Option<TagOutcome>) {
        self.record.count_tags(&self.resolved.numbers, &self.tagging, outcome);
    }

    /// The request has ended. Returns when.
    pub(crate) fn finish(&mut self, status: u16, reason: Option<Reason>) -> Nanos {
        let now = self.record.finish(&mut self.resolved.series(), status, reason);
        if let Some(ruled) = &self.ruled {
            self.resolved.numbers.ruled(&ruled.rule.name, status, now.since(self.record.started).0);
        }
        if let Some(rule) = self.way.as_ref().and_then(|way| way.course.rule.as_ref()) {
            self.resolved.count_routed(rule, status);
        }
        now
    }

    /// The request has ended with an answer that Sluice made up; `status` is 0 if nobody got it.
    pub(super) fn finish_made_up(&mut self, status: u16, cause: &Cause) {
        self.record.ruled(cause);
        if let Some(fault) = cause.fault {
            self.record.decided(|| Event::Invalid { fault });
        }
        let reason = if status == 0 { Reason::ClientClosed } else { cause.reason };
        self.finish(status, Some(reason));
    }

    /// A message cannot be passed on: the answer will say why.
    pub(crate) fn note_fault(&mut self, sender: Sender, fault: Fault) {
        self.resolved.numbers.invalid(sender, fault);
        self.fault = Some(fault);
    }

    /// What was wrong with the last message that could not be passed on.
    pub(super) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Logs a failure that Sluice has answered for.
    pub(super) fn complain(&self, chosen: &Chosen, reason: Reason) {
        self.worker.complain(|| {
            tracing::warn!(
                pod = %self.pod.name(), service = %self.service(), endpoint = %chosen.address(),
                reason = reason.code(), "{}", reason.message(),
            );
        });
    }
}
