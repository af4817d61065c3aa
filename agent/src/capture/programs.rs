//! The eBPF programs: loads them, attaches them, and takes them off again.
//!
//! The process holds every link, and nothing is pinned but what `refuse` pins where a policy asks for it: when the process ends,
//! however it ends, the kernel detaches the programs and frees the maps, and the next connect goes direct.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapType},
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, SkLookup, SockOps,
        cgroup_sock::CgroupSockLink, cgroup_sock_addr::CgroupSockAddrLink, sk_lookup::SkLookupLink,
        sock_ops::SockOpsLink,
    },
};
use sluice_ebpf::{global, map, program};

use super::{CaptureError, descriptors, error::with_causes, exclusive, logs, maps::Maps, probe::Machine};

/// The compiled programs, where this build has them (see `build.rs`).
const OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// The size in bytes of the object that this build carries; `None` if it carries none, and cannot capture.
pub fn embedded() -> Option<usize> {
    OBJECT.map(<[u8]>::len)
}

/// Links that keep the programs attached.
pub(crate) struct Links {
    connect: Vec<CgroupSockAddrLink>,
    /// The same as descriptors of our choice, where that was possible; then the field above is empty.
    lifted: Vec<OwnedFd>,
    _established: Vec<SockOpsLink>,
    _names: Vec<CgroupSockAddrLink>,
    _release: Option<CgroupSockLink>,
    flows: Option<FlowLinks>,
    /// Counts who listens; and applications are told who their clients are. Without it nothing is steered: why there is none.
    listeners: Result<SockOpsLink, Arc<String>>,
    /// On the network namespaces of pods, by their cookies.
    steering: HashMap<u64, SkLookupLink>,
    /// Connections are no longer to be redirected, and never again.
    stopped: bool,
}

/// What counts pods' connections.
type FlowLinks = (SockOpsLink, Vec<CgroupSockAddrLink>);

impl Links {
    /// Takes the programs off `connect()`: from now on every connect goes direct, or to another agent. What is redirected
    /// already still arrives with its original destination.
    pub(crate) fn detach_connect(&mut self) {
        self.stopped = true;
        self.steering.clear();
        self.let_go();
    }

    /// Why connections from outside cannot be steered; `None`: they can.
    pub(crate) fn steering_trouble(&self) -> Option<Arc<String>> {
        self.listeners.as_ref().err().cloned()
    }

    /// Takes over what keeps a pod's connections from outside steered. Once nothing is to be redirected any more, nor is that.
    pub(crate) fn keep_steering(&mut self, netns_cookie: u64, link: SkLookupLink) {
        if !self.stopped {
            self.steering.insert(netns_cookie, link);
        }
    }

    /// What keeps pods' connections from outside steered; it does not hang on the group of all pods.
    pub(crate) fn steering(&mut self) -> &mut HashMap<u64, SkLookupLink> {
        &mut self.steering
    }

    /// A pod's connections from outside go direct.
    pub(crate) fn stop_steering(&mut self, netns_cookie: u64) {
        self.steering.remove(&netns_cookie);
    }

    /// Takes the programs off `connect()`, to be attached again.
    pub(crate) fn let_go(&mut self) {
        self.connect.clear();
        self.lifted.clear();
    }

    /// Whether pods' connections are counted.
    pub(crate) fn follow(&self) -> bool {
        self.flows.is_some()
    }

    /// Whether [`Self::detach_connect`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// Detaches the programs from `connect()` when it is dropped: for whoever keeps the listeners open, however it ends.
pub(crate) struct FailOpen(pub(crate) Arc<Mutex<Links>>);

impl Drop for FailOpen {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).detach_connect();
    }
}

/// The programs, loaded but not attached.
pub(crate) struct Programs {
    ebpf: Ebpf,
    /// The program that follows handshakes.
    established: &'static str,
    /// Why connections from outside cannot be steered.
    steering_trouble: Option<Arc<String>>,
}

impl Programs {
    /// Loads the programs that are embedded in this build. Takes about 40 ms.
    pub(crate) fn load(agent_cgroup_id: u64) -> Result<(Self, Maps), CaptureError> {
        let object = OBJECT.ok_or(CaptureError::NoPrograms)?;
        let level = logs::level();
        let load = |object: &[u8]| {
            EbpfLoader::new()
                .override_global(global::AGENT_CGROUP, &agent_cgroup_id, true)
                .override_global(aya_log::LEVEL, &level, true)
                .load(object)
        };
        let mut no_socket_map = None;
        let loaded = match load(object) {
            Err(EbpfError::MapError(MapError::CreateError { name, io_error, .. }))
                if name == map::LISTENERS =>
            {
                no_socket_map = Some(CaptureError::NoSocketMap { reason: io_error });
                load(&without_listeners(object).ok_or(CaptureError::ForeignObject { name: map::LISTENERS })?)
            }
            loaded => loaded,
        };
        let mut ebpf = loaded.map_err(|error| load_error("the maps", &error))?;

        // The maps stay in `ebpf` until the programs are loaded: they are loaded with the maps' descriptors.
        for name in [program::CONNECT4, program::CONNECT6] {
            let program = sock_addr(&mut ebpf, name)?;
            program.load().map_err(|error| load_error(name, &error.into()))?;
        }
        let established = match sock_ops(&mut ebpf, program::ESTABLISHED_MPTCP)?.load() {
            Ok(()) => program::ESTABLISHED_MPTCP,
            Err(error) => {
                tracing::debug!(%error, "MPTCP sockets will see the redirected address");
                let name = program::ESTABLISHED;
                sock_ops(&mut ebpf, name)?.load().map_err(|error| load_error(name, &error.into()))?;
                name
            }
        };
        for name in NAMES {
            if let Err(error) = sock_addr(&mut ebpf, name)?.load() {
                // Cosmetic, and newer than the rest.
                tracing::info!(
                    program = name,
                    error = brief(&error),
                    "applications will see the redirected address"
                );
            }
        }
        if let Err(error) = sock_release(&mut ebpf)?.load() {
            without_release(&error);
        }
        logs::forward(&mut ebpf);
        let maps = Maps::take(&mut ebpf).map_err(|error| load_error("the maps", &error.into()))?;
        let steering_trouble = no_socket_map.and_then(|error| without_steering::<()>(Err(error)).err());
        Ok((Self { ebpf, established, steering_trouble }, maps))
    }

    /// Loads what counts pods' connections. A kernel that does not take it captures all the same.
    pub(crate) fn load_flows(&mut self) -> bool {
        let ebpf = &mut self.ebpf;
        let mut load = || -> Result<(), CaptureError> {
            for name in FLOWS {
                sock_addr(ebpf, name)?.load().map_err(|error| load_error(name, &error.into()))?;
            }
            let name = program::FLOWS;
            sock_ops(ebpf, name)?.load().map_err(|error| load_error(name, &error.into()))
        };
        without_flows(load()).is_some()
    }

    /// Loads what steers connections from outside. A kernel that does not take it captures what goes out all the same.
    pub(crate) fn load_steering(&mut self) -> Option<SkLookup> {
        if self.steering_trouble.is_some() {
            return None;
        }
        let ebpf = &mut self.ebpf;
        let mut load = || -> Result<SkLookup, CaptureError> {
            let name = program::LISTENERS;
            sock_ops(ebpf, name)?.load().map_err(|error| load_error(name, &error.into()))?;
            let name = program::STEER;
            let wrong = || CaptureError::ForeignObject { name };
            let program = ebpf.program_mut(name).ok_or_else(wrong)?;
            let program: &mut SkLookup = program.try_into().map_err(|_| wrong())?;
            let handle = program.load().and_then(|()| {
                // A handle of its own, for who attaches it to one pod after the other.
                SkLookup::from_program_info(program.info()?, Cow::Borrowed(name))
            });
            handle.map_err(|error| load_error(name, &error.into()))
        };
        match without_steering(load()) {
            Ok(program) => Some(program),
            Err(why) => {
                self.steering_trouble = Some(why);
                None
            }
        }
    }

    /// Loads what refuses connections while no agent is there.
    pub(crate) fn load_refusing(&mut self) -> Result<SkLookup, Arc<String>> {
        if let Some(why) = &self.steering_trouble {
            return Err(why.clone());
        }
        let name = program::REFUSE;
        let wrong = || CaptureError::ForeignObject { name };
        let program = self.ebpf.program_mut(name).ok_or_else(wrong);
        let program = program.and_then(|program| <&mut SkLookup>::try_from(program).map_err(|_| wrong()));
        let handle = program.and_then(|program| {
            let handle = program.load().and_then(|()| {
                // A handle of its own, for who attaches it to one pod after the other.
                SkLookup::from_program_info(program.info()?, Cow::Borrowed(name))
            });
            handle.map_err(|error| load_error(name, &error.into()))
        });
        handle.map_err(|error| {
            tracing::error!(%error, "whenUnattended: Refuse of AccessPolicies is not active on this node");
            Arc::new(error.to_string())
        })
    }

    fn attach_listeners(
        &mut self,
        pods: &File,
        machine: &Machine,
        names: &[CgroupSockAddrLink],
    ) -> Result<SockOpsLink, CaptureError> {
        let name = program::GETPEERNAME4;
        if names.len() < NAMES.len() {
            let reason = "applications would not see their clients' addresses".to_owned();
            return Err(CaptureError::Attach { program: name, group: machine.pods.clone(), reason });
        }
        let name = program::LISTENERS;
        let program = sock_ops(&mut self.ebpf, name)?;
        let attached = program.attach(pods, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
        attached.map_err(|error| attach_error(name, &machine.pods, &error))
    }

    /// The object that they are of.
    pub(super) fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The kernel's number of a loaded program.
    pub(crate) fn id(&mut self, name: &'static str) -> Option<u32> {
        Some(sock_addr(&mut self.ebpf, name).ok()?.info().ok()?.id())
    }

    fn attach_flows(&mut self, pods: &File, machine: &Machine) -> Result<FlowLinks, CaptureError> {
        // First, so that none of the agent's connections is ever taken for a pod's. Elsewhere than among the pods they
        // are not seen.
        let mut own = Vec::new();
        if machine.agent_outside_of_pods().is_none() && machine.agent != machine.pods {
            let group = open(&machine.agent)?;
            for name in FLOWS {
                let program = sock_addr(&mut self.ebpf, name)?;
                own.push(
                    attach(program, &group).map_err(|error| attach_error(name, &machine.agent, &error))?,
                );
            }
        }
        let name = program::FLOWS;
        let program = sock_ops(&mut self.ebpf, name)?;
        let states = program
            .attach(pods, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(|error| attach_error(name, &machine.pods, &error))?;
        Ok((states, own))
    }

    /// Attaches the programs to the pods' group, and the one that follows handshakes also where the agent's own
    /// sockets are. `follow`: also those that count pods' connections, if it can be.
    pub(crate) fn attach(&mut self, machine: &Machine, follow: bool) -> Result<Links, CaptureError> {
        let pods = open(&machine.pods)?;

        // An agent above the pods covers them: the program would run twice.
        let mut groups = Vec::new();
        match machine.agent_outside_of_pods() {
            None => groups.push(machine.pods.as_path()),
            Some(agent) if machine.pods.starts_with(agent) => groups.push(agent),
            Some(agent) => groups.extend([machine.pods.as_path(), agent]),
        }
        let mut established = Vec::new();
        for group in groups {
            let program = sock_ops(&mut self.ebpf, self.established)?;
            let file = open(group)?;
            // With links `Single` means no flags, and the kernel adds "multi" by itself.
            let link = program
                .attach(&file, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|error| attach_error(self.established, group, &error))?;
            established.push(link);
        }

        // Before connect, so that no connection is ever seen without its name.
        let mut names = Vec::new();
        for name in NAMES {
            let program = sock_addr(&mut self.ebpf, name)?;
            if program.fd().is_ok() {
                match attach(program, &pods) {
                    Ok(link) => names.push(link),
                    Err(error) => tracing::info!(
                        program = name,
                        error = brief(&error),
                        "applications will see the redirected address"
                    ),
                }
            }
        }
        // Before connect, too: of each socket that is redirected it is to be known when it is closed.
        let program = sock_release(&mut self.ebpf)?;
        let release = if program.fd().is_ok() {
            let attached =
                program.attach(&pods, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
            attached.inspect_err(without_release).ok()
        } else {
            None
        };
        let flows = if follow { without_flows(self.attach_flows(&pods, machine)) } else { None };
        let listeners = match &self.steering_trouble {
            Some(why) => Err(why.clone()),
            None => without_steering(self.attach_listeners(&pods, machine, &names)),
        };
        let others = descriptors::links();
        let mut connect = Vec::new();
        for name in [program::CONNECT4, program::CONNECT6] {
            let program = sock_addr(&mut self.ebpf, name)?;
            connect.push(attach(program, &pods).map_err(|error| attach_error(name, &machine.pods, &error))?);
        }
        let lifted = others
            .and_then(|others| descriptors::lift(descriptors::links()?.difference(&others).copied()))
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot have the programs detached first if the agent is killed: some connects would be refused then");
                Vec::new()
            });
        if !lifted.is_empty() {
            connect.clear();
        }
        Ok(Links {
            connect,
            lifted,
            _established: established,
            _names: names,
            _release: release,
            flows,
            listeners,
            steering: HashMap::new(),
            stopped: false,
        })
    }
}

/// The object with another map in the place of that of listeners. Before Linux 6.9 only `CAP_NET_ADMIN` may make one of sockets
/// (`sock_map_alloc` in `net/core/sock_map.c`), whatever else a process may; the program that steers does not load then, and all
/// others do. `None`: the object has none.
fn without_listeners(object: &[u8]) -> Option<Vec<u8>> {
    // The type, the sizes of keys and values, how many there are, and flags: as `bpf_map_def` has them.
    let definition = |kind: MapType| {
        [kind as u32, 4, 4, sluice_ebpf::MAX_LISTENERS as u32, 0].map(u32::to_ne_bytes).concat()
    };
    let listeners = definition(MapType::SockMap);
    let at = memchr::memmem::find(object, &listeners)?;
    let mut object = object.to_vec();
    object[at..at + listeners.len()].copy_from_slice(&definition(MapType::Array));
    Some(object)
}

const NAMES: [&str; 4] =
    [program::GETPEERNAME4, program::GETPEERNAME6, program::GETSOCKNAME4, program::GETSOCKNAME6];

const FLOWS: [&str; 2] = [program::FLOW_CONNECT4, program::FLOW_CONNECT6];

fn without_flows<T>(outcome: Result<T, CaptureError>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            tracing::warn!(%error, "connections are redirected, but not counted: there are no sluice_flow_ metrics");
        })
        .ok()
}

fn without_steering<T>(outcome: Result<T, CaptureError>) -> Result<T, Arc<String>> {
    outcome.map_err(|error| {
        tracing::error!(%error, "AccessPolicies are not enforced on this node, whose pods are called directly, and sluice.dev/propagation has no effect; calls of its pods are routed and protected as ever");
        Arc::new(error.to_string())
    })
}

/// Waiting for an endpoint that is silent, a client that has closed its connection is taken for one that still listens.
fn without_release(error: &ProgramError) {
    tracing::warn!(
        program = program::RELEASE,
        error = brief(error),
        "clients that give up are not noticed while their endpoint is silent"
    );
}

fn sock_release(ebpf: &mut Ebpf) -> Result<&mut CgroupSock, CaptureError> {
    let name = program::RELEASE;
    let program = ebpf.program_mut(name).ok_or(CaptureError::ForeignObject { name })?;
    program.try_into().map_err(|_| CaptureError::ForeignObject { name })
}

fn attach(program: &mut CgroupSockAddr, group: &File) -> Result<CgroupSockAddrLink, ProgramError> {
    let id = program.attach(group, CgroupAttachMode::Single)?;
    program.take_link(id)
}

fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, CaptureError> {
    let program = ebpf.program_mut(name).ok_or(CaptureError::ForeignObject { name })?;
    program.try_into().map_err(|_| CaptureError::ForeignObject { name })
}

fn sock_ops<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SockOps, CaptureError> {
    let program = ebpf.program_mut(name).ok_or(CaptureError::ForeignObject { name })?;
    program.try_into().map_err(|_| CaptureError::ForeignObject { name })
}

fn open(group: &Path) -> Result<File, CaptureError> {
    File::open(group).map_err(|source| CaptureError::PodsCgroup { path: group.to_owned(), source })
}

fn load_error(what: &'static str, error: &EbpfError) -> CaptureError {
    if let EbpfError::ProgramError(error) = error {
        tracing::debug!(program = what, %error, "the kernel refused a program");
        return CaptureError::Load { what, reason: brief(error) };
    }
    CaptureError::Load { what, reason: with_causes(error) }
}

/// In one line: the verifier's log has thousands, and its last but one says what is wrong.
pub(super) fn brief(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
            let verdict =
                lines.rfind(|line| !line.starts_with("processed ") && !line.starts_with("verification time"));
            format!("{io_error} ({})", verdict.unwrap_or("the verifier says nothing"))
        }
        ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        other => with_causes(other),
    }
}

fn attach_error(program: &'static str, group: &Path, error: &ProgramError) -> CaptureError {
    if let ProgramError::SyscallError(syscall) = error
        && syscall.io_error.kind() == io::ErrorKind::PermissionDenied
        && let Some(blocker) = exclusive::find(program, group)
    {
        return CaptureError::Exclusive { program, group: group.to_owned(), blocker };
    }
    CaptureError::Attach { program, group: group.to_owned(), reason: brief(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_listeners_is_found_in_the_object_once() {
        // A build without programs has nothing to find it in.
        let Some(object) = OBJECT else { return };
        let other = without_listeners(object).expect("it is there");
        assert_eq!(other.len(), object.len());
        assert_eq!(
            other.iter().zip(object).filter(|(one, other)| one != other).count(),
            1,
            "but for its type"
        );
        assert!(without_listeners(&other).is_none());
    }
}
