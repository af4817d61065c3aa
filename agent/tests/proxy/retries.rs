//! What is tried again: only what nobody can have processed, or what may be processed twice.

use sluice::cluster::model::Protocol;

use crate::{origin::Origin, rig::Rig};

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    // A body that is on its way arrives whole.
    let body = "0123456789".repeat(10_000);
    let length = body.len();
    let origin = Origin::new(move |_, peer, note| {
        while peer.request().is_some() {
            note(String::from_utf8(peer.exactly(length)).unwrap());
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let rig = Rig::builder().endpoint(Origin::nobody()).endpoint(origin.address).start();
    let mut refused = 0.0;
    for _ in 0..100 {
        let mut caller = rig.dial();
        caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
        assert_eq!(caller.answer().body, "ok");
        refused = rig.metric("sluice_retries_total", &["cause=\"connect_failure\""]);
        if refused > 1.0 {
            break;
        }
    }
    assert!(refused > 0.0, "the endpoint that refuses was never chosen");
    assert!(origin.noted().iter().all(|noted| *noted == body));
    let counted = rig.metric("sluice_upstream_connects_total", &["outcome=\"refused\""]);
    assert!((refused - counted).abs() < 0.1);
    assert!(rig.metric("sluice_requests_total", &["code=\"5xx\""]).abs() < 0.1);
}

#[test]
fn endpoints_that_all_refuse_are_each_tried_once() {
    let mut service = Rig::builder();
    for _ in 0..2 {
        service = service.endpoint(Origin::nobody());
    }
    let rig = service.start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    rig.await_requests("5xx", "upstream_connect", 1.0);
    assert!((rig.metric("sluice_upstream_connects_total", &["outcome=\"refused\""]) - 2.0).abs() < 0.1);
    assert!((rig.metric("sluice_retries_total", &["cause=\"connect_failure\""]) - 1.0).abs() < 0.1);
    // Its request was complete, so its connection is good for another one.
    caller.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = caller.rest();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    rig.await_rest();
}

#[test]
fn many_endpoints_that_refuse_are_not_all_tried() {
    let mut service = Rig::builder();
    for _ in 0..10 {
        service = service.endpoint(Origin::nobody());
    }
    let rig = service.start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    assert!((rig.metric("sluice_upstream_connects_total", &["outcome=\"refused\""]) - 4.0).abs() < 0.1);
}

/// Answers the first request of a connection, reads the second one and ends the connection without an answer. Notes
/// every head.
fn forgetful(reset: bool) -> Origin {
    Origin::new(move |number, peer, note| {
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').take(2).collect::<Vec<_>>().join(" ")));
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').take(2).collect::<Vec<_>>().join(" ")));
        if reset {
            peer.reset();
        }
    })
}

#[test]
fn an_idempotent_request_over_a_stale_connection_is_sent_again() {
    for reset in [false, true] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            let origin = forgetful(reset);
            let rig = Rig::before(&origin);
            let mut caller = rig.dial();
            caller.get("/first");
            assert_eq!(caller.answer().body, "ok");
            caller.send(format!("{method} /second HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(caller.head().starts_with("HTTP/1.1 200 "), "{method}");
            let second = format!("{method} /second");
            assert_eq!(origin.noted(), ["0 GET /first".into(), format!("0 {second}"), format!("1 {second}")]);
            assert!((rig.metric("sluice_retries_total", &["cause=\"stale_connection\""]) - 1.0).abs() < 0.1);
        }
    }
}

#[test]
fn a_request_that_may_have_been_processed_is_not_sent_again() {
    for method in ["POST", "PATCH", "get", "X-CUSTOM"] {
        let origin = forgetful(true);
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.get("/first");
        assert_eq!(caller.answer().body, "ok");
        caller.send(format!("{method} /second HTTP/1.1\r\nHost: a\r\n\r\n"));
        caller.answer().made_up(502, "upstream_reset");
        assert_eq!(origin.noted(), ["0 GET /first".into(), format!("0 {method} /second")]);
        assert!(rig.metric("sluice_retries_total", &[]).abs() < 0.1);
    }
}

#[test]
fn a_body_that_has_been_passed_on_cannot_be_sent_again() {
    // Idempotent, but its body is no longer there: half a request must not be sent.
    let body = "x".repeat(100_000);
    let length = body.len();
    let origin = Origin::new(move |number, peer, note| {
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').next().unwrap()));
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let Some(head) = peer.request() else { return };
        peer.exactly(length);
        note(format!("{number} {}", head.split(' ').next().unwrap()));
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    caller.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"));
    caller.answer().made_up(502, "upstream_reset");
    assert_eq!(origin.noted(), ["0 GET", "0 PUT"]);
}

#[test]
fn a_request_that_was_answered_for_now_is_not_sent_again() {
    let origin = Origin::new(|number, peer, note| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        if peer.request().is_some() {
            note(format!("{number} asked again"));
            peer.send("HTTP/1.1 102 Processing\r\n\r\n");
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    caller.get("/");
    assert_eq!(caller.answer().status(), 102);
    caller.answer().made_up(502, "upstream_reset");
    assert_eq!(origin.noted(), ["0 asked again"]);
}

#[test]
fn a_new_connection_that_breaks_is_no_reason_to_try_again() {
    let origin = Origin::new(|number, peer, note| {
        peer.request();
        note(number.to_string());
        peer.reset();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(502, "upstream_reset");
    assert_eq!(origin.noted(), ["0"]);
}

#[test]
fn an_idle_connection_that_its_server_closed_is_not_an_error() {
    let origin = Origin::last("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..200 {
        caller.get("/");
        let answer = caller.answer();
        assert_eq!(answer.body, "ok", "{answer:?}");
    }
    rig.await_requests("2xx", "", 200.0);
}

#[test]
fn a_request_over_a_stale_connection_goes_elsewhere_if_its_endpoint_is_gone() {
    let seen = (0..60).any(|_| {
        let leaving = forgetful(false);
        let mut rig = Rig::before(&leaving);
        let mut caller = rig.dial();
        caller.get("/first");
        assert_eq!(caller.answer().body, "ok");
        let address = leaving.address;
        drop(leaving);
        while std::net::TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
        let other = Origin::fixed("ok");
        let stays = other.address;
        rig.change(|service| service.endpoint(stays));
        caller.get("/second");
        assert_eq!(caller.answer().body, "ok");
        rig.metric("sluice_retries_total", &["cause=\"stale_connection\""]) > 0.5
    });
    assert!(seen, "the endpoint that leaves was never chosen");
}

#[test]
fn a_body_that_comes_late_is_sent_again_over_a_stale_connection() {
    let origin = Origin::new(|number, peer, note| {
        let Some(_) = peer.request() else { return };
        if number == 0 {
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            let Some(_) = peer.request() else { return };
            note("head".to_owned());
            peer.exactly(4);
            return;
        }
        note(String::from_utf8(peer.exactly(4)).unwrap());
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/first");
    assert_eq!(caller.answer().body, "ok");
    caller.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    origin.await_notes(1);
    caller.send("body");
    assert_eq!(caller.answer().body, "ok");
    assert_eq!(origin.noted(), ["head", "body"]);
}

/// The connection was made while it was not known what the caller speaks, and has brought no response yet: that it ends says nothing of
/// an idle server that has grown tired of it.
#[test]
fn a_request_over_a_connection_that_has_not_been_used_is_not_sent_again() {
    let origin = Origin::new(|number, peer, note| {
        note(format!("{number} connected"));
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').take(2).collect::<Vec<_>>().join(" ")));
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    origin.await_notes(1);
    caller.get("/once");
    caller.answer().made_up(502, "upstream_reset");
    assert_eq!(origin.noted(), ["0 connected", "0 GET /once"]);
    assert!(rig.metric("sluice_retries_total", &[]).abs() < 0.1);
}
