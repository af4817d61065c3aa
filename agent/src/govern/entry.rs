//! Entry colouring: the tag that a request gets where it enters, because a lane asks for such requests.
//!
//! It is the last to answer the question for the tag (DESIGN 6.1): only a request that carries none, from a caller
//! that has none, is looked at. The rules of a service's lanes are asked in order, the oldest lane's first, and the
//! first that takes the request colours it.
//!
//! A rule takes the requests that meet its conditions, or a percentage of them. Who is in the percentage depends on
//! nothing but the lane's name and the value of the rule's key (a header, a cookie, the caller's address), so the same
//! user gets the same answer on every node, from every agent, after every restart. A request without the key is not
//! taken: coloured at random it would change lanes from one call to the next.
//!
//! - Raising a percentage only adds users to the lane, lowering it only takes users away.
//! - Lanes that ask for shares of the same requests (same conditions, same key) get what they say of all of these
//!   requests: two lanes of 10 % are 20 % together, and no user is in both. Where the sum exceeds 100 %, the older
//!   lanes get theirs. A younger lane whose older neighbour grows gives it its part of the users and makes that good
//!   from the rest.
//! - Lanes whose rules differ in conditions or key cannot be added up: there a percentage is of the requests that the
//!   older lanes have left.
//! - Otherwise lanes are independent: who is in the 10 % of one is in the 10 % of the next no more often than others.

use std::{io::Write as _, net::IpAddr, sync::Arc};

use super::{
    policy::{EntryRule, Lane, RequestMatch, ShareKey},
    request::Request,
    tag::Tag,
};

/// The entry rules of a service, ready for use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    lane: Arc<str>,
    tag: Tag,
    matches: RequestMatch,
    share: Option<Share>,
}

#[derive(Clone, Debug, PartialEq)]
struct Share {
    key: ShareKey,
    /// Of all such requests, 0 to 1.
    of_all: f64,
    /// Of those that no older lane takes, 0 to 1.
    of_rest: f64,
}

/// The tag that a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coloured<'e> {
    pub tag: &'e Tag,
    /// The TrafficLane that asked for it, as `shop/gray`.
    pub lane: &'e Arc<str>,
}

impl Entry {
    /// Puts the rules of several lanes together. Lanes come oldest first.
    pub fn new<'l>(lanes: impl IntoIterator<Item = (&'l Arc<Lane>, Vec<&'l EntryRule>)>) -> Self {
        let mut rules: Vec<Rule> = Vec::new();
        for (lane, asked) in lanes {
            let older = rules.len();
            for rule in asked {
                let share = rule.share.as_ref().map(|share| {
                    let of_all = (share.percent / 100.0).clamp(0.0, 1.0);
                    let taken = taken(&rules[..older], &rule.matches, &share.key);
                    let left = 1.0 - taken;
                    let of_rest = if left > of_all { of_all / left } else { 1.0 };
                    Share { key: share.key.clone(), of_all, of_rest }
                });
                let (name, tag) = (lane.name.clone(), lane.tag.clone());
                rules.push(Rule { lane: name, tag, matches: rule.matches.clone(), share });
            }
        }
        Self { rules }
    }

    /// Whether it colours nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The tag for a request that has none. `caller` is the calling pod's address.
    pub fn colour(&self, request: &impl Request, caller: IpAddr) -> Option<Coloured<'_>> {
        let rule = self.rules.iter().find(|rule| rule.takes(request, caller))?;
        Some(Coloured { tag: &rule.tag, lane: &rule.lane })
    }
}

impl Rule {
    fn takes(&self, request: &impl Request, caller: IpAddr) -> bool {
        self.matches.matches(request)
            && self.share.as_ref().is_none_or(|share| {
                share.place(&self.lane, request, caller).is_some_and(|place| place < share.of_rest)
            })
    }
}

impl Share {
    /// Where the request's key falls in the lane; `None` if the request has none.
    fn place(&self, lane: &str, request: &impl Request, caller: IpAddr) -> Option<f64> {
        match &self.key {
            ShareKey::Header(name) => request.header(name).and_then(|value| place(lane, value)),
            ShareKey::Cookie(name) => request.cookie(name).and_then(|value| place(lane, &value)),
            ShareKey::Caller => {
                // As it is written (RFC 5952), which is at most 39 bytes.
                let mut text = [0; 40];
                let mut rest = &mut text[..];
                let written = write!(rest, "{}", caller.to_canonical()).is_ok();
                let length = 40 - rest.len();
                written.then(|| place(lane, &text[..length])).flatten()
            }
        }
    }
}

/// What older lanes take of the same requests, 0 to 1 and beyond. Rules of one lane share its users: its widest counts.
fn taken(older: &[Rule], matches: &RequestMatch, key: &ShareKey) -> f64 {
    let mut lanes: Vec<(&Arc<str>, f64)> = Vec::new();
    for rule in older {
        let Some(share) = &rule.share else { continue };
        if rule.matches != *matches || share.key != *key {
            continue;
        }
        match lanes.last_mut().filter(|(lane, _)| *lane == &rule.lane) {
            Some((_, widest)) => *widest = widest.max(share.of_all),
            None => lanes.push((&rule.lane, share.of_all)),
        }
    }
    lanes.iter().map(|(_, share)| share).sum()
}

/// Where a key falls in a lane, evenly in 0..1; `None` for an empty key, which identifies nobody. Must never change:
/// users would change lanes with an upgrade of the agent.
fn place(lane: &str, key: &[u8]) -> Option<f64> {
    if key.is_empty() {
        return None;
    }
    // A lane's name holds no zero byte, so no other lane and key run together into the same bytes.
    let bytes = lane.bytes().chain([0]).chain(key.iter().copied());
    let hash = mix(fnv1a(bytes));
    Some((hash >> 11) as f64 / (1u64 << 53) as f64)
}

/// FNV-1a, 64 bits. <http://www.isthe.com/chongo/tech/comp/fnv/>
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// MurmurHash3's finalizer: FNV alone hardly lets the last bytes of a key reach the upper bits.
/// <https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp>
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
