//! Who may call what: what an AccessPolicy asks for, and what it says of a request.
//!
//! The most specific rule that matches a request decides: first by its path (an exact one, then the longer prefix, then a
//! regular expression), then by its methods, then by its clients; of equals the one that denies. Where no rule matches, a request is
//! denied if there are rules that allow anything, else allowed. Hidden paths come first.
//!
//! Paths are compared as their server will see them ([`crate::govern::path`]). Servers differ in what they make of one, so
//! what denies or hides holds for a path in each of the [`Forms`] that some server takes it for, whatever its case, and what allows
//! must hold in all of them.
//!
//! A rule may ask for a token ([`crate::govern::jwt`]). A request that has none that is good is not one of its clients; where that
//! alone is why it is denied, the decision says so.

mod block;
pub mod probe;
#[cfg(test)]
mod tests;

use std::{cmp::Ordering, net::IpAddr, sync::Arc, time::Duration};

use http::Method;

pub use self::block::{Block, BlockError};
use super::{
    caller::Labels,
    jwt::{self, ClaimTest, Failure, Found, Jwt, OnNoKeys, Provider},
    path::Forms,
    policy::{Mode, PathMatch},
    request::Request,
};

/// The rule that is told of where none is about a request. It cannot be the name of one.
pub const NO_RULE: &str = "no_rule";

/// The same for connections of a client that has as many open as it may have. It cannot be the name of a rule either.
pub const CLIENT_CONNECTIONS: &str = "client_connections";

/// What an AccessPolicy asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// As `shop/orders`.
    pub name: Arc<str>,
    pub mode: Mode,
    pub rules: Vec<Rule>,
    pub hidden: Vec<Hidden>,
    /// Whose tokens count.
    pub jwt: Option<Jwt>,
    /// The policy cannot be read, and says that everything is to be denied then.
    pub closed: bool,
    /// How long connections are refused while no agent attends a pod; `None`: they go direct.
    pub refuse_unattended: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: Arc<str>,
    pub action: Action,
    /// The client is one of these; empty: any.
    pub from: Vec<Party>,
    /// The request is one of these; empty: any, and whatever is no HTTP.
    pub to: Vec<To>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

/// Paths that are not there for anybody else.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    pub name: Arc<str>,
    pub paths: Vec<PathMatch>,
    /// Who may see them.
    pub from: Vec<Party>,
}

/// A condition on the client. All of its parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Party {
    pub namespace: Option<Arc<str>>,
    pub service_account: Option<Arc<str>>,
    pub workload: Option<Arc<str>>,
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// One of these; empty: any address.
    pub blocks: Vec<Block>,
    /// The request has a token that is valid, and says this.
    pub token: Option<TokenTest>,
}

/// A condition on a request's token. Both parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenTest {
    /// By its name; `None`: any of the policy's.
    pub provider: Option<Arc<str>>,
    pub claims: Vec<ClaimTest>,
}

/// A condition on a request. Both parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct To {
    /// One of these; empty: any.
    pub methods: Vec<Method>,
    /// One of these; empty: any.
    pub paths: Vec<PathMatch>,
}

/// A pod that calls, as far as rules ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub namespace: Arc<str>,
    pub pod: Arc<str>,
    pub workload: Arc<str>,
    pub service_account: Arc<str>,
    pub labels: Labels,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Client<'c> {
    pub address: IpAddr,
    /// The pod that has the address; `None`: none that is known has it.
    pub pod: Option<&'c Identity>,
    pub token: Token<'c>,
}

/// What its request has of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub enum Token<'c> {
    /// None that is good.
    #[default]
    None,
    Valid(&'c jwt::Verified),
    /// One that says that it is from this provider, of which no keys have ever been known.
    Unverifiable(&'c Provider),
    /// Whatever is asked for: the question is what a request could do that had it.
    Any,
}

impl<'c> From<&'c Found> for Token<'c> {
    fn from(found: &'c Found) -> Self {
        match found {
            Found::Valid(verified) => Self::Valid(verified),
            Found::Invalid(_) => Self::None,
            Found::Unverifiable(provider) => Self::Unverifiable(provider),
        }
    }
}

impl<'c> Client<'c> {
    /// One that has no token.
    pub fn new(address: IpAddr, pod: Option<&'c Identity>) -> Self {
        Self { address, pod, token: Token::None }
    }

    /// The same, with what was found of its token.
    #[must_use]
    pub fn with(self, token: Token<'c>) -> Self {
        Self { token, ..self }
    }
}

/// What is said of a request, or of a connection that is no HTTP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision<'a> {
    /// By this rule; `None`: no rule is about it.
    Allowed(Option<&'a Rule>),
    Denied(Option<&'a Rule>),
    /// This rule would allow it if it had the token that it asks for.
    Unauthenticated(&'a Rule),
    Hidden(&'a Hidden),
}

impl<'a> Decision<'a> {
    /// The rule's name, as metrics tell it.
    pub fn rule(&self) -> Option<&'a Arc<str>> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) => rule.map(|rule| &rule.name),
            Self::Unauthenticated(rule) => Some(&rule.name),
            Self::Hidden(hidden) => Some(&hidden.name),
        }
    }

    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

impl Access {
    /// How long connections are refused while no agent attends a pod; with `mode: Observe` nothing is ever.
    pub fn closed_unattended(&self) -> Option<Duration> {
        self.refuse_unattended.filter(|_| self.mode == Mode::Enforce)
    }

    /// What it says of a request.
    pub fn decide(&self, client: Client<'_>, request: &impl Request) -> Decision<'_> {
        if self.closed {
            return Decision::Denied(None);
        }
        let forms = Forms::of(request);
        let hides = |hidden: &&Hidden| {
            forms.any(|form| hidden.paths.iter().any(|path| holds_loosely(path, form)))
                && !hidden.from.iter().any(|party| party.is_for(client, Action::Allow))
        };
        if let Some(hidden) = self.hidden.iter().find(hides) {
            return Decision::Hidden(hidden);
        }
        let by = |client| self.most_specific(|rule| rule.matches(client, request.method(), &forms));
        let decision = by(client);
        if decision.is_allowed() || self.jwt.is_none() || matches!(client.token, Token::Valid(_)) {
            return decision;
        }
        match by(client.with(Token::Any)) {
            Decision::Allowed(Some(rule)) => Decision::Unauthenticated(rule),
            _ => decision,
        }
    }

    /// What there is to say of the token of a request that is denied for want of one.
    pub fn lacks(found: &Found) -> Option<Failure> {
        match found {
            Found::Valid(_) => None,
            Found::Invalid(failure) => Some(*failure),
            Found::Unverifiable(_) => Some(Failure::NoKeys),
        }
    }

    /// What it says of a connection that is no HTTP, or encrypted: only rules about clients alone are about it.
    pub fn decide_connection(&self, client: Client<'_>) -> Decision<'_> {
        if self.closed {
            return Decision::Denied(None);
        }
        self.most_specific(|rule| (rule.to.is_empty() && rule.is_from(client)).then(Rank::default))
    }

    /// Whether there is anything that this client may ask for, hidden or not.
    pub fn may_allow(&self, client: Client<'_>) -> bool {
        let client = client.with(Token::Any);
        let allows = |rule: &Rule| {
            let of_requests = !rule.to.is_empty() || rule.asks_for_token();
            rule.action == Action::Allow && of_requests && rule.is_from(client)
        };
        // A rule that says what may be asked for is more specific than each that does not.
        !self.closed && (self.rules.iter().any(allows) || self.decide_connection(client).is_allowed())
    }

    /// Whether it denies or hides by what is asked for.
    pub fn depends_on_requests(&self) -> bool {
        let of_rules = || self.rules.iter().any(|rule| !rule.to.is_empty() || rule.asks_for_token());
        self.mode == Mode::Enforce && (!self.hidden.is_empty() || of_rules()) || self.changes_requests()
    }

    /// Whether what a request's headers say is changed before it is passed on.
    pub fn changes_requests(&self) -> bool {
        self.jwt.as_ref().is_some_and(|jwt| !jwt.forward || jwt.own_headers().next().is_some())
    }

    fn most_specific<'a>(&'a self, rank: impl Fn(&'a Rule) -> Option<Rank>) -> Decision<'a> {
        let ranked = self.rules.iter().filter_map(|rule| {
            let clients = !rule.from.is_empty();
            Some(((rank(rule)?, clients, rule.action == Action::Deny), rule))
        });
        // Of equals the first.
        let first = ranked.reduce(|first, next| if next.0 > first.0 { next } else { first });
        match first {
            Some((_, rule)) if rule.action == Action::Allow => Decision::Allowed(Some(rule)),
            Some((_, rule)) => Decision::Denied(Some(rule)),
            None if self.rules.iter().any(|rule| rule.action == Action::Allow) => Decision::Denied(None),
            None => Decision::Allowed(None),
        }
    }

    /// Whether a rule, or a list of hidden paths, has this name.
    pub fn names(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| *rule.name == *name)
            || self.hidden.iter().any(|hidden| *hidden.name == *name)
    }
}

/// How specific a rule's condition on requests is that matches one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    path: PathRank,
    methods: bool,
}

/// In this order; then by length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    #[default]
    Any,
    Regex(usize),
    Prefix(usize),
    Exact(usize),
}

impl PathRank {
    fn of(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(path) => Self::Exact(path.len()),
            PathMatch::Prefix(path) => Self::Prefix(path.len()),
            PathMatch::Regex(pattern) => Self::Regex(pattern.0.as_str().len()),
        }
    }
}

impl Rule {
    fn is_from(&self, client: Client<'_>) -> bool {
        self.from.is_empty() || self.from.iter().any(|party| party.is_for(client, self.action))
    }

    fn asks_for_token(&self) -> bool {
        self.from.iter().any(|party| party.token.is_some())
    }

    fn matches(&self, client: Client<'_>, method: &[u8], forms: &Forms<'_>) -> Option<Rank> {
        if !self.is_from(client) {
            return None;
        }
        if self.to.is_empty() {
            return Some(Rank::default());
        }
        self.to.iter().filter_map(|to| to.matches(method, forms, self.action)).max()
    }
}

impl To {
    fn matches(&self, method: &[u8], forms: &Forms<'_>, action: Action) -> Option<Rank> {
        let methods = !self.methods.is_empty();
        if methods && !self.methods.iter().any(|one| is_method(one, method, action)) {
            return None;
        }
        if self.paths.is_empty() {
            return Some(Rank { path: PathRank::Any, methods });
        }
        let holds = |path: &&PathMatch| match action {
            Action::Allow => forms.all(|form| path.matches_bytes(form)),
            Action::Deny => forms.any(|form| holds_loosely(path, form)),
        };
        let path = self.paths.iter().filter(holds).map(PathRank::of).max_by(PathRank::cmp)?;
        Some(Rank { path, methods })
    }
}

/// What is said of GET holds for HEAD, which gets the same without the content (RFC 9110, section 9.3.2). Methods are
/// case-sensitive (section 9.1), so `post` is not what a rule allows that allows POST. But some servers put methods into upper case
/// before they look at them, and what denies POST is not to be passed by `post` there.
fn is_method(said: &Method, method: &[u8], action: Action) -> bool {
    let is = |name: &[u8]| match action {
        Action::Allow => name == method,
        Action::Deny => name.eq_ignore_ascii_case(method),
    };
    is(said.as_str().as_bytes()) || (*said == Method::GET && is(b"HEAD"))
}

/// Some servers take a path with a slash at its end for the one without, and some make no difference between cases.
fn holds_loosely(test: &PathMatch, path: &[u8]) -> bool {
    let without = path.strip_suffix(b"/").filter(|rest| !rest.is_empty());
    test.matches_in_any_case(path) || without.is_some_and(|path| test.matches_in_any_case(path))
}

impl Party {
    /// Whether it is the client, as far as can be said: for what denies a token that cannot be verified is the one that is meant.
    fn is_for(&self, client: Client<'_>, action: Action) -> bool {
        self.token.as_ref().is_none_or(|test| test.holds(client.token, action)) && self.is(client)
    }

    fn is(&self, client: Client<'_>) -> bool {
        let in_block = self.blocks.is_empty() || self.blocks.iter().any(|block| block.has(client.address));
        let asks_for_pod = self.namespace.is_some()
            || self.service_account.is_some()
            || self.workload.is_some()
            || !self.labels.is_empty();
        in_block && (!asks_for_pod || client.pod.is_some_and(|pod| self.is_pod(pod)))
    }

    fn is_pod(&self, pod: &Identity) -> bool {
        let is = |wanted: &Option<Arc<str>>, is: &Arc<str>| wanted.as_ref().is_none_or(|wanted| wanted == is);
        is(&self.namespace, &pod.namespace)
            && is(&self.service_account, &pod.service_account)
            && is(&self.workload, &pod.workload)
            && self.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

impl TokenTest {
    fn holds(&self, token: Token<'_>, action: Action) -> bool {
        let is_of = |provider: &Provider| self.provider.as_ref().is_none_or(|name| *name == provider.name);
        match token {
            Token::None => false,
            Token::Any => action == Action::Allow,
            Token::Valid(verified) => {
                is_of(&verified.provider) && self.claims.iter().all(|test| test.holds(&verified.claims))
            }
            Token::Unverifiable(provider) => {
                is_of(provider) && (provider.on_no_keys == OnNoKeys::Allow) == (action == Action::Allow)
            }
        }
    }
}

/// Orders decisions of several policies that hold for one port, the strictest last.
pub fn stricter(one: &Decision<'_>, other: &Decision<'_>) -> Ordering {
    let rank = |decision: &Decision<'_>| match decision {
        Decision::Allowed(_) => 0,
        Decision::Unauthenticated(_) => 1,
        Decision::Denied(_) => 2,
        Decision::Hidden(_) => 3,
    };
    rank(one).cmp(&rank(other))
}
