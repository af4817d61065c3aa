//! One stream of a wire.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    super::{super::soon, frames},
    handle::Handle,
    message::{Answer, Event, of},
};

/// One direction of a stream.
pub(in crate::proxy::http2::tests) struct Sender {
    pub(in crate::proxy::http2::tests) id: u32,
    pub(in crate::proxy::http2::tests) handle: Handle,
}

pub(in crate::proxy::http2::tests) struct Stream {
    pub(super) sender: Sender,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) seen: VecDeque<Event>,
}

impl Stream {
    pub(in crate::proxy::http2::tests) async fn next(&mut self) -> Event {
        if let Some(event) = self.seen.pop_front() {
            return event;
        }
        soon(self.events.recv()).await.unwrap_or(Event::Closed)
    }

    /// The same for an endpoint, which waits for as long as it takes.
    pub(in crate::proxy::http2::tests) async fn wait(&mut self) -> Event {
        match self.seen.pop_front() {
            Some(event) => event,
            None => self.events.recv().await.unwrap_or(Event::Closed),
        }
    }

    /// What has come already.
    pub(in crate::proxy::http2::tests) fn try_next(&mut self) -> Option<Event> {
        self.seen.pop_front().or_else(|| self.events.try_recv().ok())
    }

    /// The message's next part: `Err` with how it was broken.
    pub(in crate::proxy::http2::tests) async fn part(&mut self) -> Result<Event, Option<u32>> {
        loop {
            match self.next().await {
                Event::Reset { code, .. } => return Err(Some(code)),
                Event::Closed => return Err(None),
                Event::Window { .. } => {}
                other => return Ok(other),
            }
        }
    }

    /// The code with which the stream is reset, if it is.
    pub(in crate::proxy::http2::tests) async fn answer_to_breach(&mut self) -> Option<u32> {
        loop {
            match self.part().await {
                Ok(_) => {}
                Err(code) => return code,
            }
        }
    }

    /// The response's head, without interim ones.
    pub(in crate::proxy::http2::tests) async fn head(&mut self) -> Answer {
        let mut answer = Answer::default();
        loop {
            match self.part().await {
                Ok(Event::Headers { fields, end, .. }) => {
                    answer.status = of(&fields, ":status").parse().expect("a status");
                    if answer.status < 200 {
                        assert!(!end);
                        answer.interims += 1;
                        continue;
                    }
                    answer.fields = fields;
                    if end {
                        self.seen.push_front(Event::Data { stream: self.id, end: true, bytes: Bytes::new() });
                    }
                    return answer;
                }
                Ok(other) => panic!("no head: {other:?}"),
                Err(code) => {
                    answer.broken = Some(code);
                    return answer;
                }
            }
        }
    }

    /// The whole response.
    pub(in crate::proxy::http2::tests) async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if answer.broken.is_some() {
            return answer;
        }
        loop {
            match self.part().await {
                Ok(Event::Data { end, bytes, .. }) => {
                    answer.body.extend_from_slice(&bytes);
                    if end {
                        return answer;
                    }
                }
                Ok(Event::Headers { fields, end, .. }) => {
                    assert!(end, "trailers end the stream");
                    answer.trailers = Some(fields);
                    return answer;
                }
                Ok(other) => panic!("what is it? {other:?}"),
                Err(code) => {
                    answer.broken = Some(code);
                    return answer;
                }
            }
        }
    }
}

impl Sender {
    /// Sends a part of the body, as the windows let it. False: the stream or the connection has ended.
    pub(in crate::proxy::http2::tests) async fn data(&self, mut bytes: &[u8], end: bool) -> bool {
        if bytes.is_empty() {
            return self.handle.send(frames::data(self.id, end, b"")).await;
        }
        while !bytes.is_empty() {
            let all = bytes.len();
            let frame = |length| frames::data(self.id, end && length == all, &bytes[..length]);
            let Some(sent) = self.handle.send_data(self.id, all, 1, frame).await else { return false };
            bytes = &bytes[sent..];
        }
        true
    }

    /// Sends a part of the body with so much padding, in one frame.
    pub(in crate::proxy::http2::tests) async fn padded(&self, bytes: &[u8], padding: u8, end: bool) -> bool {
        let payload = [&[padding][..], bytes, &vec![0; usize::from(padding)]].concat();
        let frame = |_| frames::frame(frames::DATA, frames::PADDED | u8::from(end), self.id, &payload);
        self.handle.send_data(self.id, payload.len(), payload.len(), frame).await.is_some()
    }

    /// Sends the same part so many times, each in a frame of its own, many of them in one write.
    pub(in crate::proxy::http2::tests) async fn many(&self, part: &[u8], mut count: usize) -> bool {
        let frame = frames::data(self.id, false, part);
        while count > 0 {
            let wanted = count.min(1000).min(16_384 / part.len()) * part.len();
            let frames = |length| frame.repeat(length / part.len());
            let Some(sent) = self.handle.send_data(self.id, wanted, part.len(), frames).await else {
                return false;
            };
            count -= sent / part.len();
        }
        true
    }

    pub(in crate::proxy::http2::tests) async fn headers(&self, end: bool, lines: frames::Lines<'_>) -> bool {
        self.handle.send(frames::headers(self.id, end, lines)).await
    }

    pub(in crate::proxy::http2::tests) async fn reset(&self, code: u32) -> bool {
        self.handle.0.credit.lock().expect("not poisoned").streams.remove(&self.id);
        self.handle.0.changed.notify_waiters();
        self.handle.send(frames::reset(self.id, code)).await
    }
}

/// What sends can be sent by whoever reads, too.
impl std::ops::Deref for Stream {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.handle.0.routes.lock().expect("not poisoned").streams.remove(&self.id);
    }
}
