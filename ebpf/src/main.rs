//! The eBPF programs. Entry points only; one module a hook family:
//! [`connect`] (a connection is redirected), [`established`] (its original destination reaches the agent's socket),
//! [`release`] (the agent can tell a caller that has gone), [`names`] (the application sees what it dialled, and who
//! called it), [`flows`] (what becomes of connections is counted), [`steer`] (a connection from outside goes to the agent),
//! [`refuse`] (or to nobody, where it must not pass while no agent is there), [`listeners`] (where applications listen).
//!
//! `cargo xtask build` compiles this for `bpfel-unknown-none`. By hand, from the workspace's root, with Debian's
//! packages (with rustup's nightly and its rust-src, `cargo +nightly` takes the place of the two variables):
//!
//! ```sh
//! export PATH="$BPF_LINKER_DIR:/usr/lib/llvm-22/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
//! export CARGO_ENCODED_RUSTFLAGS="$(printf '%s\x1f%s\x1f%s' \
//!     "--cfg=bpf_target_arch=\"$(uname -m)\"" -Cdebuginfo=2 -Clink-arg=--btf)"
//! /usr/bin/cargo build --locked --release -Z build-std=core --target bpfel-unknown-none \
//!     --package sluice-ebpf --bin sluice-programs --features programs \
//!     --target-dir target/bpf-build
//! cp target/bpf-build/bpfel-unknown-none/release/sluice-programs target/bpf/sluice.bpf.o
//! ```
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod established;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod listeners;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod names;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
mod release;
#[cfg(target_arch = "bpf")]
mod steer;
#[cfg(target_arch = "bpf")]
mod threads;

/// Function names differ from section names, or bpf-linker says "symbol already defined".
#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, fentry, sk_lookup, sock_ops},
        programs::{
            BtfTracePointContext, FEntryContext, SkLookupContext, SockAddrContext, SockContext,
            SockOpsContext,
        },
    };

    use crate::{connect, established, flows, listeners, names, refuse, release, steer, threads};

    /// The verdict of every program but one ([`refuse`]): go on.
    const PROCEED: i32 = 1;

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn sluice_connect4(ctx: SockAddrContext) -> i32 {
        connect::v4(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn sluice_connect6(ctx: SockAddrContext) -> i32 {
        connect::v6(&ctx);
        PROCEED
    }

    #[sock_ops]
    pub(crate) fn sluice_established(ctx: SockOpsContext) -> u32 {
        established::on::<false>(&ctx);
        PROCEED as u32
    }

    #[sock_ops]
    pub(crate) fn sluice_established_mptcp(ctx: SockOpsContext) -> u32 {
        established::on::<true>(&ctx);
        PROCEED as u32
    }

    #[cgroup_sock(sock_release)]
    pub(crate) fn sluice_release(ctx: SockContext) -> i32 {
        release::on(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn sluice_flow4(ctx: SockAddrContext) -> i32 {
        flows::connecting(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn sluice_flow6(ctx: SockAddrContext) -> i32 {
        flows::connecting(&ctx);
        PROCEED
    }

    #[sock_ops]
    pub(crate) fn sluice_flows(ctx: SockOpsContext) -> u32 {
        flows::on(&ctx);
        PROCEED as u32
    }

    #[sk_lookup]
    pub(crate) fn sluice_steer(ctx: SkLookupContext) -> u32 {
        steer::on(&ctx);
        PROCEED as u32
    }

    #[sk_lookup]
    pub(crate) fn sluice_refuse(ctx: SkLookupContext) -> u32 {
        refuse::on(&ctx)
    }

    #[sock_ops]
    pub(crate) fn sluice_listeners(ctx: SockOpsContext) -> u32 {
        listeners::on(&ctx);
        PROCEED as u32
    }

    #[btf_tracepoint(function = "tcp_rcv_space_adjust")]
    pub(crate) fn sluice_received(ctx: BtfTracePointContext) -> i32 {
        threads::received(ctx.arg(0));
        0
    }

    #[btf_tracepoint(function = "tcp_sendmsg_locked")]
    pub(crate) fn sluice_sending(ctx: BtfTracePointContext) -> i32 {
        threads::sending(ctx.arg(0));
        0
    }

    #[fentry(function = "tcp_sendmsg")]
    pub(crate) fn sluice_sending_f(ctx: FEntryContext) -> i32 {
        threads::sending(ctx.arg(0));
        0
    }

    #[btf_tracepoint(function = "sched_process_exit")]
    pub(crate) fn sluice_exited(_: BtfTracePointContext) -> i32 {
        threads::exited();
        0
    }

    #[btf_tracepoint(function = "sched_process_exec")]
    pub(crate) fn sluice_execed(_: BtfTracePointContext) -> i32 {
        threads::execed();
        0
    }

    #[cgroup_sock(sock_release)]
    pub(crate) fn sluice_threads_release(ctx: SockContext) -> i32 {
        threads::released(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getpeername4)]
    pub(crate) fn sluice_getpeername4(ctx: SockAddrContext) -> i32 {
        names::peer_v4(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getpeername6)]
    pub(crate) fn sluice_getpeername6(ctx: SockAddrContext) -> i32 {
        names::peer_v6(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getsockname4)]
    pub(crate) fn sluice_getsockname4(ctx: SockAddrContext) -> i32 {
        names::own_v4(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getsockname6)]
    pub(crate) fn sluice_getsockname6(ctx: SockAddrContext) -> i32 {
        names::own_v6(&ctx);
        PROCEED
    }

    /// No helper in use is reserved to GPL programs.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 11] = *b"Apache-2.0\0";

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these programs run in the kernel: build them with `cargo xtask build`");
}
