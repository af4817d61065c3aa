//! What a rule changes in a request, and where it sends its client instead. Pure: text in, text out.

use std::borrow::Cow;

use http::StatusCode;

use super::super::path;

/// What is put into the place of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// All of it.
    Full(String),
    /// The prefix that was matched.
    Prefix(String),
}

/// What is changed in the address of a request that is sent on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// `Host`, or `:authority`.
    pub hostname: Option<String>,
    pub path: Option<PathEdit>,
}

impl Rewrite {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The target of the request that is sent on, its query as it was; `None`: as it came. `prefix`: see
    /// [`Found`](super::Found).
    pub fn target(&self, target: &[u8], prefix: usize) -> Option<Vec<u8>> {
        let edit = self.path.as_ref()?;
        // `*` and the authority of CONNECT are no paths.
        target.starts_with(b"/").then(|| edit.apply(target, prefix))
    }
}

impl PathEdit {
    fn apply(&self, target: &[u8], prefix: usize) -> Vec<u8> {
        let end = memchr::memchr(b'?', target).unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        let mut out = match self {
            Self::Full(full) => full.as_bytes().to_vec(),
            // As the specification's table says: slashes at the end of either mean nothing.
            Self::Prefix(replacement) => {
                let mut out = replacement.trim_end_matches('/').as_bytes().to_vec();
                out.extend_from_slice(path::after(path, prefix));
                out
            }
        };
        if !out.starts_with(b"/") {
            out.insert(0, b'/');
        }
        out.extend_from_slice(query);
        out
    }
}

/// The scheme of a redirect's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where a client is to ask instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `None`: that of the request, which is `http` within a mesh.
    pub scheme: Option<Scheme>,
    /// `None`: that of the request.
    pub hostname: Option<String>,
    pub path: Option<PathEdit>,
    /// `None`: that of the scheme, if there is one, else that of the request's Service.
    pub port: Option<u16>,
    pub status: StatusCode,
}

impl Redirect {
    /// The value of `Location`. `authority`: whom the client asked; `port`: that of the Service. The port is left out where it is
    /// the scheme's own.
    pub fn location(&self, authority: &[u8], port: u16, target: &[u8], prefix: usize) -> Vec<u8> {
        let scheme = self.scheme.unwrap_or(Scheme::Http);
        let host = self.hostname.as_ref().map_or_else(|| host(authority), |name| name.as_bytes());
        let port = self.port.unwrap_or_else(|| self.scheme.map_or(port, Scheme::port));
        let target = match &self.path {
            Some(edit) if target.starts_with(b"/") => Cow::Owned(edit.apply(target, prefix)),
            // `OPTIONS *`
            None if !target.starts_with(b"/") => Cow::Borrowed(&b"/"[..]),
            _ => Cow::Borrowed(target),
        };
        // A client of HTTP/1.0 need not say whom it asks: then it is the same (RFC 9110, section 10.2.2).
        if host.is_empty() {
            return target.into_owned();
        }
        let mut out = scheme.as_str().as_bytes().to_vec();
        out.extend_from_slice(b"://");
        out.extend_from_slice(host);
        if port != scheme.port() {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
        out.extend_from_slice(&target);
        out
    }
}

/// The host of an authority, without its port: `[::1]` of `[::1]:80`.
fn host(authority: &[u8]) -> &[u8] {
    let end = match memchr::memrchr(b']', authority) {
        Some(bracket) => bracket + 1,
        None => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    &authority[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("these are text")
    }

    /// The table of the specification, `HTTPPathModifier.replacePrefixMatch`, and what else may come.
    #[test]
    fn a_prefix_is_replaced_as_the_specification_says() {
        for (target, prefix, replacement, wanted) in [
            ("/foo/bar", 1, "/xyz", "/xyz/bar"),
            ("/foo/bar", 1, "/xyz/", "/xyz/bar"),
            ("/foo", 1, "/xyz", "/xyz"),
            ("/foo/", 1, "/xyz", "/xyz/"),
            ("/foo/bar", 1, "", "/bar"),
            ("/foo/", 1, "", "/"),
            ("/foo", 1, "", "/"),
            ("/foo/", 1, "/", "/"),
            ("/foo", 1, "/", "/"),
            // The prefix `/`.
            ("/foo", 0, "/xyz", "/xyz/foo"),
            ("/", 0, "/xyz", "/xyz/"),
            ("/foo/bar?a=/foo&b", 1, "/xyz", "/xyz/bar?a=/foo&b"),
            ("/foo?x", 1, "", "/?x"),
            // What comes in another form than its normal one.
            ("//foo;v=1/%62ar;w=2", 1, "/xyz", "/xyz/%62ar;w=2"),
            ("/x/../foo/bar", 1, "/xyz", "/xyz/bar"),
            ("/a/x/../b/./c", 2, "/xyz", "/xyz/./c"),
        ] {
            let rewrite = Rewrite { hostname: None, path: Some(PathEdit::Prefix(replacement.to_owned())) };
            assert_eq!(
                text(rewrite.target(target.as_bytes(), prefix).unwrap()),
                wanted,
                "{target} {replacement}"
            );
        }
    }

    #[test]
    fn a_path_is_replaced_and_its_query_stays() {
        let rewrite = Rewrite { hostname: None, path: Some(PathEdit::Full("/one".to_owned())) };
        assert_eq!(text(rewrite.target(b"/a/b?c", 0).unwrap()), "/one?c");
        assert_eq!(rewrite.target(b"*", 0), None);
        assert_eq!(rewrite.target(b"a.shop:443", 0), None);
        let only_host = Rewrite { hostname: Some("other".to_owned()), path: None };
        assert_eq!(only_host.target(b"/a", 0), None);
        assert!(!only_host.is_empty() && Rewrite::default().is_empty());
    }

    #[test]
    fn a_redirect_says_where_to_ask() {
        let plain =
            Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND };
        let with = |change: &dyn Fn(&mut Redirect)| {
            let mut redirect = plain.clone();
            change(&mut redirect);
            redirect
        };
        for (redirect, port, wanted) in [
            (with(&|r| r.hostname = Some("example.org".into())), 80, "http://example.org/a/b?c"),
            (with(&|r| r.hostname = Some("example.org".into())), 8080, "http://example.org:8080/a/b?c"),
            // A scheme brings its port with it.
            (with(&|r| r.scheme = Some(Scheme::Https)), 8080, "https://orders.shop/a/b?c"),
            (with(&|r| r.scheme = Some(Scheme::Http)), 8080, "http://orders.shop/a/b?c"),
            (with(&|r| r.port = Some(8443)), 80, "http://orders.shop:8443/a/b?c"),
            (with(&|r| r.port = Some(80)), 8080, "http://orders.shop/a/b?c"),
            (
                with(&|r| (r.scheme, r.port) = (Some(Scheme::Https), Some(443))),
                80,
                "https://orders.shop/a/b?c",
            ),
            (
                with(&|r| (r.scheme, r.port) = (Some(Scheme::Https), Some(80))),
                80,
                "https://orders.shop:80/a/b?c",
            ),
            (with(&|r| r.path = Some(PathEdit::Full("/x".into()))), 80, "http://orders.shop/x?c"),
            (with(&|r| r.path = Some(PathEdit::Prefix("/x".into()))), 80, "http://orders.shop/x/b?c"),
        ] {
            let location = redirect.location(b"orders.shop:8080", port, b"/a/b?c", 1);
            assert_eq!(text(location), wanted, "{redirect:?} {port}");
        }
        assert_eq!(text(plain.location(b"[fd00::7]:8080", 8080, b"*", 0)), "http://[fd00::7]:8080/");
        assert_eq!(text(plain.location(b"[fd00::7]", 80, b"/", 0)), "http://[fd00::7]/");
        // HTTP/1.0 without Host.
        let https = with(&|r| (r.scheme, r.port) = (Some(Scheme::Https), Some(8443)));
        assert_eq!(text(https.location(b"", 8080, b"/a/b?c", 0)), "/a/b?c");
        let named = with(&|r| r.hostname = Some("example.org".into()));
        assert_eq!(text(named.location(b"", 80, b"/a", 0)), "http://example.org/a");
    }
}
