//! The origin: answers requests in pod B, with one thread and as little work as will do.
//!
//! `GET /<bytes>` is answered with that many bytes; `GET /<bytes>/<n>` too, but not before `n` such requests wait,
//! so that a proxy has `n` connections to the origin at the same time. One port is for HTTP/2 ([`super::http2_origin`]), and
//! one sends without end.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::{
    epoll::{Interest, Poll},
    http2_origin, message,
};

const HTTP_LISTENER: usize = 0;
const HTTP2_LISTENER: usize = 1;
const BULK_LISTENER: usize = 2;

/// What is written at once to a connection that is sent without end.
const CHUNK: usize = 256 * 1024;

/// Serves until the process is killed. The ports are bound on all addresses of the pod.
pub fn serve(http: &TcpListener, http2: &TcpListener, bulk: &TcpListener) -> Result<()> {
    let mut poll = Poll::new()?;
    for (token, listener) in [(HTTP_LISTENER, http), (HTTP2_LISTENER, http2), (BULK_LISTENER, bulk)] {
        listener.set_nonblocking(true)?;
        poll.add(listener, token, Interest::Read)?;
    }
    let mut origin =
        Origin { connections: HashMap::new(), next: 3, answers: HashMap::new(), waiting: Vec::new() };
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready, None)?;
        for &token in &ready {
            match token {
                HTTP_LISTENER => origin.accept(&poll, http, || Kind::Http)?,
                HTTP2_LISTENER => origin.accept(&poll, http2, || Kind::Http2(Box::default()))?,
                BULK_LISTENER => origin.accept(&poll, bulk, || Kind::Bulk)?,
                _ => origin.serve(&poll, token)?,
            }
        }
    }
}

/// A listener with room for every client of the bench at once.
pub fn listen(address: std::net::SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

struct Origin {
    connections: HashMap<usize, Connection>,
    next: usize,
    /// The whole answer by its number of bytes, for a connection that stays and for one that closes.
    answers: HashMap<(usize, bool), Vec<u8>>,
    /// Connections whose answer is held back, with what it will be.
    waiting: Vec<(usize, Request)>,
}

/// What is spoken on a connection.
enum Kind {
    Http,
    Http2(Box<http2_origin::Connection>),
    Bulk,
}

struct Connection {
    stream: TcpStream,
    kind: Kind,
    input: Vec<u8>,
    /// What the socket would not take yet.
    output: Vec<u8>,
    close_after_output: bool,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    bytes: usize,
    /// Answer when this many wait.
    together: usize,
    close: bool,
}

impl Origin {
    fn accept(&mut self, poll: &Poll, listener: &TcpListener, kind: impl Fn() -> Kind) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client is gone again.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            // A client that has reset its connection already is found out when it is read.
            let _ = stream.set_nodelay(true);
            let token = self.next;
            self.next += 1;
            let kind = kind();
            let interest = if matches!(kind, Kind::Bulk) { Interest::Write } else { Interest::Read };
            poll.add(&stream, token, interest)?;
            let connection =
                Connection { stream, kind, input: Vec::new(), output: Vec::new(), close_after_output: false };
            self.connections.insert(token, connection);
        }
    }

    /// Does what can be done for a connection; one that fails or ends is dropped, which closes it.
    fn serve(&mut self, poll: &Poll, token: usize) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let open = if matches!(connection.kind, Kind::Bulk) {
            connection.pour()
        } else if let Kind::Http2(_) = connection.kind {
            connection.frames()
        } else if connection.output.is_empty() {
            match connection.requests() {
                Some(requests) => {
                    for request in requests {
                        self.answer(poll, token, request)?;
                    }
                    true
                }
                None => false,
            }
        } else {
            self.flush(poll, token)?
        };
        if !open {
            self.connections.remove(&token);
            self.waiting.retain(|(waiting, _)| *waiting != token);
        }
        Ok(())
    }

    /// Answers, or holds the answer back and answers all that wait when they are enough.
    fn answer(&mut self, poll: &Poll, token: usize, request: Request) -> Result<()> {
        if request.together > 1 {
            self.waiting.push((token, request));
            if self.waiting.len() < request.together {
                return Ok(());
            }
            for (token, request) in std::mem::take(&mut self.waiting) {
                self.send(poll, token, request)?;
            }
            return Ok(());
        }
        self.send(poll, token, request)
    }

    fn send(&mut self, poll: &Poll, token: usize, request: Request) -> Result<()> {
        let answer = self.answers.entry((request.bytes, request.close)).or_insert_with(|| answer(request));
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        connection.close_after_output |= request.close;
        if !connection.output.is_empty() {
            connection.output.extend_from_slice(answer);
            return Ok(());
        }
        let open = match connection.stream.write(answer) {
            Ok(written) if written == answer.len() => !connection.close_after_output,
            Ok(written) => {
                connection.output.extend_from_slice(&answer[written..]);
                poll.change(&*connection, token, Interest::Write)?;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                connection.output.extend_from_slice(answer);
                poll.change(&*connection, token, Interest::Write)?;
                true
            }
            Err(_) => false,
        };
        if !open {
            self.connections.remove(&token);
        }
        Ok(())
    }

    fn flush(&mut self, poll: &Poll, token: usize) -> Result<bool> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(false) };
        match connection.stream.write(&connection.output) {
            Ok(written) => drop(connection.output.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Ok(false),
        }
        if connection.output.is_empty() {
            if connection.close_after_output {
                return Ok(false);
            }
            poll.change(&*connection, token, Interest::Read)?;
        }
        Ok(true)
    }
}

impl Connection {
    /// Reads what is there and takes the whole requests out of it; `None` at the end of the connection or of its sense.
    fn requests(&mut self) -> Option<Vec<Request>> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        let mut requests = Vec::new();
        while let Some(length) = message::head_length(&self.input) {
            requests.push(request(&self.input[..length]).ok()?);
            self.input.drain(..length);
        }
        Some(requests)
    }

    /// Reads what is there and answers it. False at the end of the connection or of its sense.
    fn frames(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        let Kind::Http2(http2) = &mut self.kind else { return false };
        if http2.answer(&mut self.input, &mut self.output).is_none() {
            return false;
        }
        // The loads have too little under way for a socket not to take it.
        let written = self.output.is_empty() || self.stream.write_all(&self.output).is_ok();
        self.output.clear();
        written
    }

    /// Sends zeros until the socket takes no more.
    fn pour(&mut self) -> bool {
        static ZEROS: [u8; CHUNK] = [0; CHUNK];
        loop {
            // Where in the zeros it stops makes no difference.
            if let Err(error) = self.stream.write_all(&ZEROS) {
                return error.kind() == ErrorKind::WouldBlock;
            }
        }
    }
}

fn answer(request: Request) -> Vec<u8> {
    let connection = if request.close { "connection: close\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{connection}content-length: {}\r\n\r\n",
        request.bytes
    );
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + request.bytes, b'x');
    answer
}

/// `GET /<bytes>[/<together>] HTTP/1.1`
fn request(head: &[u8]) -> Result<Request> {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).context("a request line that is no text")?;
    let path = line.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).context("not a GET")?;
    let (bytes, together) = path.split_once('/').unwrap_or((path, "1"));
    let (bytes, together) =
        (bytes.parse().context("how many bytes?")?, together.parse().context("how many?")?);
    ensure!(bytes <= 16 << 20 && together <= 65536, "more than the bench asks for");
    let close = message::field(head, b"connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    Ok(Request { bytes, together, close })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_what_they_want() {
        let wanted = |bytes, together, close| Request { bytes, together, close };
        assert_eq!(request(b"GET /100 HTTP/1.1\r\nhost: a\r\n\r\n").unwrap(), wanted(100, 1, false));
        assert_eq!(request(b"GET /9/50 HTTP/1.1\r\nConnection: Close\r\n\r\n").unwrap(), wanted(9, 50, true));
        assert!(request(b"POST /100 HTTP/1.1\r\n\r\n").is_err());
        assert!(request(b"GET / HTTP/1.1\r\n\r\n").is_err());
        assert!(request(b"GET /99999999999 HTTP/1.1\r\n\r\n").is_err());
    }
}
