//! Which of two matches that both hold for a request counts, as the specification orders them.
//!
//! HTTPRoute: an exact path; else the longest prefix; else a match on the method; else the most headers; else the most query
//! parameters. <https://gateway-api.sigs.k8s.io/reference/api-spec/main/spec/#httprouterule>
//!
//! GRPCRoute: the longest service; else the longest method; else the most headers. An exact service and method is an exact
//! path here, and a service alone is a prefix, which comes to the same order.
//!
//! On ties: the older route; else the first by `namespace/name`; else the first in the route.
//!
//! What the specification leaves open: a regular expression comes after paths and prefixes that are spelled out, since these
//! know better what they mean, and before the prefix `/`, which would else leave nothing to it; among them the longer text. A
//! slash at the end of a prefix means nothing, so it does not make the prefix longer.

use std::{cmp::Reverse, sync::Arc};

use super::matching::{Match, PathTest};

/// What decides between two routes that are alike: the older one, then the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// When it was created, in seconds since 1970; what has no such time is the youngest.
    pub created: Option<i64>,
    /// `namespace/name`
    pub name: Arc<str>,
}

/// What a match is like; the least counts.
pub(super) type Specificity = (Class, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Exact,
    Prefix,
    Method,
    Regex,
    Any,
}

pub(super) fn specificity(one: &Match) -> Specificity {
    let (class, length) = match &one.path {
        PathTest::Exact(path) => (Class::Exact, path.len()),
        PathTest::Prefix(prefix) => (Class::Prefix, prefix.len()),
        PathTest::Method(method) => (Class::Method, method.len()),
        PathTest::Regex(pattern) => (Class::Regex, pattern.0.as_str().len()),
        PathTest::Any => (Class::Any, 0),
    };
    let unsaid = one.method.is_none();
    (class, Reverse(length), unsaid, Reverse(one.headers.len()), Reverse(one.query_parameters.len()))
}

/// The order between routes.
pub(super) fn seniority(age: &Age) -> impl Ord + '_ {
    (age.created.is_none(), age.created, &age.name)
}
