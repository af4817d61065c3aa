//! What is done about a Service that fails or hangs: what a failure is, circuit breaker, outlier detection, timeouts.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Mode,
    retry::{GrpcCode, is_retried},
};
use crate::{
    api::{
        field::{At, Errors, refuse_repeated},
        number,
        span::{self, Span},
    },
    govern::policy,
};

/// Which responses are failures: for circuitBreaker, outlierDetection, retry, load balancing and fallbacks (ServerError).
/// Connections that failed or were reset, and timeouts, always are; what Sluice itself rejected never is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorCodes {
    /// Classes of statuses: 5xx is 500 and above. An empty list: only those that codes names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2), extend("default" = [StatusClass::Server], "x-kubernetes-list-type" = "set"))]
    pub classes: Option<Vec<StatusClass>>,
    /// Further statuses, such as 429: 400 to 599. They are retried, too, if retry.codes is not set and they are 429, or 500
    /// and above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        inner(range(min = 400, max = 599)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub codes: Option<Vec<i64>>,
    /// gRPC statuses. They are retried, too, if they are set here and retry.grpcCodes is not; only with POST in
    /// retry.methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        extend("default" = DEFAULT_GRPC, "x-kubernetes-list-type" = "set")
    )]
    pub grpc_codes: Option<Vec<GrpcStatus>>,
}

/// What [`policy::Errors`] has by default.
const DEFAULT_GRPC: [GrpcStatus; 5] = [
    GrpcStatus::Unknown,
    GrpcStatus::DeadlineExceeded,
    GrpcStatus::Internal,
    GrpcStatus::Unavailable,
    GrpcStatus::DataLoss,
];

/// A class of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StatusClass {
    #[serde(rename = "4xx")]
    Client,
    #[serde(rename = "5xx")]
    Server,
}

/// A gRPC status that is not OK. <https://grpc.io/docs/guides/status-codes/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GrpcStatus {
    Cancelled = 1,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl ErrorCodes {
    pub(super) fn check(&self, at: &At<'_>) -> policy::Errors {
        let default = policy::Errors::default();
        if let Some(classes) = &self.classes {
            refuse_repeated(classes, &at.field("classes"));
        }
        if let Some(codes) = &self.codes {
            refuse_repeated(codes, &at.field("codes"));
        }
        if let Some(codes) = &self.grpc_codes {
            refuse_repeated(codes, &at.field("grpcCodes"));
        }
        let class = |class, default| self.classes.as_ref().map_or(default, |all| all.contains(&class));
        policy::Errors {
            client: class(StatusClass::Client, default.client),
            server: class(StatusClass::Server, default.server),
            statuses: self.codes.iter().flatten().filter_map(|code| u16::try_from(*code).ok()).collect(),
            grpc_statuses: self
                .grpc_codes
                .as_ref()
                .map_or(default.grpc_statuses, |codes| codes.iter().map(|code| *code as u8).collect()),
        }
    }

    /// What is retried where the retry itself does not say it.
    pub(in crate::api) fn retried(this: Option<&Self>) -> policy::RetryOn {
        let mut on = policy::RetryOn::default();
        let Some(errors) = this else { return on };
        let nowhere = Errors::default();
        let all = errors.check(&nowhere.at(""));
        on.statuses.retain(|status| all.has_status(*status));
        for status in all.statuses {
            if is_retried(status) && !on.statuses.contains(&status) {
                on.statuses.push(status);
            }
        }
        if errors.grpc_codes.is_some() {
            on.grpc_statuses = all.grpc_statuses;
            on.grpc_statuses.retain(|code| GrpcCode::ALL.iter().any(|known| known.number() == *code));
        }
        on
    }
}

/// Stops sending requests to a Service (or one lane of it) for a while when most of them fail, as in resilience4j and
/// Sentinel; Envoy's limits on connections are something else. It opens when one of the thresholds that are set is
/// reached: errorPercent, errorCount, slowRequest. While it is open, clients get a fallback response, or 503.
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
    /// Opens when at least this percentage of the requests in the interval failed. 0 turns this threshold off. What a
    /// failure is, errors says: by default status 5xx, gRPC UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and DATA_LOSS,
    /// connections that failed or were reset, and timeouts; never what Sluice itself rejected.
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
    /// How many requests pass as probes then. If all succeed it closes, if one fails it opens again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 1000),
        extend("default" = policy::CircuitBreaker::default().half_open_requests)
    )]
    pub half_open_requests: Option<i64>,
    /// Whose requests are counted together. Caller: each client pod has a circuit breaker of its own, so that what one pod
    /// does wrong does not affect another. Node: all clients on a node share one, which sees more requests, and opens for
    /// all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = CircuitBreakerScope::default()))]
    pub scope: Option<CircuitBreakerScope>,
    /// Enforce: it rejects while it is open. Observe: nothing is rejected, and what would have been rejected is counted. The
    /// policy's mode if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CircuitBreakerScope {
    #[default]
    Caller,
    Node,
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

/// Ejects an endpoint that fails: it gets no requests for a while.
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
    /// How often endpoints are compared; and how long an endpoint must go without an ejection until one of its past
    /// ejections no longer counts.
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
    /// At most this percentage of the endpoints is ejected at once. Of two or more, one may always be; the last one
    /// never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 100),
        extend("default" = policy::OutlierDetection::default().max_ejection_percent)
    )]
    pub max_ejection_percent: Option<f64>,
    /// Enforce: endpoints are ejected. Observe: none is ejected, and those that would have been are counted. The policy's mode if
    /// not set.
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

/// How long requests may take, as in Gateway API. 0s: without a limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || \
         duration(self.backendRequest) <= duration(self.request)"
    ).message("backendRequest is at most request").field_path(".backendRequest")
)]
pub struct Timeouts {
    /// From the headers of the request to the end of the response, with all retries and waiting. A response that streams ends
    /// with it as well: server-sent events (unless streamIdle is set), gRPC streams, long downloads; give such requests a rule
    /// of their own (rules) with 0s. A connection that has changed its protocol (101 Switching Protocols, WebSocket) goes on
    /// for as long as both sides like. A client's own grpc-timeout counts if it is shorter, and is not held against the
    /// endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span<0, 86_400_000>>,
    /// From sending the request to an endpoint to the end of its response, for each attempt by itself; of streams as request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span<0, 86_400_000>>,
    /// How long a stream may go without a byte in either direction before it is reset, from its response headers on. Streams
    /// are responses with content-type text/event-stream (server-sent events) or application/grpc, and connections that have
    /// changed their protocol (101 Switching Protocols, WebSocket). Where it is set, request and backendRequest apply to
    /// server-sent events up to the response headers only. An idle stream is not held against the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Span<0, 86_400_000>>,
    /// How long an endpoint may take to accept a connection, before another one is tried. Where it is not set, an endpoint has 1.5
    /// seconds while there is another one to be tried, so that one lost packet does no harm, and the last one as long as the kernel
    /// tries (two minutes, by net.ipv4.tcp_syn_retries).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Span<0, 86_400_000>>,
    /// Enforce: what takes longer is ended. Observe: nothing is ended, and what would have been ended is counted. The policy's
    /// mode if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl CircuitBreaker {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::CircuitBreaker {
        let default = policy::CircuitBreaker::default();
        // 0 is how a user says "never".
        let error_percent = self.error_percent.or(default.error_percent).filter(|percent| *percent != 0.0);
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
            scope: match self.scope.unwrap_or_default() {
                CircuitBreakerScope::Caller => policy::BreakerScope::Caller,
                CircuitBreakerScope::Node => policy::BreakerScope::Node,
            },
            mode: self.mode.unwrap_or(mode).policy(),
        }
    }
}

impl OutlierDetection {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::OutlierDetection {
        let default = policy::OutlierDetection::default();
        let said = self.consecutive_errors.or(default.consecutive_errors.map(i64::from));
        let consecutive_errors = said.filter(|errors| *errors != 0).map(number);
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
        let in_doubt =
            ["baseEjectionTime", "maxEjectionTime"].iter().any(|field| at.field(field).is_refused());
        if max_ejection < base_ejection && !in_doubt {
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
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::Timeouts {
        let read = |field, span: &Option<Span<0, 86_400_000>>| {
            // As in Gateway API (GEP-1742), 0s is no timeout.
            span.as_ref().map(|span| span.check(&at.field(field))).filter(|span| !span.is_zero())
        };
        let timeouts = policy::Timeouts {
            request: read("request", &self.request),
            backend_request: read("backendRequest", &self.backend_request),
            stream_idle: read("streamIdle", &self.stream_idle),
            connect: read("connect", &self.connect),
            mode: self.mode.unwrap_or(mode).policy(),
        };
        if let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
            && backend > request
            && !at.field("request").is_refused()
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
