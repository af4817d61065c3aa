//! A copy of a request on its way to a mirror, and its answer, which nobody reads.

use std::{future::poll_fn, rc::Rc};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::{
    head::{HeadEnd, MAX_HEAD_BYTES},
    outgoing,
    request::Method,
    response::{self, Caller, Response},
};
use crate::{
    clock::Nanos,
    govern::lane::{RequestTag, TagNames},
    proxy::{
        choose::Chosen,
        connection::poll_read,
        mirror::{ANSWER, CONNECT_WITHIN, Sends},
        pool::{self, Need},
        upstream::{self, Opened, Terms},
        worker::{PodHere, Worker},
    },
};

/// How a copy over HTTP/1 is sent. It is in the copy, head and all, as the endpoint of the request itself gets it.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    pub(super) method: Method,
    pub(super) http10: bool,
    /// Whose connections are used: those of the request's client.
    pub(super) key: pool::Key,
}

impl Sends for Sender {
    fn apart(&self, data: &Bytes) -> usize {
        data.len()
    }

    fn colour(&mut self, tag: &RequestTag, names: &TagNames, head: usize, data: Bytes) -> Bytes {
        let (head, rest) = data.split_at(head);
        let mut coloured = BytesMut::with_capacity(data.len() + 256);
        outgoing::tag_request(head, tag, names, &mut coloured);
        coloured.extend_from_slice(rest);
        coloured.freeze()
    }

    async fn send(self, worker: Rc<Worker>, pod: Rc<PodHere>, chosen: Chosen, data: Bytes) -> bool {
        let endpoint = chosen.endpoint();
        let seat = worker.pool.enter(self.key);
        let repeatable = self.method.is_idempotent();
        let idle = seat.take(endpoint, Need { repeatable, rested: Some(Nanos::ZERO) }, Nanos::now());
        let mut answered = None;
        if let Some(stream) = idle {
            answered = self.ask(&worker, stream, &data).await;
            if answered.is_none() && !repeatable {
                return false;
            }
        }
        if answered.is_none() {
            // There is none, or its server had closed it.
            let terms = Terms { options: self.key.options, within: Some(CONNECT_WITHIN) };
            let Ok(stream) = upstream::connect(&worker, &pod, endpoint, terms).await else { return false };
            answered = self.ask(&worker, stream, &data).await;
        }
        let Some(answered) = answered else { return false };
        if let Some((mut stream, idle_seconds)) = answered {
            stream.proven = true;
            seat.give(endpoint, stream, idle_seconds, Nanos::now());
        }
        true
    }
}

impl Sender {
    /// Sends it, and reads the answer; `None`: there was none. Gives the connection back if it can be used again, and for how
    /// long its server keeps it.
    async fn ask(
        self,
        worker: &Worker,
        mut stream: Opened,
        data: &[u8],
    ) -> Option<Option<(Opened, Option<u32>)>> {
        stream.write_all(data).await.ok()?;
        let mut incoming = BytesMut::new();
        let response = self.head(worker, &mut stream, &mut incoming).await?;
        let mut body = response.body;
        // After a longer one its connection cannot be used again.
        let mut left = ANSWER;
        loop {
            let taken = body.take(&incoming).ok()?;
            incoming.advance(taken);
            if body.is_done() {
                break;
            }
            left = left.saturating_sub(taken);
            if response.tunnel || left == 0 || read(worker, &mut stream, &mut incoming).await.is_none() {
                return Some(None);
            }
        }
        let reusable = response.reusable && incoming.is_empty();
        worker.buffers.give(incoming);
        Some(reusable.then_some((stream, response.idle_seconds)))
    }

    /// The head of the answer, behind all interim ones.
    async fn head(self, worker: &Worker, stream: &mut Opened, incoming: &mut BytesMut) -> Option<Response> {
        let caller = Caller {
            method: self.method,
            http10: self.http10,
            upgrade: false,
            keep_alive: true,
            ends_with_endpoint: false,
        };
        let mut end = HeadEnd::default();
        loop {
            match end.find(incoming, true) {
                Ok(Some(length)) if length <= MAX_HEAD_BYTES => {
                    let mut written = worker.buffers.take();
                    let response = response::read(&incoming[..length], end.line_ends(), caller, &mut written);
                    worker.buffers.give(written);
                    incoming.advance(length);
                    end = HeadEnd::default();
                    let (response, _) = response.ok()?;
                    if !response.is_interim() {
                        return Some(response);
                    }
                }
                Ok(None) if incoming.len() <= MAX_HEAD_BYTES => {
                    read(worker, stream, incoming).await?;
                }
                _ => return None,
            }
        }
    }
}

/// Reads more; `None`: there is no more.
async fn read(worker: &Worker, stream: &mut Opened, incoming: &mut BytesMut) -> Option<()> {
    let read = poll_fn(|cx| poll_read(cx, stream, incoming, &worker.buffers)).await;
    matches!(read, Ok(1..)).then_some(())
}
