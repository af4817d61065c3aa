//! The kernel's buffers of a socket, as far as the standard library and `socket2` do not know of them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// What a socket holds of memory: nine words, in the order of `SK_MEMINFO_*`. (asm-generic/socket.h, Linux 4.12)
const SO_MEMINFO: libc::c_int = 55;

/// Which of a socket's buffers do not grow, because their size was set. (asm-generic/socket.h, Linux 5.14)
const SO_BUF_LOCK: libc::c_int = 72;

/// `SK_MEMINFO_RMEM_ALLOC`, `_FWD_ALLOC`, `_WMEM_QUEUED` and `_BACKLOG` (linux/sock_diag.h): what was received and not read, what
/// is held for more, what is unsent or not acknowledged, and what has come while the socket was in use.
///
/// The words are unsigned, the kernel's counters are not: what is held for more was seen below zero, on connections of slow readers
/// whose receive buffer was made smaller while it was full.
const HELD: [usize; 4] = [0, 4, 5, 7];
const WORDS: usize = 9;

/// The sum of what the words tell, as the signed numbers that they are.
fn held(words: &[u32; WORDS]) -> usize {
    let sum: i64 = HELD.iter().map(|at| i64::from(words[*at].cast_signed())).sum();
    usize::try_from(sum).unwrap_or(0)
}

/// Bytes of memory that the kernel holds for a socket; 0 for one of which it does not tell.
pub(crate) fn memory_of(socket: BorrowedFd<'_>) -> usize {
    let mut words = [0_u32; WORDS];
    let mut size = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the pointers are to locals of the size that is told, and any bytes are integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result != 0 {
        return 0;
    }
    held(&words)
}

/// The kernel lets the buffers grow as if their sizes had never been set.
pub(crate) fn let_grow(socket: BorrowedFd<'_>) -> io::Result<()> {
    let none: libc::c_int = 0;
    // SAFETY: the pointer is to a local of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BUF_LOCK,
            (&raw const none).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_was_not_read_is_held() {
        let (mut client, mut server) = pair();
        let before = memory_of(server.as_fd());
        client.write_all(&vec![1; 50_000]).unwrap();
        while memory_of(server.as_fd()) < before + 50_000 {
            std::thread::yield_now();
        }
        server.read_exact(&mut vec![0; 50_000]).unwrap();
        while memory_of(server.as_fd()) >= before + 50_000 {
            std::thread::yield_now();
        }
        assert_eq!(memory_of(std::fs::File::open("/dev/null").unwrap().as_fd()), 0);
    }

    #[test]
    fn words_below_zero_are_no_gigabytes() {
        let mut words = [0; WORDS];
        words[0] = 575_296;
        // As seen of a slow reader's connection, whose receive buffer was made smaller.
        words[4] = 4_294_916_288;
        assert_eq!(held(&words), 575_296 - 51_008);
        words[0] = 1000;
        assert_eq!(held(&words), 0);
    }

    #[test]
    fn a_buffer_whose_size_was_set_grows_again() {
        let (mut client, mut server) = pair();
        let socket = socket2::SockRef::from(&server);
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let set = socket.recv_buffer_size().unwrap();
        let_grow(server.as_fd()).unwrap();
        let writer = std::thread::spawn(move || client.write_all(&vec![1; 16 << 20]));
        let mut buffer = vec![0; 64 * 1024];
        while server.read(&mut buffer).unwrap() > 0 {}
        writer.join().unwrap().unwrap();
        assert!(socket2::SockRef::from(&server).recv_buffer_size().unwrap() > set);
        let error = let_grow(std::fs::File::open("/dev/null").unwrap().as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
