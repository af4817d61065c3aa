//! The end that clients see.

use super::{Must::*, *};

/// A request whose answer waits: stream 1 stays open.
fn open() -> Vec<u8> {
    frames::headers(1, false, &frames::post("/hang"))
}

/// A request that has ended: stream 1 is half closed.
fn asked() -> Vec<u8> {
    frames::headers(1, true, &frames::get("/hang"))
}

/// A request with other fields than those of GET.
fn lines(lines: frames::Lines<'_>) -> Vec<u8> {
    frames::headers(1, true, lines)
}

/// GET with further fields.
fn with(more: frames::Lines<'_>) -> Vec<u8> {
    lines(&[&frames::get("/")[..], more].concat())
}

/// GET without one of its pseudo fields.
fn without(name: &str) -> Vec<u8> {
    let mut fields = frames::get("/");
    fields.retain(|field| field.0 != name);
    lines(&fields)
}

/// A header block as it is.
fn raw(block: &[u8]) -> Vec<u8> {
    frames::frame(frames::HEADERS, 5, 1, block)
}

/// What is sent behind the preface and SETTINGS, by section.
fn rows() -> Vec<(&'static str, &'static str, Vec<u8>, Must)> {
    let get = frames::block(&frames::get("/"));
    let frame = frames::frame;
    let join = |parts: &[Vec<u8>]| parts.concat();
    vec![
        ("4.1", "a frame of an unknown kind", frame(0x42, 0xff, 0, b"unknown"), Ignore),
        ("4.1", "the same on a stream that is open", join(&[open(), frame(0x42, 0, 1, b"unknown")]), Ignore),
        ("4.1", "flags without a meaning", frame(frames::PING, 0xfe, 0, b"12345678"), Ignore),
        ("4.1", "the reserved bit", frame(frames::HEADERS, 5, 1 | 1 << 31, &get), Answer(200)),
        (
            "4.2",
            "DATA above SETTINGS_MAX_FRAME_SIZE",
            join(&[open(), frames::data(1, false, &[0; 16_385])]),
            End(FRAME_SIZE),
        ),
        ("4.2", "HEADERS above it", frame(frames::HEADERS, 5, 1, &[0; 16_385]), End(FRAME_SIZE)),
        ("4.2", "SETTINGS above it", frame(frames::SETTINGS, 0, 0, &[0; 16_386]), End(FRAME_SIZE)),
        ("4.3", "a block that cannot be decoded", raw(&[0xff, 0xff]), End(COMPRESSION)),
        ("4.3", "the same in trailers", join(&[open(), raw(&[0xff, 0xff])]), End(COMPRESSION)),
        (
            "4.3",
            "PRIORITY within a block",
            join(&[frame(frames::HEADERS, 1, 1, &get), frame(frames::PRIORITY, 0, 1, &[0; 5])]),
            End(PROTOCOL),
        ),
        (
            "4.3",
            "an unknown frame within a block",
            join(&[frame(frames::HEADERS, 1, 1, &get), frame(0x42, 0, 1, b"")]),
            End(PROTOCOL),
        ),
        (
            "4.3",
            "HEADERS of another stream within a block",
            join(&[frame(frames::HEADERS, 1, 1, &get), frame(frames::HEADERS, 5, 3, &get)]),
            End(PROTOCOL),
        ),
        ("5.1", "DATA on an idle stream", frames::data(1, true, b"?"), End(PROTOCOL)),
        ("5.1", "RST_STREAM on an idle stream", frames::reset(1, 8), End(PROTOCOL)),
        ("5.1", "WINDOW_UPDATE on an idle stream", frames::window(1, 100), End(PROTOCOL)),
        ("5.1", "CONTINUATION on an idle stream", frame(frames::CONTINUATION, 4, 1, &get), End(PROTOCOL)),
        ("5.1", "PRIORITY on an idle stream", frame(frames::PRIORITY, 0, 1, &[0; 5]), Ignore),
        ("5.1", "DATA on a half closed stream", join(&[asked(), frames::data(1, true, b"?")]), Reset(CLOSED)),
        (
            "5.1",
            "HEADERS on a half closed stream",
            join(&[asked(), head(5, 1, &[("a", "b")])]),
            Reset(CLOSED),
        ),
        ("5.1", "WINDOW_UPDATE on a half closed stream", join(&[asked(), frames::window(1, 100)]), Ignore),
        (
            "5.1",
            "PRIORITY on a half closed stream",
            join(&[asked(), frame(frames::PRIORITY, 0, 1, &[0; 5])]),
            Ignore,
        ),
        ("5.1", "RST_STREAM on a half closed stream", join(&[asked(), frames::reset(1, 8)]), Ignore),
        (
            "5.1",
            "PRIORITY on a closed stream",
            join(&[asked(), frames::reset(1, 8), frame(frames::PRIORITY, 0, 1, &[0; 5])]),
            Ignore,
        ),
        (
            "5.1",
            "WINDOW_UPDATE on a closed stream",
            join(&[asked(), frames::reset(1, 8), frames::window(1, 9)]),
            Ignore,
        ),
        (
            "5.1",
            "DATA behind its own RST_STREAM",
            join(&[open(), frames::reset(1, 8), frames::data(1, true, b"?")]),
            Reset(CLOSED),
        ),
        (
            "5.1",
            "HEADERS behind its own RST_STREAM",
            join(&[open(), frames::reset(1, 8), head(5, 1, &[("a", "b")])]),
            Reset(CLOSED),
        ),
        ("5.1.1", "a stream of an even number", frame(frames::HEADERS, 5, 2, &get), End(PROTOCOL)),
        ("5.1.1", "stream 0", frame(frames::HEADERS, 5, 0, &get), End(PROTOCOL)),
        (
            "5.4.1",
            "GOAWAY of the peer, with streams that go on",
            join(&[frames::go_away(0, 0), frame(frames::HEADERS, 5, 1, &get)]),
            Answer(200),
        ),
        ("6.1", "DATA on stream 0", frames::data(0, true, b"?"), End(PROTOCOL)),
        (
            "6.1",
            "padding above the payload",
            join(&[open(), frame(frames::DATA, 9, 1, &[5, 0, 0])]),
            End(PROTOCOL),
        ),
        (
            "6.1",
            "padding of exactly the payload",
            join(&[open(), frame(frames::DATA, 9, 1, &[3, 0, 0])]),
            End(PROTOCOL),
        ),
        ("6.1", "no length of the padding", join(&[open(), frame(frames::DATA, 9, 1, &[])]), End(FRAME_SIZE)),
        (
            "6.1",
            "nothing but padding",
            join(&[
                frames::headers(1, false, &frames::post("/count")),
                frame(frames::DATA, 9, 1, &[4, 0, 0, 0, 0]),
            ]),
            Answer(200),
        ),
        (
            "6.2",
            "HEADERS with priority and padding",
            frame(frames::HEADERS, 0x2d, 1, &[&[2, 0, 0, 0, 0, 9][..], &get, &[0, 0]].concat()),
            Answer(200),
        ),
        (
            "6.2",
            "padding above the block",
            frame(frames::HEADERS, 0xd, 1, &[&[200][..], &get[..20]].concat()),
            End(PROTOCOL),
        ),
        ("6.2", "no room for the priority", frame(frames::HEADERS, 0x25, 1, &[0; 4]), End(FRAME_SIZE)),
        ("6.3", "PRIORITY on stream 0", frame(frames::PRIORITY, 0, 0, &[0; 5]), End(PROTOCOL)),
        (
            "6.3",
            "PRIORITY of another size than 5",
            join(&[open(), frame(frames::PRIORITY, 0, 1, &[0; 4])]),
            Reset(FRAME_SIZE),
        ),
        ("6.4", "RST_STREAM on stream 0", frames::reset(0, 8), End(PROTOCOL)),
        (
            "6.4",
            "RST_STREAM of another size than 4",
            join(&[open(), frame(frames::RESET, 0, 1, &[0; 3])]),
            End(FRAME_SIZE),
        ),
        ("6.4", "RST_STREAM with a code of nobody's", join(&[open(), frames::reset(1, 0xdead_beef)]), Ignore),
        ("6.5", "SETTINGS on a stream", frame(frames::SETTINGS, 0, 1, &[]), End(PROTOCOL)),
        ("6.5", "an acknowledgement with settings", frame(frames::SETTINGS, 1, 0, &[0; 6]), End(FRAME_SIZE)),
        ("6.5", "SETTINGS of no multiple of 6", frame(frames::SETTINGS, 0, 0, &[0; 5]), End(FRAME_SIZE)),
        ("6.5.2", "SETTINGS_ENABLE_PUSH of 2", frames::settings(&[(2, 2)]), End(PROTOCOL)),
        (
            "6.5.2",
            "SETTINGS_INITIAL_WINDOW_SIZE above the largest",
            frames::settings(&[(4, 1 << 31)]),
            End(FLOW_CONTROL),
        ),
        (
            "6.5.2",
            "SETTINGS_MAX_FRAME_SIZE below the smallest",
            frames::settings(&[(5, 16_383)]),
            End(PROTOCOL),
        ),
        (
            "6.5.2",
            "SETTINGS_MAX_FRAME_SIZE above the largest",
            frames::settings(&[(5, 1 << 24)]),
            End(PROTOCOL),
        ),
        ("6.5.2", "unknown settings", frames::settings(&[(0x99, 7), (0xffff, u32::MAX)]), Ignore),
        (
            "6.5.2",
            "SETTINGS_MAX_CONCURRENT_STREAMS of 0, which is for pushes",
            join(&[frames::settings(&[(3, 0)]), frame(frames::HEADERS, 5, 1, &get)]),
            Answer(200),
        ),
        ("6.6", "PUSH_PROMISE", frame(frames::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), End(PROTOCOL)),
        ("6.7", "PING on a stream", frame(frames::PING, 0, 1, &[0; 8]), End(PROTOCOL)),
        ("6.7", "PING of another size than 8", frame(frames::PING, 0, 0, &[0; 6]), End(FRAME_SIZE)),
        ("6.7", "an answer to no PING", frame(frames::PING, 1, 0, &[0; 8]), Ignore),
        ("6.8", "GOAWAY on a stream", frame(frames::GO_AWAY, 0, 1, &[0; 8]), End(PROTOCOL)),
        ("6.8", "GOAWAY that is cut off", frame(frames::GO_AWAY, 0, 0, &[0; 7]), End(FRAME_SIZE)),
        ("6.9", "WINDOW_UPDATE of 0 on the connection", frames::window(0, 0), End(PROTOCOL)),
        ("6.9", "WINDOW_UPDATE of 0 on a stream", join(&[open(), frames::window(1, 0)]), Reset(PROTOCOL)),
        (
            "6.9",
            "WINDOW_UPDATE of another size than 4",
            frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            End(FRAME_SIZE),
        ),
        (
            "6.9.1",
            "a connection's window above the largest",
            frames::window(0, u32::MAX >> 1),
            End(FLOW_CONTROL),
        ),
        (
            "6.9.1",
            "a stream's window above the largest",
            join(&[open(), frames::window(1, u32::MAX >> 1)]),
            Reset(FLOW_CONTROL),
        ),
        (
            "6.9.2",
            "a stream's window above the largest by SETTINGS",
            join(&[open(), frames::window(1, 1000), frames::settings(&[(4, u32::MAX >> 1)])]),
            End(FLOW_CONTROL),
        ),
        (
            "6.10",
            "CONTINUATION behind the end of a block",
            join(&[open(), frame(frames::CONTINUATION, 4, 1, &get)]),
            End(PROTOCOL),
        ),
        (
            "6.10",
            "CONTINUATION of another stream",
            join(&[frame(frames::HEADERS, 1, 1, &get), frame(frames::CONTINUATION, 4, 3, &get)]),
            End(PROTOCOL),
        ),
        (
            "6.10",
            "CONTINUATION on stream 0",
            join(&[frame(frames::HEADERS, 1, 1, &get), frame(frames::CONTINUATION, 4, 0, b"")]),
            End(PROTOCOL),
        ),
        ("6.10", "a block in parts", frames::parts(1, true, &get, 10), Answer(200)),
        (
            "8.1",
            "a second head that does not end the stream",
            join(&[open(), head(4, 1, &[("a", "b")])]),
            Malformed,
        ),
        (
            "8.1",
            "trailers",
            join(&[
                frames::headers(1, false, &frames::post("/count")),
                frames::data(1, false, b"x"),
                head(5, 1, &[("a", "b")]),
            ]),
            Answer(200),
        ),
        ("8.1", "a pseudo field in trailers", join(&[open(), head(5, 1, &[(":path", "/")])]), Malformed),
        (
            "8.1.1",
            "less body than content-length",
            join(&[
                frames::headers(
                    1,
                    false,
                    &[&frames::post("/count")[..], &[("content-length", "5")]].concat(),
                ),
                frames::data(1, true, b"four"),
            ]),
            Malformed,
        ),
        (
            "8.1.1",
            "more body than content-length",
            join(&[
                frames::headers(
                    1,
                    false,
                    &[&frames::post("/count")[..], &[("content-length", "5")]].concat(),
                ),
                frames::data(1, true, b"sixsix"),
            ]),
            Malformed,
        ),
        ("8.1.1", "content-length and no body", with(&[("content-length", "5")]), Malformed),
        ("8.1.1", "content-length of 0 and no body", with(&[("content-length", "0")]), Answer(200)),
        ("8.1.1", "two lengths", with(&[("content-length", "0"), ("content-length", "1")]), Malformed),
        ("8.1.1", "a length that is none", with(&[("content-length", "+0")]), Malformed),
        ("8.2", "a name in upper case", with(&[("X-Upper", "a")]), Malformed),
        ("8.2.1", "no name", with(&[("", "a")]), Malformed),
        ("8.2.1", "a space in a name", with(&[("x a", "b")]), Malformed),
        ("8.2.1", "a colon in a name", with(&[("x:a", "b")]), Malformed),
        ("8.2.1", "a control character in a name", with(&[("x\u{1}", "b")]), Malformed),
        ("8.2.1", "a name that is not ASCII", with(&[("x-é", "b")]), Malformed),
        ("8.2.1", "NUL in a value", with(&[("x-a", "b\0c")]), Malformed),
        ("8.2.1", "CR in a value", with(&[("x-a", "b\rc")]), Malformed),
        ("8.2.1", "LF in a value", with(&[("x-a", "b\nc")]), Malformed),
        ("8.2.1", "an empty value", with(&[("x-a", "")]), Answer(200)),
        ("8.2.2", "connection", with(&[("connection", "x-a")]), Malformed),
        ("8.2.2", "proxy-connection", with(&[("proxy-connection", "keep-alive")]), Malformed),
        ("8.2.2", "keep-alive", with(&[("keep-alive", "timeout=5")]), Malformed),
        ("8.2.2", "transfer-encoding", with(&[("transfer-encoding", "chunked")]), Malformed),
        ("8.2.2", "upgrade", with(&[("upgrade", "websocket")]), Malformed),
        ("8.2.2", "te of more than trailers", with(&[("te", "gzip, trailers")]), Malformed),
        ("8.2.2", "te of trailers", with(&[("te", "trailers")]), Answer(200)),
        (
            "8.3",
            "an unknown pseudo field",
            lines(&[&frames::get("/")[..], &[(":unknown", "a")]].concat()),
            Malformed,
        ),
        (
            "8.3",
            "a pseudo field of responses",
            lines(&[&frames::get("/")[..], &[(":status", "200")]].concat()),
            Malformed,
        ),
        (
            "8.3",
            "a pseudo field behind others",
            lines(&[&[("x-a", "b")][..], &frames::get("/")].concat()),
            Malformed,
        ),
        ("8.3", ":path twice", lines(&[&frames::get("/")[..], &[(":path", "/")]].concat()), Malformed),
        ("8.3", ":method twice", lines(&[&frames::get("/")[..], &[(":method", "GET")]].concat()), Malformed),
        ("8.3", ":scheme twice", lines(&[&frames::get("/")[..], &[(":scheme", "http")]].concat()), Malformed),
        (
            "8.3",
            ":authority twice",
            lines(&[&frames::get("/")[..], &[(":authority", "b")]].concat()),
            Malformed,
        ),
        ("8.3.1", "no :method", without(":method"), Malformed),
        ("8.3.1", "no :scheme", without(":scheme"), Malformed),
        ("8.3.1", "no :path", without(":path"), Malformed),
        (
            "8.3.1",
            "an empty :path",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")]),
            Malformed,
        ),
        (
            "8.3.1",
            "* for OPTIONS",
            lines(&[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")]),
            Answer(200),
        ),
        (
            "8.3.1",
            "host in the place of :authority",
            lines(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a")]),
            Answer(200),
        ),
        (
            "8.5",
            "CONNECT with :path",
            lines(&[&frames::get("/")[1..], &[(":method", "CONNECT")]].concat()),
            Malformed,
        ),
        ("8.5", "CONNECT without :authority", lines(&[(":method", "CONNECT")]), Malformed),
        (
            "RFC 8441, 4",
            ":protocol without CONNECT",
            lines(&[&frames::get("/")[..], &[(":protocol", "websocket")]].concat()),
            Malformed,
        ),
        ("RFC 7541, 2.3.3", "an index behind both tables", raw(&[0xbe]), End(COMPRESSION)),
        ("RFC 7541, 4.2", "a table size behind a field", raw(&[0x82, 0x20]), End(COMPRESSION)),
        ("RFC 7541, 4.2", "a table above the allowed size", raw(&[0x3f, 0xe2, 0x1f]), End(COMPRESSION)),
        (
            "RFC 7541, 5.1",
            "a number without end",
            raw(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            End(COMPRESSION),
        ),
        (
            "RFC 7541, 5.2",
            "padding of more than seven bits",
            raw(&[0x00, 0x82, 0xff, 0xff, 0x00]),
            End(COMPRESSION),
        ),
        ("RFC 7541, 5.2", "padding of zeros", raw(&[0x00, 0x81, 0x00, 0x00]), End(COMPRESSION)),
        (
            "RFC 7541, 5.2",
            "the end of a string within it",
            raw(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xfc, 0x00]),
            End(COMPRESSION),
        ),
    ]
}

/// What became of a row: of stream 1, and of the connection.
async fn became(wire: &mut Wire, must: Must) -> (Option<Must>, Option<u32>) {
    let (mut stream, mut goes_on) = (None, false);
    loop {
        // Far longer than any of it takes; a row of which nothing comes is told with the others.
        let Ok(Some(event)) = timeout(Duration::from_secs(3), wire.control.recv()).await else {
            return (stream, Some(u32::MAX));
        };
        match event {
            Event::Reset { stream: 1, code } => stream = stream.or(Some(Reset(code))),
            Event::Headers { stream: 1, fields, .. } => {
                let status = wire::of(&fields, ":status").parse().expect("a status");
                stream = stream.or(Some(Answer(status)));
            }
            Event::GoAway { code, .. } if code != 0 => return (stream, Some(code)),
            Event::Closed => return (stream, Some(0)),
            // It has looked at all that was sent.
            Event::Ping { ack: true, payload: [b'e', ..] } => goes_on = true,
            _ => {}
        }
        // What is answered by an endpoint takes its time.
        let has_come = stream.is_some() || matches!(must, Ignore | End(_));
        if goes_on && has_come {
            return (stream, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_demand_is_met() {
    let backend = Backend::start().await;
    let bed = bed_with(&[(backend.address, None)], 1000);
    let mut missed = Vec::new();
    for (section, what, bytes, must) in rows() {
        let mut wire = Wire::connect(bed.address, Wishes::default()).await;
        wire.handle.send([bytes, frames::ping(*b"end of 1")].concat()).await;
        let (stream, ended) = became(&mut wire, must).await;
        let met = match must {
            End(code) => ended == Some(code),
            _ if ended.is_some() => false,
            Malformed => matches!(stream, Some(Reset(PROTOCOL) | Answer(400))),
            ResetEither(one, other) => matches!(stream, Some(Reset(code)) if code == one || code == other),
            Ignore => stream.is_none(),
            Reset(_) | Answer(_) => stream == Some(must),
        };
        if !met {
            missed.push(format!("{section}, {what}: {must:?}, but {stream:?}, connection ended: {ended:?}"));
        } else if let End(_) = must {
            assert_eq!(wire.ended().await, None, "{section}, {what}: GOAWAY is the last that is heard");
        } else if !what.starts_with("GOAWAY") {
            wire.handle.skip_to(101);
            assert_eq!(wire.handle.get("/").await.status, 200, "{section}, {what}: others go on");
        }
        // With what the row has left open.
        wire.handle.close().await;
    }
    assert!(missed.is_empty(), "{missed:#?}");
    backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn the_first_frame_is_settings() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    for first in [
        frames::ping([0; 8]),
        frames::headers(1, true, &frames::get("/")),
        frames::window(0, 1),
        frames::frame(frames::SETTINGS, frames::ACK, 0, b""),
        frames::frame(0x42, 0, 0, b""),
    ] {
        let mut wire = Wire::bare(bed.address).await;
        wire.handle.send([frames::PREFACE, &first].concat()).await;
        assert_eq!(wire.ended().await, Some(PROTOCOL), "{first:?}");
    }
}

#[tokio::test]
async fn settings_are_acknowledged_and_pings_answered_in_their_order() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.extend(frames::settings(&[(4, 1000 + n)]));
        sent.extend(frames::ping(u64::from(n).to_be_bytes()));
    }
    wire.handle.send(sent).await;
    let (mut acks, mut pings) = (0, 0);
    while acks < 21 || pings < 20 {
        match wire.heard().await {
            Event::Settings { ack: true, all } => {
                assert!(all.is_empty());
                acks += 1;
            }
            Event::Ping { ack: true, payload } => {
                assert_eq!(u64::from_be_bytes(payload), pings);
                pings += 1;
                // The first one was for the connection's own.
                assert_eq!(acks, pings + 1);
            }
            Event::Closed => panic!("it has ended"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_stream_with_a_lower_number_cannot_be_opened() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let both =
        [frames::headers(5, true, &frames::get("/")), frames::headers(3, true, &frames::get("/"))].concat();
    wire.handle.send(both).await;
    assert_eq!(wire.ended().await, Some(PROTOCOL), "section 5.1.1");
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let backend = Backend::start().await;
    let bed = bed_with(&[(backend.address, None)], 2000);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let allowed = loop {
        if let Event::Settings { ack: false, all } = wire.heard().await {
            break all.iter().find(|setting| setting.0 == 3).expect("it says how many").1;
        }
    };
    let mut streams = Vec::new();
    for _ in 0..allowed {
        streams.push(wire.handle.open(true, &frames::get("/hang")).await);
    }
    backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) as u32 >= allowed).await;
    let mut above = wire.handle.open(true, &frames::get("/")).await;
    assert_eq!(above.answer().await.broken, Some(Some(REFUSED)));
    streams.pop().expect("there are some").reset(8).await;
    backend.seen.until(|seen| (seen.open.load(Ordering::Relaxed) as u32) < allowed).await;
    assert_eq!(wire.handle.get("/").await.status, 200, "there is room again");
}

/// A client that sends more than its windows let it.
#[tokio::test]
async fn windows_are_insisted_upon() {
    let backend = Backend::with(Wishes { takes: false, shares: false, ..Wishes::default() }).await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let mut stream = wire.handle.open(false, &frames::post("/hang")).await;
    assert!(stream.data(&vec![7; 60_000], false).await);
    wire.handle.send(frames::data(stream.id, false, &[7; 16_000]).repeat(200)).await;
    let broken = stream.answer().await.broken;
    let ended = if broken == Some(None) { wire.ended().await } else { None };
    assert!(broken == Some(Some(FLOW_CONTROL)) || ended == Some(FLOW_CONTROL), "{broken:?}, {ended:?}");
}

/// Windows that the client gives in steps, makes negative, and opens again (section 6.9.2).
#[tokio::test]
async fn a_clients_windows_are_kept() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let wishes = Wishes { settings: vec![(4, 10)], takes: false, strict: false, ..Wishes::default() };
    let wire = Wire::connect(bed.address, wishes).await;
    let mut stream = wire.handle.open(true, &frames::get("/big/1000")).await;
    assert_eq!(stream.head().await.status, 200);
    let comes = async |stream: &mut wire::Stream, wanted: usize| {
        let mut count = 0;
        while count < wanted {
            match stream.part().await {
                Ok(Event::Data { bytes, .. }) => count += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(count, wanted);
        // Nothing follows: what comes in a PING's time would have been sent.
        wire.handle.send(frames::ping(*b"0000000e")).await;
        assert!(timeout(Duration::from_millis(20), stream.next()).await.is_err());
    };
    comes(&mut stream, 10).await;
    wire.handle.send(frames::window(stream.id, 1)).await;
    comes(&mut stream, 1).await;
    // From 10 to 3: seven below nothing.
    wire.handle.send(frames::settings(&[(4, 3)])).await;
    wire.handle.send(frames::window(stream.id, 7)).await;
    comes(&mut stream, 0).await;
    wire.handle.send(frames::window(stream.id, 2)).await;
    comes(&mut stream, 2).await;
    wire.handle.send(frames::settings(&[(4, 103)])).await;
    comes(&mut stream, 100).await;
    wire.handle.send(frames::window(stream.id, 100_000)).await;
    comes(&mut stream, 1000 - 113).await;
}

/// What a client says that it can take is what it gets.
#[tokio::test]
async fn a_client_without_a_header_table_is_served() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let wire = Wire::connect(bed.address, Wishes { settings: vec![(1, 0)], ..Wishes::default() }).await;
    wire.handle.no_table();
    for n in 0..10 {
        let path = format!("/{}", n % 2);
        assert_eq!(wire.handle.get(&path).await.header("x-path"), path);
    }
}
