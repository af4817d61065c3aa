//! Which requests a rule is about.

use http::{HeaderName, Method};
use regex::bytes::Regex;

use crate::govern::request::Request;

/// A condition on a request. All of its parts must hold; without any it matches every request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMatch {
    /// One of these; empty: any.
    pub methods: Vec<Method>,
    pub path: Option<PathMatch>,
    /// All of these.
    pub headers: Vec<(HeaderName, ValueTest)>,
    /// All of these.
    pub query_parameters: Vec<(String, ValueTest)>,
    /// All of these.
    pub cookies: Vec<(String, ValueTest)>,
}

/// A condition on the path, without the query; as in Gateway API. Both are in their normal form
/// ([`crate::govern::path`]).
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    Exact(String),
    /// By path elements: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Somewhere in the path, unless anchored.
    Regex(Pattern),
}

/// A condition on a value that may be missing.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueTest {
    Present,
    Absent,
    Is(ValueMatch),
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatch {
    Exact(String),
    Prefix(String),
    /// Somewhere in the value, unless anchored.
    Regex(Pattern),
}

/// A regular expression that can be compared with another: by its text.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl RequestMatch {
    pub fn matches(&self, request: &impl Request) -> bool {
        (self.methods.is_empty()
            || self.methods.iter().any(|method| method.as_str().as_bytes() == request.method()))
            && self.path.as_ref().is_none_or(|path| path.matches(&request.normal_path()))
            && self.headers.iter().all(|(name, test)| test.holds(request.header(name)))
            && self
                .query_parameters
                .iter()
                .all(|(name, test)| test.holds(request.query_parameter(name).as_deref()))
            && self.cookies.iter().all(|(name, test)| test.holds(request.cookie(name).as_deref()))
    }
}

impl PathMatch {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path == exact.as_bytes(),
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Regex(Pattern(regex)) => regex.is_match(path),
        }
    }
}

impl ValueTest {
    fn holds(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Is(wanted) => value.is_some_and(|value| wanted.matches(value)),
        }
    }
}

impl ValueMatch {
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Regex(Pattern(regex)) => regex.is_match(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::request::tests::Plain;

    #[test]
    fn without_conditions_everything_matches() {
        assert!(RequestMatch::default().matches(&Plain::get("/")));
    }

    #[test]
    fn all_conditions_must_hold() {
        let exact = |value: &str| ValueTest::Is(ValueMatch::Exact(value.to_owned()));
        let rule = RequestMatch {
            methods: vec![Method::GET],
            path: Some(PathMatch::Prefix("/api".to_owned())),
            headers: vec![(HeaderName::from_static("x-user"), exact("ann"))],
            query_parameters: vec![("full".to_owned(), ValueTest::Present)],
            cookies: vec![("beta".to_owned(), ValueTest::Absent)],
        };
        let good = || Plain::get("/api/orders?full").with("x-user", "ann");
        assert!(rule.matches(&good()));
        assert!(!rule.matches(&Plain { method: "POST", ..good() }));
        assert!(!rule.matches(&Plain { target: "/apis?full", ..good() }));
        assert!(rule.matches(&Plain { target: "//x/../%61pi;v=1/orders?full", ..good() }));
        assert!(!rule.matches(&Plain { target: "/api", ..good() }));
        assert!(!rule.matches(&Plain::get("/api?full").with("x-user", "bob")));
        assert!(!rule.matches(&good().with("cookie", "beta=1")));
    }

    #[test]
    fn a_path_prefix_ends_where_an_element_does() {
        let prefix = |text: &str| PathMatch::Prefix(text.to_owned());
        for (rule, path, wanted) in [
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/a/", "/a", true),
            ("/", "/anything", true),
        ] {
            assert_eq!(prefix(rule).matches(path.as_bytes()), wanted, "{rule} {path}");
        }
    }
}
