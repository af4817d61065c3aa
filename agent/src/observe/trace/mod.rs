//! Traces: what OpenTelemetry is told of a request.
//!
//! A request that carries a sampled trace gets a span of its own (kind server: the time in Sluice), and a child for every
//! endpoint that it was sent to (kind client), whose id the endpoint sees as its parent. What the caller decided about
//! sampling stands; a trace is begun only if the operator asks for it. Spans are put in a bounded queue by the worker and
//! described, batched and sent elsewhere ([`export`]): a collector that is slow or gone costs the spans, never a request.
//! A request that is not sampled is passed on as it came.

pub mod context;
mod export;
mod span;

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use prometheus::IntCounter;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use opentelemetry_otlp::ExporterBuildError;

use self::context::{Found, Parent, Propagation, Scan, Sender, SpanId, TraceId};
pub use self::export::Exporter;
use super::{
    otlp::{Address, Identity, Protocol},
    reason::Reason,
    sampling::Ratio,
};

/// Bytes of a path that a span shows.
const MAX_PATH: usize = 1024;

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    pub endpoint: Address,
    pub protocol: Protocol,
    /// The forms in which requests carry their traces; the first is written when a trace begins here.
    pub propagation: Vec<Propagation>,
    /// The part of requests without a trace for which one is begun.
    pub roots: Ratio,
    /// Requests whose spans may wait to be sent. Each takes about 2 KiB at most, and a little for every further attempt.
    pub queue: usize,
    pub identity: Identity,
}

/// Reads what requests say of their traces, and takes their spans. Cloned for each worker.
#[derive(Clone, Debug)]
pub struct Tracer {
    propagation: Arc<[Propagation]>,
    /// `None`: no request is traced here.
    spans: Option<Arc<Spans>>,
}

#[derive(Debug)]
struct Spans {
    roots: Ratio,
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

impl Traced {
    /// What an endpoint is told of an attempt.
    pub fn sender(&self, attempt: SpanId) -> Sender {
        let multi = self.parent.is_some_and(|parent| parent.multi);
        Sender { trace: self.trace, span: attempt, parent: self.span, multi }
    }
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
    /// The rule that is behind the reason.
    pub rule: Option<Arc<str>>,
    /// The TrafficPolicy of the rule, as in `shop/orders`.
    pub policy: Option<Arc<str>>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// How often it was sent again, for whatever cause.
    pub retries: u32,
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
    pub grpc_status: Option<u8>,
    /// Why it counts as failed.
    pub error: Option<&'static str>,
}

impl Tracer {
    /// Starts to take spans. The exporter is to be run; it ends some time after the last tracer is gone.
    ///
    /// Must be called within a Tokio runtime.
    pub fn start(options: &Options, dropped: IntCounter) -> Result<(Self, Exporter), ExporterBuildError> {
        let (queue, waiting) = mpsc::channel(options.queue.max(1));
        let exporter = Exporter::new(options, waiting, dropped.clone())?;
        let spans = Spans { roots: options.roots, queue, dropped };
        Ok((Self { spans: Some(Arc::new(spans)), ..Self::off(&options.propagation) }, exporter))
    }

    /// One that traces nothing, so that requests' headers are passed on as they are.
    pub fn off(propagation: &[Propagation]) -> Self {
        let mut distinct: Vec<Propagation> = Vec::new();
        for form in propagation {
            if !distinct.contains(form) {
                distinct.push(*form);
            }
        }
        Self { propagation: distinct.into(), spans: None }
    }

    pub fn is_on(&self) -> bool {
        self.spans.is_some()
    }

    /// What to show a request's headers to.
    pub fn scan(&self) -> Scan<'_> {
        Scan::new(&self.propagation)
    }

    /// Whether a request is traced, and with which ids.
    pub fn decide(&self, found: Found, rng: &mut fastrand::Rng) -> Option<Traced> {
        let spans = self.spans.as_ref()?;
        match found {
            Found::Trace(parent) => {
                // All who are left to decide decide the same for a trace.
                let sampled = parent.sampled.unwrap_or_else(|| spans.roots.includes(parent.trace));
                let span = sampled.then(|| SpanId::random(rng))?;
                Some(Traced { trace: parent.trace, span, parent: Some(parent) })
            }
            // A new trace would contradict what is there.
            Found::Unusable { .. } => None,
            Found::Nothing => {
                if spans.roots.is_none() {
                    return None;
                }
                let trace = TraceId::random(rng);
                let span = spans.roots.includes(trace).then(|| SpanId::random(rng))?;
                Some(Traced { trace, span, parent: None })
            }
        }
    }

    /// The header with which a trace that begins here is passed on, as the first of its senders' would be.
    pub fn first_header(&self, traced: &Traced) -> Option<(&'static str, Vec<u8>)> {
        if traced.parent.is_some() {
            return None;
        }
        let Traced { trace, span, .. } = traced;
        Some(match self.propagation.first()? {
            Propagation::W3c => ("traceparent", context::traceparent(*trace, *span, true).to_vec()),
            // B3's many headers and its single one mean the same; who reads the many reads the one.
            Propagation::B3 | Propagation::B3Multi => ("b3", format!("{trace}-{span}-1-{span}").into_bytes()),
        })
    }

    /// Hands a request's spans over to be sent. Never waits: what cannot be queued is dropped and counted.
    pub fn record(&self, span: Box<RequestSpan>) {
        if let Some(Spans { queue, dropped, .. }) = self.spans.as_deref() {
            let spans = 1 + span.attempts.len() as u64;
            if queue.try_send(span).is_err() {
                dropped.inc_by(spans);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(propagation: &[Propagation], roots: f64) -> (Tracer, mpsc::Receiver<Box<RequestSpan>>) {
        let (queue, waiting) = mpsc::channel(1);
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let spans = Spans { roots: Ratio::new(roots).unwrap(), queue, dropped };
        (Tracer { spans: Some(Arc::new(spans)), ..Tracer::off(propagation) }, waiting)
    }

    fn parent(sampled: Option<bool>) -> Found {
        let (trace, span) = (TraceId::new(7 << 64 | 1).unwrap(), SpanId::new(2).unwrap());
        Found::Trace(Parent { trace, span, sampled, multi: false })
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
        assert_eq!(Tracer::off(&[Propagation::W3c]).decide(parent(Some(true)), &mut rng), None);
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
            let (header, mut value) = tracer.first_header(&traced).unwrap();
            assert_eq!(header, name);
            let attempt = SpanId::random(&mut rng);
            context::put(header.as_bytes(), &mut value, &traced.sender(attempt));
            let mut scan = Scan::new(std::slice::from_ref(&form));
            scan.see(header.as_bytes(), &value);
            let sent = Parent { trace: traced.trace, span: attempt, sampled: Some(true), multi: false };
            assert_eq!(scan.finish(), Found::Trace(sent));
            let continued = tracer.decide(parent(Some(true)), &mut rng).unwrap();
            assert_eq!(tracer.first_header(&continued), None);
        }
    }

    #[test]
    fn a_form_that_is_named_twice_is_named_once() {
        let [w3c, b3, multi] = [Propagation::W3c, Propagation::B3, Propagation::B3Multi];
        let tracer = Tracer::off(&[w3c, w3c, w3c, b3, w3c, multi]);
        let mut scan = tracer.scan();
        scan.see(b"x-b3-traceid", b"4bf92f3577b34da6");
        scan.see(b"x-b3-spanid", b"00f067aa0ba902b7");
        assert!(matches!(scan.finish(), Found::Trace(Parent { multi: true, .. })));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (tracer, _waiting) = tracer(&[Propagation::W3c], 1.0);
        let traced = tracer.decide(Found::Nothing, &mut fastrand::Rng::with_seed(4)).unwrap();
        for _ in 0..3 {
            tracer.record(Box::new(span::tests::request(traced)));
        }
        // Each is a request's span and one of an attempt; the first pair waits.
        assert_eq!(tracer.spans.unwrap().dropped.get(), 4);
    }
}
