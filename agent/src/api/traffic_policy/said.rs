//! The parts that a policy says for all requests, and that each of its rules may say for some: the same fields, checked in one
//! place. A field that is new to both is declared here, and whoever builds a [`Said`] is told by the compiler.

use std::sync::Arc;

use super::{
    CircuitBreaker, Concurrency, ErrorCodes, Fallback, Headers, Mode, PolicyRule, RateLimit, Retry, Timeouts,
    TrafficPolicySpec, unique_names,
};
use crate::{
    api::{
        field::{At, Errors},
        matching::each,
    },
    govern::policy::{self, Part, Parts},
};

macro_rules! said {
    ($($part:ident $field:ident: $type:ty,)*) => {
        /// `None`: it is not said.
        #[derive(Clone, Copy)]
        pub(in crate::api) struct Said<'s> {
            $(pub(in crate::api) $field: Option<&'s $type>,)*
        }

        impl Said<'_> {
            /// What is said.
            pub(in crate::api) fn parts(&self) -> Parts {
                let parts = [$(self.$field.is_some().then_some(Part::$part),)*];
                parts.into_iter().flatten().collect()
            }
        }
    };
}

said! {
    Errors errors: ErrorCodes,
    RateLimits rate_limits: [RateLimit],
    Concurrency concurrency: Concurrency,
    CircuitBreaker circuit_breaker: CircuitBreaker,
    Timeouts timeouts: Timeouts,
    Retry retry: Retry,
    Fallbacks fallbacks: [Fallback],
    Headers headers: Headers,
}

impl TrafficPolicySpec {
    pub(in crate::api) fn said(&self) -> Said<'_> {
        Said {
            errors: self.errors.as_ref(),
            rate_limits: Some(&self.rate_limits),
            concurrency: self.concurrency.as_ref(),
            circuit_breaker: self.circuit_breaker.as_ref(),
            timeouts: self.timeouts.as_ref(),
            retry: self.retry.as_ref(),
            fallbacks: Some(&self.fallbacks),
            headers: self.headers.as_ref(),
        }
    }
}

impl PolicyRule {
    pub(in crate::api) fn said(&self) -> Said<'_> {
        Said {
            errors: self.errors.as_ref(),
            rate_limits: self.rate_limits.as_deref(),
            concurrency: self.concurrency.as_ref(),
            circuit_breaker: self.circuit_breaker.as_ref(),
            timeouts: self.timeouts.as_ref(),
            retry: self.retry.as_ref(),
            fallbacks: self.fallbacks.as_deref(),
            headers: self.headers.as_ref(),
        }
    }
}

/// Whose word it is.
#[derive(Clone, Copy)]
pub(super) enum Whose<'s> {
    Policy,
    /// That of a rule of this name, of a policy that says this.
    Rule(&'s str, Said<'s>),
}

impl Said<'_> {
    /// Puts what is said in the place of what `policy` has.
    pub(super) fn check(&self, whose: Whose<'_>, policy: &mut policy::Policy, mode: Mode, at: &At<'_>) {
        let Self { errors, rate_limits, concurrency, circuit_breaker, timeouts, retry, fallbacks, headers } =
            *self;
        // Metrics and responses call what a rule says by both names.
        let named = |name: &Arc<str>| match whose {
            Whose::Policy => Arc::clone(name),
            Whose::Rule(rule, _) => format!("{rule}/{name}").into(),
        };
        if let Some(errors) = errors {
            policy.errors = errors.check(&at.field("errors"));
        }
        if let Some(limits) = rate_limits {
            let at = at.field("rateLimits");
            unique_names(limits.iter().map(|limit| &*limit.name), &at);
            policy.rate_limits = each(limits, &at, |limit, at| {
                let limit = limit.check(mode, at);
                Some(policy::RateLimit { name: named(&limit.name), ..limit }.into())
            });
        }
        if let Some(concurrency) = concurrency {
            policy.concurrency = Some(concurrency.check(mode, &at.field("concurrency")));
        }
        if let Some(breaker) = circuit_breaker {
            policy.circuit_breaker = Some(breaker.check(mode, &at.field("circuitBreaker")));
        }
        if let Some(timeouts) = timeouts {
            policy.timeouts = timeouts.check(mode, &at.field("timeouts"));
        }
        // What is retried depends on what is a failure.
        match (retry, whose) {
            (Some(retry), Whose::Policy) => {
                policy.retry = Some(retry.check(errors, &at.field("retry")));
            }
            (Some(retry), Whose::Rule(_, of_policy)) => {
                policy.retry = Some(retry.check(errors.or(of_policy.errors), &at.field("retry")));
            }
            (None, Whose::Rule(_, of_policy)) if errors.is_some() => {
                // (What is wrong with the policy's own retry is told there.)
                let elsewhere = Errors::default();
                policy.retry = of_policy.retry.map(|retry| retry.check(errors, &elsewhere.at("")));
            }
            (None, _) => {}
        }
        if let Some(fallbacks) = fallbacks {
            let at = at.field("fallbacks");
            unique_names(fallbacks.iter().map(|fallback| &*fallback.name), &at);
            policy.fallbacks = each(fallbacks, &at, |fallback, at| {
                let fallback = fallback.check(at)?;
                Some(policy::Fallback { name: named(&fallback.name), ..fallback }.into())
            });
        }
        if let Some(headers) = headers {
            policy.headers = headers.check(&at.field("headers"));
        }
    }
}
