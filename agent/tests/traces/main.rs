//! Spans and metrics as a collector gets them: real OTLP over gRPC and HTTP, decoded; and collectors that fail.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};
use prometheus::IntCounter;
use sluice::observe::{
    metrics::{Detection, Metrics},
    otlp::{self, Identity, Protocol},
    sampling::Ratio,
    trace::{
        AttemptSpan, Options, RequestSpan, Traced, Tracer,
        context::{Parent, Propagation, SpanId, TraceId},
    },
};
use sluice_tests::{
    PATIENCE,
    collector::{self, Collector},
    nobody,
};
use tokio::sync::oneshot;

fn start(endpoint: &str, protocol: Protocol) -> (Tracer, IntCounter) {
    let options = Options {
        endpoint: endpoint.parse().unwrap(),
        protocol,
        propagation: vec![Propagation::W3c],
        roots: Ratio::NONE,
        queue: 4096,
        identity: Identity::new(Some("node-a"), &["team=shop".parse().unwrap()]),
    };
    let dropped = IntCounter::new("dropped", "Spans that were dropped.").unwrap();
    let (tracer, exporter) = Tracer::start(&options, dropped.clone()).unwrap();
    tokio::spawn(exporter.run());
    (tracer, dropped)
}

fn request(trace: u128) -> Box<RequestSpan> {
    let start = SystemTime::now();
    let end = start + Duration::from_millis(5);
    let trace = TraceId::new(trace).unwrap();
    let parent = Parent { trace, span: SpanId::new(3).unwrap(), sampled: Some(true), multi: false };
    let attempt = AttemptSpan {
        span: SpanId::new(5).unwrap(),
        start: start + Duration::from_millis(1),
        end,
        endpoint: SocketAddr::from(([10, 0, 0, 7], 80)),
        pod: Some(Arc::from("orders-0")),
        status: 200,
        grpc_status: None,
        error: None,
    };
    Box::new(RequestSpan {
        traced: Traced { trace, span: SpanId::new(4).unwrap(), parent: Some(parent) },
        start,
        end,
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
        policy: None,
        request_bytes: 0,
        response_bytes: 2,
        retries: 0,
        attempts: [attempt].into_iter().collect(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_a_request_and_its_attempts() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start().unwrap();
        let (tracer, dropped) = start(&collector.endpoint(), protocol);
        tracer.record(request(0xabc));
        let spans = collector.trace("00000000000000000000000000000abc", 2).unwrap();
        let [own, attempt] = &spans[..] else { panic!("{protocol:?}: {} spans", spans.len()) };
        for (key, value) in [("service.name", "sluice"), ("k8s.node.name", "node-a"), ("team", "shop")] {
            assert_eq!(own.resource[key], value);
        }
        assert!(!own.client && attempt.client);
        assert_eq!((&*own.parent, &*own.id), ("0000000000000003", "0000000000000004"));
        assert_eq!(attempt.parent, own.id);
        assert_eq!(own.attribute("sluice.tag"), "gray");
        assert_eq!(own.attribute("sluice.lane"), "baseline");
        assert_eq!(own.attribute("sluice.tag.outcome"), "fell_back");
        assert_eq!(own.attribute("http.response.status_code"), "200");
        assert_eq!(attempt.attribute("network.peer.port"), "80");
        assert_eq!(own.end_nanos - own.start_nanos, 5_000_000);
        assert_eq!(dropped.get(), 0, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_busy_is_asked_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start().unwrap();
        collector.busy_for(1);
        let (tracer, dropped) = start(&collector.endpoint(), protocol);
        tracer.record(request(1));
        collector.trace("00000000000000000000000000000001", 2).unwrap();
        assert_eq!((dropped.get(), collector.requests()), (0, 2), "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_costs_the_spans_only() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let endpoint = format!("http://{}", nobody());
        let (tracer, dropped) = start(&endpoint, protocol);
        // More than the queue and a batch hold: recording never waits.
        for trace in 1..=6_000 {
            tracer.record(request(trace));
        }
        let at_once = dropped.get();
        assert!(at_once >= 2 * (6_000 - 4_096 - 512), "{at_once}");
        // And what was queued goes in the end too.
        let began = Instant::now();
        while dropped.get() < at_once + 512 {
            assert!(began.elapsed() < *PATIENCE, "{} spans were dropped", dropped.get());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sends metrics every `interval`, until the sender is dropped.
fn send(
    metrics: &Arc<Metrics>,
    endpoint: &str,
    protocol: Protocol,
    interval: Duration,
) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let options = otlp::metrics::Options {
        endpoint: endpoint.parse().unwrap(),
        protocol,
        interval,
        identity: Identity::new(Some("node-a"), &[]),
    };
    let exporter =
        otlp::metrics::Exporter::new(options, metrics.clone(), metrics.exports_failed.clone()).unwrap();
    let (stop, stopped) = oneshot::channel();
    (stop, tokio::spawn(exporter.run(stopped)))
}

/// The value of `sluice_connections_total{outcome="http2"}`.
fn http2(received: &collector::Metrics) -> f64 {
    let metric = received.metrics.iter().find(|metric| metric.name == "sluice_connections_total").unwrap();
    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    let of = |outcome: &str| {
        let point = sum.data_points.iter().find(|point| {
            collector::attributes(point.attributes.clone()).get("outcome").is_some_and(|told| told == outcome)
        });
        match point.unwrap().value.unwrap() {
            Value::AsDouble(value) => value,
            Value::AsInt(value) => panic!("{value}"),
        }
    };
    of("http2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_sent_as_they_are_served() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start().unwrap();
        let metrics = Arc::new(Metrics::new());
        metrics.detected(Detection::Http2);
        let every = Duration::from_millis(50);
        let (stop, sending) = send(&metrics, &collector.endpoint(), protocol, every);
        let received = collector.next_metrics().unwrap();
        assert_eq!(received.resource["service.name"], "sluice");
        assert_eq!(received.resource["k8s.node.name"], "node-a");
        assert!((http2(&received) - 1.0).abs() < f64::EPSILON);
        let served = metrics.render().unwrap();
        for metric in &received.metrics {
            assert!(served.contains(&format!("# HELP {} {}", metric.name, metric.description)), "{metric:?}");
        }
        // A collector that is away for a while misses nothing.
        collector.busy_for(1);
        metrics.detected(Detection::Http2);
        let began = Instant::now();
        while http2(&collector.next_metrics().unwrap()) < 2.0 {
            assert!(began.elapsed() < *PATIENCE, "what was counted is not told");
        }
        assert_eq!(metrics.exports_failed.get(), 1, "{protocol:?}");
        drop(stop);
        sending.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_numbers_are_sent_at_the_end() {
    let collector = Collector::start().unwrap();
    let metrics = Arc::new(Metrics::new());
    let an_hour = Duration::from_secs(3600);
    let (stop, sending) = send(&metrics, &collector.endpoint(), Protocol::Grpc, an_hour);
    metrics.detected(Detection::Http2);
    drop(stop);
    sending.await.unwrap();
    assert!((http2(&collector.next_metrics().unwrap()) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_of_metrics_is_counted() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let endpoint = format!("http://{}", nobody());
        let metrics = Arc::new(Metrics::new());
        let (_stop, _sending) = send(&metrics, &endpoint, protocol, Duration::from_millis(20));
        let began = Instant::now();
        while metrics.exports_failed.get() < 2 {
            assert!(began.elapsed() < *PATIENCE, "{protocol:?}: no failure was counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
