use std::time::Duration;

use super::*;
use crate::govern::policy::{FallbackAction, StaleBounds};

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> StaticAnswer {
    let header = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    StaticAnswer {
        status,
        headers: headers.iter().map(header).collect(),
        body: Bytes::from_static(body.as_bytes()),
    }
}

#[test]
fn the_fallbacks_that_name_the_failure_are_tried_in_their_order() {
    let fallback = |name: &str, on: &[FallbackOn], action| {
        Arc::new(Fallback { name: name.into(), on: on.to_vec(), action })
    };
    let bounds = StaleBounds { max_age: Duration::from_secs(60), max_bytes: 1 };
    let fallbacks = [
        fallback(
            "last",
            &[FallbackOn::Timeout, FallbackOn::ServerError],
            FallbackAction::Stale(bounds.into()),
        ),
        fallback("busy", &[FallbackOn::LimitExceeded], FallbackAction::Static(answer(200, &[], "later"))),
        fallback(
            "empty",
            &[FallbackOn::CircuitOpen, FallbackOn::Timeout],
            FallbackAction::Static(answer(200, &[], "[]")),
        ),
    ];
    for (failure, names) in [
        (FallbackOn::Timeout, &["last", "empty"][..]),
        (FallbackOn::ServerError, &["last"]),
        (FallbackOn::LimitExceeded, &["busy"]),
        (FallbackOn::CircuitOpen, &["empty"]),
        (FallbackOn::NoEndpoint, &[]),
        (FallbackOn::ConnectFailure, &[]),
    ] {
        let found: Vec<_> = candidates(&fallbacks, failure).map(|fallback| &*fallback.name).collect();
        assert_eq!(found, names, "{failure:?}");
    }
}

#[test]
fn every_error_has_a_name_that_fallbacks_know() {
    for (kind, on) in [
        (ErrorKind::Status(500), FallbackOn::ServerError),
        (ErrorKind::Grpc(14), FallbackOn::ServerError),
        (ErrorKind::Protocol, FallbackOn::ServerError),
        (ErrorKind::Connect, FallbackOn::ConnectFailure),
        (ErrorKind::Reset, FallbackOn::ConnectFailure),
        (ErrorKind::Timeout, FallbackOn::Timeout),
    ] {
        assert_eq!(FallbackOn::of_outcome(Outcome::Error(kind)), Some(on), "{kind:?}");
    }
    assert_eq!(FallbackOn::of_outcome(Outcome::Success), None);
}

#[test]
fn a_grpc_caller_gets_the_status_that_its_client_would_make_of_the_answer() {
    for (status, grpc) in [
        (200, 2),
        (204, 2),
        (302, 2),
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (500, 2),
        (502, 14),
        (503, 14),
        (504, 14),
    ] {
        let answer = for_grpc("spare", &answer(status, &[("x-a", "b")], "{}"));
        assert_eq!((answer.status, answer.body), (grpc, None), "{status}");
        assert_eq!(answer.message, "answered by the fallback spare");
        assert_eq!(answer.headers, [(HeaderName::from_static("x-a"), HeaderValue::from_static("b"))]);
    }
}

#[test]
fn a_grpc_status_in_the_answer_counts() {
    let text = [("content-type", "text/plain"), ("grpc-status", "8"), ("grpc-message", "come%20back")];
    let told = for_grpc("spare", &answer(200, &text, "later"));
    let expected =
        GrpcAnswer { status: 8, message: "come%20back".to_owned(), body: None, headers: Vec::new() };
    assert_eq!(told, expected);
    // One that is none is as good as missing.
    assert_eq!(for_grpc("spare", &answer(503, &[("grpc-status", "UNAVAILABLE")], "")).status, 14);
}

#[test]
fn ok_comes_with_a_message() {
    let empty = for_grpc("none", &answer(200, &[("grpc-status", "0")], ""));
    assert_eq!((empty.status, empty.message.as_str()), (0, ""));
    assert_eq!(empty.body.as_deref(), Some(&[0, 0, 0, 0, 0][..]), "all fields at their defaults");
    let some = for_grpc("some", &answer(503, &[("grpc-status", "0")], "\n\x02hi"));
    assert_eq!(some.body.as_deref(), Some(&b"\0\0\0\0\x04\n\x02hi"[..]));
}

#[test]
fn a_name_of_any_kind_fits_into_a_message() {
    let answer = for_grpc("100 % größer", &answer(503, &[], ""));
    assert_eq!(answer.message, "answered by the fallback 100 %25 gr%C3%B6%C3%9Fer");
}
