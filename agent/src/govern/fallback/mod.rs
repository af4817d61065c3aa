//! What answers in the place of a service that failed (ARCHITECTURE.md#timeouts-retries-and-fallbacks).
//!
//! When nothing else helps, because a limit refuses, the breaker is open, no endpoint can be reached, the time is over
//! or the service answered 5xx, the policy's fallbacks are looked at in their order ([`candidates`]): a static answer
//! always answers, the last good one ([`stale`]) only if there is one.
//!
//! **gRPC.** A caller that speaks gRPC gets a gRPC answer ([`for_grpc`]): status 200, the outcome in `grpc-status`. If
//! the static answer has a header `grpc-status` it counts: with `0` the body is the one message of the answer, and an
//! empty body is a message with every field at its default, which is what "no recommendations" mostly is; with another
//! status there is no message, and a header `grpc-message` tells why. Without the header the HTTP status is translated
//! as gRPC's own clients do it. It never becomes `OK` by itself: that would need a message, which only the policy's
//! author can know.

pub mod stale;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{
    outcome::{ErrorKind, Outcome},
    policy::{Fallback, FallbackOn, StaticAnswer},
};

/// The fallbacks that answer on this failure, in the order in which they are to be tried.
pub fn candidates(fallbacks: &[Arc<Fallback>], failure: FallbackOn) -> impl Iterator<Item = &Arc<Fallback>> {
    fallbacks.iter().filter(move |fallback| fallback.on.contains(&failure))
}

impl FallbackOn {
    /// On what came of the last attempt; `None` if nothing failed.
    pub const fn of_outcome(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Success => None,
            Outcome::Error(kind) => Some(match kind {
                // An answer that is not HTTP is the service's failure, not that of the way to it.
                ErrorKind::Status(_) | ErrorKind::Grpc(_) | ErrorKind::Protocol => Self::ServerError,
                ErrorKind::Connect | ErrorKind::Reset => Self::ConnectFailure,
                ErrorKind::Timeout => Self::Timeout,
            }),
        }
    }
}

/// A static answer as a gRPC caller gets it: HTTP status 200, `content-type: application/grpc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcAnswer {
    pub status: u8,
    /// As it stands in `grpc-message`.
    pub message: String,
    /// The one message, with its length in front; `None`: there is none (`Trailers-Only`).
    pub body: Option<Bytes>,
    /// The policy's other headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
/// What of a `grpc-message` must be encoded.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses>
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The static answer of the fallback `name` for a caller that speaks gRPC.
pub fn for_grpc(name: &str, answer: &StaticAnswer) -> GrpcAnswer {
    let header = |wanted: &str| {
        let (_, value) = answer.headers.iter().find(|(name, _)| name.as_str() == wanted)?;
        value.to_str().ok()
    };
    let status = header(GRPC_STATUS)
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| grpc_status_of(answer.status));
    let message = match header(GRPC_MESSAGE) {
        // It stands in the policy as it is to stand in the answer.
        Some(message) => message.to_owned(),
        None if status == 0 => String::new(),
        None => utf8_percent_encode(&format!("answered by the fallback {name}"), ENCODED).to_string(),
    };
    let length = u32::try_from(answer.body.len()).ok().filter(|_| status == 0);
    let body = length.map(|length| {
        let mut framed = BytesMut::with_capacity(5 + answer.body.len());
        framed.put_u8(0);
        framed.put_u32(length);
        framed.put_slice(&answer.body);
        framed.freeze()
    });
    let others = answer.headers.iter().filter(|(name, _)| {
        ![GRPC_STATUS, GRPC_MESSAGE, "content-type", "content-length"].contains(&name.as_str())
    });
    GrpcAnswer { status, message, body, headers: others.cloned().collect() }
}

/// What gRPC's clients make of an answer that is not gRPC.
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
const fn grpc_status_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
