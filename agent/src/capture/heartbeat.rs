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

use super::Silence;

/// A tenth of what the programs tolerate.
const EVERY: Duration = Duration::from_millis(100);

/// Beats until it is dropped.
pub(crate) struct Beating {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Gives `write` the time of each beat, in nanoseconds of `CLOCK_MONOTONIC`. The first is done when this returns.
pub(crate) fn start(mut write: impl FnMut(u64) + Send + 'static, silence: Silence) -> io::Result<Beating> {
    let mut beat = move || {
        let silence = u64::try_from(silence().as_nanos()).unwrap_or(u64::MAX);
        write(now().saturating_sub(silence));
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
pub(crate) fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local that outlives the call. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    #[test]
    fn beats_are_as_old_as_the_slowest_worker() {
        let (beats, seen) = mpsc::channel();
        let silence = Arc::new(AtomicU64::new(0));
        let slowest = silence.clone();
        let beating = start(
            move |at| beats.send((at, now())).expect("the test listens"),
            Arc::new(move || Duration::from_secs(slowest.load(Ordering::Relaxed))),
        )
        .unwrap();
        let (at, written) = seen.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(at <= written && written - at < 1_000_000_000);

        silence.store(5, Ordering::Relaxed);
        // One may have been on its way.
        let old = seen.iter().take(10).find(|(at, written)| written - at >= 5_000_000_000);
        assert!(old.is_some());
        drop(beating);
        while seen.try_recv().is_ok() {}
        assert!(seen.recv_timeout(EVERY * 3).is_err(), "and end when dropped");
    }

    #[test]
    fn a_worker_that_was_never_alive_is_silent_since_boot() {
        let (beats, seen) = mpsc::channel();
        let _beating = start(
            move |at| {
                // The test ends before the thread.
                let _ = beats.send(at);
            },
            Arc::new(|| Duration::MAX),
        )
        .unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(10)), Ok(0));
    }
}
