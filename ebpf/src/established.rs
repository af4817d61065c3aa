//! sock_ops: the original destination goes from the client's socket to the socket that the agent accepts; and, the other way
//! round, the address of a client from the agent's socket to the one that an application accepts.
//!
//! On loopback the client's end is established first, because the listener's end waits for the client's last
//! segment of the handshake. So what the client's end puts down under the connection's own addresses, the
//! listener's end always finds, and takes away. Looked up later (at accept) such an entry may belong to another
//! connection: clients reset and ports are used again.

use core::{
    ffi::c_void,
    ptr::{addr_of, from_ref, null_mut, read_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        bpf_sock,
    },
    btf_maps::SkStorage,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_getsockopt, bpf_sk_storage_get,
        bpf_skc_to_mptcp_sock,
    },
    programs::SockOpsContext,
};
use sluice_ebpf::{Address, Arrival, Arriving, Counter, Flow, Inbound, Options, Origin, Server};

use crate::{
    context::{LOOPBACK_V4, LOOPBACK_V6, write_address},
    maps::{ACCEPTED, ARRIVING, CALLING, CLIENT, DIALLED, IN_FLIGHT, INBOUND, count},
};

const AF_INET: u32 = 2;

const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const IPPROTO_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

#[inline(always)]
pub(crate) fn on<const MPTCP: bool>(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => dialling_end::<MPTCP>(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepting_end(ctx),
        _ => {}
    }
}

#[inline(always)]
fn dialling_end<const MPTCP: bool>(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: `sk` was checked; the storage lives as long as the socket.
    if let Some(client) = unsafe { storage(&CALLING, sk, null_mut(), 0).as_ref() } {
        let (agent, application) = ((local_ip(ctx), local_port(ctx)), (remote_ip(ctx), remote_port(ctx)));
        // SAFETY: the helper takes the context itself.
        let arriving = Arriving { client: *client, call: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } };
        if ARRIVING.insert(&arrival(ctx, agent, application), &arriving, 0).is_err() {
            count(Counter::CallerLost);
        }
        return;
    }
    // SAFETY: as above.
    let Some(dialled) = (unsafe { storage(&DIALLED, sk, null_mut(), 0).as_ref() }) else { return };
    if MPTCP {
        name_whole(sk, dialled);
    }
    // SAFETY: the helper takes the context itself.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let origin = Origin { dialled: *dialled, reserved: 0, socket, options: options(ctx) };
    let flow = Flow {
        netns_cookie: netns_cookie(ctx),
        client: local_ip(ctx),
        client_port: local_port(ctx),
        listener_port: remote_port(ctx),
    };
    match IN_FLIGHT.insert(&flow, &origin, 0) {
        Ok(()) => count(Counter::Established),
        Err(_) => count(Counter::Lost),
    }
}

/// A multipath TCP socket is told what its first subflow has dialled, so that it can say whom it is connected to.
#[inline(always)]
fn name_whole(sk: *mut bpf_sock, dialled: &Address) {
    // SAFETY: the helper takes any TCP socket.
    let whole = unsafe { bpf_skc_to_mptcp_sock(sk.cast()) };
    if whole.is_null() {
        return;
    }
    let mut value = *dialled;
    // SAFETY: `whole` was checked; the storage is as large as `Address`. What is there already is not replaced, hence the writes.
    unsafe {
        let stored = storage(&DIALLED, whole.cast(), &mut value, BPF_SK_STORAGE_GET_F_CREATE.into());
        if !stored.is_null() {
            write_address(stored, dialled);
        }
    }
}

/// What the application has set. Linux before 6.1 does not say: then it is taken to have set nothing.
#[inline(always)]
fn options(ctx: &SockOpsContext) -> Options {
    let keepalive = option(ctx, SOL_SOCKET, SO_KEEPALIVE) != 0;
    let of_keepalive = |name| if keepalive { option(ctx, IPPROTO_TCP, name) } else { 0 };
    Options {
        user_timeout: option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT),
        keepalive_time: of_keepalive(TCP_KEEPIDLE),
        keepalive_interval: of_keepalive(TCP_KEEPINTVL),
        keepalive_probes: of_keepalive(TCP_KEEPCNT),
    }
}

/// A socket option that is one number; 0 if it cannot be read.
#[inline(always)]
fn option(ctx: &SockOpsContext, level: i32, name: i32) -> u32 {
    let mut value = 0_u32;
    let length = size_of::<u32>() as i32;
    // SAFETY: the helper takes the context itself, and writes as many bytes as it is told.
    let result = unsafe { bpf_getsockopt(ctx.as_ptr(), level, name, (&raw mut value).cast(), length) };
    if result == 0 { value } else { 0 }
}

#[inline(always)]
fn accepting_end(ctx: &SockOpsContext) {
    // The agent listens on loopback only, and calls applications from there. All other inbound connections of all pods leave
    // here.
    let here = local_ip(ctx);
    if !is_loopback(&here) {
        if is_loopback(&remote_ip(ctx)) {
            called_end(ctx, here);
        }
        return;
    }
    let flow = Flow {
        netns_cookie: netns_cookie(ctx),
        client: remote_ip(ctx),
        client_port: remote_port(ctx),
        listener_port: local_port(ctx),
    };
    // SAFETY: copied at once. An LRU element may be used again meanwhile only when the map is full of younger ones.
    let Some(mut origin) = (unsafe { IN_FLIGHT.get(&flow) }).copied() else { return };
    let _removed_by_a_twin = IN_FLIGHT.remove(&flow);
    let Some(sk) = socket(ctx) else {
        count(Counter::Lost);
        return;
    };
    // SAFETY: `sk` was checked.
    let stored = unsafe { storage(&ACCEPTED, sk, &mut origin, BPF_SK_STORAGE_GET_F_CREATE.into()) };
    count(if stored.is_null() { Counter::Lost } else { Counter::Accepted });
}

/// An application's end of a connection that comes from its own loopback: most likely the agent stands for a client.
#[inline(always)]
fn called_end(ctx: &SockOpsContext, here: [u32; 4]) {
    let key = arrival(ctx, (remote_ip(ctx), remote_port(ctx)), (here, local_port(ctx)));
    // SAFETY: copied at once, as above.
    let Some(Arriving { mut client, call }) = (unsafe { ARRIVING.get(&key) }).copied() else { return };
    let _removed_by_a_twin = ARRIVING.remove(&key);
    let create = BPF_SK_STORAGE_GET_F_CREATE.into();
    let mut stored = false;
    if let Some(sk) = socket(ctx) {
        // SAFETY: `sk` was checked.
        stored = !unsafe { storage(&CLIENT, sk, &mut client.address, create) }.is_null();
        if client.followed != 0 {
            let server = Server::new(netns_cookie(ctx), local_port(ctx));
            let mut inbound = Inbound { server, call, number: 0, reader: 0, last_reader: 0 };
            // Without it, what is read there is tied to nothing.
            // SAFETY: `sk` was checked.
            let _no_memory = unsafe { storage(&INBOUND, sk, &mut inbound, create) };
        }
    }
    if !stored {
        count(Counter::CallerLost);
    }
}

#[inline(always)]
fn arrival(
    ctx: &SockOpsContext,
    (agent, agent_port): ([u32; 4], u32),
    (application, application_port): ([u32; 4], u32),
) -> Arrival {
    Arrival { netns_cookie: netns_cookie(ctx), agent, application, agent_port, application_port }
}

/// 127.0.0.1 or `::1`.
#[inline(always)]
fn is_loopback(ip: &[u32; 4]) -> bool {
    *ip == Address::v4(LOOPBACK_V4, 0).ip || *ip == LOOPBACK_V6
}

/// Null for a request socket and on some paths of the kernel: loaded once, and that copy is checked.
#[inline(always)]
pub(crate) fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel passes a valid context to the program.
    let sk = unsafe { read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)) };
    (!sk.is_null()).then_some(sk)
}

/// aya-ebpf's own accessor takes a `SockAddrContext`.
///
/// # Safety
/// `sk` must be a socket that the verifier knows not to be null.
#[inline(always)]
unsafe fn storage<T>(map: &SkStorage<T>, sk: *mut bpf_sock, value: *mut T, flags: u64) -> *mut T {
    let map = from_ref(map).cast_mut().cast::<c_void>();
    // SAFETY: the caller's promise; values of this map are of this type.
    unsafe { bpf_sk_storage_get(map, sk.cast(), value.cast(), flags) }.cast()
}

#[inline(always)]
pub(crate) fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context itself.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

// Both families' fields are read, and then one is chosen. The other way round the compiler makes one load at a
// variable offset of it, which the verifier rejects.

#[inline(always)]
pub(crate) fn local_ip(ctx: &SockOpsContext) -> [u32; 4] {
    // SAFETY: the kernel passes a valid context to the program.
    unsafe { choose(ctx, addr_of!((*ctx.ops).local_ip4), addr_of!((*ctx.ops).local_ip6).cast()) }
}

#[inline(always)]
pub(crate) fn remote_ip(ctx: &SockOpsContext) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { choose(ctx, addr_of!((*ctx.ops).remote_ip4), addr_of!((*ctx.ops).remote_ip6).cast()) }
}

/// # Safety
/// `ip4` and `ip6` must point to fields of the context.
#[inline(always)]
unsafe fn choose(ctx: &SockOpsContext, ip4: *const u32, ip6: *const u32) -> [u32; 4] {
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
    if ctx.family() == AF_INET { Address::v4(v4, 0).ip } else { v6 }
}

/// In host byte order, as the kernel gives it.
#[inline(always)]
pub(crate) fn local_port(ctx: &SockOpsContext) -> u32 {
    ctx.local_port()
}

/// In host byte order. The kernel gives it big-endian, in all four bytes.
#[inline(always)]
pub(crate) fn remote_port(ctx: &SockOpsContext) -> u32 {
    u32::from_be(ctx.remote_port())
}
