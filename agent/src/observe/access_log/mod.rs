//! One line for each request, off by default: text for people, JSON for machines.
//!
//! A line is made by the thread that carried the request and written by a thread of its own. If that cannot keep
//! up, lines are dropped and counted; requests never wait. No header's value is logged but the trace id that
//! `traceparent` carries; control characters in methods and paths are escaped, so that a line stays a line.

mod line;

use std::{
    fmt::Display,
    io::{self, Write},
    net::SocketAddr,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use prometheus::IntCounter;

use super::reason::Reason;
use crate::config::AccessLogFormat;

/// Lines that may wait to be written.
const QUEUE: usize = 8192;

/// Where requests are logged. Cloned for each worker.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// `None`: off.
    lines: Option<(SyncSender<Vec<u8>>, Style)>,
    dropped: IntCounter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Text,
    Json,
}

/// A request that has ended.
#[derive(Clone, Copy)]
pub struct Entry<'e> {
    /// When the answer ended.
    pub time: SystemTime,
    pub source_namespace: &'e str,
    pub source_pod: &'e str,
    pub method: &'e [u8],
    /// Path and query, as sent; only the first 2048 bytes are shown.
    pub path: &'e [u8],
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'e str,
    /// 0 if the caller got none.
    pub status: u16,
    /// As in `orders.shop:8080`.
    pub service: &'e dyn Display,
    /// The last endpoint that was tried.
    pub endpoint: Option<SocketAddr>,
    /// The request's tag.
    pub tag: Option<&'e str>,
    /// The lane of the endpoint; `None` is baseline (or no endpoint at all).
    pub lane: Option<&'e str>,
    /// Who gave the tag.
    pub tag_source: Option<&'e str>,
    pub reason: Option<Reason>,
    /// The rule of a policy that is behind the reason.
    pub rule: Option<&'e str>,
    /// How many endpoints it was sent to, one after the other.
    pub attempts: u32,
    /// From the beginning of the last attempt to the answer's end.
    pub upstream_duration: Option<Duration>,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub trace_id: Option<TraceId>,
}

/// The trace id of a W3C `traceparent` header: 32 lower-case hexadecimal digits, not all of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId([u8; 32]);

impl TraceId {
    /// Parses `version-traceid-parentid-flags`; `None` if it is anything else.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header-field-values>
    pub fn parse(traceparent: &[u8]) -> Option<Self> {
        let is_hex = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = traceparent.trim_ascii().split(|byte| *byte == b'-');
        let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let shape = version.len() == 2 && parent.len() == 16 && flags.len() == 2;
        // Version 00 has exactly four parts, later ones may have more; ff is forbidden.
        let known = version != b"ff" && (version != b"00" || parts.next().is_none());
        let id = <[u8; 32]>::try_from(id).ok()?;
        let good = [version, &id, parent, flags].into_iter().all(is_hex) && id != [b'0'; 32];
        (shape && known && good).then_some(Self(id))
    }

    pub fn as_str(&self) -> &str {
        // Hexadecimal digits are ASCII, so the default is never taken.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The thread that writes. It ends when the last [`AccessLog`] is gone and everything is written.
#[derive(Debug)]
pub struct Writer(Option<JoinHandle<()>>);

impl Writer {
    /// Waits until all lines are written. Every [`AccessLog`] must have been dropped before.
    pub fn join(self) {
        if let Some(thread) = self.0
            && thread.join().is_err()
        {
            tracing::error!("the access log's writer has panicked; its last lines are lost");
        }
    }
}

impl AccessLog {
    /// A log that writes to `out`, and its writer.
    pub fn start(
        format: AccessLogFormat,
        out: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> io::Result<(Self, Writer)> {
        let style = match format {
            AccessLogFormat::Off => return Ok((Self { lines: None, dropped }, Writer(None))),
            AccessLogFormat::Text => Style::Text,
            AccessLogFormat::Json => Style::Json,
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&receiver, out))?;
        Ok((Self { lines: Some((sender, style)), dropped }, Writer(Some(thread))))
    }

    /// A log that is off.
    pub fn off() -> Self {
        Self {
            lines: None,
            dropped: IntCounter::new("access_log_dropped", "unused").expect("a constant, valid name"),
        }
    }

    /// Whether it is worth gathering what an [`Entry`] needs.
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Logs a request. Never waits.
    pub fn record(&self, entry: &Entry<'_>) {
        let Some((sender, style)) = &self.lines else { return };
        let line = match style {
            Style::Text => entry.text(),
            Style::Json => entry.json(),
        };
        if sender.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

/// Writes what has gathered, then waits for more: one system call for many lines under load, none held back.
fn write_all(lines: &Receiver<Vec<u8>>, mut out: impl Write) {
    let mut failed = false;
    let mut buffer = Vec::with_capacity(64 << 10);
    while let Ok(line) = lines.recv() {
        buffer.extend_from_slice(&line);
        while buffer.len() < 64 << 10
            && let Ok(line) = lines.try_recv()
        {
            buffer.extend_from_slice(&line);
        }
        match out.write_all(&buffer).and_then(|()| out.flush()) {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                failed = true;
                tracing::error!(%error, "cannot write the access log: lines are lost until it can be written again");
            }
            Err(_) => {}
        }
        buffer.clear();
    }
}

#[cfg(test)]
mod tests;
