//! How long changes took to get into a snapshot, in as much memory after an hour as after a second: it is the agent's that is
//! measured.

use std::time::Duration;

/// In steps of a millisecond, up to a minute; what is longer counts as that.
const STEPS: usize = 60_000;

pub(crate) struct Delays {
    counts: Box<[u32]>,
    count: u64,
}

impl Default for Delays {
    fn default() -> Self {
        Self { counts: vec![0; STEPS + 1].into(), count: 0 }
    }
}

impl Delays {
    pub(crate) fn note(&mut self, delay: Duration) {
        let step = usize::try_from(delay.as_millis()).unwrap_or(STEPS).min(STEPS);
        self.counts[step] += 1;
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What this part of them did not exceed, to the next millisecond.
    pub(crate) fn at(&self, part: f64) -> Duration {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        });
        Duration::from_millis(step.map_or(0, |step| step as u64 + 1))
    }
}
