//! What callers and endpoints may take, and floods.

use super::*;

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
    bed.metric(&["sluice_connections_open", "upstream"], |value| value >= 4).await;
    open.send(true).expect("somebody waits");
    for response in waiting {
        assert_eq!(soon(response).await.expect("it answers").status(), 200);
    }
}

#[tokio::test]
async fn streams_that_send_go_over_further_connections_before_each_has_too_little() {
    let started = Arc::new(AtomicUsize::new(0));
    let (count, (open, gate)) = (started.clone(), tokio::sync::watch::channel(false));
    let address = endpoint(move |_, mut respond| {
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
    let all_have_come = async |count| {
        soon(async {
            while started.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    let mut waiting: Vec<_> =
        (0..40).map(|_| caller.send_request(get(), true).expect("it takes requests").0).collect();
    all_have_come(40).await;
    bed.metric(&["sluice_connections_open", "upstream"], |value| value == 1).await;
    let uploads: Vec<_> = (0..40)
        .map(|_| {
            let (response, up) = caller.send_request(post("text/plain"), false).expect("it takes requests");
            waiting.push(response);
            up
        })
        .collect();
    all_have_come(80).await;
    // The window of each is 64 KiB.
    bed.metric(&["sluice_connections_open", "upstream"], |value| value == 3).await;
    for mut upload in uploads {
        upload.send_data("x".into(), true).expect("it takes data");
    }
    open.send(true).expect("somebody waits");
    for response in waiting {
        assert_eq!(soon(response).await.expect("it answers").status(), 200);
    }
}

#[tokio::test]
async fn an_endpoint_that_takes_one_stream_at_a_time_gets_all_of_many_in_the_end() {
    let mut one = server::Builder::new();
    one.max_concurrent_streams(1);
    let bed = bed(&[(endpoint_with(one, echo).await, None)]);
    let mut caller = bed.caller().await;
    // The first tells the limit.
    ask(&mut caller, post("text/plain")).await;
    let sent = vec![9; 60_000];
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let (response, mut up) =
                caller.send_request(post("text/plain"), false).expect("it takes requests");
            up.send_data(sent.clone().into(), true).expect("it takes data");
            tokio::spawn(async move { read(soon(response).await?.into_body()).await })
        })
        .collect();
    for stream in streams {
        let (bytes, _) = stream.await.expect("no panic").expect("an answer");
        assert!(bytes == sent);
    }
    let text = bed.metrics.render().expect("it can be rendered");
    let line = text.lines().find(|line| line.starts_with("sluice_connections_open{peer=\"upstream\"}"));
    let open: usize =
        line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).expect("a number");
    assert!(open <= pool::MAX_CONNECTIONS, "{open} connections");
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

#[tokio::test]
async fn draining_waits_until_answers_have_left_the_agent() {
    const REQUESTS: usize = 300;
    // No more than a stream may say in its turn, or none might come to its end.
    const LENGTH: usize = 15_000;
    let (arrived, mut arriving) = tokio::sync::watch::channel(0);
    let arrived = Arc::new(arrived);
    let address = endpoint(move |_, mut respond| {
        arrived.send_modify(|count| *count += 1);
        async move {
            let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
            back.send_data(vec![7; LENGTH].into(), true).expect("the caller is there");
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    // Windows for all answers, and a caller who for now reads none of them: more than the kernel holds.
    let mut builder = client::Builder::new();
    builder.initial_connection_window_size(1 << 30).initial_max_send_streams(REQUESTS);
    let stream = TcpStream::connect(bed.address).await.expect("it listens");
    socket2::SockRef::from(&stream).set_recv_buffer_size(64 * 1024).expect("a size");
    let (mut caller, mut connection) = builder.handshake::<_, Bytes>(stream).await.expect("it speaks HTTP/2");
    let answers: Vec<_> =
        (0..REQUESTS).map(|_| caller.send_request(get(), true).expect("it takes requests").0).collect();
    let turn = poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut connection).poll(cx)));
    assert!(turn.await.is_pending(), "the requests are sent");
    // Some of them are written as far as the kernel takes them; the others are still under way.
    bed.metric(&["sluice_requests_total", "2xx"], |value| value >= 1).await;
    // What the agent has not yet read when it begins to drain, the caller is to send elsewhere.
    soon(arriving.wait_for(|count| *count == REQUESTS)).await.expect("the endpoint is there");

    let draining = bed.proxy.drain();
    let mut draining = std::pin::pin!(draining);
    let early = timeout(Duration::from_millis(500), &mut draining).await;
    assert!(early.is_err(), "answers are still here");
    tokio::spawn(connection);
    for answer in answers {
        assert_eq!(
            read(soon(answer).await.expect("an answer").into_body()).await.expect("whole").0.len(),
            LENGTH
        );
    }
    soon(draining).await;
}
