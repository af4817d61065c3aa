//! `rateLimits` and `concurrency` of a policy in the path of a request.

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use sluice::govern::policy::{
    Behaviour, CallerMatch, CircuitBreaker, Concurrency, LimitKey, Mode, OutlierDetection, PathMatch, Policy,
    RateLimit, RequestMatch, Scope, Timeouts,
};

use crate::{origin::Origin, peer::End, rig::Rig};

/// One request an hour.
fn rare() -> RateLimit {
    RateLimit {
        name: "rare \"one\"".into(),
        requests: 1.0,
        interval: Duration::from_secs(3600),
        burst: 1.0,
        behaviour: Behaviour::Reject,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    }
}

fn rates(rule: RateLimit) -> Policy {
    Policy { name: Some("shop/orders".into()), rate_limits: vec![Arc::new(rule)], ..Policy::default() }
}

fn in_flight(max_requests: u32, mode: Mode) -> Policy {
    let concurrency = Some(Concurrency { max_requests, adaptive: None, scope: Scope::Node, mode });
    Policy { name: Some("shop/orders".into()), concurrency, ..Policy::default() }
}

fn decisions(rig: &Rig, decision: &str, count: f64) {
    rig.await_metric("sluice_rate_limit_requests_total", &[&format!("decision=\"{decision}\"")], count);
}

fn places(rig: &Rig, decision: &str, count: f64) {
    rig.await_metric(
        "sluice_concurrency_limit_requests_total",
        &[&format!("decision=\"{decision}\"")],
        count,
    );
}

#[test]
fn a_request_above_the_limit_is_refused_and_says_by_what() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).policy(rates(rare())).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    caller.get("/");
    let answer = caller.answer();
    answer.made_up(429, "rate_limited");
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["rule"], &body["policy"]), (&"rare \"one\"".into(), &"shop/orders".into()));
    let after = answer.head.split("retry-after: ").nth(1).unwrap().split("\r\n").next().unwrap();
    assert!((3000..=3600).contains(&after.parse::<u32>().unwrap()), "{after}");
    assert_eq!(origin.noted().len(), 1);
    decisions(&rig, "allowed", 1.0);
    decisions(&rig, "rejected", 1.0);
    rig.await_requests("4xx", "rate_limited", 1.0);
}

#[test]
fn a_limit_on_a_path_cannot_be_walked_around_and_the_path_is_forwarded_as_it_came() {
    let origin = Origin::fixed("ok");
    let matches = RequestMatch { path: Some(PathMatch::Exact("/a".to_owned())), ..RequestMatch::default() };
    let policy = rates(RateLimit { matches, ..rare() });
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/x/..;p=1//%61;v=2?q=/../b");
    assert_eq!(caller.answer().body, "ok");
    assert!(
        origin.noted()[0].contains("GET /x/..;p=1//%61;v=2?q=/../b HTTP/1.1\r\n"),
        "{:?}",
        origin.noted()
    );
    for path in ["/a", "//a", "/./a", "/%61", "/a;x=1", "/x/../a?b"] {
        caller.get(path);
        caller.answer().made_up(429, "rate_limited");
    }
    for path in ["/a/", "/b", "/A", "/a%2F"] {
        caller.get(path);
        assert_eq!(caller.answer().body, "ok", "{path}");
    }
}

/// What nginx, Go, the JDK, Jetty and Node serve `/a` for.
#[test]
fn a_limit_on_a_path_cannot_be_evaded_by_what_only_some_servers_take_for_it() {
    let origin = Origin::fixed("ok");
    let matches = RequestMatch { path: Some(PathMatch::Prefix("/a".to_owned())), ..RequestMatch::default() };
    let policy = rates(RateLimit { matches, ..rare() });
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/a");
    assert_eq!(caller.answer().body, "ok");
    for path in [
        "/a%2fx.txt",
        "/open/..%2fa/x.txt",
        "/open/%2e%2e%2fa",
        "/%u0061",
        "/open\\..\\a",
        "//h/a",
        "/%2561",
        "/a%00",
        "/open?/../a",
        "/?/%2e%2e/a/x",
        "http://orders/open?/../../a",
    ] {
        caller.get(path);
        caller.answer().made_up(429, "rate_limited");
    }
    for path in ["/open", "/open?a=1..5", "/open?next=/b/../a", "/ab%2fc", "/open/%25", "/A"] {
        caller.get(path);
        assert_eq!(caller.answer().body, "ok", "{path}");
    }
    caller.send(b"GET /\xd6\xd0/..%2fa HTTP/1.1\r\nHost: orders\r\n\r\n");
    caller.answer().made_up(429, "rate_limited");
}

#[test]
fn a_limit_may_be_about_some_callers_and_count_by_their_workload() {
    let origin = Origin::fixed("ok");
    let from = |workload: &str| RequestMatch {
        from: vec![CallerMatch { workload: Some(workload.into()), ..CallerMatch::default() }],
        ..RequestMatch::default()
    };
    let rule = |workload| RateLimit { matches: from(workload), key: LimitKey::Workload, ..rare() };
    // The pod is called gateway-1, and is all that there is of its workload.
    let mut rig = Rig::builder().endpoint(origin.address).policy(rates(rule("gateway-1"))).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    caller.get("/");
    caller.answer().made_up(429, "rate_limited");
    rig.change(|service| service.policy(rates(rule("batch"))));
    caller.get("/");
    assert_eq!(caller.answer().body, "ok", "a rule about others");
}

#[test]
fn a_changed_policy_keeps_count_and_one_that_observes_refuses_nobody() {
    let origin = Origin::fixed("ok");
    let mut rig = Rig::builder().endpoint(origin.address).policy(rates(rare())).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    let other = Policy { rate_limits: rates(rare()).rate_limits, ..in_flight(5, Mode::Enforce) };
    rig.change(|service| service.policy(other));
    caller.get("/");
    caller.answer().made_up(429, "rate_limited");
    rig.change(|service| service.policy(rates(RateLimit { mode: Mode::Observe, ..rare() })));
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    decisions(&rig, "would_reject", 1.0);
}

#[test]
fn each_value_of_a_key_has_its_own_limit() {
    let origin = Origin::fixed("ok");
    let key = LimitKey::Header(HeaderName::from_static("x-user"));
    let rig = Rig::builder().endpoint(origin.address).policy(rates(RateLimit { key, ..rare() })).start();
    let mut caller = rig.dial();
    for (user, status) in [("ann", 200), ("bob", 200), ("ann", 429)] {
        caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n"));
        assert_eq!(caller.answer().status(), status, "{user}");
    }
}

/// Two requests a second, one after the other.
fn queue() -> Policy {
    let behaviour = Behaviour::Queue { timeout: Duration::from_secs(60) };
    rates(RateLimit { requests: 2.0, interval: Duration::from_secs(1), behaviour, ..rare() })
}

#[test]
fn a_request_waits_for_its_turn() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).policy(queue()).start();
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    decisions(&rig, "allowed", 1.0);
    decisions(&rig, "queued", 2.0);
}

#[test]
fn a_caller_that_leaves_gives_up_its_turn() {
    for reset in [true, false] {
        let origin = Origin::fixed("ok");
        let rig = Rig::builder().endpoint(origin.address).policy(queue()).start();
        let mut caller = rig.dial();
        caller.get("/first");
        assert_eq!(caller.answer().body, "ok");
        let mut leaves = rig.dial();
        leaves.get("/second");
        decisions(&rig, "queued", 1.0);
        if reset {
            leaves.reset();
            drop(leaves);
            rig.await_requests("none", "client_closed", 1.0);
        } else {
            // It may still listen.
            leaves.finish();
            leaves.answer().made_up(429, "rate_limited");
        }
        caller.get("/third");
        assert_eq!(caller.answer().body, "ok");
        assert!(origin.noted().iter().all(|head| !head.contains("/second")));
    }
}

/// One request in ten seconds, for as many as come.
fn slow_queue() -> RateLimit {
    let behaviour = Behaviour::Queue { timeout: Duration::from_secs(600) };
    RateLimit { interval: Duration::from_secs(10), behaviour, ..rare() }
}

#[test]
fn a_request_that_would_be_answered_too_late_does_not_wait() {
    let origin = Origin::fixed("ok");
    let timeouts = Timeouts { request: Some(Duration::from_secs(5)), ..Timeouts::default() };
    let rig =
        Rig::builder().endpoint(origin.address).policy(Policy { timeouts, ..rates(slow_queue()) }).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    for _ in 0..3 {
        caller.get("/");
        caller.answer().made_up(429, "rate_limited");
    }
    decisions(&rig, "rejected", 3.0);
    decisions(&rig, "queued", 0.0);
}

#[test]
fn nobody_is_blamed_for_the_time_in_the_queue() {
    let silent = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
        }
    });
    let breaker = CircuitBreaker { error_count: Some(1), minimum_requests: 1, ..CircuitBreaker::default() };
    let outliers = OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() };
    let behaviour = Behaviour::Queue { timeout: Duration::from_secs(600) };
    // The second one waits for a second, and has half a second left.
    let limit = RateLimit { interval: Duration::from_secs(1), behaviour, ..rare() };
    let timeouts = Timeouts { request: Some(Duration::from_millis(1500)), ..Timeouts::default() };
    let policy = Policy {
        timeouts,
        circuit_breaker: Some(breaker),
        outlier_detection: Some(outliers),
        ..rates(limit)
    };
    let rig = Rig::builder().endpoint(silent.address).policy(policy).start();
    let mut leaves = rig.dial();
    leaves.get("/");
    silent.await_notes(1);
    leaves.reset();
    drop(leaves);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(504, "timeout");
    assert_eq!(silent.noted().len(), 2, "it was asked");
    rig.await_metric("sluice_circuit_breaker_state", &["state=\"closed\""], 1.0);
    rig.await_metric("sluice_ejected_endpoints", &[], 0.0);
    rig.await_metric("sluice_attempts_total", &["outcome=\"left\""], 2.0);
    rig.await_metric("sluice_attempts_total", &["outcome=\"failed\""], 0.0);
}

#[test]
fn nobody_waits_to_be_refused_by_an_open_circuit_breaker() {
    let origin = Origin::raw("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops");
    let breaker = CircuitBreaker {
        error_count: Some(1),
        minimum_requests: 1,
        open_duration: Duration::from_secs(3600),
        ..CircuitBreaker::default()
    };
    let policy = Policy { circuit_breaker: Some(breaker), ..rates(slow_queue()) };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "oops");
    for _ in 0..3 {
        caller.get("/");
        caller.answer().made_up(503, "circuit_open");
    }
    decisions(&rig, "queued", 0.0);
    rig.await_metric("sluice_circuit_breaker_requests_total", &["decision=\"rejected\""], 3.0);
}

/// Answers when it is told to, with a byte on another connection.
fn gated() -> (Origin, std::sync::mpsc::Sender<()>) {
    let (open, gate) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let origin = Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            gate.lock().unwrap().recv().unwrap();
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    (origin, open)
}

#[test]
fn no_more_requests_are_in_flight_than_may_be() {
    let (origin, open) = gated();
    let rig = Rig::builder().endpoint(origin.address).policy(in_flight(1, Mode::Enforce)).start();
    let (mut first, mut second) = (rig.dial(), rig.dial());
    first.get("/");
    origin.await_notes(1);
    second.get("/");
    let answer = second.answer();
    answer.made_up(429, "concurrency_limited");
    assert!(answer.has("retry-after: 1") && answer.body.contains("concurrency.maxRequests"), "{answer:?}");
    open.send(()).unwrap();
    assert_eq!(first.answer().body, "ok");
    open.send(()).unwrap();
    second.get("/");
    assert_eq!(second.answer().body, "ok");
    places(&rig, "allowed", 2.0);
    places(&rig, "rejected", 1.0);
}

#[test]
fn a_polite_pod_gets_its_places_beside_a_greedy_one() {
    let (origin, open) = gated();
    let rig = Rig::builder().endpoint(origin.address).policy(in_flight(4, Mode::Enforce)).start();
    let polite = rig.other_pod();
    let mut caller = polite.dial();
    open.send(()).unwrap();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    // Two of four are kept for it.
    let mut greedy: Vec<_> = (0..4).map(|_| rig.dial()).collect();
    for caller in &mut greedy[..2] {
        caller.get("/");
    }
    origin.await_notes(2);
    places(&rig, "allowed", 3.0);
    for caller in &mut greedy[2..] {
        caller.get("/");
        caller.answer().made_up(429, "concurrency_limited");
    }
    caller.get("/");
    places(&rig, "allowed", 4.0);
    (0..3).for_each(|_| open.send(()).unwrap());
    assert_eq!(caller.answer().body, "ok");
    for caller in &mut greedy[..2] {
        assert_eq!(caller.answer().body, "ok");
    }
}

#[test]
fn what_only_observes_lets_everybody_through() {
    let (origin, open) = gated();
    let rig = Rig::builder().endpoint(origin.address).policy(in_flight(1, Mode::Observe)).start();
    let mut callers = [rig.dial(), rig.dial()];
    for caller in &mut callers {
        caller.get("/");
    }
    origin.await_notes(1);
    for _ in 0..2 {
        open.send(()).unwrap();
    }
    for caller in &mut callers {
        assert_eq!(caller.answer().body, "ok");
    }
    places(&rig, "allowed", 1.0);
    places(&rig, "would_reject", 1.0);
}

#[test]
fn a_caller_that_leaves_makes_room() {
    let (origin, open) = gated();
    let rig = Rig::builder().endpoint(origin.address).policy(in_flight(1, Mode::Enforce)).start();
    let mut first = rig.dial();
    first.get("/");
    origin.await_notes(1);
    first.reset();
    drop(first);
    rig.await_requests("none", "client_closed", 1.0);
    open.send(()).unwrap();
    open.send(()).unwrap();
    let mut second = rig.dial();
    second.get("/");
    assert_eq!(second.answer().body, "ok");
}

#[test]
fn what_an_upgrade_leads_to_keeps_its_place() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        peer.end();
    });
    let policy = Policy {
        rate_limits: rates(RateLimit { burst: 2.0, ..rare() }).rate_limits,
        ..in_flight(1, Mode::Enforce)
    };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let mut first = rig.dial();
    first.send(upgrade);
    assert_eq!(first.answer().status(), 101);
    let mut second = rig.dial();
    second.send(upgrade);
    second.answer().made_up(429, "concurrency_limited");
    first.send("any bytes");
    first.finish();
    first.end();
    rig.await_metric("sluice_tunnels_in_flight", &[], 0.0);
    // Of the two that the rate allows one was left: that which was refused has cost nothing.
    second.send(upgrade);
    assert_eq!(second.answer().status(), 101);
    let mut third = rig.dial();
    third.send(upgrade);
    third.answer().made_up(429, "rate_limited");
}

#[test]
fn tunnels_take_a_place_and_no_rate() {
    use sluice::cluster::model::Protocol;
    let origin = Origin::new(|_, peer, note| {
        note("came".to_owned());
        peer.send("hello");
        peer.end();
    });
    let policy = Policy { rate_limits: rates(rare()).rate_limits, ..in_flight(1, Mode::Enforce) };
    let service = Rig::builder().endpoint(origin.address).protocol(Protocol::Opaque);
    let rig = service.policy(policy).start();
    let mut first = rig.dial();
    assert_eq!(first.exactly(5), b"hello");
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    rig.await_metric("sluice_tunnels_total", &["reason=\"concurrency_limited\""], 1.0);
    first.finish();
    first.end();
    rig.await_metric("sluice_tunnels_in_flight", &[], 0.0);
    assert_eq!(rig.dial().exactly(5), b"hello");
}

#[test]
fn limits_hold_for_an_endpoint_that_was_dialled_itself() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).pinned().policy(rates(rare())).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    caller.get("/");
    caller.answer().made_up(429, "rate_limited");
}
