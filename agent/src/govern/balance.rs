//! Which of the endpoints that may answer gets a request.
//!
//! By default power of two choices by peak-EWMA cost: two endpoints are drawn; the one with the lower cost
//! `average latency * (in flight + 1)` gets the request. The average is an exponentially weighted one with a decay of 10 s
//! that believes a bad sample at once and forgets it slowly ("peak"). Two draws, not the best of all, so that agents do not
//! herd to one endpoint. Formulas as in Finagle and linkerd:
//! <https://github.com/twitter/finagle/blob/develop/finagle-core/src/main/scala/com/twitter/finagle/loadbalancer/PeakEwma.scala>
//! Where ours differs: an endpoint of which nothing is known yet is taken to be as fast as the one that it is
//! compared with (and never slower than 30 ms). With a fixed start it would get nothing for half a minute next to
//! endpoints that answer within a millisecond.
//!
//! While endpoints are [warming](super::warmup) a request is drawn twice. First whether it goes to one of those: with the
//! probability that is theirs, the sum of their shares in the sum of all, and then to each in proportion to its own. Else
//! the algorithm chooses among the warm ones as if they were alone. So a new endpoint gets what the curve says, however fast
//! it seems while it is idle, and the others feel nothing but that. That share is a ceiling: what it cannot keep up with goes
//! to the warm ones. A cold instance may need ten times as long for a request, and a curve that is too short for it would
//! bury it under requests that it is then shunned for, just when it is warm.
//!
//! Where no endpoint is warm yet, shares are relative to the largest: those that have it, within a hundredth, are to the
//! rest what warm ones are. A service that is new as a whole is balanced by the algorithm from the beginning.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use fastrand::Rng;

pub use super::endpoint::InFlight;
use super::{
    affinity::{self, Caller},
    endpoint::Endpoint,
    policy::Algorithm,
    subset::Subset,
};

/// What an endpoint without any sample is taken to need at most, in nanoseconds.
const START_NANOS: f64 = 30e6;
/// Random draws before looking at all endpoints one by one.
const DRAWS: usize = 4;
/// Shares that differ by less, as a part of the larger, are the same: Ready times are in seconds.
const SAME: f64 = 0.01;

/// A warming endpoint is behind with more requests in flight than so many times the average of the warm ones, and so many
/// more. Chance alone brings one that is as fast as they are there in less than one of a hundred requests.
const BEHIND_TIMES: f64 = 2.0;
const BEHIND_MORE: f64 = 2.0;

/// How to choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) algorithm: Algorithm,
    /// `sessionAffinity: ClientIP`: the caller's address decides, not the algorithm.
    pub(super) caller: Option<IpAddr>,
    pub(super) now_nanos: u64,
}

impl How {
    /// One of the endpoints that pass `eligible`, all of which are warm; `None` if there is none.
    pub(super) fn choose<'e>(
        &self,
        subset: &'e Subset,
        eligible: impl Fn(&Endpoint) -> bool,
        rng: &mut Rng,
    ) -> Option<&'e Arc<Endpoint>> {
        if let Some(caller) = self.caller {
            let caller = Caller::new(caller);
            let eligible = subset.iter().filter(|endpoint| eligible(endpoint));
            return eligible.max_by_key(|endpoint| (caller.number(endpoint.address), endpoint.address));
        }
        match self.algorithm {
            Algorithm::RoundRobin => in_turn(subset, eligible),
            Algorithm::Random => draw(subset, eligible, rng),
            Algorithm::PeakEwma => two(subset, eligible, |one, two| cheaper(one, two, self.now_nanos), rng),
            Algorithm::LeastRequest => two(subset, eligible, less_busy, rng),
        }
    }

    /// The same where some are warming, or left out: each gets its part of the requests. `shares` are those of the subset's
    /// endpoints in their order, 0 to 1, and `share` says it of one.
    pub(super) fn choose_by_share<'e>(
        &self,
        subset: &'e Subset,
        shares: &[f64],
        share: impl Fn(&Endpoint) -> f64,
        rng: &mut Rng,
    ) -> Option<&'e Arc<Endpoint>> {
        let largest = shares.iter().copied().fold(0.0, f64::max);
        if largest <= 0.0 {
            return None;
        }
        if let Some(caller) = self.caller {
            let caller = Caller::new(caller);
            let eligible = subset.iter().zip(shares).filter(|(_, share)| **share > 0.0);
            let wants = |(endpoint, share): (&'e Arc<Endpoint>, &f64)| {
                (affinity::weighted(caller.number(endpoint.address), *share), endpoint)
            };
            let most = eligible.map(wants).max_by(|(one, endpoint), (other, endpoint2)| {
                one.total_cmp(other).then_with(|| endpoint.address.cmp(&endpoint2.address))
            });
            return most.map(|(_, endpoint)| endpoint);
        }
        let full = largest * (1.0 - SAME);
        let mut warming =
            subset.iter().zip(shares).filter(|(_, share)| (f64::MIN_POSITIVE..full).contains(*share));
        let mut lot = rng.f64() * shares.iter().sum::<f64>();
        let drawn = warming.find(|(_, share)| {
            lot -= *share;
            lot < 0.0
        });
        if let Some((endpoint, _)) = drawn {
            let warm = subset.iter().zip(shares).filter(|(_, share)| **share >= full);
            if !is_behind(endpoint, warm.map(|(endpoint, _)| endpoint)) {
                return Some(endpoint);
            }
        }
        self.choose(subset, |endpoint| share(endpoint) >= full, rng)
    }
}

/// Whether a warming endpoint has much more to do than the warm ones have on average.
fn is_behind<'e>(endpoint: &Endpoint, warm: impl Iterator<Item = &'e Arc<Endpoint>>) -> bool {
    let in_flight = |endpoint: &Endpoint| f64::from(endpoint.load.in_flight.load(Relaxed));
    let own = in_flight(endpoint);
    if own <= BEHIND_MORE {
        return false;
    }
    let (sum, count) = warm.fold((0.0, 0.0), |(sum, count), warm| (sum + in_flight(warm), count + 1.0));
    own > BEHIND_MORE + BEHIND_TIMES * sum / f64::max(count, 1.0)
}

/// The cheaper of two that are drawn, or the only one.
fn two<'e>(
    subset: &'e Subset,
    eligible: impl Fn(&Endpoint) -> bool,
    better: impl Fn(&'e Arc<Endpoint>, &'e Arc<Endpoint>) -> &'e Arc<Endpoint>,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    let first = draw(subset, &eligible, rng)?;
    if subset.len() == 1 {
        return Some(first);
    }
    let other = |endpoint: &Endpoint| endpoint.address != first.address && eligible(endpoint);
    match draw(subset, other, rng) {
        Some(second) => Some(better(first, second)),
        None => Some(first),
    }
}

/// One of the eligible endpoints, each as likely as the others.
fn draw<'e>(
    endpoints: &'e [Arc<Endpoint>],
    eligible: impl Fn(&Endpoint) -> bool,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    if endpoints.is_empty() {
        return None;
    }
    // Nearly always nearly all are eligible: a few blind draws spare the look at every one.
    for _ in 0..DRAWS {
        let endpoint = &endpoints[rng.usize(..endpoints.len())];
        if eligible(endpoint) {
            return Some(endpoint);
        }
    }
    let count = endpoints.iter().filter(|endpoint| eligible(endpoint)).count();
    if count == 0 {
        return None;
    }
    endpoints.iter().filter(|endpoint| eligible(endpoint)).nth(rng.usize(..count))
}

/// The next of the eligible endpoints. One after the other, so that none gets the turn of one that is not eligible in
/// addition to its own.
fn in_turn(subset: &Subset, eligible: impl Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
    let count = subset.iter().filter(|endpoint| eligible(endpoint)).count();
    if count == 0 {
        return None;
    }
    subset.iter().filter(|endpoint| eligible(endpoint)).nth(subset.turn() % count)
}

/// The cheaper of two, the first if they cost the same (they were drawn at random).
fn cheaper<'e>(first: &'e Arc<Endpoint>, second: &'e Arc<Endpoint>, now_nanos: u64) -> &'e Arc<Endpoint> {
    let (one, two) = (first.load.average_nanos(now_nanos), second.load.average_nanos(now_nanos));
    let start = one.or(two).map_or(START_NANOS, |known| known.min(START_NANOS));
    let cost = |average: Option<f64>, endpoint: &Endpoint| {
        average.unwrap_or(start) * (f64::from(endpoint.load.in_flight.load(Relaxed)) + 1.0)
    };
    if cost(two, second) < cost(one, first) { second } else { first }
}

/// The one with fewer requests in flight, the first if they have as many.
fn less_busy<'e>(first: &'e Arc<Endpoint>, second: &'e Arc<Endpoint>) -> &'e Arc<Endpoint> {
    let in_flight = |endpoint: &Endpoint| endpoint.load.in_flight.load(Relaxed);
    if in_flight(second) < in_flight(first) { second } else { first }
}

#[cfg(test)]
mod tests;
