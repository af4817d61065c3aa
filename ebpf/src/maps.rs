//! The maps and constants that the programs share, and what stands in them.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, SkStorage},
    macros::{btf_map, map},
    maps::SockMap,
};
use sluice_ebpf::{
    Address, Arrival, Arriving, Call, Client, Conduct, Counter, Flow, FlowCounts, FlowKey, Inbound,
    Listening, MAX_CALLS, MAX_FLOWS, MAX_IN_FLIGHT, MAX_LISTENERS, MAX_LISTENING, MAX_NODE_ADDRESSES,
    MAX_PODS, MAX_PROCESSES, MAX_RELEASED, MAX_SERVERS, MAX_SERVICES, MAX_STEERED, MAX_THREADS, MAX_TIES,
    Origin, Place, Pod, Process, Refused, Server, Steered, Thread, Tie,
};

// Entries of these come and go while programs hold references into them. Without preallocation an element is
// freed only after an RCU grace period, so that a reference never sees another element's content.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Enrolled pods, by the cookie of their network namespace.
#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, MAX_PODS, ON_DEMAND> = HashMap::new();

/// Governed destinations, and the agent's number for the service behind each, with [`sluice_ebpf::DIRECT`] on some.
#[btf_map]
pub(crate) static SERVICES: HashMap<Address, u32, MAX_SERVICES, ON_DEMAND> = HashMap::new();

/// On a client's socket: the address that the application dialled.
#[btf_map]
pub(crate) static DIALLED: SkStorage<Address> = SkStorage::new();

/// Where connections come from, on the way from the client's socket to the accepted one.
#[btf_map]
pub(crate) static IN_FLIGHT: LruHashMap<Flow, Origin, MAX_IN_FLIGHT> = LruHashMap::new();

/// On a socket that the agent accepts: where the connection comes from.
#[btf_map]
pub(crate) static ACCEPTED: SkStorage<Origin> = SkStorage::new();

/// The cookies of redirected sockets that their applications have let go of.
#[btf_map]
pub(crate) static RELEASED: LruHashMap<u64, u32, MAX_RELEASED> = LruHashMap::new();

/// `CLOCK_MONOTONIC` of the agent's last beat, in nanoseconds.
#[btf_map]
pub(crate) static HEARTBEAT: Array<u64, 1> = Array::new();

/// By [`Counter`].
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// On the agent's own sockets [`sluice_ebpf::AGENTS`]. On others, from when their peer has acknowledged that they send no
/// more: what they had received by then.
#[btf_map]
pub(crate) static MARKED: SkStorage<u64> = SkStorage::new();

/// What pods' connections come to.
#[btf_map]
pub(crate) static FLOWS: PerCpuHashMap<FlowKey, FlowCounts, MAX_FLOWS, ON_DEMAND> = PerCpuHashMap::new();

/// Ports of pods whose connections from outside go to the agent.
#[btf_map]
pub(crate) static STEERED: HashMap<Address, Steered, MAX_STEERED, ON_DEMAND> = HashMap::new();

/// How many sockets of applications listen where it matters.
#[btf_map]
pub(crate) static LISTENING: HashMap<Place, Listening, MAX_LISTENING, ON_DEMAND> = HashMap::new();

/// The agent's listeners. One that is closed is no longer in it. (Not by BTF, so that the agent can find its type in the object
/// and load the others where the kernel does not let it make one of these.)
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(MAX_LISTENERS as u32, 0);

/// Ports of pods to which nothing may go past the agent, not even while there is none.
#[btf_map]
pub(crate) static REFUSED: HashMap<Address, Refused, MAX_STEERED, ON_DEMAND> = HashMap::new();

/// The addresses of the node itself, with port 0.
#[btf_map]
pub(crate) static NODE_ADDRESSES: HashMap<Address, u32, MAX_NODE_ADDRESSES, ON_DEMAND> = HashMap::new();

/// On the agent's socket to an application: the client that it stands for.
#[btf_map]
pub(crate) static CALLING: SkStorage<Client> = SkStorage::new();

/// Clients, on the way from the agent's socket to the application's.
#[btf_map]
pub(crate) static ARRIVING: LruHashMap<Arrival, Arriving, MAX_IN_FLIGHT> = LruHashMap::new();

/// On a socket that an application accepts: its client.
#[btf_map]
pub(crate) static CLIENT: SkStorage<Address> = SkStorage::new();

/// Servers whose threads are followed.
#[btf_map]
pub(crate) static SERVERS: HashMap<Server, u32, MAX_SERVERS, ON_DEMAND> = HashMap::new();

/// Processes that read from them, each with a number that no other has that runs another program: `CLOCK_MONOTONIC` of its first read.
#[btf_map]
pub(crate) static LIVES: LruHashMap<u32, u64, MAX_PROCESSES> = LruHashMap::new();

/// How the threads of these handle requests.
#[btf_map]
pub(crate) static PROCESSES: LruHashMap<Process, Conduct, MAX_PROCESSES> = LruHashMap::new();

/// The agent's connections to them, and the number of the request that it sends over each. Written before the request is.
#[btf_map]
pub(crate) static CALLS: HashMap<u64, Call, MAX_CALLS, ON_DEMAND> = HashMap::new();

/// On an application's end of such a connection: who reads from it.
#[btf_map]
pub(crate) static INBOUND: SkStorage<Inbound> = SkStorage::new();

/// What threads handle.
#[btf_map]
pub(crate) static THREADS: LruHashMap<u64, Thread, MAX_THREADS> = LruHashMap::new();

/// For what redirected sockets are written to, by their cookies.
#[btf_map]
pub(crate) static TIES: HashMap<u64, Tie, MAX_TIES, ON_DEMAND> = HashMap::new();

/// See [`sluice_ebpf::global::AGENT_CGROUP`].
#[unsafe(no_mangle)]
pub(crate) static AGENT_CGROUP: Global<u64> = Global::new(0);

#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU. Programs may be preempted by each other on it, so that one count in
        // a great many is lost; an atomic would cost more than that is worth.
        unsafe { *value += 1 };
    }
}
