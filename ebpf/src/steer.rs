//! sk_lookup: connections from outside to a port of a pod that policies ask something for go to a listener of the agent in
//! that pod.
//!
//! The program is attached to the network namespaces of such pods only. It looks where a client wants to go and assigns one
//! of the agent's sockets to the connection, so that nothing is rewritten: the accepted socket's own address is what the client
//! dialled, its peer the client. What is not surely to be steered passes untouched.
//!
//! What comes from the pod itself passes, and so does the agent's own connection to the application, which comes from
//! loopback. Where no application listens the kernel refuses the connection, as ever.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, generated::bpf_ktime_get_ns},
    programs::SkLookupContext,
};
use sluice_ebpf::{Address, Counter, HEARTBEAT_STALE_AFTER_NANOS, Place, Steered};

use crate::{
    context::LOOPBACK_V6,
    maps::{HEARTBEAT, LISTENERS, LISTENING, STEERED, count},
};

const AF_INET: u32 = 2;
pub(crate) const IPPROTO_TCP: u32 = 6;
/// All addresses of IPv6, and of IPv4 as well unless the socket says otherwise.
const ANY: [u32; 4] = [0; 4];

#[inline(always)]
pub(crate) fn on(ctx: &SkLookupContext) {
    let (family, protocol, port) = (family(ctx), protocol(ctx), local_port(ctx));
    if protocol != IPPROTO_TCP {
        return;
    }
    let local = Address::v6(local_ip(ctx, family), port as u16);
    // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
    let Some(steered) = (unsafe { STEERED.get(local) }) else { return };
    count(match steer(ctx, family, &local, steered) {
        Ok(counter) | Err(counter) => counter,
    });
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, family: u32, local: &Address, steered: &Steered) -> Result<Counter, Counter> {
    let remote = remote_ip(ctx, family);
    if remote == local.ip || is_loopback(&remote) {
        return Err(Counter::InboundLocal);
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let beat = HEARTBEAT.get_ptr(0).map_or(0, |beat| {
        // SAFETY: array elements always exist; the agent writes all 8 bytes at once.
        unsafe { read_volatile(beat) }
    });
    // The agent may beat on another CPU after `now` was read: that is fresh, not an underflow.
    if now.saturating_sub(beat) > HEARTBEAT_STALE_AFTER_NANOS {
        return Err(Counter::InboundAgentSilent);
    }
    // SAFETY: a field of the element.
    if unsafe { read_volatile(addr_of!(steered.direct)) } != 0 {
        return Err(Counter::InboundOverBudget);
    }
    if !is_listening(steered.netns_cookie, local) {
        return Err(Counter::InboundNotListening);
    }
    if steered.count == 0 {
        return Err(Counter::InboundNoListener);
    }
    // SAFETY: no arguments.
    let draw = unsafe { bpf_get_prandom_u32() } % steered.count;
    // Another program may have chosen a socket already (that of an agent that hands over): it stays.
    LISTENERS.redirect_sk_lookup(ctx, steered.first + draw, 0).map_err(|_| Counter::InboundNoListener)?;
    Ok(if local.is_v4() { Counter::SteeredV4 } else { Counter::SteeredV6 })
}

/// On this address, on all of its family, or on all.
#[inline(always)]
fn is_listening(netns_cookie: u64, local: &Address) -> bool {
    at(netns_cookie, *local)
        || at(netns_cookie, Address::v6(ANY, local.port))
        || local.is_v4() && at(netns_cookie, Address::v4(0, local.port))
}

#[inline(always)]
fn at(netns_cookie: u64, address: Address) -> bool {
    // SAFETY: as above.
    unsafe { LISTENING.get(Place::new(netns_cookie, address)).is_some_and(|count| read_volatile(count) > 0) }
}

/// 127.0.0.0/8 or `::1`.
#[inline(always)]
pub(crate) fn is_loopback(ip: &[u32; 4]) -> bool {
    let address = Address::v6(*ip, 0);
    *ip == LOOPBACK_V6 || address.is_v4() && u32::from_be(ip[3]) >> 24 == 127
}

// Volatile, and both families' fields before one is chosen: the verifier knows only accesses at constant offsets.

#[inline(always)]
pub(crate) fn family(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a valid context to the program.
    unsafe { read_volatile(addr_of!((*ctx.lookup).family)) }
}

#[inline(always)]
pub(crate) fn protocol(ctx: &SkLookupContext) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*ctx.lookup).protocol)) }
}

/// In host byte order.
#[inline(always)]
pub(crate) fn local_port(ctx: &SkLookupContext) -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!((*ctx.lookup).local_port)) }
}

#[inline(always)]
pub(crate) fn local_ip(ctx: &SkLookupContext, family: u32) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { choose(family, addr_of!((*ctx.lookup).local_ip4), addr_of!((*ctx.lookup).local_ip6).cast()) }
}

#[inline(always)]
pub(crate) fn remote_ip(ctx: &SkLookupContext, family: u32) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { choose(family, addr_of!((*ctx.lookup).remote_ip4), addr_of!((*ctx.lookup).remote_ip6).cast()) }
}

/// # Safety
/// `ip4` and `ip6` must point to fields of the context.
#[inline(always)]
unsafe fn choose(family: u32, ip4: *const u32, ip6: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    let (v4, v6) = unsafe {
        (
            read_volatile(ip4),
            [
                read_volatile(ip6),
                read_volatile(ip6.add(1)),
                read_volatile(ip6.add(2)),
                read_volatile(ip6.add(3)),
            ],
        )
    };
    if family == AF_INET { Address::v4(v4, 0).ip } else { v6 }
}
