//! Connections that become something else: WebSockets, CONNECT.

use crate::{origin::Origin, peer::End, rig::Rig};

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn websockets_become_tunnels() {
    let origin = Origin::new(|_, peer, note| {
        note(peer.request().unwrap());
        peer.send(format!("{SWITCH}first"));
        peer.expect("ping");
        peer.send("pong");
        assert_eq!(peer.rest(), "");
        peer.send("last");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(UPGRADE);
    assert_eq!(
        caller.head(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    );
    caller.expect("first");
    caller.send("ping");
    caller.expect("pong");
    rig.await_metric("sluice_tunnels_in_flight", &[], 1.0);
    caller.finish();
    assert_eq!(caller.rest(), "last");
    assert_eq!(
        origin.noted(),
        ["GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n"]
    );
    rig.await_requests("1xx", "", 1.0);
    rig.await_metric("sluice_tunnels_total", &["reason=\"\""], 1.0);
    rig.await_nothing();
}

#[test]
fn what_a_caller_sends_before_the_switch_is_not_lost() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send(SWITCH);
        peer.expect("in a hurry");
        peer.send("got it");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("{UPGRADE}in a hurry"));
    caller.head();
    assert_eq!(caller.rest(), "got it");
}

#[test]
fn a_switch_before_the_request_is_complete_loses_nothing() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send(SWITCH);
        peer.expect(&"x".repeat(100_000));
        peer.send("got it");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 100000\r\n\r\n",
    );
    caller.head();
    caller.send("x".repeat(100_000));
    assert_eq!(caller.rest(), "got it");
}

#[test]
fn a_refused_upgrade_is_an_ordinary_answer() {
    let origin = Origin::fixed("no");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send(UPGRADE);
        assert_eq!(caller.answer().body, "no");
    }
    caller.get("/");
    assert_eq!(caller.answer().body, "no");
    assert!((rig.opened() - 1.0).abs() < 0.1);
    rig.await_requests("2xx", "", 3.0);
}

#[test]
fn an_upgrade_to_cleartext_http2_is_not_asked_for() {
    // An endpoint that took it would speak HTTP/2 to a caller that this hop still takes for HTTP/1.
    let origin = Origin::fixed("plain");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n");
    assert_eq!(caller.answer().body, "plain");
    assert_eq!(origin.noted(), ["0 GET / HTTP/1.1\r\nHost: a\r\n\r\n"]);
}

#[test]
fn a_reset_goes_through_a_websocket() {
    let origin = Origin::new(|_, peer, note| {
        peer.request();
        peer.send(SWITCH);
        note("switched".to_owned());
        note(format!("{:?}", peer.end().1));
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(UPGRADE);
    caller.head();
    caller.reset();
    drop(caller);
    assert_eq!(origin.await_notes(2)[1], "Reset");
    rig.await_metric("sluice_tunnels_total", &["reason=\"client_closed\""], 1.0);
    rig.await_nothing();
}

#[test]
fn connect_becomes_a_tunnel() {
    let origin = Origin::new(|_, peer, note| {
        note(peer.request().unwrap());
        peer.send("HTTP/1.1 200 Connection Established\r\n\r\nhello");
        peer.expect("early, late");
        peer.reset();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nearly");
    assert_eq!(caller.head(), "HTTP/1.1 200 Connection Established\r\n\r\n");
    caller.expect("hello");
    caller.send(", late");
    assert_eq!(caller.end(), (String::new(), End::Reset));
    assert_eq!(origin.noted(), ["CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n"]);
    rig.await_metric("sluice_tunnels_total", &["reason=\"upstream_reset\""], 1.0);
}

#[test]
fn a_refused_connect_is_an_ordinary_answer() {
    let origin = Origin::raw("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n");
        assert_eq!(caller.answer().body, "no");
    }
    rig.await_requests("4xx", "", 2.0);
}
