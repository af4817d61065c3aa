//! What is spoken, told from the first bytes or from who speaks them.

use sluice::cluster::model::Protocol;

use crate::{origin::Origin, peer::End, rig::Rig};

/// Says hello first, as database servers do, and echoes one word.
fn server_first() -> Origin {
    Origin::new(|_, peer, note| {
        peer.send("5.7.44-log");
        let word = String::from_utf8(peer.exactly(4)).unwrap();
        note(word.clone());
        peer.send(word);
        peer.end();
    })
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let origin = server_first();
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    caller.expect("5.7.44-log");
    caller.send("auth");
    caller.expect("auth");
    rig.await_detected("server_first", 1.0);
    caller.finish();
    assert_eq!(caller.rest(), "");
    rig.await_nothing();
    assert!((rig.opened() - 1.0).abs() < 0.1, "one endpoint was dialled, once");
}

#[test]
fn a_tls_handshake_is_tunnelled() {
    let hello = [&b"\x16\x03\x01\x00\x05"[..], b"hello"].concat();
    let origin = Origin::new(|_, peer, note| {
        note(format!("{:?}", peer.exactly(10)));
        peer.send("\u{16}");
        peer.end();
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    // Split in the middle of what tells it.
    caller.send(&hello[..1]);
    caller.send(&hello[1..]);
    caller.expect("\u{16}");
    assert_eq!(origin.noted(), [format!("{hello:?}")]);
    rig.await_detected("tls", 1.0);
}

#[test]
fn bytes_of_another_protocol_are_tunnelled() {
    let origin = Origin::new(|_, peer, _| {
        peer.expect("*1\r\n$4\r\nPING\r\n");
        peer.send("+PONG\r\n");
        peer.end();
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    caller.send("*1\r\n$4\r\nPING\r\n");
    caller.expect("+PONG\r\n");
    rig.await_detected("unknown", 1.0);
}

#[test]
fn text_that_begins_as_http_does_is_tunnelled_at_its_first_line() {
    for words in [
        "OPTIONS rtsp://cam/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        "INVITE sip:bob@shop SIP/2.0\r\n\r\n",
        "REQMOD icap://scan/req ICAP/1.0\r\n\r\n",
        "SOURCE /live HTTP/1.0\r\nice-name: a\r\n\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n\r\n",
        "\r\n\r\n\0\r\nQUIT\n",
        "NICK bob\r\n",
        "EHLO shop\r\n",
        "SUB orders 1\r\n",
        "GET key\r\n",
        "DELETE key\r\n",
        "PUT 0 0 60 5\r\n",
        "nPING\n",
        "zPING\0",
        "shop.orders 5 1700000000\n",
        "GET /\r\n",
    ] {
        let origin = Origin::new(move |_, peer, _| {
            peer.expect(words);
            peer.send("heard");
            peer.expect("more");
            peer.end();
        });
        let rig = Rig::speaking(Protocol::Detect, &origin);
        let mut caller = rig.dial();
        caller.send(words);
        caller.expect("heard");
        caller.send("more");
        caller.finish();
        assert_eq!(caller.rest(), "", "{words:?}");
        rig.await_detected("unknown", 1.0);
        assert!(rig.metric("sluice_requests_total", &[]).abs() < 0.1, "{words:?}");
    }
}

#[test]
fn a_caller_that_ends_without_a_word_reaches_the_endpoint() {
    let origin = Origin::new(|_, peer, note| {
        note(peer.rest());
        peer.send("who is there?");
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    caller.finish();
    assert_eq!(caller.rest(), "who is there?");
    drop(rig.dial());
    assert_eq!(origin.await_notes(2), ["", ""]);
    rig.await_nothing();
}

#[test]
fn a_port_that_is_declared_http_is_for_its_reader() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let origin = Origin::fixed("ok");
        let rig = Rig::speaking(protocol, &origin);
        let ask = |words: &str| {
            let mut caller = rig.dial();
            caller.send(words);
            caller.answer()
        };
        for good in ["\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n\nget /a HTTP/1.1\r\nHost: a\r\n\r\n"] {
            assert_eq!(ask(good).body, "ok", "{good:?}");
        }
        let noted = origin.noted();
        assert!(noted[0].contains(" GET / HTTP/1.1") && noted[1].contains(" get /a HTTP/1.1"), "{noted:?}");
        for bad in [
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "*1\r\n$4\r\nPING\r\n\r\n",
            "\0\0\r\n\r\n",
            // None of these is followed by the empty line that ends a head: who speaks so waits for an answer.
            "hello\r\n",
            "AMQP\0\0\x09\x01",
            "*1\r\n$4\r\nPING\r\n",
            "GET /a b HTTP/1.1\r\n",
        ] {
            ask(bad).made_up(400, "bad_request");
        }
        // What may still become a request is waited for, however it comes.
        let mut caller = rig.dial();
        for piece in ["G", "ET / HT", "TP/1.1", "\r", "\nHost: a\r", "\n\r\n"] {
            caller.send(piece);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(caller.answer().body, "ok");
        assert_eq!(origin.noted().len(), 3, "nothing else got through");
        rig.await_detected("unknown", 0.0);
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_where_http_is_declared() {
    let origin = server_first();
    let rig = Rig::speaking(Protocol::Http, &origin);
    let mut caller = rig.dial();
    caller.expect("5.7.44-log");
    caller.send("auth");
    caller.expect("auth");
    rig.await_detected("server_first", 1.0);
}

#[test]
fn a_silent_caller_of_http_that_speaks_late_is_governed_whatever_its_endpoint_did() {
    for closes in [false, true] {
        let origin = Origin::new(move |number, peer, note| {
            note(format!("{number} connected"));
            if closes && number == 0 {
                return;
            }
            while peer.request().is_some() {
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        let rig = Rig::speaking(Protocol::Http, &origin);
        let mut caller = rig.dial();
        origin.await_notes(1);
        if closes {
            rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 0.0);
        }
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
        assert_eq!(origin.noted().len(), if closes { 2 } else { 1 });
        rig.await_detected("http1", 1.0);
    }
}

/// Its SETTINGS come at once; a client that is slow speaks HTTP/2 all the same.
#[test]
fn a_server_of_http2_that_speaks_first_waits_for_its_client() {
    let origin = Origin::new(|number, peer, note| {
        peer.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        note(format!("{number} connected"));
        peer.rest();
    });
    let rig = Rig::speaking(Protocol::Http2, &origin);
    let mut caller = rig.dial();
    origin.await_notes(1);
    caller.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    rig.await_detected("http2", 1.0);
    rig.await_detected("server_first", 0.0);
}

#[test]
fn http_is_recognised_byte_by_byte() {
    let origin = Origin::fixed("ok");
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    for byte in "GET / HTTP/1.1\r\nHost: a\r\n\r\n".bytes() {
        caller.send([byte]);
    }
    assert_eq!(caller.answer().body, "ok");
    rig.await_detected("http1", 1.0);
}

/// Notes what it gets, once it gets it, and speaks HTTP.
fn patient() -> Origin {
    Origin::new(|number, peer, note| {
        note(format!("{number} connected"));
        while let Some(head) = peer.request() {
            note(format!("{number} {head}"));
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    })
}

#[test]
fn a_silent_caller_that_speaks_http_in_the_end_is_governed() {
    let origin = patient();
    let rig = Rig::builder().protocol(Protocol::Detect).endpoint(origin.address).caller("blue").start();
    let mut caller = rig.dial();
    // An endpoint is dialled because the caller is silent.
    origin.await_notes(1);
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    let noted = origin.noted();
    assert!(noted[1].starts_with("0 GET / ") && noted[1].contains("x-mse-tag: blue"), "{noted:?}");
    rig.await_detected("http1", 1.0);
    rig.await_requests("2xx", "", 1.0);
    drop(caller);
    rig.await_rest();
}

#[test]
fn a_silent_caller_that_speaks_http_slowly_in_the_end_is_governed() {
    let origin = patient();
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    origin.await_notes(1);
    for byte in "GET / HTTP/1.1\r\nHost: a\r\n\r\n".bytes() {
        caller.send([byte]);
    }
    assert_eq!(caller.answer().body, "ok");
    rig.await_detected("http1", 1.0);
}

#[test]
fn a_silent_caller_that_speaks_something_else_is_tunnelled() {
    for (words, outcome) in [("*1\r\n$4\r\nPING\r\n", "unknown"), ("\u{16}\u{3}\u{1}hello", "tls")] {
        let origin = Origin::new(move |_, peer, note| {
            note("connected".to_owned());
            peer.expect(words);
            peer.send("heard");
            peer.end();
        });
        let rig = Rig::speaking(Protocol::Detect, &origin);
        let mut caller = rig.dial();
        origin.await_notes(1);
        caller.send(words);
        caller.expect("heard");
        rig.await_detected(outcome, 1.0);
        assert!((rig.opened() - 1.0).abs() < 0.1);
    }
}

#[test]
fn a_silent_caller_and_a_server_that_speaks_late() {
    let (go, wait) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::new(move |_, peer, note| {
        note("connected".to_owned());
        wait.lock().unwrap().recv_timeout(crate::rig::LIMIT).unwrap();
        peer.send("at last");
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    origin.await_notes(1);
    go.send(()).unwrap();
    assert_eq!(caller.rest(), "at last");
    rig.await_detected("server_first", 1.0);
}

#[test]
fn a_silent_caller_whose_service_has_no_endpoint_is_reset() {
    for service in [Rig::builder(), Rig::builder().endpoint(Origin::nobody())] {
        let rig = service.protocol(Protocol::Detect).start();
        let mut caller = rig.dial();
        assert_eq!(caller.end(), (String::new(), End::Reset));
        rig.await_detected("server_first", 1.0);
        assert!(rig.metric("sluice_upstream_connects_total", &["outcome=\"refused\""]) < 1.1);
        rig.await_nothing();
    }
}

#[test]
fn a_greeting_that_could_begin_http_but_does_not_go_on_is_delivered() {
    for silent_first in [false, true] {
        let origin = Origin::new(move |_, peer, note| {
            note("connected".to_owned());
            peer.expect("JRMI");
            peer.send("welcome");
            peer.end();
        });
        let rig = Rig::speaking(Protocol::Detect, &origin);
        let mut caller = rig.dial();
        if silent_first {
            origin.await_notes(1);
        }
        caller.send("JRMI");
        caller.expect("welcome");
        rig.await_detected("unknown", 1.0);
    }
}

#[test]
fn a_question_that_ends_is_delivered() {
    let origin = Origin::new(|_, peer, _| {
        let question = peer.rest();
        peer.send(format!("{question} what?"));
    });
    let rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    caller.send("GET");
    caller.finish();
    assert_eq!(caller.rest(), "GET what?");
}

#[test]
fn what_is_declared_http_is_waited_for_without_dialling() {
    let origin = Origin::fixed("ok");
    let rig = Rig::speaking(Protocol::Http, &origin);
    let callers: Vec<_> = (0..20).map(|_| rig.dial()).collect();
    rig.await_metric("sluice_connections_open", &["peer=\"client\""], 20.0);
    for mut caller in callers {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    rig.await_detected("http1", 20.0);
    rig.await_detected("server_first", 0.0);
    rig.await_rest();
}

#[test]
fn a_connection_that_was_not_redirected_is_reset() {
    let origin = Origin::fixed("never");
    let rig = Rig::builder().endpoint(origin.address).not_redirected().start();
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    rig.await_detected("not_redirected", 1.0);
    assert_eq!(origin.noted(), Vec::<String>::new());
}

#[test]
fn what_is_no_longer_governed_goes_where_it_was_meant_to() {
    let bytes = "GET / HTTP/1.1\r\nHost : odd\r\nx-mse-tag: gray\r\n\r\n";
    let origin = Origin::new(|_, peer, note| {
        note(peer.rest());
        peer.send("as it is");
    });
    let rig = Rig::builder().ungoverned(origin.address).start();
    let mut caller = rig.dial();
    caller.send(bytes);
    caller.finish();
    assert_eq!(caller.rest(), "as it is");
    assert_eq!(origin.noted(), [bytes]);
    rig.await_detected("unmanaged", 1.0);
    rig.await_nothing();

    let rig = Rig::builder().ungoverned(Origin::nobody()).start();
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    rig.await_nothing();
}
