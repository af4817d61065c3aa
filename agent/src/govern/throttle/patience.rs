//! How long those who call wait for an answer before they leave, as far as they have shown it.
//!
//! A client with a time limit of its own does not always say so. If a queue makes it wait for about that long, its turn comes
//! just when it leaves: every place in the queue is used up, and nobody is answered. So of those who have waited it is noted how
//! they fared: a client that leaves pulls the estimate towards the time after which it has left, one that is answered lets it
//! grow. It takes many to move it: one impatient client does not shorten the queue for the others of its pod.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// By which part the estimate follows a client that leaves earlier.
const FOLLOW: f64 = 0.1;
/// By which part it grows with each client that is answered, while clients leave now and then. Each time it grows past what they
/// wait for, all that are in the queue by then wait in vain: slowly, that is a small part of those that are answered meanwhile.
const GROW: f64 = 0.0002;
/// The same once so many in a row were answered: more than it takes from where one that has left puts it to where it was.
const CALM: u32 = 1000;
const GROW_CALM: f64 = 0.001;
/// Whoever leaves would have had to be answered in this part of the time that it has waited: a moment earlier is not enough.
const EARLIER: f64 = 0.85;

/// Of the clients of one pod.
#[derive(Debug, Default)]
pub struct Patience {
    nanos: AtomicU64,
    /// How many were answered since the last one has left.
    answered: AtomicU32,
}

impl Patience {
    /// How long they wait in all; `None`: as long as they are made to.
    pub fn shown(&self) -> Option<Duration> {
        Some(self.nanos.load(Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    /// One that had to wait has left after this time. None has to wait for longer than `most`.
    pub fn left(&self, after: Duration, most: Duration) {
        self.answered.store(0, Relaxed);
        self.change(most, |known| known.min(known + (nanos(after) * EARLIER - known) * FOLLOW));
    }

    /// One that had to wait has been answered after this time.
    pub fn answered(&self, after: Duration, most: Duration) {
        if self.nanos.load(Relaxed) > 0 {
            let calm = self.answered.fetch_add(1, Relaxed) >= CALM;
            let grow = if calm { GROW_CALM } else { GROW };
            self.change(most, |known| known.max(nanos(after)) * (1.0 + grow));
        }
    }

    fn change(&self, most: Duration, change: impl Fn(f64) -> f64) {
        let most = nanos(most);
        // The closure always answers, so neither does `fetch_update` fail.
        let _ = self.nanos.fetch_update(Relaxed, Relaxed, |known| {
            let known = if known == 0 { most } else { known as f64 };
            let changed = change(known);
            // All the patience that is ever asked for is as good as any.
            Some(if changed >= most { 0 } else { changed.max(1.0) as u64 })
        });
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(2);

    #[test]
    fn it_takes_many_to_move_it() {
        let patience = Patience::default();
        assert_eq!(patience.shown(), None);
        patience.answered(Duration::from_millis(5), MOST);
        assert_eq!(patience.shown(), None);
        patience.left(Duration::from_millis(10), MOST);
        let shown = patience.shown().expect("one has left");
        assert!((1.79..1.82).contains(&shown.as_secs_f64()), "{shown:?}");
        (0..100).for_each(|_| patience.left(Duration::from_secs(1), MOST));
        let shown = patience.shown().expect("many have left");
        assert!((0.84..0.86).contains(&shown.as_secs_f64()), "{shown:?}");
        // Those who leave later do not prolong it, and those who are answered do.
        patience.left(Duration::from_secs(2), MOST);
        assert_eq!(patience.shown(), Some(shown));
        patience.answered(Duration::from_millis(1500), MOST);
        assert!(patience.shown().expect("still less than two seconds") > Duration::from_millis(1500));
        (0..2000).for_each(|_| patience.answered(Duration::from_millis(5), MOST));
        assert_eq!(patience.shown(), None);
    }

    #[test]
    fn extremes_are_survived() {
        for most in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for after in [Duration::ZERO, Duration::MAX] {
                let patience = Patience::default();
                patience.left(after, most);
                patience.answered(after, most);
                patience.left(after, most);
                assert!(patience.shown().is_none_or(|shown| shown <= most));
            }
        }
    }
}
