//! Who gets how many of the places that all calling pods share.
//!
//! First come, first served would give them all to whoever asks most often, and keep the others out. So for each pod that has asked
//! of late some are *kept*: one more than it has had of late, but not more than its fair share, the limit divided by the
//! pods. A pod that has its fair share already gets a further place only if those that are left are enough for what is
//! kept for others. So
//!
//! - a pod that stays below its share is refused only for moments, however much the others ask for;
//! - what a pod does not use the others have, but for one place, which lets it come back;
//! - a pod that is alone has everything, and so has each while half of the places are free: they are looked at only then.
//!
//! It takes a limit of at least as many places as there are pods, so that one can be kept for each. Below that it is first come,
//! first served.

use std::sync::{
    Arc,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use crate::govern::per_pod::{CallingPod, PerPod};

/// A pod that has not asked for so long has nothing kept for it.
const AROUND_NANOS: u64 = 10_000_000_000;
/// What a pod has had is remembered for about so long.
const OF_LATE_NANOS: u64 = 1_000_000_000;

/// What each calling pod has.
#[derive(Debug, Default)]
pub(super) struct Shares(PerPod<Holder>);

/// A calling pod.
#[derive(Debug, Default)]
pub(super) struct Holder {
    in_flight: AtomicU32,
    /// The most that it has wanted at once, since about a second.
    wanted: AtomicU32,
    wanted_since_nanos: AtomicU64,
    asked_nanos: AtomicU64,
}

impl Holder {
    fn asks(&self, now_nanos: u64) {
        self.asked_nanos.store(now_nanos, Relaxed);
        let wants = self.in_flight.load(Relaxed).saturating_add(1);
        let since = self.wanted_since_nanos.load(Relaxed);
        if now_nanos.saturating_sub(since) > OF_LATE_NANOS {
            self.wanted_since_nanos.store(now_nanos, Relaxed);
            self.wanted.store(wants, Relaxed);
        } else {
            self.wanted.fetch_max(wants, Relaxed);
        }
    }

    fn is_around(&self, now_nanos: u64) -> bool {
        let asked = self.asked_nanos.load(Relaxed);
        now_nanos.saturating_sub(asked) <= AROUND_NANOS
    }

    /// How many places are kept for it beyond those that it has.
    fn kept(&self, share: u32, now_nanos: u64) -> u32 {
        let lately = now_nanos.saturating_sub(self.asked_nanos.load(Relaxed)) <= OF_LATE_NANOS;
        let wanted = if lately { self.wanted.load(Relaxed).saturating_add(1) } else { 1 };
        wanted.min(share).saturating_sub(self.in_flight.load(Relaxed))
    }

    pub(super) fn takes(&self) {
        self.in_flight.fetch_add(1, AcqRel);
    }

    pub(super) fn gives_back(&self) {
        self.in_flight.fetch_sub(1, AcqRel);
    }
}

impl Shares {
    /// The pod asks for a place.
    pub(super) fn asks(&self, pod: &Arc<CallingPod>, now_nanos: u64) -> Arc<Holder> {
        let holder = self.0.get(pod, Holder::default, |_| {});
        holder.asks(now_nanos);
        holder
    }

    /// Whether it may have one, of which so many are taken: as far as the others are concerned.
    pub(super) fn leave_room_for(
        &self,
        own: Option<&Holder>,
        taken: u32,
        limit: u32,
        now_nanos: u64,
    ) -> bool {
        if taken < limit / 2 {
            return true;
        }
        let (mut pods, mut known) = (0_u32, false);
        self.0.each(|holder| {
            pods += u32::from(holder.is_around(now_nanos));
            known |= own.is_some_and(|own| std::ptr::eq(own, holder));
        });
        let share = limit / (pods + u32::from(!known)).max(1);
        if share == 0 || own.map_or(0, |own| own.in_flight.load(Acquire)) < share {
            return true;
        }
        let mut kept = 0_u32;
        self.0.each(|holder| {
            if !own.is_some_and(|own| std::ptr::eq(own, holder)) && holder.is_around(now_nanos) {
                kept = kept.saturating_add(holder.kept(share, now_nanos));
            }
        });
        kept < limit.saturating_sub(taken)
    }

    /// What the pod with this UID has, if it has ever asked.
    pub(super) fn find(&self, uid: &str) -> Option<Arc<Holder>> {
        self.0.find(uid)
    }

    /// Forgets pods that have gone.
    pub(super) fn forget_gone(&self) {
        self.0.forget_gone(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Pods that hold places of a limit of ten.
    struct Places {
        shares: Shares,
        pods: Vec<Arc<CallingPod>>,
        limit: u32,
    }

    impl Places {
        fn new(pods: usize, limit: u32) -> Self {
            let pods = (0..pods).map(|n| CallingPod::new(&n.to_string(), &format!("shop/{n}"))).collect();
            Self { shares: Shares::default(), pods, limit }
        }

        fn taken(&self) -> u32 {
            let mut taken = 0;
            self.shares.0.each(|holder| taken += holder.in_flight.load(Relaxed));
            taken
        }

        fn takes(&self, pod: usize, now: u64) -> bool {
            let holder = self.shares.asks(&self.pods[pod], now);
            let taken = self.taken();
            let may = taken < self.limit && self.shares.leave_room_for(Some(&holder), taken, self.limit, now);
            if may {
                holder.takes();
            }
            may
        }

        fn gives_back(&self, pod: usize) {
            self.shares.find(&pod.to_string()).expect("it has asked").gives_back();
        }

        /// So many as it gets.
        fn takes_all(&self, pod: usize, now: u64) -> usize {
            (0..100).take_while(|_| self.takes(pod, now)).count()
        }
    }

    #[test]
    fn a_pod_that_is_alone_has_all() {
        assert_eq!(Places::new(1, 10).takes_all(0, 0), 10);
        assert_eq!(Places::new(1, 1).takes_all(0, 0), 1);
    }

    #[test]
    fn a_polite_pod_is_never_refused_beside_a_greedy_one() {
        let places = Places::new(2, 10);
        assert!(places.takes(1, 0));
        places.gives_back(1);
        assert_eq!(places.takes_all(0, 0), 8);
        for step in 1..100 {
            let now = step * SECOND / 10;
            assert!(places.takes(1, now), "{step}");
            assert!(!places.takes(0, now));
            places.gives_back(1);
            // Whatever the greedy one gives back it takes again.
            places.gives_back(0);
            assert_eq!(places.takes_all(0, now), 1);
        }
    }

    #[test]
    fn whoever_wants_its_share_gets_it_in_the_end() {
        let places = Places::new(2, 10);
        assert_eq!(places.takes_all(0, 0), 10);
        for step in 1..100 {
            let now = step * SECOND / 100;
            places.gives_back(0);
            while places.takes(1, now) {}
            while places.takes(0, now) {}
        }
        let has = |pod: &str| places.shares.find(pod).expect("it has asked").in_flight.load(Relaxed);
        assert_eq!((has("0"), has("1")), (5, 5));
    }

    #[test]
    fn what_a_pod_does_not_ask_for_any_more_the_others_have() {
        let places = Places::new(2, 10);
        assert!(places.takes(1, 0));
        places.gives_back(1);
        assert_eq!(places.takes_all(0, 0), 8);
        assert_eq!(places.takes_all(0, 2 * SECOND), 1);
        assert_eq!(places.takes_all(0, 11 * SECOND), 1);
    }

    #[test]
    fn with_fewer_places_than_pods_the_first_gets_them() {
        let places = Places::new(3, 2);
        (1..3).for_each(|pod| {
            assert!(places.takes(pod, 0));
            places.gives_back(pod);
        });
        assert_eq!(places.takes_all(0, 0), 2);
    }
}
