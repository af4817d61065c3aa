//! One enrolled pod: its listeners inside its network namespace, and the sockets that the proxy makes there.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use sluice_ebpf::{port_slots, words};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    EnrolError, buffers,
    entry::Entry,
    maps::Accepted,
    netns::{self, Netns},
    threads,
};
use crate::{
    cluster::model::{LOWEST_LISTENER_PORT, Workload},
    proxy::{Network, Origin, Tie},
};

/// As much as the kernel allows (`net.core.somaxconn` of the namespace).
const BACKLOG: i32 = 4096;

/// A pod's network, as the proxy sees it.
pub(crate) struct PodNetwork {
    pub(crate) netns: Arc<Netns>,
    pub(crate) home: Arc<Netns>,
    pub(crate) accepted: Arc<Accepted>,
    pub(crate) threads: Arc<threads::Maps>,
    pub(crate) entry: Arc<Entry>,
}

impl Network for PodNetwork {
    fn origin(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Origin>> {
        self.accepted.origin(accepted)
    }

    fn has_closed(&self, socket: u64) -> bool {
        self.accepted.is_released(socket)
    }

    fn unacknowledged(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        unacknowledged(socket)
    }

    fn redirected(&self) -> u64 {
        self.entry.redirected()
    }

    fn allow(&self, connections: u32) -> io::Result<()> {
        self.entry.allow(connections)
    }

    fn memory_of(&self, socket: BorrowedFd<'_>) -> usize {
        buffers::memory_of(socket)
    }

    fn let_buffers_grow(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        buffers::let_grow(socket)
    }

    fn socket(&self, to: SocketAddr, _: Option<SocketAddr>) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = self
            .netns
            .within(&self.home, || Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP)))??;
        socket.set_priority(sluice_ebpf::AGENT_PRIORITY)?;
        Ok(socket)
    }

    fn connecting(&self, socket: &Socket) -> io::Result<()> {
        socket.set_priority(0)
    }

    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool {
        is_at_urgent_byte(socket)
    }

    fn tie(&self, socket: u64) -> Tie {
        self.threads.tie(socket)
    }

    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
        watched(listener)
    }
}

/// What was opened inside a pod's namespace.
pub(crate) struct Opened {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) netns_cookie: u64,
    pub(crate) ports_v4: Vec<u16>,
    /// Empty where the namespace has no IPv6.
    pub(crate) ports_v6: Vec<u16>,
}

impl Opened {
    /// Opens `count` listeners on 127.0.0.1 and as many on `::1`, at none of the ports that the pod declares.
    pub(crate) fn open(
        netns: &Netns,
        home: &Netns,
        count: usize,
        declared: &[u16],
    ) -> Result<Self, EnrolError> {
        netns.within(home, || Self::open_here(count, declared)).map_err(EnrolError::Enter)?
    }

    fn open_here(count: usize, declared: &[u16]) -> Result<Self, EnrolError> {
        let ports = Ports { declared, ..Ports::free(&local_port_range()) };
        let listen = |ip: IpAddr| (0..count).map(|_| ports.listener(ip)).collect::<io::Result<Vec<_>>>();
        // A sandbox that is still being set up. Its loopback comes up before its first container starts.
        if !loopback_is_up().map_err(EnrolError::Loopback)? {
            return Err(EnrolError::LoopbackDown);
        }
        let v4 = listen(Ipv4Addr::LOCALHOST.into()).map_err(EnrolError::Listen)?;
        let v6 = match listen(Ipv6Addr::LOCALHOST.into()) {
            Ok(listeners) => listeners,
            // IPv6 is off in the kernel, or in this namespace.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                Vec::new()
            }
            Err(error) => return Err(EnrolError::Listen(error)),
        };
        let ports_of = |listeners: &[TcpListener]| {
            listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<io::Result<Vec<_>>>()
        };
        let (ports_v4, ports_v6) =
            (ports_of(&v4).map_err(EnrolError::Listen)?, ports_of(&v6).map_err(EnrolError::Listen)?);
        let first =
            v4.first().ok_or_else(|| EnrolError::Listen(io::Error::other("no listeners were asked for")))?;
        let netns_cookie = netns::cookie(first.as_fd()).map_err(EnrolError::Cookie)?;
        Ok(Self { listeners: v4.into_iter().chain(v6).collect(), netns_cookie, ports_v4, ports_v6 })
    }

    /// What the programs need to know.
    pub(crate) fn entry(&self, workload: &Workload) -> sluice_ebpf::Pod {
        let ports = sluice_ebpf::Pod {
            ports_v4: port_slots(&self.ports_v4),
            ports_v6: port_slots(&self.ports_v6),
            ..sluice_ebpf::Pod::default()
        };
        with_addresses(ports, workload)
    }
}

/// The entry with the workload's addresses in it, which may come later than its ports.
pub(crate) fn with_addresses(entry: sluice_ebpf::Pod, workload: &Workload) -> sluice_ebpf::Pod {
    let v4 = workload.ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
    let v6 = workload.ips.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
    sluice_ebpf::Pod {
        address_v4: v4.map_or(0, |ip| u32::from_ne_bytes(ip.octets())),
        address_v6: v6.map_or([0; 4], words),
        ..entry
    }
}

/// The range of which the kernel takes client ports where it is not told otherwise.
const DEFAULT_RANGE: RangeInclusive<u16> = 32768..=60999;

/// How many ports are tried before the kernel chooses one.
const DRAWS: usize = 64;

/// The range of which the kernel takes client ports in the calling thread's namespace.
fn local_port_range() -> RangeInclusive<u16> {
    let read = || {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut ends = text.split_ascii_whitespace().map(str::parse);
        Some(ends.next()?.ok()?..=ends.next()?.ok()?)
    };
    read().unwrap_or(DEFAULT_RANGE)
}

/// Ports for listeners, outside of the range of client ports. A listener within it would sooner or later be in the way of an
/// application that wants to bind the same port: the kernel gives such ports out, so nobody expects to find them free, but
/// many declare ones that lie in it (50051).
struct Ports<'p> {
    range: RangeInclusive<u16>,
    /// Those that the pod declares, in their order.
    declared: &'p [u16],
}

impl Ports<'_> {
    /// Those above the range are nobody's. Where there are none, those below it.
    fn free(clients: &RangeInclusive<u16>) -> Self {
        let range = match clients.end().checked_add(1) {
            Some(first) if u16::MAX - first >= 1024 => first..=u16::MAX,
            _ => LOWEST_LISTENER_PORT..=clients.start().saturating_sub(1),
        };
        Self { range, declared: &[] }
    }

    fn listener(&self, ip: IpAddr) -> io::Result<TcpListener> {
        let is_declared = |port: u16| self.declared.binary_search(&port).is_ok();
        for _ in 0..DRAWS {
            if self.range.is_empty() {
                break;
            }
            let port = fastrand::u16(self.range.clone());
            if is_declared(port) {
                continue;
            }
            match listener(SocketAddr::new(ip, port)) {
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse) => {}
                opened => return opened,
            }
        }
        // Held until there is another, or the kernel would give the same again.
        let mut wrong = Vec::new();
        loop {
            let any = listener(SocketAddr::new(ip, 0))?;
            if !is_declared(any.local_addr()?.port()) || wrong.len() >= DRAWS {
                return Ok(any);
            }
            wrong.push(any);
        }
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    // For what it accepts: a connection from outside has the application's port, and an application that is started anew could not
    // bind it. Not before: the port is to be nobody else's.
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    fast_open_off(&socket)?;
    Ok(socket.into())
}

/// With TCP Fast Open on (a sysctl can force it) the listener's end is established before the client's, and would not
/// find the original destination. The client falls back to the ordinary handshake.
fn fast_open_off(socket: &Socket) -> io::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: the pointer is to a local of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const off).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without it.
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
            error => Err(error),
        },
    }
}

/// How many bytes that were written to a TCP socket its peer has not acknowledged (`SIOCOUTQ`, tcp(7)). Linux answers from
/// sequence numbers, so that it still knows when the connection has been reset.
///
/// # Errors
/// The descriptor is no connection's.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    #[allow(clippy::unnecessary_cast, reason = "musl and glibc differ about the type of requests")]
    let question = libc::TIOCOUTQ as libc::Ioctl;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ by another name, writes one `int`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// Whether the next byte that is read from a socket is urgent data (`sockatmark`, socket(7)), which it is only with
/// `SO_OOBINLINE`. What cannot be read is taken for no.
#[must_use]
pub fn is_at_urgent_byte(socket: BorrowedFd<'_>) -> bool {
    let mut at: libc::c_int = 0;
    // `SIOCATMARK` of Linux (asm-generic/sockios.h).
    let question: libc::Ioctl = 0x8905;
    // SAFETY: SIOCATMARK writes one `int`, which outlives the call.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut at) };
    asked == 0 && at != 0
}

/// Lets the calling thread's runtime tell when a connection waits in a listener.
///
/// # Errors
/// The kernel has no memory for it.
pub fn watched(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: what owns the listener now keeps it open, with the same descriptor, until it is dropped itself.
    let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    Ok(registered?)
}

fn loopback_is_up() -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    #[allow(clippy::unnecessary_cast, reason = "musl and glibc differ about the type of requests")]
    let question = libc::SIOCGIFFLAGS as libc::Ioctl;
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of this `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_UP != 0)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn listeners_have_ports_of_their_own_and_accept() {
        let opened = Opened::open_here(3, &[]).unwrap();
        let mut ports = opened.ports_v4.clone();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 3);
        assert!(opened.ports_v6.is_empty() || opened.ports_v6.len() == 3);
        assert_eq!(opened.listeners.len(), 3 + opened.ports_v6.len());
        assert_ne!(opened.netns_cookie, 0);
        TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
        assert!(opened.entry(&workload(&[])).ports_v4.iter().all(|port| ports.contains(port)));
    }

    #[test]
    fn listeners_stay_out_of_the_range_of_client_ports() {
        for (clients, wanted) in [
            (DEFAULT_RANGE, 61_000..=u16::MAX),
            (40_000..=41_023, 41_024..=u16::MAX),
            (32_768..=65_000, 20_000..=32_767),
            (30_000..=u16::MAX, 20_000..=29_999),
        ] {
            assert_eq!(Ports::free(&clients).range, wanted, "{clients:?}");
        }
        let ports = Ports::free(&DEFAULT_RANGE);
        for _ in 0..50 {
            let port = ports.listener(Ipv4Addr::LOCALHOST.into()).unwrap().local_addr().unwrap().port();
            assert!(!DEFAULT_RANGE.contains(&port), "{port}");
        }
        // All ports are client ports, or none is free: the kernel chooses.
        for full in [1024..=u16::MAX, 0..=u16::MAX] {
            let ports = Ports::free(&full);
            assert!(ports.range.is_empty());
            ports.listener(Ipv4Addr::LOCALHOST.into()).unwrap();
        }
        let taken = listener((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let other = Ports { range: port..=port, declared: &[] }.listener(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert_ne!(other.local_addr().unwrap().port(), port);
    }

    #[test]
    fn listeners_stay_out_of_the_ports_that_a_pod_declares() {
        let declared: Vec<u16> = (61_000..=u16::MAX).filter(|port| port % 16 != 0).collect();
        let ports = Ports { declared: &declared, ..Ports::free(&DEFAULT_RANGE) };
        for _ in 0..8 {
            let port = ports.listener(Ipv4Addr::LOCALHOST.into()).unwrap().local_addr().unwrap().port();
            assert!(!declared.contains(&port), "{port}");
        }
    }

    #[test]
    fn entry_holds_the_first_address_of_each_family() {
        let entry = with_addresses(
            sluice_ebpf::Pod::default(),
            &workload(&["fd00::2", "10.1.2.3", "10.9.9.9", "fd00::9"]),
        );
        assert_eq!(entry.address_v4.to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(entry.address_v6, words("fd00::2".parse().unwrap()));
        let none = with_addresses(entry, &workload(&[]));
        assert_eq!((none.address_v4, none.address_v6), (0, [0; 4]));
    }

    fn workload(ips: &[&str]) -> Workload {
        Workload {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Workload::new("a", "shop", "orders")
        }
    }
}
