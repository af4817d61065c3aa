//! Header blocks in several frames: HEADERS, and CONTINUATIONs that follow without anything between them (RFC 9113, section
//! 4.3).

use bytes::{Bytes, BytesMut};

use super::{Code, Error, Head, Kind, flags, payload, protocol};

/// What a header block may be sent as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Octets of all its parts.
    pub(crate) bytes: usize,
    /// CONTINUATIONs.
    pub(crate) frames: u32,
}

/// A header block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) stream: u32,
    pub(crate) end_stream: bool,
    pub(crate) bytes: Bytes,
}

/// Puts header blocks together.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    open: Option<Box<Open>>,
}

/// One whose end has not come.
#[derive(Debug)]
struct Open {
    stream: u32,
    end_stream: bool,
    bytes: BytesMut,
    frames: u32,
}

impl Blocks {
    /// Every frame's head is asked about before anything is done with it: within a header block nothing but its next part
    /// may come, and no part without a beginning.
    pub(crate) fn check(&self, head: &Head) -> Result<(), Error> {
        match (&self.open, head.kind) {
            (None, Kind::Continuation) => Err(protocol("CONTINUATION without HEADERS")),
            (Some(open), Kind::Continuation) if open.stream == head.stream => Ok(()),
            (Some(_), _) => Err(protocol("another frame within a header block")),
            (None, _) => Ok(()),
        }
    }

    /// What is held of a block whose end has not come.
    pub(crate) fn held(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.bytes.capacity())
    }

    /// Takes HEADERS or CONTINUATION. Returns the block with its last part; a block in one frame is not copied.
    ///
    /// A block that is larger than its `bounds` ends the connection: no later one could be decoded without it. So they are
    /// to be far above what a message may have.
    pub(crate) fn take(
        &mut self,
        head: &Head,
        payload: &Bytes,
        bounds: &Bounds,
    ) -> Result<Option<Block>, Error> {
        self.check(head)?;
        let too_large = Error::Connection(Code::ENHANCE_YOUR_CALM, "a header block without end");
        let Some(open) = &mut self.open else {
            if !head.has_block() {
                return Err(protocol("no header block"));
            }
            let headers = payload::headers(head, payload)?;
            let bytes = payload.slice(headers.block);
            if bytes.len() > bounds.bytes {
                return Err(too_large);
            }
            let (stream, end_stream) = (head.stream, headers.end_stream);
            if headers.is_whole {
                return Ok(Some(Block { stream, end_stream, bytes }));
            }
            let bytes = BytesMut::from(&bytes[..]);
            self.open = Some(Box::new(Open { stream, end_stream, bytes, frames: 0 }));
            return Ok(None);
        };
        open.frames += 1;
        if open.frames > bounds.frames || open.bytes.len() + payload.len() > bounds.bytes {
            return Err(too_large);
        }
        open.bytes.extend_from_slice(payload);
        if !head.has(flags::END_HEADERS) {
            return Ok(None);
        }
        Ok(self.open.take().map(|open| {
            let Open { stream, end_stream, bytes, .. } = *open;
            Block { stream, end_stream, bytes: bytes.freeze() }
        }))
    }
}
