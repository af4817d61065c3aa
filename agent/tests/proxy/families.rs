//! Dual-stack endpoints whose servers listen on one address family only. To the proxy they have two addresses; here both are of
//! IPv4, so that the tests need no IPv6. The kernel tests have both.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use sluice::{
    cluster::model::Protocol,
    govern::policy::{Policy, Timeouts},
    observe::{access_log::Style, sampling::Ratio},
};
use socket2::{Domain, Socket, Type};

use crate::{
    access_log,
    connecting::Deaf,
    explain::past,
    origin::Origin,
    peer::{End, Peer},
    rig::{Builder, Rig},
};

/// An endpoint that refuses connections to its own address, and takes them at the other one.
fn refusing(other: SocketAddr) -> Builder {
    let own = Origin::nobody();
    Rig::builder().endpoint(own).other_family(own, other)
}

fn connects(rig: &Rig, outcome: &str) -> u64 {
    rig.metric("sluice_upstream_connects_total", &[&format!("outcome=\"{outcome}\"")]) as u64
}

#[track_caller]
fn assert_connects(rig: &Rig, opened: u64, refused: u64) {
    assert_eq!((connects(rig, "opened"), connects(rig, "refused")), (opened, refused));
}

/// That goes for a client that has called the endpoint of a headless Service, too: it is the same pod.
#[test]
fn a_request_goes_to_the_address_that_takes_it() {
    for pinned in [false, true] {
        let origin = Origin::last("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        let service = refusing(origin.address);
        let rig = if pinned { service.pinned() } else { service }.start();
        for _ in 0..10 {
            let mut caller = rig.dial();
            caller.get("/");
            assert_eq!(caller.answer().body, "ok");
        }
        // Which address takes them is known after the first one.
        assert_connects(&rig, 10, 1);
        assert!(rig.metric("sluice_retries_total", &[]) < 0.1, "it is one endpoint, and one attempt");
        rig.await_requests("2xx", "", 10.0);
    }
}

/// A connection that is kept is the endpoint's, and not its address's.
#[test]
fn a_connection_to_it_is_kept() {
    let origin = Origin::fixed("ok");
    let rig = refusing(origin.address).start();
    let mut caller = rig.dial();
    for _ in 0..5 {
        caller.get("/");
        assert_eq!(caller.answer().body, "ok");
    }
    assert_connects(&rig, 1, 1);
}

#[test]
fn what_is_told_of_a_request_names_the_address_that_it_was_sent_to() {
    let (log, sink, _) = access_log::open(Style::Json, Ratio::ALL);
    let origin = Origin::fixed("ok");
    let rig = refusing(origin.address).access_log(log).start();
    let mut caller = rig.dial();
    // Over a new connection, and over the same one.
    for id in ["first", "second"] {
        caller.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n"));
        assert_eq!(caller.answer().body, "ok");
    }
    for line in sink.lines(2) {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["endpoint"], origin.address.to_string(), "{line}");
    }
    for id in ["first", "second"] {
        let [told] = &*past(&rig, id) else { panic!("one") };
        let wanted = format!("leads to {}, the same pod's address of the other family", origin.address);
        assert!(told.steps.iter().any(|step| step.message.contains(&wanted)), "{told:#?}");
    }
}

#[test]
fn a_tunnel_goes_to_the_address_that_takes_it() {
    for protocol in [Protocol::Opaque, Protocol::Detect] {
        let origin = Origin::new(|_, peer, _| {
            peer.send("here");
            peer.expect("there");
        });
        let rig = refusing(origin.address).protocol(protocol).start();
        for _ in 0..3 {
            let mut caller = rig.dial();
            caller.expect("here");
            caller.send("there");
            assert_eq!(caller.rest(), "");
        }
        assert_connects(&rig, 3, 1);
        rig.await_metric("sluice_tunnels_total", &["reason=\"\""], 3.0);
    }
}

#[test]
fn where_both_refuse_the_endpoint_does() {
    let rig = refusing(Origin::nobody()).start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    assert_connects(&rig, 0, 2);

    let rig = refusing(Origin::nobody()).protocol(Protocol::Opaque).start();
    assert_eq!(rig.dial().end(), (String::new(), End::Reset));
    assert_connects(&rig, 0, 2);
}

/// Both share the time that the policy gives.
#[test]
fn the_other_address_has_the_time_that_is_left() {
    let deaf = Deaf::new();
    let timeouts = Timeouts { connect: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let policy = Policy { name: Some("shop/orders".into()), timeouts, ..Policy::default() };
    let rig = refusing(deaf.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    assert_eq!((connects(&rig, "refused"), connects(&rig, "timeout")), (1, 1));
}

/// An address that costs time is not the other one's affair: a node that has vanished has vanished in both families.
#[test]
fn what_is_not_answered_is_not_tried_elsewhere() {
    let (deaf, origin) = (Deaf::new(), Origin::fixed("ok"));
    let timeouts = Timeouts { connect: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let policy = Policy { name: Some("shop/orders".into()), timeouts, ..Policy::default() };
    let rig = Rig::builder()
        .endpoint(deaf.address)
        .other_family(deaf.address, origin.address)
        .policy(policy)
        .start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    assert!(origin.noted().is_empty());
}

/// An address at which a server may begin and cease to listen.
struct Address {
    address: SocketAddr,
    socket: Socket,
}

impl Address {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self { address: socket.local_addr().unwrap().as_socket().unwrap(), socket }
    }

    /// Answers one request of each connection with this.
    fn listen(&self, body: &'static str) {
        self.socket.listen(16).unwrap();
        let socket = self.socket.try_clone().unwrap();
        thread::spawn(move || -> io::Result<()> {
            loop {
                let mut peer = Peer::new(TcpStream::from(socket.accept()?.0));
                if peer.request().is_some() {
                    peer.send(format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n{body}"
                    ));
                }
            }
        });
    }

    /// The port stays its own.
    fn refuse(&self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }
}

#[test]
fn a_server_may_begin_to_listen_on_the_other_family() {
    let (own, other) = (Address::new(), Address::new());
    let rig = Rig::builder().endpoint(own.address).other_family(own.address, other.address).start();
    let ask = |expected: &str, refused: u64| {
        for _ in 0..3 {
            let mut caller = rig.dial();
            caller.get("/");
            assert_eq!(caller.answer().body, expected);
        }
        assert_eq!(connects(&rig, "refused"), refused);
    };
    other.listen("b");
    ask("b", 1);
    // On both: nothing is refused, and nothing changes.
    own.listen("a");
    ask("b", 1);
    other.refuse();
    ask("a", 2);
}
