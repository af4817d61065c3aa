//! Inbound: which ports of pods are steered to the agent, and what is known of them. The layouts.

use crate::Address;

/// Ports of pods that can be steered on a node at a time, each address of a pod counted by itself.
pub const MAX_STEERED: usize = 16_384;
/// Places at which applications may listen on the ports that are steered: up to four a port.
pub const MAX_LISTENING: usize = 65_536;
/// Listeners of the agent that connections can be steered to.
pub const MAX_LISTENERS: usize = 65_536;

/// Value of `STEERED`; the key is the address and port of a pod that a client dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Steered {
    /// The pod's network namespace, which a program on socket lookups cannot ask for.
    pub netns_cookie: u64,
    /// The agent's listeners for it are elements of `LISTENERS` from this one on.
    pub first: u32,
    /// So many.
    pub count: u32,
    /// Not 0: new connections go direct, because the pod has used up what it may use of the agent.
    pub direct: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Addresses of the node that are known to the programs, from which the kubelet probes.
pub const MAX_NODE_ADDRESSES: usize = 1024;

/// Value of `REFUSED`; the key is the address and port of a pod to which nothing may go past the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refused {
    /// The pod's network namespace.
    pub netns_cookie: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds, from when on connections pass. An agent that attends the pod moves it on.
    pub until: u64,
    /// Not 0: connections from the node's own addresses pass, because probes of the pod go there.
    pub probed: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Key of `LISTENING`: a place at which an application may listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Place {
    pub netns_cookie: u64,
    /// Unspecified for a socket that listens on all addresses. `::` stands for IPv4 as well.
    pub address: Address,
    /// Always 0.
    pub reserved: u32,
}

impl Place {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the programs must not get subprograms from it")]
    pub fn new(netns_cookie: u64, address: Address) -> Self {
        Self { netns_cookie, address, reserved: 0 }
    }
}

/// Value of `LISTENING`: how many sockets listen there. The programs count those that begin and end; the agent looks for those
/// whose beginning they have not seen, whose ends may take it below 0.
pub type Listening = i64;

/// Key of `ARRIVING`: both ends of a connection from the agent to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Arrival {
    pub netns_cookie: u64,
    /// The agent's address in network byte order, IPv4 as IPv4-mapped.
    pub agent: [u32; 4],
    /// The application's.
    pub application: [u32; 4],
    /// Host byte order.
    pub agent_port: u32,
    /// Host byte order.
    pub application_port: u32,
}
