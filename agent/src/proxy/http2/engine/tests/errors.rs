//! What ends a stream and what ends the connection.

use super::*;
use crate::{
    observe::fault::{Fault, MessagePart},
    proxy::http2::{
        engine::{core::Unfit, handle::Broken},
        frame::{Head, Kind, flags, payload::Setting, write},
    },
};

fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Head::new(kind, flags, stream, payload.len() as u32).bytes()[..], payload].concat()
}

/// `GET http://a/`, in HPACK's static table and a literal.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
const WHOLE: u8 = flags::END_HEADERS | flags::END_STREAM;

/// The code of each RST_STREAM among frames, with its stream.
fn resets(mut bytes: &[u8]) -> Vec<(u32, Code)> {
    let mut resets = Vec::new();
    while let Some(head) = Head::first(bytes) {
        let payload = &bytes[9..9 + head.length as usize];
        if head.kind == Kind::Reset {
            resets.push((head.stream, Code(u32::from_be_bytes(payload.try_into().unwrap()))));
        }
        bytes = &bytes[9 + head.length as usize..];
    }
    resets
}

fn server() -> End {
    let mut server = pair().1;
    server.give(&frame(Kind::Headers, flags::END_HEADERS, 1, GET));
    server.give(&frame(Kind::Headers, WHOLE, 3, GET));
    server
}

#[test]
fn what_a_peer_says_as_it_ends_a_connection_is_kept_for_the_log() {
    let mut client = pair().0;
    let stream = client.open(&request("POST"), false);
    let go_away = |code: u32, text: &[u8]| {
        frame(Kind::GoAway, 0, 0, &[&[0; 4][..], &code.to_be_bytes(), text].concat())
    };
    client.give(&go_away(0, b"a restart"));
    assert_eq!(stream.go_away_error(), None, "nothing is wrong with it");
    client.give(&go_away(11, b"Too much overhead\n"));
    assert_eq!(stream.go_away_error().as_deref(), Some(r#"GOAWAY ENHANCE_YOUR_CALM: "Too much overhead\n""#));
    client.give(&go_away(2, &[0xff; 5000]));
    let said = stream.go_away_error().expect("it said something");
    assert!(said.starts_with("GOAWAY INTERNAL_ERROR") && said.len() < 1000, "{said}");
}

#[test]
fn errors_of_a_stream_end_that_stream_alone() {
    let large = u32::MAX >> 1;
    for (bytes, expected, what) in [
        (frame(Kind::WindowUpdate, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR, "WINDOW_UPDATE of 0"),
        (
            frame(Kind::WindowUpdate, 0, 1, &large.to_be_bytes()),
            Code::FLOW_CONTROL_ERROR,
            "a WINDOW_UPDATE that makes the stream's window too large",
        ),
        // Trailers that do not end it, and trailers that are none.
        (
            frame(Kind::Headers, flags::END_HEADERS, 1, &[0x00, 0x01, b'x', 0x00]),
            Code::PROTOCOL_ERROR,
            "trailers that do not end their stream",
        ),
        (frame(Kind::Headers, WHOLE, 1, GET), Code::PROTOCOL_ERROR, "a pseudo field in trailers"),
        (
            frame(Kind::Headers, WHOLE, 1, &[0x00, 0x01, b'X', 0x00]),
            Code::PROTOCOL_ERROR,
            "a field name that is no token in lower case",
        ),
    ] {
        let mut server = server();
        let streams: Vec<_> = std::iter::from_fn(|| server.accept()).collect();
        server.all_written();
        assert_ne!(server.give(&bytes), Fed::End, "{bytes:?}");
        assert_eq!(resets(&server.all_written()), [(1, expected)], "{bytes:?}");
        assert_eq!(streams[0].0.broken().and_then(Broken::fault).map(|fault| fault.what), Some(what));
        assert_eq!(streams[1].0.broken(), None);
        // What was on its way is dropped without a word.
        server.give(&frame(Kind::Data, 0, 1, b"late"));
        server.give(&frame(Kind::Headers, WHOLE, 1, &[0x40, 0x01, b'x', 0x01, b'y']));
        assert!(resets(&server.all_written()).is_empty());
        assert_eq!(server.ended(), None);
    }
}

#[test]
fn more_data_than_a_streams_window_ends_the_stream() {
    let (mut client, mut server) = pair();
    let up = client.open(&request("POST"), false);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    for n in 0..5 {
        server.give(&frame(Kind::Data, 0, 1, &[0; 16_000]));
        assert_eq!(down.broken().is_some(), n == 4);
    }
    assert_eq!(resets(&server.all_written()), [(1, Code::FLOW_CONTROL_ERROR)]);
    assert_eq!(server.core.borrow().held, server.core.borrow().stream(0).map_or(0, |stream| stream.heads));
    drop(up);
}

#[test]
fn errors_of_the_connection_end_it_with_their_code() {
    let setting = |id: u8, value: u32| [&[0, id][..], &value.to_be_bytes()].concat();
    let large = u32::MAX >> 1;
    for (what, bytes, expected) in [
        ("DATA on an idle stream", frame(Kind::Data, 0, 5, b"x"), Code::PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", frame(Kind::Reset, 0, 5, &[0; 4]), Code::PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE on an idle stream",
            frame(Kind::WindowUpdate, 0, 5, &[0, 0, 0, 1]),
            Code::PROTOCOL_ERROR,
        ),
        ("HEADERS on an even stream", frame(Kind::Headers, WHOLE, 4, GET), Code::PROTOCOL_ERROR),
        ("HEADERS on no stream", frame(Kind::Headers, WHOLE, 0, GET), Code::PROTOCOL_ERROR),
        ("CONTINUATION alone", frame(Kind::Continuation, 4, 1, GET), Code::PROTOCOL_ERROR),
        (
            "a frame within a block",
            [frame(Kind::Headers, 0, 5, GET), frame(Kind::Ping, 0, 0, &[0; 8])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "no HPACK",
            frame(Kind::Headers, WHOLE, 5, &[0xff, 0xff, 0xff, 0xff, 0xff]),
            Code::COMPRESSION_ERROR,
        ),
        ("an empty window update", frame(Kind::WindowUpdate, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
        (
            "a window too large",
            frame(Kind::WindowUpdate, 0, 0, &large.to_be_bytes()),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "an initial window too large",
            frame(Kind::Settings, 0, 0, &setting(4, 1 << 31)),
            Code::FLOW_CONTROL_ERROR,
        ),
        ("a frame size too small", frame(Kind::Settings, 0, 0, &setting(5, 100)), Code::PROTOCOL_ERROR),
        ("an acknowledgement of nothing", frame(Kind::Settings, 1, 0, &[]), Code::PROTOCOL_ERROR),
        ("PUSH_PROMISE", frame(Kind::PushPromise, 4, 1, &[0, 0, 0, 2]), Code::PROTOCOL_ERROR),
        ("a frame too large", frame(Kind::Data, 0, 1, &vec![0; 16_385]), Code::FRAME_SIZE_ERROR),
        ("PING too small", frame(Kind::Ping, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
    ] {
        let mut server = server();
        let streams: Vec<_> = std::iter::from_fn(|| server.accept()).collect();
        assert_eq!(server.give(&bytes), Fed::End, "{what}");
        assert_eq!(server.violation(), Some(expected), "{what}");
        assert!(
            streams.iter().all(|(stream, _)| stream.broken().is_some_and(|it| it.fault().is_some())),
            "{what}"
        );
        let out = server.all_written();
        let go_away = [&[7_u8, 0, 0, 0, 0, 0][..], &3_u32.to_be_bytes(), &expected.0.to_be_bytes()].concat();
        assert!(memchr::memmem::find(&out, &go_away).is_some(), "{what}");
    }
    let mut early = End::new(Role::Server);
    assert_eq!(early.give(&frame(Kind::Headers, WHOLE, 1, GET)), Fed::End);
    assert_eq!(early.violation(), Some(Code::PROTOCOL_ERROR), "SETTINGS come first");
}

#[test]
fn more_data_than_the_connections_window_ends_it() {
    let mut server = pair().1;
    // Nothing is left of the pod's budget, so nothing is given again.
    let mut other = server.allowance.bytes.take_none();
    other.set(BUDGET);
    for stream in [1, 3] {
        server.give(&frame(Kind::Headers, flags::END_HEADERS, stream, GET));
    }
    for n in 0..5 {
        let stream = if n % 2 == 0 { 1 } else { 3 };
        let fed = server.give(&frame(Kind::Data, 0, stream, &[0; 16_000]));
        assert_eq!(fed == Fed::End, n == 4);
    }
    assert_eq!(server.violation(), Some(Code::FLOW_CONTROL_ERROR));
}

#[test]
fn requests_that_are_none_are_told_apart() {
    let mut server = pair().1;
    // Without a path; and one whose head is too large, after which the tables are still in step.
    server.give(&frame(Kind::Headers, WHOLE, 1, &GET[..2]));
    let (client, _) = pair();
    let mut large = request("GET");
    for n in 0..5 {
        large.add(format!("x-{n}").as_bytes(), &[b'v'; 16_000]);
    }
    drop(client.open(&large, true));
    let bytes = client.all_written();
    // Its stream is the client's first.
    let mut heads = bytes.clone();
    let mut at = 0;
    while at < heads.len() {
        let head = Head::first(&heads[at..]).unwrap();
        heads[at + 5..at + 9].copy_from_slice(&3_u32.to_be_bytes());
        at += 9 + head.length as usize;
    }
    server.give(&heads);
    server.give(&frame(Kind::Headers, WHOLE, 5, GET));
    let fits: Vec<_> = std::iter::from_fn(|| server.accept()).map(|(_, accepted)| accepted.fit).collect();
    assert!(matches!(fits[0], Err(Unfit::Malformed(_))));
    assert_eq!(fits[1..], [Err(Unfit::TooLarge), Ok(())]);
}

#[test]
fn a_body_has_the_length_that_was_told() {
    let of = |stream: &Handle| stream.broken().map(|broken| broken.fault().expect("a violation"));
    let framing = |what| Some(Fault::new(MessagePart::Framing, what));
    let shorter = framing("a body that is shorter than its Content-Length");
    let longer = framing("a body that is longer than its Content-Length");
    for (length, sent, fault) in [("4", &b"ping"[..], None), ("5", b"ping", shorter), ("3", b"ping", longer)]
    {
        let (mut client, mut server) = pair();
        let mut head = request("POST");
        head.add(b"content-length", length.as_bytes());
        let up = client.open(&head, false);
        up.send_data(Bytes::copy_from_slice(sent), true);
        exchange(&mut client, &mut server);
        let (down, _) = server.accept().expect("a request");
        assert_eq!(of(&down), fault, "{length}");
    }
    for (method, status, length, fault) in [
        ("GET", "200", "5", shorter),
        ("HEAD", "200", "5", None),
        ("GET", "304", "5", None),
        ("GET", "200", "0", None),
    ] {
        let (mut client, mut server) = pair();
        let up = client.open(&request(method), true);
        if method == "HEAD" {
            up.expect_no_body();
        }
        exchange(&mut client, &mut server);
        let (down, _) = server.accept().expect("a request");
        let mut head = response(status);
        head.add(b"content-length", length.as_bytes());
        down.send_head(&Pseudo::Within, &head, true);
        exchange(&mut client, &mut server);
        assert_eq!(of(&up), fault, "{method} {status} {length}");
    }
}

#[test]
fn interim_responses_without_end_reset_their_stream() {
    let (mut client, mut server) = pair();
    let (up, other) = (client.open(&request("GET"), true), client.open(&request("GET"), true));
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    let mut passed = 0;
    while up.broken().is_none() {
        down.send_head(&Pseudo::Status(103), &fields(&[("link", "</a>")]), false);
        exchange(&mut client, &mut server);
        if now(|cx| up.poll_response(cx)).is_some_and(|response| response.is_ok()) {
            passed += 1;
        }
        assert!(passed < 1000);
    }
    assert!(up.broken().is_some_and(|broken| broken.fault().is_some()) && other.broken().is_none());
}

#[test]
fn streams_above_the_limit_are_refused_and_the_others_go_on() {
    let mut server = pair().1;
    let mut streams = Vec::new();
    for n in 0..1100 {
        server.give(&frame(Kind::Headers, WHOLE, 2 * n + 1, GET));
        streams.extend(std::iter::from_fn(|| server.accept()));
    }
    assert_eq!(streams.len(), 1024);
    let resets = resets(&server.all_written());
    assert_eq!(resets.len(), 76);
    assert!(resets.iter().all(|(_, code)| *code == Code::REFUSED_STREAM));
    assert_eq!(server.ended(), None);
}

#[test]
fn resets_and_empty_frames_are_paid_for_and_bursts_are_free() {
    // All that a client may have, given up at once, and asked anew.
    let mut server = pair().1;
    let mut bytes: Vec<u8> = (0..1024).flat_map(|n| frame(Kind::Headers, WHOLE, 2 * n + 1, GET)).collect();
    bytes.extend((0..1024_u32).flat_map(|n| frame(Kind::Reset, 0, 2 * n + 1, &[0, 0, 0, 8])));
    bytes.extend((1024..2048).flat_map(|n| frame(Kind::Headers, WHOLE, 2 * n + 1, GET)));
    let mut fed = server.give(&bytes);
    let mut streams = Vec::new();
    while fed == Fed::More {
        streams.extend(std::iter::from_fn(|| server.accept()));
        streams.retain(|(stream, _)| stream.broken().is_none());
        fed = server.feed();
    }
    streams.extend(std::iter::from_fn(|| server.accept()));
    assert_eq!((fed, server.ended()), (Fed::All, None));
    assert_eq!(streams.iter().filter(|(stream, _)| stream.broken().is_none()).count(), 1024);

    for kind in
        [Kind::Ping, Kind::Settings, Kind::WindowUpdate, Kind::Priority, Kind::Data, Kind::Unknown(77)]
    {
        let mut server = server_with_open_stream();
        let one = match kind {
            Kind::Ping => frame(kind, 0, 0, &[0; 8]),
            Kind::WindowUpdate => frame(kind, 0, 1, &[0, 0, 0, 1]),
            Kind::Priority => frame(kind, 0, 1, &[0; 5]),
            Kind::Settings => frame(kind, 0, 0, &[]),
            _ => frame(kind, 0, 1, &[]),
        };
        let mut given = 0;
        while !matches!(server.give(&one), Fed::Pause(_)) {
            given += 1;
            assert!(given < 10_000, "{kind:?}");
        }
        assert!(given > 200, "{kind:?}: {given}");
        assert_eq!(server.ended(), None, "{kind:?}");
    }
}

#[test]
fn settings_that_change_the_windows_of_many_streams_cost_more_than_a_frame() {
    let change = |window: u32| [&[0, 4][..], &window.to_be_bytes()].concat();
    let entries: Vec<u8> = (0..2000).flat_map(|n| change(10_000 + n)).collect();
    let mut server = pair().1;
    let mut streams = Vec::new();
    for n in 0..1000 {
        server.give(&frame(Kind::Headers, WHOLE, 2 * n + 1, GET));
        streams.extend(std::iter::from_fn(|| server.accept()));
    }
    let mut given = 0;
    while !matches!(server.give(&frame(Kind::Settings, 0, 0, &change(1000 + given))), Fed::Pause(_)) {
        given += 1;
        assert!(given < 100, "as many as could be had for frames that cost one each");
    }
    assert!(given > 10, "who changes them now and then does not pay: {given}");
    assert_eq!(server.ended(), None);

    // Of many in a frame the last one holds, and all are paid for.
    let mut server = server_with_open_stream();
    let mut given = 0;
    while !matches!(server.give(&frame(Kind::Settings, 0, 0, &entries)), Fed::Pause(_)) {
        given += 1;
        assert!(given < 20, "{given}");
    }
    assert_eq!(server.core.borrow().remote().window, 11_999);
}

fn server_with_open_stream() -> End {
    let mut server = pair().1;
    server.give(&frame(Kind::Headers, flags::END_HEADERS, 1, GET));
    server
}

#[test]
fn settings_are_applied_and_acknowledged() {
    let mut server = server_with_open_stream();
    server.all_written();
    let mut bytes = BytesMut::new();
    write::settings(
        &mut bytes,
        &[
            Setting::InitialWindowSize(10),
            Setting::MaxFrameSize(20_000),
            Setting::HeaderTableSize(0),
            Setting::EnableConnectProtocol(true),
        ],
    );
    server.give(&bytes);
    assert_eq!(server.all_written(), frame(Kind::Settings, 1, 0, &[]));
    let (down, _) = server.accept().expect("a request");
    down.send_head(&Pseudo::Within, &response("200"), false);
    assert_eq!(room(&down), Some(10));
    let mut bytes = BytesMut::new();
    write::settings(
        &mut bytes,
        &[Setting::InitialWindowSize(65_535 << 10), Setting::EnableConnectProtocol(true)],
    );
    server.give(&bytes);
    assert_eq!(room(&down), Some(65_535), "that of the connection");
    bytes.clear();
    write::settings(&mut bytes, &[Setting::EnableConnectProtocol(false)]);
    assert_eq!(server.give(&bytes), Fed::End);
}
