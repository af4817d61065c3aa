//! Responses that Sluice makes (ARCHITECTURE.md#responses-that-sluice-makes). Whoever reads one can tell it from the service's
//! own, and learns which rule of which policy is behind it.
//!
//! An answer is made here for HTTP and for gRPC, whose clients look for a status in trailers, and written by the
//! protocols ([`http1`] is the former's way; HTTP/2 has its own).

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, SERVER, WWW_AUTHENTICATE},
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::{
    govern::jwt::Failure,
    observe::{
        fault::Fault,
        reason::{REASON_HEADER, Reason},
    },
};

/// What the caller has to be answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    /// `HEAD`: no body.
    Head,
    Grpc,
}

/// Why an answer is made up.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub(crate) reason: Reason,
    /// Boxed, for it is rare.
    pub(crate) rule: Option<Box<Rule>>,
    /// What is wrong with the message that was not passed on.
    pub(crate) fault: Option<Fault>,
    /// What else there is to say, where no rule is behind it.
    because: Option<Box<str>>,
    /// What is wrong with its token.
    token: Option<Failure>,
}

/// The rule that is behind an answer.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Its name, or the field of the policy where rules have none.
    pub(crate) name: Arc<str>,
    /// `shop/orders`.
    pub(crate) policy: Option<Arc<str>>,
    /// When it is worth asking again.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        Self { reason, rule: None, fault: None, because: None, token: None }
    }
}

impl Cause {
    pub(crate) fn of_rule(
        reason: Reason,
        name: &Arc<str>,
        policy: Option<&Arc<str>>,
        retry_after: Option<Duration>,
    ) -> Self {
        let rule = Rule { name: name.clone(), policy: policy.cloned(), retry_after };
        Self { reason, rule: Some(Box::new(rule)), fault: None, because: None, token: None }
    }

    /// The same, and what is wrong with the message.
    pub(crate) fn with(self, fault: Option<Fault>) -> Self {
        Self { fault, ..self }
    }

    /// The same, and what there is to say beyond the reason.
    pub(crate) fn because(self, because: Option<String>) -> Self {
        Self { because: because.map(Into::into), ..self }
    }

    /// The same, and what is wrong with the token of the request.
    pub(crate) fn lacks(self, token: Option<Failure>) -> Self {
        Self { token, ..self }
    }

    /// What is wrong with the token of the request, if that is the reason.
    pub(crate) fn token(&self) -> Option<Failure> {
        self.token
    }

    /// The sentence for people.
    fn message(&self) -> String {
        let message = match self.token {
            None => Cow::from(self.reason.message()),
            Some(failure) => format!("{}: {}", self.reason.message(), failure.message()).into(),
        };
        match self.rule.as_deref() {
            None => match (self.fault, &self.because) {
                (None, None) => message.into_owned(),
                (None, Some(because)) => format!("{message}: {because}"),
                (Some(fault), _) => format!("{message}: it has {fault}"),
            },
            Some(Rule { name, policy: None, .. }) => format!("{message} (rule {name})"),
            Some(Rule { name, policy: Some(policy), .. }) => {
                let of_access = matches!(self.reason, Reason::AccessDenied | Reason::Unauthenticated);
                let kind = if of_access { "AccessPolicy" } else { "TrafficPolicy" };
                format!("{message} (rule {name} of {kind} {policy})")
            }
        }
    }
}

/// A made-up answer, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct MadeUp {
    pub(crate) status: u16,
    /// Without `content-length` and what is for one hop only.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Bytes of the body, or those that an answer to HEAD would have; gRPC does not speak of it.
    pub(crate) length: Option<u64>,
    /// Of gRPC, if its status is not in the headers.
    pub(crate) trailers: Option<HeaderMap>,
    /// The caller's connection must not be used again, because nobody knows where its next request begins.
    pub(crate) closes: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    reason: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
}

impl MadeUp {
    /// An empty answer of gRPC, which still lacks its status.
    pub(crate) fn grpc() -> Self {
        let headers = HeaderMap::new();
        Self { status: 200, headers, body: Bytes::new(), length: None, trailers: None, closes: false }
    }

    /// The status of HTTP.
    pub(crate) fn status_of(reason: Reason, kind: Kind) -> u16 {
        if kind == Kind::Grpc { 200 } else { reason.status() }
    }

    /// What is said of a path that is hidden: nothing by which it could be told from one that is not there.
    fn of_nothing(kind: Kind) -> Self {
        let (reason, mut answer) = (Reason::PathHidden, Self::grpc());
        answer.status = Self::status_of(reason, kind);
        if kind == Kind::Grpc {
            answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            put_grpc_status(&mut answer.headers, reason, "");
            answer.headers.remove(REASON_HEADER);
        } else {
            answer.length = Some(0);
        }
        answer
    }

    pub(crate) fn of(cause: &Cause, kind: Kind) -> Self {
        let reason = cause.reason;
        if reason == Reason::PathHidden {
            return Self::of_nothing(kind);
        }
        let message = cause.message();
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(SERVER, HeaderValue::from_static("sluice"));
        let body = if kind == Kind::Grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            put_grpc_status(&mut headers, reason, &message);
            Bytes::new()
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(REASON_HEADER, HeaderValue::from_static(reason.code()));
            body(cause, &message)
        };
        if let Some(failure) = cause.token {
            headers.insert(WWW_AUTHENTICATE, challenge(failure));
        }
        if let Some(after) = cause.rule.as_deref().and_then(|rule| rule.retry_after) {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        Self {
            status: Self::status_of(reason, kind),
            headers,
            length: (kind != Kind::Grpc).then_some(body.len() as u64),
            body: if kind == Kind::Head { Bytes::new() } else { body },
            trailers: None,
            closes: reason == Reason::BadRequest,
        }
    }
}

/// What a client is told of the token that it should have (RFC 6750, section 3): of one that has none, only that it is needed.
fn challenge(failure: Failure) -> HeaderValue {
    if failure == Failure::Missing {
        return HeaderValue::from_static("Bearer");
    }
    let message = failure.message();
    let text = format!("Bearer error=\"invalid_token\", error_description=\"{message}\"");
    // The messages are plain ASCII without quotes.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer error=\"invalid_token\""))
}

/// The least that the header can say is a second, and nobody is to come back too early.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

fn body(cause: &Cause, message: &str) -> Bytes {
    let rule = cause.rule.as_deref();
    let body = Body {
        reason: cause.reason.code(),
        message,
        rule: rule.map(|rule| &*rule.name),
        policy: rule.and_then(|rule| rule.policy.as_deref()),
    };
    // Strings into memory: this cannot fail, and an empty body is the least harm if it did.
    let mut body = serde_json::to_vec(&body).unwrap_or_default();
    body.push(b'\n');
    body.into()
}

/// What `grpc-message` must not hold as it is.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses>
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The trailers of a gRPC answer that Sluice ends.
pub(crate) fn put_grpc_status(headers: &mut HeaderMap, reason: Reason, message: &str) {
    headers
        .insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(reason.grpc_status())));
    let message = utf8_percent_encode(message, ENCODED).to_string();
    // What is not printable ASCII has been encoded, so it is a value.
    if let Ok(message) = HeaderValue::from_maybe_shared(Bytes::from(message)) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.code()));
}

/// Writes an answer as HTTP/1.
pub(crate) fn http1(answer: &MadeUp, keep_alive: bool, out: &mut BytesMut) {
    let status = answer.status;
    let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    out.reserve(256 + answer.body.len());
    out.extend_from_slice(format!("HTTP/1.1 {status} {phrase}\r\n").as_bytes());
    for (name, value) in &answer.headers {
        add(out, name.as_str().as_bytes(), value.as_bytes());
    }
    // Neither has a body, and a length would be wrong (RFC 9110, section 8.6).
    if status != 204 && status != 304 {
        let length = answer.length.unwrap_or_default();
        add(out, b"content-length", length.to_string().as_bytes());
    }
    if !keep_alive {
        add(out, b"connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&answer.body);
}

fn add(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(answer: &MadeUp, keep_alive: bool) -> String {
        let mut out = BytesMut::new();
        http1(answer, keep_alive, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn every_reason_makes_an_answer_that_parses() {
        for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::PathHidden) {
            let out = written(&MadeUp::of(&reason.into(), Kind::Http), false);
            let mut slots = [httparse::EMPTY_HEADER; 8];
            let mut parsed = httparse::Response::new(&mut slots);
            let head = parsed.parse(out.as_bytes()).unwrap().unwrap();
            assert_eq!(parsed.code, Some(reason.status()));
            let value =
                |name| parsed.headers.iter().find(|header| header.name == name).map(|header| header.value);
            assert_eq!(value(REASON_HEADER), Some(reason.code().as_bytes()));
            assert_eq!(value("content-length"), Some((out.len() - head).to_string().as_bytes()));
            assert_eq!(value("connection"), Some(&b"close"[..]));
            let body: serde_json::Value = serde_json::from_slice(&out.as_bytes()[head..]).unwrap();
            assert_eq!(body["reason"], reason.code());
            assert_eq!(body["message"], reason.message());
        }
    }

    #[test]
    fn a_rule_is_named_whatever_it_is_called() {
        let name = "it's \"100 %\" grün\r\n";
        let after = Some(Duration::from_millis(1200));
        let cause = Cause::of_rule(Reason::RateLimited, &name.into(), Some(&"shop/orders".into()), after);
        let out = written(&MadeUp::of(&cause, Kind::Http), true);
        let (head, body) = out.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 429 Too Many Requests\r\n") && head.contains("\r\nretry-after: 2\r\n")
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["rule"], &body["policy"]), (&name.into(), &"shop/orders".into()));

        let grpc = MadeUp::of(&cause, Kind::Grpc);
        assert!(grpc.length.is_none() && grpc.body.is_empty() && grpc.status == 200);
        assert_eq!(grpc.headers["grpc-status"], "8");
        assert!(
            grpc.headers["grpc-message"]
                .to_str()
                .unwrap()
                .ends_with("(rule it's \"100 %25\" gr%C3%BCn%0D%0A of TrafficPolicy shop/orders)")
        );
    }

    #[test]
    fn what_is_hidden_is_like_what_is_not_there() {
        let hidden = Cause::from(Reason::PathHidden);
        let out = written(&MadeUp::of(&hidden, Kind::Http), true);
        assert_eq!(out, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(written(&MadeUp::of(&hidden, Kind::Head), true), out);
        let grpc = MadeUp::of(&hidden, Kind::Grpc);
        assert_eq!((grpc.status, grpc.headers.len()), (200, 3), "{:?}", grpc.headers);
        assert_eq!(grpc.headers["grpc-status"], "12");
        assert_eq!(grpc.headers["grpc-message"], "");
    }

    #[test]
    fn a_client_without_a_good_token_is_challenged() {
        let cause = |failure| {
            let rule =
                Cause::of_rule(Reason::Unauthenticated, &"users".into(), Some(&"shop/orders".into()), None);
            rule.lacks(Some(failure))
        };
        let none = MadeUp::of(&cause(Failure::Missing), Kind::Http);
        assert_eq!((none.status, &none.headers["www-authenticate"]), (401, &"Bearer".parse().unwrap()));
        for failure in Failure::ALL.into_iter().filter(|failure| *failure != Failure::Missing) {
            let bad = MadeUp::of(&cause(failure), Kind::Grpc);
            let challenge = bad.headers["www-authenticate"].to_str().unwrap();
            let wanted =
                format!("Bearer error=\"invalid_token\", error_description=\"{}\"", failure.message());
            assert_eq!((challenge, &bad.headers["grpc-status"]), (&*wanted, &"16".parse().unwrap()));
            let message = bad.headers["grpc-message"].to_str().unwrap();
            assert!(
                message.contains(failure.message()) && message.contains("of AccessPolicy shop/orders"),
                "{message}"
            );
        }
        assert!(
            !MadeUp::of(&Reason::AccessDenied.into(), Kind::Http).headers.contains_key("www-authenticate")
        );
    }

    #[test]
    fn an_answer_to_head_speaks_of_a_body_that_does_not_come() {
        let out = written(&MadeUp::of(&Reason::NoEndpoint.into(), Kind::Head), true);
        assert!(out.ends_with("\r\n\r\n") && !out.contains("content-length: 0\r\n"));
    }

    #[test]
    fn nobody_is_told_to_come_back_too_early() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_500, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }
}
