//! How it ends: callers told to reconnect, requests in flight finished, nothing that waited lost.

use std::{
    net::TcpStream,
    sync::{Mutex, mpsc},
    thread,
};

use sluice::cluster::model::Protocol;

use crate::{
    origin::Origin,
    rig::{LIMIT, Rig},
};

/// Waits for something asynchronous on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Answers `/held` when it is told to, and everything else at once.
fn held() -> (Origin, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let origin = Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            if head.starts_with("GET /held ") {
                note(head);
                wait.lock().unwrap().recv_timeout(LIMIT).unwrap();
            }
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    (origin, go)
}

#[test]
fn an_idle_proxy_drains_at_once() {
    let rig = Rig::builder().start();
    block_on(rig.proxy.drain());
}

#[test]
fn draining_waits_for_a_request_in_flight_and_its_caller_is_told_to_reconnect() {
    let (origin, go) = held();
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/held");
    origin.await_notes(1);
    let (done, drained) = mpsc::channel();
    let proxy = rig.proxy.clone();
    thread::spawn(move || {
        block_on(proxy.drain());
        done.send(()).unwrap();
    });
    // It has begun when another caller is told of it.
    let mut other = rig.dial();
    loop {
        other.get("/");
        if other.answer().has("connection: close") {
            break;
        }
    }
    assert!(drained.try_recv().is_err(), "a request is still in flight");
    go.send(()).unwrap();
    let answer = caller.answer();
    assert!(answer.body == "ok" && answer.has("connection: close"), "{answer:?}");
    drop((caller, other));
    drained.recv_timeout(LIMIT).unwrap();
    rig.await_rest();
}

#[test]
fn a_caller_that_is_idle_when_draining_begins_is_told_at_its_next_request() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert!(!caller.answer().has("connection: close"));
    block_on(rig.proxy.drain());
    caller.get("/");
    let answer = caller.answer();
    assert!(answer.body == "ok" && answer.has("connection: close"), "{answer:?}");
    assert_eq!(caller.rest(), "");
}

#[test]
fn pipelined_requests_of_a_caller_that_is_told_to_reconnect_do_not_cost_it_its_answer() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer();
    block_on(rig.proxy.drain());
    caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100));
    assert!(caller.answer().has("connection: close"));
    assert_eq!(caller.rest(), "");
}

#[test]
fn closing_a_pod_takes_what_waits_in_its_listener() {
    let origin = Origin::fixed("ok");
    let mut rig = Rig::before(&origin);
    // Connections that the kernel has established, whether or not they have been accepted.
    let mut callers: Vec<_> = (0..100).map(|_| rig.dial()).collect();
    block_on(rig.pod.take().unwrap().close());
    for caller in &mut callers {
        caller.get("/");
        let answer = caller.answer();
        assert!(answer.body == "ok" && answer.has("connection: close"), "{answer:?}");
    }
    assert!(TcpStream::connect(rig.listener).is_err(), "the listener is closed");
    drop(callers);
    rig.await_rest();
}

#[test]
fn a_pod_that_is_dropped_is_closed() {
    let origin = Origin::fixed("ok");
    let mut rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer();
    drop(rig.pod.take());
    let began = std::time::Instant::now();
    while TcpStream::connect(rig.listener).is_ok() {
        assert!(began.elapsed() < LIMIT, "the listener is still open");
    }
    caller.get("/");
    assert!(caller.answer().has("connection: close"));
}

#[test]
fn a_tunnel_goes_on_when_its_pod_is_closed() {
    let origin = Origin::new(|_, peer, _| {
        peer.send("hello");
        peer.expect("still there");
        peer.send("yes");
    });
    let mut rig = Rig::speaking(Protocol::Detect, &origin);
    let mut caller = rig.dial();
    caller.expect("hello");
    block_on(rig.pod.take().unwrap().close());
    caller.send("still there");
    assert_eq!(caller.rest(), "yes");
}

#[test]
fn workers_show_that_they_are_alive() {
    let rig = Rig::builder().start();
    assert_eq!(rig.proxy.workers(), 1);
    assert!(rig.proxy.silent_for() < LIMIT);
}
