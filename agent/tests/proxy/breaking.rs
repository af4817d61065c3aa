//! `circuitBreaker` of a policy before endpoints that fail in every way, and its probes.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use sluice::govern::policy::{
    Algorithm, BreakerScope, CircuitBreaker, Errors, LoadBalancer, OutlierDetection, Policy, Retry, RetryOn,
    SlowRequest, Timeouts,
};

use crate::{
    origin::Origin,
    peer::{Answer, Peer},
    rig::{Builder, LIMIT, Rig},
};

const HOUR: Duration = Duration::from_secs(3600);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BAD: &str = "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops";
/// It reads requests and says nothing.
const SILENCE: &str = "";
/// It breaks the connection off.
const RESET: &str = "reset";
/// It breaks the connection off within an answer, as it does after anything that ends so.
const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
const NONSENSE: &str = "it does not speak HTTP";

/// An endpoint that answers as it is told at the moment.
pub(crate) struct Moody {
    pub(crate) origin: Origin,
    says: Arc<Mutex<&'static str>>,
}

impl Moody {
    pub(crate) fn new(says: &'static str) -> Self {
        let says = Arc::new(Mutex::new(says));
        let mood = says.clone();
        let origin = Origin::new(move |_, peer, note| {
            while let Some(head) = peer.request() {
                note(head.lines().next().unwrap_or_default().to_owned());
                let says = *mood.lock().unwrap();
                match says {
                    RESET => return peer.reset(),
                    SILENCE => {}
                    half if half.ends_with("half") => {
                        peer.send(half);
                        return peer.reset();
                    }
                    _ => peer.send(says),
                }
            }
        });
        Self { origin, says }
    }

    pub(crate) fn say(&self, says: &'static str) {
        *self.says.lock().unwrap() = says;
    }

    fn asked(&self) -> usize {
        self.origin.noted().len()
    }
}

/// Breaks off when three requests of the last hour have all failed.
fn breaker(open_duration: Duration) -> CircuitBreaker {
    CircuitBreaker {
        interval: HOUR,
        minimum_requests: 3,
        error_percent: Some(100.0),
        open_duration,
        ..CircuitBreaker::default()
    }
}

fn policy(breaker: CircuitBreaker) -> Policy {
    Policy { name: Some("shop/orders".into()), circuit_breaker: Some(breaker), ..Policy::default() }
}

/// Lets probes through from now on, and none by its age.
fn half_open(rig: &mut Rig, change: impl Fn(CircuitBreaker) -> Policy) {
    rig.change(|service| service.policy(change(breaker(Duration::from_nanos(1)))));
}

fn ask(rig: &Rig) -> Answer {
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer()
}

/// Asks on a connection that may be broken off.
fn ask_in_vain(rig: &Rig) {
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (got, _) = caller.end();
    assert!(!got.contains("circuit_open"), "{got}");
}

/// Asks until the answer is as wanted.
#[track_caller]
fn ask_until(rig: &Rig, wanted: impl Fn(&Answer) -> bool) {
    let began = Instant::now();
    loop {
        let answer = ask(rig);
        if wanted(&answer) {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{answer:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_probe_that_fails_leaves_it_open_and_one_that_does_not_closes_it() {
    let moody = Moody::new(BAD);
    let mut rig = Rig::builder().endpoint(moody.origin.address).policy(policy(breaker(HOUR))).start();
    for _ in 0..3 {
        assert_eq!(ask(&rig).body, "oops", "what the service says itself is passed on");
    }
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        let answer = caller.answer();
        answer.made_up(503, "circuit_open");
        assert!(answer.body.contains("\"policy\":\"shop/orders\""), "{answer:?}");
        let after = answer.head.split("retry-after: ").nth(1).unwrap().split("\r\n").next().unwrap();
        assert!((3000..=3600).contains(&after.parse::<u32>().unwrap()), "{after}");
    }
    assert_eq!(moody.asked(), 3);
    rig.await_requests("5xx", "circuit_open", 2.0);

    // A probe that fails leaves it open.
    half_open(&mut rig, policy);
    assert_eq!(ask(&rig).body, "oops");
    rig.change(|service| service.policy(policy(breaker(HOUR))));
    ask(&rig).made_up(503, "circuit_open");
    assert_eq!(moody.asked(), 4);

    // One that does not closes it.
    moody.say(OK);
    half_open(&mut rig, policy);
    for _ in 0..10 {
        assert_eq!(ask(&rig).body, "ok");
    }
    assert_eq!(moody.asked(), 14);
}

#[test]
fn every_kind_of_failure_counts() {
    for (says, timeout) in
        [(RESET, None), (HALF, None), (NONSENSE, None), (SILENCE, Some(Duration::from_millis(50)))]
    {
        let moody = Moody::new(says);
        let timeouts = Timeouts { backend_request: timeout, ..Timeouts::default() };
        let policy = Policy { timeouts, ..policy(breaker(HOUR)) };
        let rig = Rig::builder().endpoint(moody.origin.address).policy(policy).start();
        for _ in 0..3 {
            ask_in_vain(&rig);
        }
        ask_until(&rig, |answer| answer.head.contains("circuit_open"));
        assert_eq!(moody.asked(), 3, "{says}");
    }
}

#[test]
fn what_is_not_the_service_s_fault_does_not_count() {
    // A single error would be enough.
    let strict = CircuitBreaker { error_percent: Some(0.001), ..breaker(HOUR) };
    // Answers that blame the caller.
    let moody = Moody::new("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n");
    let endpoint = moody.origin.address;
    let mut rig = Rig::builder().endpoint(endpoint).policy(policy(strict)).start();
    for _ in 0..5 {
        assert_eq!(ask(&rig).status(), 404);
    }
    // Nobody to ask.
    rig.change(Builder::no_endpoints);
    for _ in 0..5 {
        ask(&rig).made_up(503, "no_endpoint");
    }
    // Callers that leave.
    rig.change(|service| service.endpoint(endpoint));
    moody.say(SILENCE);
    for n in 0..5 {
        let mut caller = rig.dial();
        caller.get("/");
        moody.origin.await_notes(6 + n);
        caller.reset();
    }
    rig.await_rest();
    // A caller that breaks its own request.
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n");
    caller.answer().made_up(400, "bad_request");
    moody.say(OK);
    assert_eq!(ask(&rig).body, "ok");
    moody.say(BAD);
    assert_eq!(ask(&rig).body, "oops");
    ask(&rig).made_up(503, "circuit_open");
}

#[test]
fn what_ends_because_its_caller_has_left_in_order_does_not_count() {
    // A single error would be enough for each of the rules.
    let strict = CircuitBreaker { error_percent: Some(0.001), minimum_requests: 1, ..breaker(HOUR) };
    let retry = Retry { on: RetryOn { reset: true, ..RetryOn::default() }, ..Retry::default() };
    let outlier_detection =
        Some(OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() });
    let load_balancer = LoadBalancer { algorithm: Algorithm::RoundRobin, ..LoadBalancer::default() };
    let policy = Policy { retry: Some(retry), outlier_detection, load_balancer, ..policy(strict) };
    // Two, for the last one would not be ejected. They give up what nobody waits for, before an answer or within one.
    let (noted, asked) = mpsc::channel();
    let origins = [noted.clone(), noted].map(|noted| {
        Origin::new(move |_, peer, _| {
            while let Some(head) = peer.request() {
                let path = head.split(' ').nth(1).unwrap();
                noted.send(path.to_owned()).unwrap();
                match path {
                    "/" => peer.send(OK),
                    "/begun" => peer.send(HALF),
                    "/reset" => return peer.reset(),
                    _ => {}
                }
            }
        })
    });
    let [one, other] = &origins;
    let rig = Rig::builder().endpoint(one.address).endpoint(other.address).policy(policy).start();
    let next = || asked.recv_timeout(LIMIT).unwrap();
    for path in ["/silent", "/begun"] {
        for listens in [false, true] {
            for idle in [false, true] {
                if idle {
                    // The next one is sent over a connection that was used before.
                    for _ in &origins {
                        assert_eq!(ask(&rig).body, "ok");
                        assert_eq!(next(), "/");
                    }
                    rig.await_rest();
                }
                let mut caller = rig.dial();
                caller.get(path);
                assert_eq!(next(), path);
                if path == "/begun" {
                    caller.until("half");
                }
                if listens {
                    caller.finish();
                    assert_eq!(caller.rest(), "", "it sees the end, as without Sluice");
                }
                drop(caller);
                rig.await_rest();
            }
        }
    }
    assert_eq!(ask(&rig).body, "ok");
    assert_eq!(next(), "/", "something was sent twice");
    rig.await_metric("sluice_ejections_total", &[], 0.0);
    // Without its caller's doing it counts.
    let mut caller = rig.dial();
    caller.get("/reset");
    caller.answer().made_up(503, "circuit_open");
    rig.await_metric("sluice_retries_total", &["cause=\"reset\""], 1.0);
    rig.await_metric("sluice_ejections_total", &[], 1.0);
}

#[test]
fn a_probe_whose_caller_leaves_is_not_lost() {
    let moody = Moody::new(BAD);
    let mut rig = Rig::builder().endpoint(moody.origin.address).policy(policy(breaker(HOUR))).start();
    for _ in 0..3 {
        ask(&rig);
    }
    moody.say(SILENCE);
    half_open(&mut rig, policy);
    let mut probe = rig.dial();
    probe.get("/");
    moody.origin.await_notes(4);
    rig.change(|service| service.policy(policy(breaker(HOUR))));
    ask(&rig).made_up(503, "circuit_open");
    assert_eq!(moody.asked(), 4, "one probe at a time");
    moody.say(OK);
    probe.reset();
    drop(probe);
    ask_until(&rig, |answer| answer.body == "ok");
    assert_eq!(moody.asked(), 5);
}

#[test]
fn slow_requests_break_it_off_while_they_are_still_running() {
    let origin = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            if head.starts_with("GET /hang") {
                note(head);
            } else {
                peer.send(OK);
            }
        }
    });
    let slow = SlowRequest { threshold: Duration::from_millis(200), percent: 0.1 };
    let breaker = CircuitBreaker { error_percent: None, slow_request: Some(slow), ..breaker(HOUR) };
    let rig = Rig::builder().endpoint(origin.address).policy(policy(breaker)).start();
    let hanging: Vec<Peer> = (0..3)
        .map(|_| {
            let mut caller = rig.dial();
            caller.get("/hang");
            caller
        })
        .collect();
    origin.await_notes(3);
    ask_until(&rig, |answer| answer.head.contains("circuit_open"));
    drop(hanging);
    rig.await_rest();
}

#[test]
fn a_pod_whose_requests_fail_opens_the_breaker_for_itself_alone() {
    for (scope, refused) in [(BreakerScope::Caller, false), (BreakerScope::Node, true)] {
        let origin = Origin::new(|_, peer, _| {
            while let Some(head) = peer.request() {
                peer.send(if head.contains("/bad") { BAD } else { OK });
            }
        });
        let service = Rig::builder().endpoint(origin.address);
        let rig = service.policy(policy(CircuitBreaker { scope, ..breaker(HOUR) })).start();
        let other = rig.other_pod();
        for _ in 0..3 {
            let mut bad = rig.dial();
            bad.get("/bad");
            assert_eq!(bad.answer().status(), 500);
        }
        ask(&rig).made_up(503, "circuit_open");
        let mut good = other.dial();
        good.get("/good");
        let answer = good.answer();
        if refused {
            answer.made_up(503, "circuit_open");
        } else {
            assert_eq!(answer.body, "ok");
        }
        let open = ["state=\"open\""];
        assert!((rig.metric("sluice_circuit_breaker_state", &open) - 1.0).abs() < f64::EPSILON, "{scope:?}");
    }
}

#[test]
fn what_a_failure_is_the_policy_says() {
    const ENOUGH: &str = "HTTP/1.1 429 Enough\r\ncontent-length: 0\r\n\r\n";
    let cases = [
        (Errors::default(), ENOUGH, false),
        (Errors { statuses: vec![429], ..Errors::default() }, ENOUGH, true),
        (Errors::default(), BAD, true),
        (Errors { server: false, statuses: vec![503], ..Errors::default() }, BAD, false),
    ];
    for (errors, says, opens) in cases {
        let service = Moody::new(says);
        let policy = Policy { errors: errors.clone(), ..policy(breaker(HOUR)) };
        let rig = Rig::builder().endpoint(service.origin.address).policy(policy).start();
        let mut caller = rig.dial();
        for _ in 0..4 {
            caller.get("/");
            caller.answer();
        }
        assert_eq!(service.asked(), if opens { 3 } else { 4 }, "{errors:?} {says:?}");
        let outcome = if opens { "outcome=\"failed\"" } else { "outcome=\"answered\"" };
        rig.await_metric("sluice_attempts_total", &[outcome], if opens { 3.0 } else { 4.0 });
    }
}
