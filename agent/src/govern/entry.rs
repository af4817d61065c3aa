//! Entry colouring: the tag that a request gets where it enters, because a lane asks for such requests.
//!
//! It is the last to answer the question for the tag (ARCHITECTURE.md#lanes): only a request that carries none, from a caller
//! that has none, is looked at. The rules of a service's lanes are asked in order, and the first that takes the request
//! colours it: rules of lanes with a higher `priority` first; of the same priority those that take all requests that
//! meet their conditions before percentages, so that who asks for a lane gets it whatever share another has; and then
//! the oldest lane's first.
//!
//! A rule takes the requests that meet its conditions, or a percentage of them. Who is in the percentage depends on
//! nothing but the lane's name and the value of the rule's key (a header, a cookie, the caller's address), so the same
//! user gets the same answer on every node, from every agent, after every restart. A request without the key is not
//! taken: coloured at random it would change lanes from one call to the next.
//!
//! - Raising a percentage only adds users to the lane, lowering it only takes users away.
//! - Lanes that ask for shares of the same requests (same conditions, same key) get what they say of all of these
//!   requests: two lanes of 10 % are 20 % together, and no user is in both. Where the sum exceeds 100 %, the earlier
//!   lanes get theirs. A younger lane whose older neighbour grows gives it its part of the users and makes that good
//!   from the rest.
//! - Lanes whose rules differ in conditions or key cannot be added up: there a percentage is of the requests that the
//!   older lanes have left.
//! - Otherwise lanes are independent: who is in the 10 % of one is in the 10 % of the next no more often than others.

use std::{cmp::Reverse, io::Write as _, net::IpAddr, sync::Arc};

use super::{
    lane::Untrusted,
    policy::{EntryRule, Lane, PercentageKey},
    request::Request,
    tag::Tag,
};

/// The entry rules of a service, ready for use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    rules: Vec<Rule>,
    untrusted: Untrusted,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    lane: Arc<Lane>,
    /// Of the lane's rules.
    index: usize,
    /// The part of the requests that it takes of those that meet its conditions and that no earlier lane takes, 0 to 1.
    share: f64,
}

/// The tag that a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coloured<'e> {
    pub tag: &'e Tag,
    /// The TrafficLane that asked for it, as `shop/gray`.
    pub lane: &'e Arc<str>,
    /// Which of the lane's entry rules, counted from 0.
    pub rule: usize,
}

impl Entry {
    /// Puts the rules of several lanes together, which come the oldest first. Their targets are not looked at.
    pub fn new<'l>(lanes: impl IntoIterator<Item = &'l Arc<Lane>>) -> Self {
        let of_lane = |lane: &'l Arc<Lane>| {
            (0..lane.entry.len()).map(|index| Rule { lane: lane.clone(), index, share: 1.0 })
        };
        let lanes: Vec<_> = lanes.into_iter().collect();
        // A lane that lets nobody in holds nowhere.
        let guarded = lanes.iter().filter(|lane| !lane.trusts_incoming_tag && !lane.entry.is_empty());
        let mut untrusted = Untrusted::new();
        for lane in guarded {
            untrusted.entry(lane.tag.clone()).or_insert_with(|| lane.name.clone());
        }
        let mut rules: Vec<Rule> = lanes.into_iter().flat_map(of_lane).collect();
        // Stable: what is left is the lanes' age.
        rules.sort_by_key(|rule| (Reverse(rule.lane.priority), rule.asked().percentage.is_some()));
        for at in 0..rules.len() {
            rules[at].share = share_of_rest(&rules[..at], &rules[at]);
        }
        Self { rules, untrusted }
    }

    /// Whether it colours nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The tags that requests must not bring along, with the TrafficLanes that say so.
    pub fn untrusted(&self) -> &Untrusted {
        &self.untrusted
    }

    /// The tag for a request that has none. `caller` is the calling pod's address.
    pub fn colour(&self, request: &impl Request, caller: IpAddr) -> Option<Coloured<'_>> {
        let rule = self.rules.iter().find(|rule| rule.takes(request, caller))?;
        Some(Coloured { tag: &rule.lane.tag, lane: &rule.lane.name, rule: rule.index })
    }
}

impl Rule {
    fn asked(&self) -> &EntryRule {
        &self.lane.entry[self.index]
    }

    fn takes(&self, request: &impl Request, caller: IpAddr) -> bool {
        let rule = self.asked();
        rule.matches.matches(request)
            && rule.percentage.as_ref().is_none_or(|percentage| {
                place_of(&self.lane.name, &percentage.key, request, caller)
                    .is_some_and(|place| place < self.share)
            })
    }
}

/// What a rule has to take of the requests that earlier lanes leave it, to get what it asks for of all of them.
fn share_of_rest(earlier: &[Rule], rule: &Rule) -> f64 {
    let EntryRule { matches, percentage } = rule.asked();
    let Some(percentage) = percentage else { return 1.0 };
    let of_all = part(percentage.percent);
    // Rules of one lane share its users: the widest counts.
    let mut lanes: Vec<(&Arc<str>, f64)> = Vec::new();
    let rivals = earlier.iter().filter(|rival| rival.lane.name != rule.lane.name);
    for rival in rivals.filter(|rival| rival.asked().matches == *matches) {
        let Some(taken) = rival.asked().percentage.as_ref().filter(|taken| taken.key == percentage.key)
        else {
            continue;
        };
        let taken = part(taken.percent);
        match lanes.iter_mut().find(|(lane, _)| **lane == rival.lane.name) {
            Some((_, widest)) => *widest = widest.max(taken),
            None => lanes.push((&rival.lane.name, taken)),
        }
    }
    let left = 1.0 - lanes.iter().map(|(_, taken)| taken).sum::<f64>();
    if left > of_all { of_all / left } else { 1.0 }
}

fn part(percent: f64) -> f64 {
    (percent / 100.0).clamp(0.0, 1.0)
}

/// Where a request falls in a lane; `None` if it has no key.
fn place_of(lane: &str, key: &PercentageKey, request: &impl Request, caller: IpAddr) -> Option<f64> {
    match key {
        PercentageKey::Header(name) => place(lane, request.header(name)?),
        PercentageKey::Cookie(name) => place(lane, &request.cookie(name)?),
        PercentageKey::ClientAddress => {
            // As it is written (RFC 5952), which is at most 39 bytes.
            let mut text = [0; 40];
            let mut rest = &mut text[..];
            write!(rest, "{}", caller.to_canonical()).ok()?;
            let length = 40 - rest.len();
            place(lane, &text[..length])
        }
    }
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
