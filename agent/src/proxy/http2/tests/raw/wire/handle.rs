//! To send over a wire, from anywhere.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{
    super::{super::soon, frames},
    Shared,
    message::Answer,
    stream::{Sender, Stream},
};

/// To send, from anywhere.
#[derive(Clone)]
pub(in crate::proxy::http2::tests) struct Handle(pub(super) Arc<Shared>);

impl Handle {
    /// Sends bytes as they are. If the connection has ended, nothing happens.
    pub(in crate::proxy::http2::tests) async fn send(&self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.writes.lock().await.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Stops reading the socket, or goes on with it.
    pub(in crate::proxy::http2::tests) fn reads(&self, reads: bool) {
        self.0.reads.send_replace(reads);
    }

    /// Opens a stream. `more` is sent with it in the same write.
    pub(in crate::proxy::http2::tests) async fn open(&self, end: bool, lines: frames::Lines<'_>) -> Stream {
        let mut writes = self.0.writes.lock().await;
        let stream = self.register();
        let _ = writes.write_all(&frames::headers(stream.id, end, lines)).await;
        stream
    }

    /// A stream of ours, with the next number: who calls this sends its HEADERS, in this order.
    pub(in crate::proxy::http2::tests) fn register(&self) -> Stream {
        let mut routes = self.0.routes.lock().expect("not poisoned");
        let id = routes.next;
        routes.next += 2;
        let (to, events) = mpsc::unbounded_channel();
        routes.streams.insert(id, to);
        self.known(id);
        Stream { sender: self.borrow(id), events, seen: VecDeque::new() }
    }

    pub(super) fn known(&self, id: u32) {
        let mut credit = self.0.credit.lock().expect("not poisoned");
        let initial = credit.initial;
        credit.streams.insert(id, initial);
    }

    /// A request without a body, to its end.
    pub(in crate::proxy::http2::tests) async fn get(&self, path: &str) -> Answer {
        self.open(true, &frames::get(path)).await.answer().await
    }

    /// A request with a body, to its end.
    pub(in crate::proxy::http2::tests) async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.open(false, &frames::post(path)).await;
        stream.data(body, true).await;
        stream.answer().await
    }

    /// To send on a stream that somebody else reads.
    pub(in crate::proxy::http2::tests) fn borrow(&self, id: u32) -> Sender {
        Sender { id, handle: self.clone() }
    }

    /// Ends the connection.
    pub(in crate::proxy::http2::tests) async fn close(&self) {
        let _ = self.0.writes.lock().await.shutdown().await;
        self.0.closes.notify_one();
    }

    /// The peer has said with GOAWAY that it ends the connection for what we did.
    pub(in crate::proxy::http2::tests) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// The next stream has this number.
    pub(in crate::proxy::http2::tests) fn skip_to(&self, stream: u32) {
        self.0.routes.lock().expect("not poisoned").next = stream;
    }

    /// The peer must put nothing into its table.
    pub(in crate::proxy::http2::tests) fn no_table(&self) {
        self.0.no_table.store(true, Ordering::Relaxed);
    }

    /// What may be sent on all streams together, and what was.
    pub(in crate::proxy::http2::tests) fn credit(&self) -> (i64, u64) {
        let credit = self.0.credit.lock().expect("not poisoned");
        (credit.connection, credit.sent)
    }

    /// Whether a stream's sender waits for a window.
    pub(in crate::proxy::http2::tests) fn waits(&self, stream: u32) -> bool {
        self.0.credit.lock().expect("not poisoned").waiting.contains(&stream)
    }

    /// Waits until one does.
    pub(in crate::proxy::http2::tests) async fn stuck(&self, stream: u32) {
        soon(async {
            while !self.waits(stream) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Sends up to `wanted` bytes as the windows let it, a multiple of `unit`: `frames` makes DATA of so many. Returns how many
    /// they were; `None`: the stream or the connection has ended.
    pub(super) async fn send_data(
        &self,
        stream: u32,
        wanted: usize,
        unit: usize,
        frames: impl Fn(usize) -> Vec<u8>,
    ) -> Option<usize> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                // Windows that become smaller are acknowledged behind what was sent while they were larger.
                let mut writes = self.0.writes.lock().await;
                let taken = self.take(stream, wanted, unit)?;
                if taken > 0 {
                    return writes.write_all(&frames(taken)).await.is_ok().then_some(taken);
                }
            }
            changed.await;
        }
    }

    /// Takes of the windows what there is; `None`: the stream or the connection has ended.
    fn take(&self, stream: u32, wanted: usize, unit: usize) -> Option<usize> {
        let mut credit = self.0.credit.lock().expect("not poisoned");
        let of_stream = *credit.streams.get(&stream)?;
        if credit.closed {
            return None;
        }
        let room = credit.connection.min(of_stream).min(credit.max_frame as i64);
        let taken = wanted.min(usize::try_from(room).unwrap_or(0)) / unit * unit;
        if taken == 0 {
            credit.waiting.insert(stream);
            return Some(0);
        }
        credit.waiting.remove(&stream);
        credit.connection -= taken as i64;
        *credit.streams.entry(stream).or_default() -= taken as i64;
        credit.sent += taken as u64;
        Some(taken)
    }

    /// The stream takes what comes from now on, and what has come.
    pub(in crate::proxy::http2::tests) async fn takes(&self, stream: u32) {
        let back = {
            // In the order in which `owe` locks them.
            let mut given = self.0.given.lock().expect("not poisoned");
            let mut owed = self.0.owed.lock().expect("not poisoned");
            owed.takes.insert(stream, true);
            let back = (owed.streams.remove(&stream), owed.connection.remove(&stream));
            given.give(stream, back.0.unwrap_or(0));
            given.connection += i64::from(back.1.unwrap_or(0));
            back
        };
        let mut updates = back.0.map(|step| frames::window(stream, step)).unwrap_or_default();
        updates.extend(back.1.map(|step| frames::window(0, step)).unwrap_or_default());
        self.send(updates).await;
    }
}
