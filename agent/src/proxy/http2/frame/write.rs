//! Making frames: all of it appended to what goes out next.

use bytes::{BufMut, BytesMut};

use super::{Code, HEAD, Head, Kind, flags, payload::Setting};

/// The head of DATA; its payload follows, from wherever it is.
pub(crate) fn data(out: &mut BytesMut, stream: u32, length: u32, end_stream: bool) {
    let flags = if end_stream { flags::END_STREAM } else { 0 };
    out.put_slice(&Head::new(Kind::Data, flags, stream, length).bytes());
}

pub(crate) fn settings(out: &mut BytesMut, settings: &[Setting]) {
    out.put_slice(&Head::new(Kind::Settings, 0, 0, 6 * settings.len() as u32).bytes());
    for setting in settings {
        let (id, value) = setting.parts();
        out.put_u16(id);
        out.put_u32(value);
    }
}

pub(crate) fn settings_ack(out: &mut BytesMut) {
    out.put_slice(&Head::new(Kind::Settings, flags::ACK, 0, 0).bytes());
}

pub(crate) fn ping(out: &mut BytesMut, payload: [u8; 8], ack: bool) {
    let flags = if ack { flags::ACK } else { 0 };
    out.put_slice(&Head::new(Kind::Ping, flags, 0, 8).bytes());
    out.put_slice(&payload);
}

pub(crate) fn go_away(out: &mut BytesMut, last: u32, code: Code, debug: &[u8]) {
    out.put_slice(&Head::new(Kind::GoAway, 0, 0, 8 + debug.len() as u32).bytes());
    out.put_u32(last);
    out.put_u32(code.0);
    out.put_slice(debug);
}

pub(crate) fn window_update(out: &mut BytesMut, stream: u32, step: u32) {
    out.put_slice(&Head::new(Kind::WindowUpdate, 0, stream, 4).bytes());
    out.put_u32(step);
}

pub(crate) fn reset(out: &mut BytesMut, stream: u32, code: Code) {
    out.put_slice(&Head::new(Kind::Reset, 0, stream, 4).bytes());
    out.put_u32(code.0);
}

/// Writes HEADERS: what `block` appends is the header block. It is encoded where it goes out from, and only one that is
/// larger than a frame may be (`max`, the peer's) is moved, to make room for the heads of CONTINUATIONs.
pub(crate) fn headers(
    out: &mut BytesMut,
    stream: u32,
    end_stream: bool,
    max: u32,
    block: impl FnOnce(&mut BytesMut),
) {
    let begin = out.len();
    out.put_slice(&[0; HEAD]);
    block(out);
    let length = out.len() - begin - HEAD;
    let max = max as usize;
    let end_stream = if end_stream { flags::END_STREAM } else { 0 };
    if length <= max {
        let head = Head::new(Kind::Headers, end_stream | flags::END_HEADERS, stream, length as u32);
        out[begin..begin + HEAD].copy_from_slice(&head.bytes());
        return;
    }
    let rest = out.split_off(begin + HEAD + max);
    let head = Head::new(Kind::Headers, end_stream, stream, max as u32);
    out[begin..begin + HEAD].copy_from_slice(&head.bytes());
    let mut parts = rest.chunks(max).peekable();
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() { flags::END_HEADERS } else { 0 };
        out.put_slice(&Head::new(Kind::Continuation, last, stream, part.len() as u32).bytes());
        out.put_slice(part);
    }
}
