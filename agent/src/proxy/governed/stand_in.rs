//! Responses in the place of a service's: made by Sluice, or by a fallback of the policy
//! (ARCHITECTURE.md#responses-that-sluice-makes, ARCHITECTURE.md#timeouts-retries-and-fallbacks).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Call, Exchange, note::note_passed, rules::Rules};
use crate::{
    clock::Nanos,
    govern::{
        breaker::Open,
        fallback::{self, stale},
        governor::Governor,
        headers,
        policy::{FallbackAction, FallbackOn, Part, StaticAnswer},
    },
    observe::{
        metrics,
        reason::{REASON_HEADER, Reason},
    },
    proxy::answer::{Cause, Kind, MadeUp},
};

/// The header that names the fallback that answered.
const FALLBACK_HEADER: &str = "x-sluice-fallback";

/// What failed, and how the caller is told if no fallback is.
pub(super) struct Failed {
    pub(super) cause: Cause,
    /// `None`: fallbacks are not for this.
    pub(super) on: Option<FallbackOn>,
}

impl Failed {
    pub(super) fn new(cause: impl Into<Cause>, on: impl Into<Option<FallbackOn>>) -> Self {
        Self { cause: cause.into(), on: on.into() }
    }

    /// The circuit breaker is open.
    pub(super) fn open(governor: &Governor, open: Open) -> Self {
        let (name, after) = ("circuitBreaker".into(), Some(open.retry_after));
        let said_by = governor.policy().said_by(Part::CircuitBreaker);
        Self::new(Cause::of_rule(Reason::CircuitOpen, &name, said_by, after), FallbackOn::CircuitOpen)
    }
}

/// What becomes of a request whose response is no endpoint's, or none that is passed on. In boxes, as it is rare, and those that are
/// not would carry its room.
pub(super) enum Instead {
    /// Its client has gone: nobody is answered.
    Leave,
    /// It is answered with this.
    Give(Box<(MadeUp, Cause)>),
    /// It has failed: a fallback answers, if there is one for that, or its client is told.
    Fail(Box<Failed>),
}

impl Instead {
    pub(super) fn give(answer: MadeUp, cause: Cause) -> Self {
        Self::Give(Box::new((answer, cause)))
    }

    pub(super) fn fail(failed: Failed) -> Self {
        Self::Fail(Box::new(failed))
    }
}

/// Ends a request without an endpoint's response.
pub(super) async fn stand_in<E: Exchange>(exchange: &mut E, rules: &Rules<'_>, instead: Instead) -> E::Ended {
    let failed = match instead {
        Instead::Leave => {
            note_passed(exchange, None);
            exchange.call().finish(0, Some(Reason::ClientClosed));
            return exchange.leave();
        }
        Instead::Give(given) => {
            let (answer, cause) = *given;
            return give(exchange, &answer, &cause).await;
        }
        Instead::Fail(failed) => failed,
    };
    let fallback = failed.on.and_then(|on| find(exchange, rules, on, &failed.cause));
    // What the endpoint said, if it said why it failed.
    if fallback.is_none()
        && let Some((status, ended)) = exchange.hand_on()
    {
        note_passed(exchange, None);
        exchange.call().finish(status, Some(failed.cause.reason));
        return ended;
    }
    let answer = fallback.unwrap_or_else(|| {
        let mut answer = MadeUp::of(&failed.cause, exchange.kind());
        // At the endpoint a client's connection ends with the application's, as it would without Sluice.
        let is_gone = matches!(failed.cause.reason, Reason::UpstreamConnect | Reason::UpstreamReset);
        answer.closes |= is_gone && exchange.call().pod.arrival.is_some();
        answer
    });
    give(exchange, &answer, &failed.cause).await
}

/// Answers with this.
pub(super) async fn give<E: Exchange>(exchange: &mut E, answer: &MadeUp, cause: &Cause) -> E::Ended {
    let read = exchange.call().way.as_ref().filter(|way| way.course.speaks_to_pages()).map(|way| {
        let mut answer = answer.clone();
        way.course.speak_to_page(&mut answer.headers);
        answer
    });
    let (status, ended) = exchange.make_up(read.as_ref().unwrap_or(answer)).await;
    note_passed(exchange, None);
    exchange.call().finish_made_up(status, cause);
    ended
}

/// The answer of the first fallback that has one.
pub(super) fn find<E: Exchange>(
    exchange: &mut E,
    rules: &Rules<'_>,
    on: FallbackOn,
    cause: &Cause,
) -> Option<MadeUp> {
    let (governor, kind) = (rules.governor, exchange.kind());
    for fallback in fallback::candidates(&governor.policy().fallbacks, on) {
        let (mut answer, action) = match &fallback.action {
            FallbackAction::Static(answer) => {
                (of_static(&fallback.name, answer, kind), metrics::FallbackAction::Static)
            }
            FallbackAction::Stale(wanted) => {
                let now = Nanos::now().0;
                let found = governor
                    .stale()
                    .zip(rules.key)
                    .and_then(|(stale, key)| stale.store.find(key, wanted.bounds, &exchange.request(), now));
                let Some(found) = found else {
                    count(exchange.call(), &fallback.name, metrics::FallbackAction::Missed);
                    continue;
                };
                (of_stale(&found, now), metrics::FallbackAction::Stale)
            }
        };
        count(exchange.call(), &fallback.name, action);
        answer.headers.insert(REASON_HEADER, HeaderValue::from_static(cause.reason.code()));
        // Names are those of Kubernetes' objects; one that is no header value is not shown.
        if let Ok(name) = HeaderValue::from_str(&fallback.name) {
            answer.headers.insert(FALLBACK_HEADER, name);
        }
        return Some(answer);
    }
    None
}

fn count(call: &Call, name: &std::sync::Arc<str>, action: metrics::FallbackAction) {
    call.resolved.numbers.fell_back(name, action);
}

fn of_static(name: &str, answer: &StaticAnswer, kind: Kind) -> MadeUp {
    if kind == Kind::Grpc {
        let grpc = fallback::for_grpc(name, answer);
        let mut headers = to_map(&grpc.headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let mut status = HeaderMap::with_capacity(2);
        status.insert("grpc-status", HeaderValue::from(u16::from(grpc.status)));
        if let Ok(message) = HeaderValue::from_str(&grpc.message)
            && !grpc.message.is_empty()
        {
            status.insert("grpc-message", message);
        }
        let body = grpc.body.unwrap_or_default();
        let trailers = if body.is_empty() {
            headers.extend(status);
            None
        } else {
            Some(status)
        };
        return MadeUp { headers, body, trailers, ..MadeUp::grpc() };
    }
    let headers = to_map(&answer.headers);
    let length = answer.body.len() as u64;
    let body = if kind == Kind::Head { bytes::Bytes::new() } else { answer.body.clone() };
    MadeUp { status: answer.status, headers, body, length: Some(length), trailers: None, closes: false }
}

fn of_stale(answer: &stale::Answer, now: u64) -> MadeUp {
    let mut headers = to_map(&answer.headers);
    headers.insert(header::AGE, HeaderValue::from(answer.age(now).as_secs()));
    let length = answer.head_length.unwrap_or(answer.body.len() as u64);
    MadeUp {
        status: 200,
        headers,
        body: answer.body.clone(),
        length: Some(length),
        trailers: None,
        closes: false,
    }
}

fn to_map(kept: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(kept.len() + 3);
    for (name, value) in kept {
        // The proxy says itself how long the body is and what becomes of the connection.
        if headers::may_be_kept(name.as_str().as_bytes()) {
            map.append(name, value.clone());
        }
    }
    map
}
