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
}
