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
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported},
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
        Self::probe_by(&ThisHost, pods_cgroup)
    }

    fn probe_by(host: &impl Host, pods_cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        match missing_capabilities(&host.status().map_err(CaptureError::Proc)?) {
            missing if missing.is_empty() => {}
            missing => return Err(CaptureError::Capabilities { missing: missing.join(", ") }),
        }
        // In a user namespace capabilities say nothing: the kernel asks for those in the first one.
        if !is_first_user_namespace(&host.uid_map().map_err(CaptureError::Proc)?) {
            return Err(CaptureError::UserNamespace);
        }
        let (mount, pods) = pods(host, pods_cgroup)?;
        kernel(host)?;
        Ok(Self { pods, agent: own_group(host, mount)? })
    }

    /// Only looks where the work is.
    pub(crate) fn find(pods_cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        let (mount, pods) = pods(&ThisHost, pods_cgroup)?;
        Ok(Self { pods, agent: own_group(&ThisHost, mount)? })
    }

    /// The agent's group, if the programs on the pods' group do not cover it.
    pub(crate) fn agent_outside_of_pods(&self) -> Option<&Path> {
        (!self.agent.starts_with(&self.pods)).then_some(self.agent.as_path())
    }
}

/// Where control groups are mounted, and which of them holds all pods.
fn pods(host: &impl Host, pods_cgroup: Option<&Path>) -> Result<(PathBuf, PathBuf), CaptureError> {
    let mount = host.cgroup_mount().map_err(CaptureError::Proc)?.ok_or(CaptureError::NoCgroup2)?;
    let pods = match pods_cgroup {
        Some(path) => configured(path)?,
        None => match &mut *host.pods_groups(&mount) {
            [] => return Err(CaptureError::NoPodsCgroup { mount }),
            [only] => std::mem::take(only),
            several => return Err(CaptureError::SeveralPodsCgroups { found: several.to_vec() }),
        },
    };
    Ok((mount, pods))
}

fn own_group(host: &impl Host, mount: PathBuf) -> Result<PathBuf, CaptureError> {
    host.own_group(&mount).map_err(CaptureError::Proc)?.ok_or(CaptureError::NoOwnCgroup { mount })
}

/// What is asked. [`ThisHost`] asks the machine; tests answer for machines that lack something.
trait Host {
    /// `/proc/self/status`.
    fn status(&self) -> io::Result<String>;
    /// `/proc/self/uid_map`.
    fn uid_map(&self) -> io::Result<String>;
    fn cgroup_mount(&self) -> io::Result<Option<PathBuf>>;
    fn pods_groups(&self, mount: &Path) -> Vec<PathBuf>;
    fn own_group(&self, mount: &Path) -> io::Result<Option<PathBuf>>;
    fn kernel_release(&self) -> String;
    fn kernel_has(&self, feature: Feature) -> Result<Answer, CaptureError>;
}

struct ThisHost;

impl Host for ThisHost {
    fn status(&self) -> io::Result<String> {
        fs::read_to_string("/proc/self/status")
    }

    fn uid_map(&self) -> io::Result<String> {
        fs::read_to_string("/proc/self/uid_map")
    }

    fn cgroup_mount(&self) -> io::Result<Option<PathBuf>> {
        cgroup::mount_point()
    }

    fn pods_groups(&self, mount: &Path) -> Vec<PathBuf> {
        cgroup::find_pods(mount)
    }

    fn own_group(&self, mount: &Path) -> io::Result<Option<PathBuf>> {
        cgroup::own(mount)
    }

    fn kernel_release(&self) -> String {
        fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    }

    fn kernel_has(&self, feature: Feature) -> Result<Answer, CaptureError> {
        Ok(match feature {
            Feature::Program(kind) => Answer::of(is_program_supported(kind)),
            Feature::Map(kind) => Answer::of(is_map_supported(kind)),
            Feature::Helper(kind, helper) => Answer::of(is_helper_supported(kind, helper)),
            Feature::SocketCookie => {
                let socket = TcpListener::bind(("127.0.0.1", 0)).map_err(CaptureError::Loopback)?;
                if netns::cookie(socket.as_fd()).is_ok() { Answer::Yes } else { Answer::No }
            }
        })
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

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0);
    missing.map(|(_, name)| *name).collect()
}

fn is_first_user_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What can be asked of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Feature {
    Program(ProgramType),
    Map(MapType),
    Helper(ProgramType, BpfHelper),
    /// `SO_NETNS_COOKIE`.
    SocketCookie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// `bpf()` is not there at all.
    NoSyscall,
    /// `bpf()` is not for this process, whatever its capabilities.
    Forbidden,
    /// The probe itself went wrong. Loading will tell.
    Unclear,
}

impl Answer {
    fn of<E: AsSyscallError>(asked: Result<bool, E>) -> Self {
        match asked {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(error) => match error.as_syscall_error().and_then(|error| error.io_error.raw_os_error()) {
                Some(libc::ENOSYS) => Self::NoSyscall,
                Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
                _ => Self::Unclear,
            },
        }
    }
}

/// Of aya's errors those that a system call gave.
trait AsSyscallError {
    fn as_syscall_error(&self) -> Option<&SyscallError>;
}

impl AsSyscallError for SyscallError {
    fn as_syscall_error(&self) -> Option<&SyscallError> {
        Some(self)
    }
}

impl AsSyscallError for ProgramError {
    fn as_syscall_error(&self) -> Option<&SyscallError> {
        if let Self::SyscallError(error) = self { Some(error) } else { None }
    }
}

/// A feature without which nothing can be captured.
struct Need {
    feature: Feature,
    /// In words.
    what: &'static str,
    /// The first release of Linux that has it, and the option that it must have been built with.
    since: &'static str,
}

const fn program(kind: ProgramType, what: &'static str, since: &'static str) -> Need {
    Need { feature: Feature::Program(kind), what, since }
}

const fn helper(kind: ProgramType, helper: BpfHelper, what: &'static str, since: &'static str) -> Need {
    Need { feature: Feature::Helper(kind, helper), what, since }
}

/// The most basic first: what lacks that has none of what follows.
const NEEDS: [Need; 10] = [
    program(
        ProgramType::CgroupSockAddr,
        "eBPF programs on connect() (BPF_PROG_TYPE_CGROUP_SOCK_ADDR)",
        "4.17 with CONFIG_CGROUP_BPF",
    ),
    program(
        ProgramType::SockOps,
        "eBPF programs on TCP handshakes (BPF_PROG_TYPE_SOCK_OPS)",
        "4.13 with CONFIG_CGROUP_BPF",
    ),
    Need {
        feature: Feature::Map(MapType::SkStorage),
        what: "socket-local storage (BPF_MAP_TYPE_SK_STORAGE)",
        since: "5.2",
    },
    helper(
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_sk_storage_get,
        "bpf_sk_storage_get() on connect()",
        "5.3",
    ),
    helper(
        ProgramType::SockOps,
        BpfHelper::BPF_FUNC_sk_storage_get,
        "bpf_sk_storage_get() on TCP handshakes",
        "5.3",
    ),
    helper(
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "bpf_get_netns_cookie() on connect()",
        "5.7",
    ),
    helper(
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
        "bpf_get_current_cgroup_id() on connect()",
        "5.7",
    ),
    helper(
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_comm,
        "bpf_get_current_comm() on connect()",
        "5.7",
    ),
    Need {
        feature: Feature::SocketCookie,
        what: "network namespace cookies of sockets (SO_NETNS_COOKIE)",
        since: "5.14",
    },
    helper(
        ProgramType::SockOps,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "bpf_get_netns_cookie() on TCP handshakes",
        "5.15",
    ),
];

fn kernel(host: &impl Host) -> Result<(), CaptureError> {
    for need in &NEEDS {
        let lacks = |what, since| CaptureError::Kernel { what, since, release: host.kernel_release() };
        match host.kernel_has(need.feature)? {
            Answer::Yes | Answer::Unclear => {}
            Answer::No => return Err(lacks(need.what, need.since)),
            Answer::NoSyscall => return Err(lacks("the system call bpf()", "3.18 with CONFIG_BPF_SYSCALL")),
            Answer::Forbidden => return Err(CaptureError::Forbidden),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
