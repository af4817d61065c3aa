//! The ABI between the eBPF programs and the agent: what stands in the maps, and under which names.
//!
//! Both sides compile this file, so a layout can never differ. Everything is `#[repr(C)]`, without padding that
//! is not a named field: the kernel compares map keys byte by byte.
#![no_std]

mod address;
mod arrivals;
mod counter;
mod handling;
mod numbers;
mod origin;

pub use address::{Address, words};
pub use arrivals::{
    Arrival, Listening, MAX_LISTENERS, MAX_LISTENING, MAX_NODE_ADDRESSES, MAX_STEERED, Place, Refused,
    Steered,
};
pub use counter::Counter;
pub use handling::{
    Arriving, Call, Client, Conduct, Inbound, MAX_CALLS, MAX_PROCESSES, MAX_SERVERS, MAX_THREADS, MAX_TIES,
    Process, Server, TRIAL, Thread, Tie,
};
pub use numbers::{AGENTS, DIRECT, FlowCounts, FlowKey, MAX_FLOWS, OTHER};
pub use origin::{Options, Origin};

/// Names of the maps, as the agent asks for them.
pub mod map {
    pub const PODS: &str = "PODS";
    pub const SERVICES: &str = "SERVICES";
    pub const ACCEPTED: &str = "ACCEPTED";
    pub const RELEASED: &str = "RELEASED";
    pub const HEARTBEAT: &str = "HEARTBEAT";
    pub const COUNTERS: &str = "COUNTERS";
    pub const FLOWS: &str = "FLOWS";
    pub const STEERED: &str = "STEERED";
    pub const LISTENING: &str = "LISTENING";
    pub const LISTENERS: &str = "LISTENERS";
    pub const CALLING: &str = "CALLING";
    pub const REFUSED: &str = "REFUSED";
    pub const SERVERS: &str = "SERVERS";
    pub const LIVES: &str = "LIVES";
    pub const PROCESSES: &str = "PROCESSES";
    pub const CALLS: &str = "CALLS";
    pub const TIES: &str = "TIES";
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
}

/// Names of the programs (function names, and what `bpftool prog` shows).
pub mod program {
    pub const CONNECT4: &str = "sluice_connect4";
    pub const CONNECT6: &str = "sluice_connect6";
    pub const ESTABLISHED: &str = "sluice_established";
    /// The same, for kernels that know of MPTCP sockets (Linux 5.19).
    pub const ESTABLISHED_MPTCP: &str = "sluice_established_mptcp";
    pub const RELEASE: &str = "sluice_release";
    pub const FLOW_CONNECT4: &str = "sluice_flow4";
    pub const FLOW_CONNECT6: &str = "sluice_flow6";
    pub const FLOWS: &str = "sluice_flows";
    pub const STEER: &str = "sluice_steer";
    pub const REFUSE: &str = "sluice_refuse";
    pub const LISTENERS: &str = "sluice_listeners";
    pub const RECEIVED: &str = "sluice_received";
    pub const SENDING: &str = "sluice_sending";
    /// The same, for kernels without the tracepoint (before Linux 6.15).
    pub const SENDING_FENTRY: &str = "sluice_sending_f";
    pub const THREADS_RELEASE: &str = "sluice_threads_release";
    pub const EXITED: &str = "sluice_exited";
    pub const EXECED: &str = "sluice_execed";
    pub const GETPEERNAME4: &str = "sluice_getpeername4";
    pub const GETPEERNAME6: &str = "sluice_getpeername6";
    pub const GETSOCKNAME4: &str = "sluice_getsockname4";
    pub const GETSOCKNAME6: &str = "sluice_getsockname6";
}

/// Names of the constants that the agent patches in before it loads the programs.
pub mod global {
    /// `u64`: the cgroup v2 id of the agent itself; its own connects are never redirected. 0 is no cgroup's id.
    pub const AGENT_CGROUP: &str = "AGENT_CGROUP";
}

/// Pods that can be enrolled on one node at a time.
pub const MAX_PODS: usize = 4096;
/// Governed destinations that a node can know.
pub const MAX_SERVICES: usize = 262_144;
/// Redirected connections between the two ends of their handshake, at a time. The least recent go first.
pub const MAX_IN_FLIGHT: usize = 16_384;
/// Redirected sockets that were closed of late. The least recent go first.
pub const MAX_RELEASED: usize = 32_768;

/// Slots for listener ports in [`Pod`].
pub const PORT_SLOTS: usize = 16;

/// A beat older than this no longer counts: the programs stop redirecting.
pub const HEARTBEAT_STALE_AFTER_NANOS: u64 = 1_000_000_000;

/// The priority (`SO_PRIORITY`) of a socket while an agent, any agent, connects it: such a connect is never redirected. It is
/// the agents' mark because the programs of one agent see it on the sockets of another, which their maps do not know, and
/// because it needs no privilege. A queueing discipline treats it as it treats 0 (`prio2band` of `pfifo_fast` in Linux), and
/// it is 0 again when the connect has begun. Others' sockets with a priority go direct in any case.
pub const AGENT_PRIORITY: u32 = 4;

/// Value of `PODS`: how to redirect the connects of one network namespace. The key is its cookie (`SO_NETNS_COOKIE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// Ports of the agent's listeners on 127.0.0.1, host byte order. A program draws a slot, so all of them are
    /// filled, repeating the ports as needed. All zero: no such listener.
    pub ports_v4: [u16; PORT_SLOTS],
    /// The same on `::1`. All zero in a namespace without IPv6.
    pub ports_v6: [u16; PORT_SLOTS],
    /// The pod's own IPv4 address in network byte order, for `getsockname`. 0: unknown.
    pub address_v4: u32,
    /// How many connections may be redirected before further ones go direct: what the pod may still use of the agent.
    pub allowance: u32,
    /// The pod's own IPv6 address in network byte order, for `getsockname`. All zero: unknown.
    pub address_v6: [u32; 4],
    /// How many connections were redirected since the agent has written this. Counted by the programs.
    pub redirected: u64,
}

/// Spreads `ports` over all slots. Without ports all slots are 0.
pub fn port_slots(ports: &[u16]) -> [u16; PORT_SLOTS] {
    let mut slots = [0; PORT_SLOTS];
    for (slot, port) in slots.iter_mut().zip(ports.iter().cycle()) {
        *slot = *port;
    }
    slots
}

/// Key of `IN_FLIGHT`: both ends of a redirected connection, as both ends of the handshake see it. The listener's
/// port belongs to it: a client port may be used towards several listeners at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    pub netns_cookie: u64,
    /// The client's address in network byte order, IPv4 as IPv4-mapped.
    pub client: [u32; 4],
    /// Host byte order.
    pub client_port: u32,
    /// Host byte order.
    pub listener_port: u32,
}
