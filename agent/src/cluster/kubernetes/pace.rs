//! When a watch is opened again.
//!
//! A watch that stood and then ended is opened again at once: API servers end watches every few minutes, and load
//! balancers cut them. One that fails is tried ever later. Both with jitter, as every node does the same at the same
//! moment when an API server restarts.

use std::time::Duration;

/// A watch that stood for less has not stood: a server (or something before it) that ends watches as soon as they
/// begin must not be asked without end.
pub(super) const STOOD: Duration = Duration::from_secs(1);
/// After a watch that stood, at most.
const AT_ONCE: Duration = Duration::from_millis(100);
/// After the first failure, at most; doubled with each.
const FIRST: Duration = Duration::from_millis(500);
/// After any number of failures.
pub(super) const AT_MOST: Duration = Duration::from_secs(30);
/// The same of a kind that the API server does not know, which most clusters never will, and each of their nodes asks.
pub(super) const UNKNOWN_AT_MOST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
}

impl Pace {
    /// How long to wait, when the last attempt stood for so long (`None`: it failed at once). `random` is in 0..1.
    pub(super) fn wait(&mut self, stood: Option<Duration>, at_most: Duration, random: f64) -> Duration {
        if stood.is_some_and(|stood| stood >= STOOD) {
            self.failures = 0;
            return AT_ONCE.mul_f64(random);
        }
        let most = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(at_most);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn ever_later_with_jitter() {
        for (random, expected) in [
            (0.0, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]),
            (1.0, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
        ] {
            let mut pace = Pace::default();
            assert_eq!(expected.map(|_| pace.wait(None, AT_MOST, random)), expected.map(|ms| MILLI * ms));
        }
        let mut pace = Pace { failures: u32::MAX };
        assert_eq!(pace.wait(None, AT_MOST, 1.0), AT_MOST);
        assert_eq!(pace.wait(None, UNKNOWN_AT_MOST, 1.0), UNKNOWN_AT_MOST);
    }

    #[test]
    fn at_once_after_a_watch_that_stood() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(Some(STOOD), AT_MOST, 0.5), MILLI * 50);
        assert_eq!(pace.wait(None, AT_MOST, 1.0), MILLI * 500);
        assert_eq!(pace.wait(Some(MILLI * 999), AT_MOST, 1.0), MILLI * 1000, "that one has not stood");
        assert_eq!(pace.wait(Some(STOOD), AT_MOST, 0.0), Duration::ZERO);
        assert_eq!(pace.wait(None, AT_MOST, 1.0), MILLI * 500, "and what was before is forgotten");
    }
}
