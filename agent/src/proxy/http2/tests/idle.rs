//! `timeouts.streamIdle`: streams that fall silent end, those that say something go on for as long as they like.

use super::{governed::bed_under, *};
use crate::govern::policy::{Mode, Policy, Timeouts};

/// What is said, in pauses of so many milliseconds; then the endpoint is silent.
async fn talkative(media_type: &'static str, every: u64, count: usize) -> SocketAddr {
    endpoint(move |_request, mut respond| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static(media_type));
        let mut back = respond.send_response(response, false).expect("the caller is there");
        for _ in 0..count {
            back.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), false).expect("the caller is there");
            tokio::time::sleep(Duration::from_millis(every)).await;
        }
        let _ = poll_fn(|cx| back.poll_reset(cx)).await;
    })
    .await
}

fn silent_for(idle: u64, mode: Mode) -> Policy {
    let idle = Some(Duration::from_millis(idle));
    Policy { timeouts: Timeouts { stream_idle: idle, mode, ..Timeouts::default() }, ..Policy::default() }
}

#[tokio::test]
async fn events_go_on_for_as_long_as_there_are_any_and_no_longer() {
    let mut policy = silent_for(300, Mode::Enforce);
    // It is no limit for them.
    policy.timeouts.request = Some(Duration::from_millis(200));
    let bed = bed_under(talkative("text/event-stream", 50, 10).await, policy);
    let answer = ask(&mut bed.caller().await, get()).await;
    let mut body = answer.into_body();
    let mut got = 0;
    let broken = loop {
        match soon(body.data()).await.expect("a broken answer must not look whole") {
            Ok(data) => got += data.len(),
            Err(broken) => break broken,
        }
    };
    assert_eq!((got, broken.reason()), (60, Some(Code::INTERNAL_ERROR)));
    // The endpoint is not to blame.
    bed.metric(&["sluice_attempts_total", "outcome=\"answered\""], |value| value == 1).await;
    bed.metric(&["sluice_requests_total", "reason=\"timeout\""], |value| value == 1).await;
}

#[tokio::test]
async fn a_silent_grpc_stream_ends_with_a_status() {
    let address = talkative("application/grpc", 50, 10).await;
    let bed = bed_under(address, silent_for(300, Mode::Enforce));
    let mut caller = bed.caller().await;
    let answer = ask(&mut caller, post("application/grpc")).await;
    let (body, trailers) = read(answer.into_body()).await.expect("it ends in order");
    let trailers = trailers.expect("trailers");
    assert_eq!((body.len(), header(&trailers, "grpc-status")), (60, "4"));
    assert_eq!(header(&trailers, "x-sluice-reason"), "timeout");
    bed.metric(&["sluice_requests_total", "reason=\"timeout\""], |value| value == 1).await;
    bed.metric(&["sluice_attempts_total", "outcome=\"answered\""], |value| value == 1).await;
    // Its connection goes on.
    assert_eq!(ask(&mut caller, post("application/grpc")).await.status(), 200);
}

/// A stream on which only the client speaks is not silent.
#[tokio::test]
async fn what_goes_to_the_endpoint_counts_too() {
    let address = endpoint(|request, mut respond| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let mut back = respond.send_response(response, false).expect("the caller is there");
        let (body, _) = read(request.into_body()).await.expect("a whole request");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-count", body.len().into());
        back.send_trailers(trailers).expect("the caller is there");
    })
    .await;
    let bed = bed_under(address, silent_for(400, Mode::Enforce));
    let mut caller = bed.caller().await;
    let (response, mut up) = caller.send_request(post("application/grpc"), false).expect("it takes requests");
    let body = soon(response).await.expect("a head").into_body();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        up.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), false).expect("it goes on");
    }
    up.send_data(Bytes::new(), true).expect("it goes on");
    let (_, trailers) = read(body).await.expect("it ends in order");
    assert_eq!(header(&trailers.expect("trailers"), "x-count"), "72");
}

#[tokio::test]
async fn a_silent_stream_is_only_counted_in_observe_mode() {
    for media_type in ["text/event-stream", "application/grpc"] {
        let address = endpoint(move |_request, mut respond| async move {
            let mut response = Response::new(());
            response.headers_mut().insert("content-type", HeaderValue::from_static(media_type));
            let mut back = respond.send_response(response, false).expect("the caller is there");
            back.send_data(Bytes::from_static(b"ab"), false).expect("the caller is there");
            tokio::time::sleep(Duration::from_millis(120)).await;
            back.send_data(Bytes::from_static(b"cd"), true).expect("the caller is there");
        })
        .await;
        let bed = bed_under(address, silent_for(50, Mode::Observe));
        let answer = ask(&mut bed.caller().await, post(media_type)).await;
        assert_eq!(read(answer.into_body()).await.expect("a whole answer").0, b"abcd");
        bed.metric(&["sluice_timeouts_observed_total", "timeout=\"stream_idle\""], |value| value == 1).await;
    }
}

/// Another protocol within a stream (RFC 8441).
#[tokio::test]
async fn a_silent_tunnel_ends() {
    use super::raw::{Backend, Event, Wire, Wishes, frames};

    let backend = Backend::with(Wishes { settings: vec![(8, 1)], ..Wishes::default() }).await;
    let bed = bed_under(backend.address, silent_for(300, Mode::Enforce));
    let wire = Wire::connect(bed.address, Wishes::default()).await;
    let mut lines = frames::get("/echo");
    lines[0].1 = "CONNECT";
    lines.push((":protocol", "websocket"));
    let mut stream = wire.handle.open(false, &lines).await;
    assert_eq!(stream.head().await.status, 200);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.data(b"ping", false).await;
        let said = stream.part().await;
        assert!(matches!(&said, Ok(Event::Data { bytes, end: false, .. }) if bytes == "ping"), "{said:?}");
    }
    assert!(matches!(stream.part().await, Err(Some(_))), "it ends when nothing is said");
    backend.seen.until(|seen| seen.resets.load(Ordering::Relaxed) == 1).await;
    bed.metric(&["sluice_tunnels_total", "reason=\"timeout\""], |value| value == 1).await;
    assert_eq!(wire.handle.get("/").await.status, 200);
}
