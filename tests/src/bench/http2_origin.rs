//! The origin's HTTP/2: a request without a body is answered with 100 bytes, one with a body gets it back as it comes,
//! with trailers of gRPC at its end.

use std::collections::HashMap;

use super::frames::{self, DATA, END_HEADERS, END_STREAM, Frame, Greeting, HEADERS, PREFACE, RESET, Table};

const ANSWER: [u8; 100] = [b'x'; 100];

/// A connection, whose bytes are given to it and taken from it.
#[derive(Debug, Default)]
pub(super) struct Connection {
    begun: Option<Greeting>,
    table: Table,
    /// Of those whose body is under way: bytes that have come since their window was given last.
    streams: HashMap<u32, u32>,
}

impl Connection {
    /// Answers the whole frames in `input` and takes them out of it. `None`: this is no HTTP/2.
    pub(super) fn answer(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<()> {
        let mut at = 0;
        if self.begun.is_none() {
            if input.len() < PREFACE.len() {
                return Some(());
            }
            input.starts_with(PREFACE).then_some(())?;
            at = PREFACE.len();
            self.begun = Some(Greeting::begin(out));
        }
        while let Some(frame) = Frame::first(input, at) {
            at = frame.end;
            let payload = &input[frame.begin..frame.end];
            self.begun.as_mut()?.answer(frame, payload, out);
            match frame.kind {
                HEADERS if frame.ends_stream() => self.small(frame.stream, out),
                HEADERS => {
                    self.head(frame.stream, "application/grpc", out);
                    self.streams.insert(frame.stream, 0);
                }
                DATA => self.echo(frame, payload, out),
                RESET => drop(self.streams.remove(&frame.stream)),
                _ => {}
            }
        }
        input.drain(..at);
        Some(())
    }

    fn head(&mut self, stream: u32, media_type: &str, out: &mut Vec<u8>) {
        // `:status: 200`
        let mut block = vec![0x88];
        self.table.put(&mut block, "content-type", media_type);
        frames::put(out, HEADERS, END_HEADERS, stream, &block);
    }

    fn small(&mut self, stream: u32, out: &mut Vec<u8>) {
        self.head(stream, "text/plain", out);
        frames::put(out, DATA, END_STREAM, stream, &ANSWER);
    }

    fn echo(&mut self, frame: Frame, payload: &[u8], out: &mut Vec<u8>) {
        let Some(received) = self.streams.get_mut(&frame.stream) else { return };
        if !payload.is_empty() {
            frames::put(out, DATA, 0, frame.stream, payload);
        }
        if !frame.ends_stream() {
            return frames::give_again(received, frame.stream, payload.len(), out);
        }
        self.streams.remove(&frame.stream);
        let mut block = Vec::new();
        self.table.put(&mut block, "grpc-status", "0");
        frames::put(out, HEADERS, END_HEADERS | END_STREAM, frame.stream, &block);
    }
}
