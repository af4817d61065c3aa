//! Making a machine usable of which there is nothing but a kernel and files in memory; and switching it off.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};
use sluice_tests::run;

/// What the tests' network is made of, where the kernel has it as modules and does not load them by itself.
const MODULES: [&str; 3] = ["veth", "bridge", "br_netfilter"];

/// Mounts what a node has mounted, in a unified cgroup hierarchy with the memory controller, and loads modules.
pub(crate) fn prepare() -> Result<()> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at {at}"))?;
    }
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").context("the memory controller")?;
    for module in MODULES {
        run(std::process::Command::new("modprobe").arg(module))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc/sys/kernel/osrelease")?;
    ensure!(!release.trim().is_empty(), "the kernel has no release");
    println!("this is Linux {}", release.trim());
    Ok(())
}

/// Whether the kernel is one on which the agent is to work.
pub(crate) fn supported() -> Option<bool> {
    match std::env::var("SLUICE_VM_SUPPORTED").ok()?.as_str() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Ends the machine.
pub(crate) fn power_off() -> ExitCode {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cannot switch the machine off: {error}");
    // The kernel panics when its first process ends, and the machine ends with that.
    ExitCode::FAILURE
}
