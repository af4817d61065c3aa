//! Which of the usable endpoints gets a request: power of two choices by peak-EWMA cost.
//!
//! Two endpoints are drawn; the one with the lower cost `average latency * (in flight + 1)` gets the request. The
//! average is an exponentially weighted one with a decay of 10 s that believes a bad sample at once and forgets it
//! slowly ("peak"). Two draws, not the best of all, so that agents do not herd to one endpoint.
//! Formulas as in Finagle and linkerd:
//! <https://github.com/twitter/finagle/blob/develop/finagle-core/src/main/scala/com/twitter/finagle/loadbalancer/PeakEwma.scala>
//!
//! Where ours differs: an endpoint of which nothing is known yet is taken to be as fast as the one that it is
//! compared with (and never slower than 30 ms). With a fixed start it would get nothing for half a minute next to
//! endpoints that answer within a millisecond.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use fastrand::Rng;

use super::endpoint::{Endpoint, Load};

/// Time after which a sample weighs 1/e, in nanoseconds.
const DECAY_NANOS: f64 = 10e9;
/// What an endpoint without any sample is taken to need at most, in nanoseconds.
const START_NANOS: f64 = 30e6;
/// Random draws before looking at all endpoints one by one.
const DRAWS: usize = 4;

impl Load {
    /// Learns from an answer that took `latency_nanos`. A sample above the average replaces it; one below moves it
    /// by `1 - e^(-elapsed / decay)`.
    pub fn observe(&self, latency_nanos: u64, now_nanos: u64) {
        // Each elapsed nanosecond is accounted for by exactly one of several workers that observe at once.
        let before = self.sampled_at_nanos.fetch_max(now_nanos, AcqRel);
        let keep = decay(now_nanos.saturating_sub(before));
        let sample = latency_nanos.max(1);
        let next = |average: u64| {
            if average == 0 || sample >= average {
                sample
            } else {
                (average as f64 * keep + sample as f64 * (1.0 - keep)).round().max(1.0) as u64
            }
        };
        // The closure always answers, so neither does `fetch_update` fail.
        let _ = self.ewma_nanos.fetch_update(AcqRel, Acquire, |average| Some(next(average)));
    }

    /// The average latency as of now, in nanoseconds: without new samples it fades, so that an endpoint that was
    /// slow once is tried again. `None` while there is no sample.
    pub fn average_nanos(&self, now_nanos: u64) -> Option<f64> {
        let average = self.ewma_nanos.load(Acquire);
        if average == 0 {
            return None;
        }
        let age = now_nanos.saturating_sub(self.sampled_at_nanos.load(Acquire));
        // Never below one, so that requests in flight count even when the average has faded.
        Some((average as f64 * decay(age)).max(1.0))
    }
}

fn decay(elapsed_nanos: u64) -> f64 {
    (-(elapsed_nanos as f64) / DECAY_NANOS).exp()
}

/// A request or a tunnelled connection in flight to an endpoint: counted from `begin` until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
}

impl InFlight {
    pub fn begin(endpoint: Arc<Endpoint>) -> Self {
        endpoint.load.in_flight.fetch_add(1, Relaxed);
        Self { endpoint }
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// See [`Load::observe`].
    pub fn observe(&self, latency_nanos: u64, now_nanos: u64) {
        self.endpoint.load.observe(latency_nanos, now_nanos);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Draws one of the endpoints that pass `eligible`; `None` if none does.
pub fn power_of_two<'e>(
    endpoints: &'e [Arc<Endpoint>],
    eligible: impl Fn(&Endpoint) -> bool,
    now_nanos: u64,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    let first = draw(endpoints, |endpoint| eligible(endpoint), rng)?;
    if endpoints.len() == 1 {
        return Some(first);
    }
    let other = |endpoint: &Endpoint| endpoint.address != first.address && eligible(endpoint);
    match draw(endpoints, other, rng) {
        Some(second) => Some(cheaper(first, second, now_nanos)),
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

/// The cheaper of two, the first if they cost the same (they were drawn at random).
fn cheaper<'e>(first: &'e Arc<Endpoint>, second: &'e Arc<Endpoint>, now_nanos: u64) -> &'e Arc<Endpoint> {
    let (one, two) = (first.load.average_nanos(now_nanos), second.load.average_nanos(now_nanos));
    let start = one.or(two).map_or(START_NANOS, |known| known.min(START_NANOS));
    let cost = |average: Option<f64>, endpoint: &Endpoint| {
        average.unwrap_or(start) * (f64::from(endpoint.load.in_flight.load(Relaxed)) + 1.0)
    };
    if cost(two, second) < cost(one, first) { second } else { first }
}

/// The endpoint that a caller stays with (`sessionAffinity: ClientIP`): rendezvous hashing, so that when endpoints
/// come and go only the callers of those move. The same on every agent and after a restart.
/// <https://en.wikipedia.org/wiki/Rendezvous_hashing>
pub fn sticky(
    endpoints: &[Arc<Endpoint>],
    eligible: impl Fn(&Endpoint) -> bool,
    caller: IpAddr,
) -> Option<&Arc<Endpoint>> {
    let caller = mix(&[address_bits(caller)]);
    endpoints.iter().filter(|endpoint| eligible(endpoint)).max_by_key(|endpoint| {
        let address = endpoint.address;
        (mix(&[u128::from(caller), address_bits(address.ip()), u128::from(address.port())]), address)
    })
}

fn address_bits(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A hash that never changes: the finalizer of `SplitMix64` over 64-bit words.
/// <https://prng.di.unimi.it/splitmix64.c>
fn mix(words: &[u128]) -> u64 {
    words.iter().flat_map(|word| [(word >> 64) as u64, *word as u64]).fold(0, |hash, word| {
        let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests;
