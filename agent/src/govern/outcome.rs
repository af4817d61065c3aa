//! How an attempt at a service ended, in the words that all rules share: the breaker, outlier detection and fallbacks
//! must not disagree about what a failure is (ARCHITECTURE.md#circuit-breaker).
//!
//! An outcome speaks of the service. What the agent itself refused has none, and neither has a request whose caller
//! left before it was answered: nobody knows how it would have ended.

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Error(ErrorKind),
}

/// What is held against a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// It answered with this status, 500 or above.
    #[error("status {0}")]
    Status(u16),
    /// It answered with this gRPC status, one of those that say that the service failed and not its caller.
    #[error("gRPC status {0}")]
    Grpc(u8),
    /// No connection came about.
    #[error("connect failure")]
    Connect,
    /// The connection, or the stream, was broken off before the answer was complete.
    #[error("reset")]
    Reset,
    /// A timeout of the policy ran out.
    #[error("timeout")]
    Timeout,
    /// What came was no valid answer.
    #[error("protocol error")]
    Protocol,
}

/// gRPC statuses that the service is to blame for. <https://grpc.io/docs/guides/status-codes/>
mod grpc {
    pub(super) const UNKNOWN: u8 = 2;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const DATA_LOSS: u8 = 15;
}

impl Outcome {
    /// Of a complete answer. `grpc_status`: where the answer carries one, in its head or in its trailers.
    pub const fn of_answer(status: u16, grpc_status: Option<u8>) -> Self {
        use grpc::{DATA_LOSS, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNKNOWN};
        match (status, grpc_status) {
            (500.., _) => Self::Error(ErrorKind::Status(status)),
            (_, Some(code @ (UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE | DATA_LOSS))) => {
                Self::Error(ErrorKind::Grpc(code))
            }
            _ => Self::Success,
        }
    }

    pub const fn is_error(self) -> bool {
        matches!(self, Self::Error(_))
    }
}

impl From<ErrorKind> for Outcome {
    fn from(kind: ErrorKind) -> Self {
        Self::Error(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_blamed_for_its_own_failures_only() {
        for status in [100, 200, 204, 301, 304, 400, 401, 404, 408, 429, 499] {
            assert_eq!(Outcome::of_answer(status, None), Outcome::Success, "{status}");
        }
        for status in [500, 501, 502, 503, 504, 599, 999] {
            assert_eq!(Outcome::of_answer(status, None), ErrorKind::Status(status).into(), "{status}");
        }
        for code in 0..=u8::MAX {
            let expected = match code {
                2 | 4 | 13 | 14 | 15 => ErrorKind::Grpc(code).into(),
                _ => Outcome::Success,
            };
            assert_eq!(Outcome::of_answer(200, Some(code)), expected, "gRPC {code}");
        }
        // A proxy in between that answers 503 knows nothing of gRPC: the status decides.
        assert_eq!(Outcome::of_answer(503, Some(0)), ErrorKind::Status(503).into());
    }
}
