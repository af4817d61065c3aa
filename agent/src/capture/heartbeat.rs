//! Proves to the programs that the agent is alive. When the beat stops they stop redirecting, within a second.
//!
//! A thread of its own beats, so that a busy runtime does not look dead. But what it writes is when the slowest worker
//! of the proxy was last seen alive: a worker that hangs takes the beat with it.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Silence, maps::Heartbeat};

/// A tenth of what the programs tolerate.
const EVERY: Duration = Duration::from_millis(100);

/// Beats until it is dropped.
pub(crate) struct Beating {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The first beat is done when this returns.
pub(crate) fn start(mut heartbeat: Heartbeat, silence: Silence) -> io::Result<Beating> {
    let mut beat = move || {
        let silence = u64::try_from(silence().as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = heartbeat.beat(now().saturating_sub(silence)) {
            tracing::error!(%error, "cannot tell the eBPF programs that the agent is alive: connections go direct");
        }
    };
    beat();
    let (stop, stopped) = mpsc::channel();
    let thread = thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            beat();
        }
    })?;
    Ok(Beating { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Beating {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat's thread panicked");
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as `bpf_ktime_get_ns` tells it.
fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local that outlives the call. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
