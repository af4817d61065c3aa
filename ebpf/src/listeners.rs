//! sock_ops: on which of the steered ports applications listen.
//!
//! A program of its own, so that whatever a kernel has against it, the rest does not depend on it. A socket that begins to
//! listen in an enrolled pod is counted where the agent has made a place for its address, and the kernel is asked to tell of
//! its end. Connections that it accepts inherit that wish, and are let off before their first change of state.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_LISTEN,
    },
    programs::SockOpsContext,
};
use sluice_ebpf::{Address, Place};

use crate::{
    established::{local_ip, local_port, netns_cookie},
    maps::{LISTENING, PODS},
};

#[inline(always)]
pub(crate) fn on(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_LISTEN => add(ctx, -1),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        _ => {}
    }
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    if PODS.get_ptr(netns_cookie(ctx)).is_none() {
        return;
    }
    // One whose end would not be told is left to the agent, which looks for such.
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_ok() {
        add(ctx, 1);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags();
    if flags & BPF_SOCK_OPS_STATE_CB_FLAG != 0 {
        let _nothing_to_lose = ctx.set_cb_flags((flags & !BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}

#[inline(always)]
fn add(ctx: &SockOpsContext, number: i64) {
    let address = Address::v6(local_ip(ctx), local_port(ctx) as u16);
    let Some(count) = LISTENING.get_ptr_mut(Place::new(netns_cookie(ctx), address)) else { return };
    // An atomic addition. (`core` has none for this target.)
    // SAFETY: not preallocated, so the element outlives this program's run; elements are aligned to 8 bytes.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) number) }
}
