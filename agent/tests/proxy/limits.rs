//! How much of anything there may be, and what becomes of more.

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::Rig,
};

#[test]
fn a_head_that_is_too_large_is_refused() {
    let origin = Origin::fixed("never");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(100_000)));
    caller.answer().made_up(431, "header_too_large");
    assert_eq!(caller.rest(), "");
    rig.await_requests("4xx", "header_too_large", 1.0);
    // Complete, all at once, and still too large.
    let mut caller = rig.dial();
    let line = format!("X: {}\r\n", "x".repeat(1000));
    caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line.repeat(90)));
    caller.answer().made_up(431, "header_too_large");
    assert_eq!(origin.noted(), Vec::<String>::new());
}

#[test]
fn an_endless_head_is_refused_before_its_end() {
    let origin = Origin::fixed("never");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\n");
    let mut writer = caller.second();
    let sender = std::thread::spawn(move || while writer.try_send("X: x\r\n".repeat(1000)) {});
    caller.answer().made_up(431, "header_too_large");
    caller.stream.shutdown(std::net::Shutdown::Both).unwrap();
    sender.join().unwrap();
    rig.await_rest();
}

#[test]
fn too_many_lines_are_refused() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(99)));
    assert_eq!(caller.answer().body, "ok");
    caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(100)));
    caller.answer().made_up(431, "header_too_large");
}

#[test]
fn a_target_that_is_too_long_is_refused() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get(&format!("/{}", "x".repeat(60_000)));
    assert_eq!(caller.answer().body, "ok");
    caller.get(&format!("/{}", "x".repeat(64 * 1024)));
    let answer = caller.answer();
    assert!(matches!(answer.status(), 414 | 431), "{answer:?}");
    assert_eq!(caller.rest(), "");
    // An endless one.
    let mut caller = rig.dial();
    caller.send(format!("GET /{}", "x".repeat(70_000)));
    caller.answer().made_up(414, "uri_too_long");
    assert_eq!(origin.noted().len(), 1);
}

#[test]
fn an_answer_whose_head_is_too_large_is_not_passed_on() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n");
        while peer.try_send("X: x\r\n".repeat(1000)) {}
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(502, "upstream_protocol");
}

#[test]
fn an_answer_with_too_many_lines_is_not_passed_on() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send(format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "X: x\r\n".repeat(100)));
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(502, "upstream_protocol");
}

#[test]
fn a_head_of_the_largest_size_passes_both_ways() {
    let line = format!("X: {}\r\n", "x".repeat(1000)).repeat(60);
    let head = format!("HTTP/1.1 200 OK\r\n{line}content-length: 0\r\n\r\n");
    let answer = head.clone();
    let origin = Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            peer.send(&answer);
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n");
    for _ in 0..2 {
        caller.send(&request);
        assert_eq!(caller.head(), head);
    }
    assert_eq!(origin.noted(), [&*request, &*request]);
}

#[test]
fn slow_callers_hold_up_nobody() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let mut slow: Vec<Peer> = (0..100).map(|_| rig.dial()).collect();
    let mut fast = rig.dial();
    for at in 0..request.len() {
        for caller in &mut slow {
            caller.send(&request[at..=at]);
        }
        fast.get("/");
        assert_eq!(fast.answer().body, "ok");
    }
    for caller in &mut slow {
        assert_eq!(caller.answer().body, "ok");
    }
    rig.await_requests("2xx", "", (request.len() + slow.len()) as f64);
}

#[test]
fn a_pod_has_only_so_many_connections() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).connections(2).start();
    let (mut first, mut second) = (rig.dial(), rig.dial());
    for caller in [&mut first, &mut second] {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    rig.await_detected("overloaded", 1.0);
    first.get("/");
    assert_eq!(first.answer().body, "ok", "those that are there go on");
    // One that ends makes room for another.
    drop(second);
    rig.await_metric("sluice_connections_open", &["peer=\"client\""], 1.0);
    let mut third = rig.dial();
    third.get("/");
    assert_eq!(third.answer().body, "ok");
}

#[test]
fn a_panic_ends_one_connection_and_no_other() {
    let origin = Origin::fixed("ok");
    let cursed = Origin::nobody();
    let mut rig = Rig::builder().endpoint(origin.address).panic_at(cursed).start();
    let mut before = rig.dial();
    before.get("/");
    assert_eq!(before.answer().body, "ok");
    rig.change(|service| service.no_endpoints().endpoint(cursed));
    let mut caller = rig.dial();
    caller.get("/");
    let _ = caller.end();
    rig.change(|service| service.no_endpoints().endpoint(origin.address));
    before.get("/");
    assert_eq!(before.answer().body, "ok", "the worker goes on");
    let mut after = rig.dial();
    after.get("/");
    assert_eq!(after.answer().body, "ok");
    drop((caller, before, after));
    rig.await_rest();
}
