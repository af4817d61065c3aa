//! `fallbacks` of a policy: which of them answers, and for whom an answer is kept.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use sluice::govern::policy::{
    CircuitBreaker, Concurrency, Fallback, FallbackAction, FallbackOn, Mode, Policy, Scope, StaleAnswer,
    StaleBounds, StaticAnswer, Timeouts,
};

use crate::{
    breaking::Moody,
    origin::Origin,
    peer::{Answer, Peer},
    rig::Rig,
};

const GOOD: &str =
    "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-type: text/plain\r\nx-from: service\r\n\r\ngood";
const BAD: &str = "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nx-from: service\r\n\r\noops";

fn fixed(on: &[FallbackOn], status: u16, body: &'static str) -> Arc<Fallback> {
    let headers = vec![(HeaderName::from_static("x-spare"), HeaderValue::from_static("yes"))];
    let action =
        FallbackAction::Static(StaticAnswer { status, headers, body: Bytes::from_static(body.as_bytes()) });
    Arc::new(Fallback { name: "spare".into(), on: on.to_vec(), action })
}

fn stale(on: &[FallbackOn], seconds: u64) -> Arc<Fallback> {
    let bounds = StaleBounds { max_age: Duration::from_secs(seconds), max_bytes: 1 << 20 };
    Arc::new(Fallback { name: "last".into(), on: on.to_vec(), action: FallbackAction::Stale(bounds.into()) })
}

/// With the header `x-user-id` the service tells its users apart.
fn stale_by_user() -> Arc<Fallback> {
    let bounds = StaleBounds { max_age: Duration::from_secs(60), max_bytes: 1 << 20 };
    let action =
        FallbackAction::Stale(StaleAnswer { bounds, vary_by: vec![HeaderName::from_static("x-user-id")] });
    Arc::new(Fallback { name: "last".into(), on: vec![FallbackOn::ServerError], action })
}

fn policy(fallbacks: Vec<Arc<Fallback>>) -> Policy {
    Policy { name: Some("shop/orders".into()), fallbacks, ..Policy::default() }
}

fn ask(caller: &mut Peer) -> Answer {
    caller.get("/");
    caller.answer()
}

#[track_caller]
fn is_spare(answer: &Answer, status: u16, reason: &str, body: &str) {
    let right = answer.status() == status
        && answer.body == body
        && answer.has("x-spare: yes")
        && answer.has(&format!("x-sluice-reason: {reason}"))
        && !answer.has("x-from: service");
    assert!(right, "not {status} {reason} {body}: {answer:?}");
}

#[track_caller]
fn is_stale(answer: &Answer, reason: &str, body: &str) {
    let right = answer.status() == 200
        && answer.body == body
        && answer.has("x-from: service")
        && answer.has(&format!("x-sluice-reason: {reason}"))
        && answer.head.contains("\r\nage: ");
    assert!(right, "no stale {body} for {reason}: {answer:?}");
}

#[test]
fn a_static_answer_stands_in_where_a_rule_refuses() {
    let all =
        [FallbackOn::LimitExceeded, FallbackOn::CircuitOpen, FallbackOn::Timeout, FallbackOn::ServerError];
    let spare = || policy(vec![fixed(&all, 203, "spare")]);
    let moody = Moody::new("");
    let endpoint = moody.origin.address;
    let request = Some(Duration::from_millis(50));
    let timeouts = Timeouts { request, ..Timeouts::default() };
    let mut rig = Rig::builder().endpoint(endpoint).policy(Policy { timeouts, ..spare() }).start();
    is_spare(&ask(&mut rig.dial()), 203, "timeout", "spare");

    let circuit_breaker =
        Some(CircuitBreaker { minimum_requests: 1, error_percent: Some(1.0), ..CircuitBreaker::default() });
    rig.change(|service| service.policy(Policy { circuit_breaker, ..spare() }));
    moody.say(BAD);
    let mut caller = rig.dial();
    is_spare(&ask(&mut caller), 203, "upstream_error", "spare");
    is_spare(&ask(&mut caller), 203, "circuit_open", "spare");

    let concurrency =
        Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
    rig.change(|service| service.policy(Policy { concurrency, ..spare() }));
    moody.say("");
    let asked = moody.origin.noted().len();
    let mut first = rig.dial();
    first.get("/");
    moody.origin.await_notes(asked + 1);
    is_spare(&ask(&mut rig.dial()), 203, "concurrency_limited", "spare");
}

#[test]
fn a_user_gets_no_other_users_last_good_response() {
    let moody = Moody::new(GOOD);
    let rig = Rig::builder().endpoint(moody.origin.address).policy(policy(vec![stale_by_user()])).start();
    let ask = |user: &str| {
        let mut caller = rig.dial();
        caller.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{user}\r\n"));
        caller.answer()
    };
    assert_eq!(ask("x-user-id: ann\r\n").body, "good");
    moody.say(BAD);
    is_stale(&ask("x-user-id: ann\r\n"), "upstream_error", "good");
    for other in ["x-user-id: bob\r\n", "", "x-user-id: ann\r\nx-user-id: bob\r\n"] {
        let answer = ask(other);
        assert_eq!((answer.status(), &*answer.body), (500, "oops"), "{other:?}");
    }
}

#[test]
fn a_fallback_for_something_else_does_not_answer() {
    let moody = Moody::new(BAD);
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![
            fixed(&[FallbackOn::Timeout], 200, "spare"),
            fixed(&[FallbackOn::ServerError], 200, "other"),
        ]))
        .start();
    let mut caller = rig.dial();
    is_spare(&ask(&mut caller), 200, "upstream_error", "other");
    moody.say("reset");
    ask(&mut caller).made_up(502, "upstream_reset");
}

#[test]
fn what_the_service_says_itself_is_passed_on_without_a_fallback_for_it() {
    let moody = Moody::new(BAD);
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![
            stale(&[FallbackOn::ServerError], 60),
            fixed(&[FallbackOn::Timeout], 200, "spare"),
        ]))
        .start();
    let answer = ask(&mut rig.dial());
    assert_eq!((answer.status(), answer.body.as_str()), (500, "oops"));
    assert!(answer.has("x-from: service") && !answer.head.contains("x-sluice-reason"), "{answer:?}");
}

#[test]
fn the_last_good_answer_stands_in() {
    let moody = Moody::new(BAD);
    let all = [FallbackOn::ServerError, FallbackOn::ConnectFailure];
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![stale(&all, 600), fixed(&all, 503, "none")]))
        .start();
    let mut caller = rig.dial();
    is_spare(&ask(&mut caller), 503, "upstream_error", "none");
    moody.say(GOOD);
    let answer = ask(&mut caller);
    assert!(answer.body == "good" && !answer.head.contains("age: "), "{answer:?}");
    for (says, reason) in [(BAD, "upstream_error"), ("reset", "upstream_reset")] {
        moody.say(says);
        let answer = ask(&mut caller);
        is_stale(&answer, reason, "good");
        assert!(answer.has("content-type: text/plain") && answer.has("content-length: 4"), "{answer:?}");
    }
    // The newest counts.
    moody.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-from: service\r\n\r\n3\r\nbet\r\n3\r\nter\r\n0\r\n\r\n");
    caller.get("/");
    assert!(caller.until("0\r\n\r\n").contains("bet"));
    moody.say(BAD);
    is_stale(&ask(&mut caller), "upstream_error", "better");
    // Others have none.
    for request in [
        "GET /other HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nAuthorization: Bearer other\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nCookie: session=other\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n",
    ] {
        caller.send(request);
        is_spare(&caller.answer(), 503, "upstream_error", "none");
    }
}

#[test]
fn answers_are_not_shared_across_credentials_or_what_they_vary_by() {
    let moody =
        Moody::new("HTTP/1.1 200 OK\r\ncontent-length: 4\r\nvary: x-plan\r\nx-from: service\r\n\r\nmine");
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![stale(&[FallbackOn::ServerError], 600)]))
        .start();
    let mut caller = rig.dial();
    let mut ask = |user: &str, plan: &str| {
        caller.send(format!(
            "GET / HTTP/1.1\r\nHost: orders\r\nAuthorization: {user}\r\nX-Plan: {plan}\r\n\r\n"
        ));
        caller.answer()
    };
    assert_eq!(ask("ann", "gold").body, "mine");
    moody.say(BAD);
    is_stale(&ask("ann", "gold"), "upstream_error", "mine");
    assert_eq!(ask("bob", "gold").body, "oops");
    assert_eq!(ask("ann", "free").body, "oops");
}

#[test]
fn what_must_not_be_kept_is_not() {
    for head in ["cache-control: no-store", "cache-control: private", "set-cookie: a=1", "vary: *"] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n{head}\r\n\r\nmine");
        let moody = Moody::new(answer.leak());
        let rig = Rig::builder()
            .endpoint(moody.origin.address)
            .policy(policy(vec![stale(&[FallbackOn::ServerError], 600)]))
            .start();
        let mut caller = rig.dial();
        assert_eq!(ask(&mut caller).body, "mine");
        moody.say(BAD);
        assert_eq!(ask(&mut caller).body, "oops", "{head}");
    }
}

#[test]
fn an_answer_that_broke_off_is_not_kept() {
    let moody = Moody::new("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![stale(&[FallbackOn::ServerError], 600)]))
        .start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.until("half");
    drop(caller);
    rig.await_rest();
    moody.say(BAD);
    assert_eq!(ask(&mut rig.dial()).body, "oops");
}

#[test]
fn the_last_good_response_is_kept_whole_however_it_is_framed_and_comes() {
    let body: &'static str = "0123456789abcdef".repeat(16 * 1024).leak();
    let length = body.len();
    let chunks = body
        .as_bytes()
        .chunks(10_000)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-from: service\r\n\r\n{}0\r\n\r\n",
        chunks.collect::<String>()
    );
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-from: service\r\n\r\n{body}");
    let until_close = format!("HTTP/1.0 200 OK\r\nx-from: service\r\n\r\n{body}");
    for good in [sized, chunked, until_close] {
        let origin = Origin::new(move |connection, peer, _| {
            while peer.request().is_some() {
                if connection > 0 {
                    peer.send(BAD);
                    continue;
                }
                // The head by itself, a part that fits behind a head, and the rest in many pieces.
                for piece in [&good[..50], &good[50..2_000], &good[2_000..]] {
                    peer.send(piece);
                }
                return;
            }
        });
        let rig = Rig::builder()
            .endpoint(origin.address)
            .policy(policy(vec![stale(&[FallbackOn::ServerError], 600)]))
            .start();
        let mut caller = rig.dial();
        caller.send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n");
        let first = caller.rest();
        assert!(first.contains("x-from: service") && !first.contains("age: "), "{}", &first[..200]);
        rig.await_rest();
        is_stale(&ask(&mut rig.dial()), "upstream_error", body);
    }
}

#[test]
fn the_connection_of_a_response_that_is_replaced_serves_the_next_request() {
    let moody = Moody::new(BAD);
    let rig = Rig::builder()
        .endpoint(moody.origin.address)
        .policy(policy(vec![fixed(&[FallbackOn::ServerError], 203, "spare")]))
        .start();
    let mut caller = rig.dial();
    for _ in 0..3 {
        is_spare(&ask(&mut caller), 203, "upstream_error", "spare");
    }
    moody.say(GOOD);
    assert_eq!(ask(&mut caller).body, "good");
    assert!((rig.opened() - 1.0).abs() < 0.1, "{} connections", rig.opened());
}
