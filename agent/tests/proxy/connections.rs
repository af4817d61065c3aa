//! When connections are kept, on either side, and when they are not.

use std::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    origin::Origin,
    peer::End,
    rig::{LIMIT, Rig},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn requests_of_one_connection_share_an_upstream_connection() {
    let origin = Origin::fixed("hello");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for path in ["/a", "/b", "/c"] {
        caller.get(path);
        let answer = caller.answer();
        assert_eq!(answer.head, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(answer.body, "hello");
    }
    let sent = |path: &str| format!("0 GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n");
    assert_eq!(origin.noted(), [sent("/a"), sent("/b"), sent("/c")]);
    rig.await_metric("sluice_requests_total", &["code=\"2xx\"", "source_pod=\"gateway-1\""], 3.0);
    rig.await_detected("http1", 1.0);
}

/// So long that the connection gives up what only requests need.
const REST: Duration = Duration::from_millis(2500);

#[test]
fn a_connection_that_has_rested_is_served_as_before() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let (mut caller, mut late) = (rig.dial(), rig.dial());
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    // Half a line end before the pause, and half a head.
    caller.send("\r");
    late.send("GET / HTTP/1.1\r\nHo");
    thread::sleep(REST);
    caller.send("\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    late.send("st: a\r\n\r\n");
    assert_eq!(
        (caller.answer().body, caller.answer().body, late.answer().body),
        ("ok".into(), "ok".into(), "ok".into())
    );
    thread::sleep(REST);
    late.finish();
    assert_eq!(late.rest(), "");
    caller.reset();
    drop(caller);
    rig.await_rest();
}

#[test]
fn a_caller_that_wants_to_close_is_closed_and_its_upstream_connection_too() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    for _ in 0..3 {
        let mut caller = rig.dial();
        caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = caller.answer();
        assert!(answer.has("connection: close"), "{answer:?}");
        assert_eq!(caller.rest(), "");
    }
    let noted = origin.noted();
    let sent = |number| format!("{number} GET / HTTP/1.1\r\nHost: a\r\nconnection: close\r\n\r\n");
    assert_eq!(noted, [sent(0), sent(1), sent(2)]);
    rig.await_nothing();
}

#[test]
fn an_origin_that_wants_to_close_leaves_its_caller_connected() {
    let origin = Origin::last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        assert_eq!(caller.answer().head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    }
    assert!((rig.opened() - 3.0).abs() < 0.1);
    assert!(rig.metric("sluice_retries_total", &[]).abs() < 0.1);
}

#[test]
fn an_old_caller_is_closed_unless_it_asks_to_be_kept() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.0\r\n\r\n");
    assert!(caller.answer().has("connection: close"));
    assert_eq!(caller.rest(), "");

    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert!(caller.answer().has("connection: keep-alive"));
    }
    assert!(origin.noted().iter().all(|head| head.ends_with(" GET / HTTP/1.0\r\n\r\n")));
}

#[test]
fn an_old_origin_ends_its_answer_with_its_connection() {
    let origin = Origin::last("HTTP/1.0 200 OK\r\nX: 1\r\n\r\nall there is");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.head(), "HTTP/1.1 200 OK\r\nX: 1\r\nconnection: close\r\n\r\n");
    assert_eq!(caller.rest(), "all there is");
    rig.await_requests("2xx", "", 1.0);
}

#[test]
fn an_old_origin_that_keeps_its_connection_is_asked_again_over_it() {
    let origin = Origin::raw("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert!(origin.noted()[1].starts_with("0 "));
}

#[test]
fn an_old_origin_that_says_nothing_of_it_is_not() {
    let origin = Origin::raw("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert!(origin.noted()[1].starts_with("1 "));
}

#[test]
fn an_answer_to_the_end_of_the_connection_closes_the_callers() {
    let origin = Origin::last("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert!(caller.head().contains("connection: close\r\n"));
    assert_eq!(caller.rest(), "until the end");
}

#[test]
fn an_origin_that_keeps_connections_for_a_second_is_dialled_anew() {
    let origin =
        Origin::raw("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=100\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert!(origin.noted()[1].starts_with("1 "), "a second may be over before the next request arrives");
}

#[test]
fn bytes_that_nobody_asked_for_spoil_a_connection() {
    // Right behind the answer, as if it answered the next request.
    let origin = Origin::raw(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    );
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert!(origin.noted()[2].starts_with("2 "));
}

#[test]
fn bytes_that_come_to_an_idle_connection_spoil_it() {
    let (told, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let origin = Origin::new(move |number, peer, note| {
        while peer.request().is_some() {
            peer.send(OK);
            if number == 0 {
                let _ = wait.lock().unwrap().recv_timeout(LIMIT);
                peer.send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n");
            }
            note(number.to_string());
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().status(), 200);
    // The proxy has the answer, and the connection is idle.
    rig.await_requests("2xx", "", 1.0);
    told.send(()).unwrap();
    origin.await_notes(1);
    // A request that cannot be repeated, so that the proxy asks the kernel and not its own memory.
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(caller.answer().status(), 200);
    assert_eq!(origin.await_notes(2), ["0", "1"]);
}

#[test]
fn what_cannot_be_sent_twice_goes_over_no_connection_older_than_its_callers() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let (mut first, mut second) = (rig.dial(), rig.dial());
    first.get("/");
    assert_eq!(first.answer().body, "ok");
    // The proxy has the answer, and the connection is idle.
    rig.await_requests("2xx", "", 1.0);
    for _ in 0..2 {
        second.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(second.answer().body, "ok");
    }
    // A new connection for the first request of a caller, as without a proxy, and then that one.
    let numbers: Vec<_> = origin.noted().iter().map(|sent| sent[..6].to_owned()).collect();
    assert_eq!(numbers, ["0 GET ", "1 POST", "1 POST"]);
    // What can be sent twice takes what is there.
    let mut third = rig.dial();
    third.get("/");
    assert_eq!(third.answer().body, "ok");
    assert!((rig.opened() - 2.0).abs() < 0.1);
}

/// Stops the others also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_server_of_one_connection_at_a_time_is_not_kept_by_callers_that_dial_for_each_request() {
    let turn = (Mutex::new(0), Condvar::new());
    let origin = Origin::new(move |number, peer, _| {
        let (serves, next) = &turn;
        drop(next.wait_while(serves.lock().unwrap(), |serves| *serves != number).unwrap());
        while peer.request().is_some() {
            peer.send(OK);
        }
        *serves.lock().unwrap() += 1;
        next.notify_all();
    });
    let rig = Rig::before(&origin);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        let (told, wait) = mpsc::channel();
        let (rig, stop) = (&rig, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut caller = rig.dial();
                caller.get("/");
                assert_eq!(caller.answer().status(), 200);
                let _ = told.send(());
            }
        });
        wait.recv_timeout(LIMIT).unwrap();
        // Over a connection of its own, which has its turn when that of the others ends.
        let mut other = rig.dial();
        other.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(other.answer().status(), 200);
    });
}

#[test]
fn a_caller_that_has_closed_leaves_nothing_behind() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    for _ in 0..10 {
        let mut caller = rig.dial();
        caller.get("/");
        caller.answer();
    }
    rig.await_nothing();
}

#[test]
fn connections_to_endpoints_are_counted_as_long_as_they_are_open() {
    let origin = Origin::last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let mut rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 0.0);
    let origin = Origin::fixed("ok");
    rig.change(|service| service.no_endpoints().endpoint(origin.address));
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    // Kept for a next request, until its pod is gone.
    rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 1.0);
    drop(rig.pod.take());
    rig.await_metric("sluice_connections_open", &["peer=\"upstream\""], 0.0);
}

#[test]
fn a_service_that_is_forgotten_is_still_served_and_its_caller_told_to_reconnect() {
    let origin = Origin::fixed("ok");
    let mut rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    assert!(!caller.answer().has("connection: close"));
    rig.forget();
    caller.get("/");
    let answer = caller.answer();
    assert!(answer.status() == 200 && answer.has("connection: close"), "{answer:?}");
    assert_eq!(caller.rest(), "");
}

#[test]
fn endpoints_that_are_replaced_get_no_more_requests() {
    let (old, new) = (Origin::fixed("old"), Origin::fixed("new"));
    let mut rig = Rig::before(&old);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "old");
    rig.change(|service| service.no_endpoints().endpoint(new.address));
    for _ in 0..10 {
        caller.get("/");
        assert_eq!(caller.answer().body, "new");
    }
    rig.change(super::rig::Builder::no_endpoints);
    caller.get("/");
    caller.answer().made_up(503, "no_endpoint");
    rig.change(|service| service.endpoint(old.address));
    caller.get("/");
    assert_eq!(caller.answer().body, "old", "an answer that was made up does not end the connection");
}

#[test]
fn an_idle_caller_that_resets_is_forgotten() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer();
    caller.reset();
    drop(caller);
    rig.await_rest();
    rig.await_requests("2xx", "", 1.0);
    assert!(rig.metric("sluice_requests_total", &["reason=\"client_closed\""]).abs() < 0.1);
}

#[test]
fn a_connection_ends_in_order_when_its_caller_ends_it_in_order() {
    let origin = Origin::fixed("ok");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer();
    caller.finish();
    assert_eq!(caller.end(), (String::new(), End::InOrder));
}
