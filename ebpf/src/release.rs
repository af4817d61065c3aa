//! sock_release: an application lets go of a socket that was redirected.
//!
//! An end of what a caller sends (a FIN) does not tell `close()` from `shutdown(SHUT_WR)`, after which the caller still
//! awaits an answer. Here the kernel tells: this hook runs when the last holder of a socket lets go of it, before the FIN
//! that follows is sent (`inet_release` in Linux, `net/ipv4/af_inet.c`), and never at a half-close. So who finds the end of
//! a connection finds the cookie in the map, if the caller has closed it.

use core::{ffi::c_void, ptr::from_ref, ptr::null_mut};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get},
    programs::SockContext,
};

use crate::maps::{DIALLED, RELEASED};

#[inline(always)]
pub(crate) fn on(ctx: &SockContext) {
    let map = from_ref(&DIALLED).cast_mut().cast::<c_void>();
    // SAFETY: in this program type the context is the socket, and the helper takes it as such.
    let dialled = unsafe { bpf_sk_storage_get(map, ctx.as_ptr(), null_mut(), 0) };
    if dialled.is_null() {
        return;
    }
    // SAFETY: the helper takes the context itself.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // If it cannot be kept, the caller is taken for one that still listens.
    let _no_memory = RELEASED.insert(&socket, &0, 0);
}
