//! Parses a request's head, whatever the bytes of its target.
//!
//! `httparse` gives a target as text, and so takes one that is no UTF-8 for malformed. Clients send such targets all the same, in
//! GBK or Latin-1, and servers answer them: they are passed on byte for byte. Only their first line is read here, and only once
//! `httparse` has refused it; their headers are parsed as any others.

use std::{borrow::Cow, mem::MaybeUninit};

use httparse::{EMPTY_HEADER, Error, Header, Status};

/// A head that is whole.
pub(super) struct Parsed<'h, 's> {
    pub(super) method: &'h str,
    pub(super) target: &'h [u8],
    /// Of HTTP/1.
    pub(super) version: u8,
    pub(super) headers: &'s [Header<'h>],
}

/// Parses a head; `None`: it is not whole. `spare`: room for headers in the place of `slots`, where those cannot be used.
pub(super) fn parse<'h, 's>(
    head: &'h [u8],
    slots: &'s mut [MaybeUninit<Header<'h>>],
    spare: &'s mut Vec<Header<'h>>,
) -> Result<Option<Parsed<'h, 's>>, Error> {
    let most = slots.len();
    let mut parsed = httparse::Request::new(&mut []);
    let refused = match parsed.parse_with_uninit_headers(head, slots) {
        Ok(Status::Complete(_)) => {
            let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
            else {
                return Ok(None);
            };
            let target = target.as_bytes();
            return Ok(Some(Parsed { method, target, version, headers: parsed.headers }));
        }
        Ok(Status::Partial) => return Ok(None),
        Err(error) => error,
    };
    let line = if refused == Error::Token { opaque_line(head) } else { None };
    let Some((method, target, version, rest)) = line else { return Err(refused) };
    spare.resize(most, EMPTY_HEADER);
    match httparse::parse_headers(rest, spare)? {
        Status::Complete((_, headers)) => Ok(Some(Parsed { method, target, version, headers })),
        Status::Partial => Ok(None),
    }
}

/// Method, target and version of a first line whose only fault is a target that is no UTF-8, and what is behind it.
fn opaque_line(head: &[u8]) -> Option<(&str, &[u8], u8, &[u8])> {
    let start = head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let feed = memchr::memchr(b'\n', &head[start..])? + start;
    let line = head[start..feed].strip_suffix(b"\r")?;
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let version = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ => return None,
    };
    http::Method::from_bytes(method).ok()?;
    let is_opaque = std::str::from_utf8(target).is_err() && !target.iter().any(u8::is_ascii_control);
    is_opaque.then_some((std::str::from_utf8(method).ok()?, target, version, &head[feed + 1..]))
}

/// What has come of a head, for who asks only whether its first line could be one: with letters in the place of a target's bytes
/// that are not ASCII.
pub(super) fn as_text(begun: &[u8]) -> Cow<'_, [u8]> {
    let line = memchr::memchr(b'\n', begun.trim_ascii_start())
        .map_or(begun.len(), |feed| feed + begun.len() - begun.trim_ascii_start().len());
    let Some(space) = memchr::memchr(b' ', &begun[..line]) else { return begun.into() };
    let end = memchr::memchr(b' ', &begun[space + 1..line]).map_or(line, |at| space + 1 + at);
    if begun[space + 1..end].is_ascii() {
        return begun.into();
    }
    let mut text = begun.to_vec();
    text[space + 1..end].iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'x');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_line(head: &[u8]) -> Option<(String, Vec<u8>, u8, usize)> {
        let (mut slots, mut spare) = ([const { MaybeUninit::uninit() }; 4], Vec::new());
        let parsed = parse(head, &mut slots, &mut spare).ok().flatten()?;
        Some((parsed.method.to_owned(), parsed.target.to_vec(), parsed.version, parsed.headers.len()))
    }

    #[test]
    fn a_target_may_be_of_any_bytes_but_those_that_end_it() {
        for target in [&b"/a?q=\xd6\xd0"[..], b"/k\xe4ufer", b"/\xff\xfe\x80", b"/\xc3\xa4", b"/\xc3\xa4\xc3"]
        {
            let head = |target: &[u8]| [b"GET ", target, b" HTTP/1.0\r\nHost: a\r\nA: b\r\n\r\n"].concat();
            let wanted = Some(("GET".to_owned(), target.to_vec(), 0, 2));
            assert_eq!(first_line(&head(target)), wanted);
            assert_eq!(first_line(&[b"\r\n\r\n", &head(target)[..]].concat()), wanted);
            for bad in [&b" "[..], b"\t", b"\0", b"\x7f", b"\r", b"\x1b"] {
                assert_eq!(first_line(&head(&[target, bad, b"\xff"].concat())), None, "{bad:?}");
            }
        }
        for head in [
            &b"GET /\xff HTTP/2.0\r\n\r\n"[..],
            b"GET /\xff HTTP/1.1 \r\n\r\n",
            b"GET /\xff HTTP/1.1\n\r\n",
            b"GET  /\xff HTTP/1.1\r\n\r\n",
            b" GET /\xff HTTP/1.1\r\n\r\n",
            b"G\xff /\xff HTTP/1.1\r\n\r\n",
            b"G(T /\xff HTTP/1.1\r\n\r\n",
            b"GET /\xff\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nA: b\r\n",
            b"GET /\xff HTTP/1.1\r\nA b\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nA: b\r\nB: b\r\nC: b\r\nD: b\r\nE: b\r\n\r\n",
        ] {
            assert_eq!(first_line(head), None, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn only_a_target_is_made_text() {
        for (begun, wanted) in [
            (&b"GET /\xd6\xd0?\xff HTTP/1.1\r\nA: \xff"[..], &b"GET /xx?x HTTP/1.1\r\nA: \xff"[..]),
            (b"\r\nGET /\xd6", b"\r\nGET /x"),
            (b"G\xff /a \xff", b"G\xff /a \xff"),
            (b"GET\r\n \xff", b"GET\r\n \xff"),
            (b"", b""),
        ] {
            assert_eq!(&*as_text(begun), wanted, "{}", begun.escape_ascii());
        }
    }
}
