//! Bodies: long ones, slow ones, both ways at once, and answers that come before their request is complete.

use std::thread;

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::{LIMIT, Rig},
};

#[test]
fn bodies_of_both_framings_go_through_with_trailers() {
    let origin = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            note(peer.until("0\r\nx-sum: 7\r\n\r\n"));
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nTrailer: x-end\r\n\r\n3\r\nabc\r\n");
            peer.send("0\r\nx-end: 1\r\nx-more: 2\r\n\r\n");
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
        caller.send("lo\r\n0\r\nx-sum: 7\r\n\r\n");
        assert!(caller.head().contains("Trailer: x-end"));
        caller.expect("3\r\nabc\r\n0\r\nx-end: 1\r\nx-more: 2\r\n\r\n");
    }
    assert_eq!(origin.noted()[1], "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
    assert!((rig.opened() - 1.0).abs() < 0.1);
}

/// Bytes that tell where they stand.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at / 251 + at) as u8).collect()
}

const LARGE: usize = 8 * 1024 * 1024;
const PART: usize = 64 * 1024;

fn send_pattern(peer: &mut Peer, length: usize) {
    for from in (0..length).step_by(PART) {
        peer.send(pattern(from, PART.min(length - from)));
    }
}

fn check_pattern(peer: &mut Peer, length: usize) {
    for from in (0..length).step_by(PART) {
        let part = PART.min(length - from);
        assert!(peer.exactly(part) == pattern(from, part), "wrong bytes behind {from}");
    }
}

#[test]
fn a_large_body_passes_both_ways_at_once() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"));
        // Echoes while it comes: neither side can wait for the other to end.
        for _ in 0..LARGE / PART {
            let part = peer.exactly(PART);
            peer.send(part);
        }
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let mut writer = caller.second();
    let sender = thread::spawn(move || {
        writer.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
        send_pattern(&mut writer, LARGE);
    });
    caller.head();
    check_pattern(&mut caller, LARGE);
    sender.join().unwrap();
    rig.await_requests("2xx", "", 1.0);
    for direction in ["request", "response"] {
        rig.await_metric("sluice_bytes_total", &[&format!("direction=\"{direction}\"")], LARGE as f64);
    }
}

/// More than the proxy and all socket buffers on the way may hold of a body that nobody reads.
const FAR_TOO_MUCH: usize = 64 * 1024 * 1024;

#[test]
fn a_caller_is_stopped_by_an_origin_that_does_not_read() {
    let (go, wait) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::new(move |_, peer, _| {
        let head = peer.request().unwrap();
        let length: usize = head.split("Length: ").nth(1).unwrap().trim().parse().unwrap();
        wait.lock().unwrap().recv_timeout(LIMIT).unwrap();
        peer.exactly(length);
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {FAR_TOO_MUCH}\r\n\r\n"));
    let sent = caller.fill(FAR_TOO_MUCH);
    assert!(sent < FAR_TOO_MUCH / 2, "{sent} bytes were taken for somebody who does not read");
    go.send(()).unwrap();
    let mut writer = caller.second();
    let sender = thread::spawn(move || {
        let part = vec![b'x'; PART];
        let mut left = FAR_TOO_MUCH - sent;
        while left > 0 {
            let now = left.min(part.len());
            writer.send(&part[..now]);
            left -= now;
        }
    });
    assert_eq!(caller.answer().status(), 200);
    sender.join().unwrap();
}

#[test]
fn an_origin_is_stopped_by_a_caller_that_does_not_read() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {FAR_TOO_MUCH}\r\n\r\n"));
        let sent = peer.fill(FAR_TOO_MUCH);
        note(sent.to_string());
        let part = vec![b'x'; PART];
        let mut left = FAR_TOO_MUCH - sent;
        while left > 0 {
            let now = left.min(part.len());
            peer.send(&part[..now]);
            left -= now;
        }
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.head();
    let sent: usize = origin.await_notes(1)[0].parse().unwrap();
    assert!(sent < FAR_TOO_MUCH / 2, "{sent} bytes were taken for somebody who does not read");
    for _ in 0..FAR_TOO_MUCH / PART {
        caller.exactly(PART);
    }
    rig.await_requests("2xx", "", 1.0);
}

#[test]
fn an_endless_upload_does_not_hold_up_its_answer() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        let mut writer = peer.second();
        thread::spawn(move || {
            for _ in 0..10 {
                writer.send("HTTP/1.1 102 Processing\r\n\r\n");
            }
            writer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        });
        // Reads as fast as it comes, for as long as it comes.
        let mut sink = vec![0; 256 * 1024];
        while matches!(std::io::Read::read(&mut peer.stream, &mut sink), Ok(1..)) {}
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let mut writer = caller.second();
    let sender = thread::spawn(move || {
        writer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\n");
        let part = vec![b'x'; 256 * 1024];
        while writer.try_send(&part) {}
    });
    for _ in 0..10 {
        assert_eq!(caller.answer().status(), 102);
    }
    assert_eq!(caller.answer().body, "hello");
    caller.stream.shutdown(std::net::Shutdown::Both).unwrap();
    sender.join().unwrap();
}

#[test]
fn an_early_refusal_reaches_a_caller_that_sends_on() {
    // More than any buffer on the way takes, and an origin that resets what it has not read.
    for _ in 0..5 {
        let origin = Origin::new(|_, peer, _| {
            peer.request();
            peer.exactly(1);
            peer.send(
                "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\ncontent-length: 6\r\n\r\nno way",
            );
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        let mut writer = caller.second();
        let sender = thread::spawn(move || {
            writer.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
            send_pattern(&mut writer, LARGE);
        });
        // A caller that reads when it has sent everything.
        sender.join().unwrap();
        let answer = caller.answer();
        assert_eq!((answer.status(), &*answer.body), (413, "no way"));
        assert!(answer.has("connection: close"));
        assert_eq!(caller.rest(), "");
        rig.await_requests("4xx", "", 1.0);
        drop(caller);
        rig.await_rest();
    }
}

#[test]
fn an_early_answer_does_not_cut_off_the_request() {
    // The origin answers at once and takes the body all the same, as Node does: nothing is wrong with the connection.
    let origin = Origin::new(|number, peer, note| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst");
            check_pattern(peer, LARGE);
            note(format!("{number} got all"));
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for count in 1..=2 {
        caller.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
        assert_eq!(caller.answer().body, "first");
        send_pattern(&mut caller, LARGE);
        assert_eq!(origin.await_notes(count)[count - 1], "0 got all");
    }
}

#[test]
fn an_answer_to_the_end_of_the_connection_ends_before_its_request_does() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nall of it");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    caller.head();
    // The caller learns of the end although it has not yet sent everything.
    assert_eq!(caller.rest(), "all of it");
}

#[test]
fn a_body_may_come_byte_by_byte() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        note(String::from_utf8(peer.exactly(40)).unwrap());
        for byte in "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nbyte by byte".bytes() {
            peer.send([byte]);
        }
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n");
    for byte in "0123456789".repeat(4).bytes() {
        caller.send([byte]);
    }
    assert_eq!(caller.answer().body, "byte by byte");
    assert_eq!(origin.noted(), ["0123456789".repeat(4)]);
}

#[test]
fn a_caller_that_breaks_off_its_body_is_not_answered_for_another_request() {
    // The body ends too early, in order: the endpoint must not take what it has got for everything.
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        let (body, end) = peer.end();
        note(format!("{body} {}", end == End::InOrder));
        peer.try_send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\ncontent-length: 5\r\n\r\nshort");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    caller.finish();
    let answer = caller.answer();
    assert_eq!(
        (answer.status(), &*answer.body),
        (400, "short"),
        "what the endpoint has to say to it arrives"
    );
    assert_eq!(caller.rest(), "");
    assert_eq!(origin.noted(), ["12345 true"]);
    drop(caller);
    rig.await_rest();
}
