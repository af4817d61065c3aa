//! Writing answers that Sluice makes up, or ends, as HTTP/2.

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_LENGTH};

use crate::{
    observe::reason::Reason,
    proxy::answer::{MadeUp, put_grpc_status},
};

/// Answers in the place of an endpoint.
pub(super) fn send(respond: &mut SendResponse<Bytes>, answer: &MadeUp) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.clone_from(&answer.headers);
    if let Some(length) = answer.length.filter(|_| answer.status != 204 && answer.status != 304) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let no_body = answer.body.is_empty();
    let mut stream = respond.send_response(response, no_body)?;
    if no_body {
        return Ok(());
    }
    stream.send_data(answer.body.clone(), answer.trailers.is_none())?;
    match &answer.trailers {
        Some(trailers) => stream.send_trailers(trailers.clone()),
        None => Ok(()),
    }
}

/// Ends a gRPC answer that has begun: its client sees what it would have seen of a lost connection.
pub(super) fn break_off_grpc(stream: &mut SendStream<Bytes>, reason: Reason) -> Result<(), h2::Error> {
    let mut trailers = HeaderMap::with_capacity(3);
    put_grpc_status(&mut trailers, reason, reason.message());
    stream.send_trailers(trailers)
}
