//! What a request and an answer look like at the other side: everything as it was but what was meant for one hop.

use sluice::{
    cluster::model::Protocol,
    govern::policy::{Edits, HeaderEdits, Policy},
};

use crate::{origin::Origin, rig::Rig};

/// What the origin gets of this request.
fn forwarded(request: &str) -> String {
    let origin = Origin::fixed("");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(request);
    assert_eq!(caller.answer().status(), 200);
    origin.noted()[0].strip_prefix("0 ").unwrap().to_owned()
}

/// What the caller gets of this answer.
fn passed_on(answer: &'static str) -> String {
    let origin = Origin::raw(answer);
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.head()
}

#[test]
fn a_request_keeps_its_bytes() {
    let request = "DELETE //a/%2e%2e/b;c?q=%zz&d={\"e\"} HTTP/1.1\r\nhOST: Orders.shop:8080\r\nX-Two: 1\r\n\
                   accept:*/*\r\nX-Two:   2  \r\nX-Empty:\r\nX-Bytes: \u{fc}\r\nCookie: a=b; c=d\r\n\r\n";
    assert_eq!(forwarded(request), request);
}

/// Clients that write GBK or Latin-1.
#[test]
fn a_target_keeps_bytes_that_are_no_text() {
    for protocol in [Protocol::Http, Protocol::Detect] {
        let (sent, received) = std::sync::mpsc::channel();
        let origin = Origin::new(move |_, peer, _| {
            for _ in 0..2 {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.extend(peer.exactly(1));
                }
                sent.send(head).unwrap();
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        let set = vec![("x-a".parse().unwrap(), "b".parse().unwrap())];
        let headers = HeaderEdits { request: Edits { set, ..Edits::default() }, ..HeaderEdits::default() };
        let policy = Policy { headers, ..Policy::default() };
        let mut rig = Rig::speaking(protocol, &origin);
        let mut caller = rig.dial();
        let line = b"GET /\xd6\xd0/k\xe4ufer?q=\xff\xc3 HTTP/1.1\r\nHost: a\r\n";
        caller.send([&line[..], b"\r\n"].concat());
        assert_eq!(caller.answer().body, "ok");
        let head = received.recv().unwrap();
        assert_eq!(head.escape_ascii().to_string(), [&line[..], b"\r\n"].concat().escape_ascii().to_string());
        // What is changed in its head is changed there, too.
        rig.change(|service| service.policy(policy));
        caller.send([&line[..], b"\r\n"].concat());
        assert_eq!(caller.answer().body, "ok");
        let head = received.recv().unwrap();
        assert_eq!(
            head.escape_ascii().to_string(),
            [&line[..], b"x-a: b\r\n\r\n"].concat().escape_ascii().to_string()
        );
        caller.send(b"GET /\xd6\x01 HTTP/1.1\r\nHost: a\r\n\r\n");
        caller.answer().made_up(400, "bad_request");
    }
}

#[test]
fn an_absolute_target_stays_absolute() {
    let request = "GET http://orders/a?b HTTP/1.1\r\nHost: orders\r\n\r\n";
    assert_eq!(forwarded(request), request);
}

#[test]
fn an_asterisk_for_a_target_stays() {
    let request = "OPTIONS * HTTP/1.1\r\nHost: orders\r\n\r\n";
    assert_eq!(forwarded(request), request);
}

#[test]
fn lines_for_one_hop_go_no_further_than_it() {
    let request = "GET / HTTP/1.1\r\nConnection: keep-alive, X-Mine\r\nHost: a\r\nKeep-Alive: timeout=9\r\n\
                   X-Mine: 1\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Yours: 2\r\n\r\n";
    assert_eq!(forwarded(request), "GET / HTTP/1.1\r\nHost: a\r\nX-Yours: 2\r\n\r\n");
}

#[test]
fn readiness_for_trailers_is_passed_on() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    assert_eq!(forwarded(request), "GET / HTTP/1.1\r\nHost: a\r\nconnection: te\r\nte: trailers\r\n\r\n");
}

#[test]
fn a_sender_cannot_have_what_frames_its_message_dropped() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host, transfer-encoding\r\n\
                   Content-Length: 0\r\n\r\n";
    assert_eq!(forwarded(request), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn blank_lines_before_a_request_are_not_passed_on() {
    let origin = Origin::fixed("");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer().status(), 200);
    caller.send("\r");
    caller.send("\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer().status(), 200);
    assert_eq!(
        origin.noted(),
        ["0 GET /a HTTP/1.1\r\nHost: a\r\n\r\n", "0 GET /b HTTP/1.1\r\nHost: a\r\n\r\n"]
    );
}

#[test]
fn an_answer_keeps_its_bytes() {
    let answer = "HTTP/1.1 418 I'm a Teapot\r\nSet-Cookie: a=1\r\nsERVER: x\r\nSet-Cookie: b=2\r\nX-Empty:\r\n\
                  X-Odd:  s p \r\nContent-Length: 0\r\n\r\n";
    assert_eq!(passed_on(answer), answer);
}

#[test]
fn an_answer_without_a_phrase_is_passed_on() {
    let answer = "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(passed_on(answer), answer);
}

#[test]
fn an_answers_lines_for_one_hop_go_no_further_than_it() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=60\r\n\
                  Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Yours: 2\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(passed_on(answer), "HTTP/1.1 200 OK\r\nX-Yours: 2\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn an_answers_version_is_this_hops_own() {
    let answer = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(passed_on(answer), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn nothing_is_said_of_sluice_in_what_others_have_said() {
    let head = passed_on("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    assert!(!head.contains("sluice") && !head.to_lowercase().contains("via"), "{head}");
}
