//! What the programs that follow threads share with the agent.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use sluice_ebpf::{Call, Conduct, Process, Server, Tie, map};

use super::{Followed, Handling};
use crate::{capture::maps::Plain, govern::handled::Sent, proxy};

/// What the programs and the agent share.
pub(crate) struct Maps {
    servers: Mutex<HashMap<MapData, Plain<Server>, u32>>,
    processes: Mutex<HashMap<MapData, Plain<Process>, Plain<Conduct>>>,
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
            processes: Mutex::new(take(map::PROCESSES)?.try_into()?),
            calls: Mutex::new(take(map::CALLS)?.try_into()?),
            ties: take(map::TIES)?.try_into()?,
            is_followed: AtomicBool::new(false),
        })
    }

    pub(super) fn set_followed(&self, followed: bool) {
        self.is_followed.store(followed, Relaxed);
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
            if !known.contains(port) && servers.insert(key(*port), 1, 0).is_ok() {
                known.insert(*port);
            }
        }
    }

    /// What the threads have shown that read from these ports, and forgets those of processes that have ended.
    pub(crate) fn shown(&self, netns_cookie: u64, ports: &BTreeSet<u16>) -> Arc<[Followed]> {
        if ports.is_empty() {
            return Arc::default();
        }
        let mut processes = lock(&self.processes);
        let known: Vec<_> = processes.iter().filter_map(Result::ok).collect();
        let mut shown = Vec::new();
        for (Plain(Process { server, process, .. }), Plain(conduct)) in known {
            if server.netns_cookie != netns_cookie {
                continue;
            }
            if !has(process) {
                // One that cannot be removed has no threads to ask about.
                let _absent = processes.remove(&Plain(Process { server, process, reserved: 0 }));
            } else if let Some(port) = u16::try_from(server.port).ok().filter(|port| ports.contains(port)) {
                shown.push(Followed { port, process, handling: Handling::of(&conduct) });
            }
        }
        shown.sort_by_key(|followed| (followed.port, followed.process));
        shown.into()
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

/// Whether the node has this process. Where that cannot be seen it has.
fn has(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).try_exists().unwrap_or(true)
}

fn lock<M>(map: &Mutex<M>) -> MutexGuard<'_, M> {
    // A handle cannot be left half-changed.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}
