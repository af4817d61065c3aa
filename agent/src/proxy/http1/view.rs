//! A request's head as rules see it: bytes, looked through for what a rule asks.

use http::HeaderName;

use crate::govern::request::Request;

/// A head that has been read, as it came or as it is forwarded. Finds nothing in one that is no longer there.
#[derive(Clone, Copy)]
pub(crate) struct View<'h>(pub(crate) &'h [u8]);

impl<'h> View<'h> {
    fn word(&self, index: usize) -> &'h [u8] {
        let line = self.0.trim_ascii_start().split(|byte| *byte == b'\r').next().unwrap_or_default();
        line.split(|byte| *byte == b' ').nth(index).unwrap_or_default()
    }

    /// The first value of a header.
    pub(super) fn find(&self, name: &HeaderName) -> Option<&'h [u8]> {
        let name = name.as_str().as_bytes();
        self.lines().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Header lines, up to the empty one: whatever is behind it is body.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&'h [u8], &'h [u8])> + use<'h> {
        let mut rest = self.0.trim_ascii_start();
        rest = memchr::memchr(b'\n', rest).map_or(&[], |feed| &rest[feed + 1..]);
        std::iter::from_fn(move || {
            let feed = memchr::memchr(b'\n', rest)?;
            let line = rest[..feed].trim_ascii_end();
            rest = &rest[feed + 1..];
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

impl Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.word(0)
    }

    fn target(&self) -> &[u8] {
        let target = self.word(1);
        // A target in absolute form (RFC 9112, section 3.2.2): what is behind the authority counts.
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

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const HEAD: &[u8] =
        b"\r\nPUT /a/b?c=d HTTP/1.1\r\nHOST: x\r\nAccept:  one \r\naccept:two\r\nEmpty:\r\n\r\nAccept: body\r\n";

    #[test]
    fn the_parts_of_a_head_are_found() {
        let view = View(HEAD);
        assert_eq!(
            (view.method(), view.target(), view.path()),
            (&b"PUT"[..], &b"/a/b?c=d"[..], &b"/a/b"[..])
        );
        assert_eq!(view.header(&header::HOST), Some(&b"x"[..]));
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
            assert_eq!(View(head.as_bytes()).target(), wanted.as_bytes(), "{target}");
        }
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        for head in [&b""[..], b"\r\n", b"GET", b"GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(View(head).header(&header::HOST), None);
        }
    }
}
