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

/// Server-sent events every so many milliseconds, a few of them, and then silence.
fn events(every: u64, count: usize) -> Origin {
    Origin::new(move |_, peer, note| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        for _ in 0..count {
            peer.send("9\r\ndata: x\n\n\r\n");
            std::thread::sleep(Duration::from_millis(every));
        }
        let _ = peer.request();
        note("left".to_owned());
    })
}

fn idle(request: u64, idle: u64) -> Policy {
    let mut policy = policy(Some(request), Some(request));
    policy.timeouts.stream_idle = Some(Duration::from_millis(idle));
    policy
}

#[test]
fn events_go_on_for_as_long_as_there_are_any_and_no_longer() {
    let origin = events(50, 10);
    let rig = Rig::builder().endpoint(origin.address).policy(idle(100, 300)).start();
    let mut caller = rig.dial();
    let began = Instant::now();
    caller.get("/");
    let (got, end) = caller.end();
    assert_eq!(got.matches("data: x").count(), 10, "{got}");
    assert_eq!(end, End::Reset);
    assert!(began.elapsed() >= Duration::from_millis(750), "{:?}", began.elapsed());
    assert_eq!(origin.await_notes(1)[0], "left");
    rig.await_requests("2xx", "timeout", 1.0);
    // The endpoint is not to blame.
    rig.await_metric("sluice_attempts_total", &["outcome=\"answered\""], 1.0);
    rig.await_nothing();
}

#[test]
fn without_a_time_of_their_own_events_end_with_the_request() {
    let origin = events(50, 100);
    let rig = Rig::builder().endpoint(origin.address).policy(policy(Some(200), None)).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.end().1, End::Reset);
    rig.await_requests("2xx", "timeout", 1.0);
}

#[test]
fn what_is_no_stream_ends_with_the_request() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\nbegun");
        peer.request();
    });
    let rig = Rig::builder().endpoint(origin.address).policy(idle(200, 60_000)).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.end().1, End::Reset);
    rig.await_metric("sluice_attempts_total", &["outcome=\"failed\""], 1.0);
}

#[test]
fn a_silent_stream_is_only_counted_in_observe_mode() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 4\r\n\r\nab");
        std::thread::sleep(Duration::from_millis(120));
        peer.send("cd");
        peer.request();
    });
    let mut policy = idle(60_000, 50);
    policy.timeouts.mode = Mode::Observe;
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "abcd");
    rig.await_metric("sluice_timeouts_observed_total", &["timeout=\"stream_idle\""], 1.0);
    rig.await_metric("sluice_timeouts_observed_total", &["timeout=\"request\""], 0.0);
}

#[test]
fn a_tunnel_that_is_silent_ends() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        for _ in 0..4 {
            assert_eq!(peer.exactly(4), b"ping");
            peer.send("pong");
        }
        note(format!("{:?}", peer.end().1));
    });
    let rig = Rig::builder().endpoint(origin.address).policy(idle(100, 200)).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(caller.answer().status(), 101);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(80));
        caller.send("ping");
        assert_eq!(caller.exactly(4), b"pong");
    }
    assert_eq!(caller.end().1, End::Reset);
    assert_eq!(origin.await_notes(1)[0], "Reset");
    rig.await_metric("sluice_tunnels_total", &["reason=\"timeout\""], 1.0);
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
