//! An answer's head: read once and written for the caller in the same pass. Pure.
//!
//! Readers of answers are more lenient than readers of requests: an endpoint that worked without Sluice works with it,
//! unless two readers could disagree on where its answer ends.

use std::{cmp::Ordering, mem::MaybeUninit};

use bytes::BytesMut;
use smallvec::SmallVec;

use super::{
    body::Body,
    head::{Copier, LineEnds, MAX_HEADERS, MAX_RESPONSE_HEADERS, add, elements, is_plain, with_line_ends},
    request::{Method, length},
};
use crate::{
    govern::headers,
    observe::fault::{Fault, MessagePart},
};

/// What the rest of the way needs to know of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Body,
    /// The endpoint keeps its connection after this answer.
    pub(crate) reusable: bool,
    /// How long it says that it keeps an idle connection, in seconds (`Keep-Alive: timeout=5`).
    pub(crate) idle_seconds: Option<u32>,
    /// What follows is no longer HTTP: `101`, or `2xx` to CONNECT.
    pub(crate) tunnel: bool,
}

impl Response {
    /// An interim answer (`1xx`), which another one follows.
    pub(crate) fn is_interim(&self) -> bool {
        self.status < 200 && !self.tunnel
    }
}

/// Why the answer cannot be passed on.
fn fault(error: httparse::Error) -> Fault {
    let (part, what) = match error {
        httparse::Error::HeaderName => (MessagePart::Header, "a header name that is no token"),
        httparse::Error::HeaderValue => (MessagePart::Header, "a header value with a forbidden byte"),
        httparse::Error::NewLine => (MessagePart::Header, "a carriage return without a line feed"),
        httparse::Error::Status => (MessagePart::FirstLine, "a malformed status"),
        httparse::Error::Token => (MessagePart::FirstLine, "a forbidden byte in the status line"),
        httparse::Error::Version => (MessagePart::FirstLine, "a version other than HTTP/1.0 and HTTP/1.1"),
        httparse::Error::TooManyHeaders => (MessagePart::Size, "more than 1000 header lines"),
    };
    Fault::new(part, what)
}

/// The caller, as far as the head that is written for it depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) method: Method,
    pub(crate) http10: bool,
    /// It asked for an upgrade, so `101` is an answer it understands.
    pub(crate) upgrade: bool,
    /// Its connection could be kept after this answer.
    pub(crate) keep_alive: bool,
    /// Its connection ends with the endpoint's: its request is not yet complete, or it has called the application itself, at the
    /// endpoint.
    pub(crate) ends_with_endpoint: bool,
}

#[derive(Default)]
struct Lines<'h> {
    length: Option<u64>,
    /// `Content-Length` lines with the same value as the first.
    repeated: bool,
    codings: u32,
    chunked: bool,
    /// Chunked, but not once and last: where it ends depends on who reads it.
    unclear: bool,
    /// Lines that say no more than that it is chunked.
    chunked_alone: u32,
    close: bool,
    keep_alive: bool,
    idle_seconds: Option<u32>,
    /// There is a line `Upgrade`.
    upgrade: bool,
    /// What `Connection` names, sorted once all lines are seen.
    nominated: SmallVec<[&'h [u8]; 2]>,
}

/// Regardless of case.
fn compare(one: &[u8], other: &[u8]) -> Ordering {
    one.iter().map(u8::to_ascii_lowercase).cmp(other.iter().map(u8::to_ascii_lowercase))
}

/// Reads the answer in `head`, which ends with its empty line, and writes what the caller gets to `out`.
///
/// Returns the answer and whether the caller's connection is kept after it. `ends`: how the head's lines do.
pub(crate) fn read(
    head: &[u8],
    ends: LineEnds,
    caller: Caller,
    out: &mut BytesMut,
) -> Result<(Response, bool), Fault> {
    let whole = if ends == LineEnds::Odd { with_line_ends(head) } else { None };
    let head = whole.as_deref().unwrap_or(head);
    let mut config = httparse::ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut many = Vec::new();
    let mut parsed = httparse::Response::new(&mut []);
    let mut status = config.parse_response_with_uninit_headers(&mut parsed, head, &mut slots);
    if status == Err(httparse::Error::TooManyHeaders) {
        // Rare, so that the room for it is not on every response's way.
        many.resize_with(MAX_RESPONSE_HEADERS, MaybeUninit::uninit);
        parsed = httparse::Response::new(&mut []);
        status = config.parse_response_with_uninit_headers(&mut parsed, head, &mut many);
    }
    if status.map_err(fault)?.is_partial() {
        return Err(fault(httparse::Error::Status));
    }
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else {
        return Err(fault(httparse::Error::Status));
    };
    if code < 100 {
        return Err(Fault::new(MessagePart::FirstLine, "a status below 100"));
    }
    let http10 = version == 0;
    let headers: &[httparse::Header<'_>] = parsed.headers;
    let mut lines = Lines::default();
    for header in headers {
        lines.see(header)?;
    }
    lines.nominated.sort_unstable_by(|one, other| compare(one, other));

    let tunnel =
        (code == 101 && caller.upgrade) || (caller.method == Method::Connect && (200..300).contains(&code));
    if code == 101 && !tunnel {
        return Err(Fault::new(MessagePart::FirstLine, "a switch of protocols that nobody asked for"));
    }
    // Two that say the same are one, as clients take them.
    let chunked_twice = lines.chunked_alone > 1 && lines.chunked_alone == lines.codings;
    lines.unclear &= !chunked_twice;
    let bodiless = tunnel || code < 200 || code == 204;
    let body = if tunnel {
        Body::UntilClose
    } else if caller.method == Method::Head || code < 200 || code == 204 || code == 304 {
        Body::EMPTY
    } else if lines.codings > 0 {
        if lines.length.is_some() {
            return Err(Fault::new(MessagePart::Framing, "both Content-Length and Transfer-Encoding"));
        }
        if lines.unclear {
            return Err(Fault::new(MessagePart::Framing, "an ambiguous Transfer-Encoding"));
        }
        if lines.chunked { Body::chunked(true) } else { Body::UntilClose }
    } else {
        lines.length.map_or(Body::UntilClose, Body::Length)
    };
    let delimited = body != Body::UntilClose;
    let closes = lines.close || http10 && !lines.keep_alive;
    let response = Response {
        status: code,
        body,
        // A transfer coding is not known to HTTP/1.0, so whoever sent it is not to be trusted any further (RFC 9112, 6.1).
        reusable: delimited && !closes && (!http10 || lines.codings == 0),
        idle_seconds: lines.idle_seconds,
        tunnel,
    };
    // A caller that still sends to an endpoint that stops listening is to stop too.
    let keep = caller.keep_alive && delimited && !(caller.ends_with_endpoint && closes);

    // With 426 the endpoint says which protocol it asks for (RFC 9110, section 15.5.22), and only the caller can do something
    // about it.
    let requires_upgrade = code == 426 && lines.upgrade;
    let passes_upgrade = tunnel || requires_upgrade;

    // The status line is passed on with this hop's own version.
    out.reserve(head.len() + 64);
    let start = head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    out.extend_from_slice(b"HTTP/1.1");
    let mut copier = Copier::new(head, (start + b"HTTP/1.1".len()).min(head.len()), out);
    let mut length_seen = false;
    for header in headers {
        let name = header.name.as_bytes();
        let is_length = name.eq_ignore_ascii_case(b"content-length");
        let is_coding = name.eq_ignore_ascii_case(b"transfer-encoding");
        let again = (lines.repeated && is_length || chunked_twice && is_coding) && {
            std::mem::replace(&mut length_seen, true)
        };
        // What has no body must not speak of its length (RFC 9110, section 8.6; RFC 9112, section 6.1).
        let wrong = bodiless && (is_length || is_coding);
        if again || wrong || lines.is_for_this_hop(name, passes_upgrade) {
            copier.omit(name);
        } else if is_length && header.value.contains(&b',') {
            copier.rewrite(name, elements(header.value).next().unwrap_or_default());
        } else if (is_length || is_coding) && !is_plain(head, header) {
            copier.rewrite(name, header.value);
        } else if head.get(copier.position(name) + name.len()) != Some(&b':') {
            // White space before the colon, which some readers take for a part of the name (RFC 9112, section 5.1).
            copier.rewrite(name, header.value);
        }
    }
    let out = copier.finish();
    if response.status == 101 {
        add(out, b"connection", b"upgrade");
    } else if !response.is_interim() && !tunnel {
        let options: &[u8] = match (keep, caller.http10, requires_upgrade) {
            (false, _, false) => b"close",
            (false, _, true) => b"close, upgrade",
            (true, true, false) => b"keep-alive",
            (true, true, true) => b"keep-alive, upgrade",
            (true, false, true) => b"upgrade",
            (true, false, false) => b"",
        };
        if !options.is_empty() {
            add(out, b"connection", options);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok((response, keep))
}

impl<'h> Lines<'h> {
    fn see(&mut self, header: &httparse::Header<'h>) -> Result<(), Fault> {
        let (name, value) = (header.name, header.value);
        match name.len() {
            7 if name.eq_ignore_ascii_case("upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in elements(value) {
                    match option.len() {
                        5 if option.eq_ignore_ascii_case(b"close") => self.close = true,
                        7 if option.eq_ignore_ascii_case(b"upgrade") => {}
                        10 if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                        _ => self.nominated.push(option),
                    }
                }
            }
            10 if name.eq_ignore_ascii_case("keep-alive") => {
                self.idle_seconds = elements(value).find_map(|element| {
                    let seconds = element.strip_prefix(b"timeout=")?;
                    std::str::from_utf8(seconds).ok()?.parse().ok()
                });
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let first = elements(value).next().unwrap_or(value);
                let length = length(first)
                    .map_err(|_| Fault::new(MessagePart::Framing, "a Content-Length that is no length"))?;
                // A list of the same is what a list of lines is (RFC 9110, section 8.6).
                let differs = elements(value).any(|other| other != first)
                    || self.length.is_some_and(|before| before != length);
                if differs {
                    return Err(Fault::new(MessagePart::Framing, "two different Content-Length"));
                }
                self.repeated |= self.length.replace(length).is_some();
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                self.chunked_alone += u32::from(value.eq_ignore_ascii_case(b"chunked"));
                for coding in elements(value) {
                    self.codings += 1;
                    self.unclear |= self.chunked;
                    self.chunked = coding.eq_ignore_ascii_case(b"chunked");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn is_for_this_hop(&self, name: &[u8], passes_upgrade: bool) -> bool {
        let nominated = || self.nominated.binary_search_by(|nominated| compare(nominated, name)).is_ok();
        if headers::is_for_one_hop(name) {
            !(passes_upgrade && name.eq_ignore_ascii_case(b"upgrade"))
        } else {
            nominated() && headers::may_be_dropped(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller {
        method: Method::Get,
        http10: false,
        upgrade: false,
        keep_alive: true,
        ends_with_endpoint: false,
    };

    fn read_for(head: &str, caller: Caller) -> Result<(Response, bool, String), Fault> {
        let mut out = BytesMut::new();
        let (response, keep) = read(head.as_bytes(), LineEnds::of(head.as_bytes()), caller, &mut out)?;
        Ok((response, keep, String::from_utf8(out.to_vec()).unwrap()))
    }

    #[test]
    fn an_ordinary_answer_is_passed_on_byte_for_byte() {
        let head = "HTTP/1.1 200 Fine\r\ncontent-length: 5\r\nX-Any: 1\r\n\r\n";
        let (response, keep, out) = read_for(head, CALLER).unwrap();
        assert_eq!(out, head);
        assert!(keep && response.reusable);
        assert_eq!((response.status, response.body), (200, Body::Length(5)));
    }

    #[test]
    fn where_an_answer_ends() {
        let head_caller = Caller { method: Method::Head, ..CALLER };
        for (head, caller, body, reusable) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", head_caller, Body::EMPTY, true),
            ("HTTP/1.1 204 No\r\n\r\n", CALLER, Body::EMPTY, true),
            ("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", CALLER, Body::EMPTY, true),
            ("HTTP/1.1 103 Early\r\nLink: a\r\n\r\n", CALLER, Body::EMPTY, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CALLER, Body::chunked(true), true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                CALLER,
                Body::chunked(true),
                true,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", CALLER, Body::UntilClose, false),
            ("HTTP/1.1 200 OK\r\n\r\n", CALLER, Body::UntilClose, false),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
                CALLER,
                Body::Length(5),
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", CALLER, Body::Length(5), false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
                CALLER,
                Body::Length(5),
                true,
            ),
            ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", CALLER, Body::Length(5), true),
        ] {
            let (response, ..) = read_for(head, caller).unwrap();
            assert_eq!((response.body, response.reusable), (body, reusable), "{head:?}");
        }
    }

    #[test]
    fn the_callers_connection_is_this_hops_own_affair() {
        let closing = Caller { keep_alive: false, ..CALLER };
        let head = "HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nContent-Length: 0\r\nX-Hop: 1\r\nKeep-Alive: timeout=5, max=9\r\n\r\n";
        let (response, keep, out) = read_for(head, CALLER).unwrap();
        assert!(keep);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(response.idle_seconds, Some(5));
        // At the endpoint it ends with the application's.
        let bound = Caller { ends_with_endpoint: true, ..CALLER };
        for head in [head, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"] {
            let (_, keep, out) = read_for(head, bound).unwrap();
            assert!(!keep && out.ends_with("connection: close\r\n\r\n"), "{out}");
        }
        assert!(read_for("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", bound).unwrap().1);
        let (_, keep, out) = read_for("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", closing).unwrap();
        assert!(!keep);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nconnection: close\r\n\r\n");
        let old = Caller { http10: true, ..CALLER };
        let (_, _, out) = read_for("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", old).unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nconnection: keep-alive\r\n\r\n");
    }

    #[test]
    fn what_the_next_reader_could_misread_is_written_anew() {
        let odd = "HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length : 5\r\nB: 2\r\n\r\n";
        let (response, _, out) = read_for(odd, CALLER).unwrap();
        assert_eq!(response.body, Body::Length(5));
        assert_eq!(out, "HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 5\r\nB: 2\r\n\r\n");
        let (_, _, out) = read_for("HTTP/1.1 200 OK\nContent-Length: 5\n\n", CALLER).unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    }

    #[test]
    fn what_clients_accept_is_made_clear() {
        let twice =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let (response, keep, out) = read_for(twice, CALLER).unwrap();
        assert_eq!((response.body, keep), (Body::chunked(true), true));
        assert_eq!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\n\r\n");
        for odd in ["Transfer-Encoding:\tchunked \r\n", "Transfer-Encoding:chunked\t\r\n"] {
            let (_, _, out) = read_for(&format!("HTTP/1.1 200 OK\r\n{odd}\r\n"), CALLER).unwrap();
            assert_eq!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "{odd:?}");
        }
        let folded = "HTTP/1.1 200 OK\r\nX: a\r\n  b\r\n\tc\r\nContent-Length: 0\r\n\r\n";
        let (response, _, out) = read_for(folded, CALLER).unwrap();
        assert_eq!(response.body, Body::EMPTY);
        assert_eq!(out, "HTTP/1.1 200 OK\r\nX: a b c\r\nContent-Length: 0\r\n\r\n");
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let (response, _, out) =
                read_for(&format!("HTTP/1.1 204 No\r\n{framing}\r\n\r\n"), CALLER).unwrap();
            assert_eq!((response.body, out.as_str()), (Body::EMPTY, "HTTP/1.1 204 No\r\n\r\n"), "{framing}");
        }
    }

    #[test]
    fn a_caller_that_still_sends_learns_that_nobody_listens() {
        let sending = Caller { ends_with_endpoint: true, ..CALLER };
        let head = "HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(read_for(head, CALLER).unwrap().1);
        let (_, keep, out) = read_for(head, sending).unwrap();
        assert!(!keep && out.ends_with("connection: close\r\n\r\n"));
        assert!(read_for("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", sending).unwrap().1);
    }

    #[test]
    fn protocols_are_switched_only_for_who_asked() {
        let head = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        assert!(read_for(head, CALLER).is_err());
        let (response, _, out) = read_for(head, Caller { upgrade: true, ..CALLER }).unwrap();
        assert!(response.tunnel && !response.is_interim());
        assert_eq!(out, "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n");
        let connect = Caller { method: Method::Connect, ..CALLER };
        assert!(read_for("HTTP/1.1 200 OK\r\n\r\n", connect).unwrap().0.tunnel);
        assert!(!read_for("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", connect).unwrap().0.tunnel);
    }

    #[test]
    fn an_answer_that_asks_for_another_protocol_says_which() {
        let head = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0, HTTP/1.1\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n";
        let passed = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0, HTTP/1.1\r\nContent-Length: 0\r\nconnection: ";
        let (closing, old) = (Caller { keep_alive: false, ..CALLER }, Caller { http10: true, ..CALLER });
        for (caller, options) in
            [(CALLER, "upgrade"), (closing, "close, upgrade"), (old, "keep-alive, upgrade")]
        {
            let (response, keep, out) = read_for(head, caller).unwrap();
            assert!(!response.tunnel && response.reusable && keep == caller.keep_alive);
            assert_eq!(out, format!("{passed}{options}\r\n\r\n"));
        }
        // One that asks for none, and the offer of another status, which is about the endpoint's connection.
        let without = "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(read_for(without, CALLER).unwrap().2, without);
        let offer = "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(read_for(offer, CALLER).unwrap().2, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn an_answer_may_have_as_many_lines_as_clients_take() {
        let with = |lines: usize| {
            let more = (1..lines).map(|n| format!("x-{n}: {n}\r\n")).collect::<Vec<_>>().concat();
            format!("HTTP/1.1 200 OK\r\n{more}content-length: 5\r\n\r\n")
        };
        for lines in [MAX_HEADERS, MAX_HEADERS + 1, MAX_RESPONSE_HEADERS] {
            let head = with(lines);
            let (response, _, out) = read_for(&head, CALLER).unwrap();
            assert_eq!((response.body, out), (Body::Length(5), head), "{lines}");
        }
        let error = read_for(&with(MAX_RESPONSE_HEADERS + 1), CALLER).unwrap_err();
        assert_eq!(error.part, MessagePart::Size);
        assert_eq!(error.to_string(), "more than 1000 header lines");
    }

    #[test]
    fn whatever_connection_names_goes_no_further() {
        let names: Vec<String> = (0..300).map(|n| format!("X-{n}")).collect();
        let lines: Vec<_> = names.iter().map(|name| format!("{}: 1\r\n", name.to_lowercase())).collect();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}Connection: {}\r\nx-300: 1\r\n\r\n",
            lines.concat(),
            names.join(",")
        );
        let (_, _, out) = read_for(&head, CALLER).unwrap();
        assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-300: 1\r\n\r\n");
    }

    #[test]
    fn answers_without_a_clear_end_are_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: ,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\n X: folded\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(read_for(head, CALLER).is_err(), "{head:?}");
        }
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(read_for(twice, CALLER).unwrap().2, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        for listed in ["Content-Length: 5, 5\r\n", "Content-Length: 5\r\ncontent-length: 5,5\r\n"] {
            let (response, _, out) = read_for(&format!("HTTP/1.1 200 OK\r\n{listed}\r\n"), CALLER).unwrap();
            assert_eq!(response.body, Body::Length(5));
            assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "{listed:?}");
        }
    }
}
