//! Where a message body ends. Pure.
//!
//! Bodies are passed on as they come, chunk headers and trailers included; this module only tells how many of the next
//! bytes belong to the body (RFC 9112, sections 6 and 7), and refuses what two readers could take for two things.

use crate::{
    govern::headers::{self, LONGEST_FRAMING},
    observe::fault::{Fault, MessagePart},
    proxy::detect::is_token,
};

/// Longest chunk header (size and extensions). Extensions have no known use but to make a reader work for nothing.
const MAX_CHUNK_HEADER: u32 = 4 * 1024;

/// All trailers of a message together.
const MAX_TRAILERS: u32 = 32 * 1024;

/// Sixteen hexadecimal digits would overflow what a length is kept in; nobody sends 2^60 bytes.
const MAX_SIZE_DIGITS: u8 = 15;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked(Chunked),
    /// To the end of the connection (answers only).
    UntilClose,
}

/// The bytes are no chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked body: {0}")]
pub(crate) struct BadChunk(pub(crate) &'static str);

impl BadChunk {
    pub(crate) fn fault(self) -> Fault {
        Fault::new(MessagePart::Chunk, self.0)
    }
}

impl Body {
    pub(crate) const EMPTY: Self = Self::Length(0);

    /// A chunked body. A `lenient` reader lets white space follow a chunk size, as some old servers write it.
    pub(crate) fn chunked(lenient: bool) -> Self {
        let state = State::Size { value: 0, digits: 0 };
        Self::Chunked(Chunked {
            state,
            line: 0,
            name: [0; LONGEST_FRAMING],
            name_length: 0,
            lenient,
            bare: false,
        })
    }

    /// From now on trailers are an error.
    pub(crate) fn forbid_trailers(&mut self) {
        if let Self::Chunked(chunked) = self {
            chunked.bare = true;
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked { state: State::Done, .. }))
    }

    /// Shows what the next bytes of the body are without their transfer coding. To be asked about each once, apart from
    /// [`Self::take`].
    pub(crate) fn decode(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<(), BadChunk> {
        match self {
            Self::Chunked(chunked) => chunked.walk(bytes, data).map(drop),
            Self::Length(_) | Self::UntilClose => {
                data(bytes);
                Ok(())
            }
        }
    }

    /// How many of `bytes`, which come next on the connection, belong to the body.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        match self {
            Self::Length(left) => {
                let taken = (*left).min(bytes.len() as u64);
                *left -= taken;
                Ok(taken as usize)
            }
            Self::Chunked(chunked) => chunked.take(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }
}

/// A reader of the chunked coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Bytes of the present chunk header, or of the trailers so far.
    line: u32,
    /// The name of the present trailer, in lower case, as far as it could be one that [frames](headers::frames).
    name: [u8; LONGEST_FRAMING],
    name_length: u8,
    lenient: bool,
    /// None may have trailers.
    bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { value: u64, digits: u8 },
    SizeSpace { value: u64 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunked {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        self.walk(bytes, |_| {})
    }

    /// Shows the data within `bytes`, without the coding.
    fn walk(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data { left } = &mut self.state {
                let taken = (*left).min((bytes.len() - at) as u64);
                *left -= taken;
                data(&bytes[at..at + taken as usize]);
                at += taken as usize;
                if *left == 0 {
                    self.state = State::DataCr;
                }
            } else {
                self.state = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        self.line += 1;
        Ok(match (self.state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(BadChunk("chunk size too large"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(BadChunk("a chunk without a size")),
            (State::Size { value, .. } | State::SizeSpace { value } | State::Extension { value }, b'\r') => {
                State::SizeLf { value }
            }
            (State::Size { value, .. } | State::SizeSpace { value }, b';') => State::Extension { value },
            (State::Size { value, .. } | State::SizeSpace { value }, b' ' | b'\t')
                if self.lenient && self.line <= MAX_CHUNK_HEADER =>
            {
                State::SizeSpace { value }
            }
            (State::Size { .. } | State::SizeSpace { .. }, _) => {
                return Err(BadChunk("a size that is no number"));
            }
            (State::Extension { .. }, b'\n' | 0) => {
                return Err(BadChunk("a stray byte in a chunk extension"));
            }
            (State::Extension { .. }, _) if self.line > MAX_CHUNK_HEADER => {
                return Err(BadChunk("chunk extension too long"));
            }
            (State::Extension { value }, _) => State::Extension { value },
            (State::SizeLf { value: 0 }, b'\n') => {
                self.line = 0;
                State::TrailerStart
            }
            (State::SizeLf { value }, b'\n') => {
                self.line = 0;
                State::Data { left: value }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size { value: 0, digits: 0 }
            }
            (State::DataCr | State::DataLf, _) => return Err(BadChunk("a chunk longer than its size")),
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _)
                if self.line > MAX_TRAILERS =>
            {
                return Err(BadChunk("trailers too long"));
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerName, b':') if self.is_framing() => {
                return Err(BadChunk("a trailer that says where a message ends, or whom it is for"));
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerStart | State::TrailerName, _) if self.bare => {
                return Err(BadChunk(
                    "trailers, where a policy says what headers have a token or its claims",
                ));
            }
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                self.note_name(byte);
                State::TrailerName
            }
            (State::TrailerStart | State::TrailerName, _) => {
                return Err(BadChunk("a trailer name that is no token"));
            }
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\n' | 0) => return Err(BadChunk("a stray byte in a trailer")),
            (State::TrailerValue, _) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf { .. } | State::TrailerLf | State::EndLf, _) => {
                return Err(BadChunk("a carriage return without a line feed"));
            }
            (State::Data { .. } | State::Done, _) => {
                unreachable!("take() never steps through data or past the end")
            }
        })
    }
}

impl Chunked {
    fn note_name(&mut self, byte: u8) {
        if self.state == State::TrailerStart {
            self.name_length = 0;
        }
        if let Some(place) = self.name.get_mut(usize::from(self.name_length)) {
            *place = byte.to_ascii_lowercase();
        }
        self.name_length = self.name_length.saturating_add(1);
    }

    /// The present trailer's name is one that a reader which merges trailers into the head would frame or route by
    /// (RFC 9110, section 6.5.1).
    fn is_framing(&self) -> bool {
        self.name.get(..usize::from(self.name_length)).is_some_and(headers::frames)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8], lenient: bool) -> Result<(usize, bool), BadChunk> {
        let mut body = Body::chunked(lenient);
        body.take(bytes).map(|taken| (taken, body.is_done()))
    }

    #[test]
    fn a_length_takes_no_more_than_it_says() {
        let mut body = Body::Length(5);
        assert_eq!(body.take(b"abc"), Ok(3));
        assert!(!body.is_done());
        assert_eq!(body.take(b"defg"), Ok(2));
        assert!(body.is_done());
        assert!(Body::EMPTY.is_done());
        assert!(!Body::UntilClose.is_done());
    }

    #[test]
    fn chunks_end_where_they_say() {
        for good in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"A\r\n0123456789\r\n1;a=b;c=\"d\"\r\nx\r\n0\r\n\r\n",
            b"000005\r\nhello\r\n0\r\nx-sum: 1\r\ngrpc-status:0\r\n\r\n",
            b"0\r\nhosts: 1\r\nx-content-length: 1\r\ntransfer-encoding-of-mine: 1\r\nhos: 1\r\n\r\n",
        ] {
            let mut longer = good.to_vec();
            longer.extend_from_slice(b"GET / HTTP/1.1\r\n");
            assert_eq!(whole(&longer, false), Ok((good.len(), true)), "{}", String::from_utf8_lossy(good));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            &b"\r\n"[..],
            b";a\r\n",
            b"g\r\n",
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\rhello\r\n",
            b"5\r\nhelloo\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"1000000000000000\r\n",
            b"0\r\n\n",
            b"0\r\nname : x\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nnocolon\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\na: b\r\ntransfer-encoding:chunked\r\n\r\n",
            b"0\r\nHOST: a\r\n\r\n",
            b"0\r\na: b\nc: d\r\n\r\n",
            b"5;a\nb\r\nhello\r\n",
        ] {
            assert!(whole(bad, false).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(whole(b"5 \r\nhello\r\n0\r\n\r\n", true), Ok((16, true)));
    }

    #[test]
    fn trailers_may_be_forbidden() {
        for (bytes, good) in [(&b"1\r\nx\r\n0\r\n\r\n"[..], true), (b"0\r\nx-user: eve\r\n\r\n", false)] {
            let mut body = Body::chunked(false);
            body.forbid_trailers();
            assert_eq!(body.take(bytes).is_ok(), good);
        }
    }

    #[test]
    fn endless_extensions_and_trailers_are_refused() {
        let mut extension = b"5;".to_vec();
        extension.resize(MAX_CHUNK_HEADER as usize + 2, b'a');
        assert_eq!(whole(&extension, false), Err(BadChunk("chunk extension too long")));
        let mut spaces = b"5".to_vec();
        spaces.resize(MAX_CHUNK_HEADER as usize + 2, b' ');
        assert!(whole(&spaces, true).is_err());
        let mut trailers = b"0\r\n".to_vec();
        while trailers.len() < MAX_TRAILERS as usize + 10 {
            trailers.extend_from_slice(b"a: b\r\n");
        }
        assert_eq!(whole(&trailers, false), Err(BadChunk("trailers too long")));
    }

    proptest! {
        #[test]
        fn where_reads_are_cut_does_not_matter(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            cuts in proptest::collection::vec(1usize..20, 1..40),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\na: b\r\n\r\n");
            let mut body = Body::chunked(false);
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while !body.is_done() {
                let end = bytes.len().min(at + cut.next().unwrap());
                at += body.take(&bytes[at..end]).unwrap();
            }
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), lenient: bool) {
            let _ = whole(&bytes, lenient);
        }
    }
}
