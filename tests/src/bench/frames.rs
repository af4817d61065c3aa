//! HTTP/2 as far as the bench's own client and origin need it: frames, and header blocks that are known beforehand.
//!
//! Both do as little as will do, so that what is measured is the proxy: blocks are literals the first time and indices of
//! the dynamic table from then on, as those of real clients and servers are; windows for what is received are as large
//! as can be, and those of the other side are never used up by loads that have so little under way.

/// What a client begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

pub(super) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// The window of each stream, and by how much it is given again when so much has come.
const STREAM_WINDOW: u32 = 1 << 20;
const AGAIN: u32 = 1 << 18;

pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A frame, and where its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    flags: u8,
    pub(super) stream: u32,
    pub(super) begin: usize,
    pub(super) end: usize,
}

impl Frame {
    /// The first frame from `at` on, if it is whole.
    pub(super) fn first(input: &[u8], at: usize) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = input.get(at..at + 9)?.first_chunk()?;
        let (begin, stream) = (at + 9, u32::from_be_bytes([s0, s1, s2, s3]));
        let end = begin + u32::from_be_bytes([0, l0, l1, l2]) as usize;
        (end <= input.len()).then_some(Self { kind, flags, stream, begin, end })
    }

    pub(super) fn ends_stream(self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// What one end has told the other about itself and its windows.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// Bytes of DATA since the connection's window was given last.
    received: u32,
}

impl Greeting {
    /// Begins a connection: windows that are never in the way.
    pub(super) fn begin(out: &mut Vec<u8>) -> Self {
        let mut settings = vec![0, 3];
        settings.extend_from_slice(&4096_u32.to_be_bytes());
        settings.extend_from_slice(&[0, 4]);
        settings.extend_from_slice(&STREAM_WINDOW.to_be_bytes());
        put(out, SETTINGS, 0, 0, &settings);
        put(out, WINDOW_UPDATE, 0, 0, &((1_u32 << 30) - 65_535).to_be_bytes());
        Self::default()
    }

    /// Answers what is asked by the connection, and gives its window again.
    pub(super) fn answer(&mut self, frame: Frame, payload: &[u8], out: &mut Vec<u8>) {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => put(out, SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => put(out, PING, ACK, 0, payload),
            DATA => {
                self.received += payload.len() as u32;
                if self.received > 1 << 28 {
                    put(out, WINDOW_UPDATE, 0, 0, &std::mem::take(&mut self.received).to_be_bytes());
                }
            }
            _ => {}
        }
    }
}

/// Gives a stream's window again when a part of it was used.
pub(super) fn give_again(received: &mut u32, stream: u32, more: usize, out: &mut Vec<u8>) {
    *received += more as u32;
    if *received > AGAIN {
        put(out, WINDOW_UPDATE, 0, stream, &std::mem::take(received).to_be_bytes());
    }
}

/// The dynamic table of what an end sends: each field is a literal the first time and an index from then on.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The newest last.
    fields: Vec<(&'static str, String)>,
}

impl Table {
    pub(super) fn put(&mut self, block: &mut Vec<u8>, name: &'static str, value: &str) {
        if let Some(place) = self.fields.iter().position(|field| *field == (name, value.to_owned())) {
            block.push(0x80 | (61 + self.fields.len() - place) as u8);
            return;
        }
        block.push(0x40);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
        self.fields.push((name, value.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_where_they_are() {
        let mut bytes = vec![1, 2];
        put(&mut bytes, DATA, END_STREAM, 7, b"abc");
        let frame = Frame::first(&bytes, 2).unwrap();
        assert_eq!((frame.kind, frame.stream, &bytes[frame.begin..frame.end]), (DATA, 7, &b"abc"[..]));
        assert!(frame.ends_stream());
        assert_eq!(Frame::first(&bytes[..13], 2), None);
        assert_eq!(Frame::first(&bytes, 14), None);
    }

    #[test]
    fn a_field_is_an_index_from_the_second_time_on() {
        let mut table = Table::default();
        let mut block = Vec::new();
        table.put(&mut block, "x", "1");
        table.put(&mut block, "y", "2");
        block.clear();
        table.put(&mut block, "x", "1");
        table.put(&mut block, "y", "2");
        assert_eq!(block, [0xbf, 0xbe]);
    }
}
