//! HTTP/1.1 load: a closed loop on one thread, each connection with one request under way.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use super::{
    epoll::{Interest, Poll},
    load::Outcome,
    message,
    usage::Meter,
};

/// How long the whole load may stand still before it is given up.
const STALL: Duration = Duration::from_secs(10);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub target: SocketAddr,
    pub connections: usize,
    /// The size of each answer.
    pub bytes: usize,
    pub ending: Ending,
    /// Load that is not counted, at the start.
    pub warmup: Duration,
    pub time: Duration,
    /// The process of which the CPU time is read at the start and the end of `time`.
    pub proxy: Option<u32>,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the load: one request follows the other.
    Kept,
    /// The client closes it when the answer has come.
    Left,
    /// The request asks for it: the other side closes.
    Asked,
}

/// Puts the load on the target. Any answer but the expected one, and any lost connection, is an error: numbers of a
/// load that failed in part mean nothing.
pub fn run(options: &Options) -> Result<Outcome> {
    let mut load = Load::new(*options)?;
    load.until(Instant::now() + options.warmup)?;
    load.latencies.clear();
    let meter = Meter::start(options.proxy)?;
    load.until(Instant::now() + options.time)?;
    meter.finish(load.latencies)
}

struct Load {
    options: Options,
    request: Vec<u8>,
    poll: Poll,
    connections: Vec<Connection>,
    /// Nanoseconds.
    latencies: Vec<u64>,
}

struct Connection {
    stream: TcpStream,
    state: State,
    /// When the request was sent, or its connection begun.
    began: Instant,
    input: Box<[u8]>,
    filled: usize,
    /// The length of the answer, once its head has come.
    expected: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Answer,
    /// The answer has come; the other side closes.
    End,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Load {
    fn new(options: Options) -> Result<Self> {
        let close = if options.ending == Ending::Asked { "connection: close\r\n" } else { "" };
        let request = format!(
            "GET /{} HTTP/1.1\r\nhost: origin\r\nuser-agent: sluice-bench\r\n{close}\r\n",
            options.bytes
        );
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for token in 0..options.connections {
            let began = Instant::now();
            let stream = connect(options.target)?;
            poll.add(&stream, token, Interest::Write)?;
            // Room for the head too, and for one byte that must not come.
            let input = vec![0; options.bytes + 4096].into_boxed_slice();
            let state = State::Connecting;
            connections.push(Connection { stream, state, began, input, filled: 0, expected: None });
        }
        Ok(Self { options, request: request.into_bytes(), poll, connections, latencies: Vec::new() })
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
                self.advance(token).with_context(|| format!("load on {}", self.options.target))?;
            }
        }
    }

    fn advance(&mut self, token: usize) -> Result<()> {
        let connection = &mut self.connections[token];
        if connection.state == State::Connecting {
            if let Some(error) = connection.stream.take_error()? {
                return Err(error).context("cannot connect");
            }
            self.poll.change(&*connection, token, Interest::Read)?;
            return connection.send(&self.request);
        }
        let count = match connection.stream.read(&mut connection.input[connection.filled..]) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("a connection was lost"),
        };
        if connection.state == State::End {
            ensure!(count == 0, "{count} bytes came after the answer");
            return self.again(token);
        }
        ensure!(count > 0, "a connection was closed before the whole answer had come");
        connection.filled += count;
        if connection.expected.is_none() {
            connection.expected = message::answer_length(&connection.input[..connection.filled])?;
        }
        let Some(expected) = connection.expected.filter(|&expected| connection.filled >= expected) else {
            ensure!(
                connection.filled < connection.input.len(),
                "a head of more than {} bytes",
                connection.filled
            );
            return Ok(());
        };
        ensure!(connection.filled == expected, "more bytes came than the answer has");
        ensure!(expected > self.options.bytes, "the answer is shorter than {} bytes", self.options.bytes);
        self.latencies.push(connection.began.elapsed().as_nanos() as u64);
        (connection.filled, connection.expected) = (0, None);
        match self.options.ending {
            Ending::Kept => {
                connection.began = Instant::now();
                connection.send(&self.request)
            }
            Ending::Left => self.again(token),
            Ending::Asked => {
                connection.state = State::End;
                Ok(())
            }
        }
    }

    /// A new connection takes the place of one.
    fn again(&mut self, token: usize) -> Result<()> {
        let connection = &mut self.connections[token];
        connection.began = Instant::now();
        // The old one is closed by this, and leaves the poll.
        connection.stream = connect(self.options.target)?;
        connection.state = State::Connecting;
        self.poll.add(&*connection, token, Interest::Write)
    }
}

impl Connection {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        self.state = State::Answer;
        let written = self.stream.write(request).context("a connection was lost")?;
        ensure!(written == request.len(), "the socket does not take a whole request");
        Ok(())
    }
}

/// Begins to connect.
fn connect(target: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
        Err(error) => bail!("cannot connect to {target}: {error}"),
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::bench::origin;

    fn origin() -> SocketAddr {
        let any = || origin::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (http, http2, bulk) = (any(), any(), any());
        let address = http.local_addr().unwrap();
        std::thread::spawn(move || origin::serve(&http, &http2, &bulk));
        address
    }

    fn options(target: SocketAddr) -> Options {
        let (warmup, time) = (Duration::ZERO, Duration::from_millis(50));
        Options { target, connections: 8, bytes: 100, ending: Ending::Kept, warmup, time, proxy: None }
    }

    #[test]
    fn the_origin_bears_every_kind_of_load() {
        let target = origin();
        for ending in [Ending::Kept, Ending::Left, Ending::Asked] {
            for bytes in [100, 1 << 20] {
                let outcome = run(&Options { bytes, ending, ..options(target) }).unwrap();
                assert!(outcome.requests > 0, "{bytes} {ending:?}");
                assert!(outcome.p50_us > 0.0 && outcome.p50_us <= outcome.p99_us, "{outcome:?}");
            }
        }
    }

    #[test]
    fn an_answer_that_is_not_the_origins_is_an_error() {
        let listener = origin::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
            }
        });
        let error = run(&Options { time: Duration::from_secs(60), ..options(target) }).unwrap_err();
        assert!(format!("{error:#}").contains("503"), "{error:#}");
    }
}
