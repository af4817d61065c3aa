//! Frames as bytes: right ones, and pieces for wrong ones.

use bytes::{BufMut, BytesMut};

pub(in super::super) const DATA: u8 = 0;
pub(in super::super) const HEADERS: u8 = 1;
pub(in super::super) const PRIORITY: u8 = 2;
pub(in super::super) const RESET: u8 = 3;
pub(in super::super) const SETTINGS: u8 = 4;
pub(in super::super) const PUSH_PROMISE: u8 = 5;
pub(in super::super) const PING: u8 = 6;
pub(in super::super) const GO_AWAY: u8 = 7;
pub(in super::super) const WINDOW_UPDATE: u8 = 8;
pub(in super::super) const CONTINUATION: u8 = 9;

pub(in super::super) const ACK: u8 = 1;
pub(in super::super) const END_HEADERS: u8 = 4;
pub(in super::super) const PADDED: u8 = 8;

pub(in super::super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Names and values.
pub(in super::super) type Lines<'a> = &'a [(&'a str, &'a str)];

pub(in super::super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals: no table is needed to write it.
pub(in super::super) fn block(lines: Lines<'_>) -> Vec<u8> {
    fn string(out: &mut BytesMut, text: &str) {
        if text.len() < 127 {
            out.put_u8(text.len() as u8);
        } else {
            out.put_u8(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                out.put_u8(rest as u8 | 128);
                rest >>= 7;
            }
            out.put_u8(rest as u8);
        }
        out.put_slice(text.as_bytes());
    }
    let mut out = BytesMut::new();
    for (name, value) in lines {
        out.put_u8(0);
        string(&mut out, name);
        string(&mut out, value);
    }
    out.to_vec()
}

/// HEADERS in one frame.
pub(in super::super) fn headers(stream: u32, end: bool, lines: Lines<'_>) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), stream, &block(lines))
}

/// A header block in parts of some size: HEADERS and as many CONTINUATIONs as it takes.
pub(in super::super) fn parts(stream: u32, end: bool, block: &[u8], size: usize) -> Vec<u8> {
    let count = block.chunks(size).len();
    let part = |(n, part): (usize, &[u8])| {
        let last = if n + 1 == count { END_HEADERS } else { 0 };
        let (kind, flags) = if n == 0 { (HEADERS, u8::from(end)) } else { (CONTINUATION, 0) };
        frame(kind, flags | last, stream, part)
    };
    block.chunks(size).enumerate().flat_map(part).collect()
}

pub(in super::super) fn data(stream: u32, end: bool, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, u8::from(end), stream, bytes)
}

pub(in super::super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

pub(in super::super) fn window(stream: u32, step: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &step.to_be_bytes())
}

pub(in super::super) fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let all = all.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &all.collect::<Vec<_>>())
}

pub(in super::super) fn ping(payload: [u8; 8]) -> Vec<u8> {
    frame(PING, 0, 0, &payload)
}

pub(in super::super) fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GO_AWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

pub(in super::super) fn get(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", path)]
}

pub(in super::super) fn post(path: &str) -> Vec<(&str, &str)> {
    let mut lines = get(path);
    lines[0].1 = "POST";
    lines
}
