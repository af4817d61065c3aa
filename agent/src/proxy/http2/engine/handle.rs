//! A stream, as whoever carries its messages has it.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{
    core::{Core, Ended},
    fields::Fields,
    message::Response,
    state::Closed,
    streams::{Key, Stream},
    writer::Pseudo,
};
use crate::{observe::fault::Fault, proxy::http2::frame::Code};

/// A connection: its driver has it, and each of its streams.
pub(crate) type Shared = Rc<RefCell<Core>>;

/// What broke a stream off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// Its peer has reset it.
    #[error("reset by its peer: {0}")]
    Reset(Code),
    #[error("what its peer sent is not valid HTTP/2: it has {0}")]
    Violation(Fault),
    /// Its peer says so, and that it will not be.
    #[error("not processed by its peer")]
    Unprocessed,
    #[error("its connection was closed")]
    Lost,
    #[error("reset from this side")]
    Dropped,
}

impl Broken {
    fn of(stream: &Stream, ended: Option<Ended>) -> Option<Self> {
        match stream.state.closed()? {
            Closed::Ended => None,
            Closed::ByPeer(code) => Some(Self::Reset(code)),
            Closed::Unprocessed => Some(Self::Unprocessed),
            Closed::ByUs(_) => Some(stream.broken.map_or(Self::Dropped, Self::Violation)),
            Closed::Lost => {
                let fault = stream.broken.or_else(|| ended?.fault());
                Some(fault.map_or(Self::Lost, Self::Violation))
            }
        }
    }

    /// What its peer did, if it broke the protocol.
    pub(crate) fn fault(self) -> Option<Fault> {
        match self {
            Self::Violation(fault) => Some(fault),
            _ => None,
        }
    }

    /// With what code it was reset, if it was.
    pub(crate) fn code(self) -> Option<Code> {
        match self {
            Self::Reset(code) => Some(code),
            _ => None,
        }
    }
}

/// Lets the stream go when it is dropped: one that has not come to its end is given up.
pub(crate) struct Handle {
    core: Shared,
    key: Key,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.borrow_mut().let_go(self.key);
    }
}

impl Handle {
    /// Of a stream that was [accepted](super::core::Accepted), or that was just [opened](Core::open).
    pub(crate) fn new(core: &Shared, key: Key) -> Self {
        Self { core: core.clone(), key }
    }

    pub(crate) fn core(&self) -> &Shared {
        &self.core
    }

    fn read<R>(&self, read: impl FnOnce(&Stream, &Core) -> R) -> Option<R> {
        let core = self.core.borrow();
        core.stream(self.key).map(|stream| read(stream, &core))
    }

    /// This task is woken by whatever happens to the stream.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        if let Some(stream) = self.core.borrow_mut().stream_mut(self.key)
            && !stream.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            stream.waker = Some(cx.waker().clone());
        }
    }

    /// What has closed the stream before its end. (That an end which came is followed by a reset does not take it away:
    /// see [`Self::is_whole`].)
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.read(|stream, core| Broken::of(stream, core.ended())).flatten()
    }

    /// As [`Self::broken`], and this task is woken when it becomes so.
    pub(crate) fn poll_broken(&self, cx: &Context<'_>) -> Poll<Broken> {
        self.watch(cx);
        self.broken().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits for something as long as the stream is not broken off.
    pub(crate) async fn unless_broken<F: Future>(&self, waited_for: F) -> Result<F::Output, Broken> {
        let mut waited_for = pin!(waited_for);
        poll_fn(|cx| match waited_for.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_broken(cx).map(Err),
        })
        .await
    }

    /// All of a message with a body of so many bytes can be sent at once.
    pub(crate) fn has_room_for(&self, bytes: usize) -> bool {
        let core = self.core.borrow();
        core.has_room() && core.room(self.key, bytes) >= bytes
    }

    /// Everything that the peer has to say has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.read(|stream, _| stream.whole).unwrap_or(true)
    }

    /// And was taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.read(|stream, _| stream.is_taken()).unwrap_or(true)
    }

    /// Data is there.
    pub(crate) fn has_data(&self) -> bool {
        self.data_len() > 0
    }

    /// What the peer said as it ended the connection for something that was wrong, as logs show it.
    pub(crate) fn go_away_error(&self) -> Option<String> {
        let core = self.core.borrow();
        core.go_away_error.as_ref().map(|(code, text)| format!("GOAWAY {code}: {text:?}"))
    }

    /// How much has come and was not taken.
    pub(crate) fn data_len(&self) -> usize {
        self.read(|stream, _| stream.queue.len()).unwrap_or(0)
    }

    /// The next response, interim or not.
    pub(crate) fn poll_response(&self, cx: &Context<'_>) -> Poll<Result<Response, Broken>> {
        self.watch(cx);
        let mut core = self.core.borrow_mut();
        let ended = core.ended();
        let Some(stream) = core.stream_mut(self.key) else { return Poll::Ready(Err(Broken::Lost)) };
        if let Some(response) = stream.interim.pop_front().or_else(|| stream.response.take()) {
            core.took_fields(self.key, &response.fields);
            return Poll::Ready(Ok(response));
        }
        Broken::of(stream, ended).map_or(Poll::Pending, |broken| Poll::Ready(Err(broken)))
    }

    /// Takes of the data what is there.
    pub(crate) fn take_data(&self, most: usize) -> Bytes {
        self.core.borrow_mut().take_data(self.key, most)
    }

    /// Takes the trailers, once all data was taken.
    pub(crate) fn take_trailers(&self) -> Option<Fields> {
        let mut core = self.core.borrow_mut();
        let stream = core.stream_mut(self.key).filter(|stream| stream.queue.is_empty())?;
        let trailers = stream.trailers.take()?;
        core.took_fields(self.key, &trailers);
        Some(trailers)
    }

    /// The response will be one to HEAD.
    pub(crate) fn expect_no_body(&self) {
        if let Some(stream) = self.core.borrow_mut().stream_mut(self.key) {
            stream.head_only = true;
        }
    }

    /// Ready when a head can be sent, or never will.
    pub(crate) fn poll_room_for_head(&self, cx: &Context<'_>) -> Poll<Result<(), Broken>> {
        self.poll_for(cx, None, |core| core.has_room().then_some(()))
    }

    /// Ready with how much data can be sent of `wanted`, if that is more than nothing.
    pub(crate) fn poll_room(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        self.poll_for(cx, Some(wanted), |core| Some(core.room(self.key, wanted)).filter(|room| *room > 0))
    }

    fn poll_for<R>(
        &self,
        cx: &Context<'_>,
        data: Option<usize>,
        room: impl FnOnce(&Core) -> Option<R>,
    ) -> Poll<Result<R, Broken>> {
        let mut core = self.core.borrow_mut();
        let Some(stream) = core.stream(self.key) else { return Poll::Ready(Err(Broken::Lost)) };
        if stream.state.sending().is_none() {
            let broken = Broken::of(stream, core.ended()).unwrap_or(Broken::Dropped);
            return Poll::Ready(Err(broken));
        }
        if let Some(room) = room(&core) {
            return Poll::Ready(Ok(room));
        }
        core.wait_for_room(self.key, data);
        drop(core);
        self.watch(cx);
        Poll::Pending
    }

    pub(crate) fn send_head(&self, pseudo: &Pseudo, fields: &Fields, end: bool) -> bool {
        self.core.borrow_mut().send_head(self.key, pseudo, fields, end)
    }

    pub(crate) fn send_data(&self, data: Bytes, end: bool) -> bool {
        self.core.borrow_mut().send_data(self.key, data, end)
    }

    pub(crate) fn send_trailers(&self, fields: &Fields) -> bool {
        self.core.borrow_mut().send_trailers(self.key, fields)
    }

    pub(crate) fn reset(&self, code: Code) {
        self.core.borrow_mut().reset(self.key, code);
    }

    /// As [`Self::reset`], even if the stream has ended in order.
    pub(crate) fn condemn(&self, code: Code) {
        self.core.borrow_mut().condemn(self.key, code);
    }

    /// The memory of fields that are no longer needed.
    pub(crate) fn give_back(&self, fields: Fields) {
        self.core.borrow_mut().give_back(fields);
    }
}
