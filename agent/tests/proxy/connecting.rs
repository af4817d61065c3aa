//! Endpoints that take long to accept a connection, or never do.

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use sluice::{
    cluster::model::Protocol,
    govern::policy::{Algorithm, Policy, Timeouts},
};
use socket2::{Domain, Socket, Type};

use crate::{origin::Origin, rig::Rig};

/// An address at which connection requests are not answered: as many wait to be accepted as may.
pub(crate) struct Deaf {
    pub(crate) address: std::net::SocketAddr,
    listener: Socket,
    waiting: Vec<Socket>,
}

impl Deaf {
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let dial = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        };
        Self { address, listener, waiting: (0..8).map(dial).collect() }
    }

    /// Accepts connections after all, and answers the first over which something is asked.
    fn answer(mut self, answer: &str) {
        self.waiting.clear();
        loop {
            let mut accepted = std::net::TcpStream::from(self.listener.accept().unwrap().0);
            if matches!(accepted.read(&mut [0; 1024]), Ok(1..)) {
                return accepted.write_all(answer.as_bytes()).unwrap();
            }
        }
    }
}

fn policy(connect: Duration) -> Policy {
    let timeouts = Timeouts { connect: Some(connect), ..Timeouts::default() };
    Policy { name: Some("shop/orders".into()), timeouts, ..Policy::default() }
}

#[test]
fn an_endpoint_that_does_not_accept_in_time_is_passed_over() {
    for protocol in [Protocol::Http, Protocol::Opaque] {
        let (deaf, origin) = (Deaf::new(), Origin::fixed("heard"));
        let rig = Rig::builder()
            .endpoint(deaf.address)
            .endpoint(origin.address)
            .protocol(protocol)
            .policy(policy(Duration::from_millis(100)))
            .start();
        for _ in 0..12 {
            let mut caller = rig.dial();
            caller.get("/");
            assert_eq!(caller.answer().body, "heard");
        }
        rig.until("the other was tried, too", || {
            rig.metric("sluice_upstream_connects_total", &["outcome=\"timeout\""]) > 0.0
        });
    }
}

/// Half of those that call for the first time meet the one that does not answer, and the others after them do not.
#[test]
fn an_endpoint_that_does_not_answer_costs_few_requests_time() {
    for protocol in [Protocol::Http, Protocol::Opaque] {
        let (deaf, origin) = (Deaf::new(), Origin::fixed("heard"));
        let mut policy = Policy::default();
        // Which would ask it in turn, whatever it costs.
        policy.load_balancer.algorithm = Algorithm::RoundRobin;
        let rig = Rig::builder()
            .endpoint(deaf.address)
            .endpoint(origin.address)
            .protocol(protocol)
            .policy(policy)
            .start();
        let unanswered = || rig.metric("sluice_upstream_connects_total", &["outcome=\"timeout\""]);
        let ask = || {
            let mut caller = rig.dial();
            caller.get("/");
            assert_eq!(caller.answer().body, "heard");
        };
        rig.until("the one that does not answer was asked", || {
            ask();
            unanswered() >= 1.0
        });
        for _ in 0..100 {
            ask();
        }
        // It is asked again now and then: not more often than the times allow between which it is.
        assert!(unanswered() <= 2.0, "{}", unanswered());
    }
}

#[test]
fn the_last_endpoint_has_as_long_as_the_kernel_tries() {
    let deaf = Deaf::new();
    let rig = Rig::builder().endpoint(deaf.address).start();
    let mut caller = rig.dial();
    caller.get("/");
    rig.await_metric("sluice_connections_open", &["peer=\"client\""], 1.0);
    std::thread::sleep(Duration::from_secs(2));
    assert!(rig.metric("sluice_upstream_connects_total", &["outcome=\"timeout\""]) < 1.0);
    deaf.answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nheard");
    assert_eq!(caller.answer().body, "heard");
}

#[test]
fn the_only_endpoint_has_the_time_of_the_policy() {
    let deaf = Deaf::new();
    let rig = Rig::builder().endpoint(deaf.address).policy(policy(Duration::from_millis(100))).start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
}

#[test]
fn a_client_that_leaves_is_noticed_while_its_endpoint_does_not_accept() {
    for (protocol, metric) in
        [(Protocol::Http, "sluice_requests_total"), (Protocol::Opaque, "sluice_tunnels_total")]
    {
        let deaf = Deaf::new();
        let rig = Rig::builder().endpoint(deaf.address).protocol(protocol).start();
        let mut caller = rig.dial();
        caller.get("/");
        rig.await_metric("sluice_connections_open", &["peer=\"client\""], 1.0);
        rig.callers_have_closed();
        drop(caller);
        rig.await_metric(metric, &["reason=\"client_closed\""], 1.0);
        rig.await_nothing();
    }
}
