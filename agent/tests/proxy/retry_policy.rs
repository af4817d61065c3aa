//! `retry` of a policy: what is sent again, whole and only where it may be, and what never is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use sluice::govern::policy::{Policy, Retry, RetryOn, Timeouts};

use crate::{origin::Origin, peer::End, rig::Rig};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nx-from: service\r\n\r\nbusy";
const RESET: &str = "reset";
const SILENCE: &str = "";

/// A service whose n-th request gets the n-th answer, and all after that the last one. Notes request lines and bodies.
fn answering(answers: &[&'static str]) -> Origin {
    let answers = answers.to_vec();
    let count = AtomicUsize::new(0);
    Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            let body = body_of(&head, peer);
            note(format!("{} {body}", head.split(' ').next().unwrap_or_default()));
            let n = count.fetch_add(1, Ordering::SeqCst);
            match answers[n.min(answers.len() - 1)] {
                RESET => return peer.reset(),
                SILENCE => {}
                answer => peer.send(answer),
            }
        }
    })
}

fn body_of(head: &str, peer: &mut crate::peer::Peer) -> String {
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let mut body = String::new();
        loop {
            let size = peer.until("\r\n");
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            body += &String::from_utf8(peer.exactly(size)).unwrap();
            peer.expect("\r\n");
            if size == 0 {
                return body;
            }
        }
    }
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    String::from_utf8(peer.exactly(length)).unwrap()
}

/// Without waiting in between, and as often as it takes.
fn retry() -> Retry {
    Retry { attempts: 3, backoff_base: Duration::ZERO, backoff_max: Duration::ZERO, ..Retry::default() }
}

fn policy(retry: Retry) -> Policy {
    Policy { name: Some("shop/orders".into()), retry: Some(retry), ..Policy::default() }
}

fn rig(origin: &Origin, policy: Policy) -> Rig {
    Rig::builder().endpoint(origin.address).policy(policy).start()
}

#[test]
fn a_retry_stays_in_the_lane_and_is_counted_there() {
    let (baseline, gray) = (answering(&[OK]), answering(&[BUSY]));
    let retry = Retry { attempts: 1, budget_percent: 100.0, ..retry() };
    let rig =
        Rig::builder().endpoint(baseline.address).lane("gray", gray.address).policy(policy(retry.clone()));
    let rig = rig.start();
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\n\r\n");
        assert_eq!(caller.answer().status(), 503, "the lane has nobody else");
    }
    assert_eq!((baseline.noted().len(), gray.noted().len()), (0, 6));
    let failed = ["destination_lane=\"gray\"", "outcome=\"failed\""];
    rig.await_metric("sluice_attempts_total", &failed, 6.0);

    // Another endpoint of the lane goes first.
    let (bad, good) = (answering(&[BUSY]), answering(&[OK]));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", bad.address).lane("gray", good.address);
    let rig = rig.policy(policy(retry)).start();
    let mut caller = rig.dial();
    for _ in 0..20 {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\n\r\n");
        assert_eq!(caller.answer().status(), 200);
    }
    assert!(baseline.noted().is_empty());
    let wrong = bad.noted().len() as f64;
    rig.await_metric("sluice_attempts_total", &failed, wrong);
    rig.await_metric("sluice_attempts_total", &["destination_lane=\"gray\"", "outcome=\"answered\""], 20.0);
}

#[test]
fn what_the_policy_lists_is_sent_again() {
    for answers in [&[BUSY, OK][..], &[RESET, OK], &[BUSY, RESET, BUSY, OK]] {
        let origin = answering(answers);
        let rig = rig(&origin, policy(retry()));
        let mut caller = rig.dial();
        caller.get("/");
        assert_eq!(caller.answer().body, "ok", "{answers:?}");
        assert_eq!(origin.noted().len(), answers.len());
        // The caller's connection goes on.
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
        rig.await_requests("2xx", "", 2.0);
        rig.await_requests("5xx", "", 0.0);
    }
}

/// It is read to its end, so that the next attempt needs no connection of its own.
#[test]
fn a_response_that_is_not_passed_on_leaves_its_connection_to_the_next_attempt() {
    let origin = answering(&[BUSY, BUSY, OK]);
    let rig = rig(&origin, policy(retry()));
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    assert_eq!(origin.noted().len(), 3);
    assert!((rig.opened() - 1.0).abs() < 0.1, "{} connections", rig.opened());
}

#[test]
fn an_endpoint_that_does_not_answer_in_time_is_not_waited_for() {
    let origin = answering(&[SILENCE, OK]);
    let timeouts = Timeouts { backend_request: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let rig = rig(&origin, Policy { timeouts, ..policy(retry()) });
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    assert_eq!(origin.noted().len(), 2);
}

#[test]
fn the_time_of_the_whole_request_is_not_made_longer_by_retries() {
    let origin = answering(&[BUSY]);
    let timeouts = Timeouts { request: Some(Duration::from_millis(200)), ..Timeouts::default() };
    let forever = Duration::from_secs(3600);
    let retry = Retry { backoff_base: forever, backoff_max: forever, ..retry() };
    let rig = rig(&origin, Policy { timeouts, ..policy(retry) });
    let mut caller = rig.dial();
    caller.get("/");
    let answer = caller.answer();
    assert!(matches!(answer.status(), 503 | 504), "{answer:?}");
    assert_eq!(origin.noted().len(), 1);
}

#[test]
fn the_last_failure_is_the_service_s_own() {
    let origin = answering(&[BUSY]);
    let rig = rig(&origin, policy(retry()));
    let mut caller = rig.dial();
    for n in 1..=2 {
        caller.get("/");
        let answer = caller.answer();
        assert_eq!((answer.status(), answer.body.as_str()), (503, "busy"));
        assert!(answer.has("x-from: service") && !answer.head.contains("x-sluice-reason"), "{answer:?}");
        assert_eq!(origin.noted().len(), 4 * n, "one attempt and three more");
    }
    let origin = answering(&[RESET]);
    let rig = self::rig(&origin, policy(retry()));
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(502, "upstream_reset");
    assert_eq!(origin.noted().len(), 4);
}

#[test]
fn nothing_is_paid_for_twice() {
    for (says, status) in [(BUSY, 503), (RESET, 502)] {
        for method in ["POST", "PATCH"] {
            let origin = answering(&[says]);
            let rig = rig(&origin, policy(retry()));
            let mut caller = rig.dial();
            caller.send(format!("{method} /pay HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nmoney"));
            assert_eq!(caller.answer().status(), status);
            rig.await_metric("sluice_requests_in_flight", &[], 0.0);
            assert_eq!(origin.noted(), [format!("{method} money")]);
        }
    }
}

#[test]
fn a_body_is_sent_again_as_it_was() {
    let listed = || Retry { methods: vec![Method::POST], ..retry() };
    let body = "0123456789abcdef".repeat(64 * 1024 / 16);
    // What tells the chunks apart is kept too.
    let chunks = &body[..60 * 1024];
    for (body, chunked) in [("money", false), ("money", true), (body.as_str(), false), (chunks, true)] {
        for says in [&[BUSY, OK], &[RESET, OK]] {
            let origin = answering(says);
            let rig = rig(&origin, policy(listed()));
            let mut caller = rig.dial();
            let length = body.len();
            if chunked {
                caller.send("POST /pay HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in body.as_bytes().chunks(10_000) {
                    caller.send(format!("{:x}\r\n", piece.len()));
                    caller.send(piece);
                    caller.send("\r\n");
                }
                caller.send("0\r\n\r\n");
            } else {
                caller.send(format!("POST /pay HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
                caller.send(body);
            }
            let answer = caller.answer();
            assert_eq!(answer.body, "ok", "{length} chunked {chunked} {says:?}: {answer:?}");
            let whole = format!("POST {body}");
            assert!(origin.noted() == [whole.clone(), whole], "{length} chunked {chunked} {says:?}");
        }
    }
}

#[test]
fn a_body_that_is_not_kept_is_not_sent_again() {
    let origin = answering(&[BUSY]);
    let rig = rig(&origin, policy(Retry { methods: vec![Method::PUT], ..retry() }));
    let body = "x".repeat(64 * 1024 + 1);
    let mut caller = rig.dial();
    caller.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let answer = caller.answer();
    assert_eq!((answer.status(), answer.body.as_str()), (503, "busy"));
    assert_eq!(origin.noted(), [format!("PUT {body}")]);
}

#[test]
fn an_answer_that_has_begun_is_not_begun_again() {
    let origin = Origin::new(|_, peer, note| {
        let Some(_) = peer.request() else { return };
        note("asked".to_owned());
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
        peer.reset();
    });
    let rig = rig(&origin, policy(retry()));
    let mut caller = rig.dial();
    caller.get("/");
    let (got, end) = caller.end();
    assert!(got.ends_with("half") && got.matches("HTTP/1.1").count() == 1, "{got}");
    assert_eq!(end, End::Reset);
    assert_eq!(origin.noted().len(), 1);
    rig.await_rest();
}

#[test]
fn a_large_answer_that_is_not_wanted_is_not_waited_for() {
    let count = Arc::new(AtomicUsize::new(0));
    let origin = Origin::new(move |_, peer, _| {
        while peer.request().is_some() {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                peer.send("HTTP/1.1 503 Busy\r\ncontent-length: 1000000000\r\n\r\n");
                // More than anybody keeps, and never the end of it.
                let part = vec![b'x'; 64 * 1024];
                while peer.try_send(&part) {}
                return;
            }
            peer.send(OK);
        }
    });
    let rig = rig(&origin, policy(retry()));
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
}

#[test]
fn too_many_requests_are_sent_again_if_the_policy_says_so() {
    let many = "HTTP/1.1 429 Many\r\ncontent-length: 0\r\n\r\n";
    let listed = RetryOn { statuses: vec![429], ..RetryOn::default() };
    for (on, status) in [(RetryOn::default(), 429), (listed, 200)] {
        let origin = answering(&[many, OK]);
        let rig = rig(&origin, policy(Retry { on, ..retry() }));
        let mut caller = rig.dial();
        caller.get("/");
        assert_eq!(caller.answer().status(), status);
    }
}
