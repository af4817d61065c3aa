//! sock_ops, and connect4 and connect6 once more: what becomes of pods' connections, redirected or not.
//!
//! Programs of their own, so that whatever a kernel has against them, capture does not depend on them. A socket of an
//! enrolled pod is marked at `connect()`, where it is known who connects: the agent's own connections in a pod's network
//! namespace are not the pod's. When the connect goes out its destination is final (it was redirected, or was not), and the
//! kernel is asked to tell of its changes of state. At its end the numbers that TCP has kept all along are added up.
//! So between a connection's beginning and its end nothing is run for it.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{addr_of, from_ref, null_mut, read_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
        BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK,
        bpf_sock,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    programs::{SockAddrContext, SockOpsContext},
};
use sluice_ebpf::{Address, Counter, FlowCounts, FlowKey, Followed, OTHER};

use crate::{
    connect::{IPPROTO_TCP, is_agent},
    established::{remote_ip, remote_port, socket},
    maps::{DIALLED, FLOWS, FOLLOWED, PODS, SERVICES, count},
};

/// A process connects.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockAddrContext) {
    // SAFETY: the kernel passes a valid context to the program.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return;
    }
    // SAFETY: the helper takes the context itself.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if PODS.get_ptr(cookie).is_none() || is_agent() {
        return;
    }
    let key = FlowKey { netns_cookie: cookie, destination: OTHER, redirected: 0 };
    let mut fresh = Followed { key, received_at_half: 0, opened: 0, reserved: 0 };
    // SAFETY: `sk` is valid, and the storage is as large as `Followed`. A socket can connect more than once, and the helper
    // does not replace what is there, hence the write. Without memory for it the connection is not counted.
    unsafe {
        if let Some(followed) = FOLLOWED.get_or_insert_ptr_mut(ctx, Some(&mut fresh)).as_mut() {
            followed.opened = 0;
        }
    }
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
    let Some(sk) = socket(ctx) else { return };
    let Some(followed) = followed(sk) else { return };
    // SAFETY: `sk` was checked.
    let dialled = unsafe { get::<Address>(from_ref(&DIALLED).cast(), sk).as_ref() }.copied();
    let (address, redirected) = match dialled {
        Some(dialled) => (dialled, 1),
        None => (Address::v6(remote_ip(ctx), remote_port(ctx) as u16), 0),
    };
    // SAFETY: not preallocated, so the element outlives this program's run.
    followed.key.destination = unsafe { SERVICES.get(&address) }.copied().unwrap_or(OTHER);
    followed.key.redirected = redirected;
    // Others' wishes stay. If it is refused the connection is not counted.
    let _refused = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

#[inline(always)]
fn changing(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(followed) = followed(sk) else { return };
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    if to == BPF_TCP_ESTABLISHED {
        followed.opened = 1;
        add(&followed.key, &FlowCounts { opened: 1, ..NOTHING });
    } else if to == BPF_TCP_FIN_WAIT2 {
        followed.received_at_half = bytes_received(ctx);
    } else if to == BPF_TCP_CLOSE {
        add(&followed.key, &ended(ctx, followed, from));
        // The kernel may say it again when the socket goes.
        // SAFETY: `sk` was checked.
        let _absent_is_fine = unsafe { FOLLOWED.delete(sk) };
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
fn ended(ctx: &SockOpsContext, followed: &Followed, from: u32) -> FlowCounts {
    let retransmits = u64::from(total_retrans(ctx));
    if followed.opened == 0 {
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
        || from == BPF_TCP_FIN_WAIT2 && received > followed.received_at_half;
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

#[inline(always)]
fn add(key: &FlowKey, counts: &FlowCounts) {
    // A pod that is no longer enrolled is not to come back among the numbers.
    if PODS.get_ptr(key.netns_cookie).is_none() {
        return;
    }
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
fn followed(sk: *mut bpf_sock) -> Option<&'static mut Followed> {
    // SAFETY: the storage is the socket's own and lives as long as the socket, which is locked.
    unsafe { get::<Followed>(from_ref(&FOLLOWED).cast(), sk).as_mut() }
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
