//! Which sockets the processes of a pod have, by what the kernel tells of their descriptors.

use std::{collections::HashSet, fs, io, ops::ControlFlow, path::Path};

use super::cgroup;

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

/// Those of these sockets that a process of the group has.
pub(crate) fn owned(group: &Path, inodes: &HashSet<u64>) -> io::Result<HashSet<u64>> {
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
