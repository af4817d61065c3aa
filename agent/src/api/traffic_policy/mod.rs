//! `TrafficPolicy`: how the calls to some Services are governed, as users write it.
//!
//! Everything that is not set has a default, and every default comes from [`crate::govern::policy`]. A rule that is not
//! there is off.

mod failures;
mod fallback;
mod headers;
mod limits;
mod load_balancer;
mod retry;
mod rule;
mod said;

use std::collections::HashMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::limits::ADAPTIVE_MAX;
pub(super) use self::said::Said;
use self::said::Whose;
pub use self::{
    failures::{
        CircuitBreaker, CircuitBreakerScope, ErrorCodes, GrpcStatus, OutlierDetection, SlowRequest,
        StatusClass, SuccessRate, Timeouts,
    },
    fallback::{Fallback, FallbackCondition, FallbackType, StaleAnswer, StaticAnswer},
    headers::{Header, HeaderChanges, Headers, StripTags, tag_changes},
    limits::{
        Adaptive, Concurrency, ConcurrencyScope, LimitKey, LimitKeyType, Queue, RateLimit, RateLimitType,
        RateLimitWarmUp, Scope,
    },
    load_balancer::{DirectEndpoints, Drain, LoadBalancer, LoadBalancerType, StartOn, WarmUp},
    retry::{Backoff, GrpcCode, Retry, RetryBudget, RetryCondition},
    rule::PolicyRule,
};
use super::{
    Kind, Status,
    field::{At, Errors, FieldError, quoted},
    matching::each,
    schema,
    target::{
        self, NAMESPACE_ALONE, NAMESPACE_ALONE_MESSAGE, ROUTES_ALONE, ROUTES_ALONE_MESSAGE, TargetRef,
        UNIQUE_TARGETS, UNIQUE_TARGETS_MESSAGE,
    },
};
use crate::govern::policy;

/// How calls to its target Services are routed, limited and protected. A field that is not set is off, or has the
/// default named here. Of several TrafficPolicies with the same target the oldest applies. One that targets its
/// Namespace applies, field by field, to Services whose own policy does not set the field. One that targets a route
/// applies, field by field, before the policy of the Service that the route sends a request to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    shortname = "tp",
    category = "sluice",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "TrafficPolicy says how the calls to Services of its namespace are governed: load balancing and warm-up, \
           rate and concurrency limits, circuit breaking, outlier detection, timeouts, retries and fallbacks.",
    label("gateway.networking.k8s.io/policy", "Direct"),
    label("app.kubernetes.io/part-of", "sluice"),
    // A column shows the first only of what a path leads to.
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.targets"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    // Both conditions fail for the same reason; that of this one says also what is active in part only.
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(NOT_ON_ROUTES).message(NOT_ON_ROUTES_MESSAGE).field_path(".targetRefs"),
    validation = Rule::new(NO_ENDPOINT_LIMITS_ON_ROUTES).message(NO_ENDPOINT_LIMITS_ON_ROUTES_MESSAGE).field_path(".targetRefs")
)]
pub struct TrafficPolicySpec {
    /// The Services of this namespace that the policy applies to, or ports of them. Or the Namespace itself, alone:
    /// then each field applies to every Service whose own policy does not set it. Or routes of this namespace, or named
    /// rules of them: then each field that is set applies to the requests that they send on, in place of what the
    /// Service's policy says; a policy for the rule goes before one for the route.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        validation = Rule::new(UNIQUE_TARGETS).message(UNIQUE_TARGETS_MESSAGE),
        validation = Rule::new(NAMESPACE_ALONE).message(NAMESPACE_ALONE_MESSAGE),
        validation = Rule::new(ROUTES_ALONE).message(ROUTES_ALONE_MESSAGE)
    )]
    pub target_refs: Vec<TargetRef>,
    /// What the policy inherits: from the TrafficPolicy of the Service that is called, where a route of the namespace sends its
    /// requests to this one, and from the one that targets the Namespace. All: each field of spec that is not set here, as
    /// a whole (an empty list is set). None: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = Inherit::default()))]
    pub inherit: Option<Inherit>,
    /// The mode of every rule that has none of its own. Enforce, the default: rules reject requests. Observe: nothing
    /// is rejected, and what would have been rejected is counted in the metrics.
    // (A default would be written into every object, and nothing would be inherited.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How the endpoint for a request is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// What happens to requests in flight to an endpoint that is terminating.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Which responses are failures: by default status 5xx, gRPC UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and
    /// DATA_LOSS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<ErrorCodes>,
    /// Rate limits. A request must be admitted by all limits that match it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub rate_limits: Vec<RateLimit>,
    /// How many requests may be in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Stops sending requests to a Service (or one lane of it) for a while when most of them fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Ejects an endpoint that fails, for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How long requests may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Retries requests that failed. Connections and streams that were refused before anything was processed are
    /// retried without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Responses that replace the Service's when it fails. The first in the list that names the failure and has a
    /// response is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub fallbacks: Vec<Fallback>,
    /// Changes of headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Removes the tag from requests that come from outside; for Services where requests enter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strip_tags: Option<StripTags>,
    /// Overrides for some of the requests, such as those of one API. The first rule that matches a request applies to
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub rules: Vec<PolicyRule>,
}

/// What is a Service's, and cannot be otherwise for a part of its requests. (A field is set here if it is there.)
const NOT_ON_ROUTES: &str = "!self.targetRefs.exists(target, target.kind in ['HTTPRoute', 'GRPCRoute']) || \
     !(has(self.loadBalancer) || has(self.drain) || has(self.outlierDetection) || has(self.stripTags) || \
     has(self.rules) || self.inherit == 'None')";
const NOT_ON_ROUTES_MESSAGE: &str = "a policy that targets routes does not set loadBalancer, drain, outlierDetection, stripTags, \
     rules or inherit: None";

const NO_ENDPOINT_LIMITS_ON_ROUTES: &str = "!self.targetRefs.exists(target, target.kind in ['HTTPRoute', 'GRPCRoute']) || \
     !(has(self.concurrency) && has(self.concurrency.scope) && self.concurrency.scope == 'Endpoint' || \
     has(self.rateLimits) && self.rateLimits.exists(limit, has(limit.scope) && limit.scope == 'Endpoint'))";
const NO_ENDPOINT_LIMITS_ON_ROUTES_MESSAGE: &str =
    "a policy that targets routes has no limits with scope Endpoint: where they are kept, no route is known";

/// What a policy takes from that of its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Inherit {
    #[default]
    All,
    None,
}

/// Whether a rule refuses, or only counts what it would have refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    #[default]
    Enforce,
    Observe,
}

impl Mode {
    pub(super) fn policy(self) -> policy::Mode {
        match self {
            Self::Enforce => policy::Mode::Enforce,
            Self::Observe => policy::Mode::Observe,
        }
    }
}

impl TrafficPolicy {
    /// What it asks for, with every default filled in; or all that is wrong with it.
    pub fn check(&self) -> Result<policy::Policy, Vec<FieldError>> {
        let errors = Errors::default();
        let at = errors.at("spec");
        let spec = &self.spec;
        target::check(&spec.target_refs, &at.field("targetRefs"));
        let mode = spec.mode.unwrap_or_default();
        target::check_routes(&spec.target_refs, &at.field("targetRefs"));
        if spec.target_refs.iter().any(TargetRef::is_route) {
            let own = [
                ("loadBalancer", spec.load_balancer.is_some()),
                ("drain", spec.drain.is_some()),
                ("outlierDetection", spec.outlier_detection.is_some()),
                ("stripTags", spec.strip_tags.is_some()),
                ("rules", !spec.rules.is_empty()),
                ("inherit", spec.inherit == Some(Inherit::None)),
            ];
            for (field, _) in own.into_iter().filter(|(_, is_set)| *is_set) {
                at.field(field).refuse(NOT_ON_ROUTES_MESSAGE);
            }
            let limits = spec.rate_limits.iter().enumerate();
            for (i, _) in limits.filter(|(_, limit)| limit.scope == Some(Scope::Endpoint)) {
                at.field("rateLimits").index(i).field("scope").refuse(NO_ENDPOINT_LIMITS_ON_ROUTES_MESSAGE);
            }
            if spec.concurrency.as_ref().is_some_and(|limit| limit.scope == Some(ConcurrencyScope::Endpoint))
            {
                at.field("concurrency").field("scope").refuse(NO_ENDPOINT_LIMITS_ON_ROUTES_MESSAGE);
            }
        }
        unique_names(spec.rules.iter().map(|rule| &*rule.name), &at.field("rules"));
        let mut policy = policy::Policy {
            name: Some(super::full_name(&self.metadata).into()),
            ..policy::Policy::default()
        };
        if let Some(balancer) = &spec.load_balancer {
            policy.load_balancer = balancer.check(&at.field("loadBalancer"));
        }
        if let Some(drain) = &spec.drain {
            policy.drain = drain.check(mode, &at.field("drain"));
        }
        if let Some(outlier) = &spec.outlier_detection {
            policy.outlier_detection = Some(outlier.check(mode, &at.field("outlierDetection")));
        }
        policy.strip_tags = spec.strip_tags.as_ref().map(|strip| strip.check(&at.field("stripTags")));
        spec.said().check(Whose::Policy, &mut policy, mode, &at);
        policy.rules = each(&spec.rules, &at.field("rules"), |rule, at| {
            Some(rule.check(spec.said(), &policy, mode, at).into())
        });
        // Last: of two complaints about a field the first is kept, and those above say more.
        schema::check(<Self as Kind>::schema(), spec, &at);
        // But what is no name at all is not another namespace's.
        let namespace = self.metadata.namespace.as_deref().unwrap_or("default");
        target::check_namespace(&spec.target_refs, namespace, &at.field("targetRefs"));
        errors.end(policy)
    }
}

/// Refuses a name that an earlier item of the list has.
pub(in crate::api) fn unique_names<'a>(names: impl Iterator<Item = &'a str>, at: &At<'_>) {
    let mut seen = HashMap::new();
    for (i, name) in names.enumerate() {
        if let Some(earlier) = seen.insert(name, i) {
            at.index(i)
                .field("name")
                .refuse(format!("{} is the name of {at}[{earlier}] already: names are unique", quoted(name)));
        }
    }
}
