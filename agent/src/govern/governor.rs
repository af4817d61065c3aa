//! What governs one service port: the policy in force, and the state of its rules.
//!
//! A snapshot's services hold it, and it outlives them: [`Governor::next`] makes the next one of the last when the policy
//! changes, and what the policy did not change goes on as it was (a bucket's tokens, a breaker's window). Endpoints keep
//! their own state ([`super::endpoint::Load`]).

use std::sync::Arc;

use super::policy::Policy;

/// The rules of one service port. Shared by all workers; nothing in it is held while anything is waited for.
#[derive(Debug, Default)]
pub struct Governor {
    policy: Arc<Policy>,
}

impl Governor {
    /// What governs after `previous` under `policy`. The same one if the policy is the same.
    pub fn next(previous: Option<&Arc<Self>>, policy: Arc<Policy>, now_nanos: u64) -> Arc<Self> {
        let _ = now_nanos;
        match previous {
            Some(previous) if Arc::ptr_eq(&previous.policy, &policy) || previous.policy == policy => {
                Arc::clone(previous)
            }
            _ => Arc::new(Self { policy }),
        }
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
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
