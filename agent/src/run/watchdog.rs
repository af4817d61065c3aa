//! Ends the process when a worker does not come back: whoever watches it starts another.
//!
//! The heartbeat takes a silent worker's pods off within a second, so nobody waits for it; but nothing of theirs is
//! managed until it is back. A thread of its own watches, which waits for nothing that a worker might hold.

use std::{process, thread, time::Duration};

use crate::proxy::Proxy;

/// A worker that is silent for longer is given up.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Watches for as long as the process lives, or until the proxy has ended.
pub(super) fn start(proxy: &Proxy) -> std::io::Result<()> {
    let silence = proxy.silence();
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        let mut patience = Patience::default();
        while let Some(silent) = silence() {
            if patience.is_over(silent) {
                end(silent);
            }
            thread::sleep(EVERY);
        }
    })?;
    Ok(())
}

fn end(silent: Duration) {
    // Apart, as the worker that hangs may hold what is needed to say so.
    let saying = thread::Builder::new().spawn(move || {
        tracing::error!(
            silent_seconds = silent.as_secs(),
            "a worker does not come back: the agent ends, so that it is started anew; connections go direct"
        );
    });
    if saying.is_ok() {
        thread::sleep(Duration::from_millis(200));
    }
    process::exit(1);
}

/// Counts looks, not only time: after a process was stopped, or its machine was, all workers have been silent for long,
/// and are back a moment later.
#[derive(Debug, Default)]
struct Patience {
    looks: u32,
}

impl Patience {
    /// Takes in how long the slowest worker has been silent; tells whether it is to be waited for no longer.
    fn is_over(&mut self, silent: Duration) -> bool {
        if silent < EVERY * 2 {
            self.looks = 0;
            return false;
        }
        self.looks += 1;
        silent >= LIMIT && EVERY * (self.looks + 2) >= LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which look, counted from 1, patience is over.
    fn over(silences: impl IntoIterator<Item = u64>) -> Option<usize> {
        let mut patience = Patience::default();
        let is_over = silences.into_iter().position(|silent| patience.is_over(Duration::from_secs(silent)));
        is_over.map(|at| at + 1)
    }

    #[test]
    fn a_worker_that_is_silent_for_ten_seconds_is_given_up() {
        assert_eq!(over(0..60), Some(11), "silent for 0, 1 ... 10 s");
    }

    #[test]
    fn a_busy_worker_is_not() {
        assert_eq!(over((0..60).map(|second| second % 10)), None);
    }

    #[test]
    fn a_process_that_was_stopped_gets_as_long_again() {
        assert_eq!(over([0, 0, 3600, 0, 0, 0]), None);
        assert_eq!(over([0, 0, 3600, 3601, 3602, 3603, 3604, 3605, 3606, 3607, 3608]), Some(10));
    }
}
