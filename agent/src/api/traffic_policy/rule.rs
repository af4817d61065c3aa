//! What holds for some requests in the place of what the policy says for all.

use std::sync::Arc;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    CircuitBreaker, Concurrency, ErrorCodes, Fallback, Headers, Mode, RateLimit, Retry, Timeouts,
    TrafficPolicySpec, unique_names,
};
use crate::{
    api::{
        field::{At, Errors},
        matching::{RequestMatch, each},
    },
    govern::policy,
};

/// Overrides for the requests that it matches. A field that the rule sets replaces the policy's, as a whole, lists too;
/// an empty list is none. A field that it does not set is the policy's, and counts together with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRule {
    /// Name of the rule in metrics. Unique within the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The requests that the rule applies to; all that no earlier rule matches, if not set.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<RequestMatch>,
    /// Which responses to them are failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<ErrorCodes>,
    /// Rate limits in place of the policy's. Metrics and responses call a limit rule/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub rate_limits: Option<Vec<RateLimit>>,
    /// How many of them may be in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// A circuit breaker of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How long they may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Which of them are retried. The budget is that of all requests to the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Responses that replace the Service's. Metrics and responses call a fallback rule/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub fallbacks: Option<Vec<Fallback>>,
    /// Changes of their headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

impl PolicyRule {
    /// `policy`: what holds where the rule says nothing; `spec` says it.
    pub(super) fn check(
        &self,
        spec: &TrafficPolicySpec,
        policy: &policy::Policy,
        mode: Mode,
        at: &At<'_>,
    ) -> policy::Rule {
        let mut of_rule = policy::Policy { rules: Vec::new(), ..policy.clone() };
        let named = |name: &str| -> Arc<str> { format!("{}/{name}", self.name).into() };
        if let Some(errors) = &self.errors {
            of_rule.errors = errors.check(&at.field("errors"));
            // What is retried may depend on it. (What is wrong with the policy's own retry is told there.)
            let elsewhere = Errors::default();
            let retry = spec.retry.as_ref().map(|retry| retry.check(Some(errors), &elsewhere.at("")));
            of_rule.retry = retry;
        }
        if let Some(limits) = &self.rate_limits {
            let at = at.field("rateLimits");
            unique_names(limits.iter().map(|limit| &*limit.name), &at);
            of_rule.rate_limits = each(limits, &at, |limit, at| {
                let limit = limit.check(mode, at);
                Some(policy::RateLimit { name: named(&limit.name), ..limit }.into())
            });
        }
        if let Some(concurrency) = &self.concurrency {
            of_rule.concurrency = Some(concurrency.check(mode, &at.field("concurrency")));
        }
        if let Some(breaker) = &self.circuit_breaker {
            of_rule.circuit_breaker = Some(breaker.check(mode, &at.field("circuitBreaker")));
        }
        if let Some(timeouts) = &self.timeouts {
            of_rule.timeouts = timeouts.check(mode, &at.field("timeouts"));
        }
        if let Some(retry) = &self.retry {
            let errors = self.errors.as_ref().or(spec.errors.as_ref());
            of_rule.retry = Some(retry.check(errors, &at.field("retry")));
        }
        if let Some(fallbacks) = &self.fallbacks {
            let at = at.field("fallbacks");
            unique_names(fallbacks.iter().map(|fallback| &*fallback.name), &at);
            of_rule.fallbacks = each(fallbacks, &at, |fallback, at| {
                let fallback = fallback.check(at)?;
                Some(policy::Fallback { name: named(&fallback.name), ..fallback }.into())
            });
        }
        if let Some(headers) = &self.headers {
            of_rule.headers = headers.check(&at.field("headers"));
        }
        let matches = self.matches.as_ref().map(|matches| matches.check(&at.field("match")));
        policy::Rule {
            name: self.name.as_str().into(),
            matches: matches.unwrap_or_default(),
            policy: Arc::new(of_rule),
            own: policy::OwnParts {
                errors: self.errors.is_some(),
                rate_limits: self.rate_limits.is_some(),
                concurrency: self.concurrency.is_some(),
                circuit_breaker: self.circuit_breaker.is_some(),
                timeouts: self.timeouts.is_some(),
                retry: self.retry.is_some(),
                fallbacks: self.fallbacks.is_some(),
                headers: self.headers.is_some(),
            },
        }
    }
}
