//! The rules that hold for a request: those of the policy, or of the rule of it, that governs it.

use std::sync::Arc;

use super::Exchange;
use crate::govern::{
    concurrency::Limiter,
    fallback::stale,
    governor::{Beside, Governor},
    policy::{Part, Policy, RateLimit},
    throttle::Throttles,
};

/// What holds for a request.
#[derive(Clone, Copy)]
pub(super) struct Rules<'g> {
    pub(super) governor: &'g Governor,
    /// The limits of rules that hold for what some server may take its path for.
    pub(super) beside: Option<&'g Beside>,
    /// Under what its response is kept, if it is; what is kept may stand in for one that fails.
    pub(super) key: Option<stale::Key>,
}

impl<'g> Rules<'g> {
    pub(super) fn of<E: Exchange>(
        exchange: &mut E,
        governor: &'g Governor,
        beside: Option<&'g Beside>,
    ) -> Self {
        let key = governor.stale().and_then(|stale| {
            let lane = exchange.call().tagging.tag.and_then(|tag| tag.as_str().parse().ok());
            let (request, authority) = (exchange.request(), exchange.authority());
            let vary_by = &stale.wanted.vary_by;
            stale.store.key(&request, authority, lane.as_ref(), exchange.has_body(), vary_by)
        });
        Self { governor, beside, key }
    }

    pub(super) fn throttles(self) -> &'g Throttles {
        self.beside.map_or(self.governor.throttles(), |beside| &beside.throttles)
    }

    /// The limits on requests in flight, each with the policy that says it.
    pub(super) fn limiters(self) -> impl Iterator<Item = (&'g Arc<Limiter>, &'g Policy)> {
        let beside = self.beside.into_iter().flat_map(|beside| &beside.limiters);
        let own = self.governor.limiter().map(|limiter| (limiter, &**self.governor.policy()));
        own.into_iter().chain(beside.map(|(limiter, policy)| (limiter, &**policy)))
    }

    /// The policy that says a rate limit.
    pub(super) fn said_by(self, limit: &RateLimit) -> Option<&'g Arc<str>> {
        let own = self.governor.policy();
        self.beside.map_or_else(|| own.said_by(Part::RateLimits), |beside| beside.said_by(limit, own))
    }
}
