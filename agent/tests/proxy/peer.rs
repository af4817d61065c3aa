//! One end of a connection, with what a test wants of it.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use crate::rig::LIMIT;

pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    /// What was read and not yet asked for.
    ahead: Vec<u8>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Whether the head has this line (in this very spelling).
    pub(crate) fn has(&self, line: &str) -> bool {
        self.head.split("\r\n").any(|other| other == line)
    }

    /// Checks that it was made up, and why.
    #[track_caller]
    pub(crate) fn made_up(&self, status: u16, reason: &str) {
        let right = self.status() == status
            && self.has(&format!("x-sluice-reason: {reason}"))
            && self.body.contains(&format!("\"reason\":\"{reason}\""));
        assert!(right, "not {status} {reason}: {self:?}");
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    InOrder,
    Reset,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    /// A second handle to the same connection, for a thread of its own.
    pub(crate) fn second(&self) -> Self {
        Self::new(self.stream.try_clone().unwrap())
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends for as long as the other side takes it.
    pub(crate) fn offer(&mut self, bytes: impl AsRef<[u8]>) {
        // That it ends is what is waited for.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends urgent data.
    pub(crate) fn send_urgent(&mut self, byte: u8) {
        assert_eq!(socket2::SockRef::from(&self.stream).send_out_of_band(&[byte]).unwrap(), 1);
    }

    /// From now on urgent data is read in its place.
    pub(crate) fn keep_urgent(&mut self) {
        socket2::SockRef::from(&self.stream).set_out_of_band_inline(true).unwrap();
    }

    /// Waits until the next byte is urgent data; all before it has been read.
    #[track_caller]
    pub(crate) fn await_urgent(&mut self) {
        assert!(self.ahead.is_empty(), "{:?} is not urgent", self.pending());
        let began = std::time::Instant::now();
        while !sluice::capture::is_at_urgent_byte(self.stream.as_fd()) {
            assert!(began.elapsed() < LIMIT, "no urgent data has come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends to somebody who may have left.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends until nobody takes any more for a while, or `limit` bytes have been taken. Returns how many.
    pub(crate) fn fill(&mut self, limit: usize) -> usize {
        self.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let part = [b'x'; 16 * 1024];
        let mut sent = 0;
        while sent < limit {
            match self.stream.write(&part[..part.len().min(limit - sent)]) {
                Ok(written) => sent += written,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) => panic!("{error} after {sent} bytes"),
            }
        }
        self.stream.set_write_timeout(Some(LIMIT)).unwrap();
        sent
    }

    pub(crate) fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n"));
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let read = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..read]);
        Ok(read)
    }

    #[track_caller]
    fn must_more(&mut self, wanted: &str) {
        match self.more() {
            Ok(1..) => {}
            Ok(_) => panic!("the end came after {:?} and before {wanted}", self.pending()),
            Err(error) => panic!("{error} after {:?} and before {wanted}", self.pending()),
        }
    }

    /// Everything up to and with `end`.
    #[track_caller]
    pub(crate) fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end.as_bytes()) {
                return String::from_utf8_lossy(&self.taken(at + end.len())).into_owned();
            }
            self.must_more(end);
        }
    }

    /// Exactly so many bytes.
    #[track_caller]
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            self.must_more("enough bytes");
        }
        self.taken(length)
    }

    fn taken(&mut self, length: usize) -> Vec<u8> {
        let rest = self.ahead.split_off(length);
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Checks that exactly this comes next.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        let got = self.exactly(text.len());
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// A head.
    #[track_caller]
    pub(crate) fn head(&mut self) -> String {
        self.until("\r\n\r\n")
    }

    /// The next head, or `None` at the end of the connection, however it ends.
    pub(crate) fn request(&mut self) -> Option<String> {
        while !self.pending().contains("\r\n\r\n") {
            if !matches!(self.more(), Ok(1..)) {
                return None;
            }
        }
        Some(self.head())
    }

    /// A whole answer that is delimited by a length, or has no body.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.head();
        let length = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
        });
        let body = String::from_utf8_lossy(&self.exactly(length.unwrap_or(0))).into_owned();
        Answer { head, body }
    }

    /// Everything to an orderly end.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> String {
        match self.end() {
            (rest, End::InOrder) => rest,
            (rest, End::Reset) => panic!("reset after {rest:?}"),
        }
    }

    /// Everything to the end, and how that came.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (String, End) {
        let end = loop {
            match self.more() {
                Ok(0) => break End::InOrder,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break End::Reset,
                Err(error) => panic!("{error} after {:?}", self.pending()),
            }
        };
        (String::from_utf8_lossy(&std::mem::take(&mut self.ahead)).into_owned(), end)
    }

    /// Ends this side.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Makes the connection break off with a reset when this is dropped.
    pub(crate) fn reset(&mut self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn pending(&self) -> String {
        String::from_utf8_lossy(&self.ahead).into_owned()
    }
}
