//! connect4 and connect6: shall this connect be redirected, and if so, to which of the agent's listeners.
//!
//! The tests stand in the order of their cost: most connects of most pods leave after the second. Whatever is not
//! surely Sluice's business passes untouched. Measured on Linux 6.18: 77 ns for a pod that is not enrolled, 101 ns for
//! a destination that is not governed, 0.75 us for a connect that is redirected.

use core::{
    arch::asm,
    mem,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_prandom_u32,
        generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns},
    },
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use sluice_ebpf::{AGENT_PRIORITY, Address, Counter, DIRECT, HEARTBEAT_STALE_AFTER_NANOS, PORT_SLOTS, Pod};

use crate::{
    context::{LOOPBACK_V4, LOOPBACK_V6, ip4, ip6, port, set_ip4, set_ip6, set_port, write_address},
    maps::{AGENT_CGROUP, DIALLED, HEARTBEAT, PODS, SERVICES, count},
};

const IPPROTO_TCP: u32 = 6;

/// Why a connect passes, or how it was redirected.
type Outcome = Result<Counter, Counter>;

#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) {
    conclude(ctx, try_v4(ctx));
}

#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) {
    conclude(ctx, try_v6(ctx));
}

#[inline(always)]
fn try_v4(ctx: &SockAddrContext) -> Outcome {
    let pod = enrolled(ctx)?;
    let dialled = Address::v4(ip4(ctx), port(ctx));
    admit(ctx, pod, &dialled)?;
    let own = bound_v4(ctx);
    unbound(own == 0 || own == pod.address_v4)?;
    let listener = draw(&pod.ports_v4)?;
    remember(ctx, &dialled)?;
    spend(pod);
    set_ip4(ctx, LOOPBACK_V4);
    set_port(ctx, listener);
    Ok(Counter::RedirectedV4)
}

/// An AF_INET6 socket also dials IPv4, as `::ffff:10.96.7.3` (Java always does). Such a connect goes to the IPv4
/// listener, in the same form.
#[inline(always)]
fn try_v6(ctx: &SockAddrContext) -> Outcome {
    let pod = enrolled(ctx)?;
    let dialled = Address::v6(ip6(ctx), port(ctx));
    admit(ctx, pod, &dialled)?;
    let own = bound_v6(ctx);
    let mapped = Address::v4(pod.address_v4, 0).ip;
    unbound(own == [0; 4] || own == pod.address_v6 || own == Address::v4(0, 0).ip || own == mapped)?;
    if dialled.is_v4() {
        let listener = draw(&pod.ports_v4)?;
        remember(ctx, &dialled)?;
        spend(pod);
        set_ip6(ctx, Address::v4(LOOPBACK_V4, 0).ip);
        set_port(ctx, listener);
        Ok(Counter::RedirectedV4)
    } else {
        let listener = draw(&pod.ports_v6)?;
        remember(ctx, &dialled)?;
        spend(pod);
        set_ip6(ctx, LOOPBACK_V6);
        set_port(ctx, listener);
        Ok(Counter::RedirectedV6)
    }
}

#[inline(always)]
fn enrolled(ctx: &SockAddrContext) -> Result<&'static Pod, Counter> {
    // SAFETY: the kernel passes a valid context to the program.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return Err(Counter::NotTcp);
    }
    // SAFETY: the helper takes the context itself.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
    unsafe { PODS.get(cookie) }.ok_or(Counter::NotEnrolled)
}

#[inline(always)]
fn admit(ctx: &SockAddrContext, pod: &Pod, dialled: &Address) -> Result<(), Counter> {
    // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
    match unsafe { SERVICES.get(dialled) } {
        None => return Err(Counter::NotGoverned),
        Some(number) if number & DIRECT != 0 => return Err(Counter::NotServed),
        Some(_) => {}
    }
    // SAFETY: in this program type the kernel never leaves `sk` null.
    if unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if } != 0 {
        return Err(Counter::BoundToDevice);
    }
    particular(ctx)?;
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let beat = HEARTBEAT.get_ptr(0).map_or(0, |beat| {
        // SAFETY: array elements always exist; the agent writes all 8 bytes at once.
        unsafe { read_volatile(beat) }
    });
    // The agent may beat on another CPU after `now` was read: that is fresh, not an underflow.
    if now.saturating_sub(beat) > HEARTBEAT_STALE_AFTER_NANOS {
        return Err(Counter::AgentSilent);
    }
    // SAFETY: no arguments.
    if unsafe { bpf_get_current_cgroup_id() } == AGENT_CGROUP.load() {
        return Err(Counter::AgentItself);
    }
    // SAFETY: fields of the element, see `enrolled`.
    let (redirected, allowance) =
        unsafe { (read_volatile(addr_of!(pod.redirected)), read_volatile(addr_of!(pod.allowance))) };
    if redirected >= u64::from(allowance) { Err(Counter::OverBudget) } else { Ok(()) }
}

/// A socket that is bound to a port goes direct: two connections from the same port to two services would both go to the same
/// few listeners. So does one with a mark or a priority (which `IP_TOS` sets, too): the connection to the endpoint is another
/// socket, that has none.
#[inline(always)]
fn particular(ctx: &SockAddrContext) -> Result<(), Counter> {
    // SAFETY: in this program type the kernel never leaves `sk` null.
    let (port, mark, priority) = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            read_volatile(addr_of!((*sk).src_port)),
            read_volatile(addr_of!((*sk).mark)),
            read_volatile(addr_of!((*sk).priority)),
        )
    };
    // Of another agent we know no control group. While one takes over from the other, each would be handed what the other sends
    // on to a governed address (a headless service's endpoint), for ever.
    if priority == AGENT_PRIORITY {
        return Err(Counter::AgentItself);
    }
    if port == 0 && mark == 0 && priority == 0 { Ok(()) } else { Err(Counter::Particular) }
}

/// The address that an AF_INET socket is bound to, in network byte order; 0 for none.
#[inline(always)]
fn bound_v4(ctx: &SockAddrContext) -> u32 {
    // SAFETY: in this program type the kernel never leaves `sk` null.
    unsafe { read_volatile(addr_of!((*(*ctx.sock_addr).__bindgen_anon_1.sk).src_ip4)) }
}

/// The same of an AF_INET6 socket. Word by word: the verifier knows no other access.
#[inline(always)]
fn bound_v6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: in this program type the kernel never leaves `sk` null.
    unsafe {
        let ip = addr_of!((*(*ctx.sock_addr).__bindgen_anon_1.sk).src_ip6).cast::<u32>();
        [read_volatile(ip), read_volatile(ip.add(1)), read_volatile(ip.add(2)), read_volatile(ip.add(3))]
    }
}

/// A socket that is bound to another address than the pod's own goes direct.
#[inline(always)]
fn unbound(is: bool) -> Result<(), Counter> {
    if is { Ok(()) } else { Err(Counter::Particular) }
}

/// One of the pod's listeners. They share a destination address, hence a range of client ports: several listeners
/// make several ranges, and spread the connections over the agent's workers.
#[inline(always)]
fn draw(slots: &[u16; PORT_SLOTS]) -> Result<u16, Counter> {
    // SAFETY: no arguments.
    let slot = unsafe { bpf_get_prandom_u32() } as usize % PORT_SLOTS;
    // SAFETY: the remainder is below the length.
    match unsafe { read_volatile(slots.as_ptr().add(slot)) } {
        0 => Err(Counter::NoListener),
        port => Ok(port),
    }
}

/// One connection more is redirected.
#[inline(always)]
fn spend(pod: &Pod) {
    let redirected = addr_of!(pod.redirected);
    // SAFETY: a field of the element, aligned, see `enrolled`; nobody but the programs writes to it while it is in the map. One
    // instruction of BPF (`BPF_ATOMIC | BPF_ADD`), for which the compiler has no word on this target.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) redirected, in(reg) 1_u64) };
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, dialled: &Address) -> Result<(), Counter> {
    let mut value = *dialled;
    // SAFETY: `sk` is valid, and the storage is as large as `Address`. The helper does not replace what is there
    // already, hence the writes; word by word, because a copy of the whole becomes a loop over its bytes.
    unsafe {
        let stored = DIALLED.get_or_insert_ptr_mut(ctx, Some(&mut value));
        if stored.is_null() {
            return Err(Counter::NotStored);
        }
        write_address(stored, dialled);
    }
    debug!(
        ctx,
        "pid {} dialled [{:i}]:{}, redirected",
        ctx.tgid(),
        // SAFETY: both are 16 bytes without padding.
        unsafe { mem::transmute::<[u32; 4], [u8; 16]>(dialled.ip) },
        dialled.port
    );
    Ok(())
}

#[inline(always)]
fn conclude(ctx: &SockAddrContext, outcome: Outcome) {
    if let Err(reason) = outcome
        && reason as u32 != Counter::NotTcp as u32
    {
        // A socket can connect more than once: what it dialled before must not outlive that.
        // SAFETY: in this program type the kernel never leaves `sk` null.
        let _absent_is_fine = unsafe { DIALLED.delete((*ctx.sock_addr).__bindgen_anon_1.sk) };
    }
    let (Ok(counter) | Err(counter)) = outcome;
    count(counter);
}
