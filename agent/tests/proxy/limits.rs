//! How much of anything there may be, and what becomes of more.

use sluice::proxy::{Cause, Limits};

use crate::{origin::Origin, peer::Peer, rig::Rig};

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
        peer.send(format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "X: x\r\n".repeat(1000)));
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(502, "upstream_protocol");
}

#[test]
fn an_answer_may_have_more_lines_than_a_request() {
    let lines = (0..900).map(|n| format!("X-{n}: {n}\r\n")).collect::<Vec<_>>().concat();
    let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
    let answer = head.clone();
    let origin = Origin::new(move |_, peer, _| {
        while peer.request().is_some() {
            peer.send(&answer);
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        assert_eq!(caller.head(), head);
    }
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

/// So many connections of a pod, and no other limit.
fn connections(connections_per_pod: usize) -> Limits {
    Limits { connections_per_pod, ..Limits::default() }
}

/// What is counted of a pod.
const OF_THE_POD: &str = "source_pod=\"gateway-1\"";

#[test]
fn above_its_connections_a_pods_new_ones_go_direct_and_none_is_refused() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).limits(connections(2)).workers(2).start();
    let answered = |caller: &mut Peer| {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    };
    let mut first = rig.dial();
    answered(&mut first);
    rig.await_direct(false);
    // All workers count together, whichever of them has it.
    let mut second = rig.dial_last();
    answered(&mut second);
    rig.await_direct(true);
    rig.await_metric("sluice_pod_connections_open", &[OF_THE_POD], 2.0);
    // Some were redirected before the kernel knew.
    let mut third = rig.dial();
    answered(&mut third);
    answered(&mut first);
    let uses = rig.proxy.uses();
    assert_eq!((uses[0].connections, uses[0].direct), (3, Some(Cause::Connections)));
    assert!(rig.metric("sluice_pod_over_budget_seconds_total", &["budget=\"connections\""]) > 0.0);
    drop(second);
    rig.await_metric("sluice_pod_connections_open", &[OF_THE_POD], 2.0);
    rig.await_direct(true);
    drop(third);
    rig.await_direct(false);
    answered(&mut first);
    rig.await_metric("sluice_pod_over_budget_seconds_total", &["budget=\"descriptors\""], 0.0);
}

#[test]
fn without_a_descriptor_for_an_endpoint_new_connections_go_direct() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).no_descriptor_for(origin.address).start();
    let mut caller = rig.dial();
    caller.get("/");
    let answer = caller.answer();
    assert!(answer.status() == 503 && answer.body.contains("upstream_connect"), "{answer:?}");
    rig.await_direct(true);
    rig.await_direct(false);
}

#[test]
fn idle_connections_of_one_pod_leave_descriptors_to_another() {
    let origin = Origin::fixed("ok");
    // Two listeners (one a pod), and twenty connections with one to an endpoint each.
    let limits = Limits { descriptors: 42, ..Limits::default() };
    let rig = Rig::builder().endpoint(origin.address).limits(limits).start();
    let other = rig.other_pod();
    let mut idle = Vec::new();
    for count in 1..=10 {
        idle.push(rig.dial());
        rig.await_metric("sluice_pod_connections_open", &[OF_THE_POD], f64::from(count));
    }
    // As many as are left.
    rig.await_direct(true);
    assert!(!other.goes_direct());
    let mut served = Vec::new();
    for _ in 0..4 {
        let mut caller = other.dial();
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
        served.push(caller);
    }
    assert!(!other.goes_direct());
    // What was redirected before the kernel knew waits when nearly nothing is left, and is served when there is room, or a while later.
    for _ in 0..40 {
        idle.push(rig.dial());
    }
    let mut last = rig.dial();
    last.get("/");
    let mut caller = other.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    // Nor does it wait without end where there is none.
    assert_eq!(last.answer().body, "ok");
    drop(idle);
    rig.await_direct(false);
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
