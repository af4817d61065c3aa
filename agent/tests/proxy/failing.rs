//! Circuit breaker, outlier detection, retries, fallbacks and draining of a policy in the path of a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use sluice::govern::policy::{
    Algorithm, CircuitBreaker, Concurrency, Drain, Fallback, FallbackAction, FallbackOn, LoadBalancer, Mode,
    OutlierDetection, Policy, Retry, RetryOn, Scope, StaleBounds, StaticAnswer, Timeouts, WarmUp,
};

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::Rig,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";

fn named(policy: Policy) -> Policy {
    Policy { name: Some("shop/orders".into()), ..policy }
}

fn breaker(open: Duration, mode: Mode) -> Policy {
    let config = CircuitBreaker {
        minimum_requests: 2,
        error_percent: Some(100.0),
        open_duration: open,
        mode,
        ..CircuitBreaker::default()
    };
    named(Policy { circuit_breaker: Some(config), ..Policy::default() })
}

/// Without waiting between attempts.
fn retry() -> Retry {
    Retry { backoff_base: Duration::ZERO, ..Retry::default() }
}

fn retrying(retry: Retry) -> Policy {
    named(Policy { retry: Some(retry), ..Policy::default() })
}

/// Fails for as long as it is told to.
fn moody() -> (Origin, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(true));
    let told = fails.clone();
    let origin = Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            peer.send(if told.load(Relaxed) { BUSY } else { OK });
        }
    });
    (origin, fails)
}

#[track_caller]
fn ask(caller: &mut Peer) -> u16 {
    caller.get("/");
    caller.answer().status()
}

#[test]
fn a_service_that_fails_is_broken_off_and_comes_back() {
    let (origin, fails) = moody();
    let policy = breaker(Duration::from_millis(300), Mode::Enforce);
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!([ask(&mut caller), ask(&mut caller)], [503, 503]);
    caller.get("/");
    let answer = caller.answer();
    answer.made_up(503, "circuit_open");
    assert!(
        answer.has("retry-after: 1") && answer.body.contains("\"rule\":\"circuitBreaker\""),
        "{answer:?}"
    );
    assert_eq!(origin.noted().len(), 2);
    rig.await_metric("sluice_circuit_breaker_requests_total", &["decision=\"rejected\""], 1.0);
    fails.store(false, Relaxed);
    while ask(&mut caller) != 200 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(&mut caller), 200);
    assert_eq!(origin.noted().len(), 4);
}

#[test]
fn what_rules_are_at_can_be_read() {
    let (origin, _) = moody();
    let concurrency =
        Some(Concurrency { max_requests: 7, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
    let outlier_detection = Some(OutlierDetection::default());
    let load_balancer = LoadBalancer { warmup: Some(WarmUp::default()), ..LoadBalancer::default() };
    let broken = breaker(Duration::from_secs(60), Mode::Enforce);
    let policy = Policy { concurrency, outlier_detection, load_balancer, ..broken };
    let mut rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    for _ in 0..2 {
        ask(&mut caller);
    }
    let service = "destination_service=\"orders\"";
    for (name, label, value) in [
        ("sluice_concurrency_limit", service, 7.0),
        ("sluice_concurrency_limit_in_flight", service, 0.0),
        ("sluice_circuit_breaker_state", "state=\"open\"", 1.0),
        ("sluice_circuit_breaker_state", "state=\"closed\"", 0.0),
        ("sluice_circuit_breaker_transitions_total", "transition=\"opened\"", 1.0),
        ("sluice_ejected_endpoints", service, 0.0),
        // Nobody knows since when it is ready, so it is warm.
        ("sluice_endpoint_warm_up_factor", service, 1.0),
    ] {
        rig.await_metric(name, &[label, "destination_port=\"80\""], value);
    }
    // Of a service that is gone nothing is told.
    rig.forget();
    rig.await_metric("sluice_concurrency_limit", &[], 0.0);
    assert!(!rig.metrics.render().unwrap().contains("sluice_circuit_breaker_state{"));
}

#[test]
fn a_breaker_that_observes_refuses_nobody() {
    let (origin, _) = moody();
    let policy = breaker(Duration::from_secs(60), Mode::Observe);
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!([ask(&mut caller), ask(&mut caller), ask(&mut caller)], [503, 503, 503]);
    rig.await_metric("sluice_circuit_breaker_requests_total", &["decision=\"would_reject\""], 1.0);
}

#[test]
fn connections_that_do_not_come_about_open_the_breaker() {
    let policy = breaker(Duration::from_secs(60), Mode::Enforce);
    let rig = Rig::builder().endpoint(Origin::nobody()).policy(policy).start();
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        caller.answer().made_up(503, "upstream_connect");
    }
    caller.get("/");
    caller.answer().made_up(503, "circuit_open");
}

#[test]
fn tunnels_ask_the_breaker_for_their_connection() {
    use sluice::cluster::model::Protocol;
    let service = Rig::builder().endpoint(Origin::nobody()).protocol(Protocol::Opaque);
    let rig = service.policy(breaker(Duration::from_millis(300), Mode::Enforce)).start();
    for _ in 0..3 {
        assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    }
    for (reason, count) in [("upstream_connect", 2.0), ("circuit_open", 1.0)] {
        rig.await_metric("sluice_tunnels_total", &[&format!("reason=\"{reason}\"")], count);
    }
    let origin = Origin::new(|_, peer, _| peer.send("hello"));
    let mut rig = rig;
    rig.change(|service| service.no_endpoints().endpoint(origin.address));
    while rig.dial().end().0 != "hello" {
        std::thread::sleep(Duration::from_millis(20));
    }
    rig.await_metric("sluice_circuit_breaker_transitions_total", &["transition=\"closed\""], 1.0);
}

#[test]
fn lanes_have_breakers_of_their_own() {
    let (gray, baseline) = (moody().0, Origin::fixed("ok"));
    let policy = breaker(Duration::from_secs(60), Mode::Enforce);
    let service = Rig::builder().endpoint(baseline.address).lane("gray", gray.address);
    let rig = service.policy(policy).start();
    let mut caller = rig.dial();
    for reason in ["", "", "circuit_open"] {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\n\r\n");
        let answer = caller.answer();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.head.contains("x-sluice-reason"), !reason.is_empty());
    }
    assert_eq!(ask(&mut caller), 200);
}

#[test]
fn an_endpoint_that_fails_is_ejected() {
    let (bad, good) = (moody().0, Origin::fixed("ok"));
    let outlier_detection =
        Some(OutlierDetection { consecutive_errors: Some(3), ..OutlierDetection::default() });
    let load_balancer = LoadBalancer { algorithm: Algorithm::RoundRobin, ..LoadBalancer::default() };
    let policy = named(Policy { load_balancer, outlier_detection, ..Policy::default() });
    let rig = Rig::builder().endpoint(bad.address).endpoint(good.address).policy(policy).start();
    let mut caller = rig.dial();
    for _ in 0..200 {
        ask(&mut caller);
    }
    assert_eq!(bad.noted().len(), 3);
    rig.await_metric("sluice_ejections_total", &["cause=\"consecutive_errors\"", "mode=\"enforce\""], 1.0);
}

#[test]
fn a_failure_is_tried_again_elsewhere() {
    let (bad, good) = (moody().0, Origin::fixed("ok"));
    let policy = retrying(retry());
    let rig = Rig::builder().endpoint(bad.address).endpoint(good.address).policy(policy).start();
    let mut caller = rig.dial();
    for _ in 0..50 {
        assert_eq!(ask(&mut caller), 200);
    }
    let failed = bad.noted().len();
    assert!(failed > 0, "the bad one was never asked");
    rig.await_metric("sluice_retries_total", &["cause=\"status\""], failed as f64);
}

#[test]
fn what_must_not_be_done_twice_is_not() {
    let (origin, _) = moody();
    let rig = Rig::builder().endpoint(origin.address).policy(retrying(retry())).start();
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(caller.answer().body, "busy");
    assert_eq!(origin.noted().len(), 1);
}

#[test]
fn a_body_is_sent_again_whole_however_it_comes() {
    for chunked in [false, true] {
        let body = "0123456789".repeat(5000);
        let length = body.len();
        let asked = AtomicUsize::new(0);
        let origin = Origin::new(move |_, peer, note| {
            while let Some(head) = peer.request() {
                let got = if head.to_ascii_lowercase().contains("chunked") {
                    peer.until("0\r\n\r\n")
                } else {
                    String::from_utf8(peer.exactly(length)).unwrap()
                };
                note(got);
                peer.send(if asked.fetch_add(1, Relaxed) == 0 { BUSY } else { OK });
            }
        });
        let policy = retrying(Retry { methods: vec![http::Method::POST], ..retry() });
        let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
        let mut caller = rig.dial();
        if chunked {
            caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            caller.send(format!("{:x}\r\n", length / 2));
            caller.send(&body[..length / 2]);
            // The rest comes when the first part is long on its way.
            rig.await_metric("sluice_upstream_connects_total", &["outcome=\"opened\""], 1.0);
            caller.send(format!("\r\n{:x}\r\n{}\r\n0\r\n\r\n", length / 2, &body[length / 2..]));
        } else {
            caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
        }
        assert_eq!(caller.answer().body, "ok");
        let noted = origin.await_notes(2);
        assert_eq!(noted[0], noted[1]);
        assert!(noted[0].len() >= length);
    }
}

#[test]
fn a_body_that_is_too_long_to_be_kept_is_not_sent_again() {
    let body = "x".repeat(200_000);
    let length = body.len();
    let origin = Origin::new(move |_, peer, note| {
        while peer.request().is_some() {
            peer.exactly(length);
            note("whole".to_owned());
            peer.send(BUSY);
        }
    });
    let policy = retrying(Retry { methods: vec![http::Method::PUT], ..retry() });
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
    assert_eq!(caller.answer().body, "busy");
    assert_eq!(origin.noted().len(), 1);
    // It was passed on in order all the same.
    caller.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
    assert_eq!(caller.answer().body, "busy");
}

#[test]
fn resets_and_slow_endpoints_are_tried_again_if_the_policy_says_so() {
    let origin = Origin::new(|number, peer, _| {
        peer.request();
        match number {
            0 => peer.reset(),
            1 => drop(peer.request()),
            _ => peer.send(OK),
        }
    });
    let timeouts = Timeouts { backend_request: Some(Duration::from_millis(200)), ..Timeouts::default() };
    let policy = Policy { timeouts, ..retrying(Retry { attempts: 2, ..retry() }) };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!(ask(&mut caller), 200);
    for cause in ["reset", "timeout"] {
        rig.await_metric("sluice_retries_total", &[&format!("cause=\"{cause}\"")], 1.0);
    }
}

#[test]
fn an_outage_is_not_made_worse_than_the_budget_allows() {
    let (origin, _) = moody();
    let policy = retrying(Retry { budget_percent: 20.0, budget_minimum: 0.0, ..retry() });
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    for _ in 0..100 {
        assert_eq!(ask(&mut caller), 503);
    }
    assert_eq!(origin.noted().len(), 120);
    rig.await_metric("sluice_retry_budget_exhausted_total", &[], 80.0);
}

#[test]
fn what_no_attempt_is_worth_is_passed_on_as_it_came() {
    let (origin, _) = moody();
    let on = RetryOn { statuses: vec![500], ..RetryOn::default() };
    let rig = Rig::builder().endpoint(origin.address).policy(retrying(Retry { on, ..retry() })).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "busy");
    assert_eq!(origin.noted().len(), 1);
}

fn fallback(on: FallbackOn, action: FallbackAction) -> Arc<Fallback> {
    Arc::new(Fallback { name: "plan b".into(), on: vec![on], action })
}

fn fixed() -> FallbackAction {
    let header = (http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    FallbackAction::Static(StaticAnswer { status: 200, headers: vec![header], body: "nothing".into() })
}

#[test]
fn a_static_answer_stands_in() {
    let (busy, reset) = (
        moody().0,
        Origin::new(|_, peer, _| {
            peer.request();
            peer.reset();
        }),
    );
    for (service, on, reason) in [
        (Rig::builder().endpoint(busy.address), FallbackOn::ServerError, "upstream_error"),
        (Rig::builder().endpoint(reset.address), FallbackOn::ConnectFailure, "upstream_reset"),
        (Rig::builder().endpoint(Origin::nobody()), FallbackOn::ConnectFailure, "upstream_connect"),
        (Rig::builder(), FallbackOn::NoEndpoint, "no_endpoint"),
    ] {
        let policy = named(Policy { fallbacks: vec![fallback(on, fixed())], ..Policy::default() });
        let rig = service.policy(policy).start();
        let mut caller = rig.dial();
        caller.get("/");
        let answer = caller.answer();
        assert_eq!((answer.status(), &*answer.body), (200, "nothing"), "{answer:?}");
        for line in ["content-type: text/plain", "x-sluice-fallback: plan b"] {
            assert!(answer.has(line), "{answer:?}");
        }
        assert!(answer.has(&format!("x-sluice-reason: {reason}")), "{answer:?}");
        caller.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = caller.rest();
        assert!(answer.contains("content-length: 7\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        rig.await_metric("sluice_fallbacks_total", &["action=\"static\""], 2.0);
        rig.await_requests("2xx", reason, 2.0);
    }
}

#[test]
fn the_last_good_answer_stands_in_for_the_same_request_only() {
    for chunked in [false, true] {
        let fails = Arc::new(AtomicBool::new(false));
        let told = fails.clone();
        let origin = Origin::new(move |_, peer, _| {
            while let Some(head) = peer.request() {
                if told.load(Relaxed) {
                    peer.send(BUSY);
                } else {
                    let path = head.split(' ').nth(1).unwrap();
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/x\r\nconnection: x-hop\r\nx-hop: 1\r\n";
                    if chunked {
                        peer.send(format!("{head}transfer-encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n"));
                        peer.send(format!("{:x}\r\n{path}\r\n0\r\n\r\n", path.len()));
                    } else {
                        peer.send(format!("{head}content-length: {}\r\n\r\nhi{path}", path.len() + 2));
                    }
                }
            }
        });
        let bounds = StaleBounds { max_age: Duration::from_secs(60), max_bytes: 100_000 };
        let action = FallbackAction::Stale(bounds.into());
        let fallbacks = vec![fallback(FallbackOn::ServerError, action)];
        let policy = named(Policy { fallbacks, ..Policy::default() });
        let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
        let mut caller = rig.dial();
        let ann = "GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: ann\r\n\r\n";
        caller.send(ann);
        if chunked {
            caller.until("0\r\n\r\n");
        } else {
            assert_eq!(caller.answer().body, "hi/a");
        }
        fails.store(true, Relaxed);
        caller.send(ann);
        let answer = caller.answer();
        assert_eq!((answer.status(), &*answer.body), (200, "hi/a"), "{answer:?}");
        assert!(answer.has("content-type: text/x") && answer.has("age: 0") && !answer.head.contains("hop"));
        assert!(answer.has("x-sluice-reason: upstream_error"), "{answer:?}");
        caller.send(ann.replace("ann", "bob"));
        assert_eq!(caller.answer().body, "busy", "another caller must not see it");
        rig.await_metric("sluice_fallbacks_total", &["action=\"missed\""], 1.0);
    }
}

#[test]
fn what_takes_longer_than_an_endpoint_is_given_to_shut_down_is_broken_off() {
    let origin = Origin::new(|_, peer, note| {
        let path = peer.request().unwrap();
        if path.starts_with("GET /begun") {
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
        }
        note("asked".to_owned());
        peer.request();
    });
    let drain = Drain { timeout: Some(Duration::from_millis(100)), ..Drain::default() };
    let policy = named(Policy { drain, ..Policy::default() });
    let mut rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let (mut waits, mut reads) = (rig.dial(), rig.dial());
    waits.get("/");
    reads.get("/begun");
    origin.await_notes(2);
    rig.change(|service| service.terminating(origin.address));
    waits.answer().made_up(503, "endpoint_drained");
    let (got, end) = reads.end();
    assert!(got.ends_with("begun") && end == End::Reset, "{got:?} {end:?}");
}
