//! What a rule is about.

use http::{HeaderName, Method};
use serde::Deserialize;

use super::super::field::{At, quoted};
use crate::govern::{
    path,
    policy::{Pattern, ValueMatch},
    routes::{
        matching::{Match, PathTest},
        pattern,
    },
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpMatch {
    path: Option<HttpPath>,
    method: Option<String>,
    #[serde(default)]
    headers: Vec<Named>,
    #[serde(default)]
    query_params: Vec<Named>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpPath {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: Option<String>,
}

/// A header or a query parameter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GrpcMatch {
    method: Option<GrpcMethod>,
    #[serde(default)]
    headers: Vec<Named>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GrpcMethod {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

/// The methods that the specification lists.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

impl HttpMatch {
    pub(super) fn check(&self, at: &At<'_>) -> Option<Match> {
        let path = match &self.path {
            None => Some(PathTest::Any),
            Some(path) => path.check(&at.field("path")),
        };
        let method = match self.method.as_deref() {
            None => Some(None),
            Some(name) => {
                let at = at.field("method");
                if !METHODS.contains(&name) {
                    at.refuse(format!(
                        "{} is not supported: allowed are {}",
                        quoted(name),
                        METHODS.join(", ")
                    ));
                }
                Method::from_bytes(name.as_bytes()).ok().map(Some)
            }
        };
        let headers = headers(&self.headers, &at.field("headers"));
        let query = at.field("queryParams");
        let mut query_parameters: Vec<(String, ValueMatch)> = Vec::new();
        for (index, named) in self.query_params.iter().enumerate() {
            let wanted = named.check(&query.index(index));
            // Of two with the same name the first counts.
            if let Some(wanted) = wanted
                && query_parameters.iter().all(|(name, _)| *name != named.name)
            {
                query_parameters.push((named.name.clone(), wanted));
            }
        }
        Some(Match { path: path?, method: method?, headers, query_parameters })
    }
}

impl HttpPath {
    fn check(&self, at: &At<'_>) -> Option<PathTest> {
        let value = self.value.as_deref().unwrap_or("/");
        let plain = || {
            if let Some(why) = wrong_path(value) {
                at.field("value").refuse(format!("{} is no path: {why}", quoted(value)));
                return None;
            }
            Some(String::from_utf8_lossy(&path::normal(value.as_bytes())).into_owned())
        };
        match self.kind.as_deref().unwrap_or("PathPrefix") {
            "Exact" => plain().map(PathTest::Exact),
            "PathPrefix" => plain().map(|prefix| PathTest::prefix(&prefix)),
            "RegularExpression" => regex(value, &at.field("value")).map(PathTest::Regex),
            other => unsupported(&at.field("type"), other, "Exact, PathPrefix, RegularExpression"),
        }
    }
}

/// What the specification does not let a path have.
fn wrong_path(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("it begins with /".to_owned());
    }
    let has = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| path.contains(part));
    let has = has.or_else(|| ["/.", "/.."].into_iter().find(|end| path.ends_with(end)));
    if let Some(part) = has {
        return Some(format!("{part:?} cannot be matched, for paths are compared in their normal form"));
    }
    let bytes = path.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let allowed = |(at, byte): (usize, &u8)| match byte {
        b'%' => is_hex(at + 1) && is_hex(at + 2),
        byte => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(byte),
    };
    let wrong = bytes.iter().enumerate().find(|byte| !allowed(*byte))?.0;
    let wrong = path.get(wrong..).and_then(|rest| rest.chars().next()).unwrap_or_default();
    Some(match wrong {
        '?' => "a query is matched by queryParams".to_owned(),
        '%' => "a % stands before two hexadecimal digits".to_owned(),
        other => format!("{other:?} is not in any: it is written as % and two hexadecimal digits"),
    })
}

impl Named {
    fn check(&self, at: &At<'_>) -> Option<ValueMatch> {
        match self.kind.as_deref().unwrap_or("Exact") {
            "Exact" => Some(ValueMatch::Exact(self.value.clone())),
            "RegularExpression" => regex(&self.value, &at.field("value")).map(ValueMatch::Regex),
            other => unsupported(&at.field("type"), other, "Exact, RegularExpression"),
        }
    }
}

fn headers(all: &[Named], at: &At<'_>) -> Vec<(HeaderName, ValueMatch)> {
    let mut found: Vec<(HeaderName, ValueMatch)> = Vec::new();
    for (index, named) in all.iter().enumerate() {
        let at = at.index(index);
        let name = at
            .field("name")
            .parse(&named.name, "header name", |name| HeaderName::from_bytes(name.as_bytes()).ok());
        // Of two with the same name the first counts.
        if let Some((name, wanted)) = name.zip(named.check(&at))
            && found.iter().all(|(other, _)| *other != name)
        {
            found.push((name, wanted));
        }
    }
    found
}

impl GrpcMatch {
    pub(super) fn check(&self, at: &At<'_>) -> Option<Match> {
        let path = match &self.method {
            None => Some(PathTest::Any),
            Some(method) => method.check(&at.field("method")),
        };
        let headers = headers(&self.headers, &at.field("headers"));
        Some(Match { path: path?, headers, ..Match::default() })
    }
}

impl GrpcMethod {
    /// As a condition on the path, which is `/service/method`.
    fn check(&self, at: &At<'_>) -> Option<PathTest> {
        let word = |name: &str, text: &Option<String>| {
            let text = text.as_deref().filter(|text| !text.is_empty())?;
            if text.contains('/') {
                at.field(name).refuse(format!("{} has a /", quoted(text)));
            }
            Some(text.to_owned())
        };
        match self.kind.as_deref().unwrap_or("Exact") {
            "Exact" => match (word("service", &self.service), word("method", &self.method)) {
                (Some(service), Some(method)) => Some(PathTest::Exact(format!("/{service}/{method}"))),
                (Some(service), None) => Some(PathTest::prefix(&format!("/{service}"))),
                (None, Some(method)) => Some(PathTest::Method(method)),
                (None, None) => {
                    at.refuse("neither service nor method is set: allowed are one of them, or both");
                    None
                }
            },
            "RegularExpression" => {
                let part = |name: &str, text: &Option<String>| match text.as_deref() {
                    None | Some("") => Some("[^/]+".to_owned()),
                    // Each by itself, so that what is wrong is said of the right one.
                    Some(text) => regex(text, &at.field(name)).map(|_| format!("(?:{text})")),
                };
                let (service, method) = (part("service", &self.service), part("method", &self.method));
                regex(&format!("/{}/{}", service?, method?), at).map(PathTest::Regex)
            }
            other => unsupported(&at.field("type"), other, "Exact, RegularExpression"),
        }
    }
}

fn regex(text: &str, at: &At<'_>) -> Option<Pattern> {
    match pattern(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim();
            at.refuse(format!("{} is no regular expression: {why}", quoted(text)));
            None
        }
    }
}

pub(super) fn unsupported<T>(at: &At<'_>, value: &str, allowed: &str) -> Option<T> {
    at.refuse(format!("{} is not supported: allowed are {allowed}", quoted(value)));
    None
}
