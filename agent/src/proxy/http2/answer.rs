//! Answers that Sluice makes up, as HTTP/2 (DESIGN 6.6): an HTTP status and a JSON body, or for gRPC a status in
//! trailers, because that is where its clients look.

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, SERVER},
};

use crate::observe::reason::{REASON_HEADER, Reason};

/// What the caller has to be answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    /// `HEAD`: no body.
    Head,
    Grpc,
}

impl Kind {
    pub(super) fn of(method: &Method, headers: &HeaderMap) -> Self {
        let media_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        // `application/grpc`, `application/grpc+proto`, `application/grpc;...`, but not `application/grpc-web`.
        match media_type.strip_prefix(b"application/grpc") {
            Some([] | [b'+' | b';' | b' ', ..]) => Self::Grpc,
            _ if method == Method::HEAD => Self::Head,
            _ => Self::Http,
        }
    }

    /// The status that the caller sees.
    pub(super) fn status(self, reason: Reason) -> u16 {
        if self == Self::Grpc { 200 } else { reason.status() }
    }
}

/// Answers in the place of an endpoint.
pub(super) fn send(respond: &mut SendResponse<Bytes>, kind: Kind, reason: Reason) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(kind.status(reason)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("sluice"));
    if kind == Kind::Grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        put_grpc_status(headers, reason);
        return respond.send_response(response, true).map(drop);
    }
    let body = reason.body();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.code()));
    let head_only = kind == Kind::Head;
    let mut stream = respond.send_response(response, head_only)?;
    if head_only { Ok(()) } else { stream.send_data(body.into(), true) }
}

/// Ends a gRPC answer that has begun: its client sees what it would have seen of a lost connection.
pub(super) fn break_off_grpc(stream: &mut SendStream<Bytes>, reason: Reason) -> Result<(), h2::Error> {
    let mut trailers = HeaderMap::with_capacity(3);
    put_grpc_status(&mut trailers, reason);
    stream.send_trailers(trailers)
}

fn put_grpc_status(headers: &mut HeaderMap, reason: Reason) {
    headers.insert("grpc-status", HeaderValue::from(u16::from(reason.grpc_status())));
    // Plain ASCII, as `Reason` promises: nothing to be percent-encoded.
    headers.insert("grpc-message", HeaderValue::from_static(reason.message()));
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.code()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_media_type() {
        for (media_type, kind) in [
            ("application/grpc", Kind::Grpc),
            ("application/grpc+proto", Kind::Grpc),
            ("application/grpc;charset=utf-8", Kind::Grpc),
            ("application/grpc-web", Kind::Http),
            ("application/json", Kind::Http),
            ("", Kind::Http),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
            assert_eq!(Kind::of(&Method::POST, &headers), kind, "{media_type:?}");
        }
        assert_eq!(Kind::of(&Method::HEAD, &HeaderMap::new()), Kind::Head);
        assert_eq!(Kind::of(&Method::GET, &HeaderMap::new()), Kind::Http);
    }
}
