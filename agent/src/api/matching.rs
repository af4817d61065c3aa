//! Which requests a rule is about, as users write it. Words and meaning are those of Gateway API's HTTPRoute.

use std::collections::BTreeMap;

use http::{HeaderName, Method};
use kube::KubeSchema;
use regex::bytes::RegexBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    field::{At, quoted},
    selector,
};
use crate::govern::{path, policy};

/// The largest program that a regular expression may become, in bytes: it runs for every request, on every node.
const MAX_PROGRAM: usize = 256 * 1024;

/// As HTTP defines a token: names of headers and methods (RFC 9110, section 5.6.2).
pub(super) const TOKEN: &str = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$";
/// The same for methods, which are in upper case.
pub(super) const METHOD: &str = r"^[A-Z0-9!#$%&'*+\-.^_`|~]+$";

/// A condition on a request. All of its parts must match; without any it matches every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMatch {
    /// Methods, of which one must match; any if empty. In upper case: GET, not get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 32), regex(pattern = r"^[A-Z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub methods: Vec<String>,
    /// Condition on the path as the server sees it: decoded, without the query, parameters such as ;v=1, empty elements
    /// and dot segments. So /a matches //a, /%61, /./a, /x/../a and /a;v=1, too. The forwarded path is not changed. Some servers
    /// take a path for another one (/a%2fb, /x/..%2fa, //h/a, /x?/../a): a limit counts a request if it matches for one of them, in
    /// the case that is written here, and counts it also for each rule that would apply then. Which rule or lane applies is decided by
    /// the path as most servers see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Conditions on headers; all must match. Names are compared regardless of case. Of a header that is sent more than
    /// once the first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters; all must match. Of a parameter that occurs more than once the first value
    /// counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<ParameterMatch>,
    /// Conditions on cookies; all must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub cookies: Vec<CookieMatch>,
    /// Conditions on the calling pod; one must match. Any pod if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub from: Vec<CallerMatch>,
}

/// A condition on the calling pod. All of its parts must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    // (A reserved word of CEL is escaped.)
    validation = Rule::new("has(self.__namespace__) || has(self.workload) || has(self.podLabels) && self.podLabels.size() > 0")
        .message("empty: namespace, workload or podLabels is needed")
)]
pub struct CallerMatch {
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// The pod's workload: the name of its Deployment, StatefulSet, DaemonSet, CronJob or Job, or the pod's own name if
    /// nothing owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub workload: Option<String>,
    /// Labels that the pod has, with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "selector::labels")]
    pub pod_labels: BTreeMap<String, String>,
}

/// A condition on the path as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.type == 'RegularExpression' || self.value.startsWith('/')")
        .message("a path begins with '/'").field_path(".value"),
    validation = Rule::new("self.type == 'RegularExpression' || !self.value.matches('[?#;*{}]')")
        .message("a path goes without ?, #, ;, *, { and }: queryParams is about the query, type PathPrefix about all that is \
                  below a path, type RegularExpression about patterns").field_path(".value"),
    validation = Rule::new("self.type != 'RegularExpression' || ''.matches(self.value) in [true, false]")
        .message("no regular expression (RE2)").field_path(".value")
)]
pub struct PathMatch {
    /// How the path is compared: Exact; PathPrefix, by path elements (/a matches /a and /a/b, not /ab, /a.json or "/a ", which servers
    /// that compare text may serve, too); RegularExpression (RE2), which may match anywhere in the path unless it is anchored with ^ and $.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = PathMatchType::default()))]
    pub test: Option<PathMatchType>,
    /// What the path is compared with.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

macro_rules! value_match {
    ($(#[$doc:meta])* $name:ident, $pattern:literal, $name_doc:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        #[x_kube(
            validation = Rule::new("has(self.value) != (self.type in ['Present', 'Absent'])")
                .message("type Present and Absent go without a value, the others need one").field_path(".value"),
            validation = Rule::new(
                "self.type != 'RegularExpression' || !has(self.value) || ''.matches(self.value) in [true, false]"
            ).message("no regular expression (RE2)").field_path(".value")
        )]
        pub struct $name {
            #[doc = $name_doc]
            #[schemars(length(min = 1, max = 256), regex(pattern = $pattern))]
            pub name: String,
            /// How the value is compared: Exact; Prefix; RegularExpression (RE2), which may match anywhere in the value
            /// unless it is anchored with ^ and $; Present and Absent, which take no value.
            #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
            #[schemars(extend("default" = ValueMatchType::default()))]
            pub test: Option<ValueMatchType>,
            /// What the value is compared with.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 1024))]
            pub value: Option<String>,
        }

        impl $name {
            fn check(&self, at: &At<'_>) -> policy::ValueTest {
                value_test(self.test.unwrap_or_default(), self.value.as_deref(), &at.field("value"))
            }
        }
    };
}

value_match!(
    /// A condition on a header.
    HeaderMatch,
    r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$",
    "Name of the header."
);
value_match!(
    /// A condition on a query parameter.
    ParameterMatch,
    r"^[^\x00-\x1f]+$",
    "Name of the parameter, decoded. Case matters."
);
value_match!(
    /// A condition on a cookie.
    CookieMatch,
    r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$",
    "Name of the cookie. Case matters."
);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    #[default]
    Exact,
    Prefix,
    RegularExpression,
    Present,
    Absent,
}

impl RequestMatch {
    pub(super) fn check(&self, at: &At<'_>) -> policy::RequestMatch {
        let methods = at.field("methods");
        for (i, method) in self.methods.iter().enumerate() {
            if let Some(earlier) = self.methods[..i].iter().position(|earlier| earlier == method) {
                methods.index(i).refuse(format!("{} is methods[{earlier}] already", quoted(method)));
            }
        }
        let named = self.methods.iter().enumerate();
        policy::RequestMatch {
            methods: named.filter_map(|(i, method)| check_method(method, &methods.index(i))).collect(),
            path: self.path.as_ref().and_then(|path| path.check(&at.field("path"))),
            headers: each(&self.headers, &at.field("headers"), |header, at| {
                Some((check_header_name(&header.name, &at.field("name"))?, header.check(at)))
            }),
            query_parameters: each(&self.query_params, &at.field("queryParams"), |parameter, at| {
                Some((parameter.name.clone(), parameter.check(at)))
            }),
            cookies: each(&self.cookies, &at.field("cookies"), |cookie, at| {
                Some((cookie.name.clone(), cookie.check(at)))
            }),
            from: each(&self.from, &at.field("from"), |from, at| Some(from.check(at))),
        }
    }
}

impl CallerMatch {
    pub(super) fn check(&self, at: &At<'_>) -> policy::CallerMatch {
        if self.namespace.is_none() && self.workload.is_none() && self.pod_labels.is_empty() {
            at.refuse("empty: namespace, workload or podLabels is needed");
        }
        selector::check_keys(self.pod_labels.keys(), &at.field("podLabels"));
        let labels = self.pod_labels.iter();
        policy::CallerMatch {
            namespace: self.namespace.as_deref().map(Into::into),
            workload: self.workload.as_deref().map(Into::into),
            labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        }
    }
}

impl PathMatch {
    pub(super) fn check(&self, at: &At<'_>) -> Option<policy::PathMatch> {
        let test = self.test.unwrap_or_default();
        let at = at.field("value");
        Some(match test {
            PathMatchType::Exact => policy::PathMatch::Exact(check_path(&self.value, &at)?),
            PathMatchType::PathPrefix => policy::PathMatch::Prefix(check_path(&self.value, &at)?),
            PathMatchType::RegularExpression => policy::PathMatch::Regex(check_regex(&self.value, &at)?),
        })
    }
}

/// A path in its normal form.
fn check_path(path: &str, at: &At<'_>) -> Option<String> {
    let wrong = match path.chars().find(|c| matches!(c, '?' | '#' | ';' | '*' | '{' | '}')) {
        _ if !path.starts_with('/') => "a path begins with '/'",
        Some('?') => "a path goes without a query: conditions on it are queryParams",
        Some('#') => "a path goes without a fragment, which clients keep to themselves",
        Some(';') => "a path goes without parameters (;...): they are left out before paths are compared",
        Some('*') => {
            "a path goes without '*': type PathPrefix is about all that is below it, and a pattern is type RegularExpression"
        }
        Some(_) => {
            "a path goes without placeholders: use type PathPrefix, or a pattern with type RegularExpression"
        }
        None => match String::from_utf8(path::normal(path.as_bytes()).into_owned()) {
            Ok(normal) => return Some(normal),
            Err(_) => "decoded it is no UTF-8",
        },
    };
    at.refuse(format!("{} is no path: {wrong}", quoted(path)));
    None
}

fn value_test(test: ValueMatchType, value: Option<&str>, at: &At<'_>) -> policy::ValueTest {
    use ValueMatchType::{Absent, Exact, Prefix, Present, RegularExpression};
    let is = policy::ValueTest::Is;
    match (test, value) {
        (Present, None) => policy::ValueTest::Present,
        (Absent, None) => policy::ValueTest::Absent,
        (Exact, Some(value)) => is(policy::ValueMatch::Exact(value.to_owned())),
        (Prefix, Some(value)) => is(policy::ValueMatch::Prefix(value.to_owned())),
        (RegularExpression, Some(value)) => check_regex(value, at)
            .map_or(policy::ValueTest::Absent, |regex| is(policy::ValueMatch::Regex(regex))),
        (Present | Absent, Some(value)) => {
            at.refuse(format!("{}: type {test:?} goes without a value", quoted(value)));
            policy::ValueTest::Absent
        }
        (Exact | Prefix | RegularExpression, None) => {
            at.refuse(format!("not set: type {test:?} needs a value"));
            policy::ValueTest::Absent
        }
    }
}

/// Makes something of every item; items of which nothing can be made have been refused.
pub(super) fn each<T, U>(items: &[T], at: &At<'_>, make: impl Fn(&T, &At<'_>) -> Option<U>) -> Vec<U> {
    items.iter().enumerate().filter_map(|(i, item)| make(item, &at.index(i))).collect()
}

pub(super) fn check_method(method: &str, at: &At<'_>) -> Option<Method> {
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let upper = method.to_ascii_uppercase();
        at.refuse(format!(
            "{} is no method: methods are in upper case, as in {}",
            quoted(method),
            quoted(&upper)
        ));
        return None;
    }
    at.parse(method, "method: allowed are tokens such as GET", |method| {
        Method::from_bytes(method.as_bytes()).ok()
    })
}

pub(super) fn check_header_name(name: &str, at: &At<'_>) -> Option<HeaderName> {
    at.parse(name, "header name: allowed are letters, digits and !#$%&'*+-.^_`|~", |name| {
        HeaderName::from_bytes(name.as_bytes()).ok()
    })
}

fn check_regex(text: &str, at: &At<'_>) -> Option<policy::Pattern> {
    match RegexBuilder::new(text).size_limit(MAX_PROGRAM).build() {
        Ok(regex) => Some(policy::Pattern(regex)),
        Err(error) => {
            let why = match &error {
                regex::Error::CompiledTooBig(_) => "it becomes too large a program".to_owned(),
                // A drawing of several lines: the last says what is wrong.
                error => {
                    let drawing = error.to_string();
                    let last = drawing.lines().last().unwrap_or_default();
                    last.strip_prefix("error: ").unwrap_or(last).to_owned()
                }
            };
            at.refuse(format!("{} is no regular expression that can be used: {why}", quoted(text)));
            None
        }
    }
}
