//! Every frame, right and wrong, and what each wrong one ends.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    block::{Block, Blocks, Bounds},
    payload::{GoAway, Setting},
    *,
};

const BOUNDS: Bounds = Bounds { bytes: 100, frames: 3 };

/// What ends by a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Nothing,
    Stream(Code),
    Connection(Code),
}

impl Ends {
    fn by<T>(result: Result<T, Error>) -> Self {
        match result.map(drop) {
            Ok(()) => Self::Nothing,
            Err(Error::Stream(code, _)) => Self::Stream(code),
            Err(Error::Connection(code, _)) => Self::Connection(code),
        }
    }
}

/// A frame as its reader takes it.
fn read(head: &Head, payload: &[u8]) -> Result<(), Error> {
    head.check(MAX_FRAME_SIZE)?;
    Blocks::default().check(head)?;
    match head.kind {
        Kind::Data => payload::content(head, payload.first().copied()).map(drop),
        Kind::Headers => payload::headers(head, payload).map(drop),
        Kind::Reset => payload::reset(payload).map(drop),
        Kind::Settings => payload::settings(payload).try_for_each(|setting| setting.map(drop)),
        Kind::Ping => payload::ping(payload).map(drop),
        Kind::GoAway => payload::go_away(payload).map(drop),
        Kind::WindowUpdate => payload::window_update(head, payload).map(drop),
        Kind::Priority | Kind::PushPromise | Kind::Continuation | Kind::Unknown(_) => Ok(()),
    }
}

#[test]
fn each_wrong_frame_ends_what_the_rfc_says() {
    use Ends::Nothing;
    use Kind::*;
    let (protocol, size) = (Ends::Connection(Code::PROTOCOL_ERROR), Ends::Connection(Code::FRAME_SIZE_ERROR));
    let padded = flags::PADDED;
    let setting = |id: u8, value: u32| [&[0, id][..], &value.to_be_bytes()].concat();
    let cases = [
        ("6.1 DATA", Data, 0, 1, vec![1; 10], Nothing),
        ("6.1 empty DATA", Data, 1, 1, vec![], Nothing),
        ("6.1 DATA on no stream", Data, 0, 0, vec![1; 10], protocol),
        ("6.1 all padding", Data, padded, 1, vec![4, 0, 0, 0, 0], Nothing),
        ("6.1 padding of the payload's size", Data, padded, 1, vec![5, 0, 0, 0, 0], protocol),
        ("6.1 no padding but its length", Data, padded, 1, vec![0], Nothing),
        ("6.1 no length of the padding", Data, padded, 1, vec![], size),
        ("6.2 HEADERS", Headers, 5, 1, vec![0x82], Nothing),
        ("6.2 HEADERS on no stream", Headers, 5, 0, vec![0x82], protocol),
        ("6.2 too much padding", Headers, 5 | padded, 1, vec![2, 0x82], protocol),
        ("6.2 padding that leaves no priority", Headers, 0x2d, 1, vec![1, 0, 0, 0, 0, 0], protocol),
        ("6.2 nothing but priority and padding", Headers, 0x2d, 1, vec![1, 0, 0, 0, 0, 0, 0], Nothing),
        ("6.2 no priority", Headers, 0x25, 1, vec![0; 4], size),
        ("6.2 no priority but padding", Headers, 0x2d, 1, vec![0; 5], size),
        ("6.3 PRIORITY", Priority, 0, 1, vec![0; 5], Nothing),
        ("6.3 PRIORITY on no stream", Priority, 0, 0, vec![0; 5], protocol),
        ("6.3 short PRIORITY", Priority, 0, 1, vec![0; 4], Ends::Stream(Code::FRAME_SIZE_ERROR)),
        ("6.3 long PRIORITY", Priority, 0, 1, vec![0; 6], Ends::Stream(Code::FRAME_SIZE_ERROR)),
        ("6.4 RST_STREAM", Reset, 0, 1, vec![0; 4], Nothing),
        ("6.4 RST_STREAM on no stream", Reset, 0, 0, vec![0; 4], protocol),
        ("6.4 short RST_STREAM", Reset, 0, 1, vec![0; 3], size),
        ("6.4 long RST_STREAM", Reset, 0, 1, vec![0; 5], size),
        ("6.5 SETTINGS", Settings, 0, 0, setting(1, 0), Nothing),
        ("6.5 no SETTINGS", Settings, 0, 0, vec![], Nothing),
        ("6.5 SETTINGS on a stream", Settings, 0, 1, vec![], protocol),
        ("6.5 an acknowledgement", Settings, 1, 0, vec![], Nothing),
        ("6.5 an acknowledgement with settings", Settings, 1, 0, setting(1, 0), size),
        ("6.5 half a setting", Settings, 0, 0, vec![0; 5], size),
        ("6.5 one and a half", Settings, 0, 0, vec![0; 9], size),
        ("6.5.2 push is 2", Settings, 0, 0, setting(2, 2), protocol),
        ("6.5.2 largest window", Settings, 0, 0, setting(4, 0x7fff_ffff), Nothing),
        ("6.5.2 above it", Settings, 0, 0, setting(4, 1 << 31), Ends::Connection(Code::FLOW_CONTROL_ERROR)),
        ("6.5.2 smallest frame size", Settings, 0, 0, setting(5, 16_384), Nothing),
        ("6.5.2 below it", Settings, 0, 0, setting(5, 16_383), protocol),
        ("6.5.2 largest frame size", Settings, 0, 0, setting(5, 16_777_215), Nothing),
        ("6.5.2 above it", Settings, 0, 0, setting(5, 16_777_216), protocol),
        ("6.5.2 unknown settings", Settings, 0, 0, setting(0x77, u32::MAX), Nothing),
        (
            "6.5.2 a wrong one behind a right one",
            Settings,
            0,
            0,
            [setting(1, 9), setting(2, 9)].concat(),
            protocol,
        ),
        ("RFC 8441 extended CONNECT is 2", Settings, 0, 0, setting(8, 2), protocol),
        ("RFC 9218 no priorities is 2", Settings, 0, 0, setting(9, 2), protocol),
        ("6.6 PUSH_PROMISE", PushPromise, 4, 1, vec![0, 0, 0, 2, 0x82], protocol),
        ("6.7 PING", Ping, 0, 0, vec![0; 8], Nothing),
        ("6.7 PING on a stream", Ping, 0, 1, vec![0; 8], protocol),
        ("6.7 short PING", Ping, 0, 0, vec![0; 7], size),
        ("6.7 long PING", Ping, 1, 0, vec![0; 9], size),
        ("6.8 GOAWAY", GoAway, 0, 0, vec![0; 8], Nothing),
        ("6.8 GOAWAY with words", GoAway, 0, 0, vec![0; 80], Nothing),
        ("6.8 GOAWAY on a stream", GoAway, 0, 1, vec![0; 8], protocol),
        ("6.8 short GOAWAY", GoAway, 0, 0, vec![0; 7], size),
        ("6.9 WINDOW_UPDATE", WindowUpdate, 0, 0, vec![0, 0, 0, 1], Nothing),
        ("6.9 the reserved bit", WindowUpdate, 0, 1, vec![0x80, 0, 0, 1], Nothing),
        ("6.9 of 0 on the connection", WindowUpdate, 0, 0, vec![0; 4], protocol),
        ("6.9 of 0 and the reserved bit", WindowUpdate, 0, 0, vec![0x80, 0, 0, 0], protocol),
        ("6.9 of 0 on a stream", WindowUpdate, 0, 1, vec![0; 4], Ends::Stream(Code::PROTOCOL_ERROR)),
        ("6.9 short WINDOW_UPDATE", WindowUpdate, 0, 1, vec![0; 3], size),
        ("6.9 long WINDOW_UPDATE", WindowUpdate, 0, 0, vec![0; 5], size),
        ("6.10 CONTINUATION on no stream", Continuation, 4, 0, vec![0x82], protocol),
        ("6.10 CONTINUATION without HEADERS", Continuation, 4, 1, vec![0x82], protocol),
        ("5.5 an unknown frame", Unknown(0x42), 0xff, 77, vec![9; 100], Nothing),
        ("4.2 the largest frame", Data, 0, 1, vec![0; 16_384], Nothing),
        ("4.2 a larger one", Data, 0, 1, vec![0; 16_385], size),
        ("4.2 a larger one that nobody knows", Unknown(0x42), 0, 0, vec![0; 16_385], size),
    ];
    for (what, kind, flags, stream, payload, expected) in cases {
        let head = Head::new(kind, flags, stream, payload.len() as u32);
        assert_eq!(Ends::by(read(&head, &payload)), expected, "{what}");
    }
}

#[test]
fn heads_come_back_and_ignore_the_reserved_bit() {
    for byte in 0..=255 {
        let head = Head::new(Kind::of(byte), !byte, 0x7fff_fffe, 0x00ff_fffe);
        let mut bytes = head.bytes();
        assert_eq!((bytes[3], Head::parse(&bytes)), (byte, head));
        bytes[5] |= 0x80;
        assert_eq!(Head::parse(&bytes), head);
        for length in 0..HEAD {
            assert_eq!(Head::first(&bytes[..length]), None);
        }
        assert_eq!(Head::first(&[&bytes[..], b"more"].concat()), Some(head));
    }
}

/// Frames of what `write` has made.
fn frames(mut bytes: &[u8]) -> Vec<(Head, Bytes)> {
    let mut frames = Vec::new();
    while let Some(head) = Head::first(bytes) {
        let end = HEAD + head.length as usize;
        frames.push((head, Bytes::copy_from_slice(&bytes[HEAD..end])));
        bytes = &bytes[end..];
    }
    assert!(bytes.is_empty());
    frames
}

#[test]
fn what_is_written_is_read() {
    let mut out = BytesMut::new();
    let settings = [
        Setting::HeaderTableSize(0),
        Setting::EnablePush(false),
        Setting::MaxConcurrentStreams(1),
        Setting::InitialWindowSize(2),
        Setting::MaxFrameSize(20_000),
        Setting::MaxHeaderListSize(3),
        Setting::EnableConnectProtocol(true),
        Setting::NoRfc7540Priorities(true),
        Setting::Unknown(0xabcd, 4),
    ];
    write::settings(&mut out, &settings);
    write::settings_ack(&mut out);
    write::ping(&mut out, *b"12345678", false);
    write::ping(&mut out, *b"12345678", true);
    write::go_away(&mut out, 7, Code::ENHANCE_YOUR_CALM, b"why");
    write::window_update(&mut out, 5, 77);
    write::reset(&mut out, 9, Code::CANCEL);
    write::data(&mut out, 3, 5, true);
    out.extend_from_slice(b"hello");
    let frames = frames(&out);
    let heads: Vec<_> = frames.iter().map(|(head, _)| (head.kind, head.flags, head.stream)).collect();
    assert_eq!(
        heads,
        [
            (Kind::Settings, 0, 0),
            (Kind::Settings, 1, 0),
            (Kind::Ping, 0, 0),
            (Kind::Ping, 1, 0),
            (Kind::GoAway, 0, 0),
            (Kind::WindowUpdate, 0, 5),
            (Kind::Reset, 0, 9),
            (Kind::Data, 1, 3),
        ]
    );
    for (head, payload) in &frames {
        assert_eq!(read(head, payload), Ok(()));
    }
    let told: Result<Vec<_>, _> = payload::settings(&frames[0].1).collect();
    assert_eq!(told.as_deref(), Ok(&settings[..]));
    assert_eq!(payload::ping(&frames[2].1), Ok(*b"12345678"));
    let away = GoAway { last: 7, code: Code::ENHANCE_YOUR_CALM, debug: b"why" };
    assert_eq!(payload::go_away(&frames[4].1), Ok(away));
    assert_eq!(payload::window_update(&frames[5].0, &frames[5].1), Ok(77));
    assert_eq!(payload::reset(&frames[6].1), Ok(Code::CANCEL));
    assert_eq!(payload::content(&frames[7].0, None), Ok(0..5));
}

#[test]
fn a_payload_that_is_cut_off_is_an_error() {
    for (kind, flags, payload, whole) in [
        (Kind::Headers, 0x2d, vec![2, 0, 0, 0, 0, 0, 0x82, 0x84, 0, 0], 8),
        (Kind::Reset, 0, vec![0; 4], 4),
        (Kind::Ping, 0, vec![0; 8], 8),
        (Kind::GoAway, 0, vec![0; 8], 8),
        (Kind::WindowUpdate, 0, vec![0, 0, 0, 1], 4),
        (Kind::Settings, 0, [[0, 3, 0, 0, 0, 1]; 2].concat(), 12),
    ] {
        let head = Head::new(kind, flags, 1, payload.len() as u32);
        for length in 0..whole {
            let part = &payload[..length];
            let ended = match kind {
                Kind::Headers => Ends::by(payload::headers(&head, part)),
                Kind::Reset => Ends::by(payload::reset(part)),
                Kind::Ping => Ends::by(payload::ping(part)),
                Kind::GoAway => Ends::by(payload::go_away(part)),
                Kind::WindowUpdate => Ends::by(payload::window_update(&head, part)),
                _ => Ends::by(payload::settings(part).try_for_each(|setting| setting.map(drop))),
            };
            let whole_settings = kind == Kind::Settings && length % 6 == 0;
            let expected =
                if whole_settings { Ends::Nothing } else { Ends::Connection(Code::FRAME_SIZE_ERROR) };
            assert_eq!(ended, expected, "{kind:?} {length}");
        }
    }
}

fn part(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> (Head, Bytes) {
    (Head::new(kind, flags, stream, payload.len() as u32), Bytes::copy_from_slice(payload))
}

#[test]
fn a_block_in_one_frame_is_not_copied() {
    let (head, payload) = part(Kind::Headers, 0x2d, 3, &[1, 0, 0, 0, 0, 0, 0x82, 0x84, 0]);
    let block = Blocks::default().take(&head, &payload, &BOUNDS).expect("it is one").expect("it is whole");
    assert_eq!(block, Block { stream: 3, end_stream: true, bytes: Bytes::from_static(&[0x82, 0x84]) });
    assert_eq!(block.bytes.as_ptr(), payload[6..].as_ptr());
}

#[test]
fn a_block_in_several_frames_is_put_together() {
    let mut blocks = Blocks::default();
    for n in 0..2 {
        let stream = 3 + 2 * n;
        for (kind, flags, payload) in [
            (Kind::Headers, 0x9, &[1, 0x82, 0][..]),
            (Kind::Continuation, 0, b""),
            (Kind::Continuation, 0, b"\x84\x85"),
        ] {
            let (head, payload) = part(kind, flags, stream, payload);
            assert_eq!(blocks.take(&head, &payload, &BOUNDS), Ok(None));
            assert!(blocks.held() > 0);
        }
        // Flags that CONTINUATION does not have mean nothing.
        let (head, payload) = part(Kind::Continuation, 0x2d, stream, &[0x86]);
        let bytes = Bytes::from_static(&[0x82, 0x84, 0x85, 0x86]);
        assert_eq!(
            blocks.take(&head, &payload, &BOUNDS),
            Ok(Some(Block { stream, end_stream: true, bytes }))
        );
        assert_eq!(blocks.held(), 0);
    }
}

#[test]
fn nothing_comes_between_the_parts_of_a_block() {
    let protocol = Ends::Connection(Code::PROTOCOL_ERROR);
    for byte in 0..12 {
        for stream in [0, 3, 5] {
            let mut blocks = Blocks::default();
            let (head, payload) = part(Kind::Headers, 0, 3, &[0x82]);
            assert_eq!(blocks.take(&head, &payload, &BOUNDS), Ok(None));
            let next = Head::new(Kind::of(byte), 4, stream, 0);
            let expected = if byte == 9 && stream == 3 { Ends::Nothing } else { protocol };
            assert_eq!(Ends::by(blocks.check(&next)), expected, "{byte} on {stream}");
            assert_eq!(Ends::by(blocks.take(&next, &Bytes::new(), &BOUNDS)), expected, "{byte} on {stream}");
        }
    }
    let (head, payload) = part(Kind::Continuation, 4, 3, &[0x82]);
    assert_eq!(Ends::by(Blocks::default().take(&head, &payload, &BOUNDS)), protocol);
}

#[test]
fn a_block_without_end_ends_the_connection() {
    let calm = Ends::Connection(Code::ENHANCE_YOUR_CALM);
    let take = |parts: &[(u8, usize)]| {
        let mut blocks = Blocks::default();
        let mut last = Ok(None);
        for (n, (flags, length)) in parts.iter().enumerate() {
            let kind = if n == 0 { Kind::Headers } else { Kind::Continuation };
            assert_eq!(Ends::by(last), Ends::Nothing);
            let (head, payload) = part(kind, *flags, 1, &vec![0x82; *length]);
            last = blocks.take(&head, &payload, &BOUNDS);
        }
        Ends::by(last)
    };
    assert_eq!(take(&[(4, 100)]), Ends::Nothing);
    assert_eq!(take(&[(4, 101)]), calm);
    assert_eq!(take(&[(0, 50), (4, 50)]), Ends::Nothing);
    assert_eq!(take(&[(0, 50), (4, 51)]), calm);
    assert_eq!(take(&[(0, 0), (0, 0), (0, 0), (4, 0)]), Ends::Nothing, "three that continue");
    assert_eq!(take(&[(0, 0), (0, 0), (0, 0), (0, 0), (4, 0)]), calm, "the fourth");
}

proptest! {
    #[test]
    fn a_block_of_any_size_fits_any_frames(length in 0_usize..1000, max in 1_u32..300, end_stream: bool, before: Vec<u8>) {
        let block: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let mut out = BytesMut::from(&before[..]);
        write::headers(&mut out, 7, end_stream, max, |out| out.extend_from_slice(&block));
        prop_assert_eq!(&out[..before.len()], &before[..]);
        let mut blocks = Blocks::default();
        let bounds = Bounds { bytes: 1000, frames: 1000 };
        let mut whole = None;
        for (head, payload) in frames(&out[before.len()..]) {
            prop_assert!(whole.is_none() && head.length <= max);
            whole = blocks.take(&head, &payload, &bounds).expect("it is right");
        }
        prop_assert_eq!(whole, Some(Block { stream: 7, end_stream, bytes: block.into() }));
    }

    #[test]
    fn no_bytes_do_any_harm(kind: u8, flags: u8, stream in 0_u32..3, payload: Vec<u8>, cut: prop::sample::Index) {
        let head = Head::new(Kind::of(kind % 12), flags, stream, payload.len() as u32);
        let _ = read(&head, &payload);
        // And if the payload is shorter than its head says.
        let short = &payload[..cut.index(payload.len() + 1)];
        let _ = read(&head, short);
        let _ = Blocks::default().take(&head, &Bytes::copy_from_slice(short), &BOUNDS);
        if let Ok(content) = payload::content(&head, short.first().copied()) {
            prop_assert!(content.end <= payload.len());
        }
    }
}
