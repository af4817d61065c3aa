//! Answers that Sluice makes up, as HTTP/1 bytes (DESIGN 6.6). Whoever reads one can tell it from the service's own.

use bytes::BytesMut;

use crate::observe::reason::{REASON_HEADER, Reason};

/// Writes the answer for `reason`. `head_only`: to a HEAD request.
pub(crate) fn http1(reason: Reason, keep_alive: bool, head_only: bool, out: &mut BytesMut) {
    let body = reason.body();
    let connection = if keep_alive { "" } else { "connection: close\r\n" };
    let status = reason.status();
    let phrase =
        http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let head = format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{REASON_HEADER}: {}\r\nserver: sluice\r\n{connection}\r\n",
        body.len(),
        reason.code(),
    );
    out.extend_from_slice(head.as_bytes());
    if !head_only {
        out.extend_from_slice(body.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_makes_an_answer_that_parses() {
        for reason in Reason::ALL {
            let mut out = BytesMut::new();
            http1(reason, false, false, &mut out);
            let mut slots = [httparse::EMPTY_HEADER; 8];
            let mut parsed = httparse::Response::new(&mut slots);
            let head = parsed.parse(&out).unwrap().unwrap();
            assert_eq!(parsed.code, Some(reason.status()));
            let value =
                |name| parsed.headers.iter().find(|header| header.name == name).map(|header| header.value);
            assert_eq!(value(REASON_HEADER), Some(reason.code().as_bytes()));
            assert_eq!(value("content-length"), Some((out.len() - head).to_string().as_bytes()));
            assert_eq!(value("connection"), Some(&b"close"[..]));
            let body: serde_json::Value = serde_json::from_slice(&out[head..]).unwrap();
            assert_eq!(body["reason"], reason.code());
        }
    }
}
