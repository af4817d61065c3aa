//! What the agent needs of the machine, asked before anything is changed, so that what lacks is named in one line.
//!
//! Features are probed, not versions: distributions backport.

use std::{
    fs, io,
    net::TcpListener,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::{CaptureError, cgroup, netns};

/// Where on this machine the work is.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The control group that holds all pods.
    pub(crate) pods: PathBuf,
    /// The agent's own.
    pub(crate) agent: PathBuf,
}

impl Machine {
    /// Asks for everything; the first thing that lacks is the error.
    pub(crate) fn probe(pods_cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        capabilities()?;
        user_namespace()?;
        let mount = cgroup::mount_point().map_err(CaptureError::Proc)?.ok_or(CaptureError::NoCgroup2)?;
        let pods = match pods_cgroup {
            Some(path) => configured(path)?,
            None => match &mut *cgroup::find_pods(&mount) {
                [] => return Err(CaptureError::NoPodsCgroup { mount }),
                [only] => std::mem::take(only),
                several => return Err(CaptureError::SeveralPodsCgroups { found: several.to_vec() }),
            },
        };
        kernel()?;
        let agent =
            cgroup::own(&mount).map_err(CaptureError::Proc)?.ok_or(CaptureError::NoOwnCgroup { mount })?;
        Ok(Self { pods, agent })
    }

    /// The agent's group, if the programs on the pods' group do not cover it.
    pub(crate) fn agent_outside_of_pods(&self) -> Option<&Path> {
        (!self.agent.starts_with(&self.pods)).then_some(self.agent.as_path())
    }
}

fn configured(path: &Path) -> Result<PathBuf, CaptureError> {
    let unusable = |source| CaptureError::PodsCgroup { path: path.to_owned(), source };
    let path = path.canonicalize().map_err(unusable)?;
    // Every group but the root has this file, and no version 1 group has it.
    if !path.join("cgroup.events").is_file() {
        return Err(unusable(io::Error::other("it is no cgroup v2 group (or the root of all)")));
    }
    Ok(path)
}

/// By the number in `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 2] = [
    // Other users' /proc/PID/ns/net.
    (19, "CAP_SYS_PTRACE"),
    // setns. It includes BPF, PERFMON, and NET_ADMIN as far as programs on sockets ask for that.
    (21, "CAP_SYS_ADMIN"),
];

fn capabilities() -> Result<(), CaptureError> {
    let status = fs::read_to_string("/proc/self/status").map_err(CaptureError::Proc)?;
    match missing_capabilities(&status) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(CaptureError::Capabilities { missing: missing.join(", ") }),
    }
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0);
    missing.map(|(_, name)| *name).collect()
}

/// In a user namespace capabilities say nothing: the kernel asks for those in the first one.
fn user_namespace() -> Result<(), CaptureError> {
    let map = fs::read_to_string("/proc/self/uid_map").map_err(CaptureError::Proc)?;
    if is_first_user_namespace(&map) { Ok(()) } else { Err(CaptureError::UserNamespace) }
}

fn is_first_user_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn kernel() -> Result<(), CaptureError> {
    let lacks = |what| CaptureError::Kernel { what, release: release() };
    // An error of the probe itself is no answer: loading will tell.
    let program = |kind| is_program_supported(kind).unwrap_or(true);
    let helper = |kind, helper| is_helper_supported(kind, helper).unwrap_or(true);

    if !program(ProgramType::CgroupSockAddr) {
        return Err(lacks("BPF programs on connect() (CONFIG_CGROUP_BPF)"));
    }
    if !program(ProgramType::SockOps) {
        return Err(lacks("BPF sock_ops programs"));
    }
    if !is_map_supported(MapType::SkStorage).unwrap_or(true) {
        return Err(lacks("socket-local storage, or BTF (CONFIG_DEBUG_INFO_BTF)"));
    }
    if !helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get)
        || !helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get)
    {
        return Err(lacks("socket-local storage in the programs on connect() and sock_ops"));
    }
    if !helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie)
        || !helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie)
    {
        return Err(lacks("network namespace cookies in sock_ops programs"));
    }
    let socket = TcpListener::bind(("127.0.0.1", 0)).map_err(CaptureError::Loopback)?;
    netns::cookie(socket.as_fd())
        .map_err(|_| lacks("network namespace cookies of sockets (SO_NETNS_COOKIE)"))?;
    Ok(())
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Every pod needs some descriptors, every connection two: takes what the hard limit allows.
pub(crate) fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 && limit.rlim_cur < limit.rlim_max
    {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "cannot raise the limit of open files");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |mask: &str| format!("Name:\tsluice\nCapPrm:\t0\nCapEff:\t{mask}\nSeccomp:\t0\n");
        assert_eq!(missing_capabilities(&status("000001ffffffffff")), [""; 0]);
        assert_eq!(missing_capabilities(&status("0000000000000000")), ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        // What Docker gives a container by default.
        assert_eq!(missing_capabilities(&status("00000000a80425fb")).len(), 2);
        assert_eq!(missing_capabilities(&status("0000000000280000")), [""; 0]);
        assert_eq!(missing_capabilities(&status("0000000000200000")), ["CAP_SYS_PTRACE"]);
    }

    #[test]
    fn user_namespaces_are_told_apart() {
        assert!(is_first_user_namespace("         0          0 4294967295\n"));
        assert!(!is_first_user_namespace("         0       1000          1\n"));
        assert!(!is_first_user_namespace("         0     100000      65536\n"));
        assert!(!is_first_user_namespace(""));
    }

    #[test]
    fn a_pods_group_that_is_none_is_refused_by_name() {
        let missing = configured(Path::new("/nowhere/kubepods")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/kubepods"), "{missing}");
        let directory = tempfile::tempdir().unwrap();
        let plain = configured(directory.path()).unwrap_err().to_string();
        assert!(plain.contains("no cgroup v2"), "{plain}");
    }

    #[test]
    fn an_agent_among_the_pods_is_covered_already() {
        let machine = |agent: &str| Machine { pods: "/c/kubepods".into(), agent: agent.into() };
        assert_eq!(machine("/c/kubepods/podx/y").agent_outside_of_pods(), None);
        assert_eq!(machine("/c/system.slice").agent_outside_of_pods(), Some(Path::new("/c/system.slice")));
        assert_eq!(machine("/c").agent_outside_of_pods(), Some(Path::new("/c")));
    }
}
