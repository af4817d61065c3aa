//! Requests that come before the one before them has been answered.

use crate::{origin::Origin, rig::Rig};

/// Answers each request with its path.
fn echo() -> Origin {
    Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            note(path.clone());
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()));
        }
    })
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = echo();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let requests: Vec<_> = (0..500).map(|n| format!("GET /{n:03} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    caller.send(requests.concat());
    for n in 0..500 {
        assert_eq!(caller.answer().body, format!("/{n:03}"));
    }
    assert!((rig.opened() - 1.0).abs() < 0.1);
}

#[test]
fn a_request_may_come_right_behind_a_body() {
    let origin = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            let body = if head.contains("Length: 3") {
                String::from_utf8(peer.exactly(3)).unwrap()
            } else if head.contains("chunked") {
                peer.until("0\r\n\r\n")
            } else {
                String::new()
            };
            note(format!("{} {body}", head.split(' ').nth(1).unwrap()));
            peer.send("HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         GET /b HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\
         GET /d HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    for _ in 0..4 {
        assert_eq!(caller.answer().status(), 204);
    }
    assert_eq!(origin.noted(), ["/a abc", "/b ", "/c 1\r\nx\r\n0\r\n\r\n", "/d "]);
}

#[test]
fn what_comes_behind_the_last_request_is_dropped_and_the_answer_arrives() {
    let origin = echo();
    let rig = Rig::before(&origin);
    for _ in 0..20 {
        let mut caller = rig.dial();
        caller.send(
            "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert_eq!(caller.answer().body, "/last");
        assert_eq!(caller.rest(), "", "an orderly end, although not all was read");
    }
    assert!(origin.noted().iter().all(|path| path == "/last"));
}

const COUNT: usize = 3000;

#[test]
fn more_requests_than_are_read_ahead_wait() {
    let origin = echo();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let mut writer = caller.second();
    let sender = std::thread::spawn(move || {
        let padding = "x".repeat(1000);
        for n in 0..COUNT {
            writer.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n\r\n"));
        }
    });
    for n in 0..COUNT {
        assert_eq!(caller.answer().body, format!("/{n}"));
    }
    sender.join().unwrap();
}
