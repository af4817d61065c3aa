//! A limit of memory for a process that the kernel enforces, by whichever memory controller this machine has.
//!
//! Of a controller of version 2 the kernel's socket buffers are a part; with version 1 they have a limit of their own, which is
//! charged from when it is set.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// A process with a limit of memory.
#[derive(Debug)]
pub struct Limited {
    group: Group,
    bytes: u64,
}

#[derive(Debug)]
enum Group {
    /// Its own group of version 1, removed when this is dropped.
    First(PathBuf),
    /// The group of version 2 that it was in before.
    Second(PathBuf),
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| format!("{}: {text:?} is no number", path.display()))
}

fn set(path: &Path, value: u64) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| path.display().to_string())
}

impl Limited {
    /// Limits a process that is in `group` of the unified hierarchy, mounted at `mount`. `None`: this machine has no memory
    /// controller that can be used.
    pub(crate) fn new(pid: u32, bytes: u64, mount: &Path, group: &Path) -> Result<Option<Self>> {
        let first = Path::new("/sys/fs/cgroup/memory");
        if first.join("memory.limit_in_bytes").exists() {
            let own = first.join(format!("sluice-test-{pid}"));
            fs::create_dir(&own).with_context(|| own.display().to_string())?;
            let limited = Self { group: Group::First(own.clone()), bytes };
            set(&own.join("memory.limit_in_bytes"), bytes)?;
            set(&own.join("memory.kmem.tcp.limit_in_bytes"), bytes)?;
            set(&own.join("cgroup.procs"), pid.into())?;
            return Ok(Some(limited));
        }
        // From the root down; a parent passes on only what it has.
        let above: Vec<_> = group.ancestors().skip(1).take_while(|path| path.starts_with(mount)).collect();
        for parent in above.into_iter().rev() {
            if fs::write(parent.join("cgroup.subtree_control"), "+memory").is_err() {
                return Ok(None);
            }
        }
        set(&group.join("memory.max"), bytes)?;
        let swap = group.join("memory.swap.max");
        if swap.exists() {
            set(&swap, 0)?;
        }
        Ok(Some(Self { group: Group::Second(group.to_owned()), bytes }))
    }

    /// What is charged, in bytes: the process, and the kernel's buffers of its sockets.
    pub fn charged(&self) -> Result<(u64, u64)> {
        match &self.group {
            Group::First(own) => {
                let of = |name: &str| number(&own.join(name));
                Ok((of("memory.usage_in_bytes")?, of("memory.kmem.tcp.usage_in_bytes")?))
            }
            Group::Second(group) => {
                let stat = fs::read_to_string(group.join("memory.stat")).context("memory.stat")?;
                let sockets = stat.lines().find_map(|line| line.strip_prefix("sock "));
                let sockets = sockets.context("no sock in memory.stat")?.parse()?;
                Ok((number(&group.join("memory.current"))?.saturating_sub(sockets), sockets))
            }
        }
    }

    /// Fails if more is charged than the limit, all together, or the kernel has killed for it.
    pub fn check(&self) -> Result<()> {
        let (own, sockets) = self.charged()?;
        ensure!(own + sockets <= self.bytes, "{own} + {sockets} bytes of {}", self.bytes);
        let events = match &self.group {
            Group::First(own) => own.join("memory.oom_control"),
            Group::Second(group) => group.join("memory.events"),
        };
        let events = fs::read_to_string(&events).with_context(|| events.display().to_string())?;
        ensure!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
        Ok(())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Group::First(own) = &self.group {
            // Whoever is still in it goes to the root.
            for pid in fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid);
            }
            let _ = fs::remove_dir(own);
        }
    }
}
