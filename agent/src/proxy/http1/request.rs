//! A request's head: read once, refused if it could mean two things, and written for the endpoint in the same pass. Pure.
//!
//! What is forwarded is what came, byte for byte, without the lines that are meant for this hop only and with what
//! [`edit`] changes: the tag in both its places. The request line, `Host` and the order and case of headers are never touched.

use std::net::Ipv6Addr;

use bytes::BytesMut;
use http::header;
use smallvec::SmallVec;

use super::{
    body::Body,
    head::{MAX_HEADERS, elements, is_plain},
    outgoing::Outgoing,
    parse::{Parsed, as_text, parse},
};
use crate::proxy::{decisions::Ids, traced::Asking};
use crate::{
    clock::Nanos,
    govern::{
        edit::{self, Head},
        headers,
        lane::{Distrust, RequestTag, TagNames, TagScan, Tagging},
        tag::Tag,
    },
    observe::{
        fault::{Fault, MessagePart},
        trace::context::Scan,
    },
};

/// The methods that this hop treats in their own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Connect,
    /// Others that may be sent again, should a connection break before anything came back: PUT, DELETE, OPTIONS, TRACE
    /// (RFC 9110, section 9.2.2).
    Idempotent,
    Other,
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "CONNECT" => Self::Connect,
            "PUT" | "DELETE" | "OPTIONS" | "TRACE" => Self::Idempotent,
            _ => Self::Other,
        }
    }

    /// Doing it twice is the same as doing it once.
    pub(crate) fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Idempotent)
    }
}

/// What the rest of the way needs to know of a request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// HTTP/1.0. It is forwarded as such, so that the answer is one that its caller understands.
    pub(crate) http10: bool,
    pub(crate) body: Body,
    /// The caller would keep its connection.
    pub(crate) keep_alive: bool,
    /// It has said itself that it would not: what it would have had without Sluice is an endpoint that closes, too.
    pub(crate) closes: bool,
    /// `Expect: 100-continue`.
    pub(crate) expects: bool,
    /// It asks for another protocol (RFC 9110, section 7.8), other than cleartext HTTP/2: `h2c` is ignored, as every server
    /// may, since RFC 9113, section 3.1, has it no more. So the request stays one that is governed, and so do those behind
    /// it; who speaks HTTP/2 begins with it.
    pub(crate) upgrade: bool,
    pub(crate) tagging: Tagging,
    /// By what it can be found again.
    pub(crate) ids: Ids,
}

/// Why a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Malformed(Fault),
    #[error("more than {MAX_HEADERS} header lines")]
    TooManyHeaders,
    #[error("only the chunked transfer coding is supported in requests")]
    Coding,
    #[error("neither HTTP/1.0 nor HTTP/1.1")]
    Version,
}

const fn malformed(part: MessagePart, what: &'static str) -> Refused {
    Refused::Malformed(Fault::new(part, what))
}

impl Refused {
    /// What is wrong with it.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Malformed(fault) => fault,
            Self::TooManyHeaders => Fault::new(MessagePart::Size, "more than 100 header lines"),
            Self::Coding => Fault::new(MessagePart::Framing, "another transfer coding than chunked"),
            Self::Version => Fault::new(MessagePart::FirstLine, "a version other than HTTP/1.0 and HTTP/1.1"),
        }
    }
}

/// What a request's lines said, while they are gone through.
#[derive(Default)]
struct Lines<'h> {
    host: u32,
    host_value: Option<&'h [u8]>,
    length: Option<u64>,
    chunked: bool,
    /// What frames the message is not written as most write it.
    odd: bool,
    codings: u32,
    close: bool,
    keep_alive: bool,
    expects: bool,
    connection_upgrade: bool,
    /// Protocols are asked for that may be passed on.
    upgrade: bool,
    /// Cleartext HTTP/2 is asked for, too.
    h2c: bool,
    /// The protocols asked for, without that.
    protocols: SmallVec<[&'h [u8]; 2]>,
    te_trailers: bool,
    request_id: Option<&'h [u8]>,
    traceparent: Option<&'h [u8]>,
    /// Header names listed in `Connection`.
    nominated: SmallVec<[&'h [u8]; 4]>,
}

/// Who says a request's tag besides its headers: see [`TagScan::decide`].
pub(crate) struct Sources<'s, 'p, E> {
    /// What the headers say that does not count.
    pub(crate) distrust: Distrust<'s>,
    pub(crate) traced: Option<&'s mut Asking<'p>>,
    pub(crate) caller: Option<&'s Tag>,
    pub(crate) entry: E,
}

#[cfg(any(test, feature = "fuzzing"))]
impl<'s> Sources<'s, '_, fn() -> Option<RequestTag>> {
    /// Those of a pod that remembers nothing, for a Service that no lane targets.
    pub(crate) fn of(strip: bool, caller: Option<&'s Tag>) -> Self {
        let distrust = if strip { Distrust::ALL } else { Distrust::default() };
        Self { distrust, traced: None, caller, entry: || None }
    }
}

/// Reads the request in `head`, which ends with its empty line, and writes what is forwarded to `out`. Its headers are shown to
/// `traces`.
pub(crate) fn read<E: FnOnce() -> Option<RequestTag>>(
    head: &[u8],
    names: &TagNames,
    sources: Sources<'_, '_, E>,
    mut traces: Option<&mut Scan<'_>>,
    out: &mut BytesMut,
) -> Result<Request, Refused> {
    let Sources { distrust, mut traced, caller, entry } = sources;
    let mut slots = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut spare = Vec::new();
    let parsed = parse(head, &mut slots, &mut spare).map_err(|error| refusal(head, error))?;
    let Some(Parsed { method, target, version, headers }) = parsed else {
        return Err(malformed(MessagePart::Header, "a head that ends too early"));
    };
    check_target(method, target)?;
    let http10 = version == 0;

    let mut tags = TagScan::new(names).distrusting(distrust);
    let mut lines = Lines::default();
    for header in headers {
        lines.see(head, header, http10)?;
        tags.see(header.name.as_bytes(), header.value);
        if let Some(traces) = &mut traces {
            traces.see(header.name.as_bytes(), header.value);
        }
        if let Some(traced) = &mut traced {
            traced.see(header.name.as_bytes(), header.value);
        }
    }
    if lines.host != 1 && !(http10 && lines.host == 0) {
        return Err(malformed(MessagePart::Host, "no Host, or more than one"));
    }
    if let (Some(host), Some(authority)) = (lines.host_value, authority(target))
        && !is_same_host(host, authority, default_port(target))
    {
        return Err(malformed(MessagePart::Host, "a request target and a Host that differ"));
    }
    if lines.chunked && lines.length.is_some() {
        return Err(malformed(MessagePart::Framing, "both Content-Length and Transfer-Encoding"));
    }
    let upgrade = lines.connection_upgrade && lines.upgrade && !http10;
    let caused = traced.map(|traced| traced.caused(Nanos::now())).unwrap_or_default();
    let tagging = tags.decide(caused, caller, entry);
    let mut outgoing = Outgoing::new(head, headers);
    lines.keep_to_this_hop(&mut outgoing, upgrade, names);
    edit::tag(&mut outgoing, names, &tagging);
    outgoing.write(out);

    Ok(Request {
        method: Method::of(method),
        http10,
        body: if lines.chunked { Body::chunked(false) } else { Body::Length(lines.length.unwrap_or(0)) },
        keep_alive: !lines.close && (!http10 || lines.keep_alive),
        closes: lines.close || http10 && !lines.keep_alive,
        expects: lines.expects && !http10,
        upgrade,
        tagging,
        ids: Ids::new(lines.request_id, lines.traceparent),
    })
}

/// Why what has come of a head can become none, judged by its first line. Who sends something else than HTTP may never send the
/// empty line that ends a head, and is not to wait for it.
pub(crate) fn never_a_request(begun: &[u8]) -> Option<Refused> {
    use httparse::Error::{NewLine, Token, Version};
    let begun = &*as_text(begun);
    let mut parsed = httparse::Request::new(&mut []);
    // Without room for headers the first of them is an error, which is none here.
    match parsed.parse(begun) {
        Err(error) if matches!(error, NewLine | Token | Version) => Some(refusal(begun, error)),
        // The version comes last, so the target before it is whole.
        _ => match (parsed.method, parsed.path, parsed.version) {
            (Some(method), Some(target), Some(_)) => check_target(method, target.as_bytes()).err(),
            _ => None,
        },
    }
}

/// Whether a request's target is one (RFC 9112, section 3.2): a path; an http or https URI with a host; `*` of OPTIONS; host and
/// port of CONNECT. Servers take much more for a path: Go, the JDK and Jetty find `/a` in `http:/a`, `x:/a` and `x:y/../a`, Go in
/// `CONNECT h:1/a`, and who parses URLs as browsers do in `http://h\a`. No rule about `/a` would hold for these.
pub(crate) fn check_target(method: &str, target: &[u8]) -> Result<(), Refused> {
    let what = match (method, target) {
        (_, [b'/', ..]) | ("OPTIONS", b"*") => return Ok(()),
        (_, b"*") => "the request target * with another method than OPTIONS",
        ("CONNECT", target) => match target.iter().rposition(|byte| *byte == b':') {
            Some(colon) if is_host(&target[..colon]) && is_port(&target[colon + 1..]) => return Ok(()),
            _ => "a request target of CONNECT that is not host and port",
        },
        (_, target) if authority(target).is_some_and(is_authority) => return Ok(()),
        _ => "a request target that is neither a path nor an http URI with a host",
    };
    Err(malformed(MessagePart::FirstLine, what))
}

/// Has a host, and nothing in which some readers would see its end (RFC 3986, section 3.2).
fn is_authority(authority: &[u8]) -> bool {
    let place = |wanted: u8| authority.iter().rposition(|byte| *byte == wanted);
    let host = place(b'@').map_or(authority, |at| &authority[at + 1..]);
    // The port may be empty.
    is_host(port_colon(host).map_or(host, |at| &host[..at]))
        && !authority.iter().any(|byte| matches!(byte, b'\\' | b'#'))
}

fn is_host(host: &[u8]) -> bool {
    let is_of_host = |byte: &u8| !matches!(byte, b'/' | b'\\' | b'?' | b'#' | b'@');
    // Names in other alphabets are UTF-8 to who sends them as they are.
    !host.is_empty() && host.iter().all(is_of_host) && std::str::from_utf8(host).is_ok()
}

fn is_port(port: &[u8]) -> bool {
    !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

/// The request line ends with a version that is understood, so it is not the version that is wrong.
fn has_known_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|byte| *byte == b'\r').next().unwrap_or_default();
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

/// Whom a target in absolute form is for (RFC 9112, section 3.2.2). Its scheme is one of HTTP's, in any case.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memmem::find(target, b"://")?;
    let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
    let is_http = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
    // Up to where rules see the path begin.
    is_http.then(|| rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default())
}

/// The port that a target in absolute form means if it says none.
fn default_port(target: &[u8]) -> u16 {
    if target.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https:")) { 443 } else { 80 }
}

/// The same host and port. The same are names in any case, and IPv6 addresses in any of their forms (RFC 5952, section 2). The
/// port of the scheme need not be said, nor stand behind its colon (RFC 3986, section 3.2.3).
fn is_same_host(one: &[u8], other: &[u8], default: u16) -> bool {
    one.eq_ignore_ascii_case(other)
        || host_and_port(one, default).zip(host_and_port(other, default)).is_some_and(
            |((one, at), (other, port))| {
                let address = ipv6(one);
                at == port && (one.eq_ignore_ascii_case(other) || address.is_some() && address == ipv6(other))
            },
        )
}

/// `None`: the port is none.
fn host_and_port(authority: &[u8], default: u16) -> Option<(&[u8], u16)> {
    let Some(colon) = port_colon(authority) else { return Some((authority, default)) };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if port.is_empty() {
        return Some((host, default));
    }
    let port = std::str::from_utf8(port).ok().filter(|port| is_port(port.as_bytes()))?;
    Some((host, port.parse().ok()?))
}

/// Where the port begins. The colons of an IPv6 address are in brackets.
fn port_colon(host: &[u8]) -> Option<usize> {
    host.iter().rposition(|byte| *byte == b':').filter(|at| !host[at + 1..].contains(&b']'))
}

/// An IPv6 address in its brackets.
fn ipv6(host: &[u8]) -> Option<Ipv6Addr> {
    let address = host.strip_prefix(b"[")?.strip_suffix(b"]")?;
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// A line goes on in the next one, which begins with white space (RFC 9112, section 5.2).
fn is_folded(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|feed| matches!(head.get(feed + 1), Some(b' ' | b'\t')))
}

fn refusal(head: &[u8], error: httparse::Error) -> Refused {
    match error {
        httparse::Error::Version if has_known_version(head) => {
            malformed(MessagePart::FirstLine, "white space in the request target")
        }
        httparse::Error::TooManyHeaders => Refused::TooManyHeaders,
        httparse::Error::Version => Refused::Version,
        httparse::Error::HeaderName if is_folded(head) => {
            malformed(MessagePart::Header, "a header that is folded over several lines")
        }
        httparse::Error::HeaderName => malformed(MessagePart::Header, "a header name that is no token"),
        httparse::Error::HeaderValue => {
            malformed(MessagePart::Header, "a header value with a forbidden byte")
        }
        httparse::Error::NewLine => malformed(MessagePart::Header, "a line that does not end with CR LF"),
        httparse::Error::Token | httparse::Error::Status => {
            malformed(MessagePart::FirstLine, "a malformed request line")
        }
    }
}

impl<'h> Lines<'h> {
    /// Looks at one line; only names of the lengths that matter are compared.
    fn see(&mut self, head: &[u8], header: &httparse::Header<'h>, http10: bool) -> Result<(), Refused> {
        let (name, value) = (header.name, header.value);
        match name.len() {
            2 if name.eq_ignore_ascii_case("te") => {
                self.te_trailers |= elements(value).any(|element| element.eq_ignore_ascii_case(b"trailers"));
            }
            4 if name.eq_ignore_ascii_case("host") => {
                self.host += 1;
                self.host_value = Some(value);
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                self.expects |= value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
            }
            7 if name.eq_ignore_ascii_case("upgrade") => {
                for protocol in elements(value) {
                    if protocol.eq_ignore_ascii_case(b"h2c") {
                        self.h2c = true;
                    } else {
                        self.upgrade = true;
                        self.protocols.push(protocol);
                    }
                }
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in elements(value) {
                    match option.len() {
                        5 if option.eq_ignore_ascii_case(b"close") => self.close = true,
                        7 if option.eq_ignore_ascii_case(b"upgrade") => self.connection_upgrade = true,
                        10 if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                        _ => self.nominated.push(option),
                    }
                }
            }
            11 if name.eq_ignore_ascii_case("traceparent") => self.traceparent = Some(value),
            12 if name.eq_ignore_ascii_case("x-request-id") => self.request_id = Some(value),
            14 if name.eq_ignore_ascii_case("content-length") => {
                let first = self.length.replace(length(value)?).is_none();
                first.then_some(()).ok_or(malformed(MessagePart::Framing, "more than one Content-Length"))?;
                self.odd |= !is_plain(head, header);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                self.codings += 1;
                if http10 || self.codings > 1 {
                    return Err(malformed(MessagePart::Framing, "an ambiguous Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::Coding);
                }
                self.chunked = true;
                self.odd |= !is_plain(head, header);
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves out what goes no further than this hop, and says what it has to say itself. The tag header goes further in any
    /// case.
    fn keep_to_this_hop(&self, outgoing: &mut Outgoing<'_>, upgrade: bool, names: &TagNames) {
        outgoing.leave_out(|name| self.is_for_this_hop(name, upgrade) && !names.is_header(name));
        let options = [(self.close, "close"), (upgrade, "upgrade"), (self.te_trailers, "te")];
        let mut options = options.iter().filter(|(said, _)| *said).map(|(_, option)| *option);
        if let Some(first) = options.next() {
            let all = options.fold(first.to_owned(), |all, option| all + ", " + option);
            outgoing.add(&header::CONNECTION, all.as_bytes());
        }
        if self.te_trailers {
            outgoing.add(&header::TE, b"trailers");
        }
        if upgrade && self.h2c {
            outgoing.leave_out(|name| name.eq_ignore_ascii_case(b"upgrade"));
            outgoing.add(&header::UPGRADE, &self.protocols.join(&b", "[..]));
        }
        if self.odd {
            outgoing.leave_out(|name| {
                name.eq_ignore_ascii_case(b"content-length")
                    || name.eq_ignore_ascii_case(b"transfer-encoding")
            });
            match self.length {
                Some(length) => outgoing.add(&header::CONTENT_LENGTH, length.to_string().as_bytes()),
                None => outgoing.add(&header::TRANSFER_ENCODING, b"chunked"),
            }
        }
    }

    /// Whether a line is for this hop only. What frames or addresses a message is never dropped on a sender's word
    /// (`Connection: content-length`), since this hop would then forward something else than it has read.
    fn is_for_this_hop(&self, name: &[u8], upgrade: bool) -> bool {
        if headers::is_for_one_hop(name) {
            return !(upgrade && name.eq_ignore_ascii_case(b"upgrade"));
        }
        self.nominated.iter().any(|nominated| nominated.eq_ignore_ascii_case(name))
            && headers::may_be_dropped(name)
    }
}

/// `1*DIGIT` (RFC 9110, section 8.6): no sign, no list, nothing that overflows.
pub(super) fn length(value: &[u8]) -> Result<u64, Refused> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(malformed(MessagePart::Framing, "a Content-Length that is no length"));
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
