//! The receive and send paths of TCP: which request that came to a pod one of its requests is sent for (`handling`).
//!
//! ```text
//!             reads a request                     responds to it, or the connection is closed
//!   nothing -------------------> handles a request ------------------------------------------> nothing
//!                                  |        |
//!     reads another one: MULTIPLEXES        another thread reads it on or responds to it: HANDS_OVER
//! ```
//!
//! A process of which either fault is seen is marked for good: nothing is known of it by its threads. Until then an event loop looks
//! like a thread that handles one request at a time. So nothing is tied before [`TRIAL`] requests have shown what only the latter
//! does:
//! - While it waits for a response of its own, a request on a connection that it has read from before is read by another thread. An
//!   event loop keeps its connections, and a process that handles one request at a time has no other thread.
//! - It ends after the one connection of its life, and its process goes on. An event loop does not.
//!
//! What a single thread does that runs one request at a time cannot be told from one that runs others beside it (gevent, asyncio,
//! a scheduler of its own), so it is never trusted.
//!
//! These programs run for each read and write of TCP on the node while a pod asks for it. Almost all leave at the first look for
//! storage on the socket. What the kernel keeps in its structures is not read, which programs of this licence may not.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{from_ref, null_mut},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    btf_maps::SkStorage,
    helpers::generated::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_sk_storage_get,
    },
    programs::SockContext,
};
use sluice_ebpf::{Call, Conduct, Inbound, Process, Server, TRIAL, Thread, Tie};

use crate::maps::{CALLS, DIALLED, INBOUND, PROCESSES, SERVERS, THREADS, TIES};

/// Bytes were copied out of a socket's receive queue, by the thread that runs.
#[inline(always)]
pub(crate) fn received(sk: *mut c_void) {
    let Some(inbound) = of(&INBOUND, sk) else { return };
    // What the agent does not number is no request.
    let Some(call) = call(inbound.call) else { return };
    let thread = current();
    let Some(conduct) = begun(inbound.server, thread) else { return };
    if inbound.number == call.number {
        // More of it; or, without a reader, what is left of one that has a response already.
        if inbound.reader != thread && inbound.reader != 0 {
            mark(conduct, Conduct::HANDS_OVER);
        }
        return;
    }
    let mut handles = Thread {
        server: inbound.server,
        call: inbound.call,
        number: call.number,
        handles: 1,
        connections: 1,
        ..Thread::default()
    };
    if let Some(before) = of_thread(thread) {
        if before.handles != 0 && before.call != inbound.call && self::call(before.call).is_some() {
            mark(conduct, Conduct::MULTIPLEXES);
            return;
        }
        handles.connections = before.connections + u64::from(before.call != inbound.call);
        handles.answered = before.answered;
    }
    let last = inbound.last_reader;
    if last != thread
        && let Some(other) = of_thread(last)
        && other.handles != 0
        && other.calls != 0
        && other.server == inbound.server
        && last >> 32 == thread >> 32
    {
        add(&raw mut conduct.shown);
    }
    (inbound.number, inbound.reader, inbound.last_reader) = (call.number, thread, thread);
    // If it cannot be kept, the thread handles nothing that is known.
    let _full = THREADS.insert(&thread, &handles, 0);
}

/// The thread that runs writes to a socket, before the bytes leave.
#[inline(always)]
pub(crate) fn sending(sk: *mut c_void) {
    if let Some(inbound) = of(&INBOUND, sk) {
        responding(inbound);
    } else if of(&DIALLED, sk).is_some() {
        calling(sk);
    }
}

/// The first bytes of a response.
#[inline(always)]
fn responding(inbound: &mut Inbound) {
    let reader = inbound.reader;
    if reader == 0 {
        return;
    }
    inbound.reader = 0;
    let Some(handling) = of_thread(reader) else { return };
    if handling.call != inbound.call || handling.handles == 0 {
        return;
    }
    handling.handles = 0;
    if reader != current() {
        // Whose it was, should it be another process.
        if let Some(conduct) = conduct(inbound.server, reader) {
            mark(conduct, Conduct::HANDS_OVER);
        }
        return;
    }
    handling.answered += u64::from(handling.calls != 0);
    if let Some(call) = CALLS.get_ptr_mut(inbound.call) {
        // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
        unsafe { (*call).answered = inbound.number };
    }
}

/// A request to a managed service, or more of it.
#[inline(always)]
fn calling(sk: *mut c_void) {
    let (mut call, mut number) = (0, 0);
    let thread = current();
    if let Some(handling) = of_thread(thread)
        && handling.handles != 0
    {
        handling.calls = 1;
        if let Some(conduct) = conduct(handling.server, thread)
            && conduct.shown >= TRIAL
        {
            (call, number) = (handling.call, handling.number);
        }
    }
    // SAFETY: `sk` is a socket, as the caller was given it.
    let socket = unsafe { bpf_get_socket_cookie(sk) };
    match TIES.get_ptr_mut(socket) {
        Some(tie) => {
            // SAFETY: not preallocated, as above. Two threads that write to one connection at once send no requests of HTTP/1.
            let tie = unsafe { &mut *tie };
            if tie.call != call || tie.number != number {
                (tie.call, tie.number) = (call, number);
                tie.changes += 1;
            }
        }
        // What was never tied is not.
        None if call == 0 => {}
        None => {
            let _full = TIES.insert(&socket, &Tie { call, number, changes: 1 }, 0);
        }
    }
}

/// The last holder of a socket lets go of it: what it has not responded to, it never will; and what it sends is for nothing.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    let sk = ctx.as_ptr();
    if let Some(inbound) = of(&INBOUND, sk) {
        if inbound.reader != 0
            && let Some(handling) = of_thread(inbound.reader)
            && handling.call == inbound.call
        {
            handling.handles = 0;
        }
    } else if of(&DIALLED, sk).is_some() {
        // SAFETY: the helper takes the context itself.
        let _never_tied = TIES.remove(unsafe { bpf_get_socket_cookie(sk) });
    }
}

/// The thread that runs ends.
#[inline(always)]
pub(crate) fn exited() {
    let thread = current();
    let Some(ended) = of_thread(thread) else { return };
    if ended.handles == 0
        && ended.connections == 1
        && ended.answered != 0
        && thread >> 32 != thread & u64::from(u32::MAX)
        && let Some(conduct) = conduct(ended.server, thread)
    {
        add(&raw mut conduct.shown);
    }
    // Its number will be another's.
    let _gone = THREADS.remove(thread);
}

/// What is kept with a socket.
#[inline(always)]
fn of<T>(map: &SkStorage<T>, sk: *mut c_void) -> Option<&'static mut T> {
    let map = from_ref(map).cast_mut().cast::<c_void>();
    // SAFETY: the callers are given `sk` by the kernel; values of this map are of this type, and live as long as the socket.
    unsafe { bpf_sk_storage_get(map, sk, null_mut(), 0).cast::<T>().as_mut() }
}

#[inline(always)]
fn of_thread(thread: u64) -> Option<&'static mut Thread> {
    // SAFETY: an LRU element may be used again meanwhile only when the map is full of younger ones.
    THREADS.get_ptr_mut(thread).map(|thread| unsafe { &mut *thread })
}

#[inline(always)]
fn call(call: u64) -> Option<Call> {
    // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
    unsafe { CALLS.get(call) }.copied()
}

/// That of the process of a thread; `None`: it is not followed, or has shown that it cannot be.
#[inline(always)]
fn conduct(server: Server, thread: u64) -> Option<&'static mut Conduct> {
    SERVERS.get_ptr(server)?;
    // SAFETY: an LRU element may be used again meanwhile only when the map is full of younger ones.
    let conduct = unsafe { &mut *PROCESSES.get_ptr_mut(Process::of(server, thread))? };
    (conduct.fault == 0).then_some(conduct)
}

/// The same, which begins with the first request that it reads.
#[inline(always)]
fn begun(server: Server, thread: u64) -> Option<&'static mut Conduct> {
    SERVERS.get_ptr(server)?;
    let process = Process::of(server, thread);
    if PROCESSES.get_ptr(process).is_none() {
        let _another_was_first = PROCESSES.insert(&process, &Conduct::default(), BPF_NOEXIST.into());
    }
    conduct(server, thread)
}

#[inline(always)]
fn mark(conduct: &mut Conduct, fault: u32) {
    // SAFETY: the helper writes as many bytes as it is told.
    unsafe { bpf_get_current_comm((&raw mut conduct.name).cast(), size_of_val(&conduct.name) as u32) };
    conduct.fault = fault;
}

#[inline(always)]
fn add(to: *mut u64) {
    // An atomic addition. (`core` has none for this target.)
    // SAFETY: a field of a map's element, aligned to 8 bytes.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) to, in(reg) 1_u64) }
}

/// The thread that runs: its process in the upper half, itself in the lower one.
#[inline(always)]
fn current() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_pid_tgid() }
}
