//! Why Sluice answered in the place of an endpoint: one word, the same in the header `x-sluice-reason`, in the
//! body, in metrics and in the access log (DESIGN 6.6).

/// The header that a made-up answer carries.
pub const REASON_HEADER: &str = "x-sluice-reason";

/// Why an answer was made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    NoEndpoint,
    LaneUnavailable,
    UpstreamConnect,
    UpstreamReset,
    UpstreamProtocol,
    BadRequest,
    HeaderTooLarge,
    UriTooLong,
    NotImplemented,
    HttpVersion,
    ExpectationFailed,
    RequestTimeout,
    Timeout,
    RateLimited,
    ConcurrencyLimited,
    CircuitOpen,
    UpstreamError,
    EndpointDrained,
    Overloaded,
    Draining,
    Internal,
    /// Not an answer: there is nobody to give one to.
    ClientClosed,
}

/// gRPC status codes. <https://grpc.io/docs/guides/status-codes/>
mod grpc {
    pub(super) const CANCELLED: u8 = 1;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
}

impl Reason {
    pub const ALL: [Self; 22] = [
        Self::NoEndpoint,
        Self::LaneUnavailable,
        Self::UpstreamConnect,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::BadRequest,
        Self::HeaderTooLarge,
        Self::UriTooLong,
        Self::NotImplemented,
        Self::HttpVersion,
        Self::ExpectationFailed,
        Self::RequestTimeout,
        Self::Timeout,
        Self::RateLimited,
        Self::ConcurrencyLimited,
        Self::CircuitOpen,
        Self::UpstreamError,
        Self::EndpointDrained,
        Self::Overloaded,
        Self::Draining,
        Self::Internal,
        Self::ClientClosed,
    ];

    /// What there is to know: code, HTTP status, gRPC status, a sentence for people.
    const fn facts(self) -> (&'static str, u16, u8, &'static str) {
        match self {
            Self::NoEndpoint => (
                "no_endpoint",
                503,
                grpc::UNAVAILABLE,
                "the service has no endpoint that can take the request",
            ),
            Self::LaneUnavailable => (
                "lane_unavailable",
                503,
                grpc::UNAVAILABLE,
                "no endpoint of the request's lane can take it, and the service has no baseline to fall back to",
            ),
            Self::UpstreamConnect => {
                ("upstream_connect", 503, grpc::UNAVAILABLE, "the endpoint could not be connected to")
            }
            Self::UpstreamReset => (
                "upstream_reset",
                502,
                grpc::UNAVAILABLE,
                "the endpoint closed the connection before it answered",
            ),
            Self::UpstreamProtocol => {
                ("upstream_protocol", 502, grpc::INTERNAL, "the endpoint's answer is not valid HTTP")
            }
            Self::BadRequest => ("bad_request", 400, grpc::INTERNAL, "the request is not valid HTTP"),
            Self::HeaderTooLarge => (
                "header_too_large",
                431,
                grpc::RESOURCE_EXHAUSTED,
                "the request's head is larger than allowed",
            ),
            Self::UriTooLong => {
                ("uri_too_long", 414, grpc::RESOURCE_EXHAUSTED, "the request's target is longer than allowed")
            }
            Self::NotImplemented => (
                "not_implemented",
                501,
                grpc::UNIMPLEMENTED,
                "the request uses a feature that is not supported",
            ),
            Self::HttpVersion => {
                ("http_version", 505, grpc::UNIMPLEMENTED, "the request's HTTP version is not supported")
            }
            Self::ExpectationFailed => (
                "expectation_failed",
                417,
                grpc::UNIMPLEMENTED,
                "the request expects something else than 100-continue",
            ),
            Self::RequestTimeout => {
                ("request_timeout", 408, grpc::DEADLINE_EXCEEDED, "the request did not arrive in time")
            }
            Self::Timeout => ("timeout", 504, grpc::DEADLINE_EXCEEDED, "the endpoint did not answer in time"),
            Self::RateLimited => (
                "rate_limited",
                429,
                grpc::RESOURCE_EXHAUSTED,
                "the service is asked for more often than its policy allows",
            ),
            Self::ConcurrencyLimited => (
                "concurrency_limited",
                429,
                grpc::RESOURCE_EXHAUSTED,
                "as many requests to the service are in flight as its policy allows",
            ),
            Self::CircuitOpen => (
                "circuit_open",
                503,
                grpc::UNAVAILABLE,
                "the service fails too often and is not asked for a while",
            ),
            // Only ever seen where a fallback stands in for the answer.
            Self::UpstreamError => {
                ("upstream_error", 502, grpc::UNAVAILABLE, "the endpoint answered with an error")
            }
            Self::EndpointDrained => (
                "endpoint_drained",
                503,
                grpc::UNAVAILABLE,
                "the endpoint is shutting down and the request took longer than its policy waits",
            ),
            Self::Overloaded => (
                "overloaded",
                503,
                grpc::RESOURCE_EXHAUSTED,
                "the calling pod has used up its share of this node's proxy",
            ),
            Self::Draining => ("draining", 503, grpc::UNAVAILABLE, "this node's proxy is stopping"),
            Self::Internal => ("internal", 500, grpc::INTERNAL, "the proxy failed; its log says more"),
            // 499 is what nginx made of this in logs.
            Self::ClientClosed => {
                ("client_closed", 499, grpc::CANCELLED, "the caller went away before the answer was complete")
            }
        }
    }

    /// The word for machines.
    pub const fn code(self) -> &'static str {
        self.facts().0
    }

    pub const fn status(self) -> u16 {
        self.facts().1
    }

    pub const fn grpc_status(self) -> u8 {
        self.facts().2
    }

    /// The sentence for people. Plain ASCII without `%`: fit for `grpc-message` as it is.
    pub const fn message(self) -> &'static str {
        self.facts().3
    }

    /// Whether Sluice refused the request: by a rule, for want of room, or because it could not be passed on. The others are
    /// failures to answer.
    pub const fn is_refusal(self) -> bool {
        match self {
            Self::LaneUnavailable
            | Self::BadRequest
            | Self::HeaderTooLarge
            | Self::UriTooLong
            | Self::NotImplemented
            | Self::HttpVersion
            | Self::ExpectationFailed
            | Self::RequestTimeout
            | Self::RateLimited
            | Self::ConcurrencyLimited
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::Draining => true,
            Self::NoEndpoint
            | Self::UpstreamConnect
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::Timeout
            | Self::UpstreamError
            | Self::EndpointDrained
            | Self::Internal
            | Self::ClientClosed => false,
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once_and_at_its_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index, "{reason:?}");
            assert_eq!(
                Reason::ALL.iter().filter(|other| other.code() == reason.code()).count(),
                1,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn messages_fit_a_header_as_they_are() {
        for reason in Reason::ALL {
            // RFC: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses
            assert!(reason.message().bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'%'));
            assert!((400..600).contains(&reason.status()));
            assert!((1..=16).contains(&reason.grpc_status()));
        }
    }
}
