//! Traces: what OpenTelemetry is told of a request.
//!
//! A request that carries a sampled trace gets a span of its own (kind server: the time in Sluice), and a child for every
//! endpoint that it was sent to (kind client), whose id the endpoint sees as its parent. What the caller decided about
//! sampling stands; a trace is begun only if the operator asks for it. Spans are put in a bounded queue by the worker and
//! described, batched and sent elsewhere ([`export`]): a collector that is slow or gone costs the spans, never a request.
//!
//! The proxy does not hand requests to it yet, and no flag turns it on.

pub mod context;
mod export;
mod span;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use prometheus::IntCounter;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use self::context::{Found, Parent, Propagation, Scan, SpanId, TraceId};
pub use self::export::{Exporter, Protocol, StartError};
use super::reason::Reason;

/// Spans of requests that may wait to be sent.
const QUEUE: usize = 4096;

/// Bytes of a path that a span shows.
const MAX_PATH: usize = 1024;

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// The collector: `http://host:4317`.
    pub endpoint: String,
    pub protocol: Protocol,
    /// The forms in which requests carry their traces; the first is written when a trace begins here.
    pub propagation: Vec<Propagation>,
    /// The part of requests without a trace, 0 to 1, for which one is begun.
    pub root_ratio: f64,
    /// This node's name, for the resource.
    pub node: Option<String>,
}

/// Where workers put the spans of requests. Cloned for each worker.
#[derive(Clone, Debug)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    propagation: Vec<Propagation>,
    root_ratio: f64,
    queue: mpsc::Sender<Box<RequestSpan>>,
    dropped: IntCounter,
}

/// A request that is traced: its place in the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    pub trace: TraceId,
    /// The request's own span.
    pub span: SpanId,
    /// The span that sent it; `None` if the trace begins here.
    pub parent: Option<Parent>,
}

/// Everything that a request's spans tell. Filled in as the request goes its way.
#[derive(Debug)]
pub struct RequestSpan {
    pub traced: Traced,
    pub start: SystemTime,
    pub end: SystemTime,
    /// `1.1`, `2`.
    pub protocol_version: &'static str,
    pub method: Vec<u8>,
    /// Without the query, which may hold secrets.
    pub path: Vec<u8>,
    pub source_namespace: Arc<str>,
    pub source_pod: Arc<str>,
    pub destination_namespace: Arc<str>,
    pub destination_service: Arc<str>,
    pub destination_port: u16,
    pub tag: Option<String>,
    pub tag_source: Option<&'static str>,
    /// The lane that answered; `None` is the baseline.
    pub lane: Option<String>,
    /// What became of the tag: `routed`, `fell_back`, `refused`.
    pub tag_outcome: Option<&'static str>,
    /// 0 if the caller got none.
    pub status: u16,
    pub grpc_status: Option<u8>,
    pub reason: Option<Reason>,
    /// The rule that refused, as in `TrafficPolicy shop/orders: per-caller`.
    pub rule: Option<String>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub attempts: SmallVec<[AttemptSpan; 1]>,
}

/// One endpoint that the request was sent to.
#[derive(Debug)]
pub struct AttemptSpan {
    pub span: SpanId,
    pub start: SystemTime,
    pub end: SystemTime,
    pub endpoint: SocketAddr,
    pub pod: Option<Arc<str>>,
    /// 0 if it did not answer.
    pub status: u16,
    /// Why it counts as failed.
    pub error: Option<&'static str>,
}

impl Tracer {
    /// Starts to export. The exporter is to be run; it ends some time after the last tracer is gone.
    pub fn start(options: &Options, dropped: IntCounter) -> Result<(Self, Exporter), StartError> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let exporter = Exporter::new(options, waiting, dropped.clone())?;
        let (propagation, root_ratio) = (options.propagation.clone(), options.root_ratio);
        Ok((Self(Some(Arc::new(Inner { propagation, root_ratio, queue, dropped }))), exporter))
    }

    /// Requests are not traced, and their headers passed on as they are.
    pub fn off() -> Self {
        Self(None)
    }

    /// What to show a request's headers to; `None` if there is no need.
    pub fn scan(&self) -> Option<Scan<'_>> {
        self.0.as_ref().map(|inner| Scan::new(&inner.propagation))
    }

    /// Whether a request is traced, and with which ids.
    pub fn decide(&self, found: Found, rng: &mut fastrand::Rng) -> Option<Traced> {
        let inner = self.0.as_ref()?;
        match found {
            Found::Trace(parent) => {
                // All who are left to decide decide the same for a trace.
                let sampled = parent.sampled.unwrap_or_else(|| is_in_ratio(parent.trace, inner.root_ratio));
                let span = sampled.then(|| SpanId::random(rng))?;
                Some(Traced { trace: parent.trace, span, parent: Some(parent) })
            }
            Found::Unusable { .. } => None,
            Found::Nothing => {
                if inner.root_ratio <= 0.0 {
                    return None;
                }
                let trace = TraceId::random(rng);
                is_in_ratio(trace, inner.root_ratio).then(|| Traced {
                    trace,
                    span: SpanId::random(rng),
                    parent: None,
                })
            }
        }
    }

    /// The header with which a trace that begins here is passed on to an endpoint.
    pub fn first_header(&self, traced: &Traced, attempt: SpanId) -> Option<(&'static str, Vec<u8>)> {
        let inner = self.0.as_ref().filter(|_| traced.parent.is_none())?;
        Some(match inner.propagation.first()? {
            Propagation::W3c => ("traceparent", context::traceparent(traced.trace, attempt, true).to_vec()),
            // B3's many headers and its single one mean the same; who reads the many reads the one.
            Propagation::B3 | Propagation::B3Multi => {
                ("b3", format!("{}-{attempt}-1-{}", traced.trace, traced.span).into_bytes())
            }
        })
    }

    /// Hands a request's spans over to be sent. Never waits: what cannot be queued is dropped and counted.
    pub fn record(&self, span: Box<RequestSpan>) {
        if let Some(inner) = &self.0 {
            let spans = 1 + span.attempts.len() as u64;
            if inner.queue.try_send(span).is_err() {
                inner.dropped.inc_by(spans);
            }
        }
    }
}

/// As OpenTelemetry's TraceIdRatioBased: by the trace id's last bytes, so that whoever decides so decides the same.
/// <https://opentelemetry.io/docs/specs/otel/trace/sdk/#traceidratiobased>
fn is_in_ratio(trace: TraceId, ratio: f64) -> bool {
    if ratio >= 1.0 {
        return true;
    }
    let bound = (ratio.max(0.0) * (1_u64 << 63) as f64) as u64;
    (trace.get() as u64) >> 1 < bound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(propagation: &[Propagation], root_ratio: f64) -> (Tracer, mpsc::Receiver<Box<RequestSpan>>) {
        let (queue, waiting) = mpsc::channel(1);
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let propagation = propagation.to_vec();
        (Tracer(Some(Arc::new(Inner { propagation, root_ratio, queue, dropped }))), waiting)
    }

    fn parent(sampled: Option<bool>) -> Found {
        let (trace, span) = (TraceId::new(7 << 64 | 1).unwrap(), SpanId::new(2).unwrap());
        Found::Trace(Parent { trace, span, sampled, form: Propagation::B3 })
    }

    #[test]
    fn sampling_follows_the_parent() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (tracer, _waiting) = tracer(&[Propagation::W3c], 0.0);
        assert!(tracer.decide(parent(Some(true)), &mut rng).is_some_and(|traced| traced.parent.is_some()));
        for found in [
            parent(Some(false)),
            parent(None),
            Found::Nothing,
            Found::Unusable { denied: false },
            Found::Unusable { denied: true },
        ] {
            assert_eq!(tracer.decide(found, &mut rng), None, "{found:?}");
        }
        assert_eq!(Tracer::off().decide(parent(Some(true)), &mut rng), None);
    }

    #[test]
    fn traces_begin_for_the_part_of_requests_that_was_asked_for() {
        let mut rng = fastrand::Rng::with_seed(2);
        let (tracer, _waiting) = tracer(&[Propagation::W3c], 0.1);
        let begun = (0..20_000).filter_map(|_| tracer.decide(Found::Nothing, &mut rng)).count();
        assert!((1_800..2_200).contains(&begun), "{begun}");
        // Contradicting headers are never sent.
        assert_eq!(tracer.decide(Found::Unusable { denied: false }, &mut rng), None);
    }

    #[test]
    fn a_trace_that_begins_here_is_told_in_the_first_form() {
        let mut rng = fastrand::Rng::with_seed(3);
        for (form, name) in [(Propagation::W3c, "traceparent"), (Propagation::B3, "b3")] {
            let (tracer, _waiting) = tracer(&[form], 1.0);
            let traced = tracer.decide(Found::Nothing, &mut rng).unwrap();
            let attempt = SpanId::random(&mut rng);
            let (header, value) = tracer.first_header(&traced, attempt).unwrap();
            assert_eq!(header, name);
            let mut scan = Scan::new(std::slice::from_ref(&form));
            scan.see(header.as_bytes(), &value);
            let sent = Parent { trace: traced.trace, span: attempt, sampled: Some(true), form };
            assert_eq!(scan.finish(), Found::Trace(sent));
            let continued = tracer.decide(parent(Some(true)), &mut rng).unwrap();
            assert_eq!(tracer.first_header(&continued, attempt), None);
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (tracer, _waiting) = tracer(&[Propagation::W3c], 1.0);
        let traced = tracer.decide(Found::Nothing, &mut fastrand::Rng::with_seed(4)).unwrap();
        for _ in 0..3 {
            tracer.record(Box::new(span::tests::request(traced)));
        }
        // Each is a request's span and one of an attempt; the first pair waits.
        assert_eq!(tracer.0.unwrap().dropped.get(), 4);
    }
}
