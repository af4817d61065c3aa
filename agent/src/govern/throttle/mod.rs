//! How many requests a service gets in a time (ARCHITECTURE.md#rate-limits): which are admitted at once, which wait, which
//! are rejected.
//!
//! [`Throttles`] are the rules of one service port, asked before an endpoint is chosen; all that match a request must
//! admit it, and what one of them took is given back if another refuses. Each [`Throttle`] has the state of one rule: a
//! bucket (`pace`) for each of its keys (`keyed`), whose price falls after a cold start (`cold`), and which callers
//! share fairly if they share it at all (`fair`).
//!
//! Of a limit of the whole cluster (`scope: Cluster`) the bucket is this agent's [`Share`], which changes as it is told
//! (`share`).
//!
//! Workers share the state. A lock is held for the arithmetic of one bucket, and rules with keys have one for
//! each sixteenth of them.

mod cold;
mod fair;
mod keyed;
mod pace;
mod patience;
mod share;
mod verdict;

use std::{hash::Hash, sync::Arc, time::Duration};

use ahash::RandomState;

use self::{
    keyed::Buckets,
    pace::{Pace, Taken, Ticks, duration},
};
pub use self::{
    patience::Patience,
    share::{Holds, Share, Tally},
    verdict::{Refusal, Throttles, Verdict},
};
use super::{
    path::Seen,
    policy::{LimitKey, RateLimit, RequestMatch, Scope},
    request::Request,
};

/// What a rule says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Now,
    /// When it has waited so long; its place is kept.
    After(Duration),
    Refused {
        /// When the next request would be admitted if no other came before. Where callers share a limit, and this one is
        /// above its share: when its share admits the next one for certain.
        retry_after: Duration,
    },
}

/// One rule and its state.
#[derive(Debug)]
pub struct Throttle {
    rule: Arc<RateLimit>,
    /// It is about every request.
    for_all: bool,
    /// What the rule's successors go on with.
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    buckets: Buckets,
    /// Two halves of a key's hash, with seeds that nobody can know.
    hashes: [RandomState; 2],
}

/// What a request took from a rule's bucket.
#[derive(Clone, Copy, Debug)]
struct Charge {
    key: u128,
    taken: Taken,
}

impl Throttle {
    /// A rule that nobody has asked yet: its buckets are full, and cold.
    pub fn new(rule: Arc<RateLimit>) -> Self {
        let pace = Pace::of(&rule);
        let buckets = if is_shared(&rule) { Buckets::shared(pace) } else { Buckets::keyed(&pace) };
        Self::of(rule, Arc::new(State { buckets, hashes: [RandomState::new(), RandomState::new()] }))
    }

    fn of(rule: Arc<RateLimit>, state: Arc<State>) -> Self {
        Self { for_all: rule.matches == RequestMatch::default(), rule, state }
    }

    /// The rule in its new words, with the state that still makes sense: what is left in each bucket stays as far as
    /// it fits, and nothing is poured in, however often a rule is changed. Only another key or scope begins anew. The
    /// state is one: requests that still meet the old rule count, and from now on are paced as the new one says.
    #[must_use]
    pub fn with_rule(self: &Arc<Self>, rule: Arc<RateLimit>, now_nanos: u64) -> Arc<Self> {
        if self.rule == rule {
            return Arc::clone(self);
        }
        if self.rule.key != rule.key || self.rule.scope != rule.scope {
            return Arc::new(Self::new(rule));
        }
        let part = self.part();
        let of = |rule: &RateLimit| if part < 1.0 { Pace::of(&rule.part(part)) } else { Pace::of(rule) };
        let pace = of(&rule);
        if pace != of(&self.rule) {
            self.state.buckets.convert(&pace, now_nanos);
        }
        Arc::new(Self::of(rule, Arc::clone(&self.state)))
    }

    /// The rule in the state that this request would find; it shares nothing with this one, so asking it changes nothing.
    #[must_use]
    pub fn copy_for(&self, request: &impl Request, caller: &str, now_nanos: u64) -> Arc<Self> {
        let buckets = self.state.buckets.copy_of(self.key(request, caller), now_nanos);
        let state = Arc::new(State { buckets, hashes: self.state.hashes.clone() });
        Arc::new(Self::of(self.rule.clone(), state))
    }

    pub fn rule(&self) -> &Arc<RateLimit> {
        &self.rule
    }

    /// How many values of its key it keeps count of.
    pub fn keys(&self) -> usize {
        self.state.buckets.len()
    }

    /// What the rule says of this request, which is counted if it is admitted; `None` if the rule is not about it.
    /// `caller` is the calling pod's identity. To ask several rules about one request, see [`Throttles`].
    pub fn admit(&self, request: &impl Request, caller: &str, now_nanos: u64) -> Option<Admission> {
        Some(self.charge(&Seen::new(request), caller, Ticks::MAX, now_nanos)?.0)
    }

    /// `left`: a request that would have to wait for longer is refused. A rule is about what some server may take for a request that
    /// it matches, or it could be evaded by writing a path in another way.
    fn charge<R: Request>(
        &self,
        seen: &Seen<'_, R>,
        caller: &str,
        left: Ticks,
        now_nanos: u64,
    ) -> Option<(Admission, Option<Charge>)> {
        if !self.for_all && !self.rule.matches.may_match(seen) {
            return None;
        }
        let key = self.key(seen.request(), caller);
        Some(match self.state.buckets.take(key, left, now_nanos) {
            Ok(taken) if taken.wait == 0 => (Admission::Now, Some(Charge { key, taken })),
            Ok(taken) => (Admission::After(duration(taken.wait)), Some(Charge { key, taken })),
            Err(short) => (Admission::Refused { retry_after: duration(short) }, None),
        })
    }

    /// The request is not going to be made.
    fn give_back(&self, charge: &Charge, now_nanos: u64) {
        self.state.buckets.give_back(charge.key, &charge.taken, now_nanos);
    }

    fn key(&self, request: &impl Request, caller: &str) -> u128 {
        // Of a bucket that all callers share, the caller is no key, but the owner of an account.
        let by_caller =
            self.rule.scope == Scope::Caller || self.rule.key == LimitKey::Caller || is_shared(&self.rule);
        let caller = by_caller.then_some(caller);
        match &self.rule.key {
            LimitKey::None | LimitKey::Caller => self.hash_of(caller),
            LimitKey::Workload => self.hash(caller, request.caller().map(|by| (by.namespace, by.workload))),
            LimitKey::Header(name) => self.hash(caller, request.header(name)),
            LimitKey::QueryParameter(name) => self.hash(caller, request.query_parameter(name).as_deref()),
        }
    }

    /// Callers are pods, which nobody chooses so that they fall together: half of the bits will do, in both halves.
    fn hash_of(&self, caller: Option<&str>) -> u128 {
        let half = u128::from(self.state.hashes[0].hash_one(caller));
        half << 64 | half
    }

    fn hash(&self, caller: Option<&str>, value: Option<impl Hash + Copy>) -> u128 {
        let [high, low] =
            self.state.hashes.each_ref().map(|state| u128::from(state.hash_one((caller, value))));
        high << 64 | low
    }
}

/// How long a request may wait for its turn that has so much `left` of its `whole` time, if an answer is `expected` to take so
/// long: whoever waits for longer would be answered in vain, and would keep another from being answered in time. No more than
/// half of the time is set aside: what hangs would otherwise make a queue useless, and would never be given the time in which
/// it shows.
pub fn time_to_wait(left: Duration, whole: Duration, expected: Option<Duration>) -> Duration {
    left.saturating_sub(expected.unwrap_or_default().min(whole / 2))
}

/// Whether all callers have one bucket together.
fn is_shared(rule: &RateLimit) -> bool {
    rule.key == LimitKey::None && rule.scope != Scope::Caller
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
