//! Which endpoint a request goes to, and what its caller is told if there is none.

use super::*;

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
    // Each answered request is divided into the endpoint's time and what was added.
    bed.metric(&["sluice_upstream_duration_seconds_count"], |value| value == 4).await;
    bed.metric(&["sluice_added_duration_seconds_count"], |value| value == 4).await;
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
    bed.metric(&["sluice_connections_open", "upstream"], |value| value == 2).await;
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
    bed.metric(&["sluice_tags_total", "rejected"], |value| value == 1).await;
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

#[tokio::test]
async fn what_changes_before_the_first_word_is_known_at_the_first_request() {
    let bed = bed(&[(nobody(), None)]);
    let stream = TcpStream::connect(bed.address).await.expect("it listens");
    bed.metric(&["sluice_connections_open", "client"], |value| value == 1).await;
    bed.current.store(Arc::new(cluster(2, &[(named("there").await, None)])));
    let (mut caller, connection) = client::handshake(stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let answer = ask(&mut caller, get()).await;
    assert_eq!((answer.status(), header(answer.headers(), "x-name")), (StatusCode::OK, "there"));
}

#[tokio::test]
async fn only_the_time_that_an_endpoint_takes_is_held_against_it() {
    let bed = bed(&[(endpoint(echo).await, None)]);
    let known = || {
        let snapshot = bed.current.load();
        let endpoints = &snapshot.destinations[&SERVICE.parse().expect("an address")].service.endpoints;
        endpoints[0].load.cost().typical_nanos().is_some()
    };
    let mut caller = bed.caller().await;
    // A conversation: the endpoint waits for the caller as much as the caller for the endpoint.
    let (response, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    let down = soon(response).await.expect("it answers").into_body();
    up.send_data(Bytes::from_static(b"bye"), true).expect("it takes data");
    assert_eq!(read(down).await.expect("a whole answer").0, b"bye");
    assert!(!known(), "it tells nothing");
    ask(&mut caller, get()).await;
    assert!(known());
}
