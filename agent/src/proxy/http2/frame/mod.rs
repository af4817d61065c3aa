//! Frames (RFC 9113, sections 4 and 6): bytes to what they say and back. Pure: no I/O, no clock, no connection.
//!
//! A reader takes the [`Head`] of a frame, asks [`Head::check`] what it alone can tell, and gives the payload to the parser of
//! its [`Kind`] in [`payload`]; header blocks that come in several frames are put together by [`block`]. [`mod@write`] makes
//! frames. Each [`Error`] says with what code the RFC ends the connection or the stream. What depends on streams and
//! windows is decided by who has them.

pub(crate) mod block;
pub(crate) mod payload;
pub(crate) mod write;

use std::fmt;

/// Octets of a frame that are not its payload.
pub(crate) const HEAD: usize = 9;

/// What a frame's payload may have until the receiver says otherwise, and at least (RFC 9113, section 6.5.2).
pub(crate) const MAX_FRAME_SIZE: u32 = 16_384;

/// The largest window, and the largest step of one (RFC 9113, section 6.9.1).
pub(crate) const MAX_WINDOW: u32 = 0x7fff_ffff;

/// Flags. What one means depends on the kind of frame.
pub(crate) mod flags {
    /// Of DATA and HEADERS: the stream's sender has said all.
    pub(crate) const END_STREAM: u8 = 0x1;
    /// Of SETTINGS and PING: an answer.
    pub(crate) const ACK: u8 = 0x1;
    /// Of HEADERS and CONTINUATION: the header block is whole.
    pub(crate) const END_HEADERS: u8 = 0x4;
    /// Of DATA and HEADERS.
    pub(crate) const PADDED: u8 = 0x8;
    /// Of HEADERS.
    pub(crate) const PRIORITY: u8 = 0x20;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// An extension's: to be ignored (RFC 9113, section 5.5), but for the order of header blocks.
    Unknown(u8),
}

impl Kind {
    const fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            other => Self::Unknown(other),
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::Reset => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::GoAway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown(byte) => byte,
        }
    }
}

/// Why a stream or a connection ends (RFC 9113, section 7). There may be others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    pub(crate) const NO_ERROR: Self = Self(0x0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(0x1);
    pub(crate) const INTERNAL_ERROR: Self = Self(0x2);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(0x3);
    pub(crate) const SETTINGS_TIMEOUT: Self = Self(0x4);
    pub(crate) const STREAM_CLOSED: Self = Self(0x5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(0x6);
    pub(crate) const REFUSED_STREAM: Self = Self(0x7);
    pub(crate) const CANCEL: Self = Self(0x8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(0x9);
    pub(crate) const CONNECT_ERROR: Self = Self(0xa);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(0xb);
    pub(crate) const INADEQUATE_SECURITY: Self = Self(0xc);
    pub(crate) const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Self::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Self(other) => return write!(f, "error {other:#x}"),
        })
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a frame is wrong in, and how much ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The connection: GOAWAY with this code (RFC 9113, section 5.4.1).
    #[error("{0}: {1}")]
    Connection(Code, &'static str),
    /// The frame's stream only: RST_STREAM with this code (RFC 9113, section 5.4.2).
    #[error("stream: {0}: {1}")]
    Stream(Code, &'static str),
}

pub(super) const fn protocol(why: &'static str) -> Error {
    Error::Connection(Code::PROTOCOL_ERROR, why)
}

const fn size(why: &'static str) -> Error {
    Error::Connection(Code::FRAME_SIZE_ERROR, why)
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Octets of the payload: 24 bits.
    pub(crate) length: u32,
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    /// 31 bits; 0 is the connection.
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) const fn new(kind: Kind, flags: u8, stream: u32, length: u32) -> Self {
        Self { length, kind, flags, stream }
    }

    /// The reserved bit before the stream is ignored (RFC 9113, section 4.1).
    pub(crate) const fn parse(bytes: &[u8; HEAD]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: Kind::of(kind),
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_WINDOW,
        }
    }

    /// The first head in `bytes`, if all of it is there.
    pub(crate) fn first(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::parse)
    }

    pub(crate) const fn bytes(&self) -> [u8; HEAD] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind.byte(), self.flags, s0, s1, s2, s3]
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What the head alone tells: a payload of the wrong size, a stream where none belongs, or none where one does. What
    /// is larger than `max`, the size that we have allowed, ends the connection, whatever it is: whoever sends it has not
    /// read what he acknowledged. A frame that passes has as many octets as its kind needs at least.
    pub(crate) const fn check(&self, max: u32) -> Result<(), Error> {
        if self.length > max {
            return Err(size("a frame that is larger than allowed"));
        }
        let on_stream = self.stream != 0;
        let padding = if self.has(flags::PADDED) { 1 } else { 0 };
        match self.kind {
            Kind::Data if !on_stream => Err(protocol("DATA without a stream")),
            Kind::Data if self.length < padding => Err(size("DATA without its padding's length")),
            Kind::Headers if !on_stream => Err(protocol("HEADERS without a stream")),
            Kind::Headers if self.length < padding + if self.has(flags::PRIORITY) { 5 } else { 0 } => {
                Err(size("HEADERS without the fields that its flags promise"))
            }
            Kind::Priority if !on_stream => Err(protocol("PRIORITY without a stream")),
            Kind::Priority if self.length != 5 => {
                Err(Error::Stream(Code::FRAME_SIZE_ERROR, "PRIORITY of another size than 5"))
            }
            Kind::Reset if !on_stream => Err(protocol("RST_STREAM without a stream")),
            Kind::Reset if self.length != 4 => Err(size("RST_STREAM of another size than 4")),
            Kind::Settings if on_stream => Err(protocol("SETTINGS on a stream")),
            Kind::Settings if self.has(flags::ACK) && self.length != 0 => {
                Err(size("an acknowledgement of SETTINGS with settings"))
            }
            Kind::Settings if !self.length.is_multiple_of(6) => {
                Err(size("SETTINGS of a size that is no multiple of 6"))
            }
            // A client must not send it, and our own SETTINGS forbid it to servers.
            Kind::PushPromise => Err(protocol("PUSH_PROMISE, which is not allowed")),
            Kind::Ping if on_stream => Err(protocol("PING on a stream")),
            Kind::Ping if self.length != 8 => Err(size("PING of another size than 8")),
            Kind::GoAway if on_stream => Err(protocol("GOAWAY on a stream")),
            Kind::GoAway if self.length < 8 => Err(size("GOAWAY of less than 8")),
            Kind::WindowUpdate if self.length != 4 => Err(size("WINDOW_UPDATE of another size than 4")),
            Kind::Continuation if !on_stream => Err(protocol("CONTINUATION without a stream")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
