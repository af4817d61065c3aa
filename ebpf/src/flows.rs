//! sock_ops, and connect4 and connect6 once more: what becomes of pods' connections, redirected or not.
//!
//! Programs of their own, so that whatever a kernel has against them, capture does not depend on them. When a connect goes
//! out its destination is final (it was redirected, or was not), and the kernel is asked to tell of the socket's changes of
//! state. At its end the numbers that TCP has kept all along are added up. So nothing is allocated for a connection, and
//! between its beginning and its end nothing is run for it.
//!
//! An agent among the pods connects in their network namespaces, too, and that is not theirs. It is known who connects only
//! at `connect()`: there the agent's sockets are marked, by programs on its own control group.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{addr_of, from_ref, null_mut, read_volatile},
};

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED,
        BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_LISTEN, BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT, bpf_sock,
    },
    helpers::generated::bpf_sk_storage_get,
    programs::{SockAddrContext, SockOpsContext},
};
use sluice_ebpf::{AGENTS, Address, Counter, DIRECT, FlowCounts, FlowKey, OTHER};

use crate::{
    established::{netns_cookie, remote_ip, remote_port, socket},
    maps::{DIALLED, FLOWS, MARKED, PODS, SERVICES, count},
};

/// A process of the agent's control group connects.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockAddrContext) {
    let mut agents = AGENTS;
    // SAFETY: in this program type the kernel never leaves `sk` null. Without memory for it the connection is counted as the
    // pod's, which harms nobody.
    let _no_memory = unsafe { MARKED.get_or_insert_ptr_mut(ctx, Some(&mut agents)) };
}

#[inline(always)]
pub(crate) fn on(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => departing(ctx),
        BPF_SOCK_OPS_STATE_CB => changing(ctx),
        _ => {}
    }
}

/// The first segment is about to be sent.
#[inline(always)]
fn departing(ctx: &SockOpsContext) {
    if PODS.get_ptr(netns_cookie(ctx)).is_none() {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    match mark(sk) {
        Some(AGENTS) => return,
        // A socket can connect more than once.
        // SAFETY: `sk` was checked.
        Some(_) => drop(unsafe { MARKED.delete(sk) }),
        None => {}
    }
    // Others' wishes stay. If it is refused the connection is not counted.
    let _refused = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

#[inline(always)]
fn changing(ctx: &SockOpsContext) {
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    // The kernel may close what is closed, when the socket goes; and of one that listened another program asked to be told.
    if from == BPF_TCP_CLOSE
        || from == BPF_TCP_LISTEN
        || to != BPF_TCP_ESTABLISHED && to != BPF_TCP_FIN_WAIT2 && to != BPF_TCP_CLOSE
    {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    if to == BPF_TCP_ESTABLISHED {
        add(ctx, sk, &FlowCounts { opened: 1, ..NOTHING });
    } else if to == BPF_TCP_FIN_WAIT2 {
        let mut received = bytes_received(ctx);
        // Without memory for it the peer's end may be counted as a byte.
        // SAFETY: `sk` was checked, and values of this map are numbers.
        let _no_memory = unsafe {
            bpf_sk_storage_get(
                from_ref(&MARKED).cast_mut().cast(),
                sk.cast(),
                (&raw mut received).cast(),
                BPF_SK_STORAGE_GET_F_CREATE.into(),
            )
        };
    } else {
        add(ctx, sk, &ended(ctx, sk, from));
    }
}

const NOTHING: FlowCounts = FlowCounts {
    opened: 0,
    failed: 0,
    closed: 0,
    sent_bytes: 0,
    received_bytes: 0,
    retransmits: 0,
    rtt_micros: 0,
    rtts: 0,
};

/// What there is to say of a connection at its end.
#[inline(always)]
fn ended(ctx: &SockOpsContext, sk: *mut bpf_sock, from: u32) -> FlowCounts {
    let retransmits = u64::from(total_retrans(ctx));
    if matches!(from, BPF_TCP_SYN_SENT | BPF_TCP_SYN_RECV) {
        return FlowCounts { failed: 1, retransmits, ..NOTHING };
    }
    // The kernel keeps eighths of microseconds.
    let rtt = u64::from(srtt_us(ctx) >> 3);

    let acknowledged = bytes_acked(ctx);
    let received = bytes_received(ctx);
    // TCP counts its own beginnings and ends as bytes: the SYN and the FIN that the peer has acknowledged, and the peer's FIN.
    // In the last of these states the socket may be given up before that comes, or after it.
    let fin_acknowledged = matches!(from, BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK)
        && snd_una(ctx) == snd_nxt(ctx);
    let fin_received = matches!(from, BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK)
        || from == BPF_TCP_FIN_WAIT2 && mark(sk).is_some_and(|at_half| received > at_half);
    FlowCounts {
        closed: 1,
        sent_bytes: acknowledged.saturating_sub(1 + u64::from(fin_acknowledged)),
        received_bytes: received.saturating_sub(u64::from(fin_received)),
        retransmits,
        rtt_micros: rtt,
        rtts: u64::from(rtt > 0),
        ..NOTHING
    }
}

/// Adds to the sum of this pod, destination and path.
#[inline(always)]
fn add(ctx: &SockOpsContext, sk: *mut bpf_sock, counts: &FlowCounts) {
    let cookie = netns_cookie(ctx);
    // A pod that is no longer enrolled is not to come back among the numbers.
    if PODS.get_ptr(cookie).is_none() {
        return;
    }
    // SAFETY: `sk` was checked by the caller.
    let dialled = unsafe { get::<Address>(from_ref(&DIALLED).cast(), sk).as_ref() }.copied();
    let (address, redirected) = match dialled {
        Some(dialled) => (dialled, 1),
        None => (Address::v6(remote_ip(ctx), remote_port(ctx) as u16), 0),
    };
    // SAFETY: not preallocated, so the element outlives this program's run.
    let destination = unsafe { SERVICES.get(&address) }.map_or(OTHER, |number| number & !DIRECT);
    let key = &FlowKey { netns_cookie: cookie, destination, redirected };
    let mut found = FLOWS.get_ptr_mut(key);
    if found.is_none() {
        // Somebody may be faster, and that is as good.
        let _exists = FLOWS.insert(key, &NOTHING, BPF_NOEXIST);
        found = FLOWS.get_ptr_mut(key);
    }
    let Some(sum) = found else { return count(Counter::FlowLost) };
    // SAFETY: not preallocated, so the element outlives this program's run. A connection may end in an interrupt while another
    // one is being added on this CPU, hence the atomics; other CPUs have values of their own.
    unsafe {
        plus(addr_of!((*sum).opened), counts.opened);
        plus(addr_of!((*sum).failed), counts.failed);
        plus(addr_of!((*sum).closed), counts.closed);
        plus(addr_of!((*sum).sent_bytes), counts.sent_bytes);
        plus(addr_of!((*sum).received_bytes), counts.received_bytes);
        plus(addr_of!((*sum).retransmits), counts.retransmits);
        plus(addr_of!((*sum).rtt_micros), counts.rtt_micros);
        plus(addr_of!((*sum).rtts), counts.rtts);
    }
}

const BPF_NOEXIST: u64 = 1;

/// An atomic addition. (`core` has none for this target, because the oldest kernels have no other atomics.)
///
/// # Safety
/// `to` must point to a counter of a map's element.
#[inline(always)]
unsafe fn plus(to: *const u64, number: u64) {
    // SAFETY: the caller's promise; elements are aligned to 8 bytes.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) to, in(reg) number) }
}

#[inline(always)]
fn mark(sk: *mut bpf_sock) -> Option<u64> {
    // SAFETY: callers have checked `sk`; the storage lives as long as the socket, which is locked.
    unsafe { get::<u64>(from_ref(&MARKED).cast(), sk).as_ref() }.copied()
}

/// # Safety
/// `sk` must be a socket that the verifier knows not to be null, and `map` hold values of type `T`.
#[inline(always)]
unsafe fn get<T>(map: *const c_void, sk: *mut bpf_sock) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { bpf_sk_storage_get(map.cast_mut(), sk.cast(), null_mut(), 0) }.cast()
}

/// Reads fields of the context, each at a constant offset (see [`crate::context`]).
macro_rules! fields {
    ($($name:ident: $type:ty),*) => {$(
        #[inline(always)]
        fn $name(ctx: &SockOpsContext) -> $type {
            // SAFETY: the kernel passes a valid context to the program.
            unsafe { read_volatile(addr_of!((*ctx.ops).$name)) }
        }
    )*};
}

fields!(bytes_acked: u64, bytes_received: u64, snd_nxt: u32, snd_una: u32, srtt_us: u32, total_retrans: u32);
