//! What to do about a Service that fails.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::{
    api::{
        field::{At, quoted},
        matching::{check_header_name, check_method, each},
        number,
        span::{self, Span},
    },
    govern::policy,
};

/// The most that a static answer's body holds, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What a static answer may not set: the proxy frames it, and says itself where it comes from.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-sluice-reason",
];

/// Stops asking a Service (a lane of it) that mostly fails, for a while. It opens when one of the thresholds that are set
/// is reached: errorPercent, errorCount, slowRequest. While it is open requests are answered by a fallback, or with 503.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.errorPercent > 0.0 || has(self.errorCount) || has(self.slowRequest)")
        .message("0 turns the only threshold off: set errorPercent, errorCount or slowRequest").field_path(".errorPercent")
)]
pub struct CircuitBreaker {
    /// The time over which requests and errors are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::CircuitBreaker::default().interval)))]
    pub interval: Option<Span<100, 3_600_000>>,
    /// With fewer requests than this in the interval it does not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 1_000_000),
        extend("default" = policy::CircuitBreaker::default().minimum_requests)
    )]
    pub minimum_requests: Option<i64>,
    /// Opens when at least this percentage of the requests in the interval failed. 0 turns this threshold off. Errors are
    /// status 5xx, gRPC UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and DATA_LOSS, connections that failed or broke,
    /// and timeouts; never what Sluice refused itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 100),
        extend("default" = policy::CircuitBreaker::default().error_percent.unwrap_or_default())
    )]
    pub error_percent: Option<f64>,
    /// Opens when at least this many requests in the interval failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub error_count: Option<i64>,
    /// Opens when many requests are slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_request: Option<SlowRequest>,
    /// How long it stays open before it lets requests through to find out whether the Service has recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::CircuitBreaker::default().open_duration)))]
    pub open_duration: Option<Span<1, 3_600_000>>,
    /// How many requests are let through then: all good closes it, one bad opens it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 1000),
        extend("default" = policy::CircuitBreaker::default().half_open_requests)
    )]
    pub half_open_requests: Option<i64>,
    /// Enforce: it refuses while it is open. Observe: nothing is refused, and what would have been is counted. What the
    /// policy's mode says if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Which requests are slow, and how many are too many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowRequest {
    /// A request that takes longer is slow; it counts as soon as it does, also while it is still running.
    pub threshold: Span<1, 3_600_000>,
    /// Opens when at least this percentage of the requests in the interval are slow.
    #[schemars(range(min = 0.01, max = 100))]
    pub percent: f64,
}

/// Takes an endpoint that fails out of the choice, for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.consecutiveErrors > 0 || has(self.successRate)")
        .message("0 turns the only rule off: set consecutiveErrors or successRate").field_path(".consecutiveErrors"),
    validation = Rule::new("duration(self.baseEjectionTime) <= duration(self.maxEjectionTime)")
        .message("maxEjectionTime is at least baseEjectionTime").field_path(".maxEjectionTime")
)]
pub struct OutlierDetection {
    /// Errors in a row that eject an endpoint. 0: they never do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 1_000_000),
        extend("default" = policy::OutlierDetection::default().consecutive_errors.unwrap_or_default())
    )]
    pub consecutive_errors: Option<i64>,
    /// Ejects an endpoint that fails more often than the others. Off if not set; an empty object turns it on with its
    /// defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// How often endpoints are compared, and after how long without an ejection one is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::OutlierDetection::default().interval)))]
    pub interval: Option<Span<100, 3_600_000>>,
    /// An endpoint's first ejection lasts this long, with some jitter; its n-th lasts n times as long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::OutlierDetection::default().base_ejection)))]
    pub base_ejection_time: Option<Span<1, 86_400_000>>,
    /// No ejection lasts longer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::OutlierDetection::default().max_ejection)))]
    pub max_ejection_time: Option<Span<1, 86_400_000>>,
    /// No more than this percentage of the endpoints is ejected at once; but of two or more one may be, and the last
    /// never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 100),
        extend("default" = policy::OutlierDetection::default().max_ejection_percent)
    )]
    pub max_ejection_percent: Option<f64>,
    /// Enforce: endpoints are ejected. Observe: none is, and which would have been is counted. What the policy's mode says
    /// if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Ejects an endpoint whose success rate is below the mean of all minus a multiple of their standard deviation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// With fewer endpoints that have minimumRequests nothing is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 10_000), extend("default" = policy::SuccessRate::default().minimum_endpoints))]
    pub minimum_endpoints: Option<i64>,
    /// An endpoint with fewer requests in the interval is not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = policy::SuccessRate::default().minimum_requests))]
    pub minimum_requests: Option<i64>,
    /// How many standard deviations below the mean an endpoint has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.1, max = 10), extend("default" = policy::SuccessRate::default().stdev_factor))]
    pub stdev_factor: Option<f64>,
}

/// How long requests may take, as in Gateway API. 0s: as long as they like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || \
         duration(self.backendRequest) <= duration(self.request)"
    ).message("backendRequest is at most request").field_path(".backendRequest")
)]
pub struct Timeouts {
    /// From the head of the request to the end of the answer, with all retries and waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span<0, 86_400_000>>,
    /// From sending the request to an endpoint to the end of its answer, for each attempt by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span<0, 86_400_000>>,
}

/// Sends a request again that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.codes.size() + self.grpcCodes.size() + self.conditions.size() > 0")
        .message("nothing is retried: set codes, grpcCodes or conditions").field_path(".codes")
)]
pub struct Retry {
    /// How often, after the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10), extend("default" = policy::Retry::default().attempts))]
    pub attempts: Option<i64>,
    /// Answers with these statuses are retried: 500 to 599, and 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(range(min = 429, max = 599)),
        extend("default" = policy::RetryOn::default().statuses, "x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new("self.all(code, code == 429 || code >= 500)").message("allowed are 429 and 500 to 599"))]
    pub codes: Option<Vec<i64>>,
    /// gRPC answers with these statuses are retried, if methods lists POST: all of gRPC is sent with it. Only those that
    /// are nothing but a status, before any message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        extend("default" = [GrpcCode::Unavailable], "x-kubernetes-list-type" = "set")
    )]
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Failures without an answer that are retried. Reset: the connection broke before the head of the answer. Timeout:
    /// timeouts.backendRequest ran out before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 2),
        extend("default" = [RetryCondition::Reset, RetryCondition::Timeout], "x-kubernetes-list-type" = "set")
    )]
    pub conditions: Option<Vec<RetryCondition>>,
    /// Methods whose requests may be sent again: those that are idempotent (RFC 9110) if not set. Name others only if the
    /// Service can take the same request twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub methods: Option<Vec<String>>,
    /// How many retries there may be in all, so that they do not topple a Service that is failing.
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

/// A failure without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryCondition {
    Reset,
    Timeout,
}

/// How many retries there may be in all, of the callers on a node together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries in percent of recent requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100), extend("default" = policy::Retry::default().budget_percent))]
    pub percent: Option<f64>,
    /// Retries a second that are allowed in any case.
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
    /// Where the waiting starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Retry::default().backoff_base)))]
    pub base: Option<Span<1, 60_000>>,
    /// The longest that is waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Retry::default().backoff_max)))]
    pub max: Option<Span<1, 300_000>>,
}

/// An answer in the place of the Service's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.static) == (self.type == 'Static')")
        .message("type Static needs static, the other goes without").field_path(".static"),
    validation = Rule::new("!has(self.stale) || self.type == 'Stale'")
        .message("stale goes with type Stale only").field_path(".stale")
)]
pub struct Fallback {
    /// Names the fallback in metrics. Unique within the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The failures that it answers for. Throttled: a rate or concurrency limit refuses. CircuitOpen: the circuit breaker
    /// is open. NoEndpoint: no endpoint may answer. ConnectFailure: no endpoint could be connected to, or the connection
    /// broke. Timeout: a timeout ran out. ServerError: the Service answered 5xx itself, and no retry is left.
    #[schemars(length(min = 1, max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub on: Vec<FallbackOn>,
    /// Static: the answer that static says. Stale: the last good answer to the same request, if there is one; else the
    /// next fallback is looked at.
    #[serde(rename = "type")]
    pub action: FallbackType,
    /// The answer of type Static.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    pub answer: Option<StaticAnswer>,
    /// Settings of type Stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<StaleAnswer>,
}

/// A failure that a fallback answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FallbackOn {
    Throttled,
    CircuitOpen,
    NoEndpoint,
    ConnectFailure,
    Timeout,
    ServerError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FallbackType {
    Static,
    Stale,
}

/// An answer that is always the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.body) || self.body == '' || !(self.status in [204, 205, 304])")
        .message("status 204, 205 and 304 go without a body").field_path(".body")
)]
pub struct StaticAnswer {
    /// Its status. For gRPC requests it is translated as gRPC clients do, unless a header grpc-status says more: with 0
    /// the body is the message of the answer, and an empty body a message with every field at its default.
    #[schemars(range(min = 200, max = 599))]
    pub status: i64,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub headers: Vec<StaticHeader>,
    /// Its body: text of up to 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    #[x_kube(validation = Rule::new("bytes(self).size() <= 65536").message("longer than 64 KiB (65536 bytes of UTF-8)"))]
    pub body: Option<String>,
}

/// A header of a static answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticHeader {
    /// Name of the header. Those that frame the answer, or that Sluice sets itself, are not allowed.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    #[x_kube(validation = Rule::new(
        "!(self.lowerAscii() in ['connection', 'content-length', 'keep-alive', 'proxy-authenticate', 'proxy-connection', \
         'server', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'x-sluice-reason'])"
    ).message("Sluice sets this header itself"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096), regex(pattern = r"^[^\x00-\x08\x0a-\x1f\x7f]*$"))]
    pub value: String,
}

/// Settings of type Stale. Good answers to GET and HEAD are kept, unless they set cookies or Cache-Control forbids to keep
/// them or to give them out when they are stale; never for requests that differ in Authorization, Cookie, or what Vary
/// names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaleAnswer {
    /// How old an answer may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::StaleAnswer::default().max_age)))]
    pub max_age: Option<Span<1, 604_800_000>>,
    /// Bytes that the answers of the Service may take on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 1_073_741_824), extend("default" = policy::StaleAnswer::default().max_bytes))]
    pub max_bytes: Option<i64>,
}

impl CircuitBreaker {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::CircuitBreaker {
        let default = policy::CircuitBreaker::default();
        // 0 is how a user says "never".
        let error_percent = self.error_percent.or(default.error_percent).filter(|percent| *percent > 0.0);
        if error_percent.is_none() && self.error_count.is_none() && self.slow_request.is_none() {
            at.field("errorPercent")
                .refuse("0 turns the only threshold off: set errorPercent, errorCount or slowRequest");
        }
        policy::CircuitBreaker {
            interval: self
                .interval
                .as_ref()
                .map_or(default.interval, |span| span.check(&at.field("interval"))),
            minimum_requests: self.minimum_requests.map_or(default.minimum_requests, number),
            error_percent,
            error_count: self.error_count.map(number),
            slow_request: self.slow_request.as_ref().map(|slow| policy::SlowRequest {
                threshold: slow.threshold.check(&at.field("slowRequest").field("threshold")),
                percent: slow.percent,
            }),
            open_duration: self
                .open_duration
                .as_ref()
                .map_or(default.open_duration, |span| span.check(&at.field("openDuration"))),
            half_open_requests: self.half_open_requests.map_or(default.half_open_requests, number),
            mode: self.mode.unwrap_or(mode).policy(),
        }
    }
}

impl OutlierDetection {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::OutlierDetection {
        let default = policy::OutlierDetection::default();
        let consecutive_errors =
            self.consecutive_errors.map(number).or(default.consecutive_errors).filter(|errors| *errors > 0);
        if consecutive_errors.is_none() && self.success_rate.is_none() {
            at.field("consecutiveErrors")
                .refuse("0 turns the only rule off: set consecutiveErrors or successRate");
        }
        let base_ejection = self
            .base_ejection_time
            .as_ref()
            .map_or(default.base_ejection, |span| span.check(&at.field("baseEjectionTime")));
        let max_ejection = self
            .max_ejection_time
            .as_ref()
            .map_or(default.max_ejection, |span| span.check(&at.field("maxEjectionTime")));
        if max_ejection < base_ejection {
            at.field("maxEjectionTime").refuse(format!(
                "{} is below baseEjectionTime, {}: it is at least that",
                span::text(max_ejection),
                span::text(base_ejection)
            ));
        }
        policy::OutlierDetection {
            consecutive_errors,
            success_rate: self.success_rate.as_ref().map(SuccessRate::policy),
            interval: self
                .interval
                .as_ref()
                .map_or(default.interval, |span| span.check(&at.field("interval"))),
            base_ejection,
            max_ejection,
            max_ejection_percent: self.max_ejection_percent.unwrap_or(default.max_ejection_percent),
            mode: self.mode.unwrap_or(mode).policy(),
        }
    }
}

impl SuccessRate {
    fn policy(&self) -> policy::SuccessRate {
        let default = policy::SuccessRate::default();
        policy::SuccessRate {
            minimum_endpoints: self.minimum_endpoints.map_or(default.minimum_endpoints, number),
            minimum_requests: self.minimum_requests.map_or(default.minimum_requests, number),
            stdev_factor: self.stdev_factor.unwrap_or(default.stdev_factor),
        }
    }
}

impl Timeouts {
    pub(super) fn check(&self, at: &At<'_>) -> policy::Timeouts {
        let read = |field, span: &Option<Span<0, 86_400_000>>| {
            // As in Gateway API (GEP-1742), 0s is no timeout.
            span.as_ref().map(|span| span.check(&at.field(field))).filter(|span| !span.is_zero())
        };
        let timeouts = policy::Timeouts {
            request: read("request", &self.request),
            backend_request: read("backendRequest", &self.backend_request),
        };
        if let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
            && backend > request
        {
            at.field("backendRequest").refuse(format!(
                "{} is above request, {}: it is at most that",
                span::text(backend),
                span::text(request)
            ));
        }
        timeouts
    }
}

impl Retry {
    pub(super) fn check(&self, at: &At<'_>) -> policy::Retry {
        let default = policy::Retry::default();
        let (budget, backoff) =
            (self.budget.clone().unwrap_or_default(), self.backoff.clone().unwrap_or_default());
        let on = self.check_on(at);
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

    fn check_on(&self, at: &At<'_>) -> policy::RetryOn {
        let default = policy::RetryOn::default();
        let condition =
            |condition, default| self.conditions.as_ref().map_or(default, |all| all.contains(&condition));
        let on = policy::RetryOn {
            statuses: self.codes.as_ref().map_or(default.statuses, |codes| {
                let at = at.field("codes");
                refuse_repeated(codes, &at);
                each(codes, &at, |code, at| {
                    let status = u16::try_from(*code).ok().filter(|code| matches!(code, 429 | 500..=599));
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

impl GrpcCode {
    /// <https://grpc.io/docs/guides/status-codes/>
    fn number(self) -> u8 {
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
        if max < base {
            at.field("max").refuse(format!(
                "{} is below base, {}: it is at least that",
                span::text(max),
                span::text(base)
            ));
        }
        (base, max)
    }
}

impl Fallback {
    pub(super) fn check(&self, at: &At<'_>) -> Option<policy::Fallback> {
        refuse_repeated(&self.on, &at.field("on"));
        let action = match (self.action, &self.answer, &self.stale) {
            (FallbackType::Static, answer, stale) => {
                if stale.is_some() {
                    at.field("stale").refuse("type is Static: stale goes with type Stale only");
                }
                let Some(answer) = answer else {
                    at.field("static").refuse("not set: type Static needs it");
                    return None;
                };
                policy::FallbackAction::Static(answer.check(&at.field("static")))
            }
            (FallbackType::Stale, answer, stale) => {
                if answer.is_some() {
                    at.field("static").refuse("type is Stale: static goes with type Static only");
                }
                let stale = stale.clone().unwrap_or_default();
                policy::FallbackAction::Stale(stale.check(&at.field("stale")))
            }
        };
        let on = self.on.iter().map(|on| match on {
            FallbackOn::Throttled => policy::FallbackOn::Throttled,
            FallbackOn::CircuitOpen => policy::FallbackOn::CircuitOpen,
            FallbackOn::NoEndpoint => policy::FallbackOn::NoEndpoint,
            FallbackOn::ConnectFailure => policy::FallbackOn::ConnectFailure,
            FallbackOn::Timeout => policy::FallbackOn::Timeout,
            FallbackOn::ServerError => policy::FallbackOn::ServerError,
        });
        Some(policy::Fallback { name: self.name.as_str().into(), on: on.collect(), action })
    }
}

impl StaticAnswer {
    fn check(&self, at: &At<'_>) -> policy::StaticAnswer {
        let body = self.body.clone().unwrap_or_default();
        if body.len() > MAX_BODY {
            at.field("body").refuse(format!("{} bytes: allowed are 64 KiB ({MAX_BODY} bytes)", body.len()));
        }
        if !body.is_empty() && [204, 205, 304].contains(&self.status) {
            at.field("body").refuse(format!("status {} goes without a body", self.status));
        }
        policy::StaticAnswer {
            status: u16::try_from(self.status).unwrap_or_default(),
            headers: each(&self.headers, &at.field("headers"), StaticHeader::check),
            body: Bytes::from(body),
        }
    }
}

impl StaticHeader {
    fn check(&self, at: &At<'_>) -> Option<(HeaderName, HeaderValue)> {
        let name_at = at.field("name");
        let name = check_header_name(&self.name, &name_at)?;
        if RESERVED_HEADERS.contains(&name.as_str()) {
            name_at.refuse(format!("{}: Sluice sets this header itself", quoted(&self.name)));
        }
        let value = at.field("value").parse(
            &self.value,
            "header value: control characters are not allowed",
            |value| HeaderValue::from_bytes(value.as_bytes()).ok(),
        );
        Some((name, value?))
    }
}

impl StaleAnswer {
    fn check(&self, at: &At<'_>) -> policy::StaleAnswer {
        let default = policy::StaleAnswer::default();
        policy::StaleAnswer {
            max_age: self.max_age.as_ref().map_or(default.max_age, |span| span.check(&at.field("maxAge"))),
            max_bytes: self
                .max_bytes
                .map_or(default.max_bytes, |bytes| u64::try_from(bytes).unwrap_or_default()),
        }
    }
}

/// Refuses what an earlier item of the list says already.
fn refuse_repeated<T: PartialEq + Serialize>(items: &[T], at: &At<'_>) {
    for (i, item) in items.iter().enumerate() {
        if items[..i].contains(item) {
            let item = serde_json::to_string(item).unwrap_or_default();
            at.index(i).refuse(format!("{item} is there already"));
        }
    }
}
