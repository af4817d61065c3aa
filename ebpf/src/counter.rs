//! What the programs count, and under which names it is told.

/// An index into `COUNTERS`, one for each outcome of a connect and of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// A connect of something else than TCP.
    NotTcp,
    /// The caller's network namespace is not enrolled.
    NotEnrolled,
    /// The destination is not governed.
    NotGoverned,
    /// The destination is governed, but the agent could do nothing for it.
    NotServed,
    /// The socket is bound to a device.
    BoundToDevice,
    /// The socket is bound or marked as the agent's connection to the endpoint could not be.
    Particular,
    /// The agent's heartbeat is stale: it hangs.
    AgentSilent,
    /// The agent itself connects, or another agent, in a pod's network namespace.
    AgentItself,
    /// The pod has used up what it may use of the agent.
    OverBudget,
    /// The pod has no listener of that family.
    NoListener,
    /// The original destination could not be stored (out of memory).
    NotStored,
    /// Redirected, IPv4 (also when dialled as IPv4-mapped).
    RedirectedV4,
    /// Redirected, IPv6.
    RedirectedV6,
    /// The client's end of a redirected connection was established.
    Established,
    /// The listener's end was established, and the original destination moved to it.
    Accepted,
    /// The original destination was lost between the two ends; the agent closes such a connection.
    Lost,
    /// Numbers of a connection for which there was no room.
    FlowLost,
    /// A connection from outside was steered to the agent, IPv4.
    SteeredV4,
    /// A connection from outside was steered to the agent, IPv6.
    SteeredV6,
    /// A connection to a steered port comes from the pod itself, or from the agent.
    InboundLocal,
    /// The agent's heartbeat is stale: it hangs.
    InboundAgentSilent,
    /// The pod has used up what it may use of the agent.
    InboundOverBudget,
    /// No application listens on the steered port: the kernel refuses the connection.
    InboundNotListening,
    /// The pod has no listener of the agent, or another program has chosen a socket.
    InboundNoListener,
    /// The client's address did not reach the application's socket, which is told the agent's.
    CallerLost,
    /// No agent attends the port, and nothing may go past it.
    InboundRefused,
}

impl Counter {
    pub const ALL: [Self; 26] = [
        Self::NotTcp,
        Self::NotEnrolled,
        Self::NotGoverned,
        Self::NotServed,
        Self::BoundToDevice,
        Self::Particular,
        Self::AgentSilent,
        Self::AgentItself,
        Self::OverBudget,
        Self::NoListener,
        Self::NotStored,
        Self::RedirectedV4,
        Self::RedirectedV6,
        Self::Established,
        Self::Accepted,
        Self::Lost,
        Self::FlowLost,
        Self::SteeredV4,
        Self::SteeredV6,
        Self::InboundLocal,
        Self::InboundAgentSilent,
        Self::InboundOverBudget,
        Self::InboundNotListening,
        Self::InboundNoListener,
        Self::CallerLost,
        Self::InboundRefused,
    ];

    /// What it means, for the reference.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::NotTcp => "The socket is not TCP.",
            Self::NotEnrolled => "The pod is not enrolled.",
            Self::NotGoverned => "The destination is not managed.",
            Self::NotServed => {
                "No endpoint of the destination is ready, or it does not speak HTTP or is headless; and no policy or lane asks for anything."
            }
            Self::BoundToDevice => "The socket is bound to a network device.",
            Self::Particular => {
                "The socket is bound to a port, or to an address that is not the pod's own, or has a mark or a priority."
            }
            Self::AgentSilent => {
                "The agent has not sent its heartbeat for a second: it hangs or gets no CPU."
            }
            Self::AgentItself => "The connection is one of an agent, to an endpoint.",
            Self::OverBudget => {
                "The pod has used up its budget of connections, descriptors or memory of the agent."
            }
            Self::NoListener => "The pod has no listener of the agent for that IP family.",
            Self::NotStored => "The kernel had no memory to store the original destination.",
            Self::RedirectedV4 => "The connection was redirected to the agent, over IPv4.",
            Self::RedirectedV6 => "The connection was redirected to the agent, over IPv6.",
            Self::Established => "The client's side of a redirected connection was established.",
            Self::Accepted => "The agent's side of a redirected connection was established.",
            Self::Lost => {
                "The original destination was lost between the two sides; the agent closes the connection."
            }
            Self::FlowLost => "A TCP connection could not be counted, because there was no room.",
            Self::SteeredV4 => {
                "A connection to a port of an enrolled pod with an AccessPolicy was steered to the agent, over IPv4."
            }
            Self::SteeredV6 => {
                "A connection to a port of an enrolled pod with an AccessPolicy was steered to the agent, over IPv6."
            }
            Self::InboundLocal => {
                "A connection to such a port came from the pod itself, or was the agent's own to the application."
            }
            Self::InboundAgentSilent => {
                "A connection to such a port went direct: the agent has not sent its heartbeat for a second."
            }
            Self::InboundOverBudget => {
                "A connection to such a port went direct: the pod has used up its budget of the agent."
            }
            Self::InboundNotListening => "A connection to such a port found no application that listens.",
            Self::InboundNoListener => {
                "A connection to such a port went direct: the pod has no listener of the agent, or another program had chosen a socket for it."
            }
            Self::CallerLost => {
                "The address of the client did not reach the application's socket, which shows a loopback address instead."
            }
            Self::InboundRefused => {
                "A connection to such a port was refused while the agent hung: its AccessPolicy has whenUnattended: Refuse. (What is refused while there is no agent nobody counts.)"
            }
        }
    }

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotTcp => "bypassed_not_tcp",
            Self::NotEnrolled => "bypassed_not_enrolled",
            Self::NotGoverned => "bypassed_not_managed",
            Self::NotServed => "bypassed_not_served",
            Self::BoundToDevice => "bypassed_bound_to_device",
            Self::Particular => "bypassed_socket_options",
            Self::AgentSilent => "bypassed_agent_unresponsive",
            Self::AgentItself => "bypassed_agent_connection",
            Self::OverBudget => "bypassed_over_budget",
            Self::NoListener => "bypassed_no_listener",
            Self::NotStored => "bypassed_no_memory",
            Self::RedirectedV4 => "redirected_v4",
            Self::RedirectedV6 => "redirected_v6",
            Self::Established => "established",
            Self::Accepted => "accepted",
            Self::Lost => "lost",
            Self::FlowLost => "flow_lost",
            Self::SteeredV4 => "inbound_steered_v4",
            Self::SteeredV6 => "inbound_steered_v6",
            Self::InboundLocal => "inbound_bypassed_local",
            Self::InboundAgentSilent => "inbound_bypassed_agent_unresponsive",
            Self::InboundOverBudget => "inbound_bypassed_over_budget",
            Self::InboundNotListening => "inbound_not_listening",
            Self::InboundNoListener => "inbound_bypassed_no_listener",
            Self::CallerLost => "inbound_client_lost",
            Self::InboundRefused => "inbound_refused_unattended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_at_their_index() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index, "{}", counter.name());
        }
    }
}
