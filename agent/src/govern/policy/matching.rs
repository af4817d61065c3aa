//! Which requests a rule is about.

use std::sync::Arc;

use http::{HeaderName, Method};
use regex::bytes::Regex;

use crate::govern::{caller::Caller, path::Seen, request::Request};

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
    /// The caller is one of these; empty: any.
    pub from: Vec<CallerMatch>,
}

/// A condition on the calling pod. All of its parts must hold; without any it matches every pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerMatch {
    pub namespace: Option<Arc<str>>,
    pub workload: Option<Arc<str>>,
    pub labels: Vec<(Arc<str>, Arc<str>)>,
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
    /// For what is chosen by it: the path is the normal one.
    pub fn matches(&self, request: &impl Request) -> bool {
        self.holds(request, |path| path.matches(&request.normal_path()))
    }

    /// For what restricts: the path is whatever some server takes it for.
    pub(in crate::govern) fn may_match<R: Request>(&self, seen: &Seen<'_, R>) -> bool {
        self.holds(seen.request(), |path| seen.forms().any(|form| path.matches(form)))
    }

    /// If the path were this one.
    pub(in crate::govern) fn matches_as(&self, request: &impl Request, path: &[u8]) -> bool {
        self.holds(request, |test| test.matches(path))
    }

    fn holds(&self, request: &impl Request, path_holds: impl Fn(&PathMatch) -> bool) -> bool {
        (self.methods.is_empty()
            || self.methods.iter().any(|method| method.as_str().as_bytes() == request.method()))
            && self.path.as_ref().is_none_or(path_holds)
            && self.headers.iter().all(|(name, test)| test.holds(request.header(name)))
            && self
                .query_parameters
                .iter()
                .all(|(name, test)| test.holds(request.query_parameter(name).as_deref()))
            && self.cookies.iter().all(|(name, test)| test.holds(request.cookie(name).as_deref()))
            && (self.from.is_empty() || is_from(&self.from, request.caller()))
    }
}

/// Whether one of these holds for the caller.
pub fn is_from(from: &[CallerMatch], caller: Option<Caller<'_>>) -> bool {
    caller.is_some_and(|caller| from.iter().any(|one| one.matches(&caller)))
}

impl CallerMatch {
    fn matches(&self, caller: &Caller<'_>) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| **namespace == *caller.namespace)
            && self.workload.as_ref().is_none_or(|workload| **workload == *caller.workload)
            && self.labels.iter().all(|(key, value)| caller.labels.get(key) == Some(value))
    }
}

impl PathMatch {
    /// A byte that is no UTF-8 is a character to an expression (U+FFFD, as it is to RE2): `.*` goes on behind it.
    pub(in crate::govern) fn matches(&self, path: &[u8]) -> bool {
        self.matches_bytes(path)
            || matches!(self, Self::Regex(Pattern(regex)) if std::str::from_utf8(path).is_err()
                && regex.is_match(String::from_utf8_lossy(path).as_bytes()))
    }

    /// The same, but an expression that asks for a character does not find one in a byte that is none.
    pub(in crate::govern) fn matches_bytes(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path == exact.as_bytes(),
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Regex(Pattern(regex)) => regex.is_match(path),
        }
    }

    /// The same whatever the case of the path's letters (ASCII). An expression says itself whether it asks for that (`(?i)`).
    pub(in crate::govern) fn matches_in_any_case(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
                let begins = path.split_at_checked(prefix.len());
                begins.is_some_and(|(begin, rest)| {
                    begin.eq_ignore_ascii_case(prefix) && (rest.is_empty() || rest[0] == b'/')
                })
            }
            Self::Regex(_) => self.matches(path),
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
    use crate::govern::{caller::Labels, request::tests::Plain};

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
            from: Vec::new(),
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
    fn a_caller_is_told_by_its_workload() {
        struct From(Option<(&'static str, &'static str, Labels)>);
        impl Request for From {
            fn method(&self) -> &[u8] {
                b"GET"
            }
            fn target(&self) -> &[u8] {
                b"/"
            }
            fn header(&self, _: &HeaderName) -> Option<&[u8]> {
                None
            }
            fn each_header(&self, _: &HeaderName, _: &mut dyn FnMut(&[u8])) {}
            fn caller(&self) -> Option<Caller<'_>> {
                let (namespace, workload, labels) = self.0.as_ref()?;
                Some(Caller { namespace, workload, labels })
            }
        }
        let labels = || [("app", "web"), ("tier", "front")].into_iter().collect::<Labels>();
        let web = From(Some(("shop", "web", labels())));
        let one = |namespace: &str, workload: &str, labels: &[(&str, &str)]| CallerMatch {
            namespace: (!namespace.is_empty()).then(|| namespace.into()),
            workload: (!workload.is_empty()).then(|| workload.into()),
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        };
        for (rule, wanted) in [
            (one("shop", "web", &[("tier", "front")]), true),
            (one("", "web", &[]), true),
            (one("shop", "", &[]), true),
            (one("", "", &[("app", "web"), ("tier", "front")]), true),
            (one("other", "web", &[]), false),
            (one("shop", "we", &[]), false),
            (one("", "", &[("app", "web"), ("tier", "back")]), false),
            (one("", "", &[("zone", "a")]), false),
        ] {
            let only = RequestMatch { from: vec![rule.clone()], ..RequestMatch::default() };
            assert_eq!(only.matches(&web), wanted, "{rule:?}");
            let either =
                RequestMatch { from: vec![one("x", "", &[]), rule.clone()], ..RequestMatch::default() };
            assert_eq!(either.matches(&web), wanted, "{rule:?}");
            assert!(!only.matches(&From(None)), "who calls is not known");
        }
    }

    #[test]
    fn what_restricts_holds_for_each_form_of_a_path_and_what_is_chosen_for_the_normal_one() {
        let secret = RequestMatch {
            methods: vec![Method::GET],
            path: Some(PathMatch::Prefix("/secret".to_owned())),
            ..RequestMatch::default()
        };
        for target in [
            "/secret%2fx.txt",
            "/open/..%2fsecret/x",
            "/%u0073ecret",
            "/\\secret",
            "//h/secret",
            "/o?/../secret",
        ] {
            let request = Plain::get(target);
            assert!(secret.may_match(&Seen::new(&request)) && !secret.matches(&request), "{target}");
            let other = Plain { method: "POST", ..request };
            assert!(!secret.may_match(&Seen::new(&other)), "{target}");
        }
        for (target, wanted) in
            [("/secret/x", true), ("/open", false), ("/SECRET", false), ("/o?next=/secret", false)]
        {
            let request = Plain::get(target);
            assert_eq!(secret.may_match(&Seen::new(&request)), wanted, "{target}");
            assert_eq!(secret.matches(&request), wanted, "{target}");
        }
    }

    #[test]
    fn an_expression_does_not_end_at_a_byte_that_is_no_text() {
        let regex = |pattern: &str| PathMatch::Regex(Pattern(Regex::new(pattern).expect("one")));
        for pattern in ["^/a/.*$", "^/a/[^/]+/b$", "^/a/..?/b$"] {
            for path in [&b"/a/\xd6\xd0/b"[..], b"/a/\xff/b"] {
                assert!(regex(pattern).matches(path), "{pattern}");
                assert!(!regex(pattern).matches_bytes(path), "{pattern}");
            }
        }
        assert!(!regex("^/b").matches(b"/a/\xff/b") && regex("^/a/").matches_bytes(b"/a/\xff"));
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
