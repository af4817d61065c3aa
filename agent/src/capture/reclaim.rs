//! Ends connections that are older than their pod's enrolment when they are idle, so that their clients reconnect, through the
//! agent: where the Service or its Namespace asks for it with an annotation, so many a second and pod.
//!
//! The agent takes a duplicate of the client's socket (`pidfd_getfd`) and shuts it down. To the client this is what it is when
//! a server closes an idle connection of HTTP/1, which every client that pools has to expect: the next read is at the end, and
//! nothing can be written any more. To the server it is a client that closes.
//!
//! **No request is lost that was under way.** A connection is idle if nothing is unsent, unacknowledged or unread, nothing has
//! been received for a while, and the last bytes were the server's: a request that waits for its response was sent last. Times
//! are the kernel's ticks (1 to 10 ms), so a request and a response within one tick are not told apart, and the connection is
//! left for the next look. What the client writes between this look and the end, about a microsecond later, is noticed: the
//! end of its side goes behind that request, and its response is still read.

use std::{
    collections::HashSet,
    fs::File,
    io,
    ops::ControlFlow,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use socket2::SockRef;

use super::{bypass::Connection, sockets};

/// How much of it is done, and when a connection is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Connections that may be ended of a pod in a second; 0: none at all.
    pub per_second: usize,
    /// How long nothing was received on it.
    pub idle: Duration,
}

impl Default for Reclaim {
    fn default() -> Self {
        Self { per_second: 1, idle: Duration::from_secs(5) }
    }
}

/// What is to be ended of a pod.
pub(crate) struct Job {
    /// `namespace/name`, for the log.
    pub(crate) pod: String,
    pub(crate) group: PathBuf,
    pub(crate) connections: Vec<Connection>,
}

/// What came of it, for metrics and status.
#[derive(Debug, Default)]
pub(crate) struct Reclaimed {
    /// Connections that were ended.
    pub(crate) ended: AtomicU64,
    /// Why none can be.
    pub(crate) trouble: ArcSwapOption<String>,
    /// A look is under way.
    busy: AtomicBool,
}

/// Ends what is idle, away from the calling task: a pod may have thousands of descriptors to look through. What is under way is
/// not overtaken. Needs the context of a tokio runtime.
pub(crate) fn start(jobs: Vec<Job>, options: Reclaim, reclaimed: &Arc<Reclaimed>) {
    struct Free(Arc<Reclaimed>);
    impl Drop for Free {
        fn drop(&mut self) {
            self.0.busy.store(false, Ordering::Release);
        }
    }

    if jobs.is_empty() || reclaimed.busy.swap(true, Ordering::Acquire) {
        return;
    }
    let free = Free(reclaimed.clone());
    tokio::task::spawn_blocking(move || {
        let reclaimed = &free.0;
        for job in jobs {
            let mut most = options.per_second;
            let looked = look_through(&job.group, &job.connections, &mut |socket| {
                let ended = most > 0 && end(socket, options.idle)?;
                if ended {
                    most -= 1;
                    reclaimed.ended.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(
                        pod = job.pod,
                        "an idle connection that is older than the enrolment was ended"
                    );
                }
                Ok(most > 0)
            });
            match looked {
                Ok(()) => reclaimed.trouble.store(None),
                Err(error) => {
                    let told = reclaimed.trouble.swap(Some(Arc::new(error.to_string())));
                    if told.is_none_or(|told| *told != error.to_string()) {
                        tracing::warn!(pod = job.pod, %error, "cannot end connections that are older than the enrolment");
                    }
                }
            }
        }
    });
}

/// Shows each of the connections that a process of the group has, until `see` has enough.
fn look_through(
    group: &Path,
    connections: &[Connection],
    see: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    // A process that forked shares it: once is enough.
    let mut wanted: HashSet<u64> = connections.iter().map(|connection| connection.inode).collect();
    let mut process: Option<(u32, OwnedFd)> = None;
    sockets::of_group(group, &mut |found| {
        if !wanted.contains(&found.inode) {
            return Ok(ControlFlow::Continue(()));
        }
        let opened = match process.take().filter(|(pid, _)| *pid == found.pid) {
            Some((_, process)) => Ok(process),
            None => pidfd(found.pid),
        };
        let socket = opened.and_then(|opened| {
            let (_, process) = process.insert((found.pid, opened));
            duplicate(process.as_fd(), found.number)
        });
        match socket {
            Ok(socket) => {
                let socket = File::from(socket);
                let is_it = socket.metadata()?.ino() == found.inode && wanted.remove(&found.inode);
                if is_it && !see(socket.as_fd())? {
                    return Ok(ControlFlow::Break(()));
                }
            }
            // The process, or the descriptor, is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EBADF)) => {}
            Err(error) => return Err(error),
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Ends a connection if it is idle, and says whether it was.
fn end(socket: BorrowedFd<'_>, idle: Duration) -> io::Result<bool> {
    let connection = SockRef::from(&socket);
    let ignored = |ended: io::Result<()>| match ended {
        // It has ended by itself.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    };
    let unread = unread(socket)?;
    let Some(before) = Info::of(socket)?.filter(|info| info.is_idle(unread, idle)) else {
        return Ok(false);
    };
    ignored(connection.shutdown(std::net::Shutdown::Write))?;
    // From here on the client writes nothing. What it has written since goes before the end of its side.
    if Info::of(socket)?.is_some_and(|after| after.wrote_since(&before)) {
        return Ok(true);
    }
    ignored(connection.shutdown(std::net::Shutdown::Read))?;
    Ok(true)
}

/// What the kernel says of a TCP connection (`TCP_INFO`, include/uapi/linux/tcp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Info {
    established: bool,
    /// Segments that the peer has not acknowledged.
    unacknowledged: u32,
    /// Bytes that were written and not sent.
    unsent: u32,
    /// Milliseconds since data was last sent, and received.
    since_sent: u32,
    since_received: u32,
    /// Segments with data that were sent.
    segments_sent: u32,
}

/// `TCP_ESTABLISHED` of the kernel.
const ESTABLISHED: u8 = 1;
/// What is read of `struct tcp_info`: up to and with `tcpi_data_segs_out` (Linux 4.6).
const INFO: usize = 160;

impl Info {
    /// `None`: the kernel says too little.
    fn of(socket: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let mut bytes = [0_u8; INFO];
        let mut length = INFO as libc::socklen_t;
        // SAFETY: both pointers are to locals of the sizes that are told.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((length as usize == INFO).then(|| Self::read(&bytes)))
    }

    fn read(bytes: &[u8; INFO]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        Self {
            established: bytes[0] == ESTABLISHED,
            unacknowledged: word(24),
            since_sent: word(44),
            since_received: word(52),
            unsent: word(144),
            segments_sent: word(156),
        }
    }

    /// Whether no request is under way, as far as bytes tell.
    fn is_idle(&self, unread: usize, idle: Duration) -> bool {
        let quiet = self.established && self.unacknowledged == 0 && self.unsent == 0 && unread == 0;
        let long = |milliseconds: u32| Duration::from_millis(milliseconds.into()) >= idle;
        if self.segments_sent == 0 {
            // It was opened beforehand and never used: since then, says the kernel, nothing was sent.
            return quiet && long(self.since_sent);
        }
        quiet && long(self.since_received) && self.since_received < self.since_sent
    }

    /// Whether data was written since; the end of a side (FIN), which may not have been sent yet, counts as one byte.
    fn wrote_since(&self, before: &Self) -> bool {
        self.segments_sent != before.segments_sent || self.unsent > 1
    }
}

/// How many bytes have come that were not read (`SIOCINQ`, tcp(7)).
fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    #[allow(clippy::unnecessary_cast, reason = "musl and glibc differ about the type of requests")]
    let question = libc::FIONREAD as libc::Ioctl;
    // SAFETY: FIONREAD, which is SIOCINQ by another name, writes one `int`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// A handle of a process (`pidfd_open(2)`, Linux 5.3).
fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: it touches no memory of ours.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) })
}

/// A duplicate of a descriptor of another process (`pidfd_getfd(2)`, Linux 5.6). Needs `CAP_SYS_PTRACE`.
fn duplicate(process: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: it touches no memory of ours.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0_u32) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just opened it for us, and nobody else knows it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        process, thread,
        time::Instant,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Idle for a minute: a request was sent 3 ms before the last bytes of its response came.
    const IDLE: Info = Info {
        established: true,
        unacknowledged: 0,
        unsent: 0,
        since_sent: 60_003,
        since_received: 60_000,
        segments_sent: 7,
    };

    #[test]
    fn idle_is_who_has_had_a_response_and_is_quiet_since() {
        assert!(IDLE.is_idle(0, SECOND));
        assert!(IDLE.is_idle(0, Duration::from_secs(60)));
        assert!(!IDLE.is_idle(0, Duration::from_secs(61)), "not for long enough");
        assert!(!IDLE.is_idle(1, SECOND), "a response is not read");
        for (busy, why) in [
            (Info { since_sent: 60_000, ..IDLE }, "which was last cannot be told"),
            (Info { since_sent: 50_000, ..IDLE }, "a request waits for its response"),
            (Info { unacknowledged: 1, ..IDLE }, "a request is on its way"),
            (Info { unsent: 1, ..IDLE }, "a request has no room on its way"),
            (Info { established: false, ..IDLE }, "one side has ended"),
        ] {
            assert!(!busy.is_idle(0, SECOND), "{why}");
        }
        // Nothing was ever received, so that time is the kernel's age.
        let unused = Info { segments_sent: 0, since_sent: 2_000, since_received: 4_000_000, ..IDLE };
        assert!(unused.is_idle(0, SECOND));
        assert!(!Info { since_sent: 500, ..unused }.is_idle(0, SECOND), "it may be about to be used");
    }

    #[test]
    fn what_is_written_in_between_is_noticed() {
        assert!(!IDLE.wrote_since(&IDLE));
        assert!(!Info { unsent: 1, established: false, ..IDLE }.wrote_since(&IDLE), "the end of the side");
        assert!(Info { segments_sent: 8, ..IDLE }.wrote_since(&IDLE));
        assert!(Info { unsent: 2, ..IDLE }.wrote_since(&IDLE), "and it has no room");
    }

    /// A connection, and its other end.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// A request and its response, which takes longer than the kernel's tick.
    fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
        let mut byte = [0];
        client.write_all(b"?").unwrap();
        server.read_exact(&mut byte).unwrap();
        thread::sleep(Duration::from_millis(30));
        server.write_all(b"!").unwrap();
        client.read_exact(&mut byte).unwrap();
    }

    /// Until it is idle for so long, and ended.
    fn await_end(client: &TcpStream, idle: Duration) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !end(client.as_fd(), idle).unwrap() {
            assert!(Instant::now() < deadline, "{:?}", Info::of(client.as_fd()));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_idle_connection_ends_as_if_its_server_closed_it() {
        let idle = Duration::from_millis(20);
        let (mut client, mut server) = pair();
        exchange(&mut client, &mut server);
        await_end(&client, idle);
        let mut rest = Vec::new();
        assert_eq!(client.read_to_end(&mut rest).unwrap(), 0);
        assert_eq!(client.write_all(b"?").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(server.read_to_end(&mut rest).unwrap(), 0);
        // What has ended is not idle.
        assert!(!end(client.as_fd(), Duration::ZERO).unwrap());
    }

    #[test]
    fn a_request_that_waits_is_left_alone() {
        let (mut client, mut server) = pair();
        exchange(&mut client, &mut server);
        thread::sleep(Duration::from_millis(30));
        client.write_all(b"?").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(!end(client.as_fd(), Duration::ZERO).unwrap());
        // Nor is a response that is not read.
        server.write_all(b"!").unwrap();
        client.peek(&mut byte).unwrap();
        assert!(!end(client.as_fd(), Duration::ZERO).unwrap());
    }

    #[test]
    fn connections_are_found_by_their_sockets_in_the_processes_of_a_group() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), format!("0\n{}\n", process::id())).unwrap();
        let (client, _server) = pair();
        let address = client.peer_addr().unwrap();
        let connections = super::super::bypass::open(|connection| connection.peer == address);
        assert_eq!(connections.len(), 1);
        let mut seen = 0;
        let mut see = |socket: BorrowedFd<'_>| {
            assert_eq!(SockRef::from(&socket).peer_addr().unwrap().as_socket(), Some(address));
            seen += 1;
            Ok(true)
        };
        look_through(group.path(), &connections, &mut see).unwrap();
        look_through(group.path(), &[], &mut |_| panic!("nothing is wanted")).unwrap();
        assert_eq!(seen, 1);
    }
}
