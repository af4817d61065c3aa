//! Callers and endpoints of our own, on loopback, with the real workers between them.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use h2::{Reason as Code, client, server};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    cluster::model::{Protocol, Service, Snapshot, Workload},
    govern::{
        endpoint::{Endpoint, Load},
        lane::TagNames,
        tag::Tag,
    },
    observe::{access_log::AccessLog, metrics::Metrics},
    proxy::{Network, OpenPod, Options, Pod, Proxy},
};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(LIMIT, what).await.expect("it takes no half minute")
}

const SERVICE: &str = "10.96.0.1:80";

/// A pod whose every connection was meant for [`SERVICE`].
struct Loopback;

impl Network for Loopback {
    fn original_destination(&self, _: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        Ok(Some(SERVICE.parse().expect("an address")))
    }

    fn socket(&self, to: SocketAddr) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(to),
            socket2::Type::STREAM.nonblocking(),
            None,
        )?;
        Ok(socket)
    }
}

/// A proxy with one pod and one service.
struct Bed {
    proxy: Proxy,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    open: Option<OpenPod>,
}

/// Endpoints by tag; `None` is baseline.
fn bed(endpoints: &[(SocketAddr, Option<&str>)]) -> Bed {
    bed_with(endpoints, 100)
}

fn bed_with(endpoints: &[(SocketAddr, Option<&str>)], connections_per_pod: usize) -> Bed {
    let parse = |tag: &str| tag.parse::<Tag>().expect("a tag");
    let all: Vec<_> = endpoints
        .iter()
        .map(|(address, tag)| {
            Arc::new(Endpoint {
                address: *address,
                tag: tag.map(parse),
                ready: true,
                serving: true,
                terminating: false,
                zone: None,
                node: None,
                pod: None,
                load: Arc::new(Load::default()),
            })
        })
        .collect();
    let mut lanes: BTreeMap<Tag, Vec<_>> = BTreeMap::new();
    for endpoint in &all {
        if let Some(tag) = &endpoint.tag {
            lanes.entry(tag.clone()).or_default().push(endpoint.clone());
        }
    }
    let service = Service {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 80,
        port_name: None,
        protocol: Protocol::Http2,
        baseline: all.iter().filter(|endpoint| endpoint.tag.is_none()).cloned().collect(),
        endpoints: all,
        lanes,
        session_affinity: false,
    };
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    let destination = Destination { service: Arc::new(service), pinned: None };
    snapshot.destinations.insert(SERVICE.parse().expect("an address"), destination);
    let metrics = Arc::new(Metrics::new());
    let options = Options {
        workers: 1,
        current: Arc::new(ArcSwap::from_pointee(snapshot)),
        metrics: metrics.clone(),
        access_log: AccessLog::off(),
        tag_names: Arc::new(TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).expect("a name")),
        connections_per_pod,
        idle_grace: Duration::ZERO,
    };
    let proxy = Proxy::start(&options).expect("threads can be started");
    let pod = Pod {
        workload: ArcSwap::from_pointee(Workload {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: "gateway".into(),
            tag: None,
            ips: vec![],
            node: None,
            zone: None,
            host_network: false,
            capture: true,
            terminating: false,
            finished: false,
        }),
        network: Arc::new(Loopback),
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    let open = Some(proxy.open(&Arc::new(pod), vec![listener]));
    Bed { proxy, address, metrics, open }
}

impl Bed {
    async fn caller(&self) -> client::SendRequest<Bytes> {
        self.caller_with(&client::Builder::new()).await
    }

    async fn caller_with(&self, builder: &client::Builder) -> client::SendRequest<Bytes> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let (sender, connection) = builder.handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        sender
    }

    /// Waits until a metric line with all these parts has a value that passes.
    async fn metric(&self, parts: &[&str], passes: impl Fn(u64) -> bool) {
        soon(async {
            loop {
                let text = self.metrics.render().expect("it can be rendered");
                let lines = text
                    .lines()
                    .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
                let mut values = lines.map(|line| line.rsplit(' ').next().and_then(|v| v.parse().ok()));
                if values.next().flatten().is_some_and(&passes) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An endpoint that answers each stream with `answer`, one task each.
async fn endpoint<A, F>(answer: A) -> SocketAddr
where
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    endpoint_with(server::Builder::new(), answer).await
}

async fn endpoint_with<A, F>(builder: server::Builder, answer: A) -> SocketAddr
where
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, builder) = (answer.clone(), builder.clone());
            tokio::spawn(async move {
                let Ok(mut streams) = builder.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = streams.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    address
}

/// An endpoint that answers 200 with its name in a header and nothing else.
async fn named(name: &'static str) -> SocketAddr {
    endpoint(move |request, mut respond| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("x-name", HeaderValue::from_static(name));
        for carrier in ["x-mse-tag", "baggage", "host"] {
            for value in request.headers().get_all(carrier) {
                response.headers_mut().append(
                    format!("seen-{carrier}").parse::<http::HeaderName>().expect("a name"),
                    value.clone(),
                );
            }
        }
        let _ = respond.send_response(response, true);
    })
    .await
}

fn get() -> Request<()> {
    Request::get("http://orders.shop/things?a=b").body(()).expect("a request")
}

fn post(media_type: &'static str) -> Request<()> {
    Request::post("http://orders.shop/things").header("content-type", media_type).body(()).expect("a request")
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    listener.local_addr().expect("bound")
}

async fn ask(caller: &mut client::SendRequest<Bytes>, request: Request<()>) -> Response<RecvStream> {
    let (response, _) = caller.send_request(request, true).expect("it takes requests");
    soon(response).await.expect("it answers")
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((bytes, soon(body.trailers()).await?))
}

/// Echoes a body and its trailers, with as little held as can be.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
    while let Some(Ok(mut data)) = body.data().await {
        while !data.is_empty() {
            back.reserve_capacity(data.len());
            let Some(Ok(room)) = poll_fn(|cx| back.poll_capacity(cx)).await else { return };
            let part = data.split_to(room.min(data.len()));
            let _ = body.flow_control().release_capacity(part.len());
            back.send_data(part, false).expect("the caller is there");
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => back.send_trailers(trailers).expect("the caller is there"),
        _ => back.send_data(Bytes::new(), true).expect("the caller is there"),
    }
}

#[tokio::test]
async fn requests_go_to_their_lane_with_the_tag_in_both_places() {
    let (base, gray) = (named("base").await, named("gray").await);
    let bed = bed(&[(base, None), (gray, Some("gray"))]);
    let mut caller = bed.caller().await;

    let plain = ask(&mut caller, get()).await;
    assert_eq!(header(plain.headers(), "x-name"), "base");
    assert!(plain.headers().get("seen-x-mse-tag").is_none());

    let mut tagged = get();
    tagged.headers_mut().insert("x-mse-tag", HeaderValue::from_static("gray"));
    tagged.headers_mut().append("baggage", HeaderValue::from_static("a=%20 "));
    tagged.headers_mut().append("baggage", HeaderValue::from_static("b=2;p"));
    let answer = ask(&mut caller, tagged).await;
    assert_eq!(header(answer.headers(), "x-name"), "gray");
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "gray");
    assert_eq!(header(answer.headers(), "seen-baggage"), "a=%20 ,b=2;p,x-mse-tag=gray");

    let mut carried = get();
    carried.headers_mut().insert("baggage", HeaderValue::from_static("x-mse-tag=gray"));
    let answer = ask(&mut caller, carried).await;
    assert_eq!(header(answer.headers(), "x-name"), "gray");
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "gray");
    assert_eq!(header(answer.headers(), "seen-baggage"), "x-mse-tag=gray");

    let mut other = get();
    other.headers_mut().insert("x-mse-tag", HeaderValue::from_static("blue"));
    let answer = ask(&mut caller, other).await;
    assert_eq!(header(answer.headers(), "x-name"), "base");
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "blue", "it keeps its tag");
    bed.metric(&["sluice_tags_total", "routed"], |value| value == 2).await;
    bed.metric(&["sluice_tags_total", "fell_back"], |value| value == 1).await;
    bed.metric(&["sluice_requests_total", "destination_lane=\"gray\"", "2xx"], |value| value == 2).await;
}

#[tokio::test]
async fn a_request_without_authority_is_passed_on_as_it_is() {
    let bed = bed(&[(named("base").await, None)]);
    let mut caller = bed.caller().await;
    let mut request = Request::get("/things").version(http::Version::HTTP_11).body(()).expect("a request");
    request.headers_mut().insert("host", HeaderValue::from_static("orders.shop"));
    assert_eq!(header(ask(&mut caller, request).await.headers(), "seen-host"), "orders.shop");
}

#[tokio::test]
async fn each_stream_is_balanced_by_itself() {
    let bed = bed(&[(named("one").await, None), (named("two").await, None)]);
    let mut caller = bed.caller().await;
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..200 {
        names.insert(header(ask(&mut caller, get()).await.headers(), "x-name").to_owned());
    }
    assert_eq!(names.len(), 2);
    bed.metric(&["sluice_connections_open", "endpoint"], |value| value == 2).await;
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_while_both_are_under_way() {
    let bed = bed(&[(endpoint(echo).await, None)]);
    let mut caller = bed.caller().await;
    let (response, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    // The answer begins before the request has ended, and each message comes back before the next is sent.
    let mut down = soon(response).await.expect("it answers").into_body();
    for turn in 0..10_u8 {
        up.send_data(vec![turn; 100].into(), false).expect("it takes data");
        let data = soon(down.data()).await.expect("more").expect("data");
        assert_eq!(data, vec![turn; 100]);
        down.flow_control().release_capacity(data.len()).expect("an open stream");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    up.send_trailers(trailers.clone()).expect("it takes trailers");
    let (rest, back) = read(down).await.expect("a whole answer");
    assert!(rest.is_empty());
    assert_eq!(back, Some(trailers));
    bed.metric(&["sluice_bytes_total", "request\""], |value| value == 1000).await;
    bed.metric(&["sluice_bytes_total", "response\""], |value| value == 1000).await;
}

#[tokio::test]
async fn megabytes_pass_byte_for_byte_and_many_at_once() {
    const LENGTH: usize = 2 << 20;
    let bed = bed(&[(endpoint(echo).await, None)]);
    let mut caller = bed.caller().await;
    let mut streams = Vec::new();
    for stream in 0..8_usize {
        let (response, mut up) = caller.send_request(post("text/plain"), false).expect("it takes requests");
        let sent: Vec<u8> = (0..LENGTH).map(|n| (n.wrapping_mul(31) >> 3) as u8 ^ stream as u8).collect();
        let mut rest = Bytes::from(sent.clone());
        tokio::spawn(async move {
            while !rest.is_empty() {
                up.reserve_capacity(rest.len());
                let Some(Ok(room)) = poll_fn(|cx| up.poll_capacity(cx)).await else { return };
                let part = rest.split_to(room.min(rest.len()));
                up.send_data(part, rest.is_empty()).expect("it takes data");
            }
        });
        streams.push(tokio::spawn(async move {
            let (bytes, _) =
                read(soon(response).await.expect("it answers").into_body()).await.expect("whole");
            assert!(bytes == sent, "stream {stream}");
        }));
    }
    for stream in streams {
        stream.await.expect("no stream differs");
    }
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_holds_its_sender_back_and_nobody_else() {
    let passed = Arc::new(AtomicUsize::new(0));
    let counter = passed.clone();
    let big = endpoint(move |request, mut respond| {
        let counter = counter.clone();
        async move {
            if request.uri().path() != "/big" {
                let _ = respond.send_response(Response::new(()), true);
                return;
            }
            let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
            loop {
                back.reserve_capacity(16_384);
                let Some(Ok(room)) = poll_fn(|cx| back.poll_capacity(cx)).await else { return };
                counter.fetch_add(room, Ordering::Relaxed);
                back.send_data(vec![0; room].into(), false).expect("the caller is there");
            }
        }
    })
    .await;
    let bed = bed(&[(big, None)]);
    let mut caller = bed.caller().await;
    let request = Request::get("http://orders.shop/big").body(()).expect("a request");
    let (response, _up) = caller.send_request(request, true).expect("it takes requests");
    let stuck = soon(response).await.expect("it answers").into_body();
    // Until the sender stands still: then other streams still pass, on both connections.
    let mut last = usize::MAX;
    while last != passed.load(Ordering::Relaxed) {
        last = passed.load(Ordering::Relaxed);
        for _ in 0..50 {
            assert_eq!(ask(&mut caller, get()).await.status(), StatusCode::OK);
        }
    }
    let bound = (STREAM_WINDOW + pool::STREAM_WINDOW) as usize + SEND_BUFFER + 65_536;
    assert!(last <= bound, "{last} bytes were taken from the endpoint");
    drop(stuck);
}

#[tokio::test]
async fn resets_are_carried_over_with_their_codes() {
    let seen = Arc::new(Mutex::new(None));
    let tell = seen.clone();
    let address = endpoint(move |request, mut respond| {
        let tell = tell.clone();
        async move {
            match request.uri().path() {
                "/now" => respond.send_reset(Code::ENHANCE_YOUR_CALM),
                "/later" => {
                    let mut back =
                        respond.send_response(Response::new(()), false).expect("the caller is there");
                    back.send_data(Bytes::from_static(b"half"), false).expect("the caller is there");
                    back.send_reset(Code::INADEQUATE_SECURITY);
                }
                _ => {
                    let code = poll_fn(|cx| respond.poll_reset(cx)).await;
                    *tell.lock().expect("not poisoned") = code.ok();
                }
            }
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let at = |path: &str| Request::get(format!("http://orders.shop{path}")).body(()).expect("a request");

    let (response, _) = caller.send_request(at("/now"), true).expect("it takes requests");
    let error = soon(response).await.expect_err("a reset");
    assert_eq!(error.reason(), Some(Code::ENHANCE_YOUR_CALM));

    let (response, _) = caller.send_request(at("/later"), true).expect("it takes requests");
    let error = match soon(response).await {
        Ok(response) => read(response.into_body()).await.expect_err("a reset"),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Some(Code::INADEQUATE_SECURITY));

    let (response, mut up) = caller.send_request(at("/never"), false).expect("it takes requests");
    bed.metric(&["sluice_requests_in_flight", "baseline"], |value| value == 1).await;
    up.send_reset(Code::NO_ERROR);
    soon(async {
        while *seen.lock().expect("not poisoned") != Some(Code::NO_ERROR) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(response);
    bed.metric(&["sluice_requests_in_flight", "baseline"], |value| value == 0).await;
    bed.metric(&["sluice_requests_total", "caller_closed"], |value| value == 1).await;
    bed.metric(&["sluice_requests_total", "upstream_reset", "none"], |value| value >= 1).await;
}

#[tokio::test]
async fn a_caller_that_leaves_takes_its_requests_along() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = gone.clone();
    let address = endpoint(move |_, mut respond| {
        let count = count.clone();
        async move {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let stream = TcpStream::connect(bed.address).await.expect("it listens");
    let (mut caller, connection) = client::handshake(stream).await.expect("it speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let waiting: Vec<_> =
        (0..10).map(|_| caller.send_request(get(), true).expect("it takes requests")).collect();
    bed.metric(&["sluice_requests_in_flight", "baseline"], |value| value == 10).await;
    driver.abort();
    soon(async {
        while gone.load(Ordering::Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(waiting);
    bed.metric(&["sluice_requests_in_flight", "baseline"], |value| value == 0).await;
}

#[tokio::test]
async fn made_up_answers_say_why_in_the_words_of_their_caller() {
    let bed = bed(&[(nobody(), None)]);
    let mut caller = bed.caller().await;
    let answer = ask(&mut caller, get()).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "upstream_connect");
    let (body, _) = read(answer.into_body()).await.expect("a whole answer");
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["reason"], "upstream_connect");

    let head = Request::head("http://orders.shop/").body(()).expect("a request");
    let answer = ask(&mut caller, head).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.body().is_end_stream());

    // With its request still under way.
    let (response, _up) =
        caller.send_request(post("application/grpc+proto"), false).expect("it takes requests");
    let answer = soon(response).await.expect("it answers");
    assert_eq!(answer.status(), 200);
    assert_eq!(header(answer.headers(), "grpc-status"), "14");
    assert_eq!(header(answer.headers(), "content-type"), "application/grpc");
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "upstream_connect");
    assert!(answer.body().is_end_stream());
    bed.metric(&["sluice_requests_total", "upstream_connect", "5xx"], |value| value == 2).await;
    bed.metric(&["sluice_requests_total", "upstream_connect", "2xx"], |value| value == 1).await;
}

#[tokio::test]
async fn without_endpoints_the_reason_is_no_endpoint() {
    let bed = bed(&[]);
    let mut caller = bed.caller().await;
    let mut tagged = get();
    tagged.headers_mut().insert("x-mse-tag", HeaderValue::from_static("gray"));
    let answer = ask(&mut caller, tagged).await;
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "no_endpoint");
    bed.metric(&["sluice_tags_total", "refused"], |value| value == 1).await;
}

#[tokio::test]
async fn a_refused_connection_is_tried_on_another_endpoint_whatever_the_method() {
    let bed = bed(&[(nobody(), None), (named("there").await, None)]);
    let mut caller = bed.caller().await;
    for _ in 0..50 {
        let answer = ask(&mut caller, post("text/plain")).await;
        assert_eq!(header(answer.headers(), "x-name"), "there");
    }
    bed.metric(&["sluice_retries_total", "connect_refused"], |value| value >= 1).await;
}

/// An endpoint that reads each request to its end and then refuses it.
async fn refusing(refused: Arc<AtomicUsize>) -> SocketAddr {
    endpoint(move |request, mut respond| {
        let refused = refused.clone();
        async move {
            let _ = read(request.into_body()).await;
            refused.fetch_add(1, Ordering::Relaxed);
            respond.send_reset(Code::REFUSED_STREAM);
        }
    })
    .await
}

#[tokio::test]
async fn a_refused_stream_is_sent_whole_to_another_endpoint() {
    let refused = Arc::new(AtomicUsize::new(0));
    let bed = bed(&[(refusing(refused.clone()).await, None), (endpoint(echo).await, None)]);
    let mut caller = bed.caller().await;
    let mut expected = 0;
    while expected == 0 {
        let (response, mut up) =
            caller.send_request(post("application/grpc"), false).expect("it takes requests");
        up.send_data(Bytes::from_static(b"one "), false).expect("it takes data");
        up.send_data(Bytes::from_static(b"two"), true).expect("it takes data");
        let answer = soon(response).await.expect("the other one answers");
        assert_eq!(read(answer.into_body()).await.expect("whole").0, b"one two");
        expected = refused.load(Ordering::Relaxed);
    }
    bed.metric(&["sluice_retries_total", "stream_refused"], |value| value >= 1).await;
}

#[tokio::test]
async fn a_refused_stream_without_another_endpoint_is_refused_to_the_caller() {
    let refused = Arc::new(AtomicUsize::new(0));
    let bed = bed(&[(refusing(refused.clone()).await, None)]);
    let mut caller = bed.caller().await;
    let (response, _) = caller.send_request(get(), true).expect("it takes requests");
    assert_eq!(soon(response).await.expect_err("refused").reason(), Some(Code::REFUSED_STREAM));
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_request_that_was_too_long_to_keep_is_not_sent_again() {
    let refused = Arc::new(AtomicUsize::new(0));
    let first = refusing(refused.clone()).await;
    let bed = bed(&[(first, None), (refusing(refused.clone()).await, None)]);
    let mut caller = bed.caller().await;
    let (response, mut up) = caller.send_request(post("text/plain"), false).expect("it takes requests");
    let mut rest = Bytes::from(vec![7; 100_000]);
    while !rest.is_empty() {
        up.reserve_capacity(rest.len());
        let room = soon(poll_fn(|cx| up.poll_capacity(cx))).await.expect("open").expect("open");
        let part = rest.split_to(room.min(rest.len()));
        up.send_data(part, rest.is_empty()).expect("it takes data");
    }
    assert_eq!(soon(response).await.expect_err("refused").reason(), Some(Code::REFUSED_STREAM));
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_pooled_connection_that_its_endpoint_closed_is_no_error_for_what_can_be_repeated() {
    // Each connection answers one request and is closed without a word when the next one comes.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut streams = server::handshake(stream).await.expect("it speaks HTTP/2");
            if let Some(Ok((_, mut respond))) = streams.accept().await {
                let _: Result<_, h2::Error> = respond.send_response(Response::new(()), true);
            }
            let _ = streams.accept().await;
        }
    });
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    assert_eq!(ask(&mut caller, get()).await.status(), 200);
    assert_eq!(ask(&mut caller, get()).await.status(), 200, "sent again over a new connection");
    assert_eq!(ask(&mut caller, post("text/plain")).await.status(), 502, "it may have been processed");
    bed.metric(&["sluice_retries_total", "stale_connection"], |value| value == 1).await;
}

#[tokio::test]
async fn a_pod_that_asks_for_more_than_its_share_is_told_so() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let address = endpoint(move |_, mut respond| {
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            let _ = respond.send_response(Response::new(()), true);
        }
    })
    .await;
    // One connection, so four requests.
    let bed = bed_with(&[(address, None)], 1);
    let mut caller = bed.caller().await;
    let waiting: Vec<_> =
        (0..4).map(|_| caller.send_request(get(), true).expect("it takes requests").0).collect();
    let answer = ask(&mut caller, get()).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "overloaded");
    open.send(true).expect("somebody waits");
    for response in waiting {
        assert_eq!(soon(response).await.expect("it answers").status(), 200);
    }
    assert_eq!(ask(&mut caller, get()).await.status(), 200, "there is room again");
}

#[tokio::test]
async fn an_endpoint_that_sends_its_callers_away_loses_none_of_their_requests() {
    // Each connection takes three streams, then says that it takes no more.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut streams = server::handshake(stream).await.expect("it speaks HTTP/2");
                let mut taken = 0;
                while let Some(Ok((_, mut respond))) = streams.accept().await {
                    taken += 1;
                    if taken == 3 {
                        streams.graceful_shutdown();
                    }
                    let _: Result<_, h2::Error> = respond.send_response(Response::new(()), true);
                }
            });
        }
    });
    let bed = bed(&[(address, None)]);
    let caller = bed.caller().await;
    let asking: Vec<_> = (0..5)
        .map(|_| {
            let mut caller = caller.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    assert_eq!(ask(&mut caller, post("application/grpc")).await.status(), 200);
                }
            })
        })
        .collect();
    for task in asking {
        task.await.expect("every request is answered by the endpoint");
    }
    assert!(connections.load(Ordering::Relaxed) > 5);
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_is_told_and_one_lost_later_breaks_it_off() {
    // Speaks just enough: takes a request, maybe answers its head, and is gone.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut streams = server::handshake(stream).await.expect("it speaks HTTP/2");
            let Some(Ok((request, mut respond))) = streams.accept().await else { continue };
            if request.uri().path() == "/half" {
                let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
                back.send_data(Bytes::from_static(b"half"), false).expect("the caller is there");
                // Until it is written.
                let _ = timeout(Duration::from_millis(50), poll_fn(|cx| streams.poll_closed(cx))).await;
            }
        }
    });
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let answer = ask(&mut caller, post("text/plain")).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "upstream_reset");

    let half = |media_type| {
        Request::post("http://orders.shop/half")
            .header("content-type", media_type)
            .body(())
            .expect("a request")
    };
    let answer = ask(&mut caller, half("text/plain")).await;
    assert_eq!(read(answer.into_body()).await.expect_err("broken off").reason(), Some(Code::INTERNAL_ERROR));
    let answer = ask(&mut caller, half("application/grpc")).await;
    let (body, trailers) = read(answer.into_body()).await.expect("an end that says why");
    assert_eq!(body, b"half");
    assert_eq!(header(&trailers.expect("trailers"), "grpc-status"), "14");
}

#[tokio::test]
async fn an_endpoint_that_speaks_no_http2_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 24];
            let _ = stream.read_exact(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let answer = ask(&mut caller, get()).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "upstream_protocol");
}

#[tokio::test]
async fn an_early_answer_ends_the_request_without_an_error() {
    let address = endpoint(|_, mut respond| async move {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        let _ = respond.send_response(response, true);
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let (response, mut up) = caller.send_request(post("text/plain"), false).expect("it takes requests");
    let _ = up.send_data(vec![0; 60_000].into(), false);
    assert_eq!(soon(response).await.expect("it answers").status(), 413);
    let code = soon(poll_fn(|cx| up.poll_reset(cx))).await.expect("it is told to stop");
    assert_eq!(code, Code::NO_ERROR);
}

#[tokio::test]
async fn interim_answers_are_passed_on() {
    let address = endpoint(|request, mut respond| async move {
        let mut interim = Response::new(());
        *interim.status_mut() = StatusCode::CONTINUE;
        respond.send_informational(interim).expect("the caller is there");
        let (body, _) = read(request.into_body()).await.expect("a whole request");
        let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
        back.send_data(body.into(), true).expect("the caller is there");
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let mut request = post("text/plain");
    request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
    let (mut response, mut up) = caller.send_request(request, false).expect("it takes requests");
    let interim = soon(poll_fn(|cx| response.poll_informational(cx))).await.expect("one").expect("no error");
    assert_eq!(interim.status(), 100);
    up.send_data(Bytes::from_static(b"body"), true).expect("it takes data");
    let answer = soon(response).await.expect("it answers");
    assert_eq!(read(answer.into_body()).await.expect("whole").0, b"body");
}

#[tokio::test]
async fn more_streams_than_an_endpoint_takes_go_over_further_connections() {
    let mut few = server::Builder::new();
    few.max_concurrent_streams(10);
    let started = Arc::new(AtomicUsize::new(0));
    let (count, (open, gate)) = (started.clone(), tokio::sync::watch::channel(false));
    let address = endpoint_with(few, move |_, mut respond| {
        let (count, mut gate) = (count.clone(), gate.clone());
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = gate.wait_for(|open| *open).await;
            let _ = respond.send_response(Response::new(()), true);
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    // The first tells the limit.
    open.send(true).expect("somebody waits");
    ask(&mut caller, get()).await;
    open.send(false).expect("somebody waits");
    let waiting: Vec<_> =
        (0..35).map(|_| caller.send_request(get(), true).expect("it takes requests").0).collect();
    soon(async {
        while started.load(Ordering::Relaxed) < 36 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bed.metric(&["sluice_connections_open", "endpoint"], |value| value >= 4).await;
    open.send(true).expect("somebody waits");
    for response in waiting {
        assert_eq!(soon(response).await.expect("it answers").status(), 200);
    }
}

#[tokio::test]
async fn draining_lets_streams_end_and_sends_new_ones_elsewhere() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let address = endpoint(move |_, mut respond| {
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            let _ = respond.send_response(Response::new(()), true);
        }
    })
    .await;
    let mut bed = bed(&[(address, None)]);
    let stream = TcpStream::connect(bed.address).await.expect("it listens");
    let (mut caller, connection) = client::handshake(stream).await.expect("it speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let (response, _) = caller.send_request(get(), true).expect("it takes requests");
    bed.metric(&["sluice_requests_in_flight", "baseline"], |value| value == 1).await;

    let draining = tokio::spawn({
        let proxy = bed.proxy.clone();
        async move { proxy.drain().await }
    });
    // GOAWAY: no new streams.
    soon(async {
        while !matches!(caller.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!draining.is_finished(), "a request is in flight");
    open.send(true).expect("somebody waits");
    assert_eq!(soon(response).await.expect("it is answered").status(), 200);
    soon(draining).await.expect("drained");
    soon(driver).await.expect("no panic").expect("an orderly end");
    bed.open.take();
}

/// Frames written by hand.
mod raw {
    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The preface and empty SETTINGS.
    pub(super) fn hello() -> Vec<u8> {
        [crate::proxy::detect::H2_PREFACE, &frame(4, 0, 0, &[])].concat()
    }

    /// `GET http://a/`, in HPACK's static table and literals.
    pub(super) const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
}

/// Writes what `next` makes until the proxy closes. Returns the code of its GOAWAY.
async fn flood(bed: &Bed, next: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let stream = TcpStream::connect(bed.address).await.expect("it listens");
    let (mut reads, mut writes) = stream.into_split();
    let bytes: Vec<u8> = raw::hello().into_iter().chain((0..50_000).flat_map(next)).collect();
    let writing = tokio::spawn(async move {
        let _ = writes.write_all(&bytes).await;
        // Not closed from this side.
        std::future::pending::<()>().await;
    });
    let mut answer = Vec::new();
    // Ends with an error if the proxy closes while there is more to read for it.
    let _ = soon(reads.read_to_end(&mut answer)).await;
    writing.abort();
    let mut rest = &answer[..];
    let mut code = None;
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        if rest[3] == 7 && rest.len() >= 17 {
            code = Some(u32::from_be_bytes([rest[13], rest[14], rest[15], rest[16]]));
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    code
}

const CALM: Option<u32> = Some(0xb);

#[tokio::test]
async fn floods_end_their_connection_and_nothing_else() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let address = endpoint(move |_, mut respond| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let _ = respond.send_response(Response::new(()), true);
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut other = bed.caller().await;
    ask(&mut other, get()).await;

    // Requests that are given up at once (CVE-2023-44487).
    let code = flood(&bed, |n| {
        let stream = 2 * n + 1;
        [raw::frame(1, 5, stream, raw::GET), raw::frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    })
    .await;
    assert_eq!(code, CALM, "rapid reset");
    assert!(asked.load(Ordering::Relaxed) < 5000, "{} of 50000 came through", asked.load(Ordering::Relaxed));

    // A head that never ends (CVE-2024-27316).
    let code = flood(&bed, |n| match n {
        0 => raw::frame(1, 1, 1, raw::GET),
        _ => raw::frame(9, 0, 1, &[0x40, 0x01, b'x', 0x01, b'y'].repeat(100)),
    })
    .await;
    assert_eq!(code, CALM, "continuation");

    // Frames that carry nothing.
    let code = flood(&bed, |n| match n {
        0 => raw::frame(1, 4, 1, &[&[0x83], &raw::GET[1..]].concat()),
        _ => raw::frame(0, 0, 1, &[]),
    })
    .await;
    assert_eq!(code, CALM, "empty data");

    // Data for a stream that was never opened: PROTOCOL_ERROR.
    assert_eq!(flood(&bed, |_| raw::frame(0, 0, 99, b"?")).await, Some(1), "data for an idle stream");

    assert_eq!(ask(&mut other, get()).await.status(), 200, "others go on");
}

#[tokio::test]
async fn questions_whose_answers_nobody_reads_are_not_heaped_up() {
    let bed = bed(&[(named("base").await, None)]);
    let ping = raw::frame(6, 0, 0, &[7; 8]).repeat(1000);
    let settings = raw::frame(4, 0, 0, &[]).repeat(1000);
    for question in [ping, settings] {
        let stream = TcpStream::connect(bed.address).await.expect("it listens");
        stream.writable().await.expect("open");
        let mut sent = 0;
        let (_unread, mut writes) = stream.into_split();
        writes.write_all(&raw::hello()).await.expect("it reads");
        // The proxy stops reading when it cannot write; the kernel's buffers fill up and we cannot write either.
        let writes = async {
            loop {
                let written = writes.write(&question[sent % question.len()..]).await;
                sent += written.expect("it is not closed");
                assert!(sent < 64 << 20, "64 MiB were taken without an answer being read");
            }
        };
        assert!(timeout(Duration::from_secs(1), writes).await.is_err(), "it stands still");
        let mut other = bed.caller().await;
        assert_eq!(ask(&mut other, get()).await.status(), 200, "others go on");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_goes_nowhere() {
    let bed = bed(&[(named("base").await, None)]);
    let mut caller = bed.caller().await;
    let mut request = get();
    for n in 0..10 {
        let name: http::HeaderName = format!("x-{n}").parse().expect("a name");
        request.headers_mut().insert(name, HeaderValue::from_str(&"v".repeat(8000)).expect("a value"));
    }
    let (response, _) = caller.send_request(request, true).expect("it takes requests");
    match soon(response).await {
        Ok(answer) => assert_eq!(answer.status(), 431),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(header(ask(&mut caller, get()).await.headers(), "x-name"), "base", "the connection goes on");
}
