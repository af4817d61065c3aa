//! To which cgroups sockets belong, by what the kernel tells of connections (sock_diag(7)). A socket belongs to the cgroup of the
//! process that made it, one that was accepted to that of its listener; moving to another network namespace changes nothing. So
//! the sockets that an agent has in a pod's namespace are told from the pod's own.
//!
//! What processes have among their descriptors says the same, but of those of other users `/proc/PID/fd` is not for everybody who
//! may see their namespaces: it takes `CAP_DAC_READ_SEARCH`.

use std::{
    collections::HashMap,
    io::{self, Read as _},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that are open or being opened, as bits of the kernel's `tcp_states.h`.
const OPEN: u32 = 1 << 1 | 1 << 2;

/// More than the kernel puts into one message (32 KiB, `netlink_recvmsg`).
const MESSAGE: usize = 64 << 10;

/// `struct nlmsghdr`, `struct inet_diag_req_v2`, and `struct inet_diag_msg` with the inode as its last word.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/inet_diag.h>
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Linux 5.8, for programs that are attached to cgroups: wherever ours are.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The cgroups of the open TCP connections of the calling thread's network namespace, by the inodes of their sockets; `None` where
/// the kernel does not say.
///
/// # Errors
/// The kernel tells nothing of connections (`CONFIG_INET_DIAG`).
pub(crate) fn cgroups() -> io::Result<HashMap<u64, Option<u64>>> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM.cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    let (mut found, mut buffer) = (HashMap::new(), vec![0; MESSAGE]);
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.send(&request(family as u8))?;
        loop {
            let length = (&socket).read(&mut buffer)?;
            if read(&buffer[..length], &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Asks for all of a family.
fn request(family: u8) -> [u8; HEADER + REQUEST] {
    let mut message = [0; HEADER + REQUEST];
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[HEADER] = family;
    message[HEADER + 1] = libc::IPPROTO_TCP as u8;
    message[HEADER + 4..HEADER + 8].copy_from_slice(&OPEN.to_ne_bytes());
    message
}

/// Reads what the kernel says, and whether it was the last of it.
fn read(mut messages: &[u8], found: &mut HashMap<u64, Option<u64>>) -> io::Result<bool> {
    // Nothing at all would be asked for without end.
    if messages.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while let Some((kind, message, rest)) = message(messages) {
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = word(message, HEADER).map_or(libc::EPROTO, |code| -(code as i32));
                return Err(io::Error::from_raw_os_error(code));
            }
            _ => {
                if let Some(inode) = word(message, HEADER + ANSWER - 4) {
                    let attributes = message.get(HEADER + ANSWER..).unwrap_or_default();
                    found.insert(inode.into(), cgroup(attributes));
                }
            }
        }
        messages = rest;
    }
    Ok(false)
}

/// The type of the first message, itself, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
    Some((half(message, 4)?, message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        // One that is shorter than its own header is none.
        let attribute = attributes.get(..length).filter(|attribute| attribute.len() >= 4)?;
        if half(attribute, 2)? == INET_DIAG_CGROUP_ID {
            return Some(u64::from_ne_bytes(attribute.get(4..12)?.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{TcpListener, TcpStream},
        os::{fd::AsRawFd, unix::fs::MetadataExt as _},
    };

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
    }

    #[test]
    fn connections_of_both_families_belong_to_the_cgroup_of_their_process() {
        let mut cgroups_of_ours = Vec::new();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let found = cgroups().unwrap();
            assert!(!found.contains_key(&inode(&listener)), "it is not a connection");
            for socket in [inode(&client), inode(&server)] {
                cgroups_of_ours.push(found[&socket].unwrap());
            }
        }
        cgroups_of_ours.dedup();
        assert_eq!(cgroups_of_ours.len(), 1, "{cgroups_of_ours:?}");
    }

    /// A message with a socket of this inode, and these attributes.
    fn answer(inode: u32, attributes: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER + ANSWER];
        message.extend_from_slice(attributes);
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[HEADER + ANSWER - 4..HEADER + ANSWER].copy_from_slice(&inode.to_ne_bytes());
        message
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut attribute = (4 + value.len() as u16).to_ne_bytes().to_vec();
        attribute.extend_from_slice(&kind.to_ne_bytes());
        attribute.extend_from_slice(value);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    #[test]
    fn what_the_kernel_says_is_read_without_being_believed() {
        let mut found = HashMap::new();
        let shutdown = attribute(8, &[0]);
        let group = attribute(INET_DIAG_CGROUP_ID, &4711_u64.to_ne_bytes());
        let both = [answer(1, &[shutdown.clone(), group.clone()].concat()), answer(2, &shutdown)].concat();
        assert!(!read(&both, &mut found).unwrap());
        assert_eq!(found, HashMap::from([(1, Some(4711)), (2, None)]));
        for length in 0..both.len() {
            let _ = read(&both[..length], &mut HashMap::new());
        }
        for length in 0..=u16::MAX {
            let mut odd = group.clone();
            odd[..2].copy_from_slice(&length.to_ne_bytes());
            let _ = cgroup(&odd);
            let mut odd = both.clone();
            odd[..2].copy_from_slice(&length.to_ne_bytes());
            let _ = read(&odd, &mut HashMap::new());
        }
        let end = |kind: i32, code: i32| {
            let mut message = vec![20, 0, 0, 0];
            message[..4].copy_from_slice(&20_u32.to_ne_bytes());
            message.extend_from_slice(&(kind as u16).to_ne_bytes());
            message.extend_from_slice(&[0; 10]);
            message.extend_from_slice(&code.to_ne_bytes());
            message
        };
        assert!(read(&end(libc::NLMSG_DONE, 0), &mut found).unwrap());
        let error = read(&end(libc::NLMSG_ERROR, -libc::ENOENT), &mut found).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
