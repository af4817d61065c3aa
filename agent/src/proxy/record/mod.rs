//! What is told of one request when it has ended: numbers always, a log line and spans if asked for.

mod details;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

pub(crate) use self::details::{Described, MAX_METHOD, MAX_PATH, cut};
use self::details::{Details, End};
use super::{
    answer::Cause,
    choose::Chosen,
    decisions::{Draft, Event, Ids},
    timing::Timing,
    way::Way,
    worker::{Busy, PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::Destination,
    govern::lane::Tagging,
    observe::{
        metrics::{ActiveRequest, Series, ServiceMetrics, ServiceSeries, TagOutcome},
        reason::Reason,
        trace::context::{Found, Sender, TraceId},
    },
};

/// A request from its head to its end. One that is dropped unfinished was left by its caller.
pub(crate) struct Record {
    pub(crate) started: Nanos,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    /// Whose time it was.
    pub(crate) timing: Timing,
    active: Option<(ActiveRequest, Arc<Series>)>,
    /// `None` if nobody is told of it, or has been told already.
    details: Option<Box<Details>>,
    /// What is decided about it, for those who ask later.
    draft: Option<Draft>,
    /// The trace that it belongs to, if that is sampled: here, or by whoever sent it.
    sampled: Option<TraceId>,
    /// Draining waits for it.
    busy: Busy,
}

impl Record {
    /// A request has come.
    pub(crate) fn begin(worker: &Rc<Worker>) -> Self {
        Self {
            started: Nanos::now(),
            request_bytes: 0,
            response_bytes: 0,
            timing: Timing::default(),
            active: None,
            details: None,
            draft: None,
            sampled: None,
            busy: worker.busy(),
        }
    }

    /// From now on what is decided about the request is noted. `path` is without the query.
    pub(crate) fn note(
        &mut self,
        pod: &Rc<PodHere>,
        destination: &Rc<Destination>,
        tagging: Option<&Tagging>,
        ids: Ids,
        (method, path): (&[u8], &[u8]),
    ) {
        if ids.sampled {
            self.sampled = TraceId::new(ids.trace);
        }
        let decisions = &self.busy.worker().decisions;
        self.draft = Some(decisions.begin(pod, destination, tagging, ids, method, path));
    }

    /// The request's trace begins here.
    pub(crate) fn note_trace(&mut self, traceparent: &[u8]) {
        if let Some(draft) = &mut self.draft {
            draft.decision.ids.trace = Ids::new(None, Some(traceparent)).trace;
        }
    }

    /// The request's trace is told in another form, too.
    pub(crate) fn link_trace(&mut self, traceparent: &[u8]) {
        self.note_trace(traceparent);
        self.decided(|| Event::Linked);
    }

    /// Something was decided.
    pub(crate) fn decided(&mut self, event: impl FnOnce() -> Event) {
        if let Some(draft) = &mut self.draft {
            draft.decision.push(event());
        }
    }

    /// Notes what is told of the request, if somebody will be. `found` is what its headers say of its trace. Returns a header
    /// that is to be added to the forwarded request: its trace begins here.
    pub(crate) fn describe<'r>(
        &mut self,
        worker: &Rc<Worker>,
        pod: &Rc<PodHere>,
        destination: &Destination,
        tagging: Option<&Tagging>,
        found: Found,
        request: impl FnOnce() -> Described<'r>,
    ) -> Option<(&'static str, Vec<u8>)> {
        let details = Details::begin(worker, pod, destination, tagging, found, request)?;
        self.sampled = details.trace().or(self.sampled);
        self.details.insert(Box::new(details)).first_header()
    }

    /// What its routes have decided.
    pub(crate) fn routed(&mut self, way: &Way) {
        if let Some(details) = &mut self.details {
            details.routed(way);
        }
        self.decided(|| Event::Routed { rule: way.course.rule.clone(), goes_on: way.goes_on() });
    }

    /// Who the endpoint that was chosen is told has sent the request; `None`: its headers are passed on as they are.
    pub(crate) fn sender(&self) -> Option<Sender> {
        self.details.as_ref()?.sender()
    }

    /// The request goes to this endpoint. Said again if it goes to another one after all.
    pub(crate) fn chosen(&mut self, series: &mut ServiceSeries, chosen: &Chosen) {
        let lane = chosen.endpoint().tag.as_ref();
        let series = series.lane(lane);
        match &self.active {
            Some((_, active)) if Arc::ptr_eq(active, series) => {}
            _ => {
                if let Some((active, _)) = self.active.take() {
                    active.withdraw();
                }
                self.active = Some((series.begin(), series.clone()));
            }
        }
        if let Some(details) = &mut self.details {
            details.chosen(chosen);
        }
        self.decided(|| Event::Chosen {
            endpoint: chosen.address(),
            pod: chosen.endpoint().pod.clone(),
            panic: chosen.panic,
        });
    }

    /// It goes over a connection to this address of the endpoint.
    pub(crate) fn connected(&mut self, chosen: &Chosen, to: SocketAddr) {
        if let Some(details) = &mut self.details {
            details.connected(to);
        }
        if to != chosen.address() {
            self.decided(|| Event::InOtherFamily { address: to });
        }
    }

    /// The attempt at the endpoint has ended and another one may follow; `status` is 0 if there was no answer.
    pub(crate) fn attempted(&mut self, status: u16, grpc_status: Option<u8>, error: Option<Reason>) {
        if let Some(details) = &mut self.details {
            details.attempted(status, grpc_status, error);
        }
        self.decided(|| Event::Failed { status, reason: error });
    }

    /// It is sent again.
    pub(crate) fn retried(&mut self) {
        if let Some(details) = &mut self.details {
            details.retried();
        }
        self.decided(|| Event::Retried);
    }

    /// The status of gRPC that the caller gets.
    pub(crate) fn set_grpc_status(&mut self, status: Option<u8>) {
        if let Some(details) = &mut self.details {
            details.set_grpc_status(status);
        }
    }

    /// What the service answers is an error, though the status does not say so.
    pub(crate) fn failed(&mut self) {
        if let Some((active, _)) = &mut self.active {
            active.note_failure();
        }
    }

    /// The answer is made up because of a rule.
    pub(crate) fn ruled(&mut self, cause: &Cause) {
        if let Some(details) = &mut self.details {
            details.ruled(cause);
        }
        if let Some(rule) = &cause.rule {
            self.decided(|| Event::Ruled { rule: rule.name.clone(), policy: rule.policy.clone() });
        }
    }

    /// The request has ended with what the caller got: `status` is 0 if it got none, `reason` says why Sluice made the
    /// answer up or broke it off. Returns when.
    pub(crate) fn finish(
        &mut self,
        series: &mut ServiceSeries,
        status: u16,
        reason: Option<Reason>,
    ) -> Nanos {
        let now = Nanos::now();
        if let Some(division) = self.timing.divide(self.started, now) {
            let numbers = series.service();
            numbers.took(division.upstream.0);
            if let Some(added) = division.added {
                numbers.added(added.0);
            }
        }
        let latency = now.since(self.started).into();
        let active = self.active.take().map_or_else(|| series.none().begin(), |(active, _)| active);
        if let Some(trace) = self.sampled {
            active.sampled(trace, latency, self.busy.worker().wall_clock(now));
        }
        active.finish(status, reason, latency, self.request_bytes, self.response_bytes);
        self.tell(status, reason, now);
        now
    }

    /// The tags of a request, as they came and as they were served.
    pub(crate) fn count_tags(
        &mut self,
        numbers: &ServiceMetrics,
        tagging: &Tagging,
        outcome: Option<TagOutcome>,
    ) {
        if let Some(details) = &mut self.details {
            details.set_tag_outcome(outcome.filter(|_| tagging.tag.is_some()));
        }
        if let Some(draft) = &mut self.draft {
            draft.decision.tag_outcome = outcome.filter(|_| tagging.tag.is_some());
        }
        for _ in 0..tagging.invalid {
            numbers.tag(TagOutcome::Invalid);
        }
        if tagging.conflict {
            numbers.tag(TagOutcome::Conflict);
        }
        if tagging.distrusted {
            numbers.tag(TagOutcome::Untrusted);
        }
        if let (Some(_), Some(outcome)) = (tagging.tag, outcome) {
            numbers.tag(outcome);
        }
    }

    fn tell(&mut self, status: u16, reason: Option<Reason>, now: Nanos) {
        if let Some(mut draft) = self.draft.take() {
            let decision = &mut draft.decision;
            (decision.ended, decision.took) = (now, now.since(self.started));
            (decision.status, decision.reason) = (status, reason);
            self.busy.worker().decisions.end(draft);
        }
        let Some(details) = self.details.take() else { return };
        details.tell(End {
            now,
            upstream: self.timing.upstream(now),
            started: self.started,
            status,
            reason,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // The series count themselves when `active` is dropped.
        if self.details.is_some() || self.draft.is_some() {
            self.tell(0, Some(Reason::ClientClosed), Nanos::now());
        }
    }
}
