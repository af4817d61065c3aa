//! What RFC 9113 (and RFC 7541, 8441 where they are carried by it) demands of both ends of a connection: one row a demand.
//!
//! A row says what its peer sends and what has to become of it. Where the RFC leaves a choice, the row has what this proxy
//! chooses. Errors in a stream must leave the connection and its other streams as they are; so each row that does not end
//! the connection is followed by a PING, and by a request that has to succeed.

mod client;
mod server;

use super::{
    raw::{Backend, Event, Wire, Wishes, frames, wire},
    *,
};

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;

/// What has to become of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// GOAWAY with this code, and the connection's end.
    End(u32),
    /// RST_STREAM of stream 1 with this code.
    Reset(u32),
    /// RST_STREAM with one of two codes (a choice that depends on what has already happened).
    ResetEither(u32, u32),
    /// The message is malformed (section 8.1.1): stream 1 is reset with PROTOCOL_ERROR, or answered with 400.
    Malformed,
    /// Stream 1 is answered with this status.
    Answer(u16),
    /// Nothing.
    Ignore,
}

/// A header block of one peer, in pieces.
fn head(flags: u8, stream: u32, lines: frames::Lines<'_>) -> Vec<u8> {
    frames::frame(frames::HEADERS, flags, stream, &frames::block(lines))
}
