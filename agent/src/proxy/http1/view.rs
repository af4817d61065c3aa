//! A request's head as rules see it: bytes, looked through for what a rule asks.

use http::{
    HeaderName,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

use crate::{
    govern::request::{self, Request},
    proxy::way::Came,
};

/// A head that has been read, as it came or as it is forwarded. Finds nothing in one that is no longer there.
#[derive(Clone, Copy)]
pub(crate) struct View<'h>(pub(crate) &'h [u8]);

impl<'h> View<'h> {
    /// The first line, without what is behind its first two words.
    fn words(&self) -> (&'h [u8], &'h [u8]) {
        let head = self.0.trim_ascii_start();
        let line = &head[..memchr::memchr(b'\r', head).unwrap_or(head.len())];
        let Some(first) = memchr::memchr(b' ', line) else { return (line, &[]) };
        let rest = &line[first + 1..];
        (&line[..first], &rest[..memchr::memchr(b' ', rest).unwrap_or(rest.len())])
    }

    /// The method, and the path without the query, for one look at the first line.
    pub(crate) fn method_and_path(&self) -> (&'h [u8], &'h [u8]) {
        let (method, target) = self.words();
        (method, request::path_of(origin_form(target)))
    }

    /// The first value of a header.
    pub(crate) fn find(&self, name: &HeaderName) -> Option<&'h [u8]> {
        let name = name.as_str().as_bytes();
        let mut rest = self.lines_of_headers();
        // As `lines` does, but most lines are seen to be others by the place of their colon.
        loop {
            let feed = memchr::memchr(b'\n', rest)?;
            let line = &rest[..feed];
            rest = &rest[feed + 1..];
            if line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name) {
                return Some(line[name.len() + 1..].trim_ascii());
            }
            if line.trim_ascii_end().is_empty() {
                return None;
            }
        }
    }

    /// Whether some of the bytes that have come behind the head are no body of its request. Of a chunked one that is not known.
    pub(super) fn is_followed_by_another(&self, bytes: usize) -> bool {
        if bytes == 0 || self.find(&TRANSFER_ENCODING).is_some() {
            return false;
        }
        let length =
            self.find(&CONTENT_LENGTH).map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse().ok());
        length.is_some_and(|length: usize| bytes > length)
    }

    /// What is behind the first line.
    fn lines_of_headers(&self) -> &'h [u8] {
        let head = self.0.trim_ascii_start();
        memchr::memchr(b'\n', head).map_or(&[], |feed| &head[feed + 1..])
    }

    /// Header lines, up to the empty one: whatever is behind it is body.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&'h [u8], &'h [u8])> + use<'h> {
        let mut rest = self.lines_of_headers();
        std::iter::from_fn(move || {
            let feed = memchr::memchr(b'\n', rest)?;
            let line = rest[..feed].trim_ascii_end();
            rest = &rest[feed + 1..];
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// Of a target in absolute form (RFC 9112, section 3.2.2) what is behind the authority, which is what counts.
fn origin_form(target: &[u8]) -> &[u8] {
    if target.starts_with(b"/") || target == b"*" {
        return target;
    }
    let Some(scheme) = memchr::memmem::find(target, b"://") else { return target };
    let rest = &target[scheme + 3..];
    match rest.iter().position(|byte| matches!(byte, b'/' | b'?')) {
        Some(at) => &rest[at..],
        None => b"/",
    }
}

impl Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.words().0
    }

    fn target(&self) -> &[u8] {
        origin_form(self.words().1)
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.find(name)
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        for (key, value) in self.lines() {
            if key.eq_ignore_ascii_case(name.as_str().as_bytes()) {
                each(value);
            }
        }
    }
}

impl Came for View<'_> {
    fn authority(&self) -> &[u8] {
        self.find(&HOST).unwrap_or_default()
    }

    fn each_line(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.lines().for_each(|(name, value)| each(name, value));
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const HEAD: &[u8] =
        b"\r\nPUT /a/b?c=d HTTP/1.1\r\nHOST: x\r\nAccept:  one \r\naccept:two\r\nEmpty:\r\n\r\nAccept: body\r\n";

    #[test]
    fn what_comes_behind_a_head_is_its_body_or_another_request() {
        for (lines, bytes, another) in [
            ("", 0, false),
            ("", 1, true),
            ("content-length: 5\r\n", 4, false),
            ("Content-Length: 5\r\n", 5, false),
            ("content-length: 5\r\n", 6, true),
            ("transfer-encoding: chunked\r\n", 99, false),
            ("content-length: x\r\n", 99, false),
        ] {
            let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{lines}\r\n");
            assert_eq!(View(head.as_bytes()).is_followed_by_another(bytes), another, "{lines:?} {bytes}");
        }
    }

    #[test]
    fn the_parts_of_a_head_are_found() {
        let view = View(HEAD);
        assert_eq!(view.method_and_path(), (view.method(), view.path()));
        assert_eq!(
            (view.method(), view.target(), view.path()),
            (&b"PUT"[..], &b"/a/b?c=d"[..], &b"/a/b"[..])
        );
        assert_eq!(view.header(&HOST), Some(&b"x"[..]));
        assert_eq!(view.header(&HeaderName::from_static("empty")), Some(&b""[..]));
        assert_eq!(view.header(&header::COOKIE), None);
        let mut all = Vec::new();
        view.each_header(&header::ACCEPT, &mut |value| all.push(value.to_vec()));
        assert_eq!(all, [&b"one"[..], b"two"]);
    }

    #[test]
    fn an_absolute_target_is_what_is_behind_its_authority() {
        for (target, wanted) in [
            ("http://a:80/x?y", "/x?y"),
            ("http://a", "/"),
            ("http://a?y", "?y"),
            ("*", "*"),
            ("a:443", "a:443"),
            ("/x://y", "/x://y"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            let view = View(head.as_bytes());
            assert_eq!(view.target(), wanted.as_bytes(), "{target}");
            assert_eq!(view.method_and_path(), (view.method(), view.path()), "{target}");
        }
    }

    proptest::proptest! {
        /// The quick look and the look at one line after the other see the same.
        #[test]
        fn a_header_is_found_where_its_line_is(
            lines in proptest::collection::vec("(a|A|ab|Ab|abc): {0,2}[a:]{0,3}", 0..6),
            ends in proptest::collection::vec(proptest::bool::ANY, 7),
            name in "a|ab|abc|b",
        ) {
            let mut head = b"GET / HTTP/1.1\r\n".to_vec();
            for (line, crlf) in lines.iter().map(String::as_str).chain([""]).zip(ends) {
                head.extend_from_slice(line.as_bytes());
                head.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
            }
            head.extend_from_slice(b"b: body\r\na: body\r\n");
            let view = View(&head);
            let slowly = view.lines().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()));
            let name: HeaderName = name.parse().expect("a name");
            proptest::prop_assert_eq!(view.find(&name), slowly.map(|(_, value)| value));
        }
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        for head in [&b""[..], b"\r\n", b"GET", b"GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(View(head).header(&HOST), None);
        }
    }
}
