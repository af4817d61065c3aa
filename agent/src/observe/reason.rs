//! Why Sluice responded itself, in the place of an endpoint: one word, the same in the header `x-sluice-reason`, in the body, in
//! metrics, spans and the access log. `deploy/reference/reasons.md` is made from it.

/// The header that a response of Sluice's own carries.
pub const REASON_HEADER: &str = "x-sluice-reason";

/// The names of gRPC's status codes, by their numbers. <https://grpc.io/docs/guides/status-codes/>
pub(crate) const GRPC_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a gRPC status code.
pub(crate) fn grpc_name(code: u8) -> &'static str {
    // Clients take what they do not know for this.
    GRPC_NAMES.get(usize::from(code)).copied().unwrap_or("UNKNOWN")
}

/// Why Sluice responded itself.
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
    RouteNotFound,
    BackendNotFound,
    RouteRedirect,
    RoutePreflight,
    AccessDenied,
    Unauthenticated,
    PathHidden,
    /// Not a response: nobody is there to get one.
    ClientClosed,
}

/// What there is to know of a reason.
struct Facts {
    code: &'static str,
    status: u16,
    grpc_status: u8,
    message: &'static str,
    action: &'static str,
}

/// gRPC status codes. <https://grpc.io/docs/guides/status-codes/>
mod grpc {
    pub(super) const CANCELLED: u8 = 1;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

impl Reason {
    pub const ALL: [Self; 29] = [
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
        Self::RouteNotFound,
        Self::BackendNotFound,
        Self::RouteRedirect,
        Self::RoutePreflight,
        Self::AccessDenied,
        Self::Unauthenticated,
        Self::PathHidden,
        Self::ClientClosed,
    ];

    /// What there is to know.
    const fn facts(self) -> Facts {
        match self {
            Self::NoEndpoint => Facts {
                code: "no_endpoint",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "the service has no endpoint that can take the request",
                action: "Look at the readiness of the pods behind the Service. If the message says that those that are ready are of a lane, only requests with its tag get there: send the tag, or let an entry rule of a TrafficLane that targets the Service set it.",
            },
            Self::LaneUnavailable => Facts {
                code: "lane_unavailable",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "no endpoint of the request's lane can take it, and it may not fall back",
                action: "Look at the pods of the lane, and at `fallback` of the TrafficLane.",
            },
            Self::UpstreamConnect => Facts {
                code: "upstream_connect",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "no endpoint could be connected to",
                action: "Look at the pods, and at NetworkPolicies between the client and them.",
            },
            Self::UpstreamReset => Facts {
                code: "upstream_reset",
                status: 502,
                grpc_status: grpc::UNAVAILABLE,
                message: "the endpoint closed the connection before the response was complete",
                action: "Look at the log of the endpoint: it crashed, or it closes connections while it shuts down.",
            },
            Self::UpstreamProtocol => Facts {
                code: "upstream_protocol",
                status: 502,
                grpc_status: grpc::INTERNAL,
                message: "the endpoint's response is not valid HTTP",
                action: "The message of the response, the agent's log and `sluice_invalid_messages_total` say what is wrong with it; headers may have 64 KiB and 1000 lines. Compare `appProtocol` and the name of the Service port with what the endpoint speaks.",
            },
            Self::BadRequest => Facts {
                code: "bad_request",
                status: 400,
                grpc_status: grpc::INTERNAL,
                message: "the request is not valid HTTP",
                action: "Correct the client: the message of the response and `sluice_invalid_messages_total` say which part of the request is wrong, such as a missing `Host`, a header that is folded over several lines, a bare line feed, or framing that is ambiguous. Nothing of it was forwarded.",
            },
            Self::HeaderTooLarge => Facts {
                code: "header_too_large",
                status: 431,
                grpc_status: grpc::RESOURCE_EXHAUSTED,
                message: "the request's headers are larger than 64 KiB, or more than 100",
                action: "Make the headers smaller; cookies are the usual cause.",
            },
            Self::UriTooLong => Facts {
                code: "uri_too_long",
                status: 414,
                grpc_status: grpc::RESOURCE_EXHAUSTED,
                message: "the request's target is too long: with the headers it may have 64 KiB",
                action: "Send the data in the body.",
            },
            Self::NotImplemented => Facts {
                code: "not_implemented",
                status: 501,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "the request uses a transfer coding other than chunked",
                action: "Correct the client.",
            },
            Self::HttpVersion => Facts {
                code: "http_version",
                status: 505,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "the request's HTTP version is not supported",
                action: "Use HTTP/1.0, HTTP/1.1 or HTTP/2.",
            },
            Self::ExpectationFailed => Facts {
                code: "expectation_failed",
                status: 417,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "the request expects something other than 100-continue",
                action: "Correct the client.",
            },
            Self::RequestTimeout => Facts {
                code: "request_timeout",
                status: 408,
                grpc_status: grpc::DEADLINE_EXCEEDED,
                message: "the request headers did not arrive within 60 s",
                action: "Look at the client and its network.",
            },
            Self::Timeout => Facts {
                code: "timeout",
                status: 504,
                grpc_status: grpc::DEADLINE_EXCEEDED,
                message: "the endpoint did not respond in time",
                action: "Look at the latency of the service, and at `timeouts` of the TrafficPolicy. A response that had begun is aborted.",
            },
            Self::RateLimited => Facts {
                code: "rate_limited",
                status: 429,
                grpc_status: grpc::RESOURCE_EXHAUSTED,
                message: "a rate limit of the service rejected the request",
                action: "The response header `retry-after` says when to retry. `sluice_rate_limit_requests_total` has the rule.",
            },
            Self::ConcurrencyLimited => Facts {
                code: "concurrency_limited",
                status: 429,
                grpc_status: grpc::RESOURCE_EXHAUSTED,
                message: "as many requests are in flight as the policy of the service allows",
                action: "Has the service become slower? Look at `sluice_upstream_duration_seconds`.",
            },
            Self::CircuitOpen => Facts {
                code: "circuit_open",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "the circuit breaker of the service is open",
                action: "Look at the service: too many requests to it failed or were slow. Sluice probes it after `openDuration`.",
            },
            Self::UpstreamError => Facts {
                code: "upstream_error",
                status: 502,
                grpc_status: grpc::UNAVAILABLE,
                message: "the endpoint responded with an error, and a fallback replaced it",
                action: "Look at the service. This reason is seen with a fallback only.",
            },
            Self::EndpointDrained => Facts {
                code: "endpoint_drained",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "the endpoint is terminating and the request took longer than drain.timeout",
                action: "Raise `drain.timeout`, or make requests shorter.",
            },
            Self::Overloaded => Facts {
                code: "overloaded",
                status: 503,
                grpc_status: grpc::RESOURCE_EXHAUSTED,
                message: "the calling pod has used up its share of this node's proxy",
                action: "Look for a connection leak in the client, or raise `--connections-per-pod`.",
            },
            Self::Draining => Facts {
                code: "draining",
                status: 503,
                grpc_status: grpc::UNAVAILABLE,
                message: "this node's proxy is shutting down",
                action: "Retry: another agent, or none, takes the next connection.",
            },
            Self::Internal => Facts {
                code: "internal",
                status: 500,
                grpc_status: grpc::INTERNAL,
                message: "the proxy failed; its log says more",
                action: "Read the log of the agent, and report a bug.",
            },
            Self::RouteNotFound => Facts {
                code: "route_not_found",
                status: 404,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "the service has routes, and no rule of them matches the request",
                action: "Look at the matches of the HTTPRoutes and GRPCRoutes of the Service; a rule without matches takes the rest.",
            },
            Self::BackendNotFound => Facts {
                code: "backend_not_found",
                status: 500,
                grpc_status: grpc::UNAVAILABLE,
                message: "the backend that the route names does not exist or may not be referred to, or none has any weight",
                action: "Look at the backendRefs of the route, at ReferenceGrants, and at the list of invalid objects.",
            },
            Self::RouteRedirect => Facts {
                code: "route_redirect",
                status: 302,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "a route redirects the request",
                action: "None: the route asks for it. The status is the route's.",
            },
            Self::RoutePreflight => Facts {
                code: "route_preflight",
                status: 200,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "a route answers the preflight of a page of another origin",
                action: "None: the route has a filter of type CORS. A response without access-control-allow-origin says that the origin is not allowed.",
            },
            Self::AccessDenied => Facts {
                code: "access_denied",
                status: 403,
                grpc_status: grpc::PERMISSION_DENIED,
                message: "the client may not make this request",
                action: "Look at the rules of the AccessPolicy that the response names, and at who the client is: `sluice_access_requests_total` has the rule.",
            },
            Self::Unauthenticated => Facts {
                code: "unauthenticated",
                status: 401,
                grpc_status: grpc::UNAUTHENTICATED,
                message: "the request needs a valid token",
                action: "The response header `www-authenticate` says what is wrong with the token, as does `token` in the access log, and `sluice_access_tokens_total` counts it. Compare the token with `jwt` of the AccessPolicy that the response names: `sluice explain` shows the step.",
            },
            Self::PathHidden => Facts {
                code: "not_found",
                status: 404,
                grpc_status: grpc::UNIMPLEMENTED,
                message: "there is nothing at this path",
                action: "An AccessPolicy hides the path from the client: add the client to `from` in `hidden`, if it is to see it.",
            },
            Self::ClientClosed => Facts {
                code: "client_closed",
                status: 499,
                grpc_status: grpc::CANCELLED,
                message: "the client closed the connection before the response was complete",
                action: "Look at the timeouts of the client. No response is sent; 499 is seen in logs and traces only.",
            },
        }
    }

    /// The word for machines.
    pub const fn code(self) -> &'static str {
        self.facts().code
    }

    pub const fn status(self) -> u16 {
        self.facts().status
    }

    pub const fn grpc_status(self) -> u8 {
        self.facts().grpc_status
    }

    /// The sentence for people. Plain ASCII without `%`: fit for `grpc-message` as it is.
    pub const fn message(self) -> &'static str {
        self.facts().message
    }

    /// What to look at, for the reference.
    pub const fn action(self) -> &'static str {
        self.facts().action
    }

    /// Whether Sluice rejected the request: by a rule, for want of room, or because it could not be passed on. The others are
    /// failures of the service.
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
            | Self::RouteNotFound
            | Self::RouteRedirect
            | Self::RoutePreflight
            | Self::AccessDenied
            | Self::Unauthenticated
            | Self::PathHidden
            | Self::Draining => true,
            Self::NoEndpoint
            | Self::UpstreamConnect
            | Self::UpstreamReset
            | Self::UpstreamProtocol
            | Self::Timeout
            | Self::UpstreamError
            | Self::EndpointDrained
            | Self::Internal
            | Self::BackendNotFound
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
            assert!((200..600).contains(&reason.status()));
            assert!((1..=16).contains(&reason.grpc_status()));
        }
    }
}
