//! Endpoints and callers that leave, refuse or break.

use super::*;

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
    bed.metric(&["sluice_requests_total", "client_closed"], |value| value == 1).await;
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
async fn a_refused_connection_is_tried_on_another_endpoint_whatever_the_method() {
    let bed = bed(&[(nobody(), None), (named("there").await, None)]);
    let mut caller = bed.caller().await;
    for _ in 0..50 {
        let answer = ask(&mut caller, post("text/plain")).await;
        assert_eq!(header(answer.headers(), "x-name"), "there");
    }
    bed.metric(&["sluice_retries_total", "connect_failure"], |value| value >= 1).await;
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
async fn an_answer_that_is_broken_off_without_an_error_is_no_whole_answer() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let address = endpoint(move |_, mut respond| {
        let mut gate = gate.clone();
        async move {
            let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
            back.send_data(Bytes::from_static(b"half"), false).expect("the caller is there");
            let _ = gate.wait_for(|open| *open).await;
            back.send_reset(Code::NO_ERROR);
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let mut down = ask(&mut caller, get()).await.into_body();
    assert_eq!(soon(down.data()).await.expect("more").expect("data"), "half");
    open.send(true).expect("somebody waits");
    let error = read(down).await.expect_err("a reset");
    assert_eq!(error.reason(), Some(Code::NO_ERROR));
    bed.metric(&["sluice_requests_total", "upstream_reset"], |value| value == 1).await;
}

#[tokio::test]
async fn an_answer_that_ends_before_its_length_is_counted_as_what_it_is() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let address = endpoint(move |_, mut respond| {
        let mut gate = gate.clone();
        async move {
            let head = Response::builder().header("content-length", "5").body(()).expect("a head");
            let mut back = respond.send_response(head, false).expect("the caller is there");
            back.send_data(Bytes::from_static(b"half"), false).expect("the caller is there");
            let _ = gate.wait_for(|open| *open).await;
            let _ = back.send_data(Bytes::new(), true);
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let mut caller = bed.caller().await;
    let mut down = ask(&mut caller, get()).await.into_body();
    assert_eq!(soon(down.data()).await.expect("more").expect("data"), "half");
    open.send(true).expect("somebody waits");
    read(down).await.expect_err("a reset");
    bed.metric(&["sluice_requests_total", "upstream_protocol"], |value| value == 1).await;
    bed.metric(&["sluice_invalid_messages_total", "upstream", "framing"], |value| value == 1).await;
}
