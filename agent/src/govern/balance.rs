//! Which of the endpoints that may answer gets a request.
//!
//! By default two endpoints are drawn at random, and the one that [costs](super::cost) less gets the request, nearly always:
//! two draws, not the best of all, so that agents do not herd to one endpoint
//! (<https://www.eecs.harvard.edu/~michaelm/postscripts/handbook2001.pdf>). It is a lot, weighted by how certain the matter
//! is, and nobody's chance is ever nothing:
//!
//! - Of equals, whose time differs by less than a factor of two, the one with fewer unanswered requests is preferred,
//!   and the one that was not asked for longer: so that two equals get the same of even few requests, and yet not in turn,
//!   which would give the one all requests of one kind where two kinds alternate.
//! - Otherwise the chances are as the squares of the times, and as the unanswered requests. One that takes three times as long
//!   gets a tenth, one that takes ten times as long a hundredth; the more so the less busy the other is.
//! - Failures multiply the cost, and however busy the others are, one that fails is not preferred for that.
//!
//! While endpoints are [warming](super::warmup) a request is drawn twice. First whether it goes to one of those: with the
//! probability that is theirs, the sum of their shares in the sum of all, and then to each in proportion to its own. Else
//! the algorithm chooses among the warm ones as if they were alone. So a new endpoint gets what the curve says, however fast
//! it seems while it is idle, and the others feel nothing but that. That share is a ceiling: if it is dearer than a warm one
//! it gets the part of it that it would get as a warm one, so that nothing changes at the end of the curve; and what it
//! cannot keep up with goes to the warm ones. A cold instance may need ten times as long for a request, and a curve that is
//! too short for it would bury it under requests that it is then shunned for, just when it is warm.
//!
//! Where no endpoint is warm yet, shares are relative to the largest: those that have it, within a hundredth, are to the
//! rest what warm ones are. A service that is new as a whole is balanced by the algorithm from the beginning.

use std::{
    cmp::Ordering,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use fastrand::Rng;

use super::{
    affinity::{self, Caller},
    endpoint::Endpoint,
    policy::Algorithm,
    subset::Subset,
};

/// What a request that is not answered is worth among equals, in logarithms of odds: one makes four to one and more, if answers
/// differ by little.
const QUEUE: f32 = 2.0;
/// And what it is worth not to have been asked for longer: three to one.
const OLDER: f32 = 1.1;
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
            Algorithm::LeastTime => two(subset, eligible, |one, two| odds(one, two, self.now_nanos), rng),
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
            if !is_behind(endpoint, warm.map(|(endpoint, _)| endpoint))
                && self.keeps(endpoint, draw(subset, |endpoint| share(endpoint) >= full, rng), rng)
            {
                return Some(endpoint);
            }
        }
        self.choose(subset, |endpoint| share(endpoint) >= full, rng)
    }
}

impl How {
    /// Whether a warming endpoint gets what it has drawn, beside a warm one: as much of it as it would get if it were warm.
    fn keeps(&self, endpoint: &Endpoint, warm: Option<&Arc<Endpoint>>, rng: &mut Rng) -> bool {
        let Some(warm) = warm.filter(|_| self.algorithm == Algorithm::LeastTime) else { return true };
        let [one, other] = [endpoint, &**warm].map(|endpoint| endpoint.load.cost().seen(self.now_nanos));
        let surplus = one.against(&other);
        let dearer = surplus.time + surplus.failures;
        // Among equals it has half of a pair's chances.
        dearer <= 0.0 || rng.f32() < 2.0 * chance(-2.0 * dearer)
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

/// One of two that are drawn, or the only one. `odds` are those of the first, in logarithms.
fn two<'e>(
    subset: &'e Subset,
    eligible: impl Fn(&Endpoint) -> bool,
    odds: impl Fn(&Endpoint, &Endpoint) -> f32,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    let first = draw(subset, &eligible, rng)?;
    if subset.len() == 1 {
        return Some(first);
    }
    let other = |endpoint: &Endpoint| endpoint.address != first.address && eligible(endpoint);
    match draw(subset, other, rng) {
        Some(second) if rng.f32() >= chance(odds(first, second)) => Some(second),
        Some(_) | None => Some(first),
    }
}

/// The chance of one whose odds these are, in logarithms.
fn chance(odds: f32) -> f32 {
    1.0 / (1.0 + (-odds).exp())
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

/// For the one that costs less.
fn odds(first: &Endpoint, second: &Endpoint, now_nanos: u64) -> f32 {
    let (one, two) = (first.load.cost().seen(now_nanos), second.load.cost().seen(now_nanos));
    let surplus = one.against(&two);
    if surplus.time != 0.0 {
        let queues = ((one.unanswered + 1) as f32 / (two.unanswered + 1) as f32).ln();
        return -2.0 * (surplus.time + surplus.failures) - queues;
    }
    let fewer = two.unanswered as f32 - one.unanswered as f32;
    // Where answers differ by much some come soon and others late, whoever is busy.
    let queue = QUEUE / (1.0 + one.deviation().max(two.deviation()));
    let among_equals = queue * fewer + OLDER * older(one.asked_nanos, two.asked_nanos);
    let failures = surplus.failures.abs();
    let most = if failures < 0.5 { f32::MAX } else { failures };
    among_equals.clamp(-most, most) - 2.0 * surplus.failures
}

/// For the one with fewer requests in flight.
fn less_busy(first: &Endpoint, second: &Endpoint) -> f32 {
    let in_flight = |endpoint: &Endpoint| endpoint.load.in_flight.load(Relaxed);
    match in_flight(second).cmp(&in_flight(first)) {
        Ordering::Greater => f32::INFINITY,
        Ordering::Less => f32::NEG_INFINITY,
        Ordering::Equal => OLDER * older(first.load.cost().asked_nanos(), second.load.cost().asked_nanos()),
    }
}

/// 1 for the one that was asked longer ago, -1 for the other.
fn older(first_asked_nanos: u64, second_asked_nanos: u64) -> f32 {
    match first_asked_nanos.cmp(&second_asked_nanos) {
        Ordering::Less => 1.0,
        Ordering::Equal => 0.0,
        Ordering::Greater => -1.0,
    }
}

#[cfg(test)]
mod tests;
