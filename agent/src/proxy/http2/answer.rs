//! Writing answers that Sluice makes up, or ends, as HTTP/2.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use http::HeaderMap;

use super::engine::{
    fields::Fields,
    handle::{Broken, Handle},
    writer::Pseudo,
};
use crate::{
    observe::reason::Reason,
    proxy::answer::{MadeUp, put_grpc_status},
};

/// Answers in the place of an endpoint. The error is that the caller has gone before it was told anything.
pub(super) async fn send(to: &Handle, answer: &MadeUp) -> Result<(), Broken> {
    poll_fn(|cx| to.poll_room_for_head(cx)).await?;
    send_head(to, answer);
    let mut body = answer.body.clone();
    while !body.is_empty() {
        // A caller that leaves now has been told.
        let Ok(room) = poll_fn(|cx| poll_room(cx, to, body.len())).await else { return Ok(()) };
        let part = body.split_to(room.min(body.len()));
        to.send_data(part, body.is_empty() && answer.trailers.is_none());
    }
    if let Some(trailers) = &answer.trailers
        && !answer.body.is_empty()
    {
        to.send_trailers(&of_map(trailers));
    }
    Ok(())
}

fn poll_room(cx: &mut Context<'_>, to: &Handle, wanted: usize) -> Poll<Result<usize, Broken>> {
    if let Poll::Ready(broken) = to.poll_broken(cx) {
        return Poll::Ready(Err(broken));
    }
    Poll::Ready(ready!(to.poll_room(cx, wanted)))
}

/// Answers at once, or not at all if there is no room for all of it.
pub(super) fn send_at_once(to: &Handle, answer: &MadeUp) -> bool {
    if !to.has_room_for(answer.body.len()) {
        return false;
    }
    send_head(to, answer);
    if !answer.body.is_empty() {
        to.send_data(answer.body.clone(), true);
    }
    true
}

fn send_head(to: &Handle, answer: &MadeUp) {
    let mut fields = of_map(&answer.headers);
    if let Some(length) = answer.length.filter(|_| answer.status != 204 && answer.status != 304) {
        fields.remove(|name| name == b"content-length");
        fields.add(b"content-length", length.to_string().as_bytes());
    }
    to.send_head(&Pseudo::Status(answer.status), &fields, answer.body.is_empty());
}

/// Ends a gRPC answer that has begun: its client sees what it would have seen of a lost connection.
pub(super) fn break_off_grpc(to: &Handle, reason: Reason) -> bool {
    let mut trailers = HeaderMap::with_capacity(3);
    put_grpc_status(&mut trailers, reason, reason.message());
    to.send_trailers(&of_map(&trailers))
}

fn of_map(headers: &HeaderMap) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in headers {
        fields.add(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}
