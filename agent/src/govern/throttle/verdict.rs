//! What all rules of a service port say of a request, together.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    Admission, Charge, Throttle,
    pace::{Ticks, span},
};
use crate::govern::{
    path::Seen,
    policy::{Behaviour, Mode, RateLimit},
    request::Request,
};

/// The rules of one service port.
#[derive(Clone, Debug, Default)]
pub struct Throttles {
    /// Those that let requests wait come last: nobody takes a place in a queue who is refused elsewhere.
    rules: Vec<Arc<Throttle>>,
}

impl Throttles {
    pub fn new(rules: &[Arc<RateLimit>]) -> Self {
        Self::default().with_rules(rules, 0)
    }

    /// The rules as they are now wanted; those that had been there under the same name keep their state
    /// ([`Throttle::with_rule`]).
    #[must_use]
    pub fn with_rules(&self, rules: &[Arc<RateLimit>], now_nanos: u64) -> Self {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| match self.rules.iter().find(|throttle| throttle.rule().name == rule.name) {
                Some(throttle) => throttle.with_rule(Arc::clone(rule), now_nanos),
                None => Arc::new(Throttle::new(Arc::clone(rule))),
            })
            .collect();
        Self::ordered(rules)
    }

    fn ordered(mut rules: Vec<Arc<Throttle>>) -> Self {
        rules.sort_by_key(|throttle| matches!(throttle.rule().behaviour, Behaviour::Queue { .. }));
        Self { rules }
    }

    /// These rules and those of others that are not among them.
    #[must_use]
    pub(in crate::govern) fn and<'t>(&self, others: impl Iterator<Item = &'t Self>) -> Self {
        let mut rules = self.rules.clone();
        for rule in others.flat_map(|other| &other.rules) {
            if !rules.iter().any(|known| Arc::ptr_eq(known, rule)) {
                rules.push(Arc::clone(rule));
            }
        }
        Self::ordered(rules)
    }

    /// The rules in the state that this request would find ([`Throttle::copy_for`]).
    #[must_use]
    pub fn copy_for(&self, request: &impl Request, caller: &str, now_nanos: u64) -> Self {
        Self { rules: self.rules.iter().map(|rule| rule.copy_for(request, caller, now_nanos)).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How long they let a request wait at most; `None`: none does.
    pub fn longest_wait(&self) -> Option<Duration> {
        let timeout = |throttle: &Arc<Throttle>| match throttle.rule().behaviour {
            Behaviour::Queue { timeout } => Some(timeout),
            _ => None,
        };
        // (Those come last.)
        self.rules.iter().rev().map_while(timeout).max()
    }

    /// All rules, those that refuse before those that let requests wait.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Throttle>> {
        self.rules.iter()
    }

    /// Asks every rule that is about this request. Once one that is enforced refuses, the others get back what they gave.
    /// `caller` is the calling pod's identity. `left` is the time that the request has, if that is known: one that would have to
    /// wait for longer is refused at once, for it would be answered in vain.
    pub fn admit(
        &self,
        request: &impl Request,
        caller: &str,
        left: Option<Duration>,
        now_nanos: u64,
    ) -> Verdict<'_> {
        let left = left.map_or(Ticks::MAX, span);
        // At most one allocation, however many rules there are, and none for one.
        let decisions = SmallVec::with_capacity(self.rules.len());
        let mut verdict = Verdict { decisions, wait: Duration::ZERO, refused: false };
        let seen = Seen::new(request);
        for throttle in &self.rules {
            let Some((admission, charge)) = throttle.charge(&seen, caller, left, now_nanos) else {
                continue;
            };
            let refused = matches!(admission, Admission::Refused { .. });
            let enforced = throttle.rule().mode == Mode::Enforce;
            if refused && enforced {
                verdict.revoke(now_nanos);
            }
            if let Admission::After(wait) = admission
                && enforced
            {
                verdict.wait = verdict.wait.max(wait);
            }
            verdict.decisions.push(Decision { throttle, admission, charge });
            if refused && enforced {
                verdict.refused = true;
                break;
            }
        }
        verdict
    }
}

/// What the rules say of a request. If the request is not made after all (its caller has gone while it waited, or something
/// else refuses it), it is to be [given back](Self::give_back); otherwise it is simply dropped.
#[derive(Debug)]
#[must_use]
pub struct Verdict<'t> {
    /// The one that refused is the last.
    decisions: SmallVec<[Decision<'t>; 1]>,
    wait: Duration,
    refused: bool,
}

#[derive(Debug)]
struct Decision<'t> {
    throttle: &'t Throttle,
    admission: Admission,
    charge: Option<Charge>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'v> {
    pub rule: &'v Arc<RateLimit>,
    /// See [`Admission::Refused`].
    pub retry_after: Duration,
}

impl Verdict<'_> {
    /// The enforced rule that refuses the request.
    pub fn refusal(&self) -> Option<Refusal<'_>> {
        match self.decisions.last() {
            Some(Decision { throttle, admission: Admission::Refused { retry_after }, .. })
                if self.refused =>
            {
                Some(Refusal { rule: throttle.rule(), retry_after: *retry_after })
            }
            _ => None,
        }
    }

    /// How long the request has to wait, by the enforced rules; 0 if it may go now.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// What each rule said that is about the request, for the numbers: also those that only [observe](Mode::Observe), of
    /// which [`Admission::Refused`] means that they would have refused it. Of a refused request only the refusals.
    pub fn decisions(&self) -> impl Iterator<Item = (&Arc<RateLimit>, Admission)> {
        self.decisions.iter().map(|decision| (decision.throttle.rule(), decision.admission))
    }

    /// The request is not going to be made: every rule gets back what it gave, as far as that lets no more through than if
    /// the request had never been. A place in a queue that others stand behind already is the next one's who comes.
    pub fn give_back(mut self, now_nanos: u64) {
        self.revoke(now_nanos);
    }

    fn revoke(&mut self, now_nanos: u64) {
        for decision in &self.decisions {
            if let Some(charge) = &decision.charge {
                decision.throttle.give_back(charge, now_nanos);
            }
        }
        self.decisions.retain(|decision| decision.charge.is_none());
        self.wait = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests;
