//! What is counted of pods' connections: the layouts.

/// Combinations of a pod, a destination and a path that a node counts at a time. What is beyond is counted nowhere but in
/// [`Counter::FlowLost`](crate::Counter::FlowLost).
pub const MAX_FLOWS: usize = 8192;

/// A flag in the values of `SERVICES`: connections to this address go direct, for the agent could do nothing for them. They
/// are counted as those of the service all the same.
pub const DIRECT: u32 = 1 << 31;

/// The destination of connections that lead to no governed service.
pub const OTHER: u32 = 0;

/// Key of `FLOWS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The pod's network namespace.
    pub netns_cookie: u64,
    /// What stands in `SERVICES` behind the address that was dialled, or [`OTHER`].
    pub destination: u32,
    /// 1 if the connection was redirected to the agent, else 0.
    pub redirected: u32,
}

/// Value of `FLOWS`, one a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCounts {
    /// Connections that were established.
    pub opened: u64,
    /// Attempts that were not: refused, timed out, or given up.
    pub failed: u64,
    /// Established connections that have ended.
    pub closed: u64,
    /// Bytes that the peers of ended connections have acknowledged.
    pub sent_bytes: u64,
    /// Bytes that were received over ended connections.
    pub received_bytes: u64,
    /// Segments that were sent again, attempts to connect among them.
    pub retransmits: u64,
    /// Smoothed round trip times of ended connections, added up, in microseconds.
    pub rtt_micros: u64,
    /// Of how many connections.
    pub rtts: u64,
}

impl FlowCounts {
    /// What both come to.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            opened: self.opened + other.opened,
            failed: self.failed + other.failed,
            closed: self.closed + other.closed,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_bytes: self.received_bytes + other.received_bytes,
            retransmits: self.retransmits + other.retransmits,
            rtt_micros: self.rtt_micros + other.rtt_micros,
            rtts: self.rtts + other.rtts,
        }
    }
}

/// Value of `MARKED` on a socket of the agent's own, in a pod's network namespace.
pub const AGENTS: u64 = u64::MAX;
