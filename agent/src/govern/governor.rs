//! What governs one service port: the policy in force, and the state of its rules.
//!
//! A snapshot's services hold it, and it outlives them: [`Governor::next`] makes the next one of the last when the policy
//! changes, and what the policy did not change goes on as it was (a bucket's tokens, a breaker's window). Endpoints keep
//! their own state ([`super::endpoint::Load`]).

use std::sync::Arc;

use super::{concurrency::Limiter, policy::Policy, throttle::Throttles};

/// The rules of one service port. Shared by all workers; nothing in it is held while anything is waited for.
#[derive(Debug, Default)]
pub struct Governor {
    policy: Arc<Policy>,
    throttles: Throttles,
    limiter: Option<Arc<Limiter>>,
}

impl Governor {
    /// What governs after `previous` under `policy`. The same one if the policy is the same.
    pub fn next(previous: Option<&Arc<Self>>, policy: Arc<Policy>, now_nanos: u64) -> Arc<Self> {
        if let Some(previous) = previous
            && (Arc::ptr_eq(&previous.policy, &policy) || previous.policy == policy)
        {
            return Arc::clone(previous);
        }
        let none = Self::default();
        let before = previous.map_or(&none, |previous| previous);
        let limiter = policy.concurrency.as_ref().map(|wanted| match &before.limiter {
            Some(limiter) => limiter.with_config(wanted, now_nanos),
            None => Arc::new(Limiter::new(wanted, now_nanos)),
        });
        let throttles = before.throttles.with_rules(&policy.rate_limits, now_nanos);
        Arc::new(Self { policy, throttles, limiter })
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::govern::policy::Timeouts;

    #[test]
    fn the_same_policy_is_governed_by_the_same() {
        let policy = |seconds| {
            let request = Some(Duration::from_secs(seconds));
            Arc::new(Policy { timeouts: Timeouts { request, ..Timeouts::default() }, ..Policy::default() })
        };
        let first = Governor::next(None, policy(1), 0);
        assert!(Arc::ptr_eq(&first, &Governor::next(Some(&first), policy(1), 1)));
        let next = Governor::next(Some(&first), policy(2), 2);
        assert!(!Arc::ptr_eq(&first, &next));
        assert_eq!(next.policy().timeouts.request, Some(Duration::from_secs(2)));
    }
}
