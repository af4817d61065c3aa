//! A copy of a request on its way to a mirror, and its answer, which nobody reads.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::engine::{
    fields::Fields,
    handle::{Broken, Handle},
    writer::Pseudo,
};
use crate::{
    govern::{
        edit,
        lane::{Caused, RequestTag, TagNames, TagScan},
    },
    proxy::{
        choose::Chosen,
        mirror::{ANSWER, CONNECT_WITHIN, Sends},
        worker::{PodHere, Worker},
    },
};

/// How many connections are tried that turn out to take no new streams.
const CONNECTIONS: usize = 3;
/// Bytes of an answer that are taken at a time.
const PART: usize = 16 * 1024;

/// How a copy over HTTP/2 is sent.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) head: Rc<Fields>,
    /// It is a HEAD.
    pub(super) bodiless: bool,
}

impl Sends for Sender {
    fn apart(&self, _: &Bytes) -> usize {
        self.head.held()
    }

    fn colour(&mut self, tag: &RequestTag, names: &TagNames, _: usize, data: Bytes) -> Bytes {
        let mut head = (*self.head).clone();
        let mut scan = TagScan::new(names);
        for field in head.iter() {
            scan.see(field.name, field.value);
        }
        let tagging = scan.decide(Caused::default(), None, || Some(*tag));
        edit::tag(&mut head, names, &tagging);
        self.head = Rc::new(head);
        data
    }

    async fn send(self, worker: Rc<Worker>, pod: Rc<PodHere>, chosen: Chosen, data: Bytes) -> bool {
        for _ in 0..CONNECTIONS {
            let (sends, within) = (!data.is_empty(), || Some(CONNECT_WITHIN));
            let placed = worker.h2.place(&worker, &pod, chosen.endpoint(), sends, within).await;
            let Ok(place) = placed else { return false };
            // Dropped before the place is free.
            let Some(stream) = worker.h2.open(&place) else { continue };
            if poll_fn(|cx| stream.poll_room_for_head(cx)).await.is_err() {
                continue;
            }
            if self.bodiless {
                stream.expect_no_body();
            }
            if !stream.send_head(&Pseudo::Within, &self.head, data.is_empty()) {
                continue;
            }
            return ask(&stream, data).await;
        }
        false
    }
}

/// Sends the body, and takes the answer to its end.
async fn ask(stream: &Handle, mut data: Bytes) -> bool {
    let (mut answered, mut left) = (false, ANSWER);
    let mut poll = |cx: &mut Context<'_>| -> Poll<Result<(), Broken>> {
        while !data.is_empty() {
            match stream.poll_room(cx, data.len()) {
                Poll::Ready(Ok(room)) => {
                    let part = data.split_to(room.min(data.len()));
                    if !stream.send_data(part, data.is_empty()) {
                        return Poll::Ready(Err(stream.broken().unwrap_or(Broken::Dropped)));
                    }
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => break,
            }
        }
        while !answered {
            match stream.poll_response(cx) {
                Poll::Ready(Ok(response)) => answered = response.status >= 200,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => return Poll::Pending,
            }
        }
        while left > 0 && stream.has_data() {
            left = left.saturating_sub(stream.take_data(PART).len());
        }
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        if stream.is_whole() {
            drop(stream.take_trailers());
            return Poll::Ready(Ok(()));
        }
        stream.poll_broken(cx).map(Err)
    };
    poll_fn(&mut poll).await.is_ok() || answered
}
