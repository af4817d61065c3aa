//! The cgroup subtree of a world: found, made, emptied and removed.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Where cgroup v2 is mounted.
pub(crate) fn mount() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    table
        .lines()
        .find_map(|line| {
            // 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup rw
            let (mount, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
        })
        .context(
            "cgroup v2 is not mounted: mount it, for instance with `mount -t cgroup2 none /sys/fs/cgroup`",
        )
}

pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot make the cgroup {} (are you root?)", path.display()))
}

/// Kills every process below `path` and removes the cgroups. A subtree that does not exist is fine.
pub(crate) fn destroy(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        // Kernels before 5.14 have no cgroup.kill; Sluice itself needs 5.15.
        match fs::write(path.join("cgroup.kill"), "1").and_then(|()| remove(path)) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => {
                bail!("cannot remove the cgroup {}: {error}", path.display())
            }
            // Killed processes leave a moment later, and until then the cgroup is busy.
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
