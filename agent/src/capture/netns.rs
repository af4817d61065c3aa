//! Network namespaces: which one a process lives in, and doing something inside another one.
//!
//! A socket stays in the namespace in which it was created, whichever thread uses it. So a thread enters, creates
//! the socket and returns, synchronously; never across an `.await`.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    process,
};

/// Identity of a namespace: device and inode of its file in nsfs. Unique among the namespaces that exist, and one
/// that is held open exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    id: Id,
}

impl Netns {
    /// That of the calling thread.
    pub(crate) fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// That of a process.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    /// The identity alone, without holding the namespace.
    pub(crate) fn id_of_process(pid: u32) -> io::Result<Id> {
        fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| Id::of(&metadata))
    }

    fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        // Of what was opened: the process may have moved on since.
        let id = Id::of(&file.metadata()?);
        Ok(Self { file, id })
    }

    /// For who attaches something to it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// Runs `work` with the calling thread inside this namespace, and brings the thread back to `home`, also when
    /// `work` panics. About 4 microseconds besides `work` itself.
    ///
    /// # Errors
    /// If the namespace cannot be entered; `work` was not run then. If the thread cannot be brought back the process
    /// aborts: it would go on creating sockets in somebody else's network.
    pub(crate) fn within<T>(&self, home: &Self, work: impl FnOnce() -> T) -> io::Result<T> {
        struct Return<'a>(&'a Netns);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                if let Err(error) = self.0.enter() {
                    tracing::error!(%error, "a thread cannot leave a pod's network namespace: aborting");
                    process::abort();
                }
            }
        }

        self.enter()?;
        let _return = Return(home);
        Ok(work())
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self` lives; setns touches no memory of ours.
        match unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The cookie of the namespace that a socket belongs to, by which the eBPF programs know it (Linux 5.14).
/// <https://git.kernel.org/torvalds/c/e8b9eab99232c4e62ada9d7976c80fd5e8118289>
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    number(socket, libc::SO_NETNS_COOKIE)
}

/// The number by which the kernel knows a socket (`SO_COOKIE`), as no other that lives.
pub(crate) fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    number(socket, libc::SO_COOKIE)
}

fn number(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the sizes that are told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd, process};

    use super::*;

    #[test]
    fn one_namespace_has_one_identity_and_one_cookie() {
        let current = Netns::current().unwrap();
        assert_eq!(current.id(), Netns::of_process(process::id()).unwrap().id());

        let cookies: Vec<u64> =
            (0..2).map(|_| cookie(TcpListener::bind("127.0.0.1:0").unwrap().as_fd()).unwrap()).collect();
        assert_eq!(cookies[0], cookies[1]);
        assert_ne!(cookies[0], 0);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        // Above the kernel's highest possible pid (2^22).
        assert_eq!(Netns::of_process(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn without_the_capability_nothing_is_run() {
        let current = Netns::current().unwrap();
        let mut ran = false;
        let outcome = current.within(&current, || ran = true);
        // Root enters its own namespace again; anybody else is refused before `work`.
        assert_eq!(outcome.is_ok(), ran);
    }
}
