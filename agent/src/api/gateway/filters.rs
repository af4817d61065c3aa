//! What a rule, or a backend of it, changes.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;

use super::{
    super::field::{At, quoted},
    Place,
    matches::unsupported,
    port,
    rules::{BackendRef, service_of},
};
use crate::govern::{
    headers,
    policy::{Edits, HeaderEdits},
    routes::{
        cors::{self, Listed, Origin},
        filters::{PathEdit, Redirect, Rewrite, Scheme},
        mirror::{Fraction, Mirror},
    },
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<Modifier>,
    response_header_modifier: Option<Modifier>,
    request_redirect: Option<RequestRedirect>,
    url_rewrite: Option<UrlRewrite>,
    request_mirror: Option<RequestMirror>,
    cors: Option<Cors>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Modifier {
    #[serde(default)]
    set: Vec<Line>,
    #[serde(default)]
    add: Vec<Line>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestRedirect {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathModifier>,
    port: Option<i64>,
    status_code: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UrlRewrite {
    hostname: Option<String>,
    path: Option<PathModifier>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathModifier {
    #[serde(rename = "type")]
    kind: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cors {
    #[serde(default)]
    allow_origins: Vec<String>,
    #[serde(default)]
    allow_credentials: bool,
    #[serde(default)]
    allow_methods: Vec<String>,
    #[serde(default)]
    allow_headers: Vec<String>,
    #[serde(default)]
    expose_headers: Vec<String>,
    max_age: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestMirror {
    backend_ref: BackendRef,
    percent: Option<i64>,
    fraction: Option<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Part {
    numerator: i64,
    denominator: Option<i64>,
}

/// As the schema of Gateway API has it.
const MAX_AGE: u32 = i32::MAX as u32;

/// What the filters of a rule come to.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) headers: HeaderEdits,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Rewrite,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<cors::Cors>,
}

/// `all`: those that may stand here, and are supported.
pub(super) fn check(filters: &[Filter], all: &[&str], place: &Place<'_>, at: &At<'_>) -> Filters {
    let mut found = Filters::default();
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index(index);
        let kind = filter.kind.as_str();
        if !all.contains(&kind) {
            unsupported::<()>(&at.field("type"), kind, &all.join(", "));
            continue;
        }
        // Copies may go to several Services.
        if kind != "RequestMirror" && filters[..index].iter().any(|other| other.kind == kind) {
            at.field("type").refuse(format!("{} is there already: each may stand once", quoted(kind)));
            continue;
        }
        let missing = |field: &str| at.field(field).refuse(format!("not set: {kind} needs it"));
        match kind {
            "RequestHeaderModifier" => match &filter.request_header_modifier {
                Some(modifier) => found.headers.request = modifier.check(&at.field("requestHeaderModifier")),
                None => missing("requestHeaderModifier"),
            },
            "ResponseHeaderModifier" => match &filter.response_header_modifier {
                Some(modifier) => {
                    found.headers.response = modifier.check(&at.field("responseHeaderModifier"));
                }
                None => missing("responseHeaderModifier"),
            },
            "RequestRedirect" => match &filter.request_redirect {
                Some(redirect) => found.redirect = redirect.check(&at.field("requestRedirect")),
                None => missing("requestRedirect"),
            },
            "RequestMirror" => match &filter.request_mirror {
                Some(mirror) => found.mirrors.extend(mirror.check(place, &at.field("requestMirror"))),
                None => missing("requestMirror"),
            },
            "CORS" => match &filter.cors {
                Some(cors) => found.cors = Some(cors.check(&at.field("cors"))),
                None => missing("cors"),
            },
            _ => match &filter.url_rewrite {
                Some(rewrite) => found.rewrite = rewrite.check(&at.field("urlRewrite")),
                None => missing("urlRewrite"),
            },
        }
    }
    if found.redirect.is_some() && !found.rewrite.is_empty() {
        at.refuse("RequestRedirect and URLRewrite cannot stand together: allowed is one of them");
    }
    if found.redirect.is_some() && !found.mirrors.is_empty() {
        at.refuse(
            "RequestRedirect and RequestMirror cannot stand together: a redirected request goes nowhere",
        );
    }
    found
}

impl Cors {
    fn check(&self, at: &At<'_>) -> cors::Cors {
        let origins = at.field("allowOrigins");
        let read = self.allow_origins.iter().enumerate().filter_map(|(index, text)| {
            // Only at the beginning may be a `*`.
            let read = Origin::read(text).filter(|_| !text.get(1..).is_some_and(|rest| {
                rest.split_once("://").map_or(rest, |(_, host)| host.strip_prefix('*').unwrap_or(host)).contains('*')
            }));
            if read.is_none() {
                origins.index(index).refuse(format!(
                    "{} is no origin: allowed are *, and http or https with a host and a port, as in https://*.example.com:8443",
                    quoted(text)
                ));
            }
            read
        });
        let allowed = read.collect();
        let names = |field: &str, all: &[String], is_name: &dyn Fn(&str) -> bool| {
            let at = at.field(field);
            for (index, name) in all.iter().enumerate().filter(|(_, name)| *name != "*") {
                if !is_name(name) {
                    at.index(index).refuse(format!("{} is no name", quoted(name)));
                }
            }
            match all {
                [] => Listed::Unset,
                [only] if only == "*" => Listed::All,
                all if all.iter().any(|name| name == "*") => {
                    at.refuse("* stands alone: it is all of them");
                    Listed::Unset
                }
                all => HeaderValue::from_str(&all.join(", ")).map_or(Listed::Unset, Listed::Names),
            }
        };
        let is_method = |name: &str| Method::from_bytes(name.as_bytes()).is_ok();
        let is_header = |name: &str| HeaderName::from_bytes(name.as_bytes()).is_ok();
        let max_age = self.max_age.unwrap_or(5);
        let seconds = u32::try_from(max_age).ok().filter(|seconds| (1..=MAX_AGE).contains(seconds));
        if seconds.is_none() {
            at.field("maxAge").refuse(format!("{max_age} is no time: allowed are 1 to {MAX_AGE} seconds"));
        }
        cors::Cors {
            origins: allowed,
            credentials: self.allow_credentials,
            methods: names("allowMethods", &self.allow_methods, &is_method),
            headers: names("allowHeaders", &self.allow_headers, &is_header),
            expose: names("exposeHeaders", &self.expose_headers, &is_header),
            max_age: seconds.unwrap_or_default(),
        }
    }
}

impl RequestMirror {
    fn check(&self, place: &Place<'_>, at: &At<'_>) -> Option<Mirror> {
        let service = service_of(&self.backend_ref, place, &at.field("backendRef"));
        let of = |numerator: i64, denominator: i64| {
            Fraction::new(u32::try_from(numerator).ok()?, u32::try_from(denominator).ok()?)
        };
        let fraction = match (self.percent, &self.fraction) {
            (None, None) => Some(Fraction::ALL),
            (Some(_), Some(_)) => {
                at.refuse("percent and fraction cannot stand together: allowed is one of them");
                return None;
            }
            (Some(percent), None) => {
                let fraction = of(percent, 100);
                if fraction.is_none() {
                    at.field("percent").refuse(format!("{percent} is no percentage: allowed are 0 to 100"));
                }
                fraction
            }
            (None, Some(Part { numerator, denominator })) => {
                let denominator = denominator.unwrap_or(100);
                let fraction = of(*numerator, denominator);
                if fraction.is_none() {
                    at.field("fraction").refuse(format!(
                        "{numerator} of {denominator} is no part: allowed is a denominator from 1 on, and a numerator \
                         from 0 to it"
                    ));
                }
                fraction
            }
        };
        Some(Mirror { service, fraction: fraction? })
    }
}

impl Modifier {
    fn check(&self, at: &At<'_>) -> Edits {
        let lines = |lines: &[Line], at: &At<'_>| -> Vec<(HeaderName, HeaderValue)> {
            let checked = lines.iter().enumerate().filter_map(|(index, line)| {
                let at = at.index(index);
                let name = header_name(&line.name, &at.field("name"));
                let value = at.field("value").parse(&line.value, "header value", |value| {
                    HeaderValue::from_bytes(value.trim().as_bytes()).ok()
                });
                name.zip(value)
            });
            checked.collect()
        };
        let names = at.field("remove");
        let removed = self.remove.iter().enumerate();
        Edits {
            remove: removed.filter_map(|(index, name)| header_name(name, &names.index(index))).collect(),
            set: lines(&self.set, &at.field("set")),
            add: lines(&self.add, &at.field("add")),
        }
    }
}

fn header_name(text: &str, at: &At<'_>) -> Option<HeaderName> {
    let name = at.parse(text, "header name", |text| HeaderName::from_bytes(text.as_bytes()).ok())?;
    if headers::may_be_set(name.as_str().as_bytes()) {
        return Some(name);
    }
    at.refuse(format!(
        "{} is not supported here: it frames the message, is about one connection, or is Sluice's own",
        quoted(text)
    ));
    None
}

impl RequestRedirect {
    fn check(&self, at: &At<'_>) -> Option<Redirect> {
        let scheme = match self.scheme.as_deref() {
            None => None,
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(other) => unsupported(&at.field("scheme"), other, "http, https"),
        };
        let status = self.status_code.unwrap_or(302);
        let status = [301, 302, 303, 307, 308].contains(&status).then(|| StatusCode::from_u16(status).ok());
        if status.is_none() {
            at.field("statusCode").refuse("not supported: allowed are 301, 302, 303, 307, 308");
        }
        Some(Redirect {
            scheme,
            hostname: hostname(self.hostname.as_deref(), &at.field("hostname")),
            path: self.path.as_ref().and_then(|path| path.check(&at.field("path"))),
            port: self.port.and_then(|number| port(number, &at.field("port"))),
            status: status??,
        })
    }
}

impl UrlRewrite {
    fn check(&self, at: &At<'_>) -> Rewrite {
        Rewrite {
            hostname: hostname(self.hostname.as_deref(), &at.field("hostname")),
            path: self.path.as_ref().and_then(|path| path.check(&at.field("path"))),
        }
    }
}

/// A name of hosts as DNS has them, in lower case.
fn hostname(text: Option<&str>, at: &At<'_>) -> Option<String> {
    let text = text?;
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(good) && !label.starts_with('-') && !label.ends_with('-')
    };
    at.parse(text, "hostname", |text| {
        (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_owned())
    })
}

impl PathModifier {
    fn check(&self, at: &At<'_>) -> Option<PathEdit> {
        let path = |field: &str, text: &Option<String>| {
            let at = at.field(field);
            let Some(text) = text else {
                at.refuse(format!("not set: {} needs it", self.kind));
                return None;
            };
            // It goes into a request line, or a header, as it is.
            let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
            if (text.is_empty() || text.starts_with('/')) && text.bytes().all(good) {
                return Some(text.clone());
            }
            at.refuse(format!("{} is no path: it begins with /, and has no space, ?, or #", quoted(text)));
            None
        };
        match &*self.kind {
            "ReplaceFullPath" => path("replaceFullPath", &self.replace_full_path).map(PathEdit::Full),
            "ReplacePrefixMatch" => {
                path("replacePrefixMatch", &self.replace_prefix_match).map(PathEdit::Prefix)
            }
            other => unsupported(&at.field("type"), other, "ReplaceFullPath, ReplacePrefixMatch"),
        }
    }
}
