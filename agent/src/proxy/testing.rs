//! The network of a pod in unit tests. It stands in for what capture makes of a network namespace: a test says what it needs
//! otherwise, and has the rest from here.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::BorrowedFd,
};

use tokio::io::unix::AsyncFd;

use super::{Network, Origin};

/// A [`Network`] that is as the test's own, in which nobody was redirected and nothing is known of sockets.
pub(crate) trait Double: Send + Sync + 'static {
    fn origin(&self) -> Option<Origin> {
        None
    }

    fn redirected(&self) -> u64 {
        0
    }

    fn allow(&self, _connections: u32) -> io::Result<()> {
        Ok(())
    }

    /// Of each socket.
    fn memory(&self) -> usize {
        0
    }

    fn socket(&self, to: SocketAddr) -> io::Result<socket2::Socket> {
        let kind = socket2::Type::STREAM.nonblocking();
        socket2::Socket::new(socket2::Domain::for_address(to), kind, None)
    }
}

/// Nothing is otherwise.
pub(crate) struct Here;

impl Double for Here {}

impl<D: Double> Network for D {
    fn origin(&self, _: BorrowedFd<'_>) -> io::Result<Option<Origin>> {
        Ok(Double::origin(self))
    }

    fn has_closed(&self, _: u64) -> bool {
        false
    }

    fn unacknowledged(&self, _: BorrowedFd<'_>) -> io::Result<usize> {
        Ok(0)
    }

    fn redirected(&self) -> u64 {
        Double::redirected(self)
    }

    fn allow(&self, connections: u32) -> io::Result<()> {
        Double::allow(self, connections)
    }

    fn memory_of(&self, _: BorrowedFd<'_>) -> usize {
        self.memory()
    }

    fn let_buffers_grow(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn socket(&self, to: SocketAddr, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        Double::socket(self, to)
    }

    fn connecting(&self, _: &socket2::Socket) -> io::Result<()> {
        Ok(())
    }

    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool {
        crate::capture::is_at_urgent_byte(socket)
    }

    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
        crate::capture::watched(listener)
    }
}
