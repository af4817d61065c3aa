//! What the programs that follow threads share with the agent.

use std::{
    collections::BTreeSet,
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
    lives: HashMap<MapData, u32, u64>,
    /// What `processes` had at the last look.
    seen: Mutex<Vec<(Server, Conduct)>>,
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
            lives: take(map::LIVES)?.try_into()?,
            seen: Mutex::default(),
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

    /// Looks what threads have shown, and forgets processes that have ended or run another program.
    pub(super) fn look(&self) {
        let mut processes = lock(&self.processes);
        let known: Vec<_> = processes.iter().filter_map(Result::ok).collect();
        let mut seen = Vec::new();
        for (Plain(key), Plain(conduct)) in known {
            if self.lives.get(&conduct.process, 0).ok() == Some(key.life) {
                seen.push((key.server, conduct));
            } else {
                // One that cannot be removed is seen again.
                let _absent = processes.remove(&Plain(key));
            }
        }
        seen.sort_by_key(|(server, conduct)| (server.port, conduct.process));
        *lock(&self.seen) = seen;
    }

    /// What the threads had shown at the last look that read from these ports of a pod.
    pub(crate) fn shown(&self, netns_cookie: u64, ports: &BTreeSet<u16>) -> Arc<[Followed]> {
        if ports.is_empty() {
            return Arc::default();
        }
        let of = |(server, conduct): &(Server, Conduct)| {
            let port = u16::try_from(server.port).ok().filter(|port| ports.contains(port))?;
            (server.netns_cookie == netns_cookie).then(|| Followed {
                port,
                process: conduct.process,
                handling: Handling::of(conduct),
            })
        };
        lock(&self.seen).iter().filter_map(of).collect()
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

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one can leave it half-changed.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
