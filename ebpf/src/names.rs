//! getpeername and getsockname: a redirected application sees the address that it dialled, and its pod's own; one that is called
//! through the agent sees its client. (The kernel asks for the address that accept() gives in the same way.)

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext};
use sluice_ebpf::{Address, Pod};

use crate::{
    context::{LOOPBACK_V4, LOOPBACK_V6, ip4, ip6, set_ip4, set_ip6, set_port},
    maps::{CLIENT, DIALLED, PODS},
};

#[inline(always)]
pub(crate) fn peer_v4(ctx: &SockAddrContext) {
    if let Some(peer) = peer(ctx)
        && peer.is_v4()
    {
        set_ip4(ctx, peer.ip[3]);
        set_port(ctx, peer.port);
    }
}

/// An AF_INET6 socket that dialled an IPv4-mapped address, or was called from one, is told one, as from the kernel itself.
#[inline(always)]
pub(crate) fn peer_v6(ctx: &SockAddrContext) {
    if let Some(peer) = peer(ctx) {
        set_ip6(ctx, peer.ip);
        set_port(ctx, peer.port);
    }
}

/// The port is the true one. The address is changed only where the kernel chose loopback because of the redirection:
/// a socket that was bound to an address keeps it.
#[inline(always)]
pub(crate) fn own_v4(ctx: &SockAddrContext) {
    if ip4(ctx) == LOOPBACK_V4
        && dialled(ctx).is_some()
        && let Some(pod) = pod(ctx)
        && pod.address_v4 != 0
    {
        set_ip4(ctx, pod.address_v4);
    }
}

#[inline(always)]
pub(crate) fn own_v6(ctx: &SockAddrContext) {
    let shown = ip6(ctx);
    let mapped = shown == Address::v4(LOOPBACK_V4, 0).ip;
    if (mapped || shown == LOOPBACK_V6)
        && dialled(ctx).is_some()
        && let Some(pod) = pod(ctx)
    {
        if mapped {
            if pod.address_v4 != 0 {
                set_ip6(ctx, Address::v4(pod.address_v4, 0).ip);
            }
        } else if pod.address_v6 != [0; 4] {
            set_ip6(ctx, pod.address_v6);
        }
    }
}

/// Whom the application is to see at the other end, if that is another than the kernel's word.
#[inline(always)]
fn peer(ctx: &SockAddrContext) -> Option<Address> {
    match dialled(ctx) {
        // SAFETY: as below.
        None => unsafe { CLIENT.get_ptr_mut(ctx).as_ref() }.copied(),
        dialled => dialled,
    }
}

#[inline(always)]
fn dialled(ctx: &SockAddrContext) -> Option<Address> {
    // SAFETY: in this program type the kernel never leaves `sk` null; the storage is the socket's own, and lives as
    // long as the socket.
    unsafe { DIALLED.get_ptr_mut(ctx).as_ref() }.copied()
}

#[inline(always)]
fn pod(ctx: &SockAddrContext) -> Option<&'static Pod> {
    // SAFETY: the helper takes the context itself. The element outlives this run even if it is removed meanwhile.
    unsafe { PODS.get(bpf_get_netns_cookie(ctx.as_ptr())) }
}
