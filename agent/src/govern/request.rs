//! A request as rules see it. HTTP/1 shows raw bytes, HTTP/2 its header map; rules know neither.

use std::borrow::Cow;

use http::HeaderName;
use percent_encoding::percent_decode;

use super::{caller::Caller, path};

/// What rules may ask of a request. Asking costs a look through the request's lines, so it is done only where a policy
/// has a rule.
pub trait Request {
    /// As it was sent: `GET`.
    fn method(&self) -> &[u8];

    /// The request target without its scheme and authority, as it was sent: `/orders/7?full=1`.
    fn target(&self) -> &[u8];

    /// The first value of this header.
    fn header(&self, name: &HeaderName) -> Option<&[u8]>;

    /// All values of this header, one after the other.
    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8]));

    /// The pod that sent it; `None`: not known, so that no rule about callers holds for it.
    fn caller(&self) -> Option<Caller<'_>> {
        None
    }

    /// The path as it was sent, without the query.
    fn path(&self) -> &[u8] {
        path_of(self.target())
    }

    /// The path as its server will see it, for rules: see [`path::normal`].
    fn normal_path(&self) -> Cow<'_, [u8]> {
        path::normal(self.path())
    }

    /// The first value of a query parameter, decoded (`application/x-www-form-urlencoded`).
    fn query_parameter(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.query_parameters(name).next()
    }

    /// All values of a query parameter, decoded.
    fn query_parameters<'r>(&'r self, name: &str) -> impl Iterator<Item = Cow<'r, [u8]>> {
        let target = self.target();
        let query = question_mark(target).map(|at| &target[at + 1..]);
        let pairs = query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&')).map(|pair| {
            let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (&pair[..end], pair.get(end + 1..).unwrap_or_default())
        });
        pairs
            .filter(move |(key, _)| *form_decoded(key) == *name.as_bytes())
            .map(|(_, value)| form_decoded(value))
    }

    /// The first value of a cookie, as it was sent.
    fn cookie(&self, name: &str) -> Option<Vec<u8>> {
        let mut found = None;
        self.each_header(&http::header::COOKIE, &mut |line| {
            let pairs = line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let mut values = pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            if found.is_none() {
                found = values.next().map(<[u8]>::to_vec);
            }
        });
        found
    }
}

/// The path of a target, without the query.
pub fn path_of(target: &[u8]) -> &[u8] {
    // Of `http://a?b` (RFC 9110, section 4.2.3: an empty path is `/`).
    if target.starts_with(b"?") {
        return b"/";
    }
    &target[..question_mark(target).unwrap_or(target.len())]
}

fn question_mark(target: &[u8]) -> Option<usize> {
    memchr::memchr(b'?', target)
}

fn form_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request for tests of rules.
    #[derive(Debug)]
    pub(crate) struct Plain {
        pub(crate) method: &'static str,
        pub(crate) target: &'static str,
        pub(crate) headers: Vec<(HeaderName, &'static str)>,
    }

    impl Plain {
        pub(crate) fn get(target: &'static str) -> Self {
            Self { method: "GET", target, headers: Vec::new() }
        }

        #[must_use]
        pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
            self.headers.push((HeaderName::from_static(name), value));
            self
        }
    }

    impl Request for Plain {
        fn method(&self) -> &[u8] {
            self.method.as_bytes()
        }

        fn target(&self) -> &[u8] {
            self.target.as_bytes()
        }

        fn header(&self, name: &HeaderName) -> Option<&[u8]> {
            self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_bytes())
        }

        fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
            self.headers.iter().filter(|(key, _)| key == name).for_each(|(_, value)| each(value.as_bytes()));
        }
    }

    #[test]
    fn a_target_is_a_path_and_a_query() {
        let request = Plain::get("/a/b?user=j%C3%B6rg+k&user=other&empty=&flag");
        assert_eq!(request.path(), b"/a/b");
        assert_eq!(request.query_parameter("user").as_deref(), Some("jörg k".as_bytes()));
        assert_eq!(request.query_parameter("empty").as_deref(), Some(&b""[..]));
        assert_eq!(request.query_parameter("flag").as_deref(), Some(&b""[..]));
        assert_eq!(request.query_parameter("use"), None);
        assert_eq!(Plain::get("/a").path(), b"/a");
        assert_eq!(Plain::get("?a").path(), b"/");
        assert_eq!(Plain::get("/a").query_parameter("user"), None);
    }

    #[test]
    fn a_cookie_is_found_on_any_line_and_not_by_half_its_name() {
        let request = Plain::get("/").with("cookie", "xuid=1; uid2=2").with("cookie", "a=b;uid=7=8 ; uid=9");
        assert_eq!(request.cookie("uid").as_deref(), Some(&b"7=8"[..]));
        assert_eq!(request.cookie("id"), None);
    }
}
