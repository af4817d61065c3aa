//! The words for how things ended: values of labels, each a closed list.

/// What detection made of a caller's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    Http1,
    Http2,
    /// The first bytes are a TLS handshake: tunnelled.
    Tls,
    /// Declared as opaque: tunnelled without a look.
    Opaque,
    /// The caller waits for the server to speak: tunnelled.
    ServerFirst,
    /// The first bytes are neither HTTP nor TLS: tunnelled.
    Unknown,
    /// The caller left without a word.
    ClosedEarly,
    /// Declared HTTP, but the first bytes did not come in time.
    Timeout,
    /// Nobody was redirected: somebody dialled the listener itself.
    NotRedirected,
    /// Redirected, but the destination is no longer governed.
    Unmanaged,
    /// More than the pod's share.
    Overloaded,
}

impl Detection {
    pub(super) const ALL: [(Self, &'static str); 11] = [
        (Self::Http1, "http1"),
        (Self::Http2, "http2"),
        (Self::Tls, "tls"),
        (Self::Opaque, "opaque"),
        (Self::ServerFirst, "server_first"),
        (Self::Unknown, "unknown"),
        (Self::ClosedEarly, "closed_early"),
        (Self::Timeout, "timeout"),
        (Self::NotRedirected, "not_redirected"),
        (Self::Unmanaged, "unmanaged"),
        (Self::Overloaded, "overloaded"),
    ];
}

/// How an attempt to connect to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Opened,
    Refused,
    Unreachable,
    Timeout,
    /// No socket could be made in the pod's network.
    Failed,
}

impl Connect {
    pub(super) const ALL: [(Self, &'static str); 5] = [
        (Self::Opened, "opened"),
        (Self::Refused, "refused"),
        (Self::Unreachable, "unreachable"),
        (Self::Timeout, "timeout"),
        (Self::Failed, "failed"),
    ];
}

/// What became of a request's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOutcome {
    /// Its lane answered.
    Routed,
    /// The baseline answered.
    FellBack,
    /// No endpoint could.
    Rejected,
    /// It was no tag, and was ignored.
    Invalid,
}

impl TagOutcome {
    pub(super) const ALL: [(Self, &'static str); 4] = [
        (Self::Routed, "routed"),
        (Self::FellBack, "fell_back"),
        (Self::Rejected, "rejected"),
        (Self::Invalid, "invalid"),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Why a request was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// The connection was refused.
    ConnectRefused,
    /// HTTP/2: the stream was refused before it was processed.
    StreamRefused,
    /// A pooled connection was closed by the endpoint before it took the request.
    StaleConnection,
    /// By policy: the answer's HTTP status, or its gRPC status.
    Status,
    /// By policy: the connection broke before the answer.
    Reset,
    /// By policy: the attempt's time ran out.
    Timeout,
}

impl RetryCause {
    pub(super) const ALL: [(Self, &'static str); 6] = [
        (Self::ConnectRefused, "connect_refused"),
        (Self::StreamRefused, "stream_refused"),
        (Self::StaleConnection, "stale_connection"),
        (Self::Status, "status"),
        (Self::Reset, "reset"),
        (Self::Timeout, "timeout"),
    ];
}

/// What a rule said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitDecision {
    Allowed,
    /// It had to wait.
    Queued,
    Rejected,
    /// It only observes.
    WouldReject,
}

impl LimitDecision {
    pub(super) const ALL: [(Self, &'static str); 4] = [
        (Self::Allowed, "allowed"),
        (Self::Queued, "queued"),
        (Self::Rejected, "rejected"),
        (Self::WouldReject, "would_reject"),
    ];
}

/// How often a rate limit has said what.
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

/// What came of looking for an answer of a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackAction {
    Static,
    Stale,
    /// There was no stale answer to the request.
    Missed,
}

impl FallbackAction {
    pub(super) const ALL: [(Self, &'static str); 3] =
        [(Self::Static, "static"), (Self::Stale, "stale"), (Self::Missed, "missed")];
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    ConsecutiveErrors,
    SuccessRate,
}

impl EjectionCause {
    pub(super) const ALL: [(Self, &'static str); 2] =
        [(Self::ConsecutiveErrors, "consecutive_errors"), (Self::SuccessRate, "success_rate")];
}

/// Whether a rule is in force.
pub(super) const MODES: [&str; 2] = ["enforce", "observe"];
