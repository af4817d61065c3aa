//! What governs one service port: the policy in force, and the state of its rules.
//!
//! A snapshot's services hold it, and it outlives them: [`Governor::next`] makes the next one of the last when the policy
//! changes, and what the policy did not change goes on as it was (a bucket's tokens, a breaker's window). Endpoints keep
//! their own state ([`super::endpoint::Load`]).

mod beside;
mod breakers;

use std::sync::Arc;

pub use self::{
    beside::Beside,
    breakers::{Breakers, OneBreaker},
};
use super::{
    concurrency::Limiter,
    fallback::stale::{Memory, Store},
    per_pod::{CallingPod, PerPod},
    policy::{OnRoute, Part, Policy, RateLimit, Rule, Scope, StaleAnswer},
    request::Request,
    retry::Budget,
    throttle::{Patience, Throttles},
};

/// What all services of an agent together may keep of answers, for `fallback: stale`.
const STALE_BYTES: u64 = 64 * 1024 * 1024;

/// The rules of one service port. Shared by all workers; nothing in it is held while anything is waited for.
#[derive(Debug)]
pub struct Governor {
    policy: Arc<Policy>,
    throttles: Throttles,
    /// How long the clients of each calling pod wait for an answer.
    patience: Arc<PerPod<Patience>>,
    limiter: Option<Arc<Limiter>>,
    breakers: Option<Breakers>,
    budget: Option<Arc<Budget>>,
    stale: Option<Stale>,
    memory: Arc<Memory>,
    rules: Vec<Arc<Ruled>>,
    /// Of policies that target routes.
    routes: Vec<OfRoute>,
    side: Side,
}

/// Where the limits of a policy are asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Side {
    /// Where the client is.
    #[default]
    Client,
    Endpoint,
}

impl Side {
    fn has(self, scope: Scope) -> bool {
        (scope == Scope::Endpoint) == (self == Self::Endpoint)
    }

    fn rate_limits(self, policy: &Policy) -> Vec<Arc<RateLimit>> {
        policy.rate_limits.iter().filter(|limit| self.has(limit.scope)).cloned().collect()
    }

    fn limiter(self, before: Option<&Arc<Limiter>>, policy: &Policy, now_nanos: u64) -> Option<Arc<Limiter>> {
        let wanted = policy.concurrency.as_ref().filter(|limit| self.has(limit.scope))?;
        Some(match before {
            Some(limiter) => limiter.with_config(wanted, now_nanos),
            None => Arc::new(Limiter::new(wanted, now_nanos)),
        })
    }
}

/// What governs the requests of routes that a policy targets: as [`OnRoute::over`].
#[derive(Debug)]
struct OfRoute {
    policy: Arc<OnRoute>,
    over: Vec<Arc<Ruled>>,
}

/// A rule of the policy, and what governs the requests that it matches. What it does not say itself it shares with the
/// policy's own governor, state and all.
#[derive(Debug)]
pub struct Ruled {
    pub rule: Arc<Rule>,
    pub governor: Governor,
}

/// The answers that are kept, and how many of them.
#[derive(Clone, Debug)]
pub struct Stale {
    pub store: Arc<Store>,
    pub wanted: StaleAnswer,
}

/// One without rules.
impl Default for Governor {
    fn default() -> Self {
        Self {
            policy: Arc::default(),
            throttles: Throttles::default(),
            patience: Arc::default(),
            limiter: None,
            breakers: None,
            budget: None,
            stale: None,
            memory: Memory::new(STALE_BYTES),
            rules: Vec::new(),
            routes: Vec::new(),
            side: Side::default(),
        }
    }
}

impl Governor {
    /// What limits the requests that come to an endpoint after `previous`.
    pub fn at_endpoint(previous: Option<&Arc<Self>>, policy: &Policy, now_nanos: u64) -> Arc<Self> {
        let first = || Arc::new(Self { side: Side::Endpoint, ..Self::default() });
        let previous = previous.cloned().unwrap_or_else(first);
        Self::next(Some(&previous), Arc::new(policy.at_endpoint()), now_nanos)
    }

    /// What governs after `previous` under `policy`. The same one if the policy is the same. Those that come of the same
    /// first one share the memory for answers that are kept, and one without rules has no other state to share.
    pub fn next(previous: Option<&Arc<Self>>, policy: Arc<Policy>, now_nanos: u64) -> Arc<Self> {
        Self::next_on(previous, policy, Vec::new(), now_nanos)
    }

    /// The same, where policies target routes that lead here.
    pub fn next_on(
        previous: Option<&Arc<Self>>,
        policy: Arc<Policy>,
        routes: Vec<Arc<OnRoute>>,
        now_nanos: u64,
    ) -> Arc<Self> {
        if let Some(previous) = previous
            && (Arc::ptr_eq(&previous.policy, &policy) || previous.policy == policy)
            && previous.routes.iter().map(|of| &of.policy).eq(&routes)
        {
            return Arc::clone(previous);
        }
        let none = Arc::default();
        let before = previous.unwrap_or(&none);
        let all =
            || policy.all().chain(routes.iter().flat_map(|route| &route.over).map(|rule| &*rule.policy));
        let fallbacks: Vec<_> = all().flat_map(|policy| &policy.fallbacks).cloned().collect();
        let stale = Store::wanted(&fallbacks).map(|wanted| {
            let store = match &before.stale {
                Some(stale) => stale.store.clone(),
                None => Arc::new(Store::new(before.memory.clone())),
            };
            store.trim(Some(wanted.bounds), now_nanos);
            Stale { store, wanted }
        });
        let retries = all().any(|policy| policy.retry.is_some());
        let mut governor = Self {
            throttles: before.throttles.with_rules(&before.side.rate_limits(&policy), now_nanos),
            patience: before.patience.clone(),
            limiter: before.side.limiter(before.limiter.as_ref(), &policy, now_nanos),
            breakers: breakers(before.breakers.as_ref(), &policy),
            budget: retries.then(|| before.budget.clone().unwrap_or_default()),
            stale,
            memory: before.memory.clone(),
            rules: Vec::new(),
            routes: Vec::new(),
            side: before.side,
            policy,
        };
        let rules = governor.policy.rules.iter().map(|rule| {
            let last = before.rules.iter().find(|last| last.rule.name == rule.name);
            let governor = governor.for_rule(rule, last.map(|last| &**last), now_nanos);
            Arc::new(Ruled { rule: rule.clone(), governor })
        });
        governor.rules = rules.collect();
        governor.routes = routes
            .into_iter()
            .map(|policy| {
                let last = before.routes.iter().find(|last| last.policy.name == policy.name);
                governor.of_route(policy, last, now_nanos)
            })
            .collect();
        Arc::new(governor)
    }

    /// What governs the requests of routes that a policy targets. What the policy says itself has one state, whichever rule of the
    /// Service's own policy matches besides.
    fn of_route(&self, policy: Arc<OnRoute>, last: Option<&OfRoute>, now_nanos: u64) -> OfRoute {
        let last = last.and_then(|last| last.over.first());
        let mut over: Vec<Arc<Ruled>> = Vec::with_capacity(policy.over.len());
        for (at, rule) in policy.over.iter().enumerate() {
            let governor = match over.first() {
                None => self.for_rule(rule, last.map(|last| &**last), now_nanos),
                Some(first) => {
                    let below = self.rules.get(at - 1).map_or(self, |ruled| &ruled.governor);
                    below.with_parts_of(&first.governor, rule)
                }
            };
            over.push(Arc::new(Ruled { rule: rule.clone(), governor }));
        }
        OfRoute { policy, over }
    }

    /// The same, with a rule's own parts from the governor that has them already.
    fn with_parts_of(&self, other: &Self, rule: &Rule) -> Self {
        let of = |part| if rule.own.has(part) { other } else { self };
        Self {
            throttles: of(Part::RateLimits).throttles.clone(),
            patience: self.patience.clone(),
            limiter: of(Part::Concurrency).limiter.clone(),
            breakers: of(Part::CircuitBreaker).breakers.clone(),
            budget: self.budget.clone(),
            stale: self.stale.clone(),
            memory: self.memory.clone(),
            rules: Vec::new(),
            routes: Vec::new(),
            side: self.side,
            policy: rule.policy.clone(),
        }
    }

    /// What governs the requests of a rule. `last`: the one of the same name before.
    fn for_rule(&self, rule: &Arc<Rule>, last: Option<&Ruled>, now_nanos: u64) -> Self {
        let policy = &rule.policy;
        // What was the rule's own before goes on.
        let last = |part| last.filter(|last| last.rule.own.has(part));
        Self {
            throttles: if rule.own.has(Part::RateLimits) {
                let before = last(Part::RateLimits).map(|last| last.governor.throttles.clone());
                before.unwrap_or_default().with_rules(&self.side.rate_limits(policy), now_nanos)
            } else {
                self.throttles.clone()
            },
            patience: self.patience.clone(),
            limiter: if rule.own.has(Part::Concurrency) {
                let before = last(Part::Concurrency).and_then(|last| last.governor.limiter.as_ref());
                self.side.limiter(before, policy, now_nanos)
            } else {
                self.limiter.clone()
            },
            breakers: if rule.own.has(Part::CircuitBreaker) {
                let before = last(Part::CircuitBreaker).and_then(|last| last.governor.breakers.as_ref());
                breakers(before, policy)
            } else {
                self.breakers.clone()
            },
            // A service's retries are paid from one budget, and its answers are kept in one place.
            budget: self.budget.clone(),
            stale: self.stale.clone(),
            memory: self.memory.clone(),
            rules: Vec::new(),
            routes: Vec::new(),
            side: self.side,
            policy: policy.clone(),
        }
    }

    /// The rule that holds for a request; `None`: the policy itself governs it.
    pub fn rule_for(&self, request: &impl Request) -> Option<&Arc<Ruled>> {
        self.rules.iter().find(|ruled| ruled.rule.matches.matches(request))
    }

    /// What holds for a request in the place of the policy: a policy that targets its route, which is called `on_route`, or the rule
    /// that matches; `None`: the policy itself governs it.
    pub fn ruled(&self, on_route: Option<&str>, request: &impl Request) -> Option<&Arc<Ruled>> {
        if on_route.is_none() && self.rules.is_empty() {
            return None;
        }
        let rule = self.rules.iter().position(|ruled| ruled.rule.matches.matches(request));
        self.over(on_route, rule)
    }

    /// The same, where this one of the rules matches.
    fn over(&self, on_route: Option<&str>, rule: Option<usize>) -> Option<&Arc<Ruled>> {
        match on_route.and_then(|name| self.routes.iter().find(|of| *of.policy.name == *name)) {
            Some(of) => of.over.get(rule.map_or(0, |at| at + 1)),
            None => self.rules.get(rule?),
        }
    }

    /// Policies that target routes which lead here, each with what it says for requests that no rule matches.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Ruled>> {
        self.routes.iter().filter_map(|of| of.over.first())
    }

    /// The policy, its rules, and policies that target routes.
    pub fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policy.all().chain(self.routes().map(|ruled| &**ruled.governor.policy()))
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Arc<Ruled>] {
        &self.rules
    }

    /// Every set of circuit breakers once, with the rule that it is of.
    pub fn all_breakers(&self) -> impl Iterator<Item = (Option<&Arc<str>>, &Breakers)> {
        let all = self.rules.iter().chain(self.routes());
        let own = all.filter(|ruled| ruled.rule.own.has(Part::CircuitBreaker));
        let rules = own.filter_map(|ruled| Some((Some(&ruled.rule.name), ruled.governor.breakers()?)));
        self.breakers().map(|breakers| (None, breakers)).into_iter().chain(rules)
    }

    /// The same of limits on requests in flight.
    pub fn all_limiters(&self) -> impl Iterator<Item = (Option<&Arc<str>>, &Arc<Limiter>)> {
        let all = self.rules.iter().chain(self.routes());
        let own = all.filter(|ruled| ruled.rule.own.has(Part::Concurrency));
        let rules = own.filter_map(|ruled| Some((Some(&ruled.rule.name), ruled.governor.limiter()?)));
        self.limiter().map(|limiter| (None, limiter)).into_iter().chain(rules)
    }

    /// Every set of rate limits once, with the rule or the policy on routes that it is of.
    pub fn all_throttles(&self) -> impl Iterator<Item = (Option<&Arc<str>>, &Throttles)> {
        let all = self.rules.iter().chain(self.routes());
        let own = all.filter(|ruled| ruled.rule.own.has(Part::RateLimits));
        let rules = own.map(|ruled| (Some(&ruled.rule.name), ruled.governor.throttles()));
        std::iter::once((None, self.throttles())).chain(rules)
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The rate limits.
    pub fn throttles(&self) -> &Throttles {
        &self.throttles
    }

    /// What the clients of a pod have shown of their patience.
    pub fn patience(&self, pod: &Arc<CallingPod>) -> Arc<Patience> {
        self.patience.get(pod, Patience::default, |_| {})
    }

    /// The limit on requests in flight.
    pub fn limiter(&self) -> Option<&Arc<Limiter>> {
        self.limiter.as_ref()
    }

    /// The circuit breakers.
    pub fn breakers(&self) -> Option<&Breakers> {
        self.breakers.as_ref()
    }

    /// What retries are paid from; there if the policy retries.
    pub fn budget(&self) -> Option<&Arc<Budget>> {
        self.budget.as_ref()
    }

    /// Where answers are kept; there if a fallback of the policy gives them.
    pub fn stale(&self) -> Option<&Stale> {
        self.stale.as_ref()
    }
}

fn breakers(before: Option<&Breakers>, policy: &Policy) -> Option<Breakers> {
    policy.circuit_breaker.as_ref().map(|wanted| {
        let config = Arc::new(wanted.clone());
        before.map_or_else(|| Breakers::new(&config), |breakers| breakers.with_config(&config))
    })
}

#[cfg(test)]
mod tests;
