//! What to do about a service that fails: breaking off, ejecting, giving up, trying again, answering in its place
//! (ARCHITECTURE.md#circuit-breaker and the sections after it).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use super::Mode;

/// Which answers are held against the service. That no connection comes about, that one breaks, and that a timeout runs out
/// always is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// Statuses 400 to 499.
    pub client: bool,
    /// Statuses from 500 on.
    pub server: bool,
    /// Further ones.
    pub statuses: Vec<u16>,
    pub grpc_statuses: Vec<u8>,
}

impl Default for Errors {
    fn default() -> Self {
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS: those that the service is to blame for, and not its
        // caller. <https://grpc.io/docs/guides/status-codes/>
        Self { client: false, server: true, statuses: Vec::new(), grpc_statuses: vec![2, 4, 13, 14, 15] }
    }
}

impl Errors {
    /// Whether an answer with this status is a failure.
    pub fn has_status(&self, status: u16) -> bool {
        match status {
            ..400 => false,
            400..500 if self.client => true,
            500.. if self.server => true,
            status => self.statuses.contains(&status),
        }
    }

    /// The same of a gRPC status.
    pub fn has_grpc_status(&self, code: u8) -> bool {
        self.grpc_statuses.contains(&code)
    }
}

/// Stops asking a service (a lane of it) that mostly fails, for a while.
/// Opens when, of at least `minimum_requests` in `interval`, one of the thresholds that are set is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreaker {
    /// Above 0.
    pub interval: Duration,
    /// At least 1.
    pub minimum_requests: u32,
    /// Above 0, at most 100.
    pub error_percent: Option<f64>,
    /// At least 1.
    pub error_count: Option<u32>,
    pub slow_request: Option<SlowRequest>,
    /// Above 0.
    pub open_duration: Duration,
    /// Probes while half-open, at least 1: all good closes, one bad opens again.
    pub half_open_requests: u32,
    /// Whose requests are judged together.
    pub scope: BreakerScope,
    pub mode: Mode,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            minimum_requests: 20,
            error_percent: Some(50.0),
            error_count: None,
            slow_request: None,
            open_duration: Duration::from_secs(5),
            half_open_requests: 1,
            scope: BreakerScope::default(),
            mode: Mode::Enforce,
        }
    }
}

/// Whose requests a circuit breaker counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerScope {
    /// Each calling pod's by themselves.
    #[default]
    Caller,
    /// All callers' on a node.
    Node,
}

/// Counts requests that take longer than `threshold`, also while they are still running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowRequest {
    /// Above 0.
    pub threshold: Duration,
    /// Above 0, at most 100.
    pub percent: f64,
}

/// Takes an endpoint that fails out of the choice, for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Errors in a row that eject an endpoint, at least 1; `None`: they never do.
    pub consecutive_errors: Option<u32>,
    pub success_rate: Option<SuccessRate>,
    /// How often success rates are compared, and an ejection is forgotten that was not repeated; above 0.
    pub interval: Duration,
    /// An endpoint's n-th ejection lasts n times as long, with jitter; above 0.
    pub base_ejection: Duration,
    /// No ejection lasts longer.
    pub max_ejection: Duration,
    /// Of a service's endpoints, 0 to 100: no more are ejected at once, but of two or more one may be, and never the
    /// last.
    pub max_ejection_percent: f64,
    pub mode: Mode,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_errors: Some(5),
            success_rate: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 50.0,
            mode: Mode::Enforce,
        }
    }
}

/// Ejects an endpoint whose success rate is below `mean - factor * standard deviation` of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Endpoints with enough requests that there must be, at least 2.
    pub minimum_endpoints: u32,
    /// Requests in the interval that make an endpoint count, at least 1.
    pub minimum_requests: u32,
    /// Above 0.
    pub stdev_factor: f64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { minimum_endpoints: 5, minimum_requests: 100, stdev_factor: 1.9 }
    }
}

/// How long things may take; as in Gateway API (GEP-1742).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to the end of the answer, retries and waiting included.
    pub request: Option<Duration>,
    /// From sending the request to an endpoint to the end of its answer, each attempt by itself; not above `request`.
    pub backend_request: Option<Duration>,
    /// How long a stream may go without a byte in either direction. With it server-sent events have the other two only to
    /// their answer's head.
    pub stream_idle: Option<Duration>,
    /// How long an endpoint may take to accept a connection.
    pub connect: Option<Duration>,
    pub mode: Mode,
}

/// Sends a request again that failed. Refused connections and streams are retried without this
/// (ARCHITECTURE.md#timeouts-retries-and-fallbacks).
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Attempts after the first, at least 1.
    pub attempts: u32,
    pub on: RetryOn,
    /// Methods that may be repeated; those that are idempotent by default (RFC 9110, section 9.2.2).
    pub methods: Vec<Method>,
    /// Retries that recent requests pay for, in percent of them.
    pub budget_percent: f64,
    /// Retries a second that are allowed in any case.
    pub budget_minimum: f64,
    /// Waits `random(0, min(base * 2^n, max))` before the n-th retry (full jitter).
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
    pub backoff_base: Duration,
    pub backoff_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: RetryOn::default(),
            methods: vec![
                Method::GET,
                Method::HEAD,
                Method::OPTIONS,
                Method::TRACE,
                Method::PUT,
                Method::DELETE,
            ],
            budget_percent: 20.0,
            budget_minimum: 10.0,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
        }
    }
}

/// What is worth another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// Answers with one of these statuses (500 to 599, and 429).
    pub statuses: Vec<u16>,
    /// Answers with one of these gRPC statuses.
    pub grpc_statuses: Vec<u8>,
    /// The connection broke before the answer's head.
    pub reset: bool,
    /// `timeouts.backendRequest` ran out before the answer's head.
    pub timeout: bool,
}

impl Default for RetryOn {
    fn default() -> Self {
        Self { statuses: vec![502, 503, 504], grpc_statuses: vec![14], reset: true, timeout: true }
    }
}

/// An answer in the place of the service's.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub name: Arc<str>,
    /// Any of these; not empty.
    pub on: Vec<FallbackOn>,
    pub action: FallbackAction,
}

/// When a fallback answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FallbackOn {
    /// A rate or concurrency limit refuses.
    LimitExceeded,
    CircuitOpen,
    /// No endpoint may answer.
    NoEndpoint,
    /// No endpoint could be connected to, or the connection broke.
    ConnectFailure,
    Timeout,
    /// The service answered with a failure itself, and no retry is left.
    ServerError,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FallbackAction {
    Static(StaticAnswer),
    /// The last good answer to the same request; if there is none, the next fallback is looked at.
    Stale(StaleAnswer),
}

#[derive(Clone, Debug, PartialEq)]
pub struct StaticAnswer {
    /// 200 to 599.
    pub status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// At most 64 KiB.
    pub body: Bytes,
}

/// Keeps good answers to GET and HEAD, unless `Cache-Control` forbids it; never for requests that differ in
/// `Authorization`, `Cookie`, in what `Vary` names, or in one of these headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StaleAnswer {
    pub bounds: StaleBounds,
    /// The request headers that tell users apart; empty: all get the same.
    pub vary_by: Vec<HeaderName>,
}

/// What of good answers is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaleBounds {
    /// Above 0.
    pub max_age: Duration,
    /// Bytes that a service's answers may take on a node.
    pub max_bytes: u64,
}

impl From<StaleBounds> for StaleAnswer {
    fn from(bounds: StaleBounds) -> Self {
        Self { bounds, vary_by: Vec::new() }
    }
}

impl Default for StaleBounds {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(300), max_bytes: 8 * 1024 * 1024 }
    }
}
