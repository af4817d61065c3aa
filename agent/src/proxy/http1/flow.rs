//! The two directions of an exchange: sending a request while its answer may already be coming back.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut as _, BytesMut};
use tokio::{
    io::AsyncWrite,
    net::tcp::{ReadHalf, WriteHalf},
};
use tokio_util::io::poll_read_buf;

use super::{
    body::{BadChunk, Body},
    head::edit_lines,
    mirror::Sender,
};
use crate::{
    govern::fallback::stale::Collector,
    proxy::{
        buffers::{BUFFER_BYTES, Buffers},
        mirror::Copy,
        pressure::Pressure,
        share::Taken,
        worker::PodHere,
    },
};

/// A body part up to this size is copied behind the head, to go out in one piece.
const COPIED: usize = 4 * 1024;

/// Reads and writes in a row before the other direction has its turn. A task may do 128 such things before the runtime
/// holds it back; a direction that took them all would leave none for the other one, each time anew. Each carries up to
/// 32 KiB, and what a wake-up carries is what other connections wait for.
const ROUNDS: usize = 8;

/// Why a direction has stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error("reading: {0}")]
    Read(io::Error),
    /// The end came before the end of the body.
    #[error("the connection ended within the body")]
    End,
    #[error("writing: {0}")]
    Write(io::Error),
    #[error(transparent)]
    Chunk(#[from] BadChunk),
}

/// Bytes of a request's body that are kept until its answer is passed on, should it have to be retried
/// (ARCHITECTURE.md#timeouts-retries-and-fallbacks).
const REPLAYED: usize = 64 * 1024;

/// Who sees a body pass, without its transfer coding.
struct Shown {
    collector: Collector,
    body: Body,
}

/// A message on its way: its head, ready to be written, and its body, as it comes.
pub(super) struct Flow {
    /// The head, and the part of the body that came with it.
    head: BytesMut,
    /// How much of `head` has been written.
    written: usize,
    /// `head` is the whole message, and is kept after it was written, so that it can be sent again.
    kept: bool,
    /// How much of `head` is the head.
    head_length: usize,
    /// What is kept of the body beyond what came with the head, to be sent again.
    record: Option<Taken>,
    /// Who sees the body pass.
    shown: Option<Box<Shown>>,
    /// What copies the message as it passes.
    copied: Option<Box<Copy<Sender>>>,
    body: Body,
    /// The body as it was before anything was taken of it.
    whole: Body,
    /// How many bytes at the front of the source's buffer belong to the body and have not been written.
    cleared: usize,
    /// Body bytes that were taken in.
    pub(super) body_bytes: u64,
    /// The source's own end ends the body.
    ended: bool,
    pub(super) pressure: Pressure,
}

impl Flow {
    /// `source`: what has come behind the head. What belongs to the body is taken from it.
    pub(super) fn new(
        head: BytesMut,
        mut body: Body,
        source: &mut BytesMut,
        pod: &Rc<PodHere>,
    ) -> Result<Self, BadChunk> {
        let (head_length, whole) = (head.len(), body);
        let taken = body.take(source)?;
        let mut flow = Self {
            head,
            head_length,
            record: None,
            shown: None,
            copied: None,
            whole,
            written: 0,
            kept: false,
            body,
            cleared: taken,
            body_bytes: taken as u64,
            ended: false,
            pressure: Pressure::new(pod),
        };
        if taken <= COPIED || flow.body.is_done() && taken <= 4 * COPIED {
            flow.head.extend_from_slice(&source[..taken]);
            source.advance(taken);
            flow.cleared = 0;
        }
        Ok(flow)
    }

    /// From now on as much as there is room for is kept, so that it can be sent again: beyond what is kept anyway, the body
    /// as it comes. What is kept is charged to `room`. Only before anything was sent; `source` as in [`Self::new`].
    pub(super) fn record(&mut self, mut room: Taken, source: &mut BytesMut) {
        let came = self.head.len() - self.head_length + self.cleared;
        if self.kept || came > REPLAYED || !room.grow(self.cleared) {
            return;
        }
        self.head.extend_from_slice(&source[..self.cleared]);
        source.advance(self.cleared);
        self.cleared = 0;
        self.kept = true;
        self.record = Some(room);
    }

    /// From now on a trailer is an error, as is one that has come already; `source` as in [`Self::new`].
    pub(super) fn forbid_trailers(&mut self, source: &[u8]) -> Result<(), BadChunk> {
        let mut came = self.whole;
        came.forbid_trailers();
        came.take(&self.head[self.head_length..])?;
        came.take(&source[..self.cleared])?;
        self.body.forbid_trailers();
        self.whole.forbid_trailers();
        Ok(())
    }

    /// Another head in the place of the one that it has, of which nothing has been written.
    pub(super) fn replace_head(&mut self, head: &[u8]) {
        let mut whole = BytesMut::with_capacity(head.len() + self.head.len() - self.head_length);
        whole.extend_from_slice(head);
        whole.extend_from_slice(&self.head[self.head_length..]);
        self.head = whole;
        self.head_length = head.len();
    }

    /// Shows the body to `collector` as it passes; what has come with the head is in `source`, if it is not in the head.
    pub(super) fn show(&mut self, collector: Collector, source: &[u8]) {
        let mut shown = Box::new(Shown { collector, body: self.whole });
        if shown.see(&self.head[self.head_length..]) && shown.see(&source[..self.cleared]) {
            self.shown = Some(shown);
            self.end_show();
        }
    }

    /// Shows what follows the head to `copy` as it passes; `source` as in [`Self::show`].
    pub(super) fn copy(&mut self, mut copy: Box<Copy<Sender>>, source: &[u8]) {
        copy.see(&self.head[self.head_length..]);
        copy.see(&source[..self.cleared]);
        self.copied = Some(copy);
        self.end_copy();
    }

    fn end_copy(&mut self) {
        if self.body.is_done()
            && let Some(copy) = self.copied.take()
        {
            copy.finish();
        }
    }

    fn end_show(&mut self) {
        if (self.body.is_done() || self.ended)
            && let Some(shown) = self.shown.take()
        {
            shown.collector.finish();
        }
    }

    /// The same, kept to be sent again, if all of it is there.
    pub(super) fn repeatable(
        head: BytesMut,
        body: Body,
        source: &mut BytesMut,
        pod: &Rc<PodHere>,
    ) -> Result<Self, BadChunk> {
        let mut flow = Self::new(head, body, source, pod)?;
        flow.kept = flow.is_taken();
        Ok(flow)
    }

    /// All of it was there when it was begun.
    pub(super) fn was_whole(&self) -> bool {
        self.kept && self.record.is_none()
    }

    /// How much of it has been written, as long as it can be sent again.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// It can be sent again from the beginning.
    pub(super) fn is_repeatable(&self) -> bool {
        self.kept
    }

    /// From the beginning.
    pub(super) fn repeat(&mut self) {
        self.written = 0;
    }

    /// Nothing of the message is left in its source: what comes there next is another one.
    pub(super) fn is_taken(&self) -> bool {
        self.body.is_done() && self.cleared == 0
    }

    /// What is left of the head, and of the part of the body that came with it.
    pub(super) fn rest_of_head(&self) -> &[u8] {
        &self.head[self.written..]
    }

    /// The head alone, before anything was sent.
    pub(super) fn head_alone(&self) -> &[u8] {
        &self.head[..self.head_length]
    }

    /// The head, while it is kept, and the part of the body that is kept with it.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Shows the lines of the head, if it is still there, to be changed in place before it is sent.
    pub(super) fn edit_head(&mut self, edit: impl FnMut(&[u8], &mut [u8])) {
        let length = self.head_length.min(self.head.len());
        edit_lines(&mut self.head[..length], edit);
    }

    /// It goes no further.
    pub(super) fn take_head(&mut self) -> BytesMut {
        std::mem::take(&mut self.head)
    }

    pub(super) fn is_done(&self) -> bool {
        self.written == self.head.len() && self.cleared == 0 && (self.body.is_done() || self.ended)
    }

    /// Passes on what there is. `source` holds what was read and not yet passed on.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        source: &mut BytesMut,
        buffers: &Buffers,
    ) -> Poll<Result<(), Stopped>> {
        for _ in 0..ROUNDS {
            let Poll::Ready(written) = self.poll_write(cx, to, source) else {
                let own = self.head.capacity() + source.capacity();
                if self.pressure.stalled(cx, self.body_bytes, own, (*from).as_ref(), (*to).as_ref()) {
                    buffers.compact(source);
                }
                return Poll::Pending;
            };
            written.map_err(Stopped::Write)?;
            // However long the rest takes, it takes no more memory than it needs.
            if self.kept {
                buffers.compact(&mut self.head);
            } else if self.written > 0 {
                buffers.give(std::mem::take(&mut self.head));
                self.written = 0;
            }
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if source.is_empty() {
                let read = poll_read_most(cx, from, source, buffers, self.pressure.most());
                match ready!(read).map_err(Stopped::Read)? {
                    0 if self.body == Body::UntilClose => {
                        self.ended = true;
                        self.end_show();
                        return Poll::Ready(Ok(()));
                    }
                    0 => return Poll::Ready(Err(Stopped::End)),
                    _ => {}
                }
            }
            let taken = self.body.take(source)?;
            self.body_bytes += taken as u64;
            self.pressure.carried(self.body_bytes, (*from).as_ref(), (*to).as_ref());
            if let Some(shown) = &mut self.shown {
                if !shown.see(&source[..taken]) {
                    self.shown = None;
                }
                self.end_show();
            }
            if let Some(copy) = &mut self.copied {
                copy.see(&source[..taken]);
                self.end_copy();
            }
            if self.keep(&source[..taken]) {
                source.advance(taken);
            } else {
                self.cleared = taken;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Keeps a part of the body behind the head, from where it is sent, if the message is recorded and there is room.
    fn keep(&mut self, part: &[u8]) -> bool {
        let Some(room) = &mut self.record else { return false };
        if self.head.len() - self.head_length + part.len() <= REPLAYED && room.grow(part.len()) {
            self.head.extend_from_slice(part);
            return true;
        }
        self.record = None;
        self.kept = false;
        false
    }

    /// Writes the head and what is cleared of the body, together where they are both there.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut WriteHalf<'_>,
        source: &mut BytesMut,
    ) -> Poll<io::Result<()>> {
        loop {
            let head = &self.head[self.written..];
            let body = &source[..self.cleared];
            let written = match (head.is_empty(), body.is_empty()) {
                (true, true) => return Poll::Ready(Ok(())),
                (false, true) => ready!(Pin::new(&mut *to).poll_write(cx, head))?,
                (true, false) => ready!(Pin::new(&mut *to).poll_write(cx, body))?,
                (false, false) => {
                    let parts = [io::IoSlice::new(head), io::IoSlice::new(body)];
                    ready!(Pin::new(&mut *to).poll_write_vectored(cx, &parts))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.written += of_head;
            source.advance(written - of_head);
            self.cleared -= written - of_head;
        }
    }
}

impl Shown {
    /// False: it need see no more.
    fn see(&mut self, bytes: &[u8]) -> bool {
        let Self { collector, body } = self;
        let mut wanted = true;
        let decoded = body.decode(bytes, |data| wanted = wanted && collector.see(data));
        decoded.is_ok() && wanted
    }
}

/// Reads into `into`, which gets memory only when there is something to read.
pub(super) fn poll_read(
    cx: &mut Context<'_>,
    from: &mut ReadHalf<'_>,
    into: &mut BytesMut,
    buffers: &Buffers,
) -> Poll<io::Result<usize>> {
    poll_read_most(cx, from, into, buffers, usize::MAX)
}

/// The same, but no more than so much.
pub(super) fn poll_read_most(
    cx: &mut Context<'_>,
    from: &mut ReadHalf<'_>,
    into: &mut BytesMut,
    buffers: &Buffers,
    most: usize,
) -> Poll<io::Result<usize>> {
    ready!(AsRef::<tokio::net::TcpStream>::as_ref(&*from).poll_read_ready(cx))?;
    if most < BUFFER_BYTES && into.capacity() == 0 {
        into.reserve(most);
    }
    buffers.fill(into);
    if into.capacity() - into.len() < COPIED {
        into.reserve(COPIED);
    }
    let read = poll_read_buf(Pin::new(from), cx, &mut (&mut *into).limit(most));
    if read.is_pending() {
        buffers.give_if_empty(into);
    }
    read
}
