//! Session affinity (`sessionAffinity: ClientIP`): the endpoint that a caller stays with.
//!
//! Rendezvous hashing: each endpoint has a number that depends on it and on the caller, and the largest wins. When endpoints
//! come and go only the callers of those move. The same on every agent and after a restart.
//! <https://en.wikipedia.org/wiki/Rendezvous_hashing>
//!
//! While endpoints are warming the numbers are weighted with their shares, `-share / ln(number)`
//! (<https://www.snia.org/sites/default/files/SDC15_presentations/dist_sys/Jason_Resch_New_Consistent_Hashings_Rev.pdf>):
//! a new endpoint takes callers over one after the other along its curve, each of them moves once, and none moves between
//! the others. With equal shares that order is that of the bare numbers, so nobody moves when the last is warm. An
//! endpoint that is ejected or held out gives its callers away meanwhile, and gets the same back.

use std::net::{IpAddr, SocketAddr};

/// The numbers of a caller.
pub(super) struct Caller(u64);

impl Caller {
    pub(super) fn new(address: IpAddr) -> Self {
        Self(mix(&[address_bits(address)]))
    }

    pub(super) fn number(&self, endpoint: SocketAddr) -> u64 {
        mix(&[u128::from(self.0), address_bits(endpoint.ip()), u128::from(endpoint.port())])
    }
}

/// How much an endpoint with this number wants the caller, above 0. Greater numbers and greater shares want it more.
pub(super) fn weighted(number: u64, share: f64) -> f64 {
    // Within (0, 1), both ends excluded: with one bit more the half would be rounded away.
    let part = ((number >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    -share / part.ln()
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
