//! HTTP/1: what is forwarded, what is refused, and what becomes of connections.

use crate::rig::{Origin, Rig, request_head};

#[test]
fn requests_of_one_connection_share_an_upstream_connection() {
    let origin = Origin::new(|number, peer, note| {
        while let Some(head) = request_head(peer) {
            note(format!("{number} {head}"));
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for path in ["/a", "/b", "/c"] {
        caller.send(format!("GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n"));
        assert_eq!(caller.head(), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(caller.exactly(5), b"hello");
    }
    let sent = |path: &str| format!("0 GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n");
    assert_eq!(origin.noted(), [sent("/a"), sent("/b"), sent("/c")]);
    rig.await_metric("sluice_requests_total", &["code=\"2xx\"", "source_pod=\"gateway-1\""], 3.0);
    rig.await_metric("sluice_connections_total", &["outcome=\"http1\""], 1.0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::new(|_, peer, _| {
        while let Some(head) = request_head(peer) {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()));
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let requests: Vec<_> = (0..50).map(|n| format!("GET /{n:02} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    caller.send(requests.concat());
    for n in 0..50 {
        caller.head();
        assert_eq!(caller.exactly(3), format!("/{n:02}").as_bytes());
    }
}

#[test]
fn bodies_of_both_framings_go_through_with_trailers() {
    let origin = Origin::new(|_, peer, note| {
        let head = request_head(peer).unwrap();
        note(head);
        note(peer.until("0\r\nx-sum: 7\r\n\r\n"));
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
        peer.send("0\r\nx-end: 1\r\n\r\n");
        request_head(peer);
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
    caller.send("lo\r\n0\r\nx-sum: 7\r\n\r\n");
    assert_eq!(
        caller.until("0\r\nx-end: 1\r\n\r\n").split_once("\r\n\r\n").unwrap().1,
        "3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n"
    );
    assert_eq!(origin.noted()[1], "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[test]
fn a_large_body_passes_both_ways_at_once() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let origin = Origin::new(|_, peer, _| {
        request_head(peer).unwrap();
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n"));
        // Echoes while it comes: neither side can wait for the other to end.
        let mut left = LENGTH;
        while left > 0 {
            let part = peer.exactly(left.min(64 * 1024));
            left -= part.len();
            peer.send(&part);
        }
        request_head(peer);
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let mut writer = crate::rig::Peer::new(caller.stream.try_clone().unwrap());
    let sender = std::thread::spawn(move || {
        writer.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let part: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
        for _ in 0..LENGTH / part.len() {
            writer.send(&part);
        }
    });
    caller.head();
    let got = caller.exactly(LENGTH);
    sender.join().unwrap();
    assert!(
        got.iter()
            .zip((0..=255u8).cycle().take(64 * 1024).collect::<Vec<_>>().iter().cycle())
            .all(|(a, b)| a == b)
    );
    rig.await_metric("sluice_requests_total", &["code=\"2xx\""], 1.0);
}

#[test]
fn ambiguous_requests_are_refused_and_nothing_is_forwarded() {
    let origin = Origin::fixed("never");
    let rig = Rig::before(&origin);
    for (request, status) in [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET / HTTP/1.7\r\nHost: a\r\n\r\n", 505),
    ] {
        let mut caller = rig.dial();
        caller.send(request);
        let answer = caller.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} got {answer:?}");
        assert!(answer.contains("x-sluice-reason: ") && answer.contains("connection: close"), "{answer:?}");
    }
    assert_eq!(origin.noted(), Vec::<String>::new());
}

#[test]
fn a_tagged_request_goes_to_its_lane_and_falls_back() {
    let (baseline, gray) = (Origin::fixed("base"), Origin::fixed("gray"));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", gray.address).start();
    let mut caller = rig.dial();
    for (lines, body) in [
        ("", "base"),
        ("x-mse-tag: gray\r\n", "gray"),
        ("baggage: a=b, x-mse-tag=gray\r\n", "gray"),
        ("x-mse-tag: blue\r\n", "base"),
    ] {
        caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        caller.head();
        assert_eq!(caller.exactly(4), body.as_bytes(), "{lines:?}");
    }
    assert!(baseline.noted()[1].contains("baggage: x-mse-tag=blue"));
    rig.await_metric("sluice_tags_total", &["outcome=\"routed\""], 2.0);
    rig.await_metric("sluice_tags_total", &["outcome=\"fell_back\""], 1.0);
}

#[test]
fn a_refused_connection_is_tried_elsewhere() {
    let origin = Origin::fixed("alive");
    let rig = Rig::builder().endpoint(Origin::nobody()).endpoint(origin.address).start();
    for _ in 0..20 {
        let mut caller = rig.dial();
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok");
        assert!(caller.head().starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn no_endpoint_and_no_listener_are_answered_with_the_reason() {
    let rig = Rig::builder().start();
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = caller.head();
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("x-sluice-reason: no_endpoint"), "{head}");
        caller.until("}\n");
    }
    let rig = Rig::builder().endpoint(Origin::nobody()).start();
    let mut caller = rig.dial();
    caller.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = caller.rest();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("x-sluice-reason: upstream_connect"));
}

#[test]
fn an_idle_connection_that_its_server_closed_is_not_an_error() {
    let origin = Origin::new(|_, peer, _| {
        // One answer, then an orderly end that no header announces.
        request_head(peer).unwrap();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..200 {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(caller.head().starts_with("HTTP/1.1 200 "));
        caller.exactly(2);
    }
}

#[test]
fn permission_to_send_a_body_is_passed_on() {
    let origin = Origin::new(|_, peer, _| {
        assert!(request_head(peer).unwrap().contains("Expect: 100-continue"));
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(peer.exactly(5), b"hello");
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        request_head(peer);
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(caller.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    caller.send("hello");
    assert_eq!(caller.head(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn websockets_become_tunnels() {
    let origin = Origin::new(|_, peer, _| {
        assert!(request_head(peer).unwrap().contains("Upgrade: websocket"));
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst",
        );
        assert_eq!(peer.exactly(4), b"ping");
        peer.send("pong");
        assert_eq!(peer.rest(), "");
        peer.send("last");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(caller.head().contains("connection: upgrade"));
    assert_eq!(caller.exactly(5), b"first");
    caller.send("ping");
    assert_eq!(caller.exactly(4), b"pong");
    caller.finish();
    assert_eq!(caller.rest(), "last");
}
