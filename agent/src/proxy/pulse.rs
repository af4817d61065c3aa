//! Whether a worker keeps up: how long a task waits that is ready to run.
//!
//! A beat that only tells that a timer fires says nothing of those who wait: it comes in time while connections wait for
//! seconds. So the beat is a task like any other, and a worker whose tasks wait for longer than [`LATE`] does not beat. When no
//! beat has come for a second the eBPF programs let connections pass, and they are redirected again once the worker has kept
//! up for a while.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::worker::Status;
use crate::{
    clock::Nanos,
    observe::metrics::{Kind, Metrics, Pulled},
};

/// How often it is measured.
pub(crate) const EVERY: Duration = Duration::from_millis(100);

/// A worker whose tasks wait for longer does more harm than good.
const LATE: Nanos = Nanos::of(Duration::from_millis(500));

/// How often in a row a worker must have been in time to be trusted again.
const IN_TIME: u32 = 5;

/// How long the longest wait is told of, at least.
const TOLD_FOR: Nanos = Nanos::of(Duration::from_secs(15));

/// How often the log tells of a worker that falls behind, at most.
const LOGGED_EVERY: Nanos = Nanos::of(Duration::from_secs(10));

/// Whether a worker keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// It beats. After the log has told that it did not: for so long it did not.
    Up { again: Option<Nanos> },
    /// It does not beat. `first` is where the log is to tell of it.
    Behind { first: bool },
}

/// What was measured of a worker.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// How often it is still to be in time.
    owes: u32,
    /// Since when it does not keep up, if the log tells of that.
    behind: Option<Nanos>,
    logged: Option<Nanos>,
    /// The longest wait, in this span of time and in the one before.
    longest: Nanos,
    before: Nanos,
    since: Nanos,
}

impl Pulse {
    /// A ready task has waited for so long.
    pub(crate) fn measured(&mut self, waited: Nanos, now: Nanos) -> Keeps {
        if now.since(self.since) > TOLD_FOR {
            self.before = std::mem::take(&mut self.longest);
            self.since = now;
        }
        self.longest = self.longest.max(waited);
        self.owes = if waited > LATE { IN_TIME } else { self.owes.saturating_sub(1) };
        if self.owes == 0 {
            return Keeps::Up { again: self.behind.take().map(|since| now.since(since)) };
        }
        let first = self.behind.is_none() && self.logged.is_none_or(|at| now.since(at) >= LOGGED_EVERY);
        if first {
            self.logged = Some(now);
            // It was no longer in time when the task became ready.
            self.behind = Some(Nanos(now.0.saturating_sub(waited.0)));
        }
        Keeps::Behind { first }
    }

    /// The longest that a task has waited of late.
    pub(crate) fn longest(&self) -> Nanos {
        self.longest.max(self.before)
    }
}

/// Registers the number. It is that of these workers.
pub(crate) fn register(metrics: &Metrics, workers: Vec<Arc<Status>>) -> Result<(), prometheus::Error> {
    metrics.pull(Pulled {
        name: "sluice_worker_delay_seconds",
        help: "The longest that a ready task of a worker thread had to wait in the last 15 to 30 seconds. Above 0.5 the worker sends no heartbeat, and new connections bypass the agent.",
        kind: Kind::Gauge,
        labels: &["worker"],
        read: Box::new(move |write| {
            for (index, worker) in workers.iter().enumerate() {
                let delay = Duration::from_nanos(worker.delay.load(Relaxed));
                write(&[&index.to_string()], delay.as_secs_f64());
            }
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000_000);

    fn after(millis: u64) -> Nanos {
        START + Nanos::of(Duration::from_millis(millis))
    }

    fn millis(millis: u64) -> Nanos {
        Nanos::of(Duration::from_millis(millis))
    }

    fn beats(pulse: &mut Pulse, waited: u64) -> bool {
        matches!(pulse.measured(millis(waited), START), Keeps::Up { .. })
    }

    #[test]
    fn who_is_late_does_not_beat_until_it_has_been_in_time_for_a_while() {
        let mut pulse = Pulse::default();
        assert!(beats(&mut pulse, 0) && beats(&mut pulse, 500));
        assert!(!beats(&mut pulse, 501));
        let seen: Vec<_> = (0..6).map(|_| beats(&mut pulse, 1)).collect();
        assert_eq!(seen, [false, false, false, false, true, true]);
        // Now and then is not in time.
        for _ in 0..20 {
            assert!(!beats(&mut pulse, 600));
            assert!((0..4).all(|_| !beats(&mut pulse, 50)));
        }
    }

    #[test]
    fn it_is_told_once_that_a_worker_falls_behind_and_once_that_it_keeps_up_again() {
        let mut pulse = Pulse::default();
        let up = Keeps::Up { again: None };
        assert_eq!(pulse.measured(millis(1), after(0)), up);
        assert_eq!(pulse.measured(millis(700), after(800)), Keeps::Behind { first: true });
        assert_eq!(pulse.measured(millis(600), after(1500)), Keeps::Behind { first: false });
        for n in 1..5 {
            assert_eq!(pulse.measured(millis(1), after(1500 + n * 100)), Keeps::Behind { first: false });
        }
        assert_eq!(pulse.measured(millis(1), after(2000)), Keeps::Up { again: Some(millis(1900)) });
        assert_eq!(pulse.measured(millis(1), after(2100)), up);

        // One that falls behind each second fills no log.
        let mut told = 0;
        for second in 3..63 {
            let late = pulse.measured(millis(700), after(second * 1000));
            told += u32::from(late == Keeps::Behind { first: true });
            for n in 1..6 {
                pulse.measured(millis(1), after(second * 1000 + n * 100));
            }
        }
        assert_eq!(told, 6);
    }

    #[test]
    fn the_longest_wait_is_told_of_for_a_while() {
        let mut pulse = Pulse::default();
        pulse.measured(millis(3), START);
        pulse.measured(millis(40), after(100));
        pulse.measured(millis(2), after(14_000));
        assert_eq!(pulse.longest(), millis(40));
        pulse.measured(millis(1), after(16_000));
        assert_eq!(pulse.longest(), millis(40));
        pulse.measured(millis(1), after(32_000));
        assert_eq!(pulse.longest(), millis(1));
    }
}
