//! Moments of the cluster on this process's own clock.
//!
//! The cluster tells times by wall clocks, and what is decided here is decided by a monotonic one. Each time is taken over
//! once, when it is heard of, so that it does not move when somebody sets the wall clock.

use std::time::SystemTime;

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
    fn nanos_of(&self, past: SystemTime) -> i64 {
        let elapsed = self.wall.duration_since(past).unwrap_or_default().as_nanos();
        (self.nanos as i64).saturating_sub(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }
}

/// Since when an endpoint is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// As the pod says.
    told: Option<SystemTime>,
    nanos: Option<i64>,
}

impl Ready {
    /// Takes in what is known at the moment; gives since when the endpoint is ready, on the monotonic clock.
    ///
    /// The time that the pod tells is the same for every agent, and before and after a restart of this one. A container that
    /// restarts makes the pod ready anew. Where no pod tells, an endpoint that joins a service is ready since it was
    /// seen to be; of one that was there when the service was `found` nobody knows.
    pub(super) fn next(
        known: &mut Option<Self>,
        ready: bool,
        told: Option<SystemTime>,
        found: bool,
        now: Moment,
    ) -> Option<i64> {
        *known = match *known {
            _ if !ready => None,
            Some(known) if told.is_none() || told == known.told => Some(known),
            _ => {
                let seen = (!found).then_some(now.nanos as i64);
                Some(Self { told, nanos: told.map(|told| now.nanos_of(told)).or(seen) })
            }
        };
        (*known)?.nanos
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const S: i64 = 1_000_000_000;

    fn at(monotonic: u64, wall: u64) -> Moment {
        Moment { instant: Instant::now(), nanos: monotonic * S as u64, wall: unix(wall) }
    }

    fn unix(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_the_pod_tells_counts() {
        let mut known = None;
        // Ready for a minute when the agent is ten seconds old.
        let found = Ready::next(&mut known, true, Some(unix(940)), true, at(10, 1000));
        assert_eq!(found, Some(-50 * S));
        // Somebody sets the clock: it stays where it is.
        assert_eq!(Ready::next(&mut known, true, Some(unix(940)), false, at(20, 5000)), found);
        // The pod is gone from the API already, its endpoint not yet.
        assert_eq!(Ready::next(&mut known, true, None, false, at(21, 5001)), found);
        // The container restarts.
        assert_eq!(Ready::next(&mut known, false, None, false, at(30, 5010)), None);
        assert_eq!(Ready::next(&mut known, true, Some(unix(5020)), false, at(41, 5021)), Some(40 * S));
        // So quickly that nobody saw it unready.
        assert_eq!(Ready::next(&mut known, true, Some(unix(5030)), false, at(51, 5031)), Some(50 * S));
        // By a clock that is ahead of ours.
        assert_eq!(Ready::next(&mut known, true, Some(unix(6000)), false, at(60, 5040)), Some(60 * S));
    }

    #[test]
    fn without_a_pod_to_tell_it_is_ready_since_it_was_seen_to_be() {
        let mut known = None;
        assert_eq!(Ready::next(&mut known, true, None, true, at(10, 1000)), None, "found ready");
        assert_eq!(Ready::next(&mut known, true, None, false, at(20, 1010)), None, "and that stays so");
        assert_eq!(Ready::next(&mut known, false, None, false, at(30, 1020)), None);
        assert_eq!(Ready::next(&mut known, true, None, false, at(40, 1030)), Some(40 * S));
        assert_eq!(Ready::next(&mut known, true, None, false, at(50, 1040)), Some(40 * S));
        // The pod's own word comes later than its slice.
        assert_eq!(Ready::next(&mut known, true, Some(unix(1029)), false, at(50, 1040)), Some(39 * S));
    }
}
