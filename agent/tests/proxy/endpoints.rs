//! Endpoints that leave, or never were there: what their callers see of it.

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::Rig,
};

/// Sends this after a request's head, and ends the connection: in order, or with a reset.
fn dying(said: &'static str, reset: bool) -> Origin {
    Origin::new(move |_, peer, note| {
        let Some(head) = peer.request() else { return };
        note(head);
        peer.send(said);
        if reset {
            // What was said has arrived, so that the reset does not overtake it.
            note("said".to_owned());
            peer.expect("now");
            peer.reset();
        }
    })
}

/// A caller that has sent its request; it is about to see how its endpoint leaves.
fn ask(rig: &Rig) -> Peer {
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n");
    caller
}

#[test]
fn before_its_answer() {
    for reset in [false, true] {
        let origin = dying("", reset);
        let rig = Rig::before(&origin);
        let mut caller = ask(&rig);
        caller.send("now");
        caller.answer().made_up(502, "upstream_reset");
        rig.await_requests("5xx", "upstream_reset", 1.0);
        drop(caller);
        rig.await_nothing();
    }
}

#[test]
fn within_the_head_of_its_answer() {
    for reset in [false, true] {
        let origin = dying("HTTP/1.1 200 OK\r\nContent-Le", reset);
        let rig = Rig::before(&origin);
        let mut caller = ask(&rig);
        caller.send("now");
        caller.answer().made_up(502, "upstream_reset");
        rig.await_requests("5xx", "upstream_reset", 1.0);
    }
}

#[test]
fn after_an_interim_answer() {
    let origin = dying("HTTP/1.1 103 Early Hints\r\n\r\n", true);
    let rig = Rig::before(&origin);
    let mut caller = ask(&rig);
    assert_eq!(caller.answer().status(), 103);
    caller.send("now");
    caller.answer().made_up(502, "upstream_reset");
}

/// The caller gets what there is of an answer, and can tell that it is not all.
#[track_caller]
fn cut_off(said: &'static str, arrives: &str) {
    for (reset, end) in [(false, End::InOrder), (true, End::Reset)] {
        let origin = dying(said, reset);
        let rig = Rig::before(&origin);
        let mut caller = ask(&rig);
        caller.head();
        caller.expect(arrives);
        if reset {
            caller.send("now");
        }
        assert_eq!(caller.end(), (String::new(), end));
        rig.await_requests("2xx", "upstream_reset", 1.0);
        drop(caller);
        rig.await_nothing();
    }
}

#[test]
fn within_a_body_of_known_length() {
    cut_off("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "hello");
}

#[test]
fn within_a_chunk() {
    cut_off("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhello", "a\r\nhello");
}

#[test]
fn between_two_chunks() {
    cut_off("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "5\r\nhello\r\n");
}

#[test]
fn within_the_trailers() {
    cut_off("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: ", "0\r\nx-sum: ");
}

#[test]
fn a_reset_is_no_end_of_a_body_that_ends_with_the_connection() {
    let origin = dying("HTTP/1.1 200 OK\r\n\r\nhello", true);
    let rig = Rig::before(&origin);
    let mut caller = ask(&rig);
    caller.head();
    caller.expect("hello");
    caller.send("now");
    assert_eq!(caller.end(), (String::new(), End::Reset));
    rig.await_requests("2xx", "upstream_reset", 1.0);
}

#[test]
fn a_caller_whose_endpoint_failed_may_ask_again() {
    let origin = Origin::new(|number, peer, _| {
        peer.request();
        if number % 2 == 1 {
            peer.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        caller.answer().made_up(502, "upstream_reset");
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
}

#[test]
fn a_caller_whose_body_was_not_all_taken_is_closed() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.reset();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    let answer = caller.answer();
    answer.made_up(502, "upstream_reset");
    assert!(answer.has("connection: close"));
    // What still comes is its body, and no request.
    caller.try_send("GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.rest(), "");
    rig.await_metric("sluice_requests_total", &[], 1.0);
}

#[test]
fn an_endpoint_that_answers_and_leaves_at_once_is_heard() {
    // The answer is there although the rest of the request can no longer be delivered.
    for _ in 0..20 {
        let origin = Origin::new(|_, peer, _| {
            peer.request();
            peer.send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno");
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
        caller.try_send("x".repeat(50_000));
        let answer = caller.answer();
        assert_eq!((answer.status(), &*answer.body), (401, "no"));
    }
}
