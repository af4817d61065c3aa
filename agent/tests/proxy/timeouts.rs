//! `timeouts` of a policy, over HTTP/1.

use std::time::{Duration, Instant};

use sluice::govern::policy::{Mode, Policy, Timeouts};

use crate::{origin::Origin, peer::End, rig::Rig};

fn policy(request: Option<u64>, backend_request: Option<u64>) -> Policy {
    let timeouts = Timeouts {
        request: request.map(Duration::from_millis),
        backend_request: backend_request.map(Duration::from_millis),
        ..Timeouts::default()
    };
    Policy { name: Some("shop/orders".into()), timeouts, ..Policy::default() }
}

/// Reads requests, and answers none.
fn silent() -> Origin {
    Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
        }
        note("left".to_owned());
    })
}

#[test]
fn an_endpoint_that_does_not_answer_in_time_is_answered_for() {
    for (policy, field) in [
        (policy(Some(100), None), "timeouts.request"),
        (policy(None, Some(100)), "timeouts.backendRequest"),
        (policy(Some(60_000), Some(100)), "timeouts.backendRequest"),
    ] {
        let origin = silent();
        let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
        let mut caller = rig.dial();
        let began = Instant::now();
        caller.get("/");
        let answer = caller.answer();
        answer.made_up(504, "timeout");
        assert!(began.elapsed() >= Duration::from_millis(100));
        assert!(
            answer.body.contains(&format!("\"rule\":\"{field}\",\"policy\":\"shop/orders\"")),
            "{answer:?}"
        );
        // The endpoint is told, and the caller may go on.
        assert_eq!(origin.await_notes(2)[1], "left");
        caller.get("/");
        caller.answer().made_up(504, "timeout");
        rig.await_requests("5xx", "timeout", 2.0);
    }
}

#[test]
fn a_timeout_that_only_observes_ends_nothing_and_counts() {
    for (request, backend_request, name) in [
        (Some(20), None, "request"),
        (None, Some(20), "backend_request"),
        (Some(60_000), Some(20), "backend_request"),
    ] {
        let origin = Origin::new(|_, peer, _| {
            while peer.request().is_some() {
                std::thread::sleep(Duration::from_millis(60));
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        let mut policy = policy(request, backend_request);
        policy.timeouts.mode = Mode::Observe;
        let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
        let mut caller = rig.dial();
        for _ in 0..5 {
            caller.get("/");
            assert_eq!(caller.answer().body, "ok");
        }
        rig.await_metric("sluice_timeouts_observed_total", &[&format!("timeout=\"{name}\"")], 5.0);
        rig.await_requests("2xx", "", 5.0);
    }
}

#[test]
fn an_answer_that_takes_too_long_is_broken_off() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
        peer.request();
    });
    let rig = Rig::builder().endpoint(origin.address).policy(policy(Some(200), None)).start();
    let mut caller = rig.dial();
    caller.get("/");
    let (got, end) = caller.end();
    assert!(got.ends_with("begun"), "{got}");
    assert_eq!(end, End::Reset, "a broken answer must not look like a whole one");
    rig.await_requests("2xx", "timeout", 1.0);
    rig.await_nothing();
}

#[test]
fn a_request_whose_body_does_not_come_in_time_is_refused() {
    let origin = silent();
    let rig = Rig::builder().endpoint(origin.address).policy(policy(Some(100), None)).start();
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    caller.answer().made_up(504, "timeout");
    assert_eq!(caller.rest(), "", "nobody knows where the next request would begin");
}

#[test]
fn a_tunnel_may_last() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        assert_eq!(peer.exactly(4), b"ping");
        peer.send("pong");
    });
    let rig = Rig::builder().endpoint(origin.address).policy(policy(Some(100), Some(100))).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(caller.answer().status(), 101);
    std::thread::sleep(Duration::from_millis(300));
    caller.send("ping");
    assert_eq!(caller.exactly(4), b"pong");
}
