//! Requests in flight by the time at which they began, so that a slow one is known before it ends.
//!
//! A ring of slots, each an eighth of the threshold wide, holds how many requests that began in it are still running.
//! Once even the youngest of a slot is over the threshold its requests are overdue: they are taken out of the ring and
//! counted as slow. A request that ends and does not find itself in the ring was counted.

use std::{
    array,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

/// Twice the threshold: when a slot is used anew, its old requests are overdue.
const SLOTS: usize = 16;
const MIN_SLOT_NANOS: u64 = 1_000_000;
/// A slot's word: its number above, its count below. Numbers last for 34 years, counts for 16 million requests.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

#[derive(Debug)]
pub(super) struct Running {
    /// Tells this ring from those before it.
    pub(super) id: u64,
    threshold_nanos: u64,
    slot_nanos: u64,
    slots: [AtomicU64; SLOTS],
    /// The slot in which it was last looked for overdue requests.
    looked_in: AtomicU64,
}

/// A request in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ring: u64,
    slot: u64,
}

impl Running {
    pub(super) fn new(id: u64, threshold: Duration) -> Self {
        let threshold_nanos = nanos(threshold);
        Self {
            id,
            threshold_nanos,
            slot_nanos: (threshold_nanos / (SLOTS as u64 / 2)).max(MIN_SLOT_NANOS),
            slots: array::from_fn(|_| AtomicU64::new(0)),
            looked_in: AtomicU64::new(0),
        }
    }

    /// One that holds the same, and shares nothing with it.
    pub(super) fn copy(&self) -> Self {
        Self {
            id: self.id,
            threshold_nanos: self.threshold_nanos,
            slot_nanos: self.slot_nanos,
            slots: array::from_fn(|slot| AtomicU64::new(self.slots[slot].load(Acquire))),
            looked_in: AtomicU64::new(self.looked_in.load(Acquire)),
        }
    }

    /// A request begins. Also returns how many overdue ones had to make room for it.
    pub(super) fn enter(&self, now_nanos: u64) -> (Place, u64) {
        let slot = now_nanos / self.slot_nanos;
        let mut entered = (slot, 0);
        let _ = self.slots[(slot % SLOTS as u64) as usize].fetch_update(AcqRel, Acquire, |word| {
            let (number, count) = (word >> COUNT_BITS, word & COUNT_MASK);
            if number >= slot {
                // A thread with a late clock joins those of the newer time.
                entered = (number, 0);
                return Some(word + 1);
            }
            entered = (slot, count);
            Some(slot << COUNT_BITS | 1)
        });
        let (slot, overdue) = entered;
        (Place { ring: self.id, slot }, overdue)
    }

    /// A request ends. `false`: it was counted as slow.
    pub(super) fn leave(&self, place: Place) -> bool {
        let slot = &self.slots[(place.slot % SLOTS as u64) as usize];
        let left = slot.fetch_update(AcqRel, Acquire, |word| {
            (word >> COUNT_BITS == place.slot && word & COUNT_MASK > 0).then(|| word - 1)
        });
        left.is_ok()
    }

    /// Takes out those that are over the threshold. Looks once in a slot's time; in between it costs a load.
    pub(super) fn take_overdue(&self, now_nanos: u64) -> u64 {
        let now = now_nanos / self.slot_nanos;
        if self.looked_in.load(Relaxed) >= now || self.looked_in.fetch_max(now, AcqRel) >= now {
            return 0;
        }
        let take = |slot: &AtomicU64| {
            let taken = slot.fetch_update(AcqRel, Acquire, |word| {
                let youngest = (word >> COUNT_BITS).saturating_add(1).saturating_mul(self.slot_nanos);
                let overdue = youngest.saturating_add(self.threshold_nanos) <= now_nanos;
                (overdue && word & COUNT_MASK > 0).then_some(word & !COUNT_MASK)
            });
            taken.map_or(0, |word| word & COUNT_MASK)
        };
        self.slots.iter().map(take).sum()
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_request_is_overdue_once_and_only_when_it_is_over_the_threshold() {
        let running = Running::new(1, Duration::from_millis(80));
        let (early, _) = running.enter(3 * MS);
        let (late, _) = running.enter(79 * MS);
        assert_eq!(running.take_overdue(89 * MS), 0, "the slot ends at 10 ms");
        assert_eq!(running.take_overdue(90 * MS), 1);
        assert_eq!(running.take_overdue(200 * MS), 1);
        assert_eq!(running.take_overdue(300 * MS), 0);
        assert!(!running.leave(early) && !running.leave(late));
        let (fast, _) = running.enter(301 * MS);
        assert!(running.leave(fast));
        assert!(!running.leave(fast), "it is out");
        assert_eq!(running.take_overdue(900 * MS), 0);
    }

    #[test]
    fn those_that_nobody_looked_for_are_overdue_when_their_slot_is_used_anew() {
        let running = Running::new(1, Duration::from_millis(80));
        let (old, _) = running.enter(5 * MS);
        let (place, overdue) = running.enter(165 * MS);
        assert_eq!(overdue, 1);
        assert!(!running.leave(old));
        assert!(running.leave(place));
    }

    #[test]
    fn a_thread_with_a_late_clock_joins_the_newer_slot_and_leaves_it() {
        let running = Running::new(1, Duration::from_millis(80));
        // The ring has 16 slots of 10 ms: both moments fall into the same one.
        let (first, _) = running.enter(165 * MS);
        let (late, overdue) = running.enter(5 * MS);
        assert_eq!((late.slot, overdue), (first.slot, 0));
        assert!(running.leave(late), "it is no slow one");
        assert!(running.leave(first));
        assert_eq!(running.take_overdue(900 * MS), 0);
    }

    #[test]
    fn extremes_do_not_panic() {
        for threshold in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let running = Running::new(0, threshold);
            for now in [0, 1, MS, u64::MAX / 2, u64::MAX] {
                let (place, _) = running.enter(now);
                running.take_overdue(now);
                running.leave(place);
            }
        }
    }

    proptest! {
        #[test]
        fn every_request_is_counted_as_slow_or_leaves(
            steps in prop::collection::vec((0..40 * MS, any::<bool>(), any::<prop::sample::Index>()), 1..300),
        ) {
            let running = Running::new(0, Duration::from_millis(50));
            let mut now = 0;
            let (mut entered, mut left, mut overdue) = (0, 0, 0);
            let mut inside: Vec<(Place, u64)> = Vec::new();
            for (wait, enters, which) in steps {
                now += wait;
                overdue += running.take_overdue(now);
                if enters || inside.is_empty() {
                    let (place, more) = running.enter(now);
                    overdue += more;
                    entered += 1;
                    inside.push((place, now));
                } else {
                    let (place, began) = inside.swap_remove(which.index(inside.len()));
                    if running.leave(place) {
                        left += 1;
                        // It may be over the threshold by the width of its slot, and by the time between two looks.
                        prop_assert!(now - began <= (50 + 7 + 7) * MS);
                    } else {
                        prop_assert!(now - began > 50 * MS);
                    }
                }
            }
            now += 1000 * MS;
            overdue += running.take_overdue(now);
            let uncounted = inside.iter().filter(|(place, _)| running.leave(*place)).count() as u64;
            prop_assert_eq!(uncounted, 0);
            prop_assert_eq!(entered, left + overdue);
        }
    }
}
