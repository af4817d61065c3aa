//! How things ended: values of labels, each a closed list with what the value means.

use crate::govern::jwt::Failure;

/// A value of a label, its name in metrics, and what it means.
type Word<T> = (T, &'static str, &'static str);

/// The result of protocol detection on a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    Http1,
    Http2,
    Tls,
    Opaque,
    ServerFirst,
    Unknown,
    ClosedEarly,
    NotRedirected,
    Unmanaged,
}

impl Detection {
    pub(super) const ALL: [Word<Self>; 9] = [
        (Self::Http1, "http1", "HTTP/1.1 or HTTP/1.0"),
        (Self::Http2, "http2", "HTTP/2, gRPC among it"),
        (Self::Tls, "tls", "The first bytes are a TLS handshake: tunnelled."),
        (Self::Opaque, "opaque", "The port is declared as another protocol: tunnelled without detection."),
        (Self::ServerFirst, "server_first", "The client sent nothing within 100 ms: tunnelled."),
        (Self::Unknown, "unknown", "The first bytes are neither HTTP nor TLS: tunnelled."),
        (Self::ClosedEarly, "closed_early", "The client closed the connection before it sent anything."),
        (
            Self::NotRedirected,
            "not_redirected",
            "The original destination is not known, as when a process in the pod connects to the agent's listener itself: closed.",
        ),
        (
            Self::Unmanaged,
            "unmanaged",
            "The destination stopped being managed in the meantime: tunnelled to where the client meant to go.",
        ),
    ];
}

/// The result of an attempt to connect to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Opened,
    Refused,
    Unreachable,
    Timeout,
    Failed,
}

impl Connect {
    pub(super) const ALL: [Word<Self>; 5] = [
        (Self::Opened, "opened", "Connected"),
        (Self::Refused, "refused", "Connection refused (ECONNREFUSED)"),
        (Self::Unreachable, "unreachable", "No route to the host or network"),
        (Self::Timeout, "timeout", "The endpoint did not answer in time."),
        (Self::Failed, "failed", "The socket could not be created in the pod's network namespace."),
    ];
}

/// What routing made of a request's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOutcome {
    Routed,
    FellBack,
    Rejected,
    Invalid,
    Conflict,
    Untrusted,
}

impl TagOutcome {
    pub(super) const ALL: [Word<Self>; 6] = [
        (Self::Routed, "routed", "An endpoint of the lane got the request."),
        (Self::FellBack, "fell_back", "The lane had no usable endpoint; another one got the request."),
        (Self::Rejected, "rejected", "The lane had no usable endpoint, and none to fall back to: 503."),
        (Self::Invalid, "invalid", "The value is no valid tag; it was ignored."),
        (
            Self::Conflict,
            "conflict",
            "Headers of the request said different tags: the first counts, in the order of `carrier` of `sluice_tag_carriers_total`.",
        ),
        (
            Self::Untrusted,
            "untrusted",
            "The request came with a tag that was removed: `trustIncomingTag: false` of its TrafficLane.",
        ),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// What became of a copy of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorOutcome {
    Answered,
    Failed,
    NoEndpoint,
    TooLarge,
    OverBudget,
    Incomplete,
    Unsupported,
}

impl MirrorOutcome {
    pub(super) const ALL: [Word<Self>; 7] = [
        (Self::Answered, "answered", "An endpoint of the mirror has answered it."),
        (Self::Failed, "failed", "No connection, no response, or none within 10 s."),
        (Self::NoEndpoint, "no_endpoint", "The mirror had no usable endpoint."),
        (Self::TooLarge, "too_large", "Not sent: the body has more than 64 KiB."),
        (
            Self::OverBudget,
            "over_budget",
            "Not sent: the copies of the pod's requests use all that they may (on each worker 32 on their way, 4 MiB).",
        ),
        (Self::Incomplete, "incomplete", "Not sent: the request itself did not come to its end."),
        (Self::Unsupported, "unsupported", "Not sent: it asks for another protocol (upgrade, CONNECT)."),
    ];
}

/// Why a request was retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    ConnectFailure,
    StreamRefused,
    StaleConnection,
    Status,
    Reset,
    Timeout,
}

impl RetryCause {
    pub(super) const ALL: [Word<Self>; 6] = [
        (
            Self::ConnectFailure,
            "connect_failure",
            "The endpoint refused the connection, or did not accept it in time. Retried without a policy: nothing was processed.",
        ),
        (
            Self::StreamRefused,
            "stream_refused",
            "The endpoint refused the HTTP/2 stream (REFUSED_STREAM, GOAWAY). Retried without a policy.",
        ),
        (
            Self::StaleConnection,
            "stale_connection",
            "The endpoint had closed the pooled connection. Retried without a policy.",
        ),
        (Self::Status, "status", "The response had a status that `retry` lists."),
        (Self::Reset, "reset", "The connection broke before the response headers."),
        (Self::Timeout, "timeout", "`timeouts.backendRequest` ran out."),
    ];
}

/// What a rule decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitDecision {
    Allowed,
    Queued,
    Rejected,
    WouldReject,
}

impl LimitDecision {
    pub(super) const ALL: [Word<Self>; 4] = [
        (Self::Allowed, "allowed", "The request passed at once."),
        (Self::Queued, "queued", "The request waited for its turn and passed."),
        (Self::Rejected, "rejected", "The request was rejected."),
        (
            Self::WouldReject,
            "would_reject",
            "The rule has `mode: Observe`; enforced, it would have rejected it.",
        ),
    ];
}

/// What an AccessPolicy said of a request, or of a connection that is not HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessDecision {
    Allowed,
    Denied,
    Unauthenticated,
    WouldDeny,
    Hidden,
    WouldHide,
}

impl AccessDecision {
    pub(super) const ALL: [Word<Self>; 6] = [
        (Self::Allowed, "allowed", "The request was passed on."),
        (Self::Denied, "denied", "The request was denied with 403, or the connection was reset."),
        (
            Self::Unauthenticated,
            "unauthenticated",
            "The request was denied with 401: it has no valid token, and the rule asks for one.",
        ),
        (Self::WouldDeny, "would_deny", "The policy has `mode: Observe`; enforced, it would have denied it."),
        (Self::Hidden, "hidden", "The path is hidden from the client, which got 404."),
        (
            Self::WouldHide,
            "would_hide",
            "The policy has `mode: Observe`; enforced, it would have hidden the path.",
        ),
    ];
}

/// What was found of the token of a request, where a policy says which tokens count.
pub(super) fn tokens() -> [Word<()>; TOKENS] {
    std::array::from_fn(|at| match at.checked_sub(1) {
        None => ((), "valid", "The token is valid."),
        Some(failure) => ((), Failure::ALL[failure].code(), Failure::ALL[failure].message()),
    })
}

pub(super) const TOKENS: usize = 1 + Failure::ALL.len();

/// Which timeout a request has exceeded that only observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    Request,
    BackendRequest,
    StreamIdle,
    Drain,
}

impl Overdue {
    pub(super) const ALL: [Word<Self>; 4] = [
        (Self::Request, "request", "`timeouts.request`"),
        (Self::BackendRequest, "backend_request", "`timeouts.backendRequest`"),
        (Self::StreamIdle, "stream_idle", "`timeouts.streamIdle`"),
        (Self::Drain, "drain", "`drain.timeout`"),
    ];
}

/// How an attempt at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    Answered,
    Failed,
    Left,
}

impl AttemptOutcome {
    pub(super) const ALL: [Word<Self>; 3] = [
        (Self::Answered, "answered", "The endpoint responded, and not with an error."),
        (Self::Failed, "failed", "An error status, a connection that failed or broke, or a timeout"),
        (Self::Left, "left", "The client left first, or had no time left: the endpoint is not to blame."),
    ];
}

/// How often a rule has decided what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    pub allowed: u64,
    pub queued: u64,
    pub rejected: u64,
    pub would_reject: u64,
}

impl From<[u64; LimitDecision::ALL.len()]> for LimitCounts {
    fn from([allowed, queued, rejected, would_reject]: [u64; LimitDecision::ALL.len()]) -> Self {
        Self { allowed, queued, rejected, would_reject }
    }
}

/// What came of a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackAction {
    Static,
    Stale,
    Missed,
}

impl FallbackAction {
    pub(super) const ALL: [Word<Self>; 3] = [
        (Self::Static, "static", "The client got the static response."),
        (Self::Stale, "stale", "The client got the last good response."),
        (Self::Missed, "missed", "No good response to that request is kept; the next fallback is tried."),
    ];
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    ConsecutiveErrors,
    SuccessRate,
}

impl EjectionCause {
    pub(super) const ALL: [Word<Self>; 2] = [
        (Self::ConsecutiveErrors, "consecutive_errors", "`consecutiveErrors` errors in a row"),
        (Self::SuccessRate, "success_rate", "A success rate far below that of the other endpoints"),
    ];
}

/// Whether a rule is enforced, by `usize::from(it only observes)`.
pub(super) const MODES: [Word<()>; 2] = [
    ((), "enforce", "The rule is enforced."),
    ((), "observe", "The rule has `mode: Observe`: nothing happened to the endpoint."),
];

/// Classes of statuses, by the first digit; the first stands for requests that ended without a response.
pub(super) const CLASSES: [Word<()>; 6] = [
    ((), "none", "The client got no response."),
    ((), "1xx", "101: the connection changed to another protocol."),
    ((), "2xx", "Success. gRPC responses count here, whatever their `grpc-status`."),
    ((), "3xx", "Redirection"),
    ((), "4xx", "Client error"),
    ((), "5xx", "Server error"),
];

/// Names and meanings, for the reference.
pub(super) fn described<T>(words: &[Word<T>]) -> Vec<(String, &'static str)> {
    words.iter().map(|(_, name, meaning)| ((*name).to_owned(), *meaning)).collect()
}
