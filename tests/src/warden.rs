//! The warden ends a world whose maker was killed before it could clean up.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::cgroup;

/// Waits for its standard input to end, which happens when the harness is gone however it went; then kills what is
/// in the cgroup subtree, and removes that and the directory.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r _
attempts=0
while [ -d "$1" ] && [ $attempts -lt 200 ]; do
    echo 1 > "$1/cgroup.kill"
    find "$1" -depth -type d -exec rmdir {} \;
    sleep 0.05
    attempts=$((attempts + 1))
done
rm -rf "$2"
"#;

/// A process that outlives the harness, for a moment.
#[derive(Debug)]
pub(crate) struct Warden(Child);

impl Warden {
    pub(crate) fn post(cgroup: &Path, directory: &Path) -> Result<Self> {
        Command::new("sh")
            .args(["-c", SCRIPT, "warden"])
            .args([cgroup, directory])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal must reach the harness alone.
            .process_group(0)
            .spawn()
            .map(Self)
            .context("cannot start `sh`")
    }

    /// The harness cleans up by itself.
    pub(crate) fn dismiss(&mut self) {
        // It may be gone already; either way it is reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Removes worlds whose maker and warden are both gone. Worlds of living processes are left alone.
pub(crate) fn sweep(mount: &Path, directories: &Path) -> Result<()> {
    for parent in [mount, directories] {
        for entry in fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(pid) = maker(&name.to_string_lossy()) else { continue };
            if Path::new(&format!("/proc/{pid}")).exists() {
                continue;
            }
            if parent == mount {
                cgroup::destroy(&entry.path())?;
            } else if let Err(error) = fs::remove_dir_all(entry.path())
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error).with_context(|| format!("cannot remove {}", entry.path().display()));
            }
        }
    }
    Ok(())
}

/// The process id in a world's full name, `sluice-<name>-<pid>`.
fn maker(name: &str) -> Option<u32> {
    let (_, pid) = name.strip_prefix("sluice-")?.rsplit_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::maker;

    #[test]
    fn worlds_are_told_by_their_names() {
        assert_eq!(maker("sluice-lane-many-hops-4711"), Some(4711));
        assert_eq!(maker("sluice-4711"), None);
        assert_eq!(maker("sluice-lane-"), None);
        assert_eq!(maker("kubepods-4711"), None);
    }
}
