//! What is asked for some requests otherwise than for the rest, and what is changed in their headers.

use std::{fmt, sync::Arc};

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
    /// What of it is the rule's own.
    pub own: Parts,
}

/// A policy that targets a route, as it holds for the requests that the route sends to one Service.
#[derive(Clone, Debug, PartialEq)]
pub struct OnRoute {
    /// The TrafficPolicy, as `shop/slow`.
    pub name: Arc<str>,
    /// What it comes to where no rule of the Service's own policy matches, then where each of these does, in their order. What it
    /// says itself it says in all of them.
    pub over: Vec<Arc<Rule>>,
}

macro_rules! parts {
    ($($part:ident = $name:literal,)*) => {
        /// A field of a policy, which is inherited as a whole.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Part {
            $($part,)*
        }

        impl Part {
            pub const ALL: &[Self] = &[$(Self::$part,)*];

            /// As the field of a TrafficPolicy's `spec` is called.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$part => $name,)*
                }
            }
        }
    };
}

parts! {
    Mode = "mode",
    LoadBalancer = "loadBalancer",
    Drain = "drain",
    Errors = "errors",
    RateLimits = "rateLimits",
    Concurrency = "concurrency",
    CircuitBreaker = "circuitBreaker",
    OutlierDetection = "outlierDetection",
    Timeouts = "timeouts",
    Retry = "retry",
    Fallbacks = "fallbacks",
    Headers = "headers",
    StripTags = "stripTags",
    Rules = "rules",
}

impl Part {
    pub fn named(field: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|part| part.name() == field)
    }
}

/// Some parts of a policy, such as those that are a rule's own: where they have a state, that is its own too.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts(u32);

impl Parts {
    pub fn has(self, part: Part) -> bool {
        self.0 & 1 << part as u32 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Part> {
        Part::ALL.iter().copied().filter(move |part| self.has(*part))
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        Self(parts.into_iter().fold(0, |all, part| all | 1 << part as u32))
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a policy has from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The TrafficPolicy, as `shop/defaults`.
    pub by: Arc<str>,
    pub parts: Parts,
}

impl Policy {
    /// The TrafficPolicy that says a part, or would if it said anything, as `shop/orders`; `None`: there is none.
    pub fn said_by(&self, part: Part) -> Option<&Arc<str>> {
        let has = |from: &&Inherited| from.parts.has(part);
        let inherited = self.of_route.iter().chain(&self.inherited).find(has);
        inherited.map(|inherited| &inherited.by).or(self.name.as_ref())
    }

    /// Notes what is inherited. A rule's own parts are of whoever says the rules.
    pub fn inherit(&mut self, inherited: Vec<Inherited>) {
        for rule in &mut self.rules {
            let of_rule = inherited.iter().map(|Inherited { by, parts }| {
                let rules = parts.has(Part::Rules);
                let is_inherited = |part: &Part| if rule.own.has(*part) { rules } else { parts.has(*part) };
                Inherited { by: by.clone(), parts: Part::ALL.iter().copied().filter(is_inherited).collect() }
            });
            let policy = Self { inherited: of_rule.collect(), ..(*rule.policy).clone() };
            *rule = Arc::new(Rule { policy: Arc::new(policy), ..(**rule).clone() });
        }
        self.inherited = inherited;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_a_set() {
        let parts: Parts = [Part::Rules, Part::Mode, Part::Rules].into_iter().collect();
        assert!(parts.has(Part::Mode) && parts.has(Part::Rules) && !parts.has(Part::Retry));
        assert_eq!(parts.iter().collect::<Vec<_>>(), [Part::Mode, Part::Rules]);
        assert_eq!(format!("{parts:?}"), "{Mode, Rules}");
        assert!(Parts::default().is_empty() && !parts.is_empty());
        let all: Parts = Part::ALL.iter().copied().collect();
        assert_eq!(all.iter().count(), Part::ALL.len(), "each has a place of its own");
    }
}
