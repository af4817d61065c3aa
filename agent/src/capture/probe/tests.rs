use std::cell::RefCell;

use super::*;

/// A machine that has everything, but for what a test takes away.
struct Machinery {
    status: io::Result<&'static str>,
    uid_map: &'static str,
    mount: Option<&'static str>,
    pods: Vec<&'static str>,
    own: Option<&'static str>,
    release: &'static str,
    /// The answer to one question that is not "yes".
    lacks: Option<(Feature, Answer)>,
    asked: RefCell<Vec<Feature>>,
}

const ALL_CAPABILITIES: &str = "Name:\tsluice\nCapEff:\t000001ffffffffff\n";

fn whole() -> Machinery {
    Machinery {
        status: Ok(ALL_CAPABILITIES),
        uid_map: "         0          0 4294967295\n",
        mount: Some("/sys/fs/cgroup"),
        pods: vec!["/sys/fs/cgroup/kubepods.slice"],
        own: Some("/sys/fs/cgroup/kubepods.slice/kubepods-podx.slice/agent"),
        release: "6.1.0-44-amd64",
        lacks: None,
        asked: RefCell::default(),
    }
}

impl Host for Machinery {
    fn status(&self) -> io::Result<String> {
        match &self.status {
            Ok(text) => Ok((*text).to_owned()),
            Err(error) => Err(error.kind().into()),
        }
    }

    fn uid_map(&self) -> io::Result<String> {
        Ok(self.uid_map.to_owned())
    }

    fn cgroup_mount(&self) -> io::Result<Option<PathBuf>> {
        Ok(self.mount.map(PathBuf::from))
    }

    fn pods_groups(&self, mount: &Path) -> Vec<PathBuf> {
        assert_eq!(Some(mount), self.mount.map(Path::new));
        self.pods.iter().map(PathBuf::from).collect()
    }

    fn own_group(&self, mount: &Path) -> io::Result<Option<PathBuf>> {
        assert_eq!(Some(mount), self.mount.map(Path::new));
        Ok(self.own.map(PathBuf::from))
    }

    fn kernel_release(&self) -> String {
        self.release.to_owned()
    }

    fn kernel_has(&self, feature: Feature) -> Result<Answer, CaptureError> {
        self.asked.borrow_mut().push(feature);
        Ok(self.lacks.filter(|(lacking, _)| *lacking == feature).map_or(Answer::Yes, |(_, answer)| answer))
    }
}

fn said(host: &Machinery) -> String {
    Machine::probe_by(host, None).expect_err("something is missing").to_string()
}

#[test]
fn a_machine_that_has_everything_is_taken() {
    let host = whole();
    let machine = Machine::probe_by(&host, None).expect("nothing is missing");
    assert_eq!(machine.pods, Path::new("/sys/fs/cgroup/kubepods.slice"));
    assert_eq!(machine.agent_outside_of_pods(), None);
    assert!(host.asked.borrow().iter().eq(NEEDS.iter().map(|need| &need.feature)), "each is asked once");
}

#[test]
fn what_a_machine_lacks_is_named_in_one_line_with_what_to_do() {
    for (host, wanted) in [
        (
            Machinery { status: Ok("CapEff:\t00000000a80425fb\n"), ..whole() },
            "missing capabilities: CAP_SYS_PTRACE, CAP_SYS_ADMIN: run as root, or add them to the container's \
             securityContext.capabilities",
        ),
        (
            Machinery { status: Ok("CapEff:\t0000000000200000\n"), ..whole() },
            "missing capabilities: CAP_SYS_PTRACE: run as root, or add them to the container's \
             securityContext.capabilities",
        ),
        (
            Machinery { status: Err(io::ErrorKind::NotFound.into()), ..whole() },
            "cannot read /proc: entity not found",
        ),
        (
            Machinery { uid_map: "         0     100000      65536\n", ..whole() },
            "inside a user namespace the kernel loads no eBPF programs: run in the node's own (hostUsers: true)",
        ),
        (
            Machinery { mount: None, ..whole() },
            "no cgroup v2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2",
        ),
        (
            Machinery { pods: Vec::new(), ..whole() },
            "no cgroup of pods (`kubepods*`) below /sys/fs/cgroup: is this a Kubernetes node (with cgroup v2)? \
             Else name the group with --pods-cgroup",
        ),
        (
            Machinery { pods: vec!["/c/kubepods", "/c/kubepods.slice"], ..whole() },
            "several cgroups are named like the one that holds all pods: [\"/c/kubepods\", \
             \"/c/kubepods.slice\"]; choose one with --pods-cgroup",
        ),
        (
            Machinery { own: None, ..whole() },
            "the agent's own cgroup is not below /sys/fs/cgroup: mount the node's /sys/fs/cgroup there, and set \
             hostPID: true",
        ),
    ] {
        assert_eq!(said(&host), wanted);
    }
}

/// The oldest kernel without each, and what is said there. A new requirement needs its line here.
#[test]
fn what_a_kernel_lacks_is_named_with_the_release_that_has_it() {
    let table = [
        (
            "4.14.336",
            "eBPF programs on connect() (BPF_PROG_TYPE_CGROUP_SOCK_ADDR), which Linux has since 4.17 with CONFIG_CGROUP_BPF",
        ),
        (
            "6.1.0",
            "eBPF programs on TCP handshakes (BPF_PROG_TYPE_SOCK_OPS), which Linux has since 4.13 with CONFIG_CGROUP_BPF",
        ),
        ("5.1.21", "socket-local storage (BPF_MAP_TYPE_SK_STORAGE), which Linux has since 5.2"),
        ("5.2.21", "bpf_sk_storage_get() on connect(), which Linux has since 5.3"),
        ("5.2.21", "bpf_sk_storage_get() on TCP handshakes, which Linux has since 5.3"),
        ("5.4.0-216-generic", "bpf_get_netns_cookie() on connect(), which Linux has since 5.7"),
        ("5.4.0-216-generic", "bpf_get_current_cgroup_id() on connect(), which Linux has since 5.7"),
        ("5.4.0-216-generic", "bpf_get_current_comm() on connect(), which Linux has since 5.7"),
        (
            "5.10.0-35-amd64",
            "network namespace cookies of sockets (SO_NETNS_COOKIE), which Linux has since 5.14",
        ),
        ("5.14.21", "bpf_get_netns_cookie() on TCP handshakes, which Linux has since 5.15"),
    ];
    assert_eq!(table.len(), NEEDS.len());
    for ((release, lacks), need) in table.into_iter().zip(&NEEDS) {
        let host = Machinery { release, lacks: Some((need.feature, Answer::No)), ..whole() };
        let wanted =
            format!("the kernel, Linux {release}, lacks {lacks}: use nodes with Linux 5.15 or later");
        assert_eq!(said(&host), wanted);
    }
}

#[test]
fn a_kernel_that_has_or_allows_no_bpf_at_all_is_told_from_one_that_lacks_a_feature() {
    for need in NEEDS.iter().filter(|need| need.feature != Feature::SocketCookie) {
        let host = |answer| Machinery { lacks: Some((need.feature, answer)), ..whole() };
        assert_eq!(
            said(&host(Answer::NoSyscall)),
            "the kernel, Linux 6.1.0-44-amd64, lacks the system call bpf(), which Linux has since 3.18 with \
             CONFIG_BPF_SYSCALL: use nodes with Linux 5.15 or later"
        );
        assert_eq!(
            said(&host(Answer::Forbidden)),
            "the kernel does not let this process call bpf(), although it has CAP_SYS_ADMIN: allow it in the \
             container's seccomp profile, and in that of AppArmor or SELinux"
        );
        // A probe that goes wrong is no answer.
        assert!(Machine::probe_by(&host(Answer::Unclear), None).is_ok(), "{}", need.what);
    }
}

#[test]
fn the_first_thing_that_lacks_is_said_before_anything_depends_on_it() {
    let host = Machinery { mount: None, pods: Vec::new(), own: None, ..whole() };
    assert!(said(&host).starts_with("no cgroup v2"), "{}", said(&host));
    assert_eq!(*host.asked.borrow(), [], "the kernel is not asked where no pods are");
    let host = Machinery { lacks: Some((NEEDS[0].feature, Answer::No)), own: None, ..whole() };
    assert!(said(&host).starts_with("the kernel"), "{}", said(&host));
    assert_eq!(host.asked.borrow().last(), Some(&NEEDS[0].feature));
}

#[test]
fn errors_of_probes_are_read() {
    let failed = |code| {
        let error = || SyscallError { call: "bpf_prog_load", io_error: io::Error::from_raw_os_error(code) };
        let of_map = Answer::of(Err::<bool, _>(error()));
        assert_eq!(of_map, Answer::of(Err::<bool, _>(ProgramError::SyscallError(error()))), "{code}");
        of_map
    };
    assert_eq!(failed(libc::ENOSYS), Answer::NoSyscall);
    assert_eq!(failed(libc::EPERM), Answer::Forbidden);
    assert_eq!(failed(libc::EACCES), Answer::Forbidden);
    assert_eq!(failed(libc::ENOMEM), Answer::Unclear);
    assert_eq!(Answer::of(Err::<bool, _>(ProgramError::NotLoaded)), Answer::Unclear);
    assert_eq!(Answer::of(Ok::<_, SyscallError>(true)), Answer::Yes);
    assert_eq!(Answer::of(Ok::<_, SyscallError>(false)), Answer::No);
}

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
