//! Answers without a body, interim answers, and permission to send one.

use std::time::Duration;

use sluice::govern::policy::{Policy, Timeouts};

use crate::{origin::Origin, rig::Rig};

/// The answer has no body although its head may speak of one, and the next request is answered over the same connection.
#[track_caller]
fn bodiless(method: &str, answer: &'static str) {
    let origin = Origin::raw(answer);
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(caller.head(), answer);
    }
    assert!((rig.opened() - 1.0).abs() < 0.1);
    rig.await_metric("sluice_bytes_total", &["direction=\"response\""], 0.0);
}

#[test]
fn an_answer_to_head_has_no_body() {
    bodiless("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n");
}

#[test]
fn a_chunked_answer_to_head_has_no_body() {
    bodiless("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn no_content_has_no_body() {
    bodiless("GET", "HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn not_modified_has_no_body() {
    bodiless("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\nETag: \"a\"\r\n\r\n");
}

const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
const PROCESSING: &str = "HTTP/1.1 102 Processing\r\n\r\n";

/// Sends `first` at the head of a request, and a final answer when its body has come.
fn interim(first: String) -> Origin {
    Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            peer.send(&first);
            peer.expect("go on");
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    })
}

#[test]
fn interim_answers_are_passed_on_as_they_come() {
    let origin = interim([EARLY, PROCESSING, EARLY].concat());
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
        caller.expect(EARLY);
        caller.expect(PROCESSING);
        caller.expect(EARLY);
        caller.send("go on");
        assert_eq!(caller.answer().status(), 200);
    }
    rig.await_requests("2xx", "", 2.0);
    assert!((rig.opened() - 1.0).abs() < 0.1);
}

#[test]
fn an_old_caller_gets_no_interim_answers() {
    let origin = interim(EARLY.to_owned());
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\ngo on");
    assert_eq!(caller.answer().status(), 200);
}

#[test]
fn a_flood_of_interim_answers_reaches_a_caller_that_is_still_sending() {
    // More than all buffers on the way hold: each side waits for the other unless both directions move.
    const HINTS: usize = 40_000;
    let origin = Origin::new(move |_, peer, _| {
        peer.request();
        let mut writer = peer.second();
        let hints = std::thread::spawn(move || {
            for _ in 0..HINTS / 100 {
                writer.send(EARLY.repeat(100));
            }
        });
        peer.exactly(4_000_000);
        hints.join().unwrap();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n");
    // Sends it all before it reads anything.
    assert_eq!(caller.fill(4_000_000), 4_000_000);
    for _ in 0..HINTS {
        caller.expect(EARLY);
    }
    assert_eq!(caller.answer().status(), 200);
}

#[test]
fn nothing_follows_an_interim_answer_that_was_not_written_whole() {
    // More than all buffers on the way hold, for a caller that does not read.
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        peer.offer(EARLY.repeat(300_000));
        note("left".to_owned());
    });
    let timeouts = Timeouts { backend_request: Some(Duration::from_secs(1)), ..Timeouts::default() };
    let policy = Policy { name: Some("shop/orders".into()), timeouts, ..Policy::default() };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(origin.await_notes(1)[0], "left");
    let (all, _) = caller.end();
    let mut rest = &all[..];
    while let Some(more) = rest.strip_prefix(EARLY) {
        rest = more;
    }
    let whole = rest.starts_with("HTTP/1.1 504 ");
    assert!(all.starts_with(EARLY) && (whole || EARLY.starts_with(rest)), "{rest:?}");
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn permission_to_send_a_body_is_passed_on() {
    let origin = interim("HTTP/1.1 100 Continue\r\n\r\n".to_owned());
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send(EXPECTING);
        caller.expect("HTTP/1.1 100 Continue\r\n\r\n");
        caller.send("go on");
        let answer = caller.answer();
        assert_eq!(answer.head, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
    assert_eq!(origin.noted(), [EXPECTING, EXPECTING]);
}

#[test]
fn a_caller_may_send_without_waiting_for_permission() {
    let origin = interim("HTTP/1.1 100 Continue\r\n\r\n".to_owned());
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("{EXPECTING}go on"));
    caller.expect("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(caller.answer().status(), 200);
}

#[test]
fn an_answer_instead_of_permission_ends_the_connection() {
    // The caller may send its body all the same or not, so nothing behind it would be clear: not for the caller's
    // connection, and not for the endpoint's.
    for body in ["", "go on"] {
        let origin = Origin::new(|number, peer, note| {
            peer.request();
            peer.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno");
            note(format!("{number}: {}", peer.end().0));
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.send(EXPECTING);
        let answer = caller.answer();
        assert!(answer.status() == 417 && answer.has("connection: close"), "{answer:?}");
        caller.send(body);
        assert_eq!(caller.rest(), "");
        assert_eq!(origin.await_notes(1), ["0: "]);
        drop(caller);
        rig.await_rest();
    }
}
