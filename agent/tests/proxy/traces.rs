//! Traces: what endpoints are told, and what a collector that decodes real OTLP gets.

use std::{sync::Arc, time::Duration};

use prometheus::IntCounter;
use sluice::{
    govern::policy::{Behaviour, LimitKey, Mode, Policy, RateLimit, RequestMatch, Scope},
    observe::{
        metrics::Format,
        otlp::{Identity, Protocol},
        sampling::Ratio,
        trace::{
            Options, Tracer,
            context::Propagation::{self, B3, B3Multi, W3c},
        },
    },
};
use sluice_tests::collector::{Collector, Span};
use tokio::runtime::Runtime;

use crate::{
    origin::Origin,
    peer::Peer,
    rig::{Builder, Rig},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector, and what sends to it.
struct Traces {
    collector: Collector,
    dropped: IntCounter,
    runtime: Runtime,
}

impl Traces {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        Self { collector: Collector::start().unwrap(), dropped, runtime }
    }

    fn tracer(&self, propagation: &[Propagation], roots: Ratio) -> Tracer {
        self.tracer_to(&self.collector.endpoint(), propagation, roots)
    }

    fn tracer_to(&self, endpoint: &str, propagation: &[Propagation], roots: Ratio) -> Tracer {
        let options = Options {
            endpoint: endpoint.parse().unwrap(),
            protocol: Protocol::Grpc,
            propagation: propagation.to_vec(),
            roots,
            queue: 64,
            identity: Identity::new(None, &[]),
        };
        let _within = self.runtime.enter();
        let (tracer, exporter) = Tracer::start(&options, self.dropped.clone()).unwrap();
        self.runtime.spawn(exporter.run());
        tracer
    }

    /// The spans of [`TRACE`].
    #[track_caller]
    fn spans(&self, count: usize) -> Vec<Span> {
        self.collector.trace(TRACE, count).unwrap()
    }
}

fn before(origin: &Origin) -> Builder {
    Rig::builder().endpoint(origin.address)
}

/// Asks with these header lines, and gives the status.
fn ask(peer: &mut Peer, headers: &str) -> u16 {
    peer.send(format!("GET /orders/7?token=secret HTTP/1.1\r\nHost: orders\r\n{headers}\r\n"));
    peer.answer().status()
}

fn traceparent(span: &str, flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{span}-{flags}\r\n")
}

/// The value of a header that an endpoint was sent.
fn sent<'h>(head: &'h str, name: &str) -> &'h str {
    let value = |line: &'h str| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    };
    head.split("\r\n").find_map(value).unwrap_or_default()
}

#[test]
fn a_sampled_trace_goes_on_through_the_proxy() {
    let (traces, origin) = (Traces::new(), Origin::fixed("hello"));
    let rig = before(&origin).tracer(traces.tracer(&[W3c], Ratio::NONE)).start();
    let headers = format!("X-Mse-Tag: gray\r\n{}tracestate: a=b\r\n", traceparent(CALLER, "01"));
    assert_eq!(ask(&mut rig.dial(), &headers), 200);
    let spans = traces.spans(2);
    let [own, attempt] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((&*own.parent, own.client, attempt.client), (CALLER, false, true));
    assert_eq!(attempt.parent, own.id);
    let head = &origin.await_notes(1)[0];
    assert_eq!(sent(head, "traceparent"), format!("00-{TRACE}-{}-01", attempt.id));
    assert_eq!(sent(head, "tracestate"), "x-mse-tag=gray,a=b");
    let port = origin.address.port().to_string();
    for (span, key, value) in [
        (own, "http.request.method", "GET"),
        (own, "http.response.status_code", "200"),
        (own, "url.path", "/orders/7"),
        (own, "url.scheme", "http"),
        (own, "server.address", "orders.shop"),
        (own, "server.port", "80"),
        (own, "network.protocol.version", "1.1"),
        (own, "http.response.body.size", "5"),
        (own, "sluice.source.pod", "gateway-1"),
        (own, "sluice.tag", "gray"),
        (own, "sluice.tag.source", "header"),
        (own, "sluice.tag.outcome", "fell_back"),
        (own, "sluice.lane", "baseline"),
        (attempt, "url.full", "http://orders.shop:80/orders/7"),
        (attempt, "network.peer.address", "127.0.0.1"),
        (attempt, "network.peer.port", &port),
        (attempt, "http.response.status_code", "200"),
    ] {
        assert_eq!(span.attribute(key), value, "{key} of {span:?}");
    }
    assert!(!own.failed && !attempt.failed);
    assert!(own.start_nanos <= attempt.start_nanos && attempt.end_nanos <= own.end_nanos);
    assert!(!format!("{spans:?}").contains("secret"), "a query is nobody's business");
}

#[test]
fn what_is_not_sampled_is_passed_on_as_it_came() {
    let (traces, origin) = (Traces::new(), Origin::fixed(""));
    let rig = before(&origin).tracer(traces.tracer(&[W3c, B3, B3Multi], Ratio::NONE)).start();
    let (mut peer, mut asked) = (rig.dial(), 0);
    for headers in [
        traceparent(CALLER, "00"),
        "traceparent: what\r\n".to_owned(),
        "b3: 0\r\n".to_owned(),
        format!("b3: {TRACE}-{CALLER}\r\n"),
        format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {CALLER}\r\nX-B3-Sampled: 0\r\n"),
        // No root is begun where none is asked for.
        String::new(),
    ] {
        assert_eq!(ask(&mut peer, &headers), 200);
        asked += 1;
        let head = origin.await_notes(asked).pop().unwrap();
        let (_, head) = head.split_once(' ').unwrap();
        assert_eq!(head, format!("GET /orders/7?token=secret HTTP/1.1\r\nHost: orders\r\n{headers}\r\n"));
    }
    // Spans go in order: with these there, no others were made.
    assert_eq!(ask(&mut peer, &traceparent(CALLER, "01")), 200);
    traces.spans(2);
    assert_eq!(traces.collector.spans().len(), 2);
}

#[test]
fn without_a_collector_nothing_is_touched() {
    let origin = Origin::fixed("");
    let rig = before(&origin).start();
    ask(&mut rig.dial(), &traceparent(CALLER, "01"));
    assert_eq!(sent(&origin.await_notes(1)[0], "traceparent"), format!("00-{TRACE}-{CALLER}-01"));
}

#[test]
fn a_trace_begins_here_if_it_may() {
    for (form, header) in [(W3c, "traceparent"), (B3, "b3"), (B3Multi, "b3")] {
        let (traces, origin) = (Traces::new(), Origin::fixed(""));
        let rig = before(&origin).tracer(traces.tracer(&[form], Ratio::ALL)).start();
        ask(&mut rig.dial(), "");
        let head = origin.await_notes(1).pop().unwrap();
        let value = sent(&head, header);
        let parts: Vec<&str> = value.split('-').skip(usize::from(form == W3c)).collect();
        let spans = traces.collector.trace(parts[0], 2).unwrap();
        let [own, attempt] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((&*own.parent, &*attempt.parent), ("", &*own.id));
        assert_eq!(parts[1], attempt.id, "{value}");
        match form {
            W3c => assert_eq!(parts[2], "01"),
            B3 | B3Multi => assert_eq!(parts[2..], ["1", &own.id]),
        }
    }
}

#[test]
fn b3_is_continued_in_both_its_forms() {
    let single = format!("B3: {TRACE}-{CALLER}-1-05e3ac9a4f6e3b90\r\n");
    let multi = format!(
        "X-B3-TraceId: {TRACE}\r\nX-B3-ParentSpanId: 05e3ac9a4f6e3b90\r\nX-B3-SpanId: {CALLER}\r\nX-B3-Sampled: 1\r\n"
    );
    for (form, headers) in [(B3, single), (B3Multi, multi)] {
        let (traces, origin) = (Traces::new(), Origin::fixed(""));
        let rig = before(&origin).tracer(traces.tracer(&[W3c, form], Ratio::NONE)).start();
        ask(&mut rig.dial(), &headers);
        let head = origin.await_notes(1).pop().unwrap();
        let spans = traces.spans(2);
        let (own, attempt) = (&spans[0], &spans[1]);
        assert_eq!((&*own.parent, &*attempt.parent), (CALLER, &*own.id));
        if form == B3 {
            assert_eq!(sent(&head, "b3"), format!("{TRACE}-{}-1-{}", attempt.id, own.id));
        } else {
            assert_eq!(sent(&head, "x-b3-spanid"), attempt.id);
            assert_eq!(sent(&head, "x-b3-parentspanid"), own.id);
            assert_eq!(sent(&head, "x-b3-traceid"), TRACE);
        }
    }
}

#[test]
fn each_attempt_is_a_span_of_its_own() {
    let (traces, origin) = (Traces::new(), Origin::fixed(""));
    // One endpoint that nobody listens at: sooner or later it is chosen first.
    let rig = before(&origin).endpoint(Origin::nobody()).tracer(traces.tracer(&[W3c], Ratio::NONE)).start();
    let mut peer = rig.dial();
    let mut sent_to = 0;
    while rig.metric("sluice_retries_total", &["cause=\"connect_failure\""]) < 1.0 {
        sent_to += 1;
        assert!(sent_to < 1000, "the endpoint that nobody listens at is never chosen");
        assert_eq!(ask(&mut peer, &format!("traceparent: 00-{sent_to:032x}-{CALLER}-01\r\n")), 200);
    }
    let spans = traces.collector.trace(&format!("{sent_to:032x}"), 3).unwrap();
    let [own, first, second] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((&first.parent, &second.parent), (&own.id, &own.id));
    assert_eq!((first.attribute("error.type"), first.failed), ("upstream_connect", true));
    assert_eq!((second.attribute("error.type"), second.failed), ("", false));
    assert_eq!(second.attribute("http.request.resend_count"), "1");
    assert_eq!((own.attribute("sluice.retries"), own.failed), ("1", false));
    let head = origin.await_notes(sent_to).pop().unwrap();
    assert!(sent(&head, "traceparent").contains(&second.id), "{head}");
}

#[test]
fn a_refusal_names_its_rule() {
    let (traces, origin) = (Traces::new(), Origin::fixed(""));
    let limit = RateLimit {
        name: "rare".into(),
        requests: 1.0,
        interval: Duration::from_secs(3600),
        burst: 1.0,
        behaviour: Behaviour::Reject,
        scope: Scope::Node,
        key: LimitKey::None,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    };
    let policy =
        Policy { name: Some("shop/orders".into()), rate_limits: vec![Arc::new(limit)], ..Policy::default() };
    let rig = before(&origin).policy(policy).tracer(traces.tracer(&[W3c], Ratio::NONE)).start();
    let mut peer = rig.dial();
    assert_eq!(ask(&mut peer, ""), 200);
    assert_eq!(ask(&mut peer, &traceparent(CALLER, "01")), 429);
    let spans = traces.spans(1);
    for (key, value) in [
        ("http.response.status_code", "429"),
        ("sluice.reason", "rate_limited"),
        ("sluice.rule", "rare"),
        ("sluice.policy", "shop/orders"),
        ("error.type", "rate_limited"),
    ] {
        assert_eq!(spans[0].attribute(key), value, "{key}");
    }
}

#[test]
fn a_caller_that_leaves_is_told_of() {
    let traces = Traces::new();
    let origin = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
        }
    });
    let rig = before(&origin).tracer(traces.tracer(&[W3c], Ratio::NONE)).start();
    let mut peer = rig.dial();
    peer.send(format!("GET / HTTP/1.1\r\nHost: orders\r\n{}\r\n", traceparent(CALLER, "01")));
    origin.await_notes(1);
    peer.reset();
    drop(peer);
    let spans = traces.spans(2);
    assert_eq!(spans[0].attribute("sluice.reason"), "client_closed");
    assert_eq!(spans[1].attribute("error.type"), "client_closed");
    assert_eq!(spans[0].attribute("http.response.status_code"), "");
}

#[test]
fn a_dead_collector_costs_no_request() {
    let (traces, origin) = (Traces::new(), Origin::fixed(""));
    let nobody = format!("http://{}", Origin::nobody());
    let rig = before(&origin).tracer(traces.tracer_to(&nobody, &[W3c], Ratio::ALL)).start();
    let mut peer = rig.dial();
    let sent = 500;
    for _ in 0..sent {
        assert_eq!(ask(&mut peer, ""), 200);
    }
    // All but what may still wait to be sent.
    let began = std::time::Instant::now();
    while traces.dropped.get() < 2 * (sent - 64 - 256) {
        assert!(began.elapsed() < crate::rig::LIMIT, "{} spans were dropped", traces.dropped.get());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The exemplars that a scraper gets: the lines that have one.
fn exemplars(rig: &Rig) -> Vec<String> {
    let text = rig.metrics.render_as(Format::OpenMetrics).unwrap();
    text.lines().filter(|line| line.contains(" # {")).map(str::to_owned).collect()
}

#[test]
fn buckets_name_the_last_sampled_trace_and_no_other() {
    let origin = Origin::fixed("hello");
    // Whoever sent it records the trace; nobody here needs to.
    let rig = before(&origin).start();
    let mut peer = rig.dial();
    for headers in ["", &traceparent(CALLER, "00"), "traceparent: 00-1-2-01\r\n"] {
        assert_eq!(ask(&mut peer, headers), 200);
    }
    rig.await_requests("2xx", "", 3.0);
    assert_eq!(exemplars(&rig), [""; 0]);
    assert_eq!(ask(&mut peer, &traceparent(CALLER, "01")), 200);
    rig.await_requests("2xx", "", 4.0);
    let told = exemplars(&rig);
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.starts_with("sluice_request_duration_seconds_bucket{") && line.contains("le=\""), "{line}");
    assert!(line.contains(&format!(" # {{trace_id=\"{TRACE}\"}} 0.")), "{line}");
    // The text format has none.
    assert!(!rig.metrics.render().unwrap().contains(TRACE));
}

#[test]
fn a_trace_that_begins_here_or_comes_in_another_form_is_an_exemplar_too() {
    let (traces, origin) = (Traces::new(), Origin::fixed("hello"));
    let rig = before(&origin).tracer(traces.tracer(&[B3], Ratio::ALL)).start();
    assert_eq!(ask(&mut rig.dial(), &format!("b3: {TRACE}-{CALLER}-1\r\n")), 200);
    traces.spans(2);
    rig.await_requests("2xx", "", 1.0);
    assert!(exemplars(&rig)[0].contains(TRACE), "{:?}", exemplars(&rig));

    let rig = before(&origin).tracer(traces.tracer(&[B3], Ratio::ALL)).start();
    assert_eq!(ask(&mut rig.dial(), ""), 200);
    rig.await_requests("2xx", "", 1.0);
    let trace = sent(&origin.await_notes(2)[1], "b3").split('-').next().unwrap().to_owned();
    assert_eq!(trace.len(), 32);
    assert!(exemplars(&rig)[0].contains(&trace), "{trace}: {:?}", exemplars(&rig));

    // A sender that does not record it has the last word.
    let rig = before(&origin).tracer(traces.tracer(&[B3], Ratio::ALL)).start();
    assert_eq!(ask(&mut rig.dial(), &format!("b3: {TRACE}-{CALLER}-0\r\n")), 200);
    rig.await_requests("2xx", "", 1.0);
    assert_eq!(exemplars(&rig), [""; 0]);
}
