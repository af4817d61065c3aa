//! The maps that the agent shares with the programs, with the types of the ABI.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, SkStorage, SockMap},
};
use sluice_ebpf::{
    Address, Call, Client, Conduct, Counter, FlowCounts, FlowKey, Listening, Origin, Place, Pod, Process,
    Refused, Server, Steered, Tie, map,
};

use super::{EnrolError, error::with_causes, threads};
use crate::proxy;

/// A value of the ABI, as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `repr(C)` of integers without padding, so any bytes are one, and all of its bytes are initialised.
unsafe impl aya::Pod for Plain<Address> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Origin> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Pod> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<FlowKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<FlowCounts> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Steered> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Place> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Refused> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Client> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Server> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Conduct> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Process> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Call> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Tie> {}

/// All of them. Each has one user.
pub(crate) struct Maps {
    pub(crate) pods: Pods,
    pub(crate) services: Services,
    pub(crate) accepted: Accepted,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) counters: Counters,
    pub(crate) flows: Flows,
    pub(crate) inbound: Inbound,
    pub(crate) refuse: Refuse,
    pub(crate) threads: Arc<threads::Maps>,
}

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let threads = Arc::new(threads::Maps::take(ebpf)?);
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
        Ok(Self {
            pods: Pods(Mutex::new(take(map::PODS)?.try_into()?)),
            services: Services(take(map::SERVICES)?.try_into()?),
            accepted: Accepted {
                origins: sk_storage(take(map::ACCEPTED)?)?,
                released: take(map::RELEASED)?.try_into()?,
            },
            heartbeat: Heartbeat(take(map::HEARTBEAT)?.try_into()?),
            counters: Counters(take(map::COUNTERS)?.try_into()?),
            flows: Flows(take(map::FLOWS)?.try_into()?),
            inbound: Inbound {
                steered: Mutex::new(take(map::STEERED)?.try_into()?),
                listening: Mutex::new(take(map::LISTENING)?.try_into()?),
                // Of another type where the kernel makes none of sockets.
                listeners: take(map::LISTENERS)?.try_into().ok().map(Mutex::new),
                calling: Mutex::new(take(map::CALLING)?.try_into()?),
            },
            refuse: Refuse {
                refused: Mutex::new(take(map::REFUSED)?.try_into()?),
                node: Mutex::new(take(map::NODE_ADDRESSES)?.try_into()?),
            },
            threads,
        })
    }
}

fn sk_storage(map: Map) -> Result<SkStorage<MapData, Plain<Origin>>, MapError> {
    map.try_into()
}

/// Enrolled pods, by the cookie of their network namespace.
pub(crate) struct Pods(Mutex<HashMap<MapData, u64, Plain<Pod>>>);

impl Pods {
    pub(crate) fn set(&self, netns_cookie: u64, pod: Pod) -> Result<(), EnrolError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.insert(netns_cookie, Plain(pod), 0).map_err(refused)
    }

    /// How many connections were redirected since it was set.
    pub(crate) fn redirected(&self, netns_cookie: u64) -> u64 {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(&netns_cookie, 0).map_or(0, |Plain(pod)| pod.redirected)
    }

    /// Removing what is not there is no error.
    pub(crate) fn remove(&self, netns_cookie: u64) -> Result<(), EnrolError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        absent_is_fine(pods.remove(&netns_cookie)).map_err(refused)
    }
}

fn refused(error: MapError) -> EnrolError {
    match error {
        // The kernel's word for it is "argument list too long".
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
            EnrolError::Full
        }
        error => EnrolError::Register(with_causes(&error)),
    }
}

/// Governed destinations, and the number of the service behind each.
pub(crate) struct Services(HashMap<MapData, Plain<Address>, u32>);

impl Services {
    pub(crate) fn set(&mut self, address: SocketAddr, service: u32) -> Result<(), MapError> {
        self.0.insert(Plain(address.into()), service, 0)
    }

    pub(crate) fn remove(&mut self, address: SocketAddr) -> Result<(), MapError> {
        absent_is_fine(self.0.remove(&Plain(address.into())))
    }
}

/// Where accepted connections come from, and which of the sockets at their other ends were closed.
pub(crate) struct Accepted {
    origins: SkStorage<MapData, Plain<Origin>>,
    released: HashMap<MapData, u64, u32>,
}

impl Accepted {
    pub(crate) fn origin(&self, socket: BorrowedFd<'_>) -> io::Result<Option<proxy::Origin>> {
        match self.origins.get(&socket.as_raw_fd(), 0) {
            Ok(Plain(Origin { dialled, socket, options, .. })) => {
                let sluice_ebpf::Options {
                    user_timeout,
                    keepalive_time,
                    keepalive_interval,
                    keepalive_probes,
                } = options;
                let options = proxy::SocketOptions {
                    user_timeout,
                    keepalive_time,
                    keepalive_interval,
                    keepalive_probes,
                };
                Ok(Some(proxy::Origin { destination: dialled.into(), socket, options }))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whether the application has let go of the socket of this cookie. What cannot be read is taken for no.
    pub(crate) fn is_released(&self, socket: u64) -> bool {
        self.released.get(&socket, 0).is_ok()
    }
}

/// When the agent was last known to be alive.
pub(crate) struct Heartbeat(Array<MapData, u64>);

impl Heartbeat {
    /// `at` is `CLOCK_MONOTONIC`, in nanoseconds.
    pub(crate) fn beat(&mut self, at: u64) -> Result<(), MapError> {
        self.0.set(0, at, 0)
    }
}

/// What the programs counted since they were loaded.
pub(crate) struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(crate) fn read(&self) -> Vec<(Counter, u64)> {
        let sum = |counter| self.0.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum());
        Counter::ALL.into_iter().map(|counter| (counter, sum(counter))).collect()
    }
}

/// What pods' connections came to since the programs were loaded.
pub(crate) struct Flows(PerCpuHashMap<MapData, Plain<FlowKey>, Plain<FlowCounts>>);

impl Flows {
    /// The sums over all CPUs. What cannot be read (an element that goes meanwhile) is left out.
    pub(crate) fn read(&self) -> Vec<(FlowKey, FlowCounts)> {
        let sum = |sum: FlowCounts, Plain(part): &Plain<FlowCounts>| sum.plus(part);
        let elements = self.0.iter().filter_map(Result::ok);
        elements.map(|(Plain(key), parts)| (key, parts.iter().fold(FlowCounts::default(), sum))).collect()
    }

    /// Nobody's numbers. Should it fail they are met again at the next reading.
    pub(crate) fn remove(&mut self, key: FlowKey) {
        if let Err(error) = absent_is_fine(self.0.remove(&Plain(key))) {
            tracing::debug!(error = with_causes(&error), "cannot remove numbers of connections");
        }
    }
}

/// What the programs know of connections from outside.
pub(crate) struct Inbound {
    steered: Mutex<HashMap<MapData, Plain<Address>, Plain<Steered>>>,
    listening: Mutex<HashMap<MapData, Plain<Place>, Listening>>,
    listeners: Option<Mutex<SockMap<MapData>>>,
    calling: Mutex<SkStorage<MapData, Plain<Client>>>,
}

impl Inbound {
    /// From now on new connections to this address of a pod go to the agent.
    pub(crate) fn steer(&self, address: SocketAddr, to: Steered) -> Result<(), MapError> {
        lock(&self.steered).insert(Plain(address.into()), Plain(to), 0)
    }

    /// No longer, unless another pod has the address by now.
    pub(crate) fn leave(&self, address: SocketAddr, netns_cookie: u64) -> Result<(), MapError> {
        let (mut steered, key) = (lock(&self.steered), Plain(address.into()));
        match steered.get(&key, 0) {
            Ok(Plain(of)) if of.netns_cookie == netns_cookie => absent_is_fine(steered.remove(&key)),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// So many sockets listen at a place.
    pub(crate) fn set_listening(&self, place: Place, count: Listening) -> Result<(), MapError> {
        lock(&self.listening).insert(Plain(place), count, 0)
    }

    /// How many sockets listen at a place, as the programs count; `None`: they do not.
    pub(crate) fn listening(&self, place: Place) -> Option<Listening> {
        lock(&self.listening).get(&Plain(place), 0).ok()
    }

    /// What is counted there is no longer asked for. Should it fail, an element is left that nobody looks at.
    pub(crate) fn forget_listening(&self, place: Place) {
        if let Err(error) = absent_is_fine(lock(&self.listening).remove(&Plain(place))) {
            tracing::debug!(error = with_causes(&error), "cannot remove a count of listening sockets");
        }
    }

    /// Connections can be steered to this listener. It leaves its element when it is closed.
    pub(crate) fn set_listener(&self, at: u32, listener: BorrowedFd<'_>) -> Result<(), MapError> {
        let missing = || MapError::InvalidName { name: map::LISTENERS.to_owned() };
        lock(self.listeners.as_ref().ok_or_else(missing)?).set(at, &listener, 0)
    }

    /// This socket, which is not connected yet, stands for a client. `followed`: so are the threads that read from its peer.
    pub(crate) fn set_client(
        &self,
        socket: BorrowedFd<'_>,
        client: SocketAddr,
        followed: bool,
    ) -> io::Result<()> {
        let client = Client { address: client.into(), followed: followed.into() };
        let set = lock(&self.calling).insert(&socket, Plain(client), 0);
        set.map_err(|error| io::Error::other(with_causes(&error)))
    }
}

/// What may not be reached while no agent attends it.
pub(crate) struct Refuse {
    refused: Mutex<HashMap<MapData, Plain<Address>, Plain<Refused>>>,
    node: Mutex<HashMap<MapData, Plain<Address>, u32>>,
}

impl Refuse {
    /// Connections that no agent takes are refused there.
    pub(crate) fn close(&self, address: SocketAddr, value: Refused) -> Result<(), MapError> {
        lock(&self.refused).insert(Plain(address.into()), Plain(value), 0)
    }

    /// No longer, unless another pod has the address by now.
    pub(crate) fn open(&self, address: SocketAddr, netns_cookie: u64) -> Result<(), MapError> {
        let (mut refused, key) = (lock(&self.refused), Plain(address.into()));
        match refused.get(&key, 0) {
            Ok(Plain(of)) if of.netns_cookie == netns_cookie => absent_is_fine(refused.remove(&key)),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the node has this address.
    pub(crate) fn set_node_address(&self, address: IpAddr, is_there: bool) -> Result<(), MapError> {
        let (mut node, key) = (lock(&self.node), Plain(SocketAddr::new(address, 0).into()));
        if is_there { node.insert(key, 1, 0) } else { absent_is_fine(node.remove(&key)) }
    }
}

fn lock<M>(map: &Mutex<M>) -> MutexGuard<'_, M> {
    // A handle cannot be left half-changed.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn a_map_that_is_full_is_called_full() {
        let refused = |errno| {
            let io_error = io::Error::from_raw_os_error(errno);
            refused(SyscallError { call: "bpf_map_update_elem", io_error }.into()).to_string()
        };
        assert_eq!(refused(libc::E2BIG), "4096 pods are enrolled, and no node can have more");
        assert!(refused(libc::ENOMEM).starts_with("the kernel's map of pods: "));
    }
}
