//! What frames say. Each parser takes the payload of a frame whose [`Head`] has passed its check; one that did not is an
//! error here, too, so that nothing depends on it.

use std::ops::Range;

use super::{Code, Error, Head, Kind, MAX_FRAME_SIZE, MAX_WINDOW, flags, protocol, size};

/// Where in a payload the content is: between the padding's length and the padding.
///
/// DATA is passed on as it comes, so the payload need not be there: of a padded frame its first octet has to be.
pub(crate) fn content(head: &Head, first: Option<u8>) -> Result<Range<usize>, Error> {
    let length = head.length as usize;
    if !head.has(flags::PADDED) {
        return Ok(0..length);
    }
    let padding = first.ok_or(size("a padded frame without its padding's length"))?;
    match length.checked_sub(1 + usize::from(padding)) {
        Some(content) => Ok(1..1 + content),
        // The octet with the length is none of the padding, but counts here (RFC 9113, section 6.1).
        None => Err(protocol("more padding than payload")),
    }
}

/// A HEADERS frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Headers {
    /// Where in the payload its part of the header block is. Priorities are nothing to us (RFC 9113, section 5.3.2).
    pub(crate) block: Range<usize>,
    pub(crate) end_stream: bool,
    /// The block ends with it.
    pub(crate) is_whole: bool,
}

pub(crate) fn headers(head: &Head, payload: &[u8]) -> Result<Headers, Error> {
    let mut block = content(head, payload.first().copied())?;
    if head.has(flags::PRIORITY) {
        block.start += 5;
        if block.start > block.end {
            return Err(protocol("more padding than payload"));
        }
    }
    if block.end > payload.len() {
        return Err(size("HEADERS that is cut off"));
    }
    Ok(Headers { block, end_stream: head.has(flags::END_STREAM), is_whole: head.has(flags::END_HEADERS) })
}

/// What one end tells the other about itself (RFC 9113, section 6.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    HeaderTableSize(u32),
    EnablePush(bool),
    MaxConcurrentStreams(u32),
    InitialWindowSize(u32),
    MaxFrameSize(u32),
    MaxHeaderListSize(u32),
    /// Extended CONNECT (RFC 8441).
    EnableConnectProtocol(bool),
    /// Priorities of another scheme (RFC 9218).
    NoRfc7540Priorities(bool),
    /// An extension's: to be ignored.
    Unknown(u16, u32),
}

impl Setting {
    fn parse(id: u16, value: u32) -> Result<Self, Error> {
        let switch = |why| match value {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(protocol(why)),
        };
        Ok(match id {
            0x1 => Self::HeaderTableSize(value),
            0x2 => Self::EnablePush(switch("a SETTINGS_ENABLE_PUSH that is neither 0 nor 1")?),
            0x3 => Self::MaxConcurrentStreams(value),
            0x4 if value > MAX_WINDOW => {
                return Err(Error::Connection(
                    Code::FLOW_CONTROL_ERROR,
                    "a SETTINGS_INITIAL_WINDOW_SIZE above the largest window",
                ));
            }
            0x4 => Self::InitialWindowSize(value),
            0x5 if !(MAX_FRAME_SIZE..1 << 24).contains(&value) => {
                return Err(protocol("a SETTINGS_MAX_FRAME_SIZE that is not between 16,384 and 16,777,215"));
            }
            0x5 => Self::MaxFrameSize(value),
            0x6 => Self::MaxHeaderListSize(value),
            0x8 => Self::EnableConnectProtocol(switch(
                "a SETTINGS_ENABLE_CONNECT_PROTOCOL that is neither 0 nor 1",
            )?),
            0x9 => {
                Self::NoRfc7540Priorities(switch("a SETTINGS_NO_RFC7540_PRIORITIES that is neither 0 nor 1")?)
            }
            other => Self::Unknown(other, value),
        })
    }

    pub(crate) const fn parts(self) -> (u16, u32) {
        match self {
            Self::HeaderTableSize(value) => (0x1, value),
            Self::EnablePush(on) => (0x2, on as u32),
            Self::MaxConcurrentStreams(value) => (0x3, value),
            Self::InitialWindowSize(value) => (0x4, value),
            Self::MaxFrameSize(value) => (0x5, value),
            Self::MaxHeaderListSize(value) => (0x6, value),
            Self::EnableConnectProtocol(on) => (0x8, on as u32),
            Self::NoRfc7540Priorities(on) => (0x9, on as u32),
            Self::Unknown(id, value) => (id, value),
        }
    }
}

/// Settings in the order in which they stand, which is the order in which they are to be applied. Nothing of a frame with
/// an error is to be applied: the connection ends.
pub(crate) fn settings(payload: &[u8]) -> impl Iterator<Item = Result<Setting, Error>> + '_ {
    payload.chunks(6).map(|setting| match *setting {
        [i0, i1, v0, v1, v2, v3] => {
            Setting::parse(u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3]))
        }
        _ => Err(size("SETTINGS of a size that is no multiple of 6")),
    })
}

/// What the answer to a PING has to repeat.
pub(crate) fn ping(payload: &[u8]) -> Result<[u8; 8], Error> {
    payload.try_into().map_err(|_| size("PING of another size than 8"))
}

/// The other end takes no new streams, and has looked at none after `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GoAway<'a> {
    pub(crate) last: u32,
    pub(crate) code: Code,
    /// For people.
    pub(crate) debug: &'a [u8],
}

pub(crate) fn go_away(payload: &[u8]) -> Result<GoAway<'_>, Error> {
    match payload {
        [l0, l1, l2, l3, c0, c1, c2, c3, debug @ ..] => Ok(GoAway {
            last: u32::from_be_bytes([*l0, *l1, *l2, *l3]) & MAX_WINDOW,
            code: Code(u32::from_be_bytes([*c0, *c1, *c2, *c3])),
            debug,
        }),
        _ => Err(size("GOAWAY of less than 8")),
    }
}

fn word(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn reset(payload: &[u8]) -> Result<Code, Error> {
    word(payload).map(Code).ok_or(size("RST_STREAM of another size than 4"))
}

/// By how much a window grows: never 0.
pub(crate) fn window_update(head: &Head, payload: &[u8]) -> Result<u32, Error> {
    let step = word(payload).ok_or(size("WINDOW_UPDATE of another size than 4"))? & MAX_WINDOW;
    match (step, head.stream) {
        (0, 0) => Err(protocol("WINDOW_UPDATE of 0")),
        (0, _) => Err(Error::Stream(Code::PROTOCOL_ERROR, "WINDOW_UPDATE of 0")),
        (step, _) => Ok(step),
    }
}

impl Head {
    /// It carries a part of a header block.
    pub(super) const fn has_block(&self) -> bool {
        matches!(self.kind, Kind::Headers | Kind::Continuation)
    }
}
