//! Callers that leave: nothing of theirs is left behind, and nobody else gets what was meant for them.

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::{LIMIT, Rig},
};

/// Reads a head, notes how the connection then ends, and does not answer.
fn silent() -> Origin {
    Origin::new(|number, peer, note| {
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').nth(1).unwrap()));
        let (rest, _) = peer.end();
        note(format!("{number} left after {rest:?}"));
    })
}

/// Leaves with a reset.
fn die(mut caller: Peer) {
    caller.reset();
}

#[test]
fn before_it_has_said_a_word() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    drop(rig.dial());
    rig.await_detected("closed_early", 1.0);
    rig.await_nothing();
    assert!(rig.opened().abs() < 0.1);
}

#[test]
fn within_its_head() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    for end in [drop, die] {
        let mut caller = rig.dial();
        caller.send("GET / HTTP/1.1\r\nHost: a\r\nX-");
        end(caller);
        rig.await_nothing();
    }
    assert!(rig.opened().abs() < 0.1, "an unfinished head is nobody else's business");
}

#[test]
fn within_its_body() {
    let origin = silent();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    origin.await_notes(1);
    die(caller);
    assert_eq!(origin.await_notes(2), ["0 /a", "0 left after \"12345\""]);
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn within_its_chunked_body() {
    let origin = silent();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
    origin.await_notes(1);
    die(caller);
    assert_eq!(origin.await_notes(2)[1], "0 left after \"5\\r\\nhel\"");
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn within_its_body_in_order() {
    let origin = silent();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    origin.await_notes(1);
    drop(caller);
    assert_eq!(origin.await_notes(2)[1], "0 left after \"12345\"");
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn while_it_awaits_its_answer() {
    let origin = silent();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/a");
    origin.await_notes(1);
    rig.await_metric("sluice_requests_in_flight", &[], 1.0);
    die(caller);
    assert_eq!(
        origin.await_notes(2)[1],
        "0 left after \"\"",
        "the endpoint learns that nobody waits any more"
    );
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn while_it_awaits_its_answer_in_order() {
    // A caller whose process is gone looks like one that only ends its side. What an endpoint does then is its own
    // affair, as it would be without Sluice: this one gives up.
    let origin = silent();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/a");
    origin.await_notes(1);
    drop(caller);
    assert_eq!(origin.await_notes(2)[1], "0 left after \"\"");
    rig.await_nothing();
}

#[test]
fn with_its_side_ended_it_still_gets_its_answer() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        assert_eq!(peer.end(), (String::new(), End::InOrder));
        note("the caller has ended its side".to_owned());
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstill");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.finish();
    let answer = caller.answer();
    assert!(answer.body == "still" && answer.has("connection: close"), "{answer:?}");
    assert_eq!(caller.rest(), "");
    assert_eq!(origin.noted(), ["the caller has ended its side"]);
    rig.await_requests("2xx", "", 1.0);
}

/// As Node's server does, which closes a connection when its client ends its side.
#[test]
fn with_its_side_ended_it_sees_an_endpoint_that_closes_for_that_and_nobody_is_to_blame() {
    for begun in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun"] {
        let origin = Origin::new(move |_, peer, note| {
            peer.request();
            peer.send(begun);
            note("asked".to_owned());
            peer.end();
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.get("/");
        origin.await_notes(1);
        if !begun.is_empty() {
            caller.until(begun);
        }
        caller.finish();
        assert_eq!(caller.end(), (String::new(), End::InOrder), "as without Sluice");
        let code = if begun.is_empty() { "none" } else { "2xx" };
        rig.await_requests(code, "client_closed", 1.0);
        rig.await_nothing();
    }
}

#[test]
fn with_its_side_ended_it_gets_all_of_its_answers() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/a");
    caller.get("/b");
    caller.get("/c");
    caller.finish();
    for _ in 0..3 {
        assert_eq!(caller.answer().body, "ok");
    }
    assert_eq!(caller.rest(), "");
}

#[test]
fn within_an_answer_that_pauses() {
    for end in [drop, die] {
        let origin = Origin::new(|number, peer, note| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            // Nothing more to say for now, as in a stream of events: only reading can tell that nobody listens.
            peer.end();
            note(format!("{number} left"));
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.get("/");
        caller.until("hello\r\n");
        end(caller);
        origin.await_notes(1);
        rig.await_nothing();
    }
}

#[test]
fn within_an_answer_that_it_does_not_read() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
        peer.fill(100_000_000);
        note("full".to_owned());
        while peer.try_send([b'x'; 16 * 1024]) {}
        note("left".to_owned());
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.head();
    origin.await_notes(1);
    die(caller);
    origin.await_notes(2);
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn what_was_meant_for_it_never_reaches_another() {
    // The first caller leaves before its answer; the second must not get it.
    let origin = Origin::new(|number, peer, note| {
        while let Some(head) = peer.request() {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            note(path.clone());
            if path == "/first" {
                peer.end();
            }
            if !peer.try_send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())) {
                return;
            }
            assert!(number > 0, "a connection whose caller left was used again");
        }
    });
    let rig = Rig::before(&origin);
    for round in 0..10 {
        let mut first = rig.dial();
        first.get("/first");
        origin.await_notes(2 * round + 1);
        die(first);
        let mut second = rig.dial();
        second.get("/second");
        assert_eq!(second.answer().body, "/second");
    }
    rig.await_rest();
}

/// Reads a head, and says nothing and does nothing from then on.
fn hanging() -> Origin {
    Origin::new(|number, peer, note| {
        let Some(head) = peer.request() else { return };
        note(format!("{number} {}", head.split(' ').nth(1).unwrap()));
        peer.end();
        std::thread::sleep(LIMIT);
    })
}

#[test]
fn by_closing_while_its_endpoint_says_nothing() {
    let origin = hanging();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/a");
    origin.await_notes(1);
    rig.callers_have_closed();
    drop(caller);
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn by_closing_after_it_has_ended_its_side() {
    let origin = hanging();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/a");
    origin.await_notes(1);
    caller.finish();
    rig.await_metric("sluice_requests_in_flight", &[], 1.0);
    rig.callers_have_closed();
    rig.await_requests("none", "client_closed", 1.0);
    rig.await_nothing();
}

#[test]
fn by_closing_at_once_after_its_request_which_arrives() {
    let origin = hanging();
    let rig = Rig::before(&origin);
    rig.callers_have_closed();
    let mut caller = rig.dial();
    caller.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    drop(caller);
    assert_eq!(origin.await_notes(1), ["0 /a"], "whoever does not wait for an answer is heard all the same");
    rig.await_nothing();
}

#[test]
fn a_caller_that_asks_for_the_end_of_its_connection_has_its_endpoint_asked_for_it() {
    for (request, asked) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
    ] {
        let origin = Origin::fixed("ok");
        let rig = Rig::before(&origin);
        // Somebody keeps a connection, so that one would be kept for it.
        let mut stays = rig.dial();
        stays.get("/");
        assert_eq!(stays.answer().body, "ok");
        let mut caller = rig.dial();
        caller.send(request);
        assert!(caller.rest().ends_with("ok"));
        rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 0.0);
        let noted = origin.noted();
        assert_eq!(noted[1].contains("\r\nconnection: close\r\n"), asked, "{noted:?}");
    }
}

#[test]
fn no_connection_is_kept_for_callers_that_have_left() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut callers: Vec<_> = (0..3).map(|_| rig.dial()).collect();
    for caller in &mut callers {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 1.0);
    callers.pop();
    rig.await_metric("sluice_connections_open", &["peer=\"client\""], 2.0);
    assert!((rig.metric("sluice_connections_open", &["peer=\"upstream\""]) - 1.0).abs() < 0.1);
    drop(callers);
    rig.await_nothing();
}
