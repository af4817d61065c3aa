//! Cross-origin requests: which pages of other origins may ask, and what browsers are told of it.
//!
//! The rules of a browser are the Fetch standard's (<https://fetch.spec.whatwg.org/#http-cors-protocol>), the fields those of
//! Gateway API's filter `CORS`. A preflight is answered in the Service's place; to what the Service answers, the headers are added
//! that let the page read it. A request without `Origin` is none of this module's.

use http::{HeaderName, HeaderValue, Method, header};

use super::super::{policy::Edits, request::Request};

/// Who may ask what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    pub origins: Vec<Origin>,
    pub credentials: bool,
    pub methods: Listed,
    pub headers: Listed,
    pub expose: Listed,
    /// How long a browser may remember the answer to a preflight, in seconds.
    pub max_age: u32,
}

/// `https://*.example.com:8443`, or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Any,
    Of {
        scheme: &'static str,
        /// In lower case; `*.` at its beginning, or `*` alone, stands for anything.
        host: String,
        port: u16,
    },
}

/// Names, as a header lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listed {
    /// Nothing is said.
    #[default]
    Unset,
    All,
    /// `GET, PUT`
    Names(HeaderValue),
}

/// What becomes of a request from a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, and nothing is added: every response says the same.
    Passes,
    /// It goes on. It is not from a page of another origin, or its origin is not allowed; the response says that to others it may be
    /// another one, lest a cache give it to a page whose origin is allowed.
    Varies,
    /// It goes on, and this is changed in the response.
    Adds(Box<Edits>),
    /// It is a preflight, and answered with these headers; without one that allows an origin, its own is not allowed.
    Preflight(Vec<(HeaderName, HeaderValue)>),
}

impl Origin {
    /// An origin as a filter writes it, or as a browser sends it; `None`: it is none.
    pub fn read(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (scheme, default, rest) = match text.split_once("://")? {
            (scheme, rest) if scheme.eq_ignore_ascii_case("http") => ("http", 80, rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("https") => ("https", 443, rest),
            _ => return None,
        };
        // `[::1]:80`
        let colon = rest.rfind(':').filter(|at| !rest[*at..].contains(']'));
        let (host, port) = match colon {
            Some(at) => (&rest[..at], rest[at + 1..].parse().ok().filter(|port| *port > 0)?),
            None => (rest, default),
        };
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return None;
        }
        Some(Self::Of { scheme, host: host.to_ascii_lowercase(), port })
    }

    fn allows(&self, asking: &Self) -> bool {
        match (self, asking) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (
                Self::Of { scheme, host, port },
                Self::Of { scheme: of_asking, host: asking, port: port_of_asking },
            ) => {
                let is_host = match host.strip_prefix('*') {
                    Some(end) => asking.len() > end.len() && asking.ends_with(end),
                    None => asking == host,
                };
                scheme == of_asking && port == port_of_asking && is_host
            }
        }
    }
}

impl Cors {
    pub fn outcome(&self, request: &impl Request) -> Outcome {
        let any = self.origins.contains(&Origin::Any) && !self.credentials;
        let others = if any { Outcome::Passes } else { Outcome::Varies };
        let Some(origin) = request.header(&header::ORIGIN) else { return others };
        let asked = request.header(&header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = asked.filter(|_| request.method() == Method::OPTIONS.as_str().as_bytes());
        let vary = (!any).then_some((header::VARY, VARY_BY));
        if !self.is_allowed(origin) {
            return if preflight.is_some() { Outcome::Preflight(vary.into_iter().collect()) } else { others };
        }
        let mut lines = Vec::new();
        let value = if any { Some(ANY) } else { HeaderValue::from_bytes(origin).ok() };
        lines.extend(value.map(|value| (header::ACCESS_CONTROL_ALLOW_ORIGIN, value)));
        if self.credentials {
            lines.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        let Some(method) = preflight else {
            // With credentials `*` would be a name like any other.
            let expose = self.expose.value(None, self.credentials);
            lines.extend(expose.map(|value| (header::ACCESS_CONTROL_EXPOSE_HEADERS, value)));
            return Outcome::Adds(Box::new(Edits {
                remove: Vec::new(),
                set: lines,
                add: vary.into_iter().collect(),
            }));
        };
        let methods = self.methods.value(Some(method), self.credentials);
        lines.extend(methods.map(|value| (header::ACCESS_CONTROL_ALLOW_METHODS, value)));
        let headers = request.header(&header::ACCESS_CONTROL_REQUEST_HEADERS);
        let headers = self.headers.value(headers, self.credentials);
        lines.extend(headers.map(|value| (header::ACCESS_CONTROL_ALLOW_HEADERS, value)));
        lines.push((header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age)));
        lines.extend(vary);
        Outcome::Preflight(lines)
    }

    fn is_allowed(&self, origin: &[u8]) -> bool {
        if self.origins.contains(&Origin::Any) {
            return true;
        }
        let asking = std::str::from_utf8(origin).ok().and_then(Origin::read);
        // `null` is the origin of what has none: files, sandboxes.
        asking
            .is_some_and(|asking| asking != Origin::Any && self.origins.iter().any(|one| one.allows(&asking)))
    }
}

const ANY: HeaderValue = HeaderValue::from_static("*");
/// What [`header::VARY`] says where responses depend on who asks.
/// <https://fetch.spec.whatwg.org/#cors-protocol-and-http-caches>
pub const VARY_BY: HeaderValue = HeaderValue::from_static("origin");

impl Listed {
    /// What is said where `asked` was asked for.
    fn value(&self, asked: Option<&[u8]>, credentials: bool) -> Option<HeaderValue> {
        match self {
            Self::Unset => None,
            Self::Names(names) => Some(names.clone()),
            Self::All if !credentials => Some(ANY),
            Self::All => HeaderValue::from_bytes(asked?).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Asked<'a>(&'a [u8], &'a [(&'a str, &'a str)]);

    impl Request for Asked<'_> {
        fn method(&self) -> &[u8] {
            self.0
        }

        fn target(&self) -> &[u8] {
            b"/"
        }

        fn header(&self, name: &HeaderName) -> Option<&[u8]> {
            self.1.iter().find(|(key, _)| *key == name.as_str()).map(|(_, value)| value.as_bytes())
        }

        fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
            self.1
                .iter()
                .filter(|(key, _)| *key == name.as_str())
                .for_each(|(_, value)| each(value.as_bytes()));
        }
    }

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let names = |text| Listed::Names(HeaderValue::from_static(text));
        Cors {
            origins: origins.iter().map(|one| Origin::read(one).unwrap()).collect(),
            credentials,
            methods: names("GET, PUT"),
            headers: names("x-a, x-b"),
            expose: names("x-c"),
            max_age: 5,
        }
    }

    fn shown(lines: &[(HeaderName, HeaderValue)]) -> Vec<String> {
        lines.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn origins_are_those_that_the_filter_lists() {
        for (listed, origin, allowed) in [
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://A.Example:443", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://b.a.example", false),
            ("http://a.example:8080", "http://a.example:8080", true),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://b.a.example", true),
            ("https://*.example", "https://example", false),
            ("https://*.example", "https://.example", false),
            ("https://*", "https://whatever.it", true),
            ("http://*:81", "http://whatever.it:81", true),
            ("http://*:81", "http://whatever.it", false),
            ("*", "https://whatever.it", true),
            ("*", "null", true),
            ("https://*", "null", false),
            ("https://a.example", "*", false),
            ("https://a.example", "https://a.example/x", false),
            ("https://*.example", "https://evil.it/.example", false),
            ("https://*.example", "https://x@evil.example", false),
        ] {
            let origin_line = [("origin", origin)];
            let outcome = cors(&[listed], false).outcome(&Asked(b"GET", &origin_line));
            assert_eq!(matches!(outcome, Outcome::Adds(_)), allowed, "{listed} {origin}: {outcome:?}");
        }
        for text in ["", "a.example", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a:70000"] {
            assert_eq!(Origin::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_preflight_is_answered() {
        let lines = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a"),
        ];
        let preflight = Asked(b"OPTIONS", &lines);
        let Outcome::Preflight(got) = cors(&["https://a.example"], true).outcome(&preflight) else {
            panic!()
        };
        let wanted = [
            "access-control-allow-origin: https://a.example",
            "access-control-allow-credentials: true",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-headers: x-a, x-b",
            "access-control-max-age: 5",
            "vary: origin",
        ];
        assert_eq!(shown(&got), wanted);
        // Everything is allowed: `*`, but not with credentials.
        let all =
            |credentials| Cors { methods: Listed::All, headers: Listed::All, ..cors(&["*"], credentials) };
        let Outcome::Preflight(got) = all(false).outcome(&preflight) else { panic!() };
        assert_eq!(
            shown(&got),
            [
                "access-control-allow-origin: *",
                "access-control-allow-methods: *",
                "access-control-allow-headers: *",
                "access-control-max-age: 5"
            ]
        );
        let Outcome::Preflight(got) = all(true).outcome(&preflight) else { panic!() };
        assert_eq!(
            shown(&got)[2..4],
            ["access-control-allow-methods: PUT", "access-control-allow-headers: x-a"]
        );
        // What is not asked for is not said.
        let bare = Asked(b"OPTIONS", &lines[..2]);
        let Outcome::Preflight(got) = all(true).outcome(&bare) else { panic!() };
        assert!(!shown(&got).iter().any(|line| line.starts_with("access-control-allow-headers")));
        let Outcome::Preflight(got) = cors(&["https://b.example"], true).outcome(&preflight) else {
            panic!()
        };
        assert_eq!(shown(&got), ["vary: origin"], "it is not allowed, and others are");
    }

    #[test]
    fn responses_say_who_may_read_them() {
        let lines = [("origin", "https://a.example")];
        let Outcome::Adds(edits) = cors(&["https://a.example"], true).outcome(&Asked(b"GET", &lines)) else {
            panic!()
        };
        let wanted = [
            "access-control-allow-origin: https://a.example",
            "access-control-allow-credentials: true",
            "access-control-expose-headers: x-c",
        ];
        assert_eq!(
            (shown(&edits.set), shown(&edits.add)),
            (wanted.map(str::to_owned).into(), vec!["vary: origin".to_owned()])
        );
        let exposes = |credentials| Cors { expose: Listed::All, ..cors(&["*"], credentials) };
        let Outcome::Adds(edits) = exposes(false).outcome(&Asked(b"GET", &lines)) else { panic!() };
        assert_eq!(shown(&edits.set), ["access-control-allow-origin: *", "access-control-expose-headers: *"]);
        assert_eq!(edits.add, []);
        let Outcome::Adds(edits) = exposes(true).outcome(&Asked(b"GET", &lines)) else { panic!() };
        assert!(!shown(&edits.set).iter().any(|line| line.contains("expose")), "{edits:?}");
        // OPTIONS alone is no preflight, and without an origin there is nothing to say.
        assert!(matches!(exposes(true).outcome(&Asked(b"OPTIONS", &lines)), Outcome::Adds(_)));
        assert_eq!(exposes(false).outcome(&Asked(b"GET", &[])), Outcome::Passes);
    }

    /// A shared cache may keep the response, and give it to a page whose origin is allowed, or the other way round.
    #[test]
    fn responses_say_that_they_depend_on_who_asks() {
        let of = |listed: &str, credentials, lines: &[_]| {
            cors(&[listed], credentials).outcome(&Asked(b"GET", lines))
        };
        let elsewhere = [("origin", "https://b.example")];
        for lines in [&[][..], &elsewhere] {
            assert_eq!(of("https://a.example", false, lines), Outcome::Varies, "{lines:?}");
            assert_eq!(of("https://a.example", true, lines), Outcome::Varies, "{lines:?}");
        }
        // With credentials the response says who asked, although all may.
        assert_eq!(of("*", true, &[]), Outcome::Varies);
        // Without, all are told the same.
        assert_eq!(of("*", false, &[]), Outcome::Passes);
    }
}
