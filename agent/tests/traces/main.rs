//! Spans as a collector gets them: real OTLP over gRPC and HTTP, decoded; and collectors that fail.

mod collector;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use prometheus::IntCounter;
use sluice::observe::trace::{
    AttemptSpan, Options, Protocol, RequestSpan, Traced, Tracer,
    context::{Parent, Propagation, SpanId, TraceId},
};

use collector::Collector;

/// As long as a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn counter() -> IntCounter {
    IntCounter::new("dropped", "Spans that were dropped.").unwrap()
}

fn start(endpoint: &str, protocol: Protocol) -> (Tracer, IntCounter) {
    let options = Options {
        endpoint: endpoint.to_owned(),
        protocol,
        propagation: vec![Propagation::W3c],
        root_ratio: 0.0,
        node: Some("node-a".to_owned()),
    };
    let dropped = counter();
    let (tracer, exporter) = Tracer::start(&options, dropped.clone()).unwrap();
    tokio::spawn(exporter.run());
    (tracer, dropped)
}

fn request(trace: u128) -> Box<RequestSpan> {
    let start = SystemTime::now();
    let trace = TraceId::new(trace).unwrap();
    let sender = SpanId::new(3).unwrap();
    let parent = Parent { trace, span: sender, sampled: Some(true), form: Propagation::W3c };
    Box::new(RequestSpan {
        traced: Traced { trace, span: SpanId::new(4).unwrap(), parent: Some(parent) },
        start,
        end: start + Duration::from_millis(5),
        protocol_version: "1.1",
        method: b"GET".to_vec(),
        path: b"/orders".to_vec(),
        source_namespace: "shop".into(),
        source_pod: "gateway-0".into(),
        destination_namespace: "shop".into(),
        destination_service: "orders".into(),
        destination_port: 8080,
        tag: Some("gray".to_owned()),
        tag_source: Some("header"),
        lane: None,
        tag_outcome: Some("fell_back"),
        status: 200,
        grpc_status: None,
        reason: None,
        rule: None,
        request_bytes: 0,
        response_bytes: 2,
        attempts: [AttemptSpan {
            span: SpanId::new(5).unwrap(),
            start,
            end: start + Duration::from_millis(4),
            endpoint: "10.0.0.7:80".parse().unwrap(),
            pod: Some(Arc::from("orders-0")),
            status: 200,
            error: None,
        }]
        .into_iter()
        .collect(),
    })
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let pair = span.attributes.iter().find(|pair| pair.key == key)?;
    match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came");
}

#[tokio::test]
async fn a_collector_gets_a_request_and_its_attempts() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut collector = Collector::start(protocol, &[]).await;
        let (tracer, dropped) = start(&collector.endpoint, protocol);
        tracer.record(request(0xabc));
        let received = collector.next(PATIENCE).await;
        let resource = received.resource.expect("a resource");
        let names: Vec<_> = resource.attributes.iter().map(|pair| pair.key.as_str()).collect();
        assert!(names.contains(&"service.name") && names.contains(&"k8s.node.name"), "{names:?}");
        let spans: Vec<Span> = received.scope_spans.into_iter().flat_map(|scope| scope.spans).collect();
        let [own, attempt] = &spans[..] else { panic!("{protocol:?}: {} spans", spans.len()) };
        assert_eq!(own.trace_id, 0xabc_u128.to_be_bytes());
        assert_eq!(own.parent_span_id, 3_u64.to_be_bytes());
        assert_eq!(attempt.parent_span_id, own.span_id);
        assert_eq!(attribute(own, "sluice.tag").as_deref(), Some("gray"));
        assert_eq!(attribute(own, "sluice.lane").as_deref(), Some("baseline"));
        assert_eq!(attribute(own, "sluice.tag.outcome").as_deref(), Some("fell_back"));
        assert_eq!(attribute(own, "http.response.status_code").as_deref(), Some("200"));
        assert_eq!(attribute(attempt, "network.peer.port").as_deref(), Some("80"));
        assert_eq!(dropped.get(), 0, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut collector = Collector::start(protocol, &[collector::Fault::Busy]).await;
        let (tracer, dropped) = start(&collector.endpoint, protocol);
        tracer.record(request(1));
        let received = collector.next(PATIENCE).await;
        assert_eq!(received.scope_spans[0].spans.len(), 2, "{protocol:?}");
        assert_eq!(dropped.get(), 0, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_dead_collector_costs_the_spans_only() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        // Bound and dropped: nobody listens there.
        let endpoint = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let (tracer, dropped) = start(&endpoint, protocol);
        // More than the queue holds, without a single await: recording never waits.
        for trace in 1..=6_000 {
            tracer.record(request(trace));
        }
        let at_once = dropped.get();
        assert!(at_once >= 2 * (6_000 - 4_096 - 1), "{at_once}");
        // And what was queued goes in the end too.
        until(|| dropped.get() >= at_once + 512).await;
    }
}

#[tokio::test]
async fn a_collector_is_an_http_address() {
    for endpoint in ["", "collector:4317", "https://collector:4317", "ftp://collector", "http://"] {
        let options = Options {
            endpoint: endpoint.to_owned(),
            protocol: Protocol::Grpc,
            propagation: vec![Propagation::W3c],
            root_ratio: 0.0,
            node: None,
        };
        let error = Tracer::start(&options, counter()).err().map(|error| error.to_string());
        assert!(
            error.as_ref().is_some_and(|error| error.contains("http://HOST:PORT")),
            "{endpoint}: {error:?}"
        );
    }
}
