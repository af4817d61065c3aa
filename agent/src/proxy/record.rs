//! What is told of one request when it has ended: numbers always, a log line if asked for.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use super::{
    answer::Cause,
    choose::Chosen,
    timing::Timing,
    worker::{Busy, PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Service},
    govern::{
        lane::{TagSource, Tagging},
        tag::Tag,
    },
    observe::{
        access_log::{Entry, TraceId},
        metrics::{ActiveRequest, Series, ServiceMetrics, ServiceSeries, TagOutcome},
        reason::Reason,
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
    /// Only if the access log is on.
    line: Option<Box<Line>>,
    /// Draining waits for it.
    _busy: Busy,
}

struct Line {
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    service: Arc<Service>,
    protocol: &'static str,
    method: Vec<u8>,
    path: Vec<u8>,
    trace_id: Option<TraceId>,
    tag: Option<String>,
    tag_source: Option<TagSource>,
    endpoint: Option<SocketAddr>,
    lane: Option<Tag>,
    rule: Option<Arc<str>>,
    attempts: u32,
    /// When the last attempt began.
    attempted: Nanos,
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
            line: None,
            _busy: worker.busy(),
        }
    }

    /// Notes what the access log shows of the request, if it is on.
    pub(crate) fn describe<'r>(
        &mut self,
        worker: &Rc<Worker>,
        pod: &Rc<PodHere>,
        destination: &Destination,
        protocol: &'static str,
        tagging: Option<&Tagging>,
        request: impl FnOnce() -> (&'r [u8], &'r [u8], Option<&'r [u8]>),
    ) {
        if !worker.access_log.is_on() {
            return;
        }
        let (method, path, traceparent) = request();
        self.line = Some(Box::new(Line {
            worker: worker.clone(),
            pod: pod.clone(),
            service: destination.service.clone(),
            protocol,
            method: method.to_vec(),
            path: path.to_vec(),
            trace_id: traceparent.and_then(TraceId::parse),
            tag: tagging.and_then(|tagging| Some(tagging.tag?.as_str().to_owned())),
            tag_source: tagging.and_then(|tagging| tagging.source),
            endpoint: None,
            lane: None,
            rule: None,
            attempts: 0,
            attempted: Nanos::ZERO,
        }));
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
        if let Some(line) = &mut self.line {
            line.endpoint = Some(chosen.address());
            line.lane = lane.cloned();
            line.attempts += 1;
            line.attempted = Nanos::now();
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
        if let (Some(line), Some(rule)) = (&mut self.line, &cause.rule) {
            line.rule = Some(rule.name.clone());
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
        active.finish(status, reason, latency, self.request_bytes, self.response_bytes);
        self.log(status, reason, now);
        now
    }

    /// The tags of a request, as they came and as they were served.
    pub(crate) fn count_tags(numbers: &ServiceMetrics, tagging: &Tagging, outcome: Option<TagOutcome>) {
        for _ in 0..tagging.invalid {
            numbers.tag(TagOutcome::Invalid);
        }
        if let (Some(_), Some(outcome)) = (tagging.tag, outcome) {
            numbers.tag(outcome);
        }
    }

    fn log(&mut self, status: u16, reason: Option<Reason>, now: Nanos) {
        let Some(line) = self.line.take() else { return };
        let workload = line.pod.pod.workload.load();
        line.worker.access_log.record(&Entry {
            time: SystemTime::now(),
            source_namespace: &workload.namespace,
            source_pod: &workload.name,
            method: &line.method,
            path: &line.path,
            protocol: line.protocol,
            status,
            service: &line.service,
            endpoint: line.endpoint,
            tag: line.tag.as_deref(),
            lane: line.lane.as_ref().map(Tag::as_str),
            tag_source: line.tag_source.map(TagSource::as_str),
            reason,
            rule: line.rule.as_deref(),
            attempts: line.attempts,
            upstream_duration: (line.attempts > 0).then(|| now.since(line.attempted).into()),
            duration: now.since(self.started).into(),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            trace_id: line.trace_id,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // The series count themselves when `active` is dropped.
        self.log(0, Some(Reason::CallerClosed), Nanos::now());
    }
}
