//! What the kernel lets go of first when the agent is killed: the links, so that no connect is redirected any more
//! when the listeners close.
//!
//! A dying process closes its files in ascending order, but each is only released in a task work, and those run last
//! in, first out: the highest descriptor goes first. (`close_files` in <https://elixir.bootlin.com/linux/v6.18/source/fs/file.c>,
//! `task_work_run` in <https://elixir.bootlin.com/linux/v6.18/source/kernel/task_work.c>.) Links that lie below the
//! listeners cost some refused connects at each `kill -9`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

/// Listeners lie below this as long as the agent has less than as many files open. Not as high as the limit allows:
/// the table of descriptors is as long as the highest one asks for.
const HIGH: RawFd = 60_000;

/// The descriptors of this process that are links of eBPF programs.
pub(crate) fn links() -> io::Result<BTreeSet<RawFd>> {
    let mut links = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // One that is closed meanwhile is none of them.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if target.to_string_lossy().contains("bpf_link") {
            links.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
    }
    Ok(links)
}

/// Duplicates these descriptors above all others. What they stand for lives as long as either of the two.
pub(crate) fn lift(descriptors: impl Iterator<Item = RawFd>) -> io::Result<Vec<OwnedFd>> {
    descriptors.map(|descriptor| duplicate(descriptor, HIGH)).collect()
}

/// The lowest that is free from `least` on, or from as near to it as the limit of open files allows.
fn duplicate(descriptor: RawFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes two integers and touches no memory; a descriptor that is not open gives EBADF.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, least) };
    if copy >= 0 {
        // SAFETY: the kernel has just made it, and nobody else knows it.
        return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Not below the limit, or nothing free up there.
        Some(libc::EINVAL | libc::EMFILE) if least > descriptor => duplicate(descriptor, least / 2),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::fd::{AsFd as _, AsRawFd as _},
    };

    use super::*;

    #[test]
    fn copies_lie_above_and_stand_for_the_same() {
        let file = File::open("/proc/self/stat").unwrap();
        let copies = lift([file.as_raw_fd(), file.as_raw_fd()].into_iter()).unwrap();
        assert!(file.as_raw_fd() < copies[0].as_raw_fd() && copies[0].as_raw_fd() < copies[1].as_raw_fd());
        let target = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(target(copies[1].as_raw_fd()), target(file.as_fd().as_raw_fd()));
    }

    #[test]
    fn what_is_not_open_is_an_error() {
        assert!(lift([RawFd::MAX - 1].into_iter()).is_err());
    }

    #[test]
    fn other_files_are_no_links() {
        let file = File::open("/proc/self/stat").unwrap();
        assert!(!links().unwrap().contains(&file.as_raw_fd()));
    }
}
