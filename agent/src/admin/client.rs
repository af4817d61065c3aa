//! The other end of the admin socket: what `sluice get` and `sluice log-level` say to the agent of this node.
//!
//! Blocking and small, because the kubelet starts it for each probe.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// An agent that is alive answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than the head of any answer has.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// More than any page has.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// The agent could not be asked. One line, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{path}: cannot reach the agent: {source}{hint}", path = path.display())]
    Connect { path: PathBuf, source: io::Error, hint: &'static str },
    #[error("{path}: the agent does not answer: {source}", path = path.display())]
    Silent { path: PathBuf, source: io::Error },
    #[error("{path}: what answers there is no agent", path = path.display())]
    Foreign { path: PathBuf },
    #[error("`{target}` is no path on the admin interface: it begins with a slash and has no spaces")]
    Target { target: String },
    /// What came cannot be passed on.
    #[error("cannot write: {0}")]
    Write(io::Error),
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Asks for a page.
pub fn get(socket: &Path, target: &str) -> Result<Answer, ClientError> {
    ask(socket, "GET", target, "")
}

/// Changes what a page stands for.
pub fn put(socket: &Path, target: &str, body: &str) -> Result<Answer, ClientError> {
    ask(socket, "PUT", target, body)
}

/// Asks what needs more than a path.
pub fn post(socket: &Path, target: &str, body: &str) -> Result<Answer, ClientError> {
    ask(socket, "POST", target, body)
}

/// Asks for a page. With a 2xx status its body goes to `out` as it comes, and is not in the answer.
pub fn stream(socket: &Path, target: &str, out: &mut dyn io::Write) -> Result<Answer, ClientError> {
    let mut stream = send(socket, "GET", target, "")?;
    let silent = |source| ClientError::Silent { path: socket.to_owned(), source };
    let foreign = || ClientError::Foreign { path: socket.to_owned() };
    let (mut came, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    let end_of_head = loop {
        let count = stream.read(&mut chunk).map_err(silent)?;
        came.extend_from_slice(&chunk[..count]);
        if let Some(end) = came.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if count == 0 || came.len() > MAX_HEAD_BYTES {
            return Err(foreign());
        }
    };
    let head = parse(&came[..end_of_head]).ok_or_else(foreign)?;
    if !head.is_good() {
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut came).map_err(silent)?;
        return parse(&came).ok_or_else(foreign);
    }
    let mut pass = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush()).map_err(ClientError::Write);
    pass(&came[end_of_head..])?;
    loop {
        match stream.read(&mut chunk).map_err(silent)? {
            0 => return Ok(head),
            count => pass(&chunk[..count])?,
        }
    }
}

fn ask(socket: &Path, method: &str, target: &str, body: &str) -> Result<Answer, ClientError> {
    let stream = send(socket, method, target, body)?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut answer)
        .map_err(|source| ClientError::Silent { path: socket.to_owned(), source })?;
    parse(&answer).ok_or_else(|| ClientError::Foreign { path: socket.to_owned() })
}

/// Sends the question; the answer is to be read.
fn send(socket: &Path, method: &str, target: &str, body: &str) -> Result<UnixStream, ClientError> {
    if !target.starts_with('/') || target.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return Err(ClientError::Target { target: target.to_owned() });
    }
    let path = || socket.to_owned();
    let mut stream = UnixStream::connect(socket).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "; is it running, with this --admin-socket?"
            }
            io::ErrorKind::PermissionDenied => "; only root may",
            _ => "",
        };
        ClientError::Connect { path: path(), source, hint }
    })?;
    // HTTP/1.0: the answer ends with the connection, and is never chunked.
    let request =
        format!("{method} {target} HTTP/1.0\r\nhost: sluice\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut ask = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())
    };
    ask().map_err(|source| ClientError::Silent { path: path(), source })?;
    Ok(stream)
}

/// `HTTP/1.x 200 OK`, header lines, an empty line, the body.
fn parse(answer: &[u8]) -> Option<Answer> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n");
        assert_eq!(answer, Some(Answer { status: 503, body: "no\n".to_owned() }));
        assert!(!answer.is_some_and(|answer| answer.is_good()));
        for wrong in [&b""[..], b"HTTP/1.0 200 OK\r\n", b"220 smtp\r\n\r\n", b"HTTP/1.0 OK\r\n\r\n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn who_is_not_there_is_one_clear_line() {
        let directory = tempfile::tempdir().unwrap();
        let error = get(&directory.path().join("no.sock"), "/readyz").unwrap_err().to_string();
        assert!(error.ends_with("; is it running, with this --admin-socket?"), "{error}");
        for target in ["readyz", "/a b", "/a\r\nx: y", ""] {
            let error = get(Path::new("/nowhere"), target).unwrap_err();
            assert!(matches!(error, ClientError::Target { .. }), "{error}");
        }
    }
}
