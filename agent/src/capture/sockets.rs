//! Which sockets are a pod's: by their cgroup, or by what the kernel tells of the descriptors of its processes.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    ops::ControlFlow,
    path::Path,
};

use super::{bypass::Connection, cgroup, netns::Netns, sock_diag};

/// A descriptor of a process that stands for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) pid: u32,
    pub(crate) number: i32,
    pub(crate) inode: u64,
}

/// Shows each that the processes of a group have, until `see` has enough. A process that forked shares sockets, so that one may be
/// shown twice; and process or descriptor may be gone, or another's, meanwhile.
pub(crate) fn of_group(
    group: &Path,
    see: &mut dyn FnMut(Descriptor) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    for pid in cgroup::processes_by_level(group).into_iter().flatten().filter(|pid| *pid != 0) {
        let directory = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            directory => directory?,
        };
        for entry in directory.flatten() {
            let link = fs::read_link(entry.path()).ok();
            let Some(inode) = link.as_deref().and_then(inode) else { continue };
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            if see(Descriptor { pid, number, inode })?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Leaves the connections in a pod's network namespace that are the pod's own: an agent has others there, that it has made or
/// accepted for the pod, and so has the one before it for as long as its tunnels last.
///
/// # Errors
/// Nobody says whose they are. Nothing was changed then.
pub(crate) fn retain_own(
    connections: &mut Vec<Connection>,
    group: &Path,
    netns: &Netns,
    home: &Netns,
) -> io::Result<()> {
    if connections.is_empty() {
        return Ok(());
    }
    let own = match netns.within(home, sock_diag::cgroups)? {
        Ok(told) => of_cgroups(connections, &told, &cgroup::ids(group)),
        Err(_) => None,
    };
    // A kernel that does not say it.
    let own = match own {
        Some(own) => own,
        None => owned(group, &connections.iter().map(|connection| connection.inode).collect())?,
    };
    connections.retain(|connection| own.contains(&connection.inode));
    Ok(())
}

/// The sockets of these connections that belong to one of the groups; `None` if it is not told of all that are still there.
fn of_cgroups(
    connections: &[Connection],
    told: &HashMap<u64, Option<u64>>,
    groups: &HashSet<u64>,
) -> Option<HashSet<u64>> {
    let mut own = HashSet::new();
    for inode in connections.iter().map(|connection| connection.inode) {
        if let Some(group) = told.get(&inode)
            && groups.contains(&(*group)?)
        {
            own.insert(inode);
        }
    }
    Some(own)
}

/// Those of these sockets that a process of the group has.
fn owned(group: &Path, inodes: &HashSet<u64>) -> io::Result<HashSet<u64>> {
    let mut owned = HashSet::new();
    of_group(group, &mut |found| {
        if inodes.contains(&found.inode) {
            owned.insert(found.inode);
        }
        Ok(if owned.len() == inodes.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(owned)
}

/// `socket:[4711]`
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _, os::unix::fs::MetadataExt as _, process};

    use super::*;

    #[test]
    fn links_name_sockets() {
        assert_eq!(inode(Path::new("socket:[4711]")), Some(4711));
        for other in ["socket:[x]", "pipe:[4711]", "/dev/null", "socket:[4711"] {
            assert_eq!(inode(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_socket_of_another_cgroup_is_not_the_pods() {
        let address = "10.0.0.1:80".parse().unwrap();
        let connections = [1, 2, 3].map(|inode| Connection { local: address, peer: address, inode });
        let own = |told: &[(u64, Option<u64>)]| {
            of_cgroups(&connections, &told.iter().copied().collect(), &HashSet::from([10, 11]))
        };
        assert_eq!(own(&[(1, Some(10)), (2, Some(99)), (3, Some(11))]), Some(HashSet::from([1, 3])));
        assert_eq!(own(&[(1, Some(10)), (2, Some(11))]), Some(HashSet::from([1, 2])), "one is gone");
        assert_eq!(own(&[(1, Some(10)), (2, None), (3, Some(11))]), None, "it is not told");
        assert_eq!(own(&[(1, Some(10)), (4, None)]), Some(HashSet::from([1])), "of another");
    }

    #[test]
    fn sockets_are_found_in_the_processes_of_a_group() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), format!("0\n{}\n", process::id())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino();
        assert_eq!(owned(group.path(), &HashSet::from([inode, u64::MAX])).unwrap(), HashSet::from([inode]));
        let gone = group.path().join("gone");
        assert_eq!(owned(&gone, &HashSet::from([inode])).unwrap(), HashSet::new());
    }
}
