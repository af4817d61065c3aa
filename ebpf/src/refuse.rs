//! sk_lookup: while no agent attends a port, connections to it are refused, where its AccessPolicy says so (`whenUnattended: Refuse`).
//!
//! The one program that forbids something, and the one that outlives the agent: its link is pinned, for the network namespaces of
//! the pods that are meant and for no other. It refuses what no program has chosen a socket for: the kernel takes a
//! socket that any of them chooses before the refusal of another (`BPF_PROG_SK_LOOKUP_RUN_ARRAY` in `include/linux/filter.h`), so
//! what the agent accepts it accepts. Each port opens by itself at the time that stands in its element, which the agent moves on for
//! as long as it attends.
//!
//! What comes from the pod itself passes, and, where probes of the pod go, what comes from the node.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::SkLookupContext};
use sluice_ebpf::{Address, Counter, HEARTBEAT_STALE_AFTER_NANOS, Refused};

use crate::{
    maps::{HEARTBEAT, NODE_ADDRESSES, REFUSED, count},
    steer::{IPPROTO_TCP, family, is_loopback, local_ip, local_port, protocol, remote_ip},
};

const PASS: u32 = 1;
const DROP: u32 = 0;

#[inline(always)]
pub(crate) fn on(ctx: &SkLookupContext) -> u32 {
    let (family, protocol, port) = (family(ctx), protocol(ctx), local_port(ctx));
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let local = Address::v6(local_ip(ctx, family), port as u16);
    // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
    let Some(refused) = (unsafe { REFUSED.get(local) }) else { return PASS };
    let remote = remote_ip(ctx, family);
    if remote == local.ip || is_loopback(&remote) || may_probe(refused, remote) {
        return PASS;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a field of the element.
    if now >= unsafe { read_volatile(addr_of!(refused.until)) } {
        return PASS;
    }
    let beat = HEARTBEAT.get_ptr(0).map_or(0, |beat| {
        // SAFETY: array elements always exist; the agent writes all 8 bytes at once.
        unsafe { read_volatile(beat) }
    });
    if now.saturating_sub(beat) > HEARTBEAT_STALE_AFTER_NANOS {
        count(Counter::InboundRefused);
    }
    DROP
}

#[inline(always)]
fn may_probe(refused: &Refused, remote: [u32; 4]) -> bool {
    // SAFETY: as above.
    let probed = unsafe { read_volatile(addr_of!(refused.probed)) } != 0;
    // SAFETY: as above; what it holds does not matter.
    probed && unsafe { NODE_ADDRESSES.get(Address::v6(remote, 0)) }.is_some()
}
