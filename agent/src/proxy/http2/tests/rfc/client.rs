//! The end that endpoints see.

use super::{Must::*, *};

const OK: frames::Lines<'static> = &[(":status", "200")];

fn ok(end: bool) -> Vec<u8> {
    frames::headers(1, end, OK)
}

fn lines(lines: frames::Lines<'_>) -> Vec<u8> {
    frames::headers(1, true, lines)
}

fn with(more: frames::Lines<'_>) -> Vec<u8> {
    lines(&[OK, more].concat())
}

/// What an endpoint sends when the first request has come, stream 1. `Malformed`: the client gets 502 or a reset;
/// `Answer`: it gets this.
fn rows() -> Vec<(&'static str, &'static str, Vec<u8>, Must)> {
    let frame = frames::frame;
    let join = |parts: &[Vec<u8>]| parts.concat();
    let block = frames::block(OK);
    vec![
        (
            "4.1",
            "a frame of an unknown kind",
            join(&[frame(0x42, 0xff, 0, b"?"), frame(0x42, 0, 1, b"?"), ok(true)]),
            Answer(200),
        ),
        (
            "4.2",
            "DATA above SETTINGS_MAX_FRAME_SIZE",
            join(&[ok(false), frames::data(1, true, &[0; 16_385])]),
            End(FRAME_SIZE),
        ),
        (
            "4.3",
            "a block that cannot be decoded",
            frame(frames::HEADERS, 5, 1, &[0xff, 0xff]),
            End(COMPRESSION),
        ),
        (
            "4.3",
            "DATA within a block",
            join(&[frame(frames::HEADERS, 0, 1, &block), frames::data(1, true, b"")]),
            End(PROTOCOL),
        ),
        ("5.1", "HEADERS on an idle stream", frames::headers(3, true, OK), End(PROTOCOL)),
        ("5.1", "HEADERS on a stream of a server's number", frames::headers(2, true, OK), End(PROTOCOL)),
        ("5.1", "DATA on an idle stream", frames::data(3, true, b"?"), End(PROTOCOL)),
        ("5.1", "RST_STREAM on an idle stream", frames::reset(3, 8), End(PROTOCOL)),
        ("5.1", "WINDOW_UPDATE on an idle stream", frames::window(3, 1), End(PROTOCOL)),
        (
            "5.1",
            "PRIORITY on an idle stream",
            join(&[frame(frames::PRIORITY, 0, 3, &[0; 5]), ok(true)]),
            Answer(200),
        ),
        ("6.1", "DATA on stream 0", frames::data(0, true, b"?"), End(PROTOCOL)),
        (
            "6.1",
            "padding above the payload",
            join(&[ok(false), frame(frames::DATA, 9, 1, &[5, 0, 0])]),
            End(PROTOCOL),
        ),
        (
            "6.2",
            "HEADERS with priority and padding",
            frame(frames::HEADERS, 0x2d, 1, &[&[2, 0, 0, 0, 0, 9][..], &block, &[0, 0]].concat()),
            Answer(200),
        ),
        ("6.4", "RST_STREAM of another size than 4", frame(frames::RESET, 0, 1, &[0; 3]), End(FRAME_SIZE)),
        ("6.5", "SETTINGS on a stream", frame(frames::SETTINGS, 0, 1, &[]), End(PROTOCOL)),
        ("6.5", "an acknowledgement with settings", frame(frames::SETTINGS, 1, 0, &[0; 6]), End(FRAME_SIZE)),
        ("6.5.2", "SETTINGS_ENABLE_PUSH of 1, from a server", frames::settings(&[(2, 1)]), End(PROTOCOL)),
        (
            "6.5.2",
            "SETTINGS_ENABLE_PUSH of 0, from a server",
            join(&[frames::settings(&[(2, 0)]), ok(true)]),
            Answer(200),
        ),
        (
            "6.5.2",
            "SETTINGS_INITIAL_WINDOW_SIZE above the largest",
            frames::settings(&[(4, 1 << 31)]),
            End(FLOW_CONTROL),
        ),
        ("6.5.2", "SETTINGS_MAX_FRAME_SIZE below the smallest", frames::settings(&[(5, 100)]), End(PROTOCOL)),
        (
            "6.6",
            "PUSH_PROMISE",
            frame(frames::PUSH_PROMISE, 4, 1, &[&[0, 0, 0, 2][..], &block].concat()),
            End(PROTOCOL),
        ),
        ("6.7", "PING on a stream", frame(frames::PING, 0, 1, &[0; 8]), End(PROTOCOL)),
        ("6.8", "GOAWAY on a stream", frame(frames::GO_AWAY, 0, 1, &[0; 8]), End(PROTOCOL)),
        (
            "6.8",
            "GOAWAY with the stream among those that go on",
            join(&[frames::go_away(1, 0), ok(true)]),
            Answer(200),
        ),
        (
            "6.8",
            "GOAWAY with a higher stream than before",
            join(&[frames::go_away(1, 0), frames::go_away(7, 0), ok(true)]),
            Answer(200),
        ),
        ("6.9", "WINDOW_UPDATE of 0 on the connection", frames::window(0, 0), End(PROTOCOL)),
        ("6.9", "WINDOW_UPDATE of 0 on the stream", frames::window(1, 0), Reset(PROTOCOL)),
        (
            "6.9.1",
            "the connection's window above the largest",
            frames::window(0, u32::MAX >> 1),
            End(FLOW_CONTROL),
        ),
        (
            "6.9.1",
            "the stream's window above the largest",
            frames::window(1, u32::MAX >> 1),
            Reset(FLOW_CONTROL),
        ),
        ("6.10", "CONTINUATION without HEADERS", frame(frames::CONTINUATION, 4, 1, &block), End(PROTOCOL)),
        ("6.10", "a block in parts", frames::parts(1, true, &block, 3), Answer(200)),
        ("8.1", "DATA before HEADERS", frames::data(1, true, b"?"), ResetEither(PROTOCOL, CLOSED)),
        ("8.1", "an interim response that ends the stream", lines(&[(":status", "103")]), Malformed),
        (
            "8.1",
            "interim responses",
            join(&[
                frames::headers(1, false, &[(":status", "100")]),
                frames::headers(1, false, &[(":status", "103")]),
                ok(true),
            ]),
            Answer(200),
        ),
        (
            "8.1",
            "an interim response behind the final one",
            join(&[ok(false), frames::headers(1, false, &[(":status", "103")])]),
            Malformed,
        ),
        (
            "8.1",
            "trailers that do not end the stream",
            join(&[ok(false), frames::headers(1, false, &[("a", "b")])]),
            Malformed,
        ),
        ("8.1", "a pseudo field in trailers", join(&[ok(false), frames::headers(1, true, OK)]), Malformed),
        (
            "8.1",
            "trailers",
            join(&[ok(false), frames::data(1, false, b"x"), frames::headers(1, true, &[("a", "b")])]),
            Answer(200),
        ),
        (
            "8.1.1",
            "less body than content-length",
            join(&[
                frames::headers(1, false, &[(":status", "200"), ("content-length", "5")]),
                frames::data(1, true, b"four"),
            ]),
            Malformed,
        ),
        (
            "8.1.1",
            "more body than content-length",
            join(&[
                frames::headers(1, false, &[(":status", "200"), ("content-length", "5")]),
                frames::data(1, true, b"sixsix"),
            ]),
            Malformed,
        ),
        ("8.1.1", "content-length and no body", with(&[("content-length", "5")]), Malformed),
        (
            "8.1.1",
            "content-length of 304, which has no body",
            lines(&[(":status", "304"), ("content-length", "5")]),
            Answer(304),
        ),
        ("8.2", "a name in upper case", with(&[("X-Upper", "a")]), Malformed),
        ("8.2.1", "a space in a name", with(&[("x a", "b")]), Malformed),
        ("8.2.1", "LF in a value", with(&[("x-a", "b\nc")]), Malformed),
        ("8.2.1", "NUL in a value", with(&[("x-a", "b\0c")]), Malformed),
        ("8.2.1", "CR in a value", with(&[("x-a", "b\rc")]), Malformed),
        ("8.2.1", "white space around a value", with(&[("x-a", " b\t")]), Answer(200)),
        ("8.2.2", "connection", with(&[("connection", "close")]), Malformed),
        ("8.2.2", "upgrade", with(&[("upgrade", "h2c")]), Malformed),
        ("8.2.2", "keep-alive", with(&[("keep-alive", "timeout=5")]), Malformed),
        ("8.2.2", "transfer-encoding", with(&[("transfer-encoding", "chunked")]), Malformed),
        ("8.3", "a pseudo field of requests", with(&[(":path", "/")]), Malformed),
        ("8.3", "a pseudo field behind others", lines(&[("x-a", "b"), (":status", "200")]), Malformed),
        ("8.3.2", "no :status", lines(&[("x-a", "b")]), Malformed),
        ("8.3.2", ":status twice", with(&[(":status", "200")]), Malformed),
        ("8.3.2", ":status of two digits", lines(&[(":status", "20")]), Malformed),
        ("8.3.2", ":status of words", lines(&[(":status", "2oo")]), Malformed),
        ("8.6", "101", lines(&[(":status", "101")]), Malformed),
        (
            "RFC 7541, 4.2",
            "a table above the allowed size",
            frame(frames::HEADERS, 5, 1, &[0x3f, 0xe2, 0x1f]),
            End(COMPRESSION),
        ),
    ]
}

/// What the endpoint hears of stream 1 and of the connection, once the row is sent.
async fn heard(mut wire: Wire, bytes: Vec<u8>) -> (Option<Must>, Option<u32>, Wire) {
    let mut first = wire.accepted.recv().await.expect("a request comes");
    wire.handle.send([bytes, frames::ping(*b"end of 1")].concat()).await;
    let (mut stream, mut ended) = (None, None);
    loop {
        match wire.heard().await {
            Event::GoAway { code, .. } if code != 0 => ended = Some(code),
            Event::Closed => {
                ended = ended.or(Some(0));
                break;
            }
            Event::Ping { ack: true, .. } => break,
            _ => {}
        }
    }
    while let Some(event) = first.try_next() {
        if let Event::Reset { code, .. } = event {
            stream = stream.or(Some(Reset(code)));
        }
    }
    (stream, ended, wire)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_demand_is_met() {
    let mut missed = Vec::new();
    for (section, what, bytes, must) in rows() {
        let (tell, told) = tokio::sync::mpsc::channel(1);
        let once = Arc::new(Mutex::new(Some((tell, bytes))));
        let endpoint = wire::listen(Wishes::default(), move |mut wire| {
            let once = once.lock().expect("not poisoned").take();
            async move {
                if let Some((tell, bytes)) = once {
                    let (stream, ended, back) = heard(wire, bytes).await;
                    let _ = tell.send((stream, ended)).await;
                    wire = back;
                }
                while let Some(stream) = wire.accepted.recv().await {
                    stream.headers(true, OK).await;
                }
            }
        })
        .await;
        let mut told = told;
        let bed = bed(&[(endpoint, None)]);
        let wire = Wire::connect(bed.address, Wishes::default()).await;
        // Not one that is tried again.
        let answer = wire.handle.post("/", b"once").await;
        let (stream, ended) = soon(told.recv()).await.expect("it is told");
        let failed = answer.status == 502 || answer.broken.is_some_and(|code| code.is_some());
        let met = match must {
            End(code) => ended == Some(code) && failed,
            _ if ended.is_some_and(|code| code != 0) => false,
            Malformed => failed && matches!(stream, Some(Reset(PROTOCOL)) | None),
            Reset(_) => failed && stream == Some(must),
            ResetEither(one, other) => {
                failed && matches!(stream, Some(Reset(code)) if code == one || code == other)
            }
            Answer(status) => answer.status == status && answer.broken.is_none(),
            Ignore => false,
        };
        // Who made the call is told what was wrong with the response.
        let said = String::from_utf8_lossy(&answer.body);
        if answer.status == 502 && (!said.contains(": it has ") || said.contains("a violation of HTTP/2")) {
            missed.push(format!("{section}, {what}: the client is told {said}"));
        }
        if !met {
            let became = (answer.status, answer.broken);
            missed.push(format!(
                "{section}, {what}: {must:?}, but {stream:?}, ended {ended:?}; client: {became:?}"
            ));
        }
        assert_eq!(
            wire.handle.get("/").await.status,
            200,
            "{section}, {what}: the client's connection goes on"
        );
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test]
async fn an_endpoint_whose_first_frame_is_not_settings_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let bed = bed(&[(listener.local_addr().expect("bound"), None)]);
    let client = Wire::connect(bed.address, Wishes::default()).await;
    let mut stream = client.handle.open(true, &frames::get("/")).await;
    let (mut socket, _) = soon(listener.accept()).await.expect("it connects");
    socket.read_exact(&mut [0; 24]).await.expect("the preface");
    let mut wire = Wire::over(socket, false);
    wire.handle.send(frames::ping([0; 8])).await;
    assert_eq!(wire.ended().await, Some(PROTOCOL));
    drop(listener);
    let answer = stream.answer().await;
    assert!(answer.status >= 500 || answer.broken.is_some(), "{answer:?}");
}

/// An endpoint that sends more than its windows let it.
#[tokio::test]
async fn windows_are_insisted_upon() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = wire::listen(Wishes::default(), move |mut wire| {
        let tell = tell.clone();
        async move {
            let Some(mut stream) = wire.accepted.recv().await else { return };
            stream.headers(false, OK).await;
            stream.data(&vec![7; 60_000], false).await;
            wire.handle.send(frames::data(stream.id, false, &[7; 16_000]).repeat(200)).await;
            let ended = match stream.answer_to_breach().await {
                Some(code) => Some(code),
                None => wire.ended().await,
            };
            let _ = tell.send(ended);
        }
    })
    .await;
    let bed = bed(&[(endpoint, None)]);
    let client = Wire::connect(bed.address, Wishes { takes: false, ..Wishes::default() }).await;
    let mut stream = client.handle.open(true, &frames::get("/")).await;
    assert_eq!(stream.head().await.status, 200);
    assert_eq!(soon(told.recv()).await.flatten(), Some(FLOW_CONTROL));
}

/// What an endpoint says that it takes is what it gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoints_settings_are_kept() {
    let settings = vec![(1, 0), (3, 3), (4, 1000)];
    let backend = Backend::with(Wishes { settings, ..Wishes::default() }).await;
    let bed = bed_with(&[(backend.address, None)], 1000);
    let client = Wire::connect(bed.address, Wishes::default()).await;
    // The first one tells the settings; a wire panics about a window that is overdrawn.
    assert_eq!(client.handle.get("/").await.status, 200);
    let uploads: Vec<_> = (0..20)
        .map(|_| {
            let handle = client.handle.clone();
            tokio::spawn(async move { handle.post("/count", &vec![7; 50_000]).await })
        })
        .collect();
    for upload in uploads {
        assert_eq!(soon(upload).await.expect("no panic").text(), "50000");
    }
    assert!(
        backend.seen.most_open.load(Ordering::Relaxed)
            <= 3 * backend.seen.connections.load(Ordering::Relaxed)
    );
}

/// Streams that an endpoint has not looked at are sent to another connection (sections 6.8 and 8.7).
#[tokio::test]
async fn what_was_not_processed_is_sent_again() {
    for refuse in [frames::reset as fn(u32, u32) -> Vec<u8>, |_, _| frames::go_away(0, 0)] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let endpoint = wire::listen(Wishes::default(), move |mut wire| {
            let count = counted.clone();
            async move {
                while let Some(stream) = wire.accepted.recv().await {
                    if count.fetch_add(1, Ordering::Relaxed) == 0 {
                        wire.handle.send(refuse(stream.id, REFUSED)).await;
                    } else {
                        stream.headers(true, OK).await;
                    }
                }
            }
        })
        .await;
        let bed = bed(&[(endpoint, None), (Backend::start().await.address, None)]);
        let client = Wire::connect(bed.address, Wishes::default()).await;
        // Until the one that refuses has been asked.
        while count.load(Ordering::Relaxed) == 0 {
            let answer = client.handle.post("/", b"once").await;
            assert_eq!((answer.status, answer.broken), (200, None));
        }
    }
}
