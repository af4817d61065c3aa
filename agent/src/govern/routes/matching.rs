//! Which requests a rule of a route is about.

use http::{HeaderName, Method};

use super::super::{
    policy::{Pattern, ValueMatch},
    request::Request,
};

/// A condition on a request. All of its parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    pub path: PathTest,
    pub method: Option<Method>,
    /// All of these. Of two about the same header the first counts, and the other is not here.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// All of these; each name once.
    pub query_parameters: Vec<(String, ValueMatch)>,
}

/// A condition on the path, without the query, in its normal form ([`crate::govern::path`]).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PathTest {
    /// The prefix `/`: every request.
    #[default]
    Any,
    Exact(String),
    /// By path elements: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. Without a slash at its end, not empty.
    Prefix(String),
    /// gRPC's method of this name, whatever its service: `Get` matches `/shop.Orders/Get`.
    Method(String),
    /// All of the path is like this.
    Regex(Pattern),
}

impl PathTest {
    /// The prefix in its normal form.
    pub fn prefix(text: &str) -> Self {
        match text.trim_end_matches('/') {
            "" => Self::Any,
            prefix => Self::Prefix(prefix.to_owned()),
        }
    }

    /// How many elements of a path it is about, if it is a prefix.
    pub(super) fn elements(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.bytes().filter(|byte| *byte == b'/').count(),
            _ => 0,
        }
    }
}

/// The method in a gRPC request's path: `Get` of `/shop.Orders/Get`.
pub(super) fn grpc_method(path: &[u8]) -> Option<&[u8]> {
    let (service, method) = split(path.strip_prefix(b"/")?)?;
    (!service.is_empty() && !method.contains(&b'/')).then_some(method)
}

fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = memchr::memchr(b'/', path)?;
    Some((&path[..slash], &path[slash + 1..]))
}

impl Match {
    /// Whether all but its path holds.
    pub(super) fn holds_beside_path(&self, request: &impl Request) -> bool {
        self.method.as_ref().is_none_or(|method| method.as_str().as_bytes() == request.method())
            && self
                .headers
                .iter()
                .all(|(name, wanted)| request.header(name).is_some_and(|value| wanted.matches(value)))
            && self.query_parameters.iter().all(|(name, wanted)| {
                request.query_parameter(name).is_some_and(|value| wanted.matches(&value))
            })
    }
}
