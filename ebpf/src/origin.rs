//! What the agent learns of a connection that it accepts.

use crate::Address;

/// Value of `IN_FLIGHT` and `ACCEPTED`: where a redirected connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Origin {
    /// The address that the application dialled.
    pub dialled: Address,
    /// Always 0.
    pub reserved: u32,
    /// The cookie of the application's socket, by which `RELEASED` names it.
    pub socket: u64,
    pub options: Options,
}

/// What the application had set on its socket by the time it was connected, for how long it waits for a peer that is silent. It
/// is meant for the way to the endpoint, which has another socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Options {
    /// `TCP_USER_TIMEOUT` in milliseconds; 0: not set.
    pub user_timeout: u32,
    /// `TCP_KEEPIDLE` in seconds; 0: `SO_KEEPALIVE` is off.
    pub keepalive_time: u32,
    /// `TCP_KEEPINTVL` in seconds.
    pub keepalive_interval: u32,
    /// `TCP_KEEPCNT`
    pub keepalive_probes: u32,
}
