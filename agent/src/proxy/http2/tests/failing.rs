//! Endpoints that fail in every way of gRPC, behind a policy that breaks off, tries again or stands in.

use super::*;
use crate::govern::{
    governor::Governor,
    policy::{
        CircuitBreaker, Fallback, FallbackAction, FallbackOn, Policy, Retry, StaleBounds, StaticAnswer,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// A proxy before one endpoint, under a policy.
fn governed(address: SocketAddr, policy: Policy) -> Bed {
    let bed = bed(&[]);
    govern(&bed, address, policy);
    bed
}

/// Puts a policy in force; its rules go on from those of the last one.
fn govern(bed: &Bed, address: SocketAddr, policy: Policy) {
    let last = bed.current.load_full();
    let previous = last.destinations.values().next().map(|destination| &destination.service.governor);
    let service = Service {
        protocol: Protocol::Http2,
        governor: Governor::next(previous, Arc::new(policy), Nanos::now().0),
        ..Service::new("shop", "orders", 80).with_endpoints(vec![Arc::new(Endpoint::new(address))])
    };
    let mut snapshot = Snapshot { generation: last.generation + 1, ..Snapshot::default() };
    let destination = Destination { service: Arc::new(service), pinned: None };
    snapshot.destinations.insert(SERVICE.parse().expect("an address"), destination);
    bed.current.store(Arc::new(snapshot));
}

/// What an endpoint does with its n-th request, having read it; with all behind the last one as with that.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    /// Answers a message and this gRPC status behind it.
    Says(&'static str),
    /// Answers with this gRPC status and nothing else.
    Ends(&'static str),
    Resets,
    /// Answers this HTTP status.
    Status(u16),
    /// Nothing, until the stream is reset.
    Hangs,
}

/// What an endpoint has been asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<Vec<u8>>>>);

impl Asked {
    fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.lock().expect("not poisoned").clone()
    }

    fn count(&self) -> usize {
        self.bodies().len()
    }

    async fn reaches(&self, count: usize) {
        soon(async {
            while self.count() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn doing(does: &[Does]) -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let (does, note) = (does.to_vec(), asked.clone());
    let address = endpoint(move |request, respond| {
        let (does, note) = (does.clone(), note.clone());
        async move {
            let Ok((body, _)) = read(request.into_body()).await else { return };
            let n = {
                let mut asked = note.0.lock().expect("not poisoned");
                asked.push(body);
                asked.len() - 1
            };
            act(does[n.min(does.len() - 1)], respond).await;
        }
    })
    .await;
    (address, asked)
}

async fn act(does: Does, mut respond: SendResponse<Bytes>) {
    let status = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static(value));
        headers
    };
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    match does {
        Does::Says(code) => {
            let Ok(mut back) = respond.send_response(response, false) else { return };
            let _ = back.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false);
            let _ = back.send_trailers(status(code));
        }
        Does::Ends(code) => {
            response.headers_mut().extend(status(code));
            let _ = respond.send_response(response, true);
        }
        Does::Resets => respond.send_reset(Code::INTERNAL_ERROR),
        Does::Status(code) => {
            *response.status_mut() = StatusCode::from_u16(code).expect("a status");
            let Ok(mut back) = respond.send_response(response, false) else { return };
            let _ = back.send_data(Bytes::from_static(b"said"), true);
        }
        Does::Hangs => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    }
}

/// What a gRPC caller gets: the status, wherever it stands, the reason if Sluice made it up, and the bytes before it.
async fn call(caller: &mut client::SendRequest<Bytes>) -> Result<(String, String, Vec<u8>), h2::Error> {
    let (response, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    up.send_data(Bytes::from_static(b"\0\0\0\0\x05money"), true).expect("it takes a message");
    let response = soon(response).await?;
    assert_eq!(response.status(), 200);
    let head = response.headers().clone();
    let (body, trailers) = read(response.into_body()).await?;
    let trailers = trailers.unwrap_or_default();
    let of = |name| if head.contains_key(name) { header(&head, name) } else { header(&trailers, name) };
    Ok((of("grpc-status").to_owned(), of("x-sluice-reason").to_owned(), body))
}

fn breaker(open_duration: Duration) -> Policy {
    let circuit_breaker = Some(CircuitBreaker {
        interval: HOUR,
        minimum_requests: 3,
        error_percent: Some(100.0),
        open_duration,
        ..CircuitBreaker::default()
    });
    Policy { name: Some("shop/orders".into()), circuit_breaker, ..Policy::default() }
}

fn retrying(post: bool) -> Policy {
    let mut retry =
        Retry { attempts: 3, backoff_base: Duration::ZERO, backoff_max: Duration::ZERO, ..Retry::default() };
    if post {
        retry.methods.push(http::Method::POST);
    }
    Policy { retry: Some(retry), ..Policy::default() }
}

fn falling_back(on: FallbackOn, action: FallbackAction) -> Policy {
    let fallback = Fallback { name: "spare".into(), on: vec![on], action };
    Policy { fallbacks: vec![Arc::new(fallback)], ..Policy::default() }
}

fn fixed(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> FallbackAction {
    let header = |(name, value): &(&'static str, &'static str)| {
        (http::HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let headers = headers.iter().map(header).collect();
    FallbackAction::Static(StaticAnswer { status, headers, body: Bytes::from_static(body.as_bytes()) })
}

#[tokio::test]
async fn a_grpc_service_that_fails_is_broken_off_wherever_its_status_stands() {
    for does in [Does::Says("13"), Does::Ends("14"), Does::Resets] {
        let (address, asked) = doing(&[does]).await;
        let bed = governed(address, breaker(HOUR));
        let mut caller = bed.caller().await;
        for _ in 0..3 {
            match call(&mut caller).await {
                Ok((_, reason, _)) => assert_ne!(reason, "circuit_open", "{does:?}"),
                Err(error) => assert!(does == Does::Resets, "{error}"),
            }
        }
        let (status, reason, body) = call(&mut caller).await.expect("it is told");
        assert_eq!((status.as_str(), reason.as_str(), body.len()), ("14", "circuit_open", 0), "{does:?}");
        assert_eq!(asked.count(), 3);
    }
}

#[tokio::test]
async fn a_grpc_status_that_blames_the_caller_breaks_nothing_off() {
    let (address, asked) = doing(&[Does::Says("5"), Does::Ends("3"), Does::Ends("8"), Does::Says("0")]).await;
    let mut policy = breaker(HOUR);
    if let Some(breaker) = &mut policy.circuit_breaker {
        breaker.error_percent = Some(0.001);
    }
    let bed = governed(address, policy);
    let mut caller = bed.caller().await;
    for n in 0..10 {
        let (_, reason, _) = call(&mut caller).await.expect("it answers");
        assert_eq!(reason, "", "{n}");
    }
    assert_eq!(asked.count(), 10);
}

#[tokio::test]
async fn a_probe_that_is_reset_gives_its_slot_back() {
    let (address, asked) =
        doing(&[Does::Ends("14"), Does::Ends("14"), Does::Ends("14"), Does::Hangs, Does::Says("0")]).await;
    let bed = governed(address, breaker(HOUR));
    let mut caller = bed.caller().await;
    for _ in 0..3 {
        call(&mut caller).await.expect("it answers");
    }
    govern(&bed, address, breaker(Duration::from_nanos(1)));
    let (probe, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    up.send_data(Bytes::new(), true).expect("it takes a message");
    asked.reaches(4).await;
    govern(&bed, address, breaker(HOUR));
    assert_eq!(call(&mut caller).await.expect("it is told").1, "circuit_open");
    up.send_reset(Code::CANCEL);
    drop(probe);
    soon(async {
        while call(&mut caller).await.expect("it answers").0 != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(asked.count(), 5);
}

#[tokio::test]
async fn a_grpc_call_is_sent_again_only_where_post_may_be() {
    for (first, status) in
        [(Does::Ends("14"), Some("14")), (Does::Resets, None), (Does::Status(503), Some(""))]
    {
        let (address, asked) = doing(&[first, Does::Says("0")]).await;
        let bed = governed(address, retrying(false));
        let mut caller = bed.caller().await;
        if first != Does::Status(503) {
            let answered = call(&mut caller).await;
            assert_eq!(answered.ok().map(|(status, ..)| status).as_deref(), status, "{first:?}");
            assert_eq!(asked.count(), 1, "{first:?}: nothing is paid for twice");
        }

        let (address, asked) = doing(&[first, Does::Says("0")]).await;
        let bed = governed(address, retrying(true));
        let mut caller = bed.caller().await;
        let (status, _, body) = call(&mut caller).await.expect("it is tried again");
        assert_eq!((status.as_str(), &*body), ("0", &b"\0\0\0\0\x02hi"[..]), "{first:?}");
        assert_eq!(asked.bodies(), [b"\0\0\0\0\x05money"; 2], "{first:?}");
    }
}

#[tokio::test]
async fn an_answer_whose_head_was_passed_on_is_not_begun_again() {
    let (address, asked) = doing(&[Does::Says("14"), Does::Says("0")]).await;
    let bed = governed(address, retrying(true));
    let mut caller = bed.caller().await;
    let (status, _, body) = call(&mut caller).await.expect("it answers");
    assert_eq!((status.as_str(), &*body), ("14", &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(asked.count(), 1);
}

#[tokio::test]
async fn a_fallback_for_grpc_is_a_grpc_answer() {
    let server_error = |action| falling_back(FallbackOn::ServerError, action);
    for (does, action, expected) in [
        (Does::Ends("14"), fixed(200, &[("grpc-status", "0")], ""), ("0", &b"\0\0\0\0\0"[..])),
        (Does::Ends("13"), fixed(503, &[], "{}"), ("14", b"")),
        (Does::Ends("13"), fixed(200, &[("grpc-status", "8"), ("grpc-message", "later")], "x"), ("8", b"")),
        // The service answered with a status that is not its failure.
        (Does::Ends("5"), fixed(200, &[("grpc-status", "0")], ""), ("5", b"")),
    ] {
        let (address, _) = doing(&[does]).await;
        let bed = governed(address, server_error(action));
        let mut caller = bed.caller().await;
        let (status, reason, body) = call(&mut caller).await.expect("it answers");
        assert_eq!((status.as_str(), &*body), expected);
        assert_eq!(reason, if does == Does::Ends("5") { "" } else { "upstream_error" });
    }
}

#[tokio::test]
async fn a_stale_answer_over_http2_says_its_age() {
    let (address, _) = doing(&[Does::Status(200), Does::Status(500)]).await;
    let bounds = StaleBounds { max_age: HOUR, max_bytes: 1 << 20 };
    let bed = governed(address, falling_back(FallbackOn::ServerError, FallbackAction::Stale(bounds.into())));
    let mut caller = bed.caller().await;
    let fresh = ask(&mut caller, get()).await;
    assert!(fresh.status() == 200 && !fresh.headers().contains_key("age"));
    assert_eq!(read(fresh.into_body()).await.expect("it is whole").0, b"said");
    let stale = ask(&mut caller, get()).await;
    assert_eq!(stale.status(), 200);
    assert_eq!(header(stale.headers(), "x-sluice-reason"), "upstream_error");
    assert!(header(stale.headers(), "age").parse::<u32>().is_ok());
    assert_eq!(read(stale.into_body()).await.expect("it is whole").0, b"said");
    // Nobody else's.
    let mut other = get();
    other.headers_mut().insert("authorization", HeaderValue::from_static("Bearer other"));
    assert_eq!(ask(&mut caller, other).await.status(), 500);
}
