//! What the machine gives to the agent: descriptors and memory. The proxy shares it out among pods.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{capture, proxy::Limits};

/// Descriptors that are neither of connections nor of listeners: programs and maps, watches, whoever asks the agent.
const OTHER_DESCRIPTORS: usize = 96;

/// What is kept besides, as a part of all: for connections to further endpoints of the same client, and pods to come.
const SPARE: usize = 32;

/// The part of the agent's memory that connections may take. The rest is what the agent needs to know of the cluster.
const CONNECTIONS_PART: u64 = 2;

/// Keeps the process on small pages.
///
/// A huge page (`THP`) is there as a whole as long as anything of it is in use, and the kernel makes one again of what an allocator gave
/// back in between. The allocator of the image, mimalloc, asks for them: with 100,000 endpoints of which some change all the time,
/// the agent took 16 MiB more, and grew. What carries traffic is small enough to do without. <https://man7.org/linux/man-pages/man2/PR_SET_THP_DISABLE.2const.html>
pub fn small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::warn!(%error, "cannot do without huge pages: the agent may need more memory");
    }
}

/// What all pods may use together. Takes as many descriptors as the hard limit allows.
pub(super) fn limits(connections_per_pod: u32, mebibytes: Option<u32>) -> Limits {
    let bytes = match mebibytes {
        Some(mebibytes) => u64::from(mebibytes) << 20,
        None => memory().map_or(u64::MAX, |all| all / CONNECTIONS_PART),
    };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let connections_per_pod = connections_per_pod as usize;
    let limits = Limits { connections_per_pod, descriptors: descriptors(file_limit()), bytes };
    tracing::info!(
        connections_per_pod,
        descriptors = limits.descriptors,
        mebibytes = bytes / (1 << 20),
        "what pods may use of the agent"
    );
    limits
}

/// Of so many, those that are for connections and listeners.
fn descriptors(all: usize) -> usize {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    all.saturating_sub(open + OTHER_DESCRIPTORS + all / SPARE)
}

/// How many files may be open: as many as the hard limit allows.
fn file_limit() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "cannot read the limit of open files");
            return 1024;
        }
    };
    let limit = if soft >= hard {
        soft
    } else {
        match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
                soft
            }
        }
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The memory that the agent may take: the least of the limits of its cgroup and of those above it, and of what the machine
/// has. `None`: none of them can be read.
fn memory() -> Option<u64> {
    let groups = capture::own_group().into_iter().chain(version_1(&told("/proc/self/cgroup").ok()?));
    let limits = groups.flat_map(|group| {
        let above: Vec<PathBuf> = group.ancestors().map(Path::to_owned).collect();
        above.into_iter().filter_map(|group| limit_of(&group))
    });
    limits.chain(machine(&told("/proc/meminfo").unwrap_or_default())).min()
}

fn told(file: &str) -> io::Result<String> {
    fs::read_to_string(file)
}

/// `memory.max` says `max` where there is none, and so does version 1 with a number beyond all memory.
fn limit_of(group: &Path) -> Option<u64> {
    let text = ["memory.max", "memory.limit_in_bytes"]
        .into_iter()
        .find_map(|file| fs::read_to_string(group.join(file)).ok())?;
    text.trim().parse().ok()
}

/// Where the memory controller is still one of version 1, which containers see mounted here: `4:memory:/kubepods/pod1/c1`.
fn version_1(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers.split(',').any(|name| name == "memory").then(|| fields.next())?
    })?;
    Some(Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')))
}

/// `MemTotal:       24689764 kB`
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_descriptors() {
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
        assert!(file_limit() >= 256);
        assert_eq!(descriptors(0), 0);
        let most = descriptors(1 << 20);
        assert!(most > 900_000 && most < 1 << 20, "{most}");
    }

    #[test]
    fn the_kernel_gives_no_huge_pages() {
        small_pages();
        let status = told("/proc/self/status").unwrap();
        assert!(status.contains("\nTHP_enabled:\t0\n"), "{status}");
    }

    #[test]
    fn limits_are_read_of_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let group = directory.path();
        assert_eq!(limit_of(group), None);
        fs::write(group.join("memory.limit_in_bytes"), "1048576\n").unwrap();
        assert_eq!(limit_of(group), Some(1_048_576));
        fs::write(group.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(limit_of(group), Some(536_870_912));
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit_of(group), None);
        assert_eq!(
            version_1("5:cpu,cpuacct:/a\n4:memory:/kubepods/pod1\n0::/\n"),
            Some("/sys/fs/cgroup/memory/kubepods/pod1".into())
        );
        assert_eq!(version_1("0::/kubepods/pod1\n"), None);
        assert_eq!(machine("MemTotal:       24689764 kB\nMemFree: 1 kB\n"), Some(24_689_764 * 1024));
        assert_eq!(machine("MemFree: 1 kB\n"), None);
    }
}
