//! Which failed requests are sent again, how often and after what pause.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ErrorCodes;
use crate::{
    api::{
        field::{At, refuse_repeated},
        matching::{check_method, each},
        number,
        span::{self, Span},
    },
    govern::policy,
};

/// Retries requests that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.codes.size() + self.grpcCodes.size() + self.conditions.size() > 0")
        .message("nothing is retried: set codes, grpcCodes or conditions").field_path(".codes")
)]
pub struct Retry {
    /// How many retries, after the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10), extend("default" = policy::Retry::default().attempts))]
    pub attempts: Option<i64>,
    /// Statuses that are retried: 429 and 500 to 599. If not set: 502, 503 and 504 as far as errors counts them as failures,
    /// and what errors.codes names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(range(min = 429, max = 599)),
        extend("default" = policy::RetryOn::default().statuses, "x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new("self.all(code, code == 429 || code >= 500)").message("allowed are 429 and 500 to 599"))]
    pub codes: Option<Vec<i64>>,
    /// gRPC statuses that are retried, if methods lists POST, which all of gRPC uses. Only responses without a message
    /// (trailers only) are retried. If not set: errors.grpcCodes, if that is set, otherwise UNAVAILABLE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        extend("default" = [GrpcCode::Unavailable], "x-kubernetes-list-type" = "set")
    )]
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Failures without a response that are retried. Reset: the connection was reset before the response headers.
    /// Timeout: timeouts.backendRequest expired before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 2),
        extend("default" = [RetryCondition::Reset, RetryCondition::Timeout], "x-kubernetes-list-type" = "set")
    )]
    pub conditions: Option<Vec<RetryCondition>>,
    /// Methods whose requests may be retried: the idempotent ones (RFC 9110) if not set. Name others only if the
    /// Service can take the same request twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 32), regex(pattern = r"^[A-Z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub methods: Option<Vec<String>>,
    /// How many retries there may be in all, so that they do not overload a Service that is failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
    /// How long to wait before a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

/// A gRPC status that is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GrpcCode {
    Cancelled,
    Unknown,
    DeadlineExceeded,
    ResourceExhausted,
    Aborted,
    Internal,
    Unavailable,
    DataLoss,
}

/// A failure without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryCondition {
    Reset,
    Timeout,
}

/// How many retries there may be in all, of the calling pods on a node together. The larger of the two counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries in percent of the requests of the last 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100), extend("default" = policy::Retry::default().budget_percent))]
    pub percent: Option<f64>,
    /// Retries a second that are allowed in any case, counted over 10 seconds: with 2, 20 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000), extend("default" = policy::Retry::default().budget_minimum))]
    pub min_retries_per_second: Option<f64>,
}

/// How long to wait before a retry: a random time up to base * 2^n, at most max, before the n-th.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("duration(self.base) <= duration(self.max)")
        .message("max is at least base").field_path(".max")
)]
pub struct Backoff {
    /// The base of the wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Retry::default().backoff_base)))]
    pub base: Option<Span<1, 60_000>>,
    /// The longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Retry::default().backoff_max)))]
    pub max: Option<Span<1, 300_000>>,
}

impl Retry {
    /// `errors`: what is a failure, if that is said.
    pub(super) fn check(&self, errors: Option<&ErrorCodes>, at: &At<'_>) -> policy::Retry {
        let default = policy::Retry::default();
        let (budget, backoff) =
            (self.budget.clone().unwrap_or_default(), self.backoff.clone().unwrap_or_default());
        let on = self.check_on(errors, at);
        let methods = at.field("methods");
        let (backoff_base, backoff_max) = backoff.check(&at.field("backoff"));
        policy::Retry {
            attempts: self.attempts.map_or(default.attempts, number),
            on,
            methods: self.methods.as_ref().map_or(default.methods, |names| {
                refuse_repeated(names, &methods);
                each(names, &methods, |name, at| check_method(name, at))
            }),
            budget_percent: budget.percent.unwrap_or(default.budget_percent),
            budget_minimum: budget.min_retries_per_second.unwrap_or(default.budget_minimum),
            backoff_base,
            backoff_max,
        }
    }

    fn check_on(&self, errors: Option<&ErrorCodes>, at: &At<'_>) -> policy::RetryOn {
        let default = ErrorCodes::retried(errors);
        let condition =
            |condition, default| self.conditions.as_ref().map_or(default, |all| all.contains(&condition));
        let on = policy::RetryOn {
            statuses: self.codes.as_ref().map_or(default.statuses, |codes| {
                let at = at.field("codes");
                refuse_repeated(codes, &at);
                each(codes, &at, |code, at| {
                    let status = u16::try_from(*code).ok().filter(|code| is_retried(*code));
                    if status.is_none() {
                        at.refuse(format!("{code} is not retried: allowed are 429 and 500 to 599"));
                    }
                    status
                })
            }),
            grpc_statuses: self.grpc_codes.as_ref().map_or(default.grpc_statuses, |codes| {
                refuse_repeated(codes, &at.field("grpcCodes"));
                codes.iter().map(|code| code.number()).collect()
            }),
            reset: condition(RetryCondition::Reset, default.reset),
            timeout: condition(RetryCondition::Timeout, default.timeout),
        };
        if let Some(conditions) = &self.conditions {
            refuse_repeated(conditions, &at.field("conditions"));
        }
        let nothing = |list: Option<usize>| list == Some(0);
        if nothing(self.codes.as_ref().map(Vec::len))
            && nothing(self.grpc_codes.as_ref().map(Vec::len))
            && nothing(self.conditions.as_ref().map(Vec::len))
        {
            at.field("codes").refuse("nothing is retried: set codes, grpcCodes or conditions");
        }
        on
    }
}

/// Whether there may be any use in sending a request again that was answered so.
pub(super) const fn is_retried(status: u16) -> bool {
    matches!(status, 429 | 500..=599)
}

impl GrpcCode {
    pub(super) const ALL: [Self; 8] = [
        Self::Cancelled,
        Self::Unknown,
        Self::DeadlineExceeded,
        Self::ResourceExhausted,
        Self::Aborted,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
    ];

    /// <https://grpc.io/docs/guides/status-codes/>
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::DeadlineExceeded => 4,
            Self::ResourceExhausted => 8,
            Self::Aborted => 10,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
        }
    }
}

impl Backoff {
    /// `base` and `max`.
    fn check(&self, at: &At<'_>) -> (std::time::Duration, std::time::Duration) {
        let default = policy::Retry::default();
        let base = self.base.as_ref().map_or(default.backoff_base, |span| span.check(&at.field("base")));
        let max = self.max.as_ref().map_or(default.backoff_max, |span| span.check(&at.field("max")));
        if max < base && !at.field("base").is_refused() {
            at.field("max").refuse(format!(
                "{} is below base, {}: it is at least that",
                span::text(max),
                span::text(base)
            ));
        }
        (base, max)
    }
}
