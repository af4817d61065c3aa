//! The rules of a policy in the path of a stream.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::govern::{
    governor::Governor,
    policy::{
        Behaviour, CircuitBreaker, Concurrency, Edits, Fallback, FallbackAction, FallbackOn, HeaderEdits,
        LimitKey, Mode, OutlierDetection, Policy, RateLimit, RequestMatch, Retry, Scope, StaleBounds,
        StaticAnswer, StripTags, Timeouts,
    },
};

/// A service with one endpoint and this policy.
pub(super) fn bed_under(address: SocketAddr, policy: Policy) -> Bed {
    let bed = bed(&[(address, None)]);
    let policy = Policy { name: Some("shop/orders".into()), ..policy };
    bed.change(2, &[(address, None)], |service| Service {
        governor: Governor::next(None, Arc::new(policy), 0),
        ..service
    });
    bed
}

/// What becomes of a gRPC request: its HTTP status, and the headers with the trailers behind them.
async fn call(caller: &mut client::SendRequest<Bytes>) -> HeaderMap {
    let (response, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    up.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true).expect("it takes data");
    let (head, body) = soon(response).await.expect("an answer").into_parts();
    assert_eq!(head.status, 200);
    let mut headers = head.headers;
    let (_, trailers) = read(body).await.expect("a whole answer");
    headers.extend(trailers.unwrap_or_default());
    headers
}

/// A gRPC server that answers with this status, in trailers.
async fn grpc(status: impl Fn() -> &'static str + Clone + Send + Sync + 'static) -> SocketAddr {
    endpoint(move |request, mut respond| {
        let status = status();
        async move {
            let _ = read(request.into_body()).await;
            let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(status));
            back.send_trailers(trailers).expect("the caller is there");
        }
    })
    .await
}

fn once_an_hour() -> RateLimit {
    RateLimit {
        name: "rare".into(),
        requests: 1.0,
        interval: Duration::from_secs(3600),
        burst: 1.0,
        behaviour: Behaviour::Reject,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    }
}

#[tokio::test]
async fn a_call_above_the_limit_is_refused_with_the_rule_that_says_so() {
    let policy = Policy { rate_limits: vec![Arc::new(once_an_hour())], ..Policy::default() };
    let bed = bed_under(grpc(|| "0").await, policy);
    let mut caller = bed.caller().await;
    assert_eq!(header(&call(&mut caller).await, "grpc-status"), "0");
    let refused = call(&mut caller).await;
    assert_eq!((header(&refused, "grpc-status"), header(&refused, "x-sluice-reason")), ("8", "rate_limited"));
    assert!(header(&refused, "grpc-message").ends_with("(rule rare of TrafficPolicy shop/orders)"));
    assert!(header(&refused, "retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 3000));
    let answer = ask(&mut caller, get()).await;
    assert_eq!(answer.status(), 429);
    let (body, _) = read(answer.into_body()).await.expect("a body");
    assert!(String::from_utf8_lossy(&body).contains("\"rule\":\"rare\""));
    bed.metric(&["sluice_rate_limit_requests_total", "rejected"], |value| value == 2).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_a_made_up_response_takes_nobody_s_place() {
    let concurrency =
        Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
    let bed = bed_under(named("a").await, Policy { concurrency, ..Policy::default() });
    let mut caller = bed.caller_with(client::Builder::new().initial_window_size(0)).await;
    while !caller.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut unfit = Request::connect("http://orders.shop/socket").body(()).expect("a request");
    unfit.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let unread = ask(&mut caller, unfit).await;
    assert_eq!(unread.status(), 501, "the endpoint does not offer it");
    assert!(!unread.body().is_end_stream(), "its body waits for the window");
    let next = ask(&mut bed.caller().await, get()).await;
    assert_eq!(next.status(), 200, "{:?}", next.headers());
}

#[tokio::test]
async fn headers_are_changed_as_the_policy_says_and_tags_from_outside_taken_out() {
    let name = http::HeaderName::from_static;
    let value = HeaderValue::from_static;
    let headers = HeaderEdits {
        // (The endpoint tells in `seen-host` what it got as `host`, which is nobody's to change.)
        request: Edits { add: vec![(name("baggage"), value("a=1"))], ..Edits::default() },
        response: Edits {
            remove: vec![name("x-name")],
            set: vec![(name("x-set"), value("1"))],
            add: vec![(name("x-set"), value("2"))],
        },
    };
    let strip_tags = Some(StripTags::default());
    let bed = bed_under(named("a").await, Policy { headers, strip_tags, ..Policy::default() });
    let mut caller = bed.caller().await;
    let request = Request::get("http://orders.shop/")
        .header("x-mse-tag", "gray")
        .header("baggage", "b=2,x-mse-tag=gray")
        .body(())
        .expect("a request");
    let answer = ask(&mut caller, request).await;
    let all = |name: &str| {
        let lines = answer.headers().get_all(name).iter().map(|line| line.to_str().expect("text").to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!((all("x-name").len(), all("seen-x-mse-tag").len()), (0, 0));
    assert_eq!(all("x-set"), ["1", "2"]);
    assert_eq!(all("seen-baggage"), ["b=2"], "baggage carries the tag and is not the policy's to change");
}

#[tokio::test]
async fn a_stream_that_is_reset_gives_up_its_turn() {
    let behaviour = Behaviour::Queue { timeout: Duration::from_secs(7200) };
    let rule = RateLimit { behaviour, ..once_an_hour() };
    let policy = Policy { rate_limits: vec![Arc::new(rule)], ..Policy::default() };
    let bed = bed_under(named("a").await, policy);
    let mut caller = bed.caller().await;
    assert_eq!(ask(&mut caller, get()).await.status(), 200);
    let (response, mut up) = caller.send_request(get(), false).expect("it takes requests");
    bed.metric(&["sluice_rate_limit_requests_total", "queued"], |value| value == 1).await;
    up.send_reset(Code::CANCEL);
    drop(response);
    bed.metric(&["sluice_requests_total", "client_closed"], |value| value == 1).await;
}

#[tokio::test]
async fn no_more_streams_are_in_flight_than_may_be() {
    let answers = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = answers.clone();
    let address = endpoint(move |_, mut respond| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.expect("never closed").forget();
            let _ = respond.send_response(Response::new(()), true);
        }
    })
    .await;
    let concurrency =
        Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
    let bed = bed_under(address, Policy { concurrency, ..Policy::default() });
    let mut caller = bed.caller().await;
    let (first, _) = caller.send_request(get(), true).expect("it takes requests");
    bed.metric(&["sluice_concurrency_limit_requests_total", "allowed"], |value| value == 1).await;
    let refused = ask(&mut caller, get()).await;
    assert_eq!(
        (refused.status().as_u16(), header(refused.headers(), "x-sluice-reason")),
        (429, "concurrency_limited")
    );
    answers.add_permits(2);
    assert_eq!(soon(first).await.expect("an answer").status(), 200);
    assert_eq!(ask(&mut caller, get()).await.status(), 200);
}

fn broken_by_two() -> CircuitBreaker {
    CircuitBreaker {
        minimum_requests: 2,
        open_duration: Duration::from_millis(300),
        ..CircuitBreaker::default()
    }
}

#[tokio::test]
async fn a_status_in_trailers_opens_the_breaker_and_probes_close_it() {
    let fails = Arc::new(AtomicBool::new(true));
    let told = fails.clone();
    let address = grpc(move || if told.load(Ordering::Relaxed) { "14" } else { "0" }).await;
    let bed = bed_under(address, Policy { circuit_breaker: Some(broken_by_two()), ..Policy::default() });
    let mut caller = bed.caller().await;
    for _ in 0..2 {
        assert_eq!(header(&call(&mut caller).await, "grpc-status"), "14");
    }
    let refused = call(&mut caller).await;
    assert_eq!(
        (header(&refused, "grpc-status"), header(&refused, "x-sluice-reason")),
        ("14", "circuit_open")
    );
    fails.store(false, Ordering::Relaxed);
    soon(async {
        while header(&call(&mut caller).await, "grpc-status") != "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(header(&call(&mut caller).await, "grpc-status"), "0");
}

#[tokio::test]
async fn time_runs_out_before_and_within_an_answer() {
    let address = endpoint(|request, mut respond| async move {
        if request.uri().path() == "/things" {
            let _ = read(request.into_body()).await;
        } else {
            let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
            back.send_data(Bytes::from_static(b"half"), false).expect("the caller is there");
            let _ = poll_fn(|cx| back.poll_reset(cx)).await;
            return;
        }
        let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await;
    let timeouts = Timeouts { request: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let bed = bed_under(address, Policy { timeouts, ..Policy::default() });
    let mut caller = bed.caller().await;
    let late = call(&mut caller).await;
    assert_eq!((header(&late, "grpc-status"), header(&late, "x-sluice-reason")), ("4", "timeout"));
    assert_eq!(ask(&mut caller, get()).await.status(), 504);
    let begun = Request::post("http://orders.shop/begun");
    let begun = begun.header("content-type", "application/grpc").body(()).expect("a request");
    let (body, trailers) = read(ask(&mut caller, begun).await.into_body()).await.expect("it ends in order");
    assert_eq!(body, b"half");
    assert_eq!(header(&trailers.expect("trailers"), "grpc-status"), "4");
    let begun = Request::get("http://orders.shop/begun").body(()).expect("a request");
    read(ask(&mut caller, begun).await.into_body()).await.expect_err("a broken answer must not look whole");
}

#[tokio::test]
async fn a_callers_shorter_deadline_counts() {
    let address = endpoint(|_, mut respond| async move {
        let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await;
    let timeouts = Timeouts { request: Some(Duration::from_secs(3600)), ..Timeouts::default() };
    let breaker = CircuitBreaker { error_count: Some(1), minimum_requests: 1, ..CircuitBreaker::default() };
    let outliers = OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() };
    let (circuit_breaker, outlier_detection) = (Some(breaker), Some(outliers));
    let bed =
        bed_under(address, Policy { circuit_breaker, outlier_detection, timeouts, ..Policy::default() });
    let mut caller = bed.caller().await;
    for _ in 0..3 {
        let mut request = post("application/grpc");
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("50m"));
        let answer = ask(&mut caller, request).await;
        // And it says nothing of the endpoint: its next one is not refused.
        let reason = header(answer.headers(), "x-sluice-reason");
        assert_eq!((header(answer.headers(), "grpc-status"), reason), ("4", "timeout"));
    }
    bed.metric(&["sluice_attempts_total", "outcome=\"left\""], |value| value == 3).await;
}

#[tokio::test]
async fn a_caller_with_a_deadline_does_not_wait_for_a_turn_that_comes_too_late() {
    let address = named("plain").await;
    let rule = RateLimit {
        name: "slow".into(),
        requests: 1.0,
        interval: Duration::from_secs(60),
        burst: 1.0,
        behaviour: Behaviour::Queue { timeout: Duration::from_secs(600) },
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    };
    let bed = bed_under(address, Policy { rate_limits: vec![Arc::new(rule)], ..Policy::default() });
    let mut caller = bed.caller().await;
    assert_eq!(ask(&mut caller, post("application/grpc")).await.status(), 200);
    let mut request = post("application/grpc");
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("30S"));
    let answer = ask(&mut caller, request).await;
    let reason = header(answer.headers(), "x-sluice-reason");
    assert_eq!((header(answer.headers(), "grpc-status"), reason), ("8", "rate_limited"));
}

#[tokio::test]
async fn a_failure_is_tried_again_with_its_body() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let address = endpoint(move |request, mut respond| {
        let count = count.clone();
        async move {
            let (body, _) = read(request.into_body()).await.expect("a body");
            let mut response = Response::new(());
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
            } else {
                let status = if body == b"\0\0\0\0\x01x" { "0" } else { "3" };
                response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
            }
            let _ = respond.send_response(response, true);
        }
    })
    .await;
    let retry = Retry { methods: vec![http::Method::POST], ..Retry::default() };
    let bed = bed_under(address, Policy { retry: Some(retry), ..Policy::default() });
    let mut caller = bed.caller().await;
    assert_eq!(header(&call(&mut caller).await, "grpc-status"), "0");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    bed.metric(&["sluice_retries_total", "cause=\"status\""], |value| value == 1).await;
}

#[tokio::test]
async fn fallbacks_stand_in() {
    let fails = Arc::new(AtomicBool::new(false));
    let told = fails.clone();
    let address = endpoint(move |_, mut respond| {
        let fails = told.load(Ordering::Relaxed);
        async move {
            let mut response = Response::new(());
            if fails {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
            let mut back = respond.send_response(response, false).expect("the caller is there");
            back.send_data(Bytes::from_static(b"fresh"), true).expect("the caller is there");
        }
    })
    .await;
    let on = vec![FallbackOn::ServerError];
    let bounds = StaleBounds { max_age: Duration::from_secs(60), max_bytes: 10_000 };
    let last = Fallback { name: "last".into(), on: on.clone(), action: FallbackAction::Stale(bounds.into()) };
    let grpc_ok = (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
    let fixed = StaticAnswer { status: 200, headers: vec![grpc_ok], body: Bytes::from_static(b"ab") };
    let empty = Fallback { name: "empty".into(), on, action: FallbackAction::Static(fixed) };
    let policy = Policy { fallbacks: vec![Arc::new(last), Arc::new(empty)], ..Policy::default() };
    let bed = bed_under(address, policy);
    let mut caller = bed.caller().await;
    assert_eq!(read(ask(&mut caller, get()).await.into_body()).await.expect("a body").0, b"fresh");
    fails.store(true, Ordering::Relaxed);
    let answer = ask(&mut caller, get()).await;
    assert_eq!((answer.status().as_u16(), header(answer.headers(), "x-sluice-fallback")), (200, "last"));
    assert_eq!(read(answer.into_body()).await.expect("a body").0, b"fresh");

    let answer = ask(&mut caller, post("application/grpc")).await;
    assert_eq!(header(answer.headers(), "x-sluice-fallback"), "empty");
    assert_eq!(header(answer.headers(), "x-sluice-reason"), "upstream_error");
    let (body, trailers) = read(answer.into_body()).await.expect("a whole answer");
    assert_eq!(body, b"\0\0\0\0\x02ab");
    assert_eq!(header(&trailers.expect("trailers"), "grpc-status"), "0");
}
