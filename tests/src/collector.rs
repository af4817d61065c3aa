//! A collector of OpenTelemetry: takes traces and metrics over OTLP, by gRPC and by HTTP on one port, decodes them and keeps
//! them, or throws them away.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::Metric,
    resource::v1::Resource,
    trace::v1 as otlp,
};
use prost::Message;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{NetNs, eventually};

/// Attributes by their keys, as text.
pub type Attributes = BTreeMap<String, String>;

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct Span {
    /// In digits.
    pub trace: String,
    pub id: String,
    /// Empty if there is none.
    pub parent: String,
    pub name: String,
    /// It is of kind client; else of kind server.
    pub client: bool,
    pub failed: bool,
    pub start_nanos: u64,
    pub end_nanos: u64,
    pub attributes: Attributes,
    pub resource: Attributes,
}

impl Span {
    /// An attribute; empty if it is not there.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", |value| value)
    }
}

/// Metrics that were received together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub resource: Attributes,
    pub metrics: Vec<Metric>,
}

#[derive(Debug, Default)]
struct State {
    spans: Vec<Span>,
    metrics: Vec<Metrics>,
    /// Requests, whatever became of them.
    requests: u64,
    /// So many more requests are told to come again.
    busy: u64,
    swallows: bool,
}

/// A running collector. Dropping it ends it.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Ended without waiting, as the collector may be dropped on a runtime.
    runtime: Option<Runtime>,
}

impl Collector {
    /// On a free port of this network namespace.
    pub fn start() -> Result<Self> {
        Self::serve(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    }

    /// On a free port of another network namespace.
    pub fn start_in(netns: &NetNs) -> Result<Self> {
        Self::serve(netns.run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??)
    }

    fn serve(listener: std::net::TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("collector").enable_all().build()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it is bound, and does not block");
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, state.clone()));
                    // A connection that the exporter ends is no failure.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { address, state, runtime: Some(runtime) })
    }

    /// As in `http://127.0.0.1:4317`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests are told to come again.
    pub fn busy_for(&self, requests: u64) {
        lock(&self.state).busy = requests;
    }

    /// From now on nothing is kept.
    pub fn swallow(&self) {
        lock(&self.state).swallows = true;
    }

    /// How often it was asked.
    pub fn requests(&self) -> u64 {
        lock(&self.state).requests
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.state).spans.clone()
    }

    /// Waits until so many spans of a trace are there; in the order in which they began.
    pub fn trace(&self, trace: &str, spans: usize) -> Result<Vec<Span>> {
        eventually(&format!("{spans} spans of trace {trace}"), || {
            let mut found = self.spans();
            found.retain(|span| span.trace == trace);
            ensure!(found.len() == spans, "there are {found:#?}");
            found.sort_by_key(|span| span.start_nanos);
            Ok(found)
        })
    }

    /// Waits for more metrics, and takes the last ones.
    pub fn next_metrics(&self) -> Result<Metrics> {
        eventually("metrics come", || {
            let mut state = lock(&self.state);
            let last = state.metrics.pop().context("there are none")?;
            state.metrics.clear();
            Ok(last)
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Body>> {
    let grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let metrics = match request.uri().path() {
        "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => false,
        "/v1/metrics" | "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => true,
        other => anyhow::bail!("nobody sends telemetry to {other}"),
    };
    let mut body = request.into_body().collect().await?.to_bytes();
    let busy = {
        let mut state = lock(&state);
        state.requests += 1;
        let busy = state.busy > 0;
        state.busy = state.busy.saturating_sub(1);
        busy
    };
    if grpc {
        // Whether it is compressed, and its length.
        ensure!(body.len() >= 5 && body[0] == 0, "a gRPC message that is no message: {body:?}");
        body = body.slice(5..);
    }
    if !busy {
        take(&state, metrics, body)?;
    }
    Ok(if grpc { grpc_answer(busy) } else { http_answer(busy) })
}

fn http_answer(busy: bool) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() =
        if busy { hyper::StatusCode::SERVICE_UNAVAILABLE } else { hyper::StatusCode::OK };
    response
}

fn grpc_answer(busy: bool) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(if busy { "14" } else { "0" }));
    // An empty message.
    let message =
        Full::new(Bytes::from_static(&[0; 5])).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(message.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn take(state: &Mutex<State>, metrics: bool, body: Bytes) -> Result<()> {
    if lock(state).swallows {
        return Ok(());
    }
    if metrics {
        let request = ExportMetricsServiceRequest::decode(body)?;
        let received = request.resource_metrics.into_iter().map(|received| Metrics {
            resource: resource(received.resource),
            metrics: received.scope_metrics.into_iter().flat_map(|scope| scope.metrics).collect(),
        });
        lock(state).metrics.extend(received);
        return Ok(());
    }
    let request = ExportTraceServiceRequest::decode(body)?;
    for received in request.resource_spans {
        let resource = resource(received.resource);
        let spans = received.scope_spans.into_iter().flat_map(|scope| scope.spans);
        lock(state).spans.extend(spans.map(|span| read(span, &resource)));
    }
    Ok(())
}

fn read(span: otlp::Span, resource: &Attributes) -> Span {
    Span {
        trace: digits(&span.trace_id),
        id: digits(&span.span_id),
        parent: digits(&span.parent_span_id),
        client: span.kind() == otlp::span::SpanKind::Client,
        failed: span.status.as_ref().is_some_and(|status| status.code() == otlp::status::StatusCode::Error),
        name: span.name,
        start_nanos: span.start_time_unix_nano,
        end_nanos: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        resource: resource.clone(),
    }
}

fn resource(resource: Option<Resource>) -> Attributes {
    attributes(resource.map(|resource| resource.attributes).unwrap_or_default())
}

fn digits(id: &[u8]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Attributes as text: those that are numbers too.
pub fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let text = |pair: KeyValue| {
        let value = match pair.value?.value? {
            Value::StringValue(text) => text,
            Value::IntValue(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        Some((pair.key, value))
    };
    pairs.into_iter().filter_map(text).collect()
}
