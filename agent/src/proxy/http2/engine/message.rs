//! What the fields of a message have to be (RFC 9113, section 8): looked at as they are decoded, each byte once. Pure.
//!
//! A message that is not well formed is an error of its stream alone. Where the RFC lets a reader choose, this one is as
//! lenient as that of HTTP/1: what worked without Sluice works with it, unless two readers could take it for two things.

use super::{
    super::hpack::{Field, StaticName},
    fields::Fields,
};
use crate::govern::headers;

const CONTENT_LENGTH: StaticName = StaticName::named("content-length");
const CONTENT_TYPE: StaticName = StaticName::named("content-type");

/// What [`headers::is_of_http1`] tells.
const OF_HTTP1: &str = "a field of HTTP/1 connections";

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The fields of a HEADERS frame with its continuations, as they come.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) fields: Fields,
    problem: Option<Malformed>,
    /// A field that is no pseudo field has come.
    regular: bool,
    method: bool,
    scheme: bool,
    authority: bool,
    path: bool,
    protocol: bool,
    status: Option<u16>,
    is_connect: bool,
    is_options: bool,
    /// `:path` is `*`.
    is_asterisk: bool,
    is_head: bool,
    is_grpc: bool,
    length: Option<u64>,
}

/// A request's head.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) fields: Fields,
    pub(crate) facts: Facts,
}

/// What is known of a request without looking for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) head: bool,
    pub(crate) connect: bool,
    /// Extended CONNECT (RFC 8441).
    pub(crate) protocol: bool,
    /// Its media type is one of gRPC's.
    pub(crate) grpc: bool,
    pub(crate) length: Option<u64>,
}

/// A response's head.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) fields: Fields,
    pub(crate) status: u16,
    pub(crate) length: Option<u64>,
}

impl Reading {
    /// Into the memory of fields that are no longer needed.
    pub(crate) fn new(mut fields: Fields) -> Self {
        fields.clear();
        Self { fields, ..Self::default() }
    }

    /// Takes the next field.
    #[inline]
    pub(crate) fn take(&mut self, field: Field<'_>) {
        if let Err(problem) = self.look(&field) {
            self.problem.get_or_insert(problem);
        }
        self.fields.push(field);
    }

    fn look(&mut self, field: &Field<'_>) -> Result<(), Malformed> {
        check_value(field.value)?;
        match field.known {
            Some(known) if known.index() <= StaticName::STATUS.index() => self.pseudo(known, field.value),
            Some(known) => {
                self.regular = true;
                match known {
                    CONTENT_LENGTH => self.content_length(field.value),
                    CONTENT_TYPE => {
                        self.is_grpc |= is_grpc(field.value);
                        Ok(())
                    }
                    _ if headers::is_of_http1(field.name) => Err(Malformed(OF_HTTP1)),
                    _ => Ok(()),
                }
            }
            None if field.name.first() == Some(&b':') => self.protocol(field.name),
            None => {
                self.regular = true;
                check_name(field.name)?;
                match field.name {
                    b"te" if !field.value.eq_ignore_ascii_case(b"trailers") => {
                        Err(Malformed("a `te` of more than `trailers`"))
                    }
                    name if headers::is_of_http1(name) => Err(Malformed(OF_HTTP1)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn pseudo(&mut self, known: StaticName, value: &[u8]) -> Result<(), Malformed> {
        if self.regular {
            return Err(Malformed("a pseudo field behind other fields"));
        }
        let seen = match known {
            StaticName::METHOD => {
                self.is_connect = value == b"CONNECT";
                self.is_options = value == b"OPTIONS";
                self.is_head = value == b"HEAD";
                if value.is_empty() || !value.iter().all(|byte| NAME[usize::from(*byte)] & METHOD != 0) {
                    return Err(Malformed("a `:method` that is no method"));
                }
                &mut self.method
            }
            StaticName::SCHEME => {
                let is_scheme =
                    |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
                if value.is_empty() || !value.iter().all(is_scheme) {
                    return Err(Malformed("a `:scheme` that is no scheme"));
                }
                &mut self.scheme
            }
            StaticName::AUTHORITY => {
                check_visible(value, "`:authority` has a forbidden byte")?;
                &mut self.authority
            }
            StaticName::PATH => {
                check_visible(value, "`:path` has a forbidden byte")?;
                if !(value.starts_with(b"/") || value == b"*") {
                    return Err(Malformed("a `:path` that does not begin with `/`"));
                }
                self.is_asterisk = value == b"*";
                &mut self.path
            }
            _ => {
                let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = value else {
                    return Err(Malformed("a `:status` that is no status"));
                };
                let digit = |digit: &u8| u16::from(*digit - b'0');
                let status = digit(a) * 100 + digit(b) * 10 + digit(c);
                let twice = self.status.replace(status).is_some();
                return if twice { Err(Malformed("a pseudo field twice")) } else { Ok(()) };
            }
        };
        if std::mem::replace(seen, true) { Err(Malformed("a pseudo field twice")) } else { Ok(()) }
    }

    fn protocol(&mut self, name: &[u8]) -> Result<(), Malformed> {
        if name != b":protocol" {
            return Err(Malformed("an unknown pseudo field"));
        }
        if self.regular {
            return Err(Malformed("a pseudo field behind other fields"));
        }
        let twice = std::mem::replace(&mut self.protocol, true);
        if twice { Err(Malformed("a pseudo field twice")) } else { Ok(()) }
    }

    /// `1*DIGIT` (RFC 9110, section 8.6), and always the same.
    fn content_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
            return Err(Malformed("a `content-length` that is no length"));
        }
        let length = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        match self.length.replace(length) {
            Some(other) if other != length => Err(Malformed("two lengths in `content-length`")),
            _ => Ok(()),
        }
    }

    fn is_trailers(&self) -> bool {
        !(self.method || self.scheme || self.authority || self.path || self.protocol || self.status.is_some())
    }

    /// The status, if these are the fields of a response's head.
    pub(crate) fn status(&self) -> Option<u16> {
        self.status
    }

    /// A request's head, even if it is none: so that it can be told what was wrong with it.
    pub(crate) fn into_request(self) -> (Request, Result<(), Malformed>) {
        let fit = self.check_request();
        let facts = Facts {
            head: self.is_head,
            connect: self.is_connect,
            protocol: self.protocol,
            grpc: self.is_grpc,
            length: self.length,
        };
        (Request { fields: self.fields, facts }, fit)
    }

    fn check_request(&self) -> Result<(), Malformed> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.status.is_some() {
            return Err(Malformed("`:status` in a request"));
        }
        if !self.method {
            return Err(Malformed("no `:method`"));
        }
        if self.protocol && !self.is_connect {
            return Err(Malformed("`:protocol` without CONNECT"));
        }
        if self.is_connect && !self.protocol {
            // RFC 9113, section 8.5.
            return match (self.scheme || self.path, self.authority) {
                (false, true) => Ok(()),
                _ => Err(Malformed("a CONNECT without `:authority`, or with `:scheme` or `:path`")),
            };
        }
        match (self.scheme, self.path) {
            // RFC 9113, section 8.3.1: of the whole server only OPTIONS asks.
            (true, true) if self.is_asterisk && !self.is_options => {
                Err(Malformed("a `:path` of `*` without OPTIONS"))
            }
            (true, true) => Ok(()),
            (false, _) => Err(Malformed("no `:scheme`")),
            (_, false) => Err(Malformed("no `:path`")),
        }
    }

    pub(crate) fn into_response(self) -> Result<Response, Malformed> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.method || self.scheme || self.authority || self.path || self.protocol {
            return Err(Malformed("a pseudo field of requests in a response"));
        }
        match self.status {
            None => Err(Malformed("no `:status`")),
            // RFC 9113, section 8.6.
            Some(101) => Err(Malformed("status 101")),
            Some(status) => Ok(Response { fields: self.fields, status, length: self.length }),
        }
    }

    pub(crate) fn into_trailers(self) -> Result<Fields, Malformed> {
        match self.problem {
            Some(problem) => Err(problem),
            None if !self.is_trailers() => Err(Malformed("a pseudo field in trailers")),
            None => Ok(self.fields),
        }
    }
}

/// A byte may stand in a field's name.
const FIELD: u8 = 1;
/// A byte may stand in a method.
const METHOD: u8 = 2;
/// A byte must not stand in a value.
const CONTROL: u8 = 4;
/// A byte that is visible, or none of ASCII.
const VISIBLE: u8 = 8;

/// What bytes are good for.
static NAME: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let ascii = byte as u8;
        let token = ascii.is_ascii_alphanumeric()
            || matches!(
                ascii,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        if token {
            table[byte] |= METHOD;
            if !ascii.is_ascii_uppercase() {
                table[byte] |= FIELD;
            }
        }
        if ascii.is_ascii_control() && ascii != b'\t' {
            table[byte] |= CONTROL;
        }
        if ascii.is_ascii_graphic() || !ascii.is_ascii() {
            table[byte] |= VISIBLE;
        }
        byte += 1;
    }
    table
};

/// RFC 9113, section 8.2.1.
fn check_name(name: &[u8]) -> Result<(), Malformed> {
    if name.is_empty() || !name.iter().all(|byte| NAME[usize::from(*byte)] & FIELD != 0) {
        return Err(Malformed("a field name that is no token in lower case"));
    }
    Ok(())
}

/// White space at both ends is passed on, as it is in HTTP/1; what could end a line is not.
fn check_value(value: &[u8]) -> Result<(), Malformed> {
    if value.iter().any(|byte| NAME[usize::from(*byte)] & CONTROL != 0) {
        return Err(Malformed("a field value with a forbidden byte"));
    }
    Ok(())
}

fn check_visible(value: &[u8], problem: &'static str) -> Result<(), Malformed> {
    let fit = value.iter().all(|byte| NAME[usize::from(*byte)] & VISIBLE != 0);
    if fit { Ok(()) } else { Err(Malformed(problem)) }
}

/// `application/grpc`, `application/grpc+proto`, `application/grpc;...`, but not `application/grpc-web`.
pub(crate) fn is_grpc(media_type: &[u8]) -> bool {
    let rest = media_type.strip_prefix(b"application/grpc");
    matches!(rest, Some([] | [b'+' | b';' | b' ', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(lines: &[(&str, &str)]) -> Reading {
        let mut reading = Reading::default();
        for (name, value) in lines {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            reading.take(Field { name, value, known: StaticName::find(name), never_indexed: false });
        }
        reading
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a?b")];

    fn request(more: &[(&str, &str)]) -> Result<(), Malformed> {
        reading(&[&GET, more].concat()).into_request().1
    }

    #[test]
    fn a_path_may_have_bytes_that_are_no_text() {
        for (path, fits) in [
            (&b"/a?q=\xd6\xd0"[..], true),
            (b"/k\xe4ufer", true),
            (b"/\xff\x80", true),
            (b"/\xff\x00", false),
            (b"/\xff \xff", false),
            (b"/\xff\x7f", false),
        ] {
            let mut reading = reading(&GET[..3]);
            let name = b":path";
            reading.take(Field { name, value: path, known: StaticName::find(name), never_indexed: false });
            let (request, fit) = reading.into_request();
            assert_eq!(fit.is_ok(), fits, "{}", path.escape_ascii());
            assert!(!fits || request.fields.known(StaticName::PATH) == Some(path));
        }
    }

    #[test]
    fn a_request_has_its_pseudo_fields_once_and_first() {
        assert_eq!(request(&[("x-a", " b\t"), ("te", "trailers"), ("x-empty", "")]), Ok(()));
        for missing in [0, 1, 3] {
            let mut lines = GET.to_vec();
            lines.remove(missing);
            assert!(reading(&lines).into_request().1.is_err(), "{missing}");
        }
        // The `host` field does as well, and who has neither meant it so.
        let mut lines = GET.to_vec();
        lines.remove(2);
        assert_eq!(reading(&lines).into_request().1, Ok(()));
        for line in GET {
            assert!(request(&[line]).is_err(), "twice {line:?}");
            let mut late = vec![("x-a", "b")];
            late.extend(GET);
            assert!(reading(&late).into_request().1.is_err());
        }
        for line in [(":status", "200"), (":unknown", "1"), (":protocol", "websocket"), (":", "")] {
            assert!(request(&[line]).is_err(), "{line:?}");
        }
    }

    #[test]
    fn connect_has_only_an_authority_unless_it_is_extended() {
        let connect = [(":method", "CONNECT"), (":authority", "a:1")];
        let (request, fit) = reading(&connect).into_request();
        assert!(fit.is_ok() && request.facts.connect && !request.facts.protocol);
        assert!(reading(&connect[..1]).into_request().1.is_err());
        let with =
            |more: &[(&'static str, &'static str)]| reading(&[&connect[..], more].concat()).into_request();
        assert!(with(&[(":path", "/")]).1.is_err());
        assert!(with(&[(":protocol", "websocket")]).1.is_err());
        let (request, fit) = with(&[(":protocol", "websocket"), (":scheme", "http"), (":path", "/")]);
        assert!(fit.is_ok() && request.facts.protocol);
    }

    #[test]
    fn fields_of_other_protocols_and_ambiguous_ones_are_refused() {
        for line in [
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
            ("X-Upper", "a"),
            ("x a", "a"),
            ("x:a", "a"),
            ("", "a"),
            ("x-é", "a"),
            ("x-a", "a\r\nb: c"),
            ("x-a", "a\0"),
            ("x-a", "\u{7f}"),
            ("content-length", "-1"),
            ("content-length", ""),
            ("content-length", "1, 1"),
            ("content-length", "1234567890123456789"),
        ] {
            assert!(request(&[line]).is_err(), "{line:?}");
        }
        assert_eq!(request(&[("content-length", "5"), ("content-length", "5")]), Ok(()));
        assert!(request(&[("content-length", "5"), ("content-length", "6")]).is_err());
        assert_eq!(request(&[("x-a", "é\t\"<>`")]), Ok(()));
    }

    #[test]
    fn what_http_1_takes_for_a_target_is_one() {
        let with = |index: usize, value: &'static str| {
            let mut lines = GET;
            lines[index].1 = value;
            reading(&lines).into_request().1
        };
        for path in ["/", "/<a>`\"{}|^\\", "/é", "//", "/a#b"] {
            assert_eq!(with(3, path), Ok(()), "{path}");
        }
        for path in ["", "a", "*", "http://a/", "http:/a", "\\a", "/a b", "/a\tb", "/\u{7f}"] {
            assert!(with(3, path).is_err(), "{path}");
        }
        for (index, value) in [(0, ""), (0, "G T"), (0, "GET:"), (1, ""), (1, "ht tp"), (2, "a b")] {
            assert!(with(index, value).is_err(), "{value}");
        }
        assert_eq!(with(0, "m-search"), Ok(()));
        let asterisk = [("OPTIONS", true), ("M-SEARCH", false), ("options", false)];
        for (method, fits) in asterisk {
            let mut lines = GET;
            (lines[0].1, lines[3].1) = (method, "*");
            assert_eq!(reading(&lines).into_request().1.is_ok(), fits, "{method}");
        }
    }

    #[test]
    fn a_response_has_a_status_and_trailers_have_no_pseudo_field() {
        let response = reading(&[(":status", "204"), ("content-length", "7")]).into_response().unwrap();
        assert_eq!((response.status, response.length), (204, Some(7)));
        for lines in [
            &[("x-a", "b")][..],
            &[(":status", "99")],
            &[(":status", "2000")],
            &[(":status", "+20")],
            &[(":status", "099")],
            &[(":status", "101")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":path", "/")],
            &[("x-a", "b"), (":status", "200")],
            &[(":status", "200"), ("connection", "close")],
        ] {
            assert!(reading(lines).into_response().is_err(), "{lines:?}");
        }
        assert!(reading(&[("grpc-status", "0")]).into_trailers().is_ok());
        assert!(reading(&[]).into_trailers().is_ok());
        assert!(reading(&[(":status", "200")]).into_trailers().is_err());
        assert!(reading(&[("Grpc-Status", "0")]).into_trailers().is_err());
    }

    #[test]
    fn grpc_is_told_by_its_media_type() {
        for (media_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            let (request, _) = reading(&[&GET[..], &[("content-type", media_type)]].concat()).into_request();
            assert_eq!(request.facts.grpc, grpc, "{media_type:?}");
        }
    }
}
