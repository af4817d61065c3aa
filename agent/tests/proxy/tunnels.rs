//! What is not HTTP: bytes both ways, as they come, and the ends of both directions.

use std::{thread, time::Instant};

use sluice::cluster::model::Protocol;

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::{LIMIT, Rig},
};

fn opaque(origin: &Origin) -> Rig {
    Rig::speaking(Protocol::Opaque, origin)
}

/// The same bytes for the same seed, in parts of all sizes.
fn noise(seed: u64, parts: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..parts).map(move |_| {
        let length = if rng.u8(..) < 128 { rng.usize(1..100) } else { rng.usize(1..200_000) };
        std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
    })
}

fn send_noise(peer: &mut Peer, seed: u64) {
    noise(seed, 100).for_each(|part| peer.send(part));
}

fn check_noise(peer: &mut Peer, seed: u64) {
    for (number, part) in noise(seed, 100).enumerate() {
        assert!(peer.exactly(part.len()) == part, "part {number} of {seed} is not what was sent");
    }
}

#[test]
fn bytes_pass_both_ways_at_once_exactly() {
    let origin = Origin::new(|_, peer, _| {
        let mut writer = peer.second();
        let sender = thread::spawn(move || send_noise(&mut writer, 2));
        check_noise(peer, 1);
        sender.join().unwrap();
        peer.send("both done");
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    let mut writer = caller.second();
    let sender = thread::spawn(move || send_noise(&mut writer, 1));
    check_noise(&mut caller, 2);
    sender.join().unwrap();
    assert_eq!(caller.rest(), "both done");
    caller.finish();
    let sent: usize = noise(1, 100).map(|part| part.len()).sum();
    rig.await_metric("sluice_bytes_total", &["direction=\"request\""], sent as f64);
    rig.await_metric("sluice_tunnels_total", &["reason=\"\""], 1.0);
    rig.await_detected("opaque", 1.0);
    rig.await_nothing();
}

/// Whether the kernel's timer for asking a silent peer (2 in its table) runs on a connection to this IPv4 address.
fn is_asked(peer: std::net::SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = format!(":{:04X}", peer.port());
    table.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&port) && fields[5].starts_with("02:")
    })
}

#[test]
fn an_endpoint_that_falls_silent_is_asked_whether_it_is_there() {
    let origin = Origin::new(|_, peer, _| {
        peer.send("here");
        peer.rest();
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.expect("here");
    let began = Instant::now();
    while !is_asked(origin.address) {
        assert!(began.elapsed() < LIMIT, "nobody asks");
        thread::yield_now();
    }
}

#[test]
fn urgent_data_stays_urgent_and_in_its_place() {
    let origin = Origin::new(|_, peer, note| {
        peer.keep_urgent();
        for round in 0..3 {
            peer.expect("before");
            peer.await_urgent();
            peer.expect("!");
            peer.expect("behind");
            peer.send(format!("{round}"));
            peer.send_urgent(b'?');
            peer.send("and more".repeat(10_000));
        }
        note(peer.rest());
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.keep_urgent();
    for round in 0..3 {
        caller.send("before");
        caller.send_urgent(b'!');
        caller.send("behind");
        caller.expect(&format!("{round}"));
        caller.await_urgent();
        caller.expect("?");
        caller.expect(&"and more".repeat(10_000));
    }
    caller.send_urgent(b'.');
    caller.send("the end");
    caller.finish();
    assert_eq!(origin.await_notes(1), [".the end"]);
    rig.await_nothing();
}

#[test]
fn a_callers_reset_is_noticed_while_the_endpoint_takes_nothing() {
    let origin = Origin::new(|_, peer, note| {
        peer.expect("x");
        note("reads no more".to_owned());
        thread::sleep(LIMIT);
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.fill(usize::MAX);
    origin.await_notes(1);
    caller.reset();
    drop(caller);
    rig.await_metric("sluice_tunnels_total", &["reason=\"client_closed\""], 1.0);
    rig.await_nothing();
}

#[test]
fn a_caller_that_ends_its_side_is_still_sent_to() {
    let origin = Origin::new(|_, peer, _| {
        let question = peer.rest();
        peer.send(format!("{question}? "));
        peer.send("yes".repeat(100_000));
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send("all there is");
    caller.finish();
    assert_eq!(caller.rest(), format!("all there is? {}", "yes".repeat(100_000)));
    rig.await_nothing();
}

#[test]
fn an_endpoint_that_ends_its_side_is_still_sent_to() {
    let origin = Origin::new(|_, peer, note| {
        peer.send("that was it");
        peer.finish();
        note(peer.rest());
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    assert_eq!(caller.rest(), "that was it");
    caller.send("x".repeat(100_000));
    caller.finish();
    assert_eq!(origin.await_notes(1)[0].len(), 100_000);
    rig.await_nothing();
}

#[test]
fn a_caller_that_says_nothing_at_all() {
    let origin = Origin::new(|_, peer, note| {
        assert_eq!(peer.end(), (String::new(), End::InOrder));
        note("nothing".to_owned());
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.finish();
    assert_eq!(caller.rest(), "");
    assert_eq!(origin.noted(), ["nothing"]);
}

#[test]
fn a_callers_reset_reaches_the_endpoint_as_one() {
    let origin = Origin::new(|_, peer, note| {
        peer.expect("hello");
        peer.send("hello");
        note(format!("{:?}", peer.end()));
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send("hello");
    caller.expect("hello");
    caller.reset();
    drop(caller);
    assert_eq!(origin.await_notes(1), ["(\"\", Reset)"]);
    rig.await_metric("sluice_tunnels_total", &["reason=\"client_closed\""], 1.0);
    rig.await_nothing();
}

#[test]
fn an_endpoints_reset_reaches_the_caller_as_one() {
    let origin = Origin::new(|_, peer, _| {
        peer.expect("hello");
        peer.reset();
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send("hello");
    assert_eq!(caller.end(), (String::new(), End::Reset));
    rig.await_metric("sluice_tunnels_total", &["reason=\"upstream_reset\""], 1.0);
    rig.await_nothing();
}

#[test]
fn an_endpoints_reset_reaches_a_caller_that_has_ended_its_side() {
    let origin = Origin::new(|_, peer, _| {
        assert_eq!(peer.rest(), "hello");
        peer.reset();
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send("hello");
    caller.finish();
    assert_eq!(caller.end(), (String::new(), End::Reset));
}

#[test]
fn an_endpoint_that_cannot_be_reached_resets_the_caller() {
    let rig = Rig::builder().endpoint(Origin::nobody()).protocol(Protocol::Opaque).start();
    let mut caller = rig.dial();
    assert_eq!(caller.end(), (String::new(), End::Reset));
    rig.await_metric("sluice_tunnels_total", &["reason=\"upstream_connect\""], 1.0);
    assert!(rig.metric("sluice_retries_total", &[]).abs() < 0.1, "there was nobody else to try");
    rig.await_nothing();

    let rig = Rig::builder().protocol(Protocol::Opaque).start();
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    rig.await_metric("sluice_tunnels_total", &["reason=\"no_endpoint\""], 1.0);
}

#[test]
fn a_refused_connection_is_tried_elsewhere() {
    let origin = Origin::new(|_, peer, _| peer.send("here"));
    let rig =
        Rig::builder().endpoint(Origin::nobody()).endpoint(origin.address).protocol(Protocol::Opaque).start();
    for _ in 0..20 {
        assert_eq!(rig.dial().rest(), "here");
    }
}

#[test]
fn a_tunnel_leads_to_the_callers_own_lane() {
    let baseline = Origin::new(|_, peer, _| peer.send("base"));
    let gray = Origin::new(|_, peer, _| peer.send("gray"));
    let service =
        Rig::builder().endpoint(baseline.address).lane("gray", gray.address).protocol(Protocol::Opaque);
    let rig = service.clone().caller("gray").start();
    assert_eq!(rig.dial().rest(), "gray");
    rig.await_metric("sluice_tunnels_total", &["destination_lane=\"gray\""], 1.0);
    assert_eq!(service.clone().start().dial().rest(), "base");
    assert_eq!(service.caller("blue").start().dial().rest(), "base");
}

#[test]
fn what_is_declared_opaque_is_not_looked_at() {
    // Not even if it is HTTP, good or bad.
    let bytes = "GET / HTTP/1.1\r\nConnection: close\r\nHost : a\r\nHost: b\nTransfer-Encoding: x\r\n\r\n";
    let origin = Origin::new(|_, peer, note| {
        note(peer.rest());
        peer.send("as it is");
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send(bytes);
    caller.finish();
    assert_eq!(caller.rest(), "as it is");
    assert_eq!(origin.noted(), [bytes]);
    rig.await_metric("sluice_requests_total", &[], 0.0);
}

#[test]
fn a_stream_that_is_not_read_stops_and_the_other_direction_goes_on() {
    const FAR_TOO_MUCH: usize = 64 * 1024 * 1024;
    let origin = Origin::new(|_, peer, note| {
        note(peer.fill(FAR_TOO_MUCH).to_string());
        for _ in 0..100 {
            let byte = peer.exactly(1);
            note(String::from_utf8(byte).unwrap());
        }
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    let filled: usize = origin.await_notes(1)[0].parse().unwrap();
    assert!(filled < FAR_TOO_MUCH / 2, "{filled} bytes were taken for somebody who does not read");
    for _ in 0..100 {
        caller.send("x");
    }
    origin.await_notes(101);
    caller.exactly(filled);
}

#[test]
fn a_torrent_in_one_direction_leaves_room_for_the_other() {
    let origin = Origin::new(|_, peer, _| {
        let mut writer = peer.second();
        thread::spawn(move || {
            let part = vec![b'x'; 256 * 1024];
            while writer.try_send(&part) {}
        });
        for _ in 0..50 {
            peer.expect("ping");
        }
        peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    let mut writer = caller.second();
    let pings = thread::spawn(move || {
        for _ in 0..50 {
            if !writer.try_send("ping") {
                return;
            }
        }
    });
    let mut sink = vec![0; 256 * 1024];
    // Reads for as long as there is something, which is until the endpoint has got all the pings.
    while matches!(std::io::Read::read(&mut caller.stream, &mut sink), Ok(1..)) {}
    pings.join().unwrap();
    rig.await_metric("sluice_bytes_total", &["direction=\"request\""], 200.0);
    drop(caller);
    rig.await_nothing();
}

#[test]
fn a_caller_that_has_closed_leaves_nothing_behind() {
    let origin = Origin::new(|_, peer, note| {
        let (said, end) = peer.end();
        note(format!("{said} {end:?}"));
        thread::sleep(LIMIT);
    });
    let rig = opaque(&origin);
    let mut caller = rig.dial();
    caller.send("hello");
    caller.finish();
    assert_eq!(origin.await_notes(1), ["hello InOrder"]);
    rig.callers_have_closed();
    rig.await_metric("sluice_tunnels_total", &["reason=\"\""], 1.0);
    rig.await_nothing();
}
