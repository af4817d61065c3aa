//! Control groups (v2) as far as capture needs them: where they are mounted, where the pods are, which pod a group
//! belongs to, and which processes live in it.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process,
};

/// How deep below the mount the pods' group is looked for. The kubelet's `--cgroup-root` makes it deeper than 1.
const PODS_SEARCH_DEPTH: usize = 4;

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside a version 1.
pub(crate) fn mount_point() -> io::Result<Option<PathBuf>> {
    Ok(mount_point_in(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// `36 35 98:0 /root /mount/point rw shared:1 - cgroup2 cgroup2 rw`; before the dash is a varying number of fields.
fn mount_point_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        // Spaces and the like are octal escapes there.
        let path =
            mount.split(' ').nth(4)?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        Some(PathBuf::from(path))
    })
}

/// The groups that are named like the kubelet names the one that holds all pods, at the outermost level that has any.
/// Several mean that somebody must choose: a wrong guess would redirect the connections of pods that are not this node's.
pub(crate) fn find_pods(mount: &Path) -> Vec<PathBuf> {
    let mut level = vec![mount.to_owned()];
    for _ in 0..PODS_SEARCH_DEPTH {
        let mut children: Vec<PathBuf> = level.iter().flat_map(|directory| children(directory)).collect();
        children.sort();
        let named = |path: &&PathBuf| path.file_name().is_some_and(|name| is_pods(name.as_bytes()));
        let found: Vec<_> = children.iter().filter(named).cloned().collect();
        if !found.is_empty() {
            return found;
        }
        level = children;
    }
    Vec::new()
}

/// `kubepods` (cgroupfs driver), `kubepods.slice` (systemd), `kubelet-kubepods.slice` (systemd, below `/kubelet`).
fn is_pods(name: &[u8]) -> bool {
    name == b"kubepods" || name == b"kubepods.slice" || name.ends_with(b"-kubepods.slice")
}

/// The group of the agent itself.
///
/// In a container with its own cgroup namespace `/proc/self/cgroup` tells a path relative to that, so what it tells
/// is believed only where our pid is found; else the whole tree is searched.
pub(crate) fn own(mount: &Path) -> io::Result<Option<PathBuf>> {
    let told = fs::read_to_string("/proc/self/cgroup")?;
    let pid = process::id();
    let relative = told.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let relative = Path::new(relative.trim_start_matches('/'));
    let candidate: PathBuf = mount.components().chain(relative.components()).collect();
    if pids(&candidate).contains(&pid) {
        return Ok(Some(candidate));
    }
    let mut waiting = vec![mount.to_owned()];
    while let Some(directory) = waiting.pop() {
        if pids(&directory).contains(&pid) {
            return Ok(Some(directory));
        }
        waiting.extend(children(&directory));
    }
    Ok(None)
}

/// The id by which `bpf_get_current_cgroup_id` knows the group: its inode number.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/kernfs.h#L347>
pub(crate) fn id(group: &Path) -> io::Result<u64> {
    fs::metadata(group).map(|metadata| metadata.ino())
}

/// The UID of the pod whose group has this (directory) name, if it is a pod's.
///
/// The kubelet names a pod's group `pod<UID>` with the cgroupfs driver, and with the systemd driver
/// `<parent>-pod<UID>.slice` with underscores in the UID, because a dash means nesting to systemd.
/// <https://github.com/kubernetes/kubernetes/blob/v1.33.0/pkg/kubelet/cm/cgroup_manager_linux.go#L55>
pub(crate) fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let is_uid = !uid.is_empty()
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    is_uid.then_some(uid)
}

/// Sub-groups. A group that is gone meanwhile has none.
pub(crate) fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Processes directly in a group. None for a group that is gone, or whose members are threads.
/// A process that is outside of our pid namespace is told as 0.
fn pids(group: &Path) -> Vec<u32> {
    let Ok(text) = fs::read_to_string(group.join("cgroup.procs")) else { return Vec::new() };
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The processes in a group and all groups below it, one list a level, outermost first.
pub(crate) fn processes_by_level(group: &Path) -> Vec<Vec<u32>> {
    let mut levels = Vec::new();
    let mut level = vec![group.to_owned()];
    while !level.is_empty() {
        levels.push(level.iter().flat_map(|group| pids(group)).collect());
        level = level.iter().flat_map(|group| children(group)).collect();
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_pods() {
        const UID: &str = "9d86d3b6-6f2c-4b9e-8a3c-0f2f64d1c1aa";
        let table = [
            // cgroupfs driver: containerd, CRI-O and Docker alike.
            ("pod9d86d3b6-6f2c-4b9e-8a3c-0f2f64d1c1aa", Some(UID)),
            // systemd driver: guaranteed, burstable, best effort, and below a --cgroup-root.
            ("kubepods-pod9d86d3b6_6f2c_4b9e_8a3c_0f2f64d1c1aa.slice", Some(UID)),
            ("kubepods-burstable-pod9d86d3b6_6f2c_4b9e_8a3c_0f2f64d1c1aa.slice", Some(UID)),
            ("kubepods-besteffort-pod9d86d3b6_6f2c_4b9e_8a3c_0f2f64d1c1aa.slice", Some(UID)),
            ("kubelet-kubepods-burstable-pod9d86d3b6_6f2c_4b9e_8a3c_0f2f64d1c1aa.slice", Some(UID)),
            // A static pod's is a hash.
            ("pod3b1c5e0c9f0f4a3c8d7e6f5a4b3c2d1e", Some("3b1c5e0c9f0f4a3c8d7e6f5a4b3c2d1e")),
            // Not pods: the groups above, and containers of containerd, CRI-O (with its monitor) and Docker below.
            ("kubepods", None),
            ("kubepods.slice", None),
            ("burstable", None),
            ("besteffort", None),
            ("kubepods-burstable.slice", None),
            ("kubelet-kubepods.slice", None),
            ("4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b", None),
            ("cri-containerd-4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f.scope", None),
            ("crio-4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f.scope", None),
            ("crio-conmon-4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f.scope", None),
            ("docker-4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f.scope", None),
            ("podman.scope", None),
            ("pod", None),
            ("system.slice", None),
            ("", None),
        ];
        for (name, uid) in table {
            assert_eq!(pod_uid(name).as_deref(), uid, "{name}");
        }
    }

    #[test]
    fn mount_point_of_version_2_only() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
37 31 0:34 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 master:2 - cgroup2 cgroup2 rw
";
        assert_eq!(mount_point_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let spaced = "41 31 0:38 / /mnt/my\\040groups rw - cgroup2 none rw\n";
        assert_eq!(mount_point_in(spaced), Some(PathBuf::from("/mnt/my groups")));
        assert_eq!(mount_point_in("37 31 0:34 / /sys/fs/cgroup/pids rw - cgroup cgroup rw\n"), None);
    }

    #[test]
    fn pods_group_is_found_at_any_of_its_names() {
        for group in ["kubepods", "kubepods.slice", "kubelet.slice/kubelet-kubepods.slice", "a/b/kubepods"] {
            let mount = tempfile::tempdir().unwrap();
            let wanted = mount.path().join(group);
            fs::create_dir_all(wanted.join("burstable")).unwrap();
            fs::create_dir_all(mount.path().join("system.slice/kubelet.service")).unwrap();
            assert_eq!(find_pods(mount.path()), [wanted]);
        }
        let mount = tempfile::tempdir().unwrap();
        assert!(find_pods(mount.path()).is_empty());
        let nodes = ["a/kubepods", "b/kubepods"].map(|group| mount.path().join(group));
        for group in &nodes {
            fs::create_dir_all(group).unwrap();
        }
        assert_eq!(find_pods(mount.path()), nodes);
    }

    #[test]
    fn processes_come_outermost_first() {
        let pod = tempfile::tempdir().unwrap();
        for (group, pids) in [("", ""), ("pause", "10\n"), ("app", "11\n12\n"), ("app/nested", "13\n")] {
            fs::create_dir_all(pod.path().join(group)).unwrap();
            fs::write(pod.path().join(group).join("cgroup.procs"), pids).unwrap();
        }
        let mut levels = processes_by_level(pod.path());
        for level in &mut levels {
            level.sort_unstable();
        }
        assert_eq!(levels, [vec![], vec![10, 11, 12], vec![13]]);
        assert_eq!(processes_by_level(&pod.path().join("gone")), [Vec::<u32>::new()]);
    }
}
