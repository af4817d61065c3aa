//! HTTP/2 load: a closed loop on one thread, each connection with as many streams under way as are asked for.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    epoll::{Interest, Poll},
    frames::{self, DATA, END_HEADERS, END_STREAM, Frame, GO_AWAY, Greeting, HEADERS, PREFACE, RESET, Table},
    load::Outcome,
    usage::Meter,
};

/// How long the whole load may stand still before it is given up.
const STALL: Duration = Duration::from_secs(10);

/// A message of gRPC: its head, and 100 bytes.
const MESSAGE: [u8; 105] = {
    let mut message = [b'm'; 105];
    (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 100);
    message
};

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// GET, answered with 100 bytes.
    Get,
    /// One message there and back, and trailers.
    Unary,
    /// Messages there and back, one after the other, without end: each counts as a request.
    Streaming,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub target: SocketAddr,
    pub connections: usize,
    /// Under way on each.
    pub streams: usize,
    pub call: Call,
    /// Load that is not counted, at the start.
    pub warmup: Duration,
    pub time: Duration,
    /// The process of which the CPU time is read at the start and the end of `time`.
    pub proxy: Option<u32>,
}

/// Puts the load on the target. Any answer but the expected one, and any lost connection or stream, is an error.
pub fn run(options: &Options) -> Result<Outcome> {
    let mut load = Load::new(*options)?;
    load.until(Instant::now() + options.warmup)?;
    load.latencies.clear();
    let meter = Meter::start(options.proxy)?;
    load.until(Instant::now() + options.time)?;
    meter.finish(load.latencies)
}

struct Load {
    poll: Poll,
    connections: Vec<Connection>,
    /// Nanoseconds.
    latencies: Vec<u64>,
}

struct Connection {
    stream: TcpStream,
    call: Call,
    greeting: Greeting,
    table: Table,
    next: u32,
    streams: HashMap<u32, Stream>,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Stream {
    began: Instant,
    /// Bytes of the answer's body, or of the message that is awaited.
    bytes: usize,
    received: u32,
}

impl Load {
    fn new(options: Options) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for token in 0..options.connections {
            let stream = TcpStream::connect(options.target)
                .with_context(|| format!("cannot connect to {}", options.target))?;
            stream.set_nodelay(true)?;
            let mut output = PREFACE.to_vec();
            let greeting = Greeting::begin(&mut output);
            let mut connection = Connection {
                stream,
                call: options.call,
                greeting,
                table: Table::default(),
                next: 1,
                streams: HashMap::new(),
                input: Vec::new(),
                output,
            };
            for _ in 0..options.streams {
                connection.open();
            }
            connection.flush()?;
            connection.stream.set_nonblocking(true)?;
            poll.add(&connection.stream, token, Interest::Read)?;
            connections.push(connection);
        }
        Ok(Self { poll, connections, latencies: Vec::new() })
    }

    fn until(&mut self, end: Instant) -> Result<()> {
        let mut ready = Vec::new();
        let mut progress = Instant::now();
        loop {
            let now = Instant::now();
            let Some(left) = end.checked_duration_since(now).filter(|left| !left.is_zero()) else {
                return Ok(());
            };
            self.poll.wait(&mut ready, Some(left.min(Duration::from_millis(100))))?;
            if !ready.is_empty() {
                progress = now;
            }
            ensure!(now - progress < STALL, "no answer to any request for {STALL:?}");
            for &token in &ready {
                self.connections[token].advance(&mut self.latencies)?;
            }
        }
    }
}

impl Connection {
    fn open(&mut self) {
        let stream = self.next;
        self.next += 2;
        // `:method`, `:scheme: http`
        let mut block = vec![if self.call == Call::Get { 0x82 } else { 0x83 }, 0x86];
        let path = if self.call == Call::Get { "/100" } else { "/bench.Echo/Call" };
        self.table.put(&mut block, ":path", path);
        self.table.put(&mut block, ":authority", "origin");
        self.table.put(&mut block, "user-agent", "sluice-bench");
        if self.call == Call::Get {
            self.table.put(&mut block, "accept", "*/*");
            frames::put(&mut self.output, HEADERS, END_HEADERS | END_STREAM, stream, &block);
        } else {
            self.table.put(&mut block, "content-type", "application/grpc");
            self.table.put(&mut block, "te", "trailers");
            frames::put(&mut self.output, HEADERS, END_HEADERS, stream, &block);
            let end = if self.call == Call::Unary { END_STREAM } else { 0 };
            frames::put(&mut self.output, DATA, end, stream, &MESSAGE);
        }
        self.streams.insert(stream, Stream { began: Instant::now(), bytes: 0, received: 0 });
    }

    fn advance(&mut self, latencies: &mut Vec<u64>) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("a connection was closed"),
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("a connection was lost"),
        }
        let mut at = 0;
        let input = std::mem::take(&mut self.input);
        while let Some(frame) = Frame::first(&input, at) {
            at = frame.end;
            self.take(frame, &input[frame.begin..frame.end], latencies)?;
        }
        self.input = input;
        self.input.drain(..at);
        self.flush()
    }

    fn take(&mut self, frame: Frame, payload: &[u8], latencies: &mut Vec<u64>) -> Result<()> {
        self.greeting.answer(frame, payload, &mut self.output);
        ensure!(!matches!(frame.kind, RESET | GO_AWAY), "a stream or its connection was ended: {payload:?}");
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(()) };
        if frame.kind == DATA {
            stream.bytes += payload.len();
            if self.call == Call::Streaming {
                if stream.bytes >= MESSAGE.len() {
                    ensure!(stream.bytes == MESSAGE.len(), "more came back than was sent");
                    latencies.push(stream.began.elapsed().as_nanos() as u64);
                    (stream.bytes, stream.began) = (0, Instant::now());
                    frames::put(&mut self.output, DATA, 0, frame.stream, &MESSAGE);
                }
                frames::give_again(&mut stream.received, frame.stream, payload.len(), &mut self.output);
            }
        }
        if frame.ends_stream() {
            let expected = if self.call == Call::Get { 100 } else { MESSAGE.len() };
            ensure!(self.call != Call::Streaming, "a stream has ended");
            ensure!(stream.bytes == expected, "an answer of {} bytes", stream.bytes);
            latencies.push(stream.began.elapsed().as_nanos() as u64);
            self.streams.remove(&frame.stream);
            self.open();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let written = self.stream.write(&self.output).context("a connection was lost")?;
        ensure!(written == self.output.len(), "the socket does not take all requests");
        self.output.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::bench::origin;

    #[test]
    fn the_origin_bears_every_kind_of_call() {
        let any = || origin::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (http, http2, bulk) = (any(), any(), any());
        let target = http2.local_addr().unwrap();
        std::thread::spawn(move || origin::serve(&http, &http2, &bulk));
        for call in [Call::Get, Call::Unary, Call::Streaming] {
            let outcome = run(&Options {
                target,
                connections: 2,
                streams: 8,
                call,
                warmup: Duration::ZERO,
                time: Duration::from_millis(50),
                proxy: None,
            })
            .unwrap();
            assert!(outcome.requests > 0, "{call:?}");
        }
    }
}
