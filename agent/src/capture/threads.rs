//! Follows the threads of applications whose pods ask for it (`sluice.dev/propagation: thread`), so that it is known for which
//! request that came to a pod one of its own is sent. What the programs do is in `ebpf/src/threads.rs`.
//!
//! ```text
//!              a pod asks for it
//!            --------------------->  followed
//!   unasked  <---------------------
//!            none does any more, or the group of all pods is another one: they are attached to that
//!      |  ^
//!      |  +---------------- none does any more, or another group ----------------+
//!      +------------ a pod asks for it, and the kernel refuses -------------> refused
//! ```
//!
//! The programs run for each read and write of TCP on the node, so they are attached only while there is such a pod.

mod handling;
mod maps;

use std::{fs::File, path::Path, sync::Arc};

use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, FEntry, ProgramError, cgroup_sock::CgroupSockLink,
        fentry::FEntryLink, tp_btf::BtfTracePointLink,
    },
};
use sluice_ebpf::program;

pub use self::handling::{Followed, Handling};
pub(crate) use self::maps::Maps;
use super::{CaptureError, error::with_causes, programs};

/// What keeps the programs attached.
struct Links {
    _received: BtfTracePointLink,
    _sending: Sending,
    _release: CgroupSockLink,
    _exited: BtfTracePointLink,
    _execed: BtfTracePointLink,
}

/// Where the send path is looked at.
#[expect(dead_code, reason = "held, so that the program stays attached")]
enum Sending {
    Tracepoint(BtfTracePointLink),
    Function(FEntryLink),
}

#[expect(dead_code, reason = "held, so that the programs stay attached")]
enum State {
    Unasked,
    Followed(Links),
    Refused(Arc<String>),
}

/// The programs, and whether they are attached.
pub(crate) struct Threads {
    maps: Arc<Maps>,
    state: State,
    loaded: Loaded,
}

/// What the kernel said to the programs: they can be given to it once.
enum Loaded {
    NotYet,
    Yes,
    Refused(Arc<String>),
}

impl Threads {
    pub(crate) fn new(maps: Arc<Maps>) -> Self {
        Self { maps, state: State::Unasked, loaded: Loaded::NotYet }
    }

    /// Why threads cannot be followed on this node, where that was asked for.
    pub(crate) fn trouble(&self) -> Option<Arc<String>> {
        if let State::Refused(why) = &self.state { Some(why.clone()) } else { None }
    }

    /// Attaches the programs if a pod asks for it, and takes them off if none does.
    pub(crate) fn ask(&mut self, ebpf: &mut Ebpf, pods: &Path, asked: bool) {
        self.state = match (&self.state, asked) {
            (State::Unasked, true) => {
                match self.load(ebpf).and_then(|()| attach(ebpf, pods).map_err(|error| told(&error))) {
                    Ok(links) => {
                        tracing::info!("threads of pods are followed (sluice.dev/propagation: thread)");
                        State::Followed(links)
                    }
                    Err(why) => {
                        tracing::error!(
                            "threads cannot be followed on this node, where sluice.dev/propagation: thread is as trace: {why}"
                        );
                        State::Refused(why)
                    }
                }
            }
            (State::Followed(_) | State::Refused(_), false) => State::Unasked,
            (State::Unasked, false) | (State::Followed(_) | State::Refused(_), true) => return,
        };
        self.maps.set_followed(matches!(self.state, State::Followed(_)));
    }

    /// Looks what threads have shown, if they are followed.
    pub(crate) fn look(&self) {
        if matches!(self.state, State::Followed(_)) {
            self.maps.look();
        }
    }

    /// The group of all pods is another one.
    pub(crate) fn let_go(&mut self) {
        self.state = State::Unasked;
    }

    fn load(&mut self, ebpf: &mut Ebpf) -> Result<(), Arc<String>> {
        if matches!(self.loaded, Loaded::NotYet) {
            self.loaded = match load(ebpf) {
                Ok(()) => Loaded::Yes,
                Err(error) => Loaded::Refused(told(&error)),
            };
        }
        match &self.loaded {
            Loaded::Refused(why) => Err(why.clone()),
            Loaded::NotYet | Loaded::Yes => Ok(()),
        }
    }
}

fn told(error: &CaptureError) -> Arc<String> {
    Arc::new(error.to_string())
}

fn attach(ebpf: &mut Ebpf, pods: &Path) -> Result<Links, CaptureError> {
    let refused = |name: &'static str| {
        move |error: ProgramError| CaptureError::Load { what: name, reason: programs::brief(&error) }
    };
    let name = program::THREADS_RELEASE;
    let group =
        File::open(pods).map_err(|source| CaptureError::PodsCgroup { path: pods.to_owned(), source })?;
    let release: &mut CgroupSock = get(ebpf, name)?;
    let release = release.attach(&group, CgroupAttachMode::Single).and_then(|id| release.take_link(id));
    let release = release.map_err(refused(name))?;
    let name = program::SENDING;
    let sending: &mut BtfTracePoint = get(ebpf, name)?;
    let sending = if sending.fd().is_ok() {
        let link = sending.attach().and_then(|id| sending.take_link(id)).map_err(refused(name))?;
        Sending::Tracepoint(link)
    } else {
        let name = program::SENDING_FENTRY;
        let sending: &mut FEntry = get(ebpf, name)?;
        let link = sending.attach().and_then(|id| sending.take_link(id)).map_err(refused(name))?;
        Sending::Function(link)
    };
    let [exited, execed, received] = [program::EXITED, program::EXECED, program::RECEIVED].map(|name| {
        let program: &mut BtfTracePoint = get(ebpf, name)?;
        program.attach().and_then(|id| program.take_link(id)).map_err(refused(name))
    });
    Ok(Links {
        _received: received?,
        _sending: sending,
        _release: release,
        _exited: exited?,
        _execed: execed?,
    })
}

/// Loads the programs. Of the two for the send path that which the kernel has a place for: its tracepoint is from Linux 6.15, and
/// functions can be looked at where the kernel has trampolines for that.
fn load(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let types = Btf::from_sys_fs()
        .map_err(|error| CaptureError::Load { what: "the kernel's types", reason: with_causes(&error) })?;
    let refused = |what: &'static str| {
        move |error: ProgramError| CaptureError::Load { what, reason: programs::brief(&error) }
    };
    for (name, place) in [
        (program::RECEIVED, "tcp_rcv_space_adjust"),
        (program::EXITED, "sched_process_exit"),
        (program::EXECED, "sched_process_exec"),
    ] {
        get::<BtfTracePoint>(ebpf, name)?.load(place, &types).map_err(refused(name))?;
    }
    let tracepoint = get::<BtfTracePoint>(ebpf, program::SENDING)?.load("tcp_sendmsg_locked", &types);
    if let Err(error) = tracepoint {
        tracing::debug!(
            error = programs::brief(&error),
            "no tracepoint where TCP sends: looking at the function"
        );
        let name = program::SENDING_FENTRY;
        get::<FEntry>(ebpf, name)?.load("tcp_sendmsg", &types).map_err(refused(name))?;
    }
    let name = program::THREADS_RELEASE;
    get::<CgroupSock>(ebpf, name)?.load().map_err(refused(name))
}

fn get<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, CaptureError>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name).ok_or(CaptureError::ForeignObject { name })?;
    program.try_into().map_err(|_| CaptureError::ForeignObject { name })
}
