//! Fuzz targets about HTTP/2: frames and header blocks.

use bytes::{Bytes, BytesMut};

use super::{
    frame::{
        self, Error, HEAD, Head, Kind, MAX_FRAME_SIZE,
        block::{Blocks, Bounds},
        flags, payload, write,
    },
    hpack::{Decoder, Encoder, Indexing, OVERHEAD, StaticName, TABLE_SIZE},
};
use crate::fuzzing::pieces;

const BOUNDS: Bounds = Bounds { bytes: 1024, frames: 4 };

/// Heads are written as they were read, what frames say is within them, settings and header blocks are written and read
/// the same, and no block takes more memory than it may.
pub(crate) fn http2_frames(input: &[u8]) {
    let mut blocks = Blocks::default();
    let mut left = Bytes::copy_from_slice(input);
    while let Some(head) = Head::first(&left) {
        let mut octets = [0; HEAD];
        octets.copy_from_slice(&left[..HEAD]);
        // The reserved bit is ignored.
        octets[5] &= 0x7f;
        assert_eq!(head.bytes(), octets);
        let checked = head.check(MAX_FRAME_SIZE);
        if matches!(checked, Err(Error::Connection(..))) || blocks.check(&head).is_err() {
            return;
        }
        let end = HEAD + head.length as usize;
        if left.len() < end {
            return;
        }
        let payload = left.slice(HEAD..end);
        left = left.slice(end..);
        if checked.is_ok() && !frame(&mut blocks, &head, &payload) {
            return;
        }
    }
}

/// Whether the connection goes on.
fn frame(blocks: &mut Blocks, head: &Head, bytes: &Bytes) -> bool {
    match head.kind {
        Kind::Data => {
            let Ok(content) = payload::content(head, bytes.first().copied()) else { return false };
            assert!(content.start <= content.end && content.end <= bytes.len());
        }
        Kind::Headers | Kind::Continuation => match blocks.take(head, bytes, &BOUNDS) {
            Ok(Some(block)) => {
                assert_eq!((block.stream, blocks.held()), (head.stream, 0));
                assert!(block.bytes.len() <= BOUNDS.bytes);
                headers_are_read_as_written(block.stream, block.end_stream, &block.bytes);
            }
            Ok(None) => assert!(blocks.held() <= 4 * BOUNDS.bytes, "{} bytes are held", blocks.held()),
            Err(_) => return false,
        },
        Kind::Settings if !head.has(flags::ACK) => {
            let Ok(settings) = payload::settings(bytes).collect::<Result<Vec<_>, _>>() else { return false };
            let mut out = BytesMut::new();
            write::settings(&mut out, &settings);
            assert!(payload::settings(&out[HEAD..]).eq(settings.into_iter().map(Ok)));
        }
        Kind::Ping => assert_eq!(payload::ping(bytes).as_ref().map(|ping| &ping[..]), Ok(&bytes[..])),
        Kind::Reset => {
            let code = payload::reset(bytes).expect("its size was checked");
            let mut out = BytesMut::new();
            write::reset(&mut out, head.stream, code);
            assert_eq!(out[HEAD..], bytes[..]);
        }
        Kind::GoAway => {
            let read = payload::go_away(bytes).expect("its size was checked");
            let mut out = BytesMut::new();
            write::go_away(&mut out, read.last, read.code, read.debug);
            assert_eq!(payload::go_away(&out[HEAD..]), Ok(read));
        }
        Kind::WindowUpdate => match payload::window_update(head, bytes) {
            Ok(step) => assert!((1..=frame::MAX_WINDOW).contains(&step)),
            Err(error) => return matches!(error, Error::Stream(..)),
        },
        Kind::Priority | Kind::Settings | Kind::PushPromise | Kind::Unknown(_) => {}
    }
    true
}

/// In frames of 100 bytes, so that there are CONTINUATIONs.
fn headers_are_read_as_written(stream: u32, end_stream: bool, block: &Bytes) {
    let mut out = BytesMut::new();
    write::headers(&mut out, stream, end_stream, 100, |out| out.extend_from_slice(block));
    let bounds = Bounds { bytes: BOUNDS.bytes, frames: 100 };
    let (mut blocks, mut left) = (Blocks::default(), out.freeze());
    loop {
        let head = Head::first(&left).expect("a block has an end");
        assert_eq!(head.check(100), Ok(()));
        let payload = left.slice(HEAD..HEAD + head.length as usize);
        left = left.slice(HEAD + head.length as usize..);
        if let Some(read) = blocks.take(&head, &payload, &bounds).expect("it is well formed") {
            assert_eq!((read.stream, read.end_stream, &read.bytes), (stream, end_stream, block));
            assert!(left.is_empty());
            return;
        }
    }
}

/// What a list of fields may have.
const LIST: usize = 2048;
/// What a decoder and an encoder may hold: a table with its places, and a text.
const HELD: usize = 64 * 1024;

/// One field.
type Field = (Vec<u8>, Vec<u8>, bool);

/// Lists of fields have their bound, and go out as they came in.
pub(crate) fn hpack(input: &[u8]) {
    let (mut decoder, mut encoder) = (Decoder::new(TABLE_SIZE), Encoder::new(TABLE_SIZE));
    let mut next_hop = Decoder::new(TABLE_SIZE);
    for block in pieces(input) {
        let mut fields: Vec<Field> = Vec::new();
        let decoded = decoder.decode(block, LIST, &mut |field| {
            assert_eq!(field.known, StaticName::find(field.name));
            fields.push((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
        });
        let size: usize = fields.iter().map(|(name, value, _)| name.len() + value.len() + OVERHEAD).sum();
        assert!(size <= LIST, "a list of {size} bytes");
        assert!(decoder.held() <= HELD && encoder.held() <= HELD && next_hop.held() <= HELD);

        let mut out = BytesMut::new();
        for (name, value, never_indexed) in &fields {
            let indexing = if *never_indexed { Indexing::Never } else { Indexing::Auto };
            encoder.encode(&mut out, name, value, indexing);
        }
        let mut read: Vec<Field> = Vec::new();
        next_hop
            .decode(&out, usize::MAX, &mut |field| {
                read.push((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
            })
            .expect("what is encoded can be decoded");
        assert_eq!(read.len(), fields.len());
        for (read, field) in read.iter().zip(&fields) {
            assert_eq!((&read.0, &read.1), (&field.0, &field.1));
            assert!(read.2 || !field.2, "a field that must not be indexed stays one");
        }
        if decoded.is_err_and(|error| matches!(error, super::hpack::Error::Compression(_))) {
            return;
        }
    }
}
