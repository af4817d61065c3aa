//! Fuzz targets about HTTP/1: what is read means one thing, and what is forwarded means the same to the next reader.

use bytes::BytesMut;

use super::{
    body::Body,
    head::{HeadEnd, LineEnds, MAX_RESPONSE_HEADERS, with_line_ends},
    request::{self, Method, Sources},
    response::{self, Caller},
    view::View,
};
use crate::{
    fuzzing::pieces,
    govern::{lane::TagNames, request::Request as _},
};

/// What the tag and this hop's own lines add at most.
const ADDED: usize = 256;

/// The head at the front of the input, the same however its bytes come.
fn head(input: &[u8], allow_bare: bool) -> Option<&[u8]> {
    let whole = HeadEnd::default().find(input, allow_bare);
    let (mut end, mut came, mut verdict) = (HeadEnd::default(), 0, Ok(None));
    for piece in pieces(input) {
        came += piece.len();
        verdict = end.find(&input[..came], allow_bare);
        if verdict != Ok(None) {
            break;
        }
    }
    assert_eq!(verdict, whole);
    if let Ok(Some(length)) = whole {
        assert_eq!(end.line_ends(), LineEnds::of(&input[..length]));
    }
    whole.ok().flatten().map(|length| &input[..length])
}

/// A request that is forwarded is one head; it reads as it was read here, and is forwarded as it is the next time.
pub(crate) fn http1_request(input: &[u8]) {
    let Some(head) = head(input, false) else { return };
    let names = TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).expect("a name that is allowed");
    for (strip, caller) in [(false, None), (true, None), (false, Some("blue"))] {
        let caller = caller.map(|tag: &str| tag.parse().expect("a tag"));
        let mut out = BytesMut::new();
        let Ok(first) = request::read(head, &names, Sources::of(strip, caller.as_ref()), None, &mut out)
        else {
            assert!(out.is_empty(), "nothing is written of what is rejected");
            continue;
        };
        assert!(out.len() <= head.len() + ADDED);
        let view = View(&out);
        let is_path = view.path().starts_with(b"/") || view.method() == b"CONNECT";
        assert!(is_path || view.path() == b"*" && view.method() == b"OPTIONS", "rules see a path");
        assert_eq!(HeadEnd::default().find(&out, false), Ok(Some(out.len())), "one head");
        let mut again = BytesMut::new();
        let second = request::read(&out, &names, Sources::of(false, caller.as_ref()), None, &mut again)
            .expect("what is forwarded is no worse than what came");
        assert_eq!(
            (first.method, first.http10, first.body, first.expects, first.upgrade),
            (second.method, second.http10, second.body, second.expects, second.upgrade)
        );
        assert_eq!(first.tagging.tag, second.tagging.tag);
        // The order of the lines that this hop adds depends on which there are.
        let lines = |head: &[u8]| {
            let mut lines: Vec<_> = head.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&again), lines(&out));
    }
}

/// The same for responses, to each kind of client.
pub(crate) fn http1_response(input: &[u8]) {
    let Some(head) = head(input, true) else { return };
    let ends = LineEnds::of(head);
    assert_eq!(ends == LineEnds::Odd, with_line_ends(head).is_some(), "lines that are to be written anew");
    for method in [Method::Get, Method::Head, Method::Connect] {
        for flags in 0..16_u8 {
            let [http10, upgrade, keep_alive, ends_with_endpoint] =
                [1, 2, 4, 8].map(|flag| flags & flag != 0);
            let caller = Caller { method, http10, upgrade, keep_alive, ends_with_endpoint };
            let mut out = BytesMut::new();
            let Ok((first, keep)) = response::read(head, ends, caller, &mut out) else { continue };
            assert!(out.len() <= head.len() + MAX_RESPONSE_HEADERS + ADDED);
            assert!(out.starts_with(b"HTTP/1.1 "));
            assert_eq!(HeadEnd::default().find(&out, false), Ok(Some(out.len())), "one head");
            assert!(!keep || keep_alive && first.body != Body::UntilClose, "where it ends must be clear");
            let mut again = BytesMut::new();
            let (second, _) = response::read(&out, LineEnds::of(&out), caller, &mut again)
                .expect("what is forwarded can be read");
            assert_eq!((first.status, first.body, first.tunnel), (second.status, second.body, second.tunnel));
        }
    }
}

/// A body ends at the same byte and means the same however it comes; and what is put into chunks comes out of them.
pub(crate) fn http1_body(input: &[u8]) {
    for lenient in [false, true] {
        let mut whole = Body::chunked(lenient);
        let taken = whole.take(input);
        let (mut body, mut came) = (Body::chunked(lenient), Ok(0));
        for piece in pieces(input) {
            match (body.take(piece), &mut came) {
                (Ok(more), Ok(sum)) => *sum += more,
                (Err(bad), _) => came = Err(bad),
                (_, Err(_)) => {}
            }
            if came.is_err() || body.is_done() {
                break;
            }
        }
        assert_eq!(came, taken);
        if taken.is_ok() {
            assert_eq!(body, whole);
            assert!(body.is_done() || taken == Ok(input.len()), "all is taken until the end");
        }
        let decode = |pieces: &[&[u8]]| {
            let (mut body, mut text) = (Body::chunked(lenient), Vec::new());
            let mut decoded = Ok(());
            for piece in pieces {
                decoded = body.decode(piece, |data| text.extend_from_slice(data));
                if decoded.is_err() {
                    break;
                }
            }
            (decoded, text)
        };
        let (decoded, text) = decode(&[input]);
        assert_eq!(decode(&pieces(input).collect::<Vec<_>>()), (decoded, text.clone()));
        assert_eq!(decoded.err(), taken.err());
        assert!(text.len() <= input.len());
    }

    let mut chunked = Vec::new();
    for piece in pieces(input) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let coded = chunked.len();
    chunked.extend_from_slice(input);
    assert_eq!(Body::chunked(false).take(&chunked), Ok(coded), "not a byte of what follows");
    let mut text = Vec::new();
    Body::chunked(false).decode(&chunked, |data| text.extend_from_slice(data)).expect("well formed");
    assert_eq!(text, input);

    let length = input.first().map_or(0, |first| u64::from(*first));
    let mut body = Body::Length(length);
    let taken: usize = pieces(input).map(|piece| body.take(piece).unwrap_or_default()).sum();
    assert_eq!(taken, input.len().min(length as usize));
    assert_eq!(body.is_done(), taken as u64 == length);
}
