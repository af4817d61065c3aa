//! Routes: to which Service a request goes that was sent to one, by what the request asks for.
//!
//! These are the HTTPRoutes and GRPCRoutes of Gateway API whose parent is a Service, checked and compiled. A request meets them
//! before everything else that is decided: the route chooses the Service ([`backends`]), its lanes choose among the Service's
//! endpoints ([`super::lane`]), and the Service's policies say what holds for the call.
//!
//! [`Routes`] are those of one port of a Service for one kind of client. The rules of all its routes are merged and ordered
//! once ([`precedence`]), when they are compiled ([`table`]); to find the one that holds for a request takes no memory. What the
//! rule then changes in the request is its [`filters`].

pub mod backends;
pub mod cors;
pub mod filters;
pub mod matching;
pub mod mirror;
mod precedence;
#[cfg(test)]
mod reference;
mod table;
mod target;
#[cfg(test)]
mod tests;
pub mod words;

use std::{sync::Arc, time::Duration};

use self::{
    backends::Backends,
    cors::Cors,
    filters::{Redirect, Rewrite},
    matching::Match,
    mirror::Mirror,
    table::Table,
};
pub use self::{precedence::Age, target::Target};
use super::{
    policy::{HeaderEdits, Pattern},
    request::Request,
};

/// Which kind of object a route is. <https://gateway-api.sigs.k8s.io/api-types/httproute/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Http,
    Grpc,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

/// A route of one Service port: its rules, and what decides between it and others.
#[derive(Clone, Debug)]
pub struct Route {
    pub age: Age,
    pub rules: Vec<Arc<Rule>>,
}

/// What holds for the requests that one of its matches is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The route's namespace and name, as `shop/orders`.
    pub route: Arc<str>,
    pub kind: Kind,
    /// What the route calls it; else its place in the route, as `rules[2]`.
    pub name: Arc<str>,
    /// One of these; never empty.
    pub matches: Vec<Match>,
    pub headers: HeaderEdits,
    pub timeouts: Timeouts,
    /// Who else gets the requests that are sent on.
    pub mirrors: Vec<Mirror>,
    /// Which pages of other origins may ask.
    pub cors: Option<Cors>,
    pub action: Action,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is answered with the address at which to ask instead.
    Redirect(Redirect),
    /// It is sent on.
    Forward { rewrite: Rewrite, backends: Backends },
}

/// How long a request may take; `None`: as the Service's policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// With all of its attempts.
    pub request: Option<Duration>,
    /// One attempt.
    pub attempt: Option<Duration>,
}

/// All that holds for one port of a Service, ready to be asked.
#[derive(Debug)]
pub struct Routes {
    table: Table,
}

/// The rule that holds for a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'r> {
    pub rule: &'r Arc<Rule>,
    /// How many elements of the path the rule's prefix has; 0 where the path was not matched by a prefix.
    pub prefix: usize,
}

impl Routes {
    /// Merges and compiles routes, which must be of one [`Kind`]: which of two kinds holds for a port is not decided by request.
    pub fn new(routes: Vec<Route>) -> Self {
        Self { table: Table::new(routes) }
    }

    /// The rule that holds for a request; `None`: none does, and nobody is to get it.
    pub fn find(&self, request: &impl Request) -> Option<Found<'_>> {
        self.table.find(request)
    }

    /// The rules, in the order of their precedence for a request that several hold for.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.table.rules()
    }
}

/// A regular expression of a route: all of a value has to be like it, as it is with Envoy and Istio, whose users write most of
/// them. (The specification leaves it to each implementation. Those of a TrafficPolicy may match anywhere in a value.)
pub fn pattern(text: &str) -> Result<Pattern, regex::Error> {
    /// Of a compiled expression, in bytes: some 100 times what paths and headers need.
    const LARGEST: usize = 1 << 20;
    // Tested by itself first, so that what is wrong with it is said of what was written, and no `)` ends the group early.
    regex::bytes::Regex::new(text)?;
    regex::bytes::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(LARGEST).build().map(Pattern)
}
