//! What governs one service port: the policy in force, and the state of its rules.
//!
//! A snapshot's services hold it, and it outlives them: [`Governor::next`] makes the next one of the last when the policy
//! changes, and what the policy did not change goes on as it was (a bucket's tokens, a breaker's window). Endpoints keep
//! their own state ([`super::endpoint::Load`]).

mod breakers;

use std::sync::Arc;

pub use self::breakers::Breakers;
use super::{
    concurrency::Limiter,
    fallback::stale::{Memory, Store},
    policy::{Policy, StaleAnswer},
    retry::Budget,
    throttle::Throttles,
};

/// What all services of an agent together may keep of answers, for `fallback: stale`.
const STALE_BYTES: u64 = 64 * 1024 * 1024;

/// The rules of one service port. Shared by all workers; nothing in it is held while anything is waited for.
#[derive(Debug)]
pub struct Governor {
    policy: Arc<Policy>,
    throttles: Throttles,
    limiter: Option<Arc<Limiter>>,
    breakers: Option<Breakers>,
    budget: Option<Arc<Budget>>,
    stale: Option<Stale>,
    memory: Arc<Memory>,
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
            limiter: None,
            breakers: None,
            budget: None,
            stale: None,
            memory: Memory::new(STALE_BYTES),
        }
    }
}

impl Governor {
    /// What governs after `previous` under `policy`. The same one if the policy is the same. Those that come of the same
    /// first one share the memory for answers that are kept, and one without rules has no other state to share.
    pub fn next(previous: Option<&Arc<Self>>, policy: Arc<Policy>, now_nanos: u64) -> Arc<Self> {
        if let Some(previous) = previous
            && (Arc::ptr_eq(&previous.policy, &policy) || previous.policy == policy)
        {
            return Arc::clone(previous);
        }
        let none = Arc::default();
        let before = previous.unwrap_or(&none);
        let limiter = policy.concurrency.as_ref().map(|wanted| match &before.limiter {
            Some(limiter) => limiter.with_config(wanted, now_nanos),
            None => Arc::new(Limiter::new(wanted, now_nanos)),
        });
        let breakers = policy.circuit_breaker.as_ref().map(|wanted| {
            let config = Arc::new(wanted.clone());
            before
                .breakers
                .as_ref()
                .map_or_else(|| Breakers::new(&config), |breakers| breakers.with_config(&config))
        });
        let stale = Store::wanted(&policy.fallbacks).map(|wanted| {
            let store = match &before.stale {
                Some(stale) => stale.store.clone(),
                None => Arc::new(Store::new(before.memory.clone())),
            };
            store.trim(Some(wanted.bounds), now_nanos);
            Stale { store, wanted }
        });
        Arc::new(Self {
            throttles: before.throttles.with_rules(&policy.rate_limits, now_nanos),
            limiter,
            breakers,
            budget: policy.retry.as_ref().map(|_| before.budget.clone().unwrap_or_default()),
            stale,
            memory: before.memory.clone(),
            policy,
        })
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The rate limits.
    pub fn throttles(&self) -> &Throttles {
        &self.throttles
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

#[cfg(test)]
mod tests;
