//! What a rule, or a backend of it, changes.

use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;

use super::{
    super::field::{At, quoted},
    matches::unsupported,
    port,
};
use crate::govern::{
    headers,
    policy::{Edits, HeaderEdits},
    routes::filters::{PathEdit, Redirect, Rewrite, Scheme},
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

/// What the filters of a rule come to.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) headers: HeaderEdits,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Rewrite,
}

/// `all`: those that may stand here, and are supported.
pub(super) fn check(filters: &[Filter], all: &[&str], at: &At<'_>) -> Filters {
    let mut found = Filters::default();
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index(index);
        let kind = filter.kind.as_str();
        if !all.contains(&kind) {
            unsupported::<()>(&at.field("type"), kind, &all.join(", "));
            continue;
        }
        if filters[..index].iter().any(|other| other.kind == kind) {
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
            _ => match &filter.url_rewrite {
                Some(rewrite) => found.rewrite = rewrite.check(&at.field("urlRewrite")),
                None => missing("urlRewrite"),
            },
        }
    }
    if found.redirect.is_some() && !found.rewrite.is_empty() {
        at.refuse("RequestRedirect and URLRewrite cannot stand together: allowed is one of them");
    }
    found
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
