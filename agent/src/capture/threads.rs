//! Follows the threads of applications whose pods ask for it (`sluice.dev/propagation: thread`), so that it is known for which
//! request that came to a pod one of its own is sent. What the programs do is in `ebpf/src/threads.rs`.
//!
//! ```text
//!            a pod asks for it                none does any more
//!   unasked ------------------> followed --------------------------> unasked
//!       |                          |
//!       |   the kernel refuses     | the group of all pods is made anew: they are attached again
//!       +------------> refused <---+
//! ```
//!
//! The programs run for each read and write of TCP on the node, so they are attached only while there is such a pod.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs::File,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Btf, Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, FEntry, ProgramError, cgroup_sock::CgroupSockLink,
        fentry::FEntryLink, tp_btf::BtfTracePointLink,
    },
};
use sluice_ebpf::{Call, Conduct, Server, TRIAL, Tie, map, program};

use super::{CaptureError, error::with_causes, maps::Plain, programs};
use crate::{govern::handled::Sent, proxy};

/// How a server handles requests, as its threads have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Not seen for long enough: so many requests of as many as are needed have shown that threads handle one at a time.
    OnTrial { shown: u64 },
    /// Each thread handles one request at a time, and what it sends is sent for that request.
    ByThread,
    /// A thread, of this name, reads requests while others are unanswered: nothing is known by threads.
    Multiplexes { thread: String },
    /// Requests are answered, or read on, by another thread, of this name, than the one that began to read them: nothing is known
    /// by threads.
    HandsOver { thread: String },
}

impl Handling {
    /// Requests that a server has to show.
    pub const NEEDED: u64 = TRIAL;

    fn of(conduct: &Conduct) -> Self {
        let end = conduct.name.iter().position(|byte| *byte == 0).unwrap_or(conduct.name.len());
        let thread = || String::from_utf8_lossy(&conduct.name[..end]).into_owned();
        match conduct.fault {
            Conduct::MULTIPLEXES => Self::Multiplexes { thread: thread() },
            0 if conduct.shown >= TRIAL => Self::ByThread,
            0 => Self::OnTrial { shown: conduct.shown },
            _ => Self::HandsOver { thread: thread() },
        }
    }

    /// As the API says it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::OnTrial { .. } => "on_trial",
            Self::ByThread => "by_thread",
            Self::Multiplexes { .. } => "multiplexes",
            Self::HandsOver { .. } => "hands_over",
        }
    }

    /// Whether it will never be known by threads what its requests are sent for.
    pub fn is_faulty(&self) -> bool {
        matches!(self, Self::Multiplexes { .. } | Self::HandsOver { .. })
    }
}

impl Display for Handling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnTrial { shown } => {
                write!(f, "{shown} of {TRIAL} requests have shown that its threads handle one at a time")
            }
            Self::ByThread => f.write_str("its threads handle one request at a time"),
            Self::Multiplexes { thread } => {
                write!(f, "its thread \"{thread}\" has read a request while it had not answered another one")
            }
            Self::HandsOver { thread } => {
                write!(
                    f,
                    "its thread \"{thread}\" has answered, or read on, a request that another thread had read"
                )
            }
        }
    }
}

/// A port of a pod whose threads are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub port: u16,
    pub handling: Handling,
}

/// What the programs and the agent share.
pub(crate) struct Maps {
    servers: Mutex<HashMap<MapData, Plain<Server>, Plain<Conduct>>>,
    calls: Mutex<HashMap<MapData, u64, Plain<Call>>>,
    ties: HashMap<MapData, u64, Plain<Tie>>,
    is_followed: AtomicBool,
}

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
        Ok(Self {
            servers: Mutex::new(take(map::SERVERS)?.try_into()?),
            calls: Mutex::new(take(map::CALLS)?.try_into()?),
            ties: take(map::TIES)?.try_into()?,
            is_followed: AtomicBool::new(false),
        })
    }

    /// Whether the programs are attached.
    pub(crate) fn is_followed(&self) -> bool {
        self.is_followed.load(Relaxed)
    }

    /// Follows the threads that read from these ports of a pod, and from no others of `known`, which are those that were before.
    pub(crate) fn follow(&self, netns_cookie: u64, known: &mut BTreeSet<u16>, wanted: &BTreeSet<u16>) {
        if known == wanted {
            return;
        }
        let mut servers = lock(&self.servers);
        let key = |port: u16| Plain(Server::new(netns_cookie, port.into()));
        known.retain(|port| {
            wanted.contains(port) || {
                // One that cannot be removed is one that nobody reads.
                let _absent = servers.remove(&key(*port));
                false
            }
        });
        for port in wanted {
            // Without room for it nothing is tied there, as if it were on trial.
            if !known.contains(port) && servers.insert(key(*port), Plain(Conduct::default()), 0).is_ok() {
                known.insert(*port);
            }
        }
    }

    /// What the threads that read from these ports have shown.
    pub(crate) fn shown(&self, netns_cookie: u64, ports: &BTreeSet<u16>) -> Arc<[Followed]> {
        let servers = lock(&self.servers);
        let of = |port: &u16| {
            let conduct = servers.get(&Plain(Server::new(netns_cookie, (*port).into())), 0).ok()?;
            Some(Followed { port: *port, handling: Handling::of(&conduct.0) })
        };
        ports.iter().filter_map(of).collect()
    }

    /// The next request over a connection to an application; false: there is no room for that.
    pub(crate) fn sends(&self, request: Sent) -> bool {
        let call = Call { number: request.number, answered: 0 };
        lock(&self.calls).insert(request.call, Plain(call), 0).is_ok()
    }

    /// Whether the thread that has read this request, the last over its connection, was the one to respond to it.
    pub(crate) fn responded(&self, request: Sent) -> bool {
        let call = lock(&self.calls).get(&request.call, 0);
        call.is_ok_and(|Plain(call)| call.number == request.number && call.answered == request.number)
    }

    /// Such a connection has ended.
    pub(crate) fn forget(&self, call: u64) {
        let _absent = lock(&self.calls).remove(&call);
    }

    /// For which request a redirected socket is written to.
    pub(crate) fn tie(&self, socket: u64) -> proxy::Tie {
        let Ok(Plain(Tie { call, number, changes })) = self.ties.get(&socket, 0) else {
            return proxy::Tie::default();
        };
        proxy::Tie { sent: (call != 0).then_some(Sent { call, number }), changes }
    }
}

fn lock<M>(map: &Mutex<M>) -> MutexGuard<'_, M> {
    // A handle cannot be left half-changed.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What keeps the programs attached.
struct Links {
    _received: BtfTracePointLink,
    _sending: Sending,
    _release: CgroupSockLink,
    _exited: BtfTracePointLink,
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
    loaded: bool,
}

impl Threads {
    pub(crate) fn new(maps: Arc<Maps>) -> Self {
        Self { maps, state: State::Unasked, loaded: false }
    }

    /// Why threads cannot be followed on this node, where that was asked for.
    pub(crate) fn trouble(&self) -> Option<Arc<String>> {
        if let State::Refused(why) = &self.state { Some(why.clone()) } else { None }
    }

    /// Attaches the programs if a pod asks for it, and takes them off if none does.
    pub(crate) fn ask(&mut self, ebpf: &mut Ebpf, pods: &Path, asked: bool) {
        self.state = match (&self.state, asked) {
            (State::Unasked, true) => match self.attach(ebpf, pods) {
                Ok(links) => {
                    tracing::info!("threads of pods are followed (sluice.dev/propagation: thread)");
                    State::Followed(links)
                }
                Err(error) => {
                    tracing::error!(%error, "threads cannot be followed on this node: sluice.dev/propagation: thread is as trace there");
                    State::Refused(Arc::new(error.to_string()))
                }
            },
            (State::Followed(_) | State::Refused(_), false) => State::Unasked,
            (State::Unasked, false) | (State::Followed(_) | State::Refused(_), true) => return,
        };
        self.maps.is_followed.store(matches!(self.state, State::Followed(_)), Relaxed);
    }

    /// The group of all pods is another one.
    pub(crate) fn let_go(&mut self) {
        self.state = State::Unasked;
    }

    fn attach(&mut self, ebpf: &mut Ebpf, pods: &Path) -> Result<Links, CaptureError> {
        if !self.loaded {
            load(ebpf)?;
            self.loaded = true;
        }
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
        let [exited, received] = [program::EXITED, program::RECEIVED].map(|name| {
            let program: &mut BtfTracePoint = get(ebpf, name)?;
            program.attach().and_then(|id| program.take_link(id)).map_err(refused(name))
        });
        Ok(Links { _received: received?, _sending: sending, _release: release, _exited: exited? })
    }
}

/// Loads the programs. Of the two for the send path that which the kernel has a place for: its tracepoint is from Linux 6.15, and
/// functions can be looked at where the kernel has trampolines for that.
fn load(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let types = Btf::from_sys_fs()
        .map_err(|error| CaptureError::Load { what: "the kernel's types", reason: with_causes(&error) })?;
    let refused = |what: &'static str| {
        move |error: ProgramError| CaptureError::Load { what, reason: programs::brief(&error) }
    };
    for (name, place) in
        [(program::RECEIVED, "tcp_rcv_space_adjust"), (program::EXITED, "sched_process_exit")]
    {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_has_shown() {
        let named = |fault, shown, name: &[u8]| {
            let mut conduct = Conduct { fault, shown, ..Conduct::default() };
            conduct.name[..name.len()].copy_from_slice(name);
            Handling::of(&conduct)
        };
        assert_eq!(named(0, 0, b""), Handling::OnTrial { shown: 0 });
        assert_eq!(named(0, TRIAL - 1, b""), Handling::OnTrial { shown: TRIAL - 1 });
        assert_eq!(named(0, TRIAL, b""), Handling::ByThread);
        assert_eq!(
            named(Conduct::MULTIPLEXES, 9, b"node\0x"),
            Handling::Multiplexes { thread: "node".to_owned() }
        );
        let sixteen = named(Conduct::HANDS_OVER, TRIAL, b"sixteen-letters-");
        assert_eq!(sixteen, Handling::HandsOver { thread: "sixteen-letters-".to_owned() });
        assert!(sixteen.is_faulty() && !Handling::ByThread.is_faulty());
    }
}
