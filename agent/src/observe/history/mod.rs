//! The last 15 minutes, second by second, of every service, lane and endpoint that had traffic: what the page and the
//! command line draw, fine enough to see a warm-up of 60 seconds.
//!
//! Once a second somebody reads the counters and hands them in ([`History::sample`]); the history keeps the differences.
//! Memory is bounded: a track takes 29 KiB (900 seconds of 32 bytes) and there are at most as many as the operator allows;
//! a track without traffic for 15 minutes is given up, and when there is no room the one that has been quiet for longest
//! goes first.
//!
//! Nothing samples it yet, and workers do not write the tallies that it is to be fed from.

mod ring;

use std::{net::SocketAddr, sync::Arc};

use ahash::AHashMap;

use self::ring::Ring;
pub use self::ring::{Micros, SECONDS, Second};
use crate::govern::{tag::Tag, tally::Counts};

/// What a track is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Track {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    pub part: Part,
}

/// A service as a whole, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    Service,
    /// `None` is the baseline.
    Lane(Option<Tag>),
    Endpoint(SocketAddr),
}

/// What is known of a track at the end of a second.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Since ever: only differences are kept.
    pub counts: Counts,
    pub in_flight: u32,
    /// Of a warm endpoint's share, 0 to 1; endpoints only.
    pub warm_up: Option<f64>,
    /// Lanes and services: whether their circuit breaker is open or half-open. Endpoints: whether they are ejected.
    pub closed_off: ClosedOff,
}

/// Whether requests are kept away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClosedOff {
    #[default]
    No,
    /// The breaker lets probes through.
    HalfOpen,
    /// The breaker is open, or the endpoint ejected.
    Open,
}

/// All tracks.
#[derive(Debug)]
pub struct History {
    tracks: AHashMap<Track, Entry>,
    most: usize,
    /// The newest second, counted from any fixed start.
    now: u64,
    /// Tracks that were given up, or not begun, for want of room.
    pub lost: u64,
}

#[derive(Debug)]
struct Entry {
    ring: Ring,
    before: Counts,
    /// The last second with traffic.
    busy: u64,
}

impl History {
    /// `most`: tracks that are kept at once, of 29 KiB each.
    pub fn new(most: usize) -> Self {
        Self { tracks: AHashMap::new(), most, now: 0, lost: 0 }
    }

    /// Takes the readings at the end of a second. Seconds only go up; those that were missed are empty, and what was
    /// counted in them is told of the one that is handed in. A track that is not among the samples is gone: it is kept
    /// until it has been quiet for too long.
    pub fn sample(&mut self, second: u64, samples: impl IntoIterator<Item = (Track, Sample)>) {
        if second <= self.now {
            return;
        }
        self.now = second;
        for (track, sample) in samples {
            self.take(track, &sample);
        }
        let oldest = second.saturating_sub(SECONDS as u64);
        self.tracks.retain(|_, entry| entry.busy > oldest);
    }

    fn take(&mut self, track: Track, sample: &Sample) {
        let now = self.now;
        if let Some(entry) = self.tracks.get_mut(&track) {
            // Counters that have gone back are new ones: an endpoint has come again under its address.
            if sample.counts.requests < entry.before.requests {
                entry.before = Counts::default();
            }
            let since = sample.counts.since(&entry.before);
            if since.requests > 0 || sample.in_flight > 0 {
                entry.busy = now;
            }
            entry.ring.push(now, Second::of(&since, sample));
            entry.before.clone_from(&sample.counts);
            return;
        }
        if sample.counts.requests == 0 && sample.in_flight == 0 {
            return;
        }
        if self.tracks.len() >= self.most {
            self.lost += 1;
            let quietest = self.tracks.iter().min_by_key(|(track, entry)| (entry.busy, *track));
            match quietest.map(|(track, entry)| (track.clone(), entry.busy)) {
                Some((quietest, busy)) if busy < now => self.tracks.remove(&quietest),
                // All are as busy as the new one.
                _ => return,
            };
        }
        let mut ring = Ring::default();
        ring.push(now, Second::of(&sample.counts, sample));
        self.tracks.insert(track, Entry { ring, before: sample.counts.clone(), busy: now });
    }

    /// The newest second that was handed in; 0 if none was.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// All tracks, in no order.
    pub fn tracks(&self) -> impl Iterator<Item = &Track> {
        self.tracks.keys()
    }

    /// The last `count` seconds of a track up to the newest, oldest first; `None` for those of which nothing is known.
    pub fn last(&self, track: &Track, count: usize) -> Option<Vec<Option<Second>>> {
        let entry = self.tracks.get(track)?;
        let count = count.min(SECONDS) as u64;
        let first = (self.now + 1).saturating_sub(count);
        Some((first..=self.now).map(|second| entry.ring.get(second)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::tally::Tally;

    fn track(part: Part) -> Track {
        Track { namespace: "shop".into(), service: "orders".into(), port: 8080, part }
    }

    fn endpoint(number: u16) -> Track {
        track(Part::Endpoint(SocketAddr::from(([10, 0, 0, 1], number))))
    }

    fn sample(tally: &Tally) -> Sample {
        Sample { counts: tally.read(), ..Sample::default() }
    }

    #[test]
    fn seconds_hold_what_happened_in_them() {
        let (mut history, tally) = (History::new(8), Tally::default());
        history.sample(1, [(track(Part::Service), sample(&tally))]);
        assert_eq!(history.tracks().count(), 0);
        tally.answered(2_000_000, false);
        tally.answered(2_000_000, true);
        let warming = Sample { in_flight: 3, warm_up: Some(0.25), ..sample(&tally) };
        history.sample(2, [(track(Part::Service), warming)]);
        tally.refused();
        history.sample(4, [(track(Part::Service), Sample { closed_off: ClosedOff::Open, ..sample(&tally) })]);

        let seconds = history.last(&track(Part::Service), 4).unwrap();
        let [None, Some(second), None, Some(fourth)] = seconds[..] else { panic!("{seconds:?}") };
        assert_eq!((second.requests, second.errors, second.refused, second.in_flight), (2, 1, 0, 3));
        assert!(second.p50_micros.is_some_and(|micros| (1_500..2_500).contains(&micros.get())));
        assert_eq!(second.warm_up(), Some(0.25));
        assert_eq!((fourth.requests, fourth.errors, fourth.refused), (1, 0, 1));
        assert_eq!((fourth.p50_micros, fourth.closed_off), (None, ClosedOff::Open));
    }

    #[test]
    fn a_second_is_taken_once() {
        let (mut history, tally) = (History::new(8), Tally::default());
        tally.refused();
        history.sample(5, [(track(Part::Service), sample(&tally))]);
        tally.refused();
        history.sample(5, [(track(Part::Service), sample(&tally))]);
        history.sample(4, [(track(Part::Service), sample(&tally))]);
        let seconds = history.last(&track(Part::Service), 1).unwrap();
        assert_eq!(seconds[0].map(|second| second.requests), Some(1));
    }

    #[test]
    fn what_is_older_than_fifteen_minutes_is_forgotten() {
        let (mut history, tally) = (History::new(8), Tally::default());
        tally.refused();
        for second in 1..=SECONDS as u64 {
            history.sample(second, [(track(Part::Service), sample(&tally))]);
        }
        let seconds = history.last(&track(Part::Service), usize::MAX).unwrap();
        assert_eq!(seconds.len(), SECONDS);
        assert_eq!(seconds[0].map(|second| second.requests), Some(1));
        history.sample(SECONDS as u64 + 1, [(track(Part::Service), sample(&tally))]);
        assert_eq!(history.last(&track(Part::Service), 1), None);
    }

    #[test]
    fn an_endpoint_that_comes_again_starts_anew() {
        let (mut history, old) = (History::new(8), Tally::default());
        (0..10).for_each(|_| old.refused());
        history.sample(1, [(endpoint(1), sample(&old))]);
        let new = Tally::default();
        new.refused();
        history.sample(2, [(endpoint(1), sample(&new))]);
        let seconds = history.last(&endpoint(1), 2).unwrap();
        assert_eq!(seconds.iter().flatten().map(|second| second.requests).collect::<Vec<_>>(), [10, 1]);
    }

    #[test]
    fn there_are_never_more_tracks_than_allowed_and_the_quietest_goes() {
        let (mut history, tally) = (History::new(2), Tally::default());
        tally.refused();
        history.sample(1, [(endpoint(1), sample(&tally)), (endpoint(2), sample(&tally))]);
        // As busy as those that are there: they stay.
        history.sample(1, [(endpoint(3), sample(&tally))]);
        assert!(history.last(&endpoint(3), 1).is_none());
        let more = Tally::default();
        (0..2).for_each(|_| more.refused());
        history.sample(2, [(endpoint(2), sample(&more)), (endpoint(3), sample(&tally))]);
        assert_eq!((history.tracks().count(), history.lost), (2, 1));
        assert!(history.last(&endpoint(1), 1).is_none());
        assert!(history.last(&endpoint(3), 1).is_some());
    }
}
