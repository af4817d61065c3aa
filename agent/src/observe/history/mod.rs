//! The last 15 minutes, second by second, of every service, lane and endpoint that had traffic: what the page and the
//! command line draw, fine enough to see a warm-up of 60 seconds.
//!
//! Once a second somebody reads the counters and hands in what they have counted since ([`History::sample`]). Memory is
//! bounded: a track takes at most [`TRACK_BYTES`], and there are at most as many as the operator allows. A track without
//! traffic for 15 minutes is given up, what the cluster no longer knows goes at once ([`History::retain`]), and when there
//! is no room the one that has been quiet for longest goes first.

mod ring;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use ahash::AHashMap;

pub use self::ring::{Micros, RECENT, SECONDS, Second};
use self::ring::{Recent, Ring};
use crate::govern::{tag::Tag, tally::Counts};

/// What a track takes at most: 900 seconds of 32 bytes, the last ten of them with their latencies, and its name.
pub const TRACK_BYTES: usize = 33 * 1024;

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
    /// Since the last one.
    pub counts: Counts,
    pub in_flight: u32,
    /// Of a warm endpoint's share, 0 to 1; endpoints only.
    pub warm_up: Option<f64>,
    /// Lanes and services: whether their circuit breaker is open or half-open. Endpoints: whether they are ejected.
    pub closed_off: ClosedOff,
}

/// Whether requests are kept away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The last second at which all tracks were busy, and there was room for no other.
    full_at: u64,
    /// How often a track was given up, or could not be begun, for want of room.
    pub lost: u64,
}

#[derive(Debug)]
struct Entry {
    ring: Ring,
    recent: Recent,
    /// The last second with traffic.
    busy: u64,
}

impl Entry {
    fn push(&mut self, now: u64, sample: &Sample) {
        if sample.counts.requests > 0 || sample.in_flight > 0 {
            self.busy = now;
        }
        self.ring.push(now, Second::of(sample));
        self.recent.push(now, &sample.counts);
    }
}

impl History {
    /// `most`: tracks that are kept at once.
    pub fn new(most: usize) -> Self {
        Self { tracks: AHashMap::new(), most, now: 0, full_at: 0, lost: 0 }
    }

    /// Takes the readings at the end of a second. Seconds only go up; those that were missed are empty, and what was
    /// counted in them is told of the one that is handed in.
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
            entry.push(now, sample);
            return;
        }
        if sample.counts.requests == 0 && sample.in_flight == 0 {
            return;
        }
        if self.most == 0 {
            return;
        }
        if self.tracks.len() >= self.most {
            self.lost += 1;
            if self.full_at == now {
                return;
            }
            let quietest = self.tracks.iter().min_by_key(|(track, entry)| (entry.busy, *track));
            match quietest.map(|(track, entry)| (track.clone(), entry.busy)) {
                Some((quietest, busy)) if busy < now => self.tracks.remove(&quietest),
                // All are as busy as the new one, and will be to the end of this second.
                _ => {
                    self.full_at = now;
                    return;
                }
            };
        }
        let mut entry = Entry { ring: Ring::default(), recent: Recent::default(), busy: now };
        entry.push(now, sample);
        self.tracks.insert(track, entry);
    }

    /// Forgets tracks of what is gone.
    pub fn retain(&mut self, exists: impl Fn(&Track) -> bool) {
        self.tracks.retain(|track, _| exists(track));
    }

    /// The newest second that was handed in; 0 if none was.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// How many tracks may be kept.
    pub fn most(&self) -> usize {
        self.most
    }

    /// All tracks, in no order.
    pub fn tracks(&self) -> impl ExactSizeIterator<Item = &Track> {
        self.tracks.keys()
    }

    /// The last `count` seconds of a track up to the newest, oldest first; `None` for those of which nothing is known.
    pub fn last(&self, track: &Track, count: usize) -> Option<Vec<Option<Second>>> {
        let entry = self.tracks.get(track)?;
        let count = count.min(SECONDS) as u64;
        let first = (self.now + 1).saturating_sub(count);
        Some((first..=self.now).map(|second| entry.ring.get(second)).collect())
    }

    /// What the last [`RECENT`] seconds of a track add up to.
    pub fn recent(&self, track: &Track) -> Option<Counts> {
        self.tracks.get(track).map(|entry| entry.recent.sum(self.now))
    }
}
