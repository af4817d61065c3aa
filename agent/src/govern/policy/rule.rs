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

/// What of a rule's policy is the rule's own: where it has a state, that is its own too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnParts {
    pub errors: bool,
    pub rate_limits: bool,
    pub concurrency: bool,
    pub circuit_breaker: bool,
    pub timeouts: bool,
    pub retry: bool,
    pub fallbacks: bool,
    pub headers: bool,
}

impl OwnParts {
    fn has(self, part: Part) -> bool {
        match part {
            Part::Errors => self.errors,
            Part::RateLimits => self.rate_limits,
            Part::Concurrency => self.concurrency,
            Part::CircuitBreaker => self.circuit_breaker,
            Part::Timeouts => self.timeouts,
            Part::Retry => self.retry,
            Part::Fallbacks => self.fallbacks,
            Part::Headers => self.headers,
            Part::Mode
            | Part::LoadBalancer
            | Part::Drain
            | Part::OutlierDetection
            | Part::StripTags
            | Part::Rules => false,
        }
    }
}

/// A field of a policy, which is inherited as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Mode,
    LoadBalancer,
    Drain,
    Errors,
    RateLimits,
    Concurrency,
    CircuitBreaker,
    OutlierDetection,
    Timeouts,
    Retry,
    Fallbacks,
    Headers,
    StripTags,
    Rules,
}

impl Part {
    const ALL: [(Self, &'static str); 14] = [
        (Self::Mode, "mode"),
        (Self::LoadBalancer, "loadBalancer"),
        (Self::Drain, "drain"),
        (Self::Errors, "errors"),
        (Self::RateLimits, "rateLimits"),
        (Self::Concurrency, "concurrency"),
        (Self::CircuitBreaker, "circuitBreaker"),
        (Self::OutlierDetection, "outlierDetection"),
        (Self::Timeouts, "timeouts"),
        (Self::Retry, "retry"),
        (Self::Fallbacks, "fallbacks"),
        (Self::Headers, "headers"),
        (Self::StripTags, "stripTags"),
        (Self::Rules, "rules"),
    ];

    /// As the field of a TrafficPolicy's `spec` is called.
    pub fn named(field: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == field).map(|(part, _)| *part)
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("", |(_, name)| name)
    }
}

/// What a policy has from that of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The TrafficPolicy, as `shop/defaults`.
    pub by: Arc<str>,
    pub parts: Vec<Part>,
}

impl Policy {
    /// The TrafficPolicy that says a part, or would if it said anything, as `shop/orders`; `None`: there is none.
    pub fn said_by(&self, part: Part) -> Option<&Arc<str>> {
        let inherited = self.inherited.as_ref().filter(|inherited| inherited.parts.contains(&part));
        inherited.map(|inherited| &inherited.by).or(self.name.as_ref())
    }

    /// Notes what is inherited. A rule's own parts are of whoever says the rules.
    pub fn inherit(&mut self, inherited: Inherited) {
        let rules = inherited.parts.contains(&Part::Rules);
        for rule in &mut self.rules {
            let of_rule = Part::ALL
                .iter()
                .map(|(part, _)| *part)
                .filter(|part| if rule.own.has(*part) { rules } else { inherited.parts.contains(part) });
            let inherited = Inherited { by: inherited.by.clone(), parts: of_rule.collect() };
            let policy = Self { inherited: Some(inherited), ..(*rule.policy).clone() };
            *rule = Arc::new(Rule { policy: Arc::new(policy), ..(**rule).clone() });
        }
        self.inherited = Some(inherited);
    }
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
