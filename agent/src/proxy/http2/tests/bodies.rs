//! Bodies, trailers and backpressure.

use super::*;

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
    // What the caller lets it send, what it may fill here, and what one write may have.
    let bound = 65_535 + 256 * 1024 + 128 * 1024 + 65_536;
    assert!(last <= bound, "{last} bytes were taken from the endpoint");
    drop(stuck);
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
