//! Endpoints that do not answer connection requests.

use socket2::{Domain, Socket, Type};

use super::*;
use crate::govern::{
    governor::Governor,
    policy::{Algorithm, Policy},
};

/// An address at which connection requests are not answered, as long as this is there: as many wait to be accepted as may.
struct Deaf {
    address: SocketAddr,
    _sockets: Vec<Socket>,
}

fn deaf() -> Deaf {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let listener = socket();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback can be bound");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound").as_socket().expect("of IP");
    let dial = |_| {
        let socket = socket();
        socket.set_nonblocking(true).expect("it may be");
        let _ = socket.connect(&address.into());
        socket
    };
    Deaf { address, _sockets: (0..8).map(dial).chain([listener]).collect() }
}

/// Each endpoint in turn, whatever it costs.
fn in_turn(service: Service) -> Service {
    let mut policy = Policy::default();
    policy.load_balancer.algorithm = Algorithm::RoundRobin;
    Service { governor: Governor::next(None, Arc::new(policy), 0), ..service }
}

/// So many requests at once over one connection; who answered.
async fn ask_at_once(caller: &mut client::SendRequest<Bytes>, requests: usize) -> Vec<String> {
    let mut waiting = Vec::new();
    for at in 0..requests {
        caller.clone().ready().await.expect("it takes requests");
        // Nothing has been sent when there is no connection: it is all the same whether that could be done twice.
        let (response, body) = if at % 2 == 0 {
            (caller.send_request(get(), true).expect("it takes requests").0, None)
        } else {
            let (response, body) =
                caller.send_request(post("application/grpc"), false).expect("it takes requests");
            (response, Some(body))
        };
        if let Some(mut body) = body {
            body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).expect("it is taken");
        }
        waiting.push(response);
    }
    let mut names = Vec::new();
    for response in waiting {
        let response = soon(response).await.expect("it answers");
        names.push(header(response.headers(), "x-name").to_owned());
    }
    names
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_passed_over() {
    let (deaf, heard) = (deaf(), named("heard").await);
    let bed = bed(&[]);
    bed.change(2, &[(deaf.address, None), (heard, None)], in_turn);
    let mut caller = bed.caller().await;
    assert_eq!(ask_at_once(&mut caller, 20).await, vec!["heard"; 20]);
    // All that wait share one connection request, and the next ones do not wait.
    let timeouts = ["sluice_upstream_connects_total", "outcome=\"timeout\""];
    bed.metric(&timeouts, |count| count == 1).await;
    assert_eq!(ask_at_once(&mut caller, 20).await, vec!["heard"; 20]);
    bed.metric(&timeouts, |count| count <= 2).await;
}

/// A request that had nowhere else to go waits as long as the kernel tries. One that has does not wait with it.
#[tokio::test]
async fn who_has_another_endpoint_does_not_wait_with_who_had_none() {
    let (deaf, heard) = (deaf(), named("heard").await);
    let bed = bed(&[(deaf.address, None)]);
    let mut caller = bed.caller().await;
    let (patient, _) = caller.send_request(get(), true).expect("it takes requests");
    bed.metric(&["sluice_requests_in_flight"], |active| active == 1).await;
    // The same endpoint, and another one beside it.
    let known = {
        let snapshot = bed.current.load();
        snapshot.destinations.values().next().expect("there is one").service.endpoints[0].clone()
    };
    let all = vec![known, Arc::new(Endpoint::new(heard))];
    bed.change(2, &[], |service| in_turn(service.with_endpoints(all)));
    assert_eq!(ask_at_once(&mut caller, 8).await, vec!["heard"; 8]);
    drop(patient);
}

/// A dual-stack endpoint whose server listens on one address family only.
#[tokio::test]
async fn requests_go_to_the_address_that_takes_them() {
    let (nobody, heard) = (nobody(), named("heard").await);
    let bed = bed(&[]);
    let endpoint = Endpoint { other_family: Some(Box::new(heard)), ..Endpoint::new(nobody) };
    bed.change(2, &[], |service| service.with_endpoints(vec![Arc::new(endpoint)]));
    let mut caller = bed.caller().await;
    assert_eq!(ask_at_once(&mut caller, 20).await, vec!["heard"; 20]);
    // All that wait share the two connection requests, and the next one has a connection.
    let mut request = get();
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("next"));
    assert_eq!(header(ask(&mut caller, request).await.headers(), "x-name"), "heard");
    for outcome in ["refused", "opened"] {
        let label = format!("outcome=\"{outcome}\"");
        bed.metric(&["sluice_upstream_connects_total", &label], |count| count == 1).await;
    }
    // Where it went is told of that one, too.
    let told = soon(async {
        loop {
            if let Some(told) = bed.proxy.past(Some("next"), None, 1).await.pop() {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let told = told.await;
    let wanted = format!("leads to {heard}, the same pod's address of the other family");
    assert!(told.steps.iter().any(|step| step.message.contains(&wanted)), "{told:#?}");
}

/// What was opened before goes on: an endpoint that answers over it is there.
#[tokio::test]
async fn who_answers_over_an_open_connection_gets_its_share_again() {
    let (one, two) = (named("one").await, named("two").await);
    let bed = bed(&[]);
    bed.change(2, &[(one, None), (two, None)], in_turn);
    let mut caller = bed.caller().await;
    let count = |names: Vec<String>| names.iter().filter(|name| *name == "one").count();
    assert_eq!(count(ask_at_once(&mut caller, 20).await), 10);
    {
        let snapshot = bed.current.load();
        let endpoints = &snapshot.destinations.values().next().expect("there is one").service.endpoints;
        let endpoint = endpoints.iter().find(|endpoint| endpoint.address == one).expect("it is there");
        let now = Nanos::now().0;
        endpoint.load.missed(now, now);
    }
    // It is asked again when its time is over; once, if it were not heard.
    soon(async {
        while count(ask_at_once(&mut caller, 2).await) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(count(ask_at_once(&mut caller, 20).await) >= 9);
}
