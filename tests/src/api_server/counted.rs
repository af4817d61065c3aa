//! A connection of which is counted what it costs: that it is open, and the bytes that are sent on it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What all connections have cost.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// How many were accepted.
    pub(super) accepted: AtomicUsize,
    pub(super) open: AtomicUsize,
    /// As they are on the wire.
    pub(super) sent: AtomicU64,
}

pub(super) struct Counted {
    stream: TcpStream,
    costs: Arc<Costs>,
}

impl Counted {
    pub(super) fn new(stream: TcpStream, costs: Arc<Costs>) -> Self {
        costs.accepted.fetch_add(1, Relaxed);
        costs.open.fetch_add(1, Relaxed);
        Self { stream, costs }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.costs.open.fetch_sub(1, Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.costs.sent.fetch_add(written as u64, Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
