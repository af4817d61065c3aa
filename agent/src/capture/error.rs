//! Why nothing can be captured here, or not this pod. One line each: what lacks, and what to do.

use std::{error::Error, io, path::PathBuf};

use sluice_ebpf::{MAX_PODS, PORT_SLOTS};

/// Why capture cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "this build of sluice carries no eBPF programs: build it with `cargo xtask build`, an image with `cargo xtask image`"
    )]
    NoPrograms,
    #[error(
        "missing capabilities: {missing}: run as root, or add them to the container's securityContext.capabilities"
    )]
    Capabilities { missing: String },
    #[error(
        "inside a user namespace the kernel loads no eBPF programs: run in the node's own (hostUsers: true)"
    )]
    UserNamespace,
    #[error(
        "no cgroup v2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2"
    )]
    NoCgroup2,
    #[error(
        "no cgroup of pods (`kubepods*`) below {}: is this a Kubernetes node (with cgroup v2)? Else name the group with --pods-cgroup",
        mount.display()
    )]
    NoPodsCgroup { mount: PathBuf },
    #[error(
        "several cgroups are named like the one that holds all pods: {found:?}; choose one with --pods-cgroup"
    )]
    SeveralPodsCgroups { found: Vec<PathBuf> },
    #[error("the cgroup {} cannot be used: {source}", path.display())]
    PodsCgroup { path: PathBuf, source: io::Error },
    #[error(
        "cannot watch the cgroup {} (is fs.inotify.max_user_instances or max_user_watches used up?): {source}",
        path.display()
    )]
    Watch { path: PathBuf, source: io::Error },
    #[error(
        "the agent's own cgroup is not below {}: mount the node's /sys/fs/cgroup there, and set hostPID: true",
        mount.display()
    )]
    NoOwnCgroup { mount: PathBuf },
    #[error(
        "the kernel, Linux {release}, lacks {what}, which Linux has since {since}: use nodes with Linux 5.15 or later"
    )]
    Kernel { what: &'static str, since: &'static str, release: String },
    #[error(
        "the kernel does not let this process call bpf(), although it has CAP_SYS_ADMIN: allow it in the container's seccomp profile, and in that of AppArmor or SELinux"
    )]
    Forbidden,
    #[error(
        "the kernel makes no map of sockets ({reason}), for which Linux before 6.9 asks for the capability NET_ADMIN"
    )]
    NoSocketMap { reason: io::Error },
    #[error("the kernel refused {what}: {reason}")]
    Load { what: &'static str, reason: String },
    #[error("the embedded eBPF object has no program {name:?}: build again with `cargo xtask build`")]
    ForeignObject { name: &'static str },
    #[error(
        "cannot attach {program} to {}: the BPF program {blocker} was attached without BPF_F_ALLOW_MULTI, so the \
         kernel tolerates no other there or below: detach it, or have it attached with that flag",
        group.display()
    )]
    Exclusive { program: &'static str, group: PathBuf, blocker: String },
    #[error("cannot attach {program} to {}: {reason}", group.display())]
    Attach { program: &'static str, group: PathBuf, reason: String },
    #[error("{count} listeners per pod: 1 to {PORT_SLOTS} are allowed")]
    Listeners { count: usize },
    #[error("cannot listen on 127.0.0.1: {0}")]
    Loopback(io::Error),
    #[error("cannot start the heartbeat's thread: {0}")]
    Thread(io::Error),
    #[error("cannot read /proc: {0}")]
    Proc(io::Error),
}

/// Why a pod cannot be enrolled, or not withdrawn. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("its network namespace cannot be entered: {0}")]
    Enter(io::Error),
    #[error("its loopback device cannot be examined: {0}")]
    Loopback(io::Error),
    #[error("its loopback device is down")]
    LoopbackDown,
    #[error("no listener can be opened in its network namespace: {0}")]
    Listen(io::Error),
    #[error("its network namespace has no cookie: {0}")]
    Cookie(io::Error),
    #[error("its network namespace is that of the pod with UID {owner}")]
    Shared { owner: String },
    #[error("{MAX_PODS} pods are enrolled, and no node can have more")]
    Full,
    #[error("the kernel's map of pods: {0}")]
    Register(String),
}

/// An error with all its causes in one line: aya's tell only what failed, and leave why to their source.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
