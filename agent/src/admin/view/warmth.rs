//! The warm-up curve: the share that an endpoint was to get in each second, and the share that it got.
//!
//! Both are parts of what a warm endpoint of the same lane got. Warm endpoints get about the same; what they got is
//! therefore what all of them got together, divided by the sum of the shares that they were to get. That is told as a mean
//! over [`MEAN`] seconds, for in a single one chance decides.

use std::{collections::BTreeMap, sync::Arc};

use super::{Name, rounded};
use crate::{
    cluster::model::Service,
    govern::tag::Tag,
    observe::history::{ClosedOff, History, Part, Second, Track},
};

/// Seconds that the share is a mean of.
const MEAN: usize = 5;
/// Requests to a warm endpoint in that time, below which a share says nothing.
const LEAST: f64 = 1.0;

/// What a warm endpoint of each lane got, second by second.
pub(super) struct Warmth {
    seconds: usize,
    /// The seconds that are told, and before them those that their means need.
    lanes: BTreeMap<Option<Tag>, Vec<f64>>,
}

impl Warmth {
    pub(super) fn of(history: &History, name: &Name, services: &[Arc<Service>], seconds: usize) -> Self {
        let needed = needed(seconds);
        let mut sums: BTreeMap<Option<Tag>, Vec<(f64, f64)>> = BTreeMap::new();
        for endpoint in services.iter().flat_map(|service| &service.endpoints) {
            let track = name.track(Part::Endpoint(endpoint.address));
            let Some(kept) = history.last(&track, needed) else { continue };
            let lane = sums.entry(endpoint.tag.clone()).or_insert_with(|| vec![(0.0, 0.0); needed]);
            // The history may be shorter than what is needed: its newest seconds are the last.
            let skip = needed - kept.len();
            for ((requests, shares), second) in lane[skip..].iter_mut().zip(kept) {
                let Some(second) = second.filter(|second| second.closed_off == ClosedOff::No) else {
                    continue;
                };
                *requests += f64::from(second.requests);
                *shares += second.warm_up().unwrap_or(1.0);
            }
        }
        let one = |(requests, shares)| if shares > 0.0 { requests / shares } else { 0.0 };
        let lanes = sums.into_iter().map(|(tag, sums)| (tag, sums.into_iter().map(one).collect())).collect();
        Self { seconds, lanes }
    }

    /// The share that an endpoint was to get.
    pub(super) fn wanted(&self, history: &History, track: &Track) -> Vec<Option<f64>> {
        let kept = history.last(track, self.seconds).unwrap_or_default();
        let wanted = |second: &Option<Second>| second.and_then(|second| second.warm_up()).map(rounded);
        padded(kept.iter().map(wanted), self.seconds)
    }

    /// The share that it got.
    pub(super) fn got(&self, history: &History, track: &Track, tag: Option<&Tag>) -> Vec<Option<f64>> {
        let needed = needed(self.seconds);
        let (Some(kept), Some(warm)) = (history.last(track, needed), self.lanes.get(&tag.cloned())) else {
            return vec![None; self.seconds];
        };
        let own = padded(kept.into_iter(), needed);
        shares(&own, warm).split_off(needed - self.seconds)
    }
}

/// For each second the mean of it and of those before.
fn shares(own: &[Option<Second>], warm: &[f64]) -> Vec<Option<f64>> {
    let share = |at: usize| {
        own[at]?;
        let from = (at + 1).saturating_sub(MEAN);
        let known = (from..=at).filter_map(|at| Some((f64::from(own[at]?.requests), warm[at])));
        let (got, full) = known.fold((0.0, 0.0), |(got, full), (own, warm)| (got + own, full + warm));
        (full >= LEAST).then(|| rounded(got / full))
    };
    (0..own.len()).map(share).collect()
}

fn needed(seconds: usize) -> usize {
    if seconds == 0 { 0 } else { seconds + MEAN - 1 }
}

/// At the end of so many.
fn padded<T: Clone>(kept: impl ExactSizeIterator<Item = Option<T>>, seconds: usize) -> Vec<Option<T>> {
    let mut all = vec![None; seconds.saturating_sub(kept.len())];
    all.extend(kept);
    all
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        govern::{endpoint::Endpoint, tally::Counts},
        observe::history::Sample,
    };

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 80))
    }

    fn sample(requests: u64, warm_up: f64) -> Sample {
        let counts = Counts { requests, ..Counts::default() };
        Sample { counts, warm_up: Some(warm_up), ..Sample::default() }
    }

    /// Two warm endpoints, and one that warms up from 0.2.
    fn world(seconds: u64) -> (History, Name, Vec<Arc<Service>>) {
        let name = Name { namespace: "shop".into(), name: "web".into(), port: 80 };
        let endpoints = (1..=3).map(|number| Arc::new(Endpoint::new(address(number)))).collect();
        let service = Service::new("shop", "web", 80).with_endpoints(endpoints);
        let mut history = History::new(8);
        for second in 1..=seconds {
            let share = (0.2 * second as f64).min(1.0);
            let samples = [(1, 100, 1.0), (2, 100, 1.0), (3, (share * 100.0) as u64, share)];
            let sample = |(number, requests, share): (u8, u64, f64)| {
                (name.track(Part::Endpoint(address(number))), sample(requests, share))
            };
            history.sample(second, samples.map(sample));
        }
        (history, name, vec![Arc::new(service)])
    }

    #[test]
    fn who_gets_what_is_wanted_is_on_the_curve() {
        let (history, name, services) = world(8);
        let warmth = Warmth::of(&history, &name, &services, 8);
        let track = name.track(Part::Endpoint(address(3)));
        let wanted = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0].map(Some);
        assert_eq!(warmth.wanted(&history, &track), wanted);
        // Means of what there is up to five seconds: (20 + 40) / 200 in the second one.
        let got = [0.2, 0.3, 0.4, 0.5, 0.6, 0.76, 0.88, 0.96].map(Some);
        assert_eq!(warmth.got(&history, &track, None), got);
        let warm = name.track(Part::Endpoint(address(1)));
        assert_eq!(warmth.got(&history, &warm, None), [Some(1.0); 8]);
    }

    #[test]
    fn a_single_second_is_told_as_it_was_in_the_whole() {
        let (history, name, services) = world(8);
        let track = name.track(Part::Endpoint(address(3)));
        let warmth = Warmth::of(&history, &name, &services, 1);
        assert_eq!(warmth.got(&history, &track, None), [Some(0.96)]);
        assert_eq!(warmth.wanted(&history, &track), [Some(1.0)]);
    }

    #[test]
    fn nothing_is_told_of_who_was_not_there() {
        let (mut history, name, services) = world(3);
        let unknown = name.track(Part::Endpoint(address(9)));
        let warmth = Warmth::of(&history, &name, &services, 3);
        assert_eq!(warmth.got(&history, &unknown, None), [None; 3]);
        assert_eq!(warmth.wanted(&history, &unknown), [None; 3]);
        // Nobody asks any more: there is nothing to have a share of.
        let tracks: Vec<_> = (1..=3).map(|number| name.track(Part::Endpoint(address(number)))).collect();
        for second in 4..=9 {
            history.sample(second, tracks.iter().map(|track| (track.clone(), sample(0, 1.0))));
        }
        let warmth = Warmth::of(&history, &name, &services, 1);
        assert_eq!(warmth.got(&history, &tracks[2], None), [None]);
    }
}
