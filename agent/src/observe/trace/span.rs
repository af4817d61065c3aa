//! A request's spans in OpenTelemetry's form and words: the stable semantic conventions for HTTP, and `sluice.*` for what
//! only Sluice knows. <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>

use std::borrow::Cow;

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{AttemptSpan, MAX_PATH, RequestSpan};
use crate::observe::reason::grpc_name;

/// Methods that the conventions know; others are `_OTHER`, so that a caller cannot make up span names.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The spans of a request: its own first, then one for each attempt.
pub(super) fn spans(request: &RequestSpan, scope: &InstrumentationScope) -> Vec<SpanData> {
    let parent = request.traced.parent;
    let mut own = SpanData {
        span_context: context(request, request.traced.span.get()),
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span.get())),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Server,
        name: name(request),
        start_time: request.start,
        end_time: request.end,
        attributes: common(request),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    };
    describe(request, &mut own);
    let attempts = request.attempts.iter().enumerate();
    let children = attempts.map(|(index, attempt)| child(request, attempt, index, scope));
    std::iter::once(own).chain(children).collect()
}

fn context(request: &RequestSpan, span: u64) -> SpanContext {
    let trace = TraceId::from(request.traced.trace.get());
    SpanContext::new(trace, SpanId::from(span), TraceFlags::SAMPLED, false, TraceState::default())
}

fn name(request: &RequestSpan) -> Cow<'static, str> {
    // Without a route, which a proxy does not know, the method alone: paths have too many values.
    method(request).map_or(Cow::Borrowed("HTTP"), Cow::Borrowed)
}

fn method(request: &RequestSpan) -> Option<&'static str> {
    METHODS.into_iter().find(|known| known.as_bytes() == request.method)
}

/// What the request's span and those of its attempts say alike.
fn common(request: &RequestSpan) -> Vec<KeyValue> {
    let method = method(request);
    let mut attributes = Vec::with_capacity(24);
    let mut add = |key: &'static str, value: Value| attributes.push(KeyValue::new(key, value));
    add("http.request.method", method.unwrap_or("_OTHER").into());
    if method.is_none() {
        add("http.request.method_original", text(&request.method, 64).into());
    }
    add("url.scheme", "http".into());
    add("network.protocol.name", "http".into());
    add("network.protocol.version", request.protocol_version.into());
    add("server.address", server(request).into());
    add("server.port", i64::from(request.destination_port).into());
    attributes
}

/// As in `orders.shop`, whatever the caller has written in `Host`.
fn server(request: &RequestSpan) -> String {
    format!("{}.{}", request.destination_service, request.destination_namespace)
}

/// What only the request's own span says.
fn describe(request: &RequestSpan, span: &mut SpanData) {
    let mut add = |key: &'static str, value: Value| span.attributes.push(KeyValue::new(key, value));
    add("url.path", text(&request.path, MAX_PATH).into());
    add("sluice.source.namespace", request.source_namespace.to_string().into());
    add("sluice.source.pod", request.source_pod.to_string().into());
    add("http.request.body.size", size(request.request_bytes));
    add("http.response.body.size", size(request.response_bytes));
    if let Some(tag) = &request.tag {
        add("sluice.tag", tag.clone().into());
    }
    if let Some(source) = request.tag_source {
        add("sluice.tag.source", source.into());
    }
    if let Some(outcome) = request.tag_outcome {
        add("sluice.tag.outcome", outcome.into());
    }
    if !request.attempts.is_empty() {
        add("sluice.lane", request.lane.clone().unwrap_or_else(|| "baseline".to_owned()).into());
    }
    if request.retries > 0 {
        add("sluice.retries", i64::from(request.retries).into());
    }
    if let Some(rule) = &request.rule {
        add("sluice.rule", rule.to_string().into());
    }
    if let Some(policy) = &request.policy {
        add("sluice.policy", policy.to_string().into());
    }
    if let Some(code) = request.grpc_status {
        add("rpc.system.name", "grpc".into());
        add("rpc.response.status_code", grpc_name(code).into());
    }
    if request.status != 0 {
        add("http.response.status_code", i64::from(request.status).into());
    }
    if let Some(reason) = request.reason {
        add("sluice.reason", reason.code().into());
        add("error.type", reason.code().into());
        span.status = Status::error(reason.message());
    } else if request.status >= 500 {
        // Of a server span only 5xx is an error: 4xx is the caller's.
        add("error.type", request.status.to_string().into());
        span.status = Status::error("");
    } else if let Some(code) = request.grpc_status.filter(|code| GRPC_SERVER_ERRORS.contains(code)) {
        add("error.type", grpc_name(code).into());
        span.status = Status::error("");
    }
}

fn child(
    request: &RequestSpan,
    attempt: &AttemptSpan,
    index: usize,
    scope: &InstrumentationScope,
) -> SpanData {
    let mut attributes = common(request);
    let mut add = |key: &'static str, value: Value| attributes.push(KeyValue::new(key, value));
    add("network.peer.address", attempt.endpoint.ip().to_string().into());
    add("network.peer.port", i64::from(attempt.endpoint.port()).into());
    if let Some(pod) = &attempt.pod {
        add("sluice.endpoint.pod", pod.to_string().into());
    }
    if index > 0 {
        add("http.request.resend_count", (index as i64).into());
    }
    if attempt.status != 0 {
        add("http.response.status_code", i64::from(attempt.status).into());
    }
    add("url.full", full_url(request).into());
    if let Some(code) = attempt.grpc_status {
        add("rpc.system.name", "grpc".into());
        add("rpc.response.status_code", grpc_name(code).into());
    }
    // Of a client span also 4xx is an error, and every gRPC status but OK.
    let error = attempt.error.map(Cow::Borrowed);
    let error = error.or_else(|| (attempt.status >= 400).then(|| attempt.status.to_string().into()));
    let error =
        error.or_else(|| attempt.grpc_status.filter(|code| *code != 0).map(|code| grpc_name(code).into()));
    if let Some(error) = &error {
        add("error.type", error.to_string().into());
    }
    SpanData {
        span_context: context(request, attempt.span.get()),
        parent_span_id: SpanId::from(request.traced.span.get()),
        parent_span_is_remote: false,
        span_kind: SpanKind::Client,
        name: name(request),
        start_time: attempt.start,
        end_time: attempt.end,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        // What it was is in `error.type`.
        status: error.map_or(Status::Unset, |_| Status::error("")),
        instrumentation_scope: scope.clone(),
    }
}

/// Without the query, as everywhere.
fn full_url(request: &RequestSpan) -> String {
    let path = text(&request.path, MAX_PATH);
    format!("http://{}:{}{path}", server(request), request.destination_port)
}

/// Of a server span only these are errors: the others are the caller's.
/// <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>
const GRPC_SERVER_ERRORS: [u8; 6] = [2, 4, 12, 13, 14, 15];

fn size(bytes: u64) -> Value {
    i64::try_from(bytes).unwrap_or(i64::MAX).into()
}

/// Bytes of a caller as text, of bounded length.
fn text(bytes: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::observe::{
        reason::Reason,
        trace::{
            Traced,
            context::{self, Parent},
        },
    };

    pub(in crate::observe::trace) fn request(traced: Traced) -> RequestSpan {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        RequestSpan {
            traced,
            start,
            end: start + Duration::from_millis(5),
            protocol_version: "1.1",
            method: b"GET".to_vec(),
            path: b"/orders/7".to_vec(),
            source_namespace: "shop".into(),
            source_pod: "gateway-0".into(),
            destination_namespace: "shop".into(),
            destination_service: "orders".into(),
            destination_port: 8080,
            tag: Some("gray".to_owned()),
            tag_source: Some("header"),
            lane: Some("gray".to_owned()),
            tag_outcome: Some("routed"),
            status: 200,
            grpc_status: None,
            reason: None,
            rule: None,
            policy: None,
            retries: 0,
            request_bytes: 0,
            response_bytes: 12,
            attempts: smallvec::smallvec![AttemptSpan {
                span: context::SpanId::new(9).unwrap(),
                start,
                end: start + Duration::from_millis(4),
                endpoint: "10.0.0.7:80".parse().unwrap(),
                pod: Some("orders-gray".into()),
                status: 200,
                grpc_status: None,
                error: None,
            }],
        }
    }

    fn traced() -> Traced {
        let trace = context::TraceId::new(1 << 64 | 2).unwrap();
        let sender = context::SpanId::new(3).unwrap();
        let parent = Parent { trace, span: sender, sampled: Some(true), multi: false };
        Traced { trace, span: context::SpanId::new(4).unwrap(), parent: Some(parent) }
    }

    fn attribute(span: &SpanData, key: &str) -> Option<String> {
        span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
    }

    #[test]
    fn a_request_is_a_server_and_its_attempts_are_clients_below_it() {
        let spans = spans(&request(traced()), &InstrumentationScope::default());
        let [own, attempt] = &spans[..] else { panic!("{} spans", spans.len()) };
        assert_eq!((own.span_kind.clone(), attempt.span_kind.clone()), (SpanKind::Server, SpanKind::Client));
        assert_eq!(own.parent_span_id, SpanId::from(3));
        assert!(own.parent_span_is_remote);
        assert_eq!(attempt.parent_span_id, own.span_context.span_id());
        assert_eq!(attempt.span_context.trace_id(), own.span_context.trace_id());
        assert_eq!(own.name, "GET");
        for (span, key, value) in [
            (own, "server.address", "orders.shop"),
            (own, "server.port", "8080"),
            (own, "url.path", "/orders/7"),
            (own, "http.response.status_code", "200"),
            (own, "sluice.tag", "gray"),
            (own, "sluice.lane", "gray"),
            (own, "sluice.tag.outcome", "routed"),
            (attempt, "network.peer.address", "10.0.0.7"),
            (attempt, "sluice.endpoint.pod", "orders-gray"),
            (attempt, "url.full", "http://orders.shop:8080/orders/7"),
        ] {
            assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(attribute(attempt, "http.request.resend_count"), None);
        assert_eq!(own.status, Status::Unset);
    }

    #[test]
    fn failures_say_what_failed() {
        let mut request = request(Traced { parent: None, ..traced() });
        request.status = 504;
        request.reason = Some(Reason::Timeout);
        request.attempts[0].status = 0;
        request.attempts[0].error = Some("timeout");
        request.method = b"WHAT".to_vec();
        let spans = spans(&request, &InstrumentationScope::default());
        assert_eq!(spans[0].parent_span_id, SpanId::INVALID);
        assert_eq!(spans[0].name, "HTTP");
        assert_eq!(attribute(&spans[0], "http.request.method_original").as_deref(), Some("WHAT"));
        for span in &spans {
            assert_eq!(attribute(span, "error.type").as_deref(), Some("timeout"));
            assert!(matches!(span.status, Status::Error { .. }));
        }
        assert_eq!(attribute(&spans[0], "sluice.reason").as_deref(), Some("timeout"));
    }

    #[test]
    fn grpc_has_errors_of_its_own() {
        for (code, name, server_fails) in
            [(0, "OK", false), (5, "NOT_FOUND", false), (14, "UNAVAILABLE", true)]
        {
            let mut request = request(traced());
            request.grpc_status = Some(code);
            request.attempts[0].grpc_status = Some(code);
            let spans = spans(&request, &InstrumentationScope::default());
            for (span, fails) in spans.iter().zip([server_fails, code != 0]) {
                assert_eq!(attribute(span, "rpc.system.name").as_deref(), Some("grpc"));
                assert_eq!(attribute(span, "rpc.response.status_code").as_deref(), Some(name));
                assert_eq!(attribute(span, "error.type").as_deref(), fails.then_some(name));
                assert_eq!(span.status != Status::Unset, fails, "{name}");
            }
        }
    }

    #[test]
    fn what_a_caller_sent_is_bounded() {
        let mut request = request(traced());
        request.path = vec![0xff; 10_000];
        let spans = spans(&request, &InstrumentationScope::default());
        assert!(attribute(&spans[0], "url.path").is_some_and(|path| path.chars().count() <= MAX_PATH));
    }
}
