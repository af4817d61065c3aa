//! The client and the origin of unary gRPC calls, one after the other over one connection. Each sends what it always sends, and
//! looks at the heads of frames alone.

use std::{
    io::{Read, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The fields of a call that are not whole in HPACK's static table, as grpcio sends them.
const CALL: [(&str, &str); 6] = [
    (":path", "/shop.Orders/Get"),
    (":authority", "orders.shop"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "identity, deflate, gzip"),
    ("user-agent", "grpc-python/1.0 grpc-c/1.0 (linux; chttp2)"),
];
/// `:method: POST` and `:scheme: http`, of the static table.
const POST: [u8; 2] = [0x83, 0x86];

const RESPONSE: [(&str, &str); 1] = [("content-type", "application/grpc")];
/// `:status: 200`.
const OK: [u8; 1] = [0x88];
const TRAILERS: [(&str, &str); 1] = [("grpc-status", "0")];

/// A message of 100 bytes behind its prefix.
const MESSAGE: usize = 105;

/// After how many messages an end gives the other's window of the connection again.
const UPDATE_EVERY: u32 = 256;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn message(stream: u32, flags: u8) -> Vec<u8> {
    let mut message = [b'.'; MESSAGE];
    message[..5].copy_from_slice(&[0, 0, 0, 0, (MESSAGE - 5) as u8]);
    frame(DATA, flags, stream, &message)
}

/// Literals, put into the table of the other end.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0x40, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// The same fields, out of the table into which `of` have been put.
fn indexed(of: usize, fields: std::ops::Range<usize>) -> impl Iterator<Item = u8> {
    fields.map(move |field| 0x80 | (61 + of - field) as u8)
}

/// One end of a connection.
struct End {
    stream: TcpStream,
    input: Vec<u8>,
    messages: u32,
}

impl End {
    fn begin(stream: TcpStream, preface: &[u8]) -> Result<Self> {
        stream.set_nodelay(true)?;
        let mut end = Self { stream, input: Vec::new(), messages: 0 };
        end.send(&[preface, &frame(SETTINGS, 0, 0, &[])].concat())?;
        Ok(end)
    }

    fn send(&mut self, frames: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(frames)?)
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection was closed");
        self.input.extend_from_slice(&buffer[..read]);
        Ok(())
    }

    /// Reads until a stream ends, and says which. Answers what is to be answered.
    fn until_end(&mut self) -> Result<u32> {
        loop {
            let Some((&[l0, l1, l2, kind, flags, s0, s1, s2, s3], rest)) = self.input.split_first_chunk()
            else {
                self.read()?;
                continue;
            };
            let (length, stream) =
                (u32::from_be_bytes([0, l0, l1, l2]) as usize, u32::from_be_bytes([s0, s1, s2, s3]));
            let Some(payload) = rest.get(..length) else {
                self.read()?;
                continue;
            };
            let mut back = Vec::new();
            match kind {
                SETTINGS if flags & ACK == 0 => back = frame(SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => back = frame(PING, ACK, 0, payload),
                RST_STREAM | GOAWAY => anyhow::bail!("stream {stream} was broken off: {payload:?}"),
                DATA => self.messages += 1,
                _ => {}
            }
            self.input.drain(..9 + length);
            if kind == DATA && self.messages.is_multiple_of(UPDATE_EVERY) {
                back = frame(WINDOW_UPDATE, 0, 0, &(UPDATE_EVERY * MESSAGE as u32).to_be_bytes());
            }
            if !back.is_empty() {
                self.send(&back)?;
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return Ok(stream);
            }
        }
    }
}

/// So many calls.
pub(crate) fn call(connection: TcpStream, calls: u64) -> Result<()> {
    let mut end = End::begin(connection, PREFACE)?;
    let mut block = [&POST[..], &literals(&CALL)].concat();
    let known: Vec<u8> = POST.into_iter().chain(indexed(CALL.len(), 0..CALL.len())).collect();
    for number in 0..calls {
        let stream = u32::try_from(2 * number + 1).context("too many calls")?;
        end.send(&[frame(HEADERS, END_HEADERS, stream, &block), message(stream, END_STREAM)].concat())?;
        let ended = end.until_end()?;
        ensure!(ended == stream, "stream {ended} has ended instead of {stream}");
        block.clone_from(&known);
    }
    ensure!(u64::from(end.messages) == calls, "{} messages came", end.messages);
    Ok(())
}

/// Answers calls for as long as the connection lasts.
pub(crate) fn respond(mut connection: TcpStream) -> Result<()> {
    connection.read_exact(&mut [0; PREFACE.len()])?;
    let mut end = End::begin(connection, b"")?;
    let mut head = [&OK[..], &literals(&RESPONSE)].concat();
    let mut trailers = literals(&TRAILERS);
    loop {
        let stream = end.until_end()?;
        let response = [
            frame(HEADERS, END_HEADERS, stream, &head),
            message(stream, 0),
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers),
        ];
        end.send(&response.concat())?;
        head = OK.into_iter().chain(indexed(2, 0..1)).collect();
        trailers = indexed(2, 1..2).collect();
    }
}
