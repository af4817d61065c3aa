//! A pod's network as the proxy sees it for connections from outside: its application is called from the pod's own loopback, in the
//! name of the client.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::Entries;
use crate::{
    capture::{
        buffers, netns,
        node_addresses::NodeAddresses,
        pod::{is_at_urgent_byte, unacknowledged, watched},
    },
    govern::handled::Sent,
    proxy::{Network, Origin, SocketOptions},
};

/// A pod's network, for connections from outside.
pub(super) struct InboundNetwork {
    pub(super) entries: Arc<Entries>,
    pub(super) node: Arc<NodeAddresses>,
}

impl Network for InboundNetwork {
    /// What the client has dialled is the accepted socket's own address.
    fn origin(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Origin>> {
        let own = SockRef::from(&accepted).local_addr()?.as_socket();
        let own = own.map(|own| SocketAddr::new(own.ip().to_canonical(), own.port()));
        Ok(own.filter(|own| !own.ip().is_loopback()).map(|destination| Origin {
            destination,
            socket: 0,
            options: SocketOptions::default(),
        }))
    }

    fn has_closed(&self, _: u64) -> bool {
        false
    }

    fn unacknowledged(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        unacknowledged(socket)
    }

    /// The programs do not count what they steer here: it is counted when it is accepted.
    fn redirected(&self) -> u64 {
        0
    }

    fn allow(&self, connections: u32) -> io::Result<()> {
        self.entries.set_direct(connections == 0)
    }

    fn memory_of(&self, socket: BorrowedFd<'_>) -> usize {
        buffers::memory_of(socket)
    }

    fn let_buffers_grow(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        buffers::let_grow(socket)
    }

    /// From loopback, which tells the programs that the connection is the agent's, and where the kernel uses ports again
    /// that are in TIME_WAIT.
    fn socket(&self, to: SocketAddr, client: Option<SocketAddr>) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let make = || Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP));
        let socket = self.entries.netns.within(&self.entries.home, make)??;
        socket.set_priority(sluice_ebpf::AGENT_PRIORITY)?;
        let from: IpAddr = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        choose_port_late(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
        if let Some(client) = client {
            self.entries.maps.set_client(socket.as_fd(), client, self.entries.follows.load(Relaxed))?;
        }
        Ok(socket)
    }

    fn connecting(&self, socket: &Socket) -> io::Result<()> {
        socket.set_priority(0)
    }

    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool {
        is_at_urgent_byte(socket)
    }

    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
        watched(listener)
    }

    fn refused(&self, address: SocketAddr) {
        self.entries.refused(address);
    }

    fn call(&self, socket: BorrowedFd<'_>) -> Option<u64> {
        self.entries.follows.load(Relaxed).then(|| netns::cookie_of(socket).ok())?
    }

    fn sends(&self, request: Sent) -> bool {
        self.entries.threads.sends(request)
    }

    fn responded(&self, request: Sent) -> bool {
        self.entries.threads.responded(request)
    }

    fn forget(&self, call: u64) {
        self.entries.threads.forget(call);
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.node.has(address)
    }
}

/// The port is chosen when the socket connects, so that it has to differ only from those to the same destination
/// (`IP_BIND_ADDRESS_NO_PORT`, ip(7)).
fn choose_port_late(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to a local of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
