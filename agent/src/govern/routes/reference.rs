//! What the specification says, written down as it says it: slow, and without anything in common with the compiled form but the
//! conditions themselves. The tests compare the two.

use super::{
    super::{path, request::Request},
    Route, Rule,
    matching::{Match, PathTest},
};

/// Whether a match holds for a request.
fn holds(one: &Match, request: &impl Request) -> bool {
    let normal = path::normal(request.path()).into_owned();
    let text = String::from_utf8_lossy(&normal).into_owned();
    let path_holds = match &one.path {
        PathTest::Any => true,
        PathTest::Exact(exact) => text == *exact,
        // "Matching is done element-wise; a trailing slash is ignored."
        PathTest::Prefix(prefix) => {
            let wanted: Vec<_> = prefix.split('/').collect();
            let got: Vec<_> = text.split('/').collect();
            got.len() >= wanted.len() && got[..wanted.len()] == wanted[..]
        }
        PathTest::Method(method) => {
            let elements: Vec<_> = text.split('/').collect();
            elements.len() == 3 && elements[0].is_empty() && !elements[1].is_empty() && elements[2] == *method
        }
        PathTest::Regex(pattern) => pattern.0.is_match(&normal),
    };
    path_holds
        && one.method.as_ref().is_none_or(|method| method.as_str().as_bytes() == request.method())
        && one.headers.iter().all(|(name, wanted)| request.header(name).is_some_and(|it| wanted.matches(it)))
        && one
            .query_parameters
            .iter()
            .all(|(name, wanted)| request.query_parameter(name).is_some_and(|it| wanted.matches(&it)))
}

/// Whether the first counts and the second does not; `None`: neither by what they say.
fn better(one: &Match, other: &Match) -> Option<bool> {
    let class = |path: &PathTest| match path {
        PathTest::Exact(_) => 4,
        PathTest::Prefix(_) => 3,
        PathTest::Method(_) => 2,
        PathTest::Regex(_) => 1,
        PathTest::Any => 0,
    };
    let length = |path: &PathTest| match path {
        PathTest::Exact(text) | PathTest::Prefix(text) | PathTest::Method(text) => text.len(),
        PathTest::Regex(pattern) => pattern.0.as_str().len(),
        PathTest::Any => 0,
    };
    let steps = [
        (class(&one.path), class(&other.path)),
        (length(&one.path), length(&other.path)),
        (usize::from(one.method.is_some()), usize::from(other.method.is_some())),
        (one.headers.len(), other.headers.len()),
        (one.query_parameters.len(), other.query_parameters.len()),
    ];
    steps.into_iter().find(|(one, other)| one != other).map(|(one, other)| one > other)
}

/// The rule that holds, and how many path elements its prefix has.
pub(super) fn find<'r>(routes: &'r [Route], request: &impl Request) -> Option<(&'r Rule, usize)> {
    let mut best: Option<(&Route, &Rule, &Match)> = None;
    for route in routes {
        for rule in &route.rules {
            for one in rule.matches.iter().filter(|one| holds(one, request)) {
                let counts = match best {
                    None => true,
                    Some((of, _, other)) => better(one, other).unwrap_or_else(|| {
                        // The oldest; then the first by name. Within a route the first stays.
                        let time = |route: &Route| route.age.created.unwrap_or(i64::MAX);
                        (time(route), &*route.age.name) < (time(of), &*of.age.name)
                    }),
                };
                if counts {
                    best = Some((route, rule, one));
                }
            }
        }
    }
    best.map(|(_, rule, one)| {
        let elements = match &one.path {
            PathTest::Prefix(prefix) => prefix.matches('/').count(),
            _ => 0,
        };
        (rule, elements)
    })
}
