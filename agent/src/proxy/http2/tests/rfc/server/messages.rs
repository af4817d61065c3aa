//! What requests have to be (RFC 9113, section 8), and their compression (RFC 7541).

use super::{super::Must::*, *};

/// A request with other fields than those of GET.
fn lines(lines: frames::Lines<'_>) -> Vec<u8> {
    frames::headers(1, true, lines)
}

/// GET with further fields.
fn with(more: frames::Lines<'_>) -> Vec<u8> {
    lines(&[&frames::get("/")[..], more].concat())
}

/// GET without one of its pseudo fields.
fn without(name: &str) -> Vec<u8> {
    let mut fields = frames::get("/");
    fields.retain(|field| field.0 != name);
    lines(&fields)
}

pub(super) fn rows() -> Vec<Row> {
    let get = frames::block(&frames::get("/"));
    let join = |parts: &[Vec<u8>]| parts.concat();
    vec![
        (
            "8.1",
            "a second head that does not end the stream",
            join(&[open(), head(4, 1, &[("a", "b")])]),
            Malformed,
        ),
        (
            "8.1",
            "trailers",
            join(&[
                frames::headers(1, false, &frames::post("/count")),
                frames::data(1, false, b"x"),
                head(5, 1, &[("a", "b")]),
            ]),
            Answer(200),
        ),
        ("8.1", "a pseudo field in trailers", join(&[open(), head(5, 1, &[(":path", "/")])]), Malformed),
        (
            "8.1.1",
            "less body than content-length",
            join(&[
                frames::headers(
                    1,
                    false,
                    &[&frames::post("/count")[..], &[("content-length", "5")]].concat(),
                ),
                frames::data(1, true, b"four"),
            ]),
            Malformed,
        ),
        (
            "8.1.1",
            "more body than content-length",
            join(&[
                frames::headers(
                    1,
                    false,
                    &[&frames::post("/count")[..], &[("content-length", "5")]].concat(),
                ),
                frames::data(1, true, b"sixsix"),
            ]),
            Malformed,
        ),
        ("8.1.1", "content-length and no body", with(&[("content-length", "5")]), Malformed),
        ("8.1.1", "content-length of 0 and no body", with(&[("content-length", "0")]), Answer(200)),
        ("8.1.1", "two lengths", with(&[("content-length", "0"), ("content-length", "1")]), Malformed),
        ("8.1.1", "a length that is none", with(&[("content-length", "+0")]), Malformed),
        ("8.2", "a name in upper case", with(&[("X-Upper", "a")]), Malformed),
        ("8.2.1", "no name", with(&[("", "a")]), Malformed),
        ("8.2.1", "a space in a name", with(&[("x a", "b")]), Malformed),
        ("8.2.1", "a colon in a name", with(&[("x:a", "b")]), Malformed),
        ("8.2.1", "a control character in a name", with(&[("x\u{1}", "b")]), Malformed),
        ("8.2.1", "a name that is not ASCII", with(&[("x-é", "b")]), Malformed),
        ("8.2.1", "NUL in a value", with(&[("x-a", "b\0c")]), Malformed),
        ("8.2.1", "CR in a value", with(&[("x-a", "b\rc")]), Malformed),
        ("8.2.1", "LF in a value", with(&[("x-a", "b\nc")]), Malformed),
        // It is malformed to the letter. Nothing depends on it, and what an endpoint makes of it is its own matter, as without
        // a proxy: nghttp2 refuses such a request, gRPC does not.
        ("8.2.1", "white space around a value", with(&[("x-a", " b\t")]), Answer(200)),
        ("8.2.1", "DEL in a value", with(&[("x-a", "b\x7fc")]), Malformed),
        ("8.2.1", "a value that is not ASCII", with(&[("x-a", "é")]), Answer(200)),
        ("8.2.1", "an empty value", with(&[("x-a", "")]), Answer(200)),
        ("8.2.2", "connection", with(&[("connection", "x-a")]), Malformed),
        ("8.2.2", "proxy-connection", with(&[("proxy-connection", "keep-alive")]), Malformed),
        ("8.2.2", "keep-alive", with(&[("keep-alive", "timeout=5")]), Malformed),
        ("8.2.2", "transfer-encoding", with(&[("transfer-encoding", "chunked")]), Malformed),
        ("8.2.2", "upgrade", with(&[("upgrade", "websocket")]), Malformed),
        ("8.2.2", "te of more than trailers", with(&[("te", "gzip, trailers")]), Malformed),
        ("8.2.2", "te of trailers", with(&[("te", "trailers")]), Answer(200)),
        (
            "8.3",
            "an unknown pseudo field",
            lines(&[&frames::get("/")[..], &[(":unknown", "a")]].concat()),
            Malformed,
        ),
        (
            "8.3",
            "a pseudo field of responses",
            lines(&[&frames::get("/")[..], &[(":status", "200")]].concat()),
            Malformed,
        ),
        (
            "8.3",
            "a pseudo field behind others",
            lines(&[&[("x-a", "b")][..], &frames::get("/")].concat()),
            Malformed,
        ),
        ("8.3", ":path twice", lines(&[&frames::get("/")[..], &[(":path", "/")]].concat()), Malformed),
        ("8.3", ":method twice", lines(&[&frames::get("/")[..], &[(":method", "GET")]].concat()), Malformed),
        ("8.3", ":scheme twice", lines(&[&frames::get("/")[..], &[(":scheme", "http")]].concat()), Malformed),
        (
            "8.3",
            ":authority twice",
            lines(&[&frames::get("/")[..], &[(":authority", "b")]].concat()),
            Malformed,
        ),
        ("8.3.1", "no :method", without(":method"), Malformed),
        ("8.3.1", "no :scheme", without(":scheme"), Malformed),
        ("8.3.1", "no :path", without(":path"), Malformed),
        (
            "8.3.1",
            "an empty :path",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")]),
            Malformed,
        ),
        (
            "8.3.1",
            ":path without a slash",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "a/b")]),
            Malformed,
        ),
        (
            "8.3.1",
            ":path that is a whole URI",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "http://a/")]),
            Malformed,
        ),
        (
            "8.3.1",
            "no method in :method",
            lines(&[(":method", "G T"), (":scheme", "http"), (":path", "/")]),
            Malformed,
        ),
        (
            "8.3.1",
            "an empty :method",
            lines(&[(":method", ""), (":scheme", "http"), (":path", "/")]),
            Malformed,
        ),
        (
            "8.3.1",
            "* for OPTIONS",
            lines(&[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")]),
            Answer(200),
        ),
        (
            "8.3.1",
            "* for another method",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "*")]),
            Malformed,
        ),
        (
            "8.3.1",
            ":path with a scheme alone",
            lines(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "http:/a")]),
            Malformed,
        ),
        (
            "8.3.1",
            "host in the place of :authority",
            lines(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a")]),
            Answer(200),
        ),
        (
            "8.5",
            "CONNECT with :path",
            lines(&[&frames::get("/")[1..], &[(":method", "CONNECT")]].concat()),
            Malformed,
        ),
        ("8.5", "CONNECT without :authority", lines(&[(":method", "CONNECT")]), Malformed),
        (
            "RFC 8441, 4",
            ":protocol without CONNECT",
            lines(&[&frames::get("/")[..], &[(":protocol", "websocket")]].concat()),
            Malformed,
        ),
        (
            "RFC 8441, 4",
            "extended CONNECT without :path",
            lines(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "a"),
            ]),
            Malformed,
        ),
        (
            "RFC 8441, 4",
            "extended CONNECT without :scheme",
            lines(&[(":method", "CONNECT"), (":protocol", "websocket"), (":path", "/"), (":authority", "a")]),
            Malformed,
        ),
        (
            "RFC 8441, 4",
            ":protocol twice",
            lines(&[(":method", "CONNECT"), (":protocol", "a"), (":protocol", "a")]),
            Malformed,
        ),
        ("RFC 7541, 6.1", "the index 0", raw(&[0x80]), End(COMPRESSION)),
        (
            "RFC 7541, 4.2",
            "two table sizes before the fields",
            raw(&[&[0x20, 0x3f, 0xe1, 0x1f][..], &get].concat()),
            Answer(200),
        ),
        ("RFC 7541, 2.3.3", "an index behind both tables", raw(&[0xbe]), End(COMPRESSION)),
        ("RFC 7541, 4.2", "a table size behind a field", raw(&[0x82, 0x20]), End(COMPRESSION)),
        ("RFC 7541, 4.2", "a table above the allowed size", raw(&[0x3f, 0xe2, 0x1f]), End(COMPRESSION)),
        (
            "RFC 7541, 5.1",
            "a number without end",
            raw(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            End(COMPRESSION),
        ),
        (
            "RFC 7541, 5.2",
            "padding of more than seven bits",
            raw(&[0x00, 0x82, 0xff, 0xff, 0x00]),
            End(COMPRESSION),
        ),
        ("RFC 7541, 5.2", "padding of zeros", raw(&[0x00, 0x81, 0x00, 0x00]), End(COMPRESSION)),
        (
            "RFC 7541, 5.2",
            "the end of a string within it",
            raw(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xfc, 0x00]),
            End(COMPRESSION),
        ),
    ]
}
