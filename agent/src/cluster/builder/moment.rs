//! Moments of the cluster on this process's own clock.
//!
//! The cluster tells times by wall clocks, and what is decided here is decided by a monotonic one. Each time is taken over
//! once, when it is heard of, so that it does not move when somebody sets the wall clock.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Now, on every clock that there is.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    /// As [`crate::clock`] counts.
    pub(super) nanos: u64,
    pub(super) wall: SystemTime,
}

impl Moment {
    /// A time in the past on the monotonic clock; negative if it was before that began. What is yet to come, by a clock that
    /// is ahead of ours, is now.
    pub(super) fn nanos_of(&self, past: SystemTime) -> i64 {
        let elapsed = self.wall.duration_since(past).unwrap_or_default().as_nanos();
        (self.nanos as i64).saturating_sub(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }
}

/// Since when an endpoint is ready, or was before it stopped being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// As the pod says.
    told: Option<SystemTime>,
    nanos: Option<i64>,
    /// When the pod's containers started.
    started: Option<NonZeroU32>,
    /// Since when it is not.
    lost_nanos: Option<i64>,
}

/// How an endpoint stands at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) ready: bool,
    /// Since when it is ready, as its pod says.
    pub(super) told: Option<SystemTime>,
    /// When the pod's containers started.
    pub(super) started: Option<NonZeroU32>,
}

/// Since when an endpoint counts as ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Since {
    pub(super) nanos: Option<i64>,
    /// It was not ready for so long, and is now: the time before counts, the time between does not.
    pub(super) paused: i64,
}

impl Ready {
    /// Takes in what is known at the moment; gives since when the endpoint counts as ready, on the monotonic clock.
    ///
    /// The time that the pod tells is the same for every agent, and before and after a restart of this one. Where no pod
    /// tells, an endpoint that joins a service is ready since it was seen to be; of one that was there when the service was
    /// `found` nobody knows.
    ///
    /// One that stops being ready for less than its `curve` lasts, while the same containers run, is as warm as it was: its
    /// warm-up goes on, where it would begin anew with a container that restarts.
    pub(super) fn next(
        known: &mut Option<Self>,
        standing: Standing,
        found: bool,
        curve: Duration,
        now: Moment,
    ) -> Since {
        let Standing { ready, told, started } = standing;
        let here = now.nanos as i64;
        let anew = || {
            let seen = (!found).then_some(here);
            let nanos = told.map(|told| now.nanos_of(told)).or(seen);
            Self { told, nanos, started, lost_nanos: None }
        };
        let mut paused = 0;
        *known = match *known {
            None => ready.then(anew),
            Some(known) if !ready => {
                Some(Self { lost_nanos: Some(known.lost_nanos.unwrap_or(here)), ..known })
            }
            Some(known) => {
                let same_told = told.is_none() || told == known.told;
                let restarted = known.started.zip(started).is_some_and(|(before, now)| now > before);
                let started = started.or(known.started);
                match known.lost_nanos {
                    None if same_told => Some(Self { started, ..known }),
                    // Its pod tells for the first time.
                    None if known.told.is_none() => Some(anew()),
                    lost => {
                        // When nobody saw it unready, it was so for a moment.
                        let again = told.filter(|_| !same_told).map_or(here, |told| now.nanos_of(told));
                        let gap = lost.map_or(0, |lost| again.saturating_sub(lost).max(0));
                        if !restarted && (gap as u128) < curve.as_nanos() {
                            paused = gap;
                            let nanos = known.nanos.map(|nanos| nanos.saturating_add(gap));
                            Some(Self { told: told.or(known.told), nanos, started, lost_nanos: None })
                        } else {
                            Some(anew())
                        }
                    }
                }
            }
        };
        let nanos = known.filter(|known| known.lost_nanos.is_none()).and_then(|known| known.nanos);
        Since { nanos, paused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn at(monotonic: u64, wall: u64) -> Moment {
        Moment { instant: Instant::now(), nanos: monotonic * S as u64, wall: unix(wall) }
    }

    fn unix(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// An endpoint with a warm-up of a minute.
    #[derive(Default)]
    struct Watched(Option<Ready>);

    impl Watched {
        fn next(
            &mut self,
            ready: bool,
            told: Option<u64>,
            started: Option<u32>,
            found: bool,
            now: Moment,
        ) -> Since {
            let standing =
                Standing { ready, told: told.map(unix), started: started.and_then(NonZeroU32::new) };
            Ready::next(&mut self.0, standing, found, Duration::from_secs(60), now)
        }
    }

    fn since(seconds: i64) -> Since {
        Since { nanos: Some(seconds * S), paused: 0 }
    }

    #[test]
    fn what_the_pod_tells_counts() {
        let mut one = Watched::default();
        // Ready for a minute when the agent is ten seconds old.
        assert_eq!(one.next(true, Some(940), Some(930), true, at(10, 1000)), since(-50));
        // Somebody sets the clock: it stays where it is.
        assert_eq!(one.next(true, Some(940), Some(930), false, at(20, 5000)), since(-50));
        // The pod is gone from the API already, its endpoint not yet.
        assert_eq!(one.next(true, None, None, false, at(21, 5001)), since(-50));
        // The container restarts.
        assert_eq!(one.next(false, None, None, false, at(30, 5010)), Since::default());
        assert_eq!(one.next(true, Some(5020), Some(5012), false, at(41, 5021)), since(40));
        // So quickly that nobody saw it unready.
        assert_eq!(one.next(true, Some(5030), Some(5029), false, at(51, 5031)), since(50));
        // By a clock that is ahead of ours.
        assert_eq!(one.next(true, Some(6000), Some(5999), false, at(60, 5040)), since(60));
    }

    #[test]
    fn who_was_not_ready_for_a_while_goes_on_where_it_was() {
        let mut one = Watched::default();
        assert_eq!(one.next(true, Some(1000), Some(990), false, at(10, 1000)), since(10));
        // Two seconds, twenty into its curve.
        assert_eq!(one.next(false, None, Some(990), false, at(30, 1020)), Since::default());
        assert_eq!(one.next(false, None, Some(990), false, at(31, 1021)), Since::default());
        let paused = Since { nanos: Some(12 * S), paused: 2 * S };
        assert_eq!(one.next(true, Some(1022), Some(990), false, at(33, 1023)), paused);
        assert_eq!(one.next(true, Some(1022), Some(990), false, at(40, 1030)), since(12), "once");
        // And so shortly that nobody saw it.
        assert_eq!(one.next(true, Some(1032), Some(990), false, at(42, 1032)), since(12));
        // Its slice said so, its pod did not.
        assert_eq!(one.next(false, Some(1032), Some(990), false, at(50, 1040)), Since::default());
        let paused = Since { nanos: Some(15 * S), paused: 3 * S };
        assert_eq!(one.next(true, Some(1032), Some(990), false, at(53, 1043)), paused);
        // For as long as its curve lasts.
        assert_eq!(one.next(false, None, Some(990), false, at(100, 1090)), Since::default());
        assert_eq!(one.next(true, Some(1150), Some(990), false, at(161, 1151)), since(160));
        // A container starts anew, however fast.
        assert_eq!(one.next(false, None, None, false, at(170, 1160)), Since::default());
        assert_eq!(one.next(true, Some(1162), Some(1161), false, at(172, 1162)), since(172));
    }

    #[test]
    fn without_a_curve_it_is_ready_anew() {
        let mut known = None;
        let standing = |ready, told: Option<u64>| Standing { ready, told: told.map(unix), started: None };
        let mut next = |standing, now| Ready::next(&mut known, standing, false, Duration::ZERO, now).nanos;
        assert_eq!(next(standing(true, Some(1000)), at(10, 1000)), Some(10 * S));
        assert_eq!(next(standing(false, None), at(12, 1002)), None);
        assert_eq!(next(standing(true, Some(1003)), at(13, 1003)), Some(13 * S));
    }

    #[test]
    fn without_a_pod_to_tell_it_is_ready_since_it_was_seen_to_be() {
        let mut one = Watched::default();
        let unknown = Since::default();
        assert_eq!(one.next(true, None, None, true, at(10, 1000)), unknown, "found ready");
        assert_eq!(one.next(true, None, None, false, at(20, 1010)), unknown, "and that stays so");
        let mut one = Watched::default();
        assert_eq!(one.next(false, None, None, true, at(30, 1020)), unknown);
        assert_eq!(one.next(true, None, None, false, at(40, 1030)), since(40));
        assert_eq!(one.next(true, None, None, false, at(50, 1040)), since(40));
        // The pod's own word comes later than its slice.
        assert_eq!(one.next(true, Some(1029), None, false, at(50, 1040)), since(39));
        // It is not ready for five seconds.
        assert_eq!(one.next(false, None, None, false, at(60, 1050)), unknown);
        assert_eq!(
            one.next(true, None, None, false, at(65, 1055)),
            Since { nanos: Some(44 * S), paused: 5 * S }
        );
    }
}
