//! What holds for some requests in the place of what the policy says for all.

use std::sync::Arc;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    CircuitBreaker, Concurrency, ErrorCodes, Fallback, Headers, Mode, RateLimit, Retry, Said, Timeouts, Whose,
};
use crate::{
    api::{field::At, matching::RequestMatch},
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
    /// `policy`: what holds where the rule says nothing; `of_policy` says it.
    pub(in crate::api) fn check(
        &self,
        of_policy: Said<'_>,
        policy: &policy::Policy,
        mode: Mode,
        at: &At<'_>,
    ) -> policy::Rule {
        let mut of_rule = policy::Policy { rules: Vec::new(), ..policy.clone() };
        let said = self.said();
        said.check(Whose::Rule(&self.name, of_policy), &mut of_rule, mode, at);
        let matches = self.matches.as_ref().map(|matches| matches.check(&at.field("match")));
        policy::Rule {
            name: self.name.as_str().into(),
            matches: matches.unwrap_or_default(),
            policy: Arc::new(of_rule),
            own: said.parts(),
        }
    }
}
