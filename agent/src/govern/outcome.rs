//! How an attempt at a service ended, in the words that all rules share: the breaker, outlier detection and fallbacks
//! must not disagree about what a failure is (ARCHITECTURE.md#circuit-breaker).
//!
//! An outcome speaks of the service. What the agent itself refused has none, and neither has a request whose caller
//! left before it was answered: nobody knows how it would have ended.

use super::policy::Errors;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Error(ErrorKind),
}

/// What is held against a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// It answered with this status, one of the policy's errors: 500 or above, if that says nothing else.
    #[error("status {0}")]
    Status(u16),
    /// It answered with this gRPC status, one of the policy's errors.
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

impl Outcome {
    /// Of a complete answer. `grpc_status`: where the answer carries one, in its head or in its trailers.
    pub fn of_answer(errors: &Errors, status: u16, grpc_status: Option<u8>) -> Self {
        match grpc_status {
            // A proxy in between that answers 503 knows nothing of gRPC: the status goes first.
            _ if errors.has_status(status) => Self::Error(ErrorKind::Status(status)),
            Some(code) if errors.has_grpc_status(code) => Self::Error(ErrorKind::Grpc(code)),
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

    fn of(status: u16, grpc_status: Option<u8>) -> Outcome {
        Outcome::of_answer(&Errors::default(), status, grpc_status)
    }

    #[test]
    fn a_service_is_blamed_for_its_own_failures_only() {
        for status in [100, 200, 204, 301, 304, 400, 401, 404, 408, 429, 499] {
            assert_eq!(of(status, None), Outcome::Success, "{status}");
        }
        for status in [500, 501, 502, 503, 504, 599, 999] {
            assert_eq!(of(status, None), ErrorKind::Status(status).into(), "{status}");
        }
        for code in 0..=u8::MAX {
            let expected = match code {
                2 | 4 | 13 | 14 | 15 => ErrorKind::Grpc(code).into(),
                _ => Outcome::Success,
            };
            assert_eq!(of(200, Some(code)), expected, "gRPC {code}");
        }
        assert_eq!(of(503, Some(0)), ErrorKind::Status(503).into());
    }

    #[test]
    fn a_policy_says_otherwise() {
        let errors =
            Errors { client: false, server: false, statuses: vec![429, 502], grpc_statuses: vec![8] };
        for (status, grpc, wanted) in [
            (429, None, Some(ErrorKind::Status(429))),
            (502, Some(8), Some(ErrorKind::Status(502))),
            (200, Some(8), Some(ErrorKind::Grpc(8))),
            (500, None, None),
            (404, None, None),
            (200, Some(14), None),
        ] {
            let outcome = wanted.map_or(Outcome::Success, Outcome::Error);
            assert_eq!(Outcome::of_answer(&errors, status, grpc), outcome, "{status} {grpc:?}");
        }
        let errors = Errors { client: true, ..Errors::default() };
        assert_eq!(Outcome::of_answer(&errors, 404, None), ErrorKind::Status(404).into());
        assert_eq!(Outcome::of_answer(&errors, 399, None), Outcome::Success);
    }
}
