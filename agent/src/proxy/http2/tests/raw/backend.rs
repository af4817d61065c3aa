//! An endpoint that does what the path says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;

use super::{
    super::soon,
    Event, Stream, Wishes,
    frames::{self, Lines},
    wire,
};

const OK: Lines<'static> = &[(":status", "200")];
const GRPC_OK: Lines<'static> = &[("grpc-status", "0")];

/// A gRPC message of one byte.
pub(in super::super) const MESSAGE: &[u8] = b"\0\0\0\0\x01x";

/// What the endpoint has seen.
#[derive(Clone)]
pub(in super::super) struct Backend {
    pub(in super::super) address: SocketAddr,
    pub(in super::super) seen: Arc<Seen>,
}

pub(in super::super) struct Seen {
    pub(in super::super) connections: AtomicUsize,
    pub(in super::super) requests: AtomicUsize,
    /// Resets that came.
    pub(in super::super) resets: AtomicUsize,
    /// Streams that are served.
    pub(in super::super) open: AtomicUsize,
    /// The most that were open at once.
    pub(in super::super) most_open: AtomicUsize,
    /// Bytes of bodies, or of interim responses, that were sent.
    pub(in super::super) sent: AtomicU64,
    /// Bytes of bodies that came on `/early`, to their end.
    pub(in super::super) early: AtomicU64,
    /// Those who wait for it go on.
    pub(in super::super) gate: watch::Sender<bool>,
}

impl Seen {
    pub(in super::super) async fn until(&self, passes: impl Fn(&Self) -> bool) {
        soon(async {
            while !passes(self) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

impl Backend {
    pub(in super::super) async fn start() -> Self {
        Self::with(Wishes::default()).await
    }

    pub(in super::super) async fn with(wishes: Wishes) -> Self {
        let seen = Arc::new(Seen {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            early: AtomicU64::new(0),
            gate: watch::Sender::new(false),
        });
        let sees = seen.clone();
        let address = wire::listen(wishes, move |mut wire| {
            let seen = sees.clone();
            async move {
                seen.connections.fetch_add(1, Ordering::Relaxed);
                while let Some(stream) = wire.accepted.recv().await {
                    seen.requests.fetch_add(1, Ordering::Relaxed);
                    let seen = seen.clone();
                    tokio::spawn(async move {
                        let open = seen.open.fetch_add(1, Ordering::Relaxed) + 1;
                        seen.most_open.fetch_max(open, Ordering::Relaxed);
                        serve(stream, &seen).await;
                        seen.open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }
        })
        .await;
        Self { address, seen }
    }
}

/// Waits for the reset of a stream, or its connection's end.
async fn hang(stream: &mut Stream, seen: &Seen) {
    loop {
        match stream.wait().await {
            Event::Reset { .. } => {
                seen.resets.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Event::Closed => return,
            _ => {}
        }
    }
}

/// Takes a body to its end. Returns its bytes, or `None` if it was broken off.
async fn body(stream: &mut Stream, seen: &Seen, mut each: impl AsyncFnMut(&Stream, &[u8])) -> Option<usize> {
    let mut count = 0;
    loop {
        match stream.wait().await {
            Event::Data { bytes, end, .. } => {
                count += bytes.len();
                each(stream, &bytes).await;
                if end {
                    return Some(count);
                }
            }
            Event::Headers { end: true, .. } => return Some(count),
            Event::Reset { .. } => {
                seen.resets.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Event::Closed => return None,
            _ => {}
        }
    }
}

async fn serve(mut stream: Stream, seen: &Seen) {
    let Event::Headers { fields, end, .. } = stream.wait().await else { return };
    let path = wire::of(&fields, ":path").to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let what = parts.next().unwrap_or_default();
    let number = parts.next().and_then(|number| number.parse::<usize>().ok()).unwrap_or(0);
    let ignore = async |_: &Stream, _: &[u8]| {};
    // The others read nothing, or not yet.
    if what != "pause" && what != "hang" {
        stream.handle.takes(stream.id).await;
    }
    match what {
        // The body's length.
        "count" | "pause" => {
            if what == "pause" {
                let _ = seen.gate.subscribe().wait_for(|open| *open).await;
                stream.handle.takes(stream.id).await;
            }
            let count = if end { Some(0) } else { body(&mut stream, seen, ignore).await };
            let Some(count) = count else { return };
            stream.headers(false, OK).await;
            stream.data(count.to_string().as_bytes(), false).await;
            stream.headers(true, GRPC_OK).await;
        }
        // So many messages, a frame each.
        "stream" => {
            stream.headers(false, OK).await;
            if stream.many(MESSAGE, number).await {
                stream.headers(true, GRPC_OK).await;
            }
        }
        // So many bytes; counts what was sent.
        "big" => {
            stream.headers(false, OK).await;
            let part = vec![7; 16_384];
            let mut left = number;
            while left > 0 {
                let length = left.min(part.len());
                if !stream.data(&part[..length], left == length).await {
                    return hang(&mut stream, seen).await;
                }
                left -= length;
                seen.sent.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
        // What comes, as it comes.
        "echo" => {
            stream.headers(false, OK).await;
            let sent = body(&mut stream, seen, async |stream, bytes| {
                stream.data(bytes, false).await;
            })
            .await;
            if sent.is_some() {
                stream.headers(true, GRPC_OK).await;
            }
        }
        "hang" => hang(&mut stream, seen).await,
        // A response with empty DATA in it.
        "empties" => {
            stream.headers(false, OK).await;
            for part in [&b""[..], b"", b"x", b""] {
                stream.data(part, false).await;
            }
            stream.data(b"", true).await;
        }
        "malformed" => {
            stream.headers(true, &[(":status", "200"), ("X-Upper", "case")]).await;
        }
        "reset" => {
            stream.reset(2).await;
        }
        // 103 until the stream is reset.
        "hints" => {
            let hints =
                frames::headers(stream.id, false, &[(":status", "103"), ("link", "</a.css>")]).repeat(100);
            loop {
                if !stream.handle.send(&hints).await {
                    return;
                }
                seen.sent.fetch_add(hints.len() as u64, Ordering::Relaxed);
                match stream.try_next() {
                    Some(Event::Reset { .. }) => {
                        seen.resets.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    Some(Event::Closed) => return,
                    _ => {}
                }
            }
        }
        // The whole response before the request's body.
        "early" => {
            stream.headers(false, OK).await;
            stream.data(b"early", true).await;
            if let Some(count) = body(&mut stream, seen, ignore).await {
                seen.early.fetch_add(count as u64, Ordering::Relaxed);
            }
        }
        // The same, and the rest of the request is not wanted (RFC 9113, section 8.1).
        "enough" => {
            stream.headers(false, OK).await;
            stream.data(b"enough", true).await;
            stream.reset(0).await;
        }
        // A padded response of so many bytes.
        "padded" => {
            stream.headers(false, OK).await;
            let mut left = number;
            while left > 0 {
                let length = left.min(1000);
                left -= length;
                if !stream.padded(&vec![7; length], (left % 256) as u8, left == 0).await {
                    return;
                }
            }
        }
        // Takes so many bytes, then resets.
        "refuse" => {
            let mut count = 0;
            // A request may be over with its head.
            while !end && count < number {
                match stream.wait().await {
                    Event::Data { bytes, end: false, .. } => count += bytes.len(),
                    _ => break,
                }
            }
            stream.reset(8).await;
        }
        // A header of so many bytes, in parts of 1 KiB, or of 16.
        "wide" | "wider" => {
            let value = "v".repeat(number);
            let block = frames::block(&[(":status", "200"), ("x-wide", &value)]);
            let size = if what == "wide" { 1024 } else { 16_384 };
            stream.handle.send(frames::parts(stream.id, true, &block, size)).await;
        }
        _ => {
            if !end && body(&mut stream, seen, ignore).await.is_none() {
                return;
            }
            stream.headers(true, &[(":status", "200"), ("x-path", &path)]).await;
        }
    }
}
