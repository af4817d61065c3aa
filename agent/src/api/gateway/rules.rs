//! The rules of a route, and their backends.

use std::time::Duration;

use serde::Deserialize;

use super::{
    super::field::{At, FieldError, quoted},
    Place, Written,
    filters::{self, Filter, Filters},
    is_core,
    matches::{GrpcMatch, HttpMatch},
    port,
};
use crate::govern::routes::{
    Action, Kind, Rule, Timeouts,
    backends::{Backend, Backends, ServicePort},
    filters::PathEdit,
    matching::{Match, PathTest},
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<HttpMatch>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    backend_refs: Vec<BackendRef>,
    timeouts: Option<HttpTimeouts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GrpcRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<GrpcMatch>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    backend_refs: Vec<BackendRef>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpTimeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BackendRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    weight: Option<i64>,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// The most that a backend may weigh, as the specification says.
const HEAVIEST: i64 = 1_000_000;

impl Written for HttpRule {
    const KIND: Kind = Kind::Http;

    fn implied() -> Vec<Self> {
        vec![Self::default()]
    }

    fn check(&self, place: &Place<'_>, at: &At<'_>) -> Option<Rule> {
        const FILTERS: [&str; 6] = [
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestRedirect",
            "URLRewrite",
            "RequestMirror",
            "CORS",
        ];
        let all = at.field("matches");
        let matches = self.matches.iter().enumerate().map(|(index, one)| one.check(&all.index(index)));
        // All of them are looked at, whatever is wrong with one.
        let matches: Vec<_> = matches.collect();
        let matches = matches.into_iter().collect::<Option<Vec<_>>>().map(about_everything);
        let filters = filters::check(&self.filters, &FILTERS, place, &at.field("filters"));
        let edits_prefix = [
            filters.rewrite.path.as_ref(),
            filters.redirect.as_ref().and_then(|redirect| redirect.path.as_ref()),
        ];
        let timeouts = self
            .timeouts
            .as_ref()
            .map_or_else(Timeouts::default, |timeouts| timeouts.check(&at.field("timeouts")));
        if edits_prefix.into_iter().flatten().any(|edit| matches!(edit, PathEdit::Prefix(_)))
            && !matches.iter().flatten().all(|one| matches!(one.path, PathTest::Prefix(_) | PathTest::Any))
        {
            at.field("filters").refuse("ReplacePrefixMatch needs matches of the type PathPrefix only");
        }
        if filters.redirect.is_some() && !self.backend_refs.is_empty() {
            at.field("backendRefs").refuse("not empty: RequestRedirect has no backends");
        }
        let backends = backends(&self.backend_refs, place, at);
        Some(rule(Kind::Http, self.name.as_deref(), place, matches?, filters, timeouts, backends))
    }
}

impl Written for GrpcRule {
    const KIND: Kind = Kind::Grpc;

    fn implied() -> Vec<Self> {
        vec![Self::default()]
    }

    fn check(&self, place: &Place<'_>, at: &At<'_>) -> Option<Rule> {
        let all = at.field("matches");
        let matches = self.matches.iter().enumerate().map(|(index, one)| one.check(&all.index(index)));
        let matches: Vec<_> = matches.collect();
        let filters = filters::check(&self.filters, &OF_BACKEND, place, &at.field("filters"));
        let backends = backends(&self.backend_refs, place, at);
        let matches = about_everything(matches.into_iter().collect::<Option<Vec<_>>>()?);
        Some(rule(Kind::Grpc, self.name.as_deref(), place, matches, filters, Timeouts::default(), backends))
    }
}

/// The filters that a backend may have, and a GRPCRoute.
const OF_BACKEND: [&str; 3] = ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"];

/// A rule without matches is about every request.
fn about_everything(matches: Vec<Match>) -> Vec<Match> {
    if matches.is_empty() { vec![Match::default()] } else { matches }
}

fn rule(
    kind: Kind,
    name: Option<&str>,
    place: &Place<'_>,
    matches: Vec<Match>,
    filters: Filters,
    timeouts: Timeouts,
    backends: Backends,
) -> Rule {
    let Filters { headers, redirect, rewrite, mirrors, cors } = filters;
    Rule {
        route: place.route.into(),
        kind,
        name: name.map_or_else(|| format!("rules[{}]", place.index), str::to_owned).into(),
        matches,
        headers,
        timeouts,
        mirrors,
        cors,
        action: match redirect {
            Some(redirect) => Action::Redirect(redirect),
            None => Action::Forward { rewrite, backends },
        },
    }
}

fn backends(all: &[BackendRef], place: &Place<'_>, at: &At<'_>) -> Backends {
    let refs = at.field("backendRefs");
    let checked = all.iter().enumerate().map(|(index, backend)| {
        let at = refs.index(index);
        let weight = backend.weight.unwrap_or(1);
        if !(0..=HEAVIEST).contains(&weight) {
            at.field("weight").refuse(format!("{weight} is no weight: allowed are 0 to {HEAVIEST}"));
        }
        let filters = filters::check(&backend.filters, &OF_BACKEND, place, &at.field("filters"));
        Backend {
            service: service_of(backend, place, &at),
            weight: u32::try_from(weight).unwrap_or_default(),
            headers: filters.headers,
            mirrors: filters.mirrors,
        }
    });
    Backends::new(checked.collect())
}

/// The Service that is meant. `None`: it is no Service. That is no error of the route: its part of the requests fails, as the
/// specification says, and of a mirror no copies are made.
pub(super) fn service_of(backend: &BackendRef, place: &Place<'_>, at: &At<'_>) -> Option<ServicePort> {
    let (group, kind) =
        (backend.group.as_deref().unwrap_or_default(), backend.kind.as_deref().unwrap_or("Service"));
    if !is_core(group) || kind != "Service" {
        let message =
            format!("{} of group {} is no backend: allowed is Service", quoted(kind), quoted(group));
        place.strangers.borrow_mut().push(FieldError::new(at.field("kind").to_string(), message));
        return None;
    }
    let at = at.field("port");
    let Some(number) = backend.port else {
        at.refuse("not set: a Service needs it");
        return None;
    };
    let namespace = backend.namespace.as_deref().unwrap_or(place.namespace);
    Some(ServicePort {
        namespace: namespace.into(),
        name: backend.name.as_str().into(),
        port: port(number, &at)?,
    })
}

impl HttpTimeouts {
    fn check(&self, at: &At<'_>) -> Timeouts {
        let of = |field: &str, text: &Option<String>| {
            let text = text.as_deref()?;
            at.field(field).parse(text, "duration: allowed are h, m, s and ms, as in 1m30s", duration)
        };
        let timeouts = Timeouts {
            request: of("request", &self.request),
            attempt: of("backendRequest", &self.backend_request),
        };
        if let Timeouts { request: Some(request), attempt: Some(attempt) } = timeouts
            && !request.is_zero()
            && attempt > request
        {
            at.field("backendRequest").refuse("longer than `request`: allowed is at most that");
        }
        timeouts
    }
}

/// As Gateway API writes it (GEP-2257): `1h30m`, `250ms`, `0s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        sum += match &rest[..letters] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[letters..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
    None
}
