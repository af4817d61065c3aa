//! Peers that take nothing: what waits for them is counted, bounded, and nobody else's matter.

use std::{
    sync::{Mutex, mpsc},
    thread,
};

use sluice::{
    cluster::model::Protocol,
    proxy::{Cause, Limits},
};

use crate::{
    origin::Origin,
    peer::Peer,
    rig::{LIMIT, Rig, SOCKET_MEMORY},
};

/// More than all buffers on the way take.
const HUGE: usize = 3_000_000;

const WAITING: &str = "sluice_pod_waiting_bytes";
const OF_THE_POD: &str = "source_pod=\"gateway-1\"";

/// Answers `/huge` with much, and everything else with little.
fn generous() -> Origin {
    Origin::new(|_, peer, _| {
        while let Some(head) = peer.request() {
            let length = if head.starts_with("GET /huge ") { HUGE } else { 2 };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            if !peer.try_send(head) || !peer.try_send(vec![b'x'; length]) {
                return;
            }
        }
    })
}

/// Asks for much and reads nothing of it.
fn stall(rig: &Rig) -> Peer {
    let before = rig.metric(WAITING, &[OF_THE_POD]);
    let mut caller = rig.dial();
    caller.get("/huge");
    rig.until("what waits is counted", || {
        rig.metric(WAITING, &[OF_THE_POD]) >= before + 2.0 * SOCKET_MEMORY as f64
    });
    caller
}

#[test]
fn what_waits_for_slow_readers_is_bounded_and_another_pod_goes_on() {
    let origin = generous();
    let limits = Limits { bytes: 9 * SOCKET_MEMORY, ..Limits::default() };
    let rig = Rig::builder().endpoint(origin.address).limits(limits).start();
    let other = rig.other_pod();
    let mut patient = rig.dial();
    patient.get("/");
    assert_eq!(patient.answer().body, "xx");

    let mut slow = vec![stall(&rig), stall(&rig)];
    rig.await_direct(false);
    slow.push(stall(&rig));
    rig.await_direct(true);
    assert_eq!(rig.proxy.uses()[0].direct, Some(Cause::Memory));
    // Those that it has go on, until nearly nothing is left.
    patient.get("/");
    assert_eq!(patient.answer().body, "xx");
    slow.push(stall(&rig));
    patient.get("/");
    patient.answer().made_up(503, "overloaded");
    let mut caller = other.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "xx");
    assert!(!other.goes_direct());

    // One that reads on frees what has waited for it, and gets all of it.
    for caller in &mut slow {
        assert_eq!(caller.answer().body.len(), HUGE);
    }
    rig.await_metric(WAITING, &[OF_THE_POD], 0.0);
    rig.await_direct(false);
    patient.get("/");
    assert_eq!(patient.answer().body, "xx");
}

#[test]
fn what_waits_for_one_that_leaves_is_free() {
    let origin = generous();
    let rig = Rig::before(&origin);
    let caller = stall(&rig);
    drop(caller);
    rig.await_metric(WAITING, &[OF_THE_POD], 0.0);
}

#[test]
fn tunnels_and_uploads_are_counted_too() {
    for protocol in [Protocol::Opaque, Protocol::Http] {
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let origin = Origin::new(move |_, peer, _| {
            if protocol == Protocol::Http {
                peer.request();
            }
            wait.lock().unwrap().recv_timeout(LIMIT).unwrap();
            peer.exactly(HUGE);
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        });
        let rig = Rig::speaking(protocol, &origin);
        let mut caller = rig.dial();
        let mut sender = caller.second();
        let sending = thread::spawn(move || {
            if protocol == Protocol::Http {
                sender.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {HUGE}\r\n\r\n"));
            }
            sender.send(vec![b'x'; HUGE]);
        });
        rig.until("what waits is counted", || rig.metric(WAITING, &[OF_THE_POD]) > 0.0);
        go.send(()).unwrap();
        assert_eq!(caller.answer().body, "ok");
        sending.join().unwrap();
        rig.await_metric(WAITING, &[OF_THE_POD], 0.0);
    }
}
