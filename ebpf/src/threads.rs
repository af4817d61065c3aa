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
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_ktime_get_ns,
        bpf_sk_storage_get,
    },
    programs::SockContext,
};
use sluice_ebpf::{Call, Conduct, Inbound, Process, Server, TRIAL, Thread, Tie};

use crate::maps::{CALLS, DIALLED, INBOUND, LIVES, PROCESSES, SERVERS, THREADS, TIES};

/// Bytes were copied out of a socket's receive queue, by the thread that runs.
#[inline(always)]
pub(crate) fn received(sk: *mut c_void) {
    let Some(inbound) = of(&INBOUND, sk) else { return };
    // What the agent does not number is no request.
    let Some(call) = call(inbound.call) else { return };
    let thread = current();
    let Some(life) = life(thread) else { return };
    let Some(conduct) = begun(inbound.server, thread, life) else { return };
    if inbound.number == call.number {
        // More of it; or, without a reader, what is left of one that has a response already.
        if inbound.reader != thread && inbound.reader != 0 {
            mark(conduct, Conduct::HANDS_OVER);
        }
        return;
    }
    let mut handles = Thread {
        server: inbound.server,
        life,
        call: inbound.call,
        number: call.number,
        state: Thread::HANDLES,
        connections: 1,
        ..Thread::default()
    };
    if let Some(before) = of_thread(thread) {
        if before.state != Thread::IDLE && before.call != inbound.call && self::call(before.call).is_some() {
            mark(conduct, Conduct::MULTIPLEXES);
            return;
        }
        handles.connections = before.connections + u64::from(before.call != inbound.call);
        handles.responded = before.responded;
    }
    let last = inbound.last_reader;
    if last != thread
        && let Some(other) = of_thread(last)
        && other.state == Thread::CALLS
        && other.server == inbound.server
        && other.life == life
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
    if handling.call != inbound.call || handling.state == Thread::IDLE {
        return;
    }
    let called = handling.state == Thread::CALLS;
    handling.state = Thread::IDLE;
    if reader != current() {
        // Whose it was, should it be another process.
        if let Some(conduct) = conduct(inbound.server, handling.life) {
            mark(conduct, Conduct::HANDS_OVER);
        }
        return;
    }
    handling.responded += u64::from(called);
    if let Some(call) = CALLS.get_ptr_mut(inbound.call) {
        // SAFETY: not preallocated, so the element outlives this program's run even if it is removed meanwhile.
        unsafe { (*call).answered = inbound.number };
    }
}

/// A request to a managed service, or more of it.
#[inline(always)]
fn calling(sk: *mut c_void) {
    let (mut call, mut number) = (0, 0);
    if let Some(handling) = of_thread(current())
        && handling.state != Thread::IDLE
    {
        handling.state = Thread::CALLS;
        if let Some(conduct) = conduct(handling.server, handling.life)
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
            handling.state = Thread::IDLE;
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
    let is_first = process(thread) == thread as u32;
    if let Some(ended) = of_thread(thread) {
        if !is_first
            && ended.state == Thread::IDLE
            && ended.connections == 1
            && ended.responded != 0
            && let Some(conduct) = conduct(ended.server, ended.life)
        {
            add(&raw mut conduct.shown);
        }
        let _gone = THREADS.remove(thread);
    }
    if is_first {
        // Its number will be another's.
        let _not_followed = LIVES.remove(process(thread));
    }
}

/// The process that runs has become another program, whose first thread has the number of the process.
#[inline(always)]
pub(crate) fn execed() {
    let thread = current();
    if LIVES.remove(process(thread)).is_ok() {
        let _handled_nothing = THREADS.remove(thread);
    }
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

/// That of a process; `None`: it is not followed, or has shown that it cannot be.
#[inline(always)]
fn conduct(server: Server, life: u64) -> Option<&'static mut Conduct> {
    SERVERS.get_ptr(server)?;
    // SAFETY: an LRU element may be used again meanwhile only when the map is full of younger ones.
    let conduct = unsafe { &mut *PROCESSES.get_ptr_mut(Process { server, life })? };
    (conduct.fault == 0).then_some(conduct)
}

/// The same, which begins with the first request that it reads.
#[inline(always)]
fn begun(server: Server, thread: u64, life: u64) -> Option<&'static mut Conduct> {
    SERVERS.get_ptr(server)?;
    let key = Process { server, life };
    if PROCESSES.get_ptr(key).is_none() {
        let begins = Conduct { process: process(thread), ..Conduct::default() };
        let _another_was_first = PROCESSES.insert(&key, &begins, BPF_NOEXIST.into());
    }
    conduct(server, life)
}

/// That of a thread's process, which begins with the first request that it reads.
#[inline(always)]
fn life(thread: u64) -> Option<u64> {
    let process = process(thread);
    if LIVES.get_ptr(process).is_none() {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        let _another_was_first = LIVES.insert(&process, &now, BPF_NOEXIST.into());
    }
    // SAFETY: copied at once.
    LIVES.get_ptr(process).map(|life| unsafe { *life })
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

#[inline(always)]
fn process(thread: u64) -> u32 {
    (thread >> 32) as u32
}

/// The thread that runs: its process in the upper half, itself in the lower one.
#[inline(always)]
fn current() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_pid_tgid() }
}
