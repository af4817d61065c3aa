//! The context of the programs that see addresses (sock_addr), and the addresses that a redirected socket really has.
//!
//! The context is no ordinary memory: the verifier rewrites every access to it, and knows only accesses of whole words at
//! constant offsets. Volatile keeps the compiler from merging or reordering them.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::programs::SockAddrContext;
use sluice_ebpf::Address;

/// 127.0.0.1 in network byte order: where the agent listens.
pub(crate) const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
/// `::1` in network byte order.
pub(crate) const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

#[inline(always)]
pub(crate) fn ip4(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the kernel passes a valid context to the program.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip4)) }
}

#[inline(always)]
pub(crate) fn ip6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: as above.
    unsafe {
        let ip = addr_of!((*ctx.sock_addr).user_ip6).cast::<u32>();
        [read_volatile(ip), read_volatile(ip.add(1)), read_volatile(ip.add(2)), read_volatile(ip.add(3))]
    }
}

/// In host byte order.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as above. The big-endian port fills the first two of the four bytes.
    u16::from_be(unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_port)) } as u16)
}

#[inline(always)]
pub(crate) fn set_ip4(ctx: &SockAddrContext, ip: u32) {
    // SAFETY: as above.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip4), ip) }
}

#[inline(always)]
pub(crate) fn set_ip6(ctx: &SockAddrContext, words: [u32; 4]) {
    // SAFETY: as above.
    unsafe {
        let ip = addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u32>();
        write_volatile(ip, words[0]);
        write_volatile(ip.add(1), words[1]);
        write_volatile(ip.add(2), words[2]);
        write_volatile(ip.add(3), words[3]);
    }
}

#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: as above.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_port), u32::from(port.to_be())) }
}

/// Writes an address word by word, because a copy of the whole becomes a loop over its bytes.
///
/// # Safety
/// `to` must be valid for writes.
#[inline(always)]
pub(crate) unsafe fn write_address(to: *mut Address, address: &Address) {
    let [first, second, third, fourth] = address.ip;
    // SAFETY: the caller's promise.
    unsafe {
        write_volatile(addr_of_mut!((*to).ip[0]), first);
        write_volatile(addr_of_mut!((*to).ip[1]), second);
        write_volatile(addr_of_mut!((*to).ip[2]), third);
        write_volatile(addr_of_mut!((*to).ip[3]), fourth);
        write_volatile(addr_of_mut!((*to).port), address.port);
    }
}
