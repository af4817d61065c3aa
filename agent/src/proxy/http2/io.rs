//! A caller's connection whose first bytes were read by detection, and which ends only when the caller has had the time
//! to take what was written for it.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use crate::proxy::worker::{Busy, Worker};

/// How long a connection that is closed on this side waits for the caller to close it too. If it were gone when the
/// caller's next WINDOW_UPDATE comes, the kernel would answer with a reset, and what is still in its buffers be lost
/// (RFC 9112, section 9.6, tells the same of HTTP/1).
const LINGER: Duration = Duration::from_secs(5);

/// Reads what was read before, then the connection.
pub(super) struct Resumed {
    early: BytesMut,
    stream: TcpStream,
    worker: Rc<Worker>,
    /// A stream has ended for its exchange when the last of its answer is handed to `h2`, which may hold it for as long
    /// as the caller does not read.
    unsent: Option<Busy>,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Resumed {
    pub(super) fn new(early: BytesMut, stream: TcpStream, worker: Rc<Worker>) -> Self {
        Self { early, stream, worker, unsent: None, lingering: None }
    }

    fn written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.unsent = None;
        } else {
            self.keep_busy();
        }
        written
    }

    fn keep_busy(&mut self) {
        if self.unsent.is_none() {
            self.unsent = Some(self.worker.busy());
        }
    }
}

impl AsyncRead for Resumed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let length = self.early.len().min(into.remaining());
        into.put_slice(&self.early[..length]);
        self.early.advance(length);
        if self.early.is_empty() {
            // Its memory is not needed for the life of the connection.
            self.early = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.keep_busy();
        }
        let limit = this.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        // Whatever comes now comes too late.
        let mut late = [0; 1024];
        while limit.as_mut().poll(cx).is_pending() {
            let mut late = ReadBuf::new(&mut late);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut late))?;
            if late.filled().is_empty() {
                break;
            }
        }
        this.unsent = None;
        Poll::Ready(Ok(()))
    }
}
