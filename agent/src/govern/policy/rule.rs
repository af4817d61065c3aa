//! What is asked for some requests otherwise than for the rest, and what is changed in their headers.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::{CallerMatch, Policy, RequestMatch};

/// What holds for the requests that it matches, if no rule before it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique within the policy.
    pub name: Arc<str>,
    pub matches: RequestMatch,
    /// The policy, with what the rule says in the place of what the policy says; without rules.
    pub policy: Arc<Policy>,
    pub own: OwnParts,
}

/// What of a rule's policy is the rule's own, so that it has a state of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnParts {
    pub rate_limits: bool,
    pub concurrency: bool,
    pub circuit_breaker: bool,
}

/// Changes of the headers of requests, before they are sent, and of responses, before they are passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    pub request: Edits,
    pub response: Edits,
}

/// In this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    pub remove: Vec<HeaderName>,
    /// In the place of all lines of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Whose tags are not believed: they come from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StripTags {
    /// Of these callers; empty: of all.
    pub from: Vec<CallerMatch>,
}
