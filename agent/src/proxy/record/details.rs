//! What is told of a request besides numbers: a line of the access log, and spans. It is gathered only of those of which
//! somebody will be told.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use smallvec::SmallVec;

use crate::{
    clock::Nanos,
    cluster::model::{Destination, Service},
    govern::{
        lane::{RequestTag, TagSource, Tagging},
        tag::Tag,
    },
    observe::{
        access_log::Entry,
        metrics::TagOutcome,
        reason::Reason,
        trace::{
            AttemptSpan, RequestSpan, Traced,
            context::{Found, Parent, Sender, SpanId, TraceId},
        },
    },
    proxy::{
        answer::Cause,
        choose::Chosen,
        way::{self, Way},
        worker::{PodHere, Worker},
    },
};

/// Bytes of a method that are kept: all that have a meaning are shorter.
pub(crate) const MAX_METHOD: usize = 32;
/// Bytes of a path that are kept.
pub(crate) const MAX_PATH: usize = 2048;

/// A request as it came.
pub(crate) struct Described<'r> {
    /// `HTTP/1.1`, `HTTP/2`.
    pub(crate) protocol: &'static str,
    pub(crate) method: &'r [u8],
    /// With the query, which is not told.
    pub(crate) target: &'r [u8],
}

pub(super) struct Details {
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    service: Arc<Service>,
    protocol: &'static str,
    method: SmallVec<[u8; MAX_METHOD]>,
    path: Vec<u8>,
    tag: Option<RequestTag>,
    tag_source: Option<TagSource>,
    tag_outcome: Option<TagOutcome>,
    /// Of the endpoint that was chosen last.
    lane: Option<Tag>,
    /// The rule, and its policy.
    rule: Option<(Arc<str>, Option<Arc<str>>)>,
    /// What routes have done with it.
    routed: Option<Box<Routed>>,
    grpc_status: Option<u8>,
    retries: u32,
    attempts: SmallVec<[Attempt; 1]>,
    /// It is a line of the access log.
    logged: bool,
    /// What its headers say.
    parent: Option<Parent>,
    /// It has spans.
    traced: Option<Traced>,
}

/// What routes have done with a request.
#[derive(Default)]
struct Routed {
    /// The rule.
    by: Option<String>,
    /// The service that was called, if that is another.
    called: Option<String>,
    /// The path that came, if it was changed.
    path: Option<Vec<u8>>,
}

/// One endpoint that it was sent to.
struct Attempt {
    endpoint: SocketAddr,
    pod: Option<Arc<str>>,
    span: Option<SpanId>,
    began: Nanos,
    /// How it ended; `None`: it goes on.
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
struct Ended {
    at: Nanos,
    /// 0 if there was no answer.
    status: u16,
    grpc_status: Option<u8>,
    error: Option<&'static str>,
}

/// How a request has ended.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) started: Nanos,
    pub(super) now: Nanos,
    /// What endpoints took until their answers began.
    pub(super) upstream: Nanos,
    pub(super) status: u16,
    pub(super) reason: Option<Reason>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
}

impl Details {
    /// `None`: nobody will be told of it.
    pub(super) fn begin<'r>(
        worker: &Rc<Worker>,
        pod: &Rc<PodHere>,
        destination: &Destination,
        tagging: Option<&Tagging>,
        found: Found,
        request: impl FnOnce() -> Described<'r>,
    ) -> Option<Self> {
        let parent = match found {
            Found::Trace(parent) => Some(parent),
            Found::Unusable { .. } | Found::Nothing => None,
        };
        let rng = &mut worker.rng.borrow_mut();
        let traced = worker.tracer.decide(found, rng);
        let trace = traced.map(|traced| traced.trace).or(parent.map(|parent| parent.trace));
        let logged = worker.access_log.wants(destination.service.access_log, trace, rng);
        if !logged && traced.is_none() {
            return None;
        }
        let Described { protocol, method, target } = request();
        let path = path_of(target);
        Some(Self {
            worker: worker.clone(),
            pod: pod.clone(),
            service: destination.service.clone(),
            protocol,
            method: cut(method, MAX_METHOD).into(),
            path: cut(path, MAX_PATH).into(),
            tag: tagging.and_then(|tagging| tagging.tag),
            tag_source: tagging.and_then(|tagging| tagging.source),
            tag_outcome: None,
            lane: None,
            rule: None,
            routed: None,
            grpc_status: None,
            retries: 0,
            attempts: SmallVec::new(),
            logged,
            parent,
            traced,
        })
    }

    /// Its routes have decided.
    pub(super) fn routed(&mut self, way: &Way) {
        let called = &way.called.service;
        let is_other = !Arc::ptr_eq(called, &self.service);
        let path = way.came.as_deref().map(|target| cut(path_of(target), MAX_PATH).to_vec());
        self.routed = Some(Box::new(Routed {
            by: way.course.rule.as_deref().map(way::shown),
            called: is_other.then(|| called.to_string()),
            path: path.filter(|path| *path != self.path),
        }));
    }

    /// The trace in which it has spans.
    pub(super) fn trace(&self) -> Option<TraceId> {
        self.traced.map(|traced| traced.trace)
    }

    /// The header with which a trace that begins here is passed on.
    pub(super) fn first_header(&self) -> Option<(&'static str, Vec<u8>)> {
        self.worker.tracer.first_header(self.traced.as_ref()?)
    }

    /// It goes to this endpoint.
    pub(super) fn chosen(&mut self, chosen: &Chosen) {
        let endpoint = chosen.endpoint();
        self.lane.clone_from(&endpoint.tag);
        self.tag_outcome = chosen.tag_outcome();
        let span = self.traced.map(|_| SpanId::random(&mut self.worker.rng.borrow_mut()));
        self.attempts.push(Attempt {
            endpoint: chosen.address(),
            pod: endpoint.pod.clone(),
            span,
            began: if span.is_some() { Nanos::now() } else { Nanos::ZERO },
            ended: None,
        });
    }

    /// It goes there by this address.
    pub(super) fn connected(&mut self, to: SocketAddr) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.endpoint = to;
        }
    }

    /// Who the endpoint that it goes to is told has sent it; `None`: what its headers say stays.
    pub(super) fn sender(&self) -> Option<Sender> {
        Some(self.traced?.sender(self.attempts.last()?.span?))
    }

    /// The attempt at the endpoint has ended; `status` is 0 if there was no answer.
    pub(super) fn attempted(&mut self, status: u16, grpc_status: Option<u8>, error: Option<Reason>) {
        // Times are told by spans only.
        if let Some(attempt) = self.attempts.last_mut().filter(|attempt| attempt.span.is_some()) {
            let error = error.map(Reason::code);
            attempt.ended.get_or_insert_with(|| Ended { at: Nanos::now(), status, grpc_status, error });
        }
    }

    pub(super) fn retried(&mut self) {
        self.retries += 1;
    }

    pub(super) fn set_tag_outcome(&mut self, outcome: Option<TagOutcome>) {
        self.tag_outcome = outcome;
    }

    pub(super) fn set_grpc_status(&mut self, status: Option<u8>) {
        self.grpc_status = status;
    }

    pub(super) fn ruled(&mut self, cause: &Cause) {
        self.rule = cause.rule.as_deref().map(|rule| (rule.name.clone(), rule.policy.clone()));
    }

    /// Tells of it.
    pub(super) fn tell(mut self, end: End) {
        self.attempted(end.status, self.grpc_status, end.reason);
        let time = self.worker.wall_clock(end.now);
        if self.logged {
            self.log(&end, time);
        }
        if let Some(traced) = self.traced {
            let tracer = self.worker.tracer.clone();
            tracer.record(Box::new(self.into_span(traced, &end, time)));
        }
    }

    fn log(&self, end: &End, time: SystemTime) {
        let workload = self.pod.pod.workload.load();
        let last = self.attempts.last();
        let parent = self.parent.map(|parent| (parent.trace, parent.span));
        let trace = self.traced.map(|traced| (traced.trace, traced.span)).or(parent);
        self.worker.access_log.record(&Entry {
            time,
            source_namespace: &workload.namespace,
            source_pod: &workload.name,
            method: &self.method,
            path: &self.path,
            protocol: self.protocol,
            status: end.status,
            grpc_status: self.grpc_status,
            service: &self.service.name,
            namespace: &self.service.namespace,
            port: self.service.port,
            endpoint: last.map(|attempt| attempt.endpoint),
            tag: self.tag.as_ref().map(RequestTag::as_str),
            tag_source: self.tag_source.map(TagSource::as_str),
            lane: self.lane.as_ref().map(Tag::as_str),
            reason: end.reason,
            rule: self.rule.as_ref().map(|(rule, _)| &**rule),
            policy: self.rule.as_ref().and_then(|(_, policy)| policy.as_deref()),
            // Only who is called asks for one.
            token: None,
            route: self.routed.as_ref().and_then(|routed| routed.by.as_deref()),
            called: self.routed.as_ref().and_then(|routed| routed.called.as_deref()),
            called_path: self.routed.as_ref().and_then(|routed| routed.path.as_deref()),
            retries: self.retries,
            upstream_duration: last.map(|_| end.upstream.into()),
            duration: end.now.since(end.started).into(),
            request_bytes: end.request_bytes,
            response_bytes: end.response_bytes,
            trace,
        });
    }

    fn into_span(self, traced: Traced, end: &End, time: SystemTime) -> RequestSpan {
        let workload = self.pod.pod.workload.load();
        let ago = |then: Nanos| time.checked_sub(Duration::from(end.now.since(then))).unwrap_or(time);
        let attempts = self.attempts.into_iter().filter_map(|attempt| {
            let ended = attempt.ended?;
            Some(AttemptSpan {
                span: attempt.span?,
                start: ago(attempt.began),
                end: ago(ended.at),
                endpoint: attempt.endpoint,
                pod: attempt.pod,
                status: ended.status,
                grpc_status: ended.grpc_status,
                error: ended.error,
            })
        });
        let (rule, policy) = self.rule.unzip();
        RequestSpan {
            traced,
            start: ago(end.started),
            end: time,
            protocol_version: self.protocol.strip_prefix("HTTP/").unwrap_or(self.protocol),
            method: self.method.to_vec(),
            path: self.path,
            source_namespace: workload.namespace.clone(),
            source_pod: workload.name.clone(),
            destination_namespace: self.service.namespace.clone(),
            destination_service: self.service.name.clone(),
            destination_port: self.service.port,
            tag: self.tag.map(|tag| tag.as_str().to_owned()),
            tag_source: self.tag_source.map(TagSource::as_str),
            lane: self.lane.map(|lane| lane.as_str().to_owned()),
            tag_outcome: self.tag_outcome.map(TagOutcome::as_str),
            status: end.status,
            grpc_status: self.grpc_status,
            reason: end.reason,
            rule,
            policy: policy.flatten(),
            request_bytes: end.request_bytes,
            response_bytes: end.response_bytes,
            retries: self.retries,
            attempts: attempts.collect(),
        }
    }
}

/// A target without its query.
fn path_of(target: &[u8]) -> &[u8] {
    target.split(|byte| *byte == b'?').next().unwrap_or_default()
}

pub(crate) fn cut(bytes: &[u8], most: usize) -> &[u8] {
    &bytes[..bytes.len().min(most)]
}
