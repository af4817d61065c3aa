//! Rules of routes in words, for those who ask what they come to.

use super::{
    Action, Rule,
    matching::{Match, PathTest},
};
use crate::govern::policy::ValueMatch;

/// `GET /orders/*, header x-user`
pub fn about(one: &Match) -> String {
    let path = match &one.path {
        PathTest::Any => "any path".to_owned(),
        PathTest::Exact(path) => path.clone(),
        PathTest::Prefix(prefix) => format!("{prefix}/*"),
        PathTest::Method(method) => format!("method {method}"),
        PathTest::Regex(pattern) => format!("path like {}", pattern.0.as_str()),
    };
    let wanted = |wanted: &ValueMatch| match wanted {
        ValueMatch::Exact(value) => format!("={value}"),
        ValueMatch::Prefix(value) => format!("={value}*"),
        ValueMatch::Regex(pattern) => format!(" like {}", pattern.0.as_str()),
    };
    let method = one.method.as_ref().map(|method| format!("{method} ")).unwrap_or_default();
    let headers = one.headers.iter().map(|(name, value)| format!("header {name}{}", wanted(value)));
    let query = one.query_parameters.iter().map(|(name, value)| format!("query {name}{}", wanted(value)));
    let all: Vec<_> = std::iter::once(format!("{method}{path}")).chain(headers).chain(query).collect();
    all.join(", ")
}

/// What a rule does, in order.
pub fn does(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    if rule.cors.is_some() {
        all.push("says which pages may ask (CORS)".to_owned());
    }
    match &rule.action {
        Action::Redirect(redirect) => all.push(format!("redirects ({})", redirect.status.as_u16())),
        Action::Forward { rewrite, backends } => {
            if !rule.headers.request.is_empty() {
                all.push("changes request headers".to_owned());
            }
            if !rewrite.is_empty() {
                all.push("rewrites the host or the path".to_owned());
            }
            let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
            for backend in backends.iter() {
                let to = backend
                    .service
                    .as_ref()
                    .map_or("nowhere (500)".to_owned(), |service| format!("to {service}"));
                all.push(match backend.weight {
                    weight if u64::from(weight) == total => to,
                    weight => format!("{weight} of {total} {to}"),
                });
            }
            if total == 0 {
                all.push("500: no backend has a weight".to_owned());
            }
            let mirrors = rule.mirrors.iter().chain(backends.iter().flat_map(|backend| &backend.mirrors));
            for mirror in mirrors {
                let Some(service) = &mirror.service else { continue };
                all.push(format!("copies {} % to {service}", mirror.fraction.percent()));
            }
        }
    }
    if !rule.headers.response.is_empty() {
        all.push("changes response headers".to_owned());
    }
    let timeouts = [("request", rule.timeouts.request), ("backend request", rule.timeouts.attempt)];
    all.extend(timeouts.into_iter().filter_map(|(what, time)| Some(format!("{what} within {:?}", time?))));
    all
}
