//! One line for each request, off by default: text for people, JSON for machines.
//!
//! A line is made by the worker that carried the request, into a buffer of its own ([`Lines`]), which goes to the thread
//! that writes when it is full and several times a second; so a line costs neither a lock nor a wake-up. If the writer
//! cannot keep up, lines are dropped and counted; requests never wait. At most 4 MiB of lines wait to be written, and
//! 48 KiB with each worker.
//!
//! No header's value is shown but a tag and the ids of a trace, and no query. Control characters, quotes and whatever is
//! not ASCII in methods and paths are escaped, so that a line stays a line, and nobody's terminal obeys a request.

mod line;
mod sink;

use std::{
    cell::RefCell,
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use prometheus::IntCounter;

pub use self::sink::File;
use super::{
    reason::Reason,
    sampling::Ratio,
    trace::context::{SpanId, TraceId},
};

/// Bytes of lines that may wait to be written.
const QUEUE: usize = 4 * 1024 * 1024;
/// Bytes of lines that a worker gathers before it hands them over. The last line may go a few KiB beyond.
const CHUNK: usize = 32 * 1024;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    Json,
}

/// Where requests are logged. Each worker has its own [`Lines`] of it.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<Open>);

#[derive(Clone, Debug)]
struct Open {
    style: Style,
    /// Of the requests to services of which nobody has said it.
    ratio: Ratio,
    queue: Sender<Chunk>,
    /// Bytes in the queue.
    queued: Arc<AtomicUsize>,
    dropped: IntCounter,
    trouble: Trouble,
}

/// Why lines cannot be written at the moment.
pub type Trouble = Arc<ArcSwapOption<String>>;

/// Whole lines.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    lines: u64,
}

/// A worker's part of the log. What was recorded is handed over when this is dropped, too.
#[derive(Debug)]
pub struct Lines {
    log: Option<Open>,
    waiting: RefCell<Chunk>,
}

/// A request that has ended.
#[derive(Clone, Copy)]
pub struct Entry<'e> {
    /// When the answer ended.
    pub time: SystemTime,
    pub source_namespace: &'e str,
    pub source_pod: &'e str,
    pub method: &'e [u8],
    /// Without the query, which may hold secrets.
    pub path: &'e [u8],
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'e str,
    /// 0 if the caller got none.
    pub status: u16,
    pub grpc_status: Option<u8>,
    /// The service's name, its namespace and its port.
    pub service: &'e str,
    pub namespace: &'e str,
    pub port: u16,
    /// The last endpoint that was tried, by the address that it was connected to.
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
    /// The TrafficPolicy that has the rule, as in `shop/orders`.
    pub policy: Option<&'e str>,
    /// What is wrong with the token that the rule asks for, as metrics have it.
    pub token: Option<&'e str>,
    /// The route that has sent it where it went, and its rule.
    pub route: Option<&'e str>,
    /// The service that was called, if a route has sent it to another, as in `orders.shop:80`.
    pub called: Option<&'e str>,
    /// The path that was asked for, if a route has changed it; without the query.
    pub called_path: Option<&'e [u8]>,
    /// How often it was sent again.
    pub retries: u32,
    /// What endpoints took until their answers began; `None`: none was asked.
    pub upstream_duration: Option<Duration>,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// The trace that it belongs to. The span is Sluice's own where it made one, else that of the caller.
    pub trace: Option<(TraceId, SpanId)>,
}

/// The thread that writes. It ends when the last [`AccessLog`] and [`Lines`] are gone and everything is written.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits until all lines are written. Every [`AccessLog`] and [`Lines`] must have been dropped before.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the access log's writer has panicked; its last lines are lost");
        }
    }
}

impl AccessLog {
    /// A log that writes to `out`, and its writer. `ratio`: how much of the requests to services of which nobody has
    /// said it.
    pub fn start(
        style: Style,
        ratio: Ratio,
        out: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> io::Result<(Self, Writer)> {
        let (queue, chunks) = channel();
        let queued = Arc::<AtomicUsize>::default();
        let open = Open {
            style,
            ratio,
            queue,
            queued: queued.clone(),
            dropped: dropped.clone(),
            trouble: Trouble::default(),
        };
        let trouble = open.trouble.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || sink::write_all(&chunks, &queued, &dropped, &trouble, out))?;
        Ok((Self(Some(open)), Writer(thread)))
    }

    /// A log that is off.
    pub fn off() -> Self {
        Self(None)
    }

    /// Why lines cannot be written, as long as they cannot; it does not keep the log open.
    pub fn trouble(&self) -> Trouble {
        self.0.as_ref().map(|open| open.trouble.clone()).unwrap_or_default()
    }

    /// A worker's part.
    pub fn lines(&self) -> Lines {
        Lines { log: self.0.clone(), waiting: RefCell::default() }
    }
}

impl Lines {
    /// Whether any request may be logged.
    pub fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Whether a request is logged, to a service of which somebody has said (`asked`) how much of them is.
    pub fn wants(&self, asked: Option<Ratio>, trace: Option<TraceId>, rng: &mut fastrand::Rng) -> bool {
        self.log.as_ref().is_some_and(|log| asked.unwrap_or(log.ratio).takes(trace, rng))
    }

    /// Logs a request. Never waits.
    pub fn record(&self, entry: &Entry<'_>) {
        let Some(log) = &self.log else { return };
        let waiting = &mut *self.waiting.borrow_mut();
        match log.style {
            Style::Text => entry.text(&mut waiting.bytes),
            Style::Json => entry.json(&mut waiting.bytes),
        }
        waiting.lines += 1;
        if waiting.bytes.len() >= CHUNK {
            log.send(waiting);
        }
    }

    /// Hands over what has gathered. To be called several times a second.
    pub fn flush(&self) {
        let waiting = &mut *self.waiting.borrow_mut();
        if let Some(log) = self.log.as_ref().filter(|_| waiting.lines > 0) {
            log.send(waiting);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Open {
    /// Leaves `chunk` empty.
    fn send(&self, chunk: &mut Chunk) {
        let (size, lines) = (chunk.bytes.len(), std::mem::take(&mut chunk.lines));
        // Before it is there, lest the writer takes away what was not yet counted.
        let room = self.queued.fetch_add(size, Ordering::Relaxed) + size <= QUEUE;
        // A copy of the size that it needs, so that the queue takes no more memory than is counted.
        if !room || self.queue.send(Chunk { bytes: chunk.bytes.clone(), lines }).is_err() {
            self.queued.fetch_sub(size, Ordering::Relaxed);
            self.dropped.inc_by(lines);
        }
        chunk.bytes.clear();
    }
}

#[cfg(test)]
mod tests;
