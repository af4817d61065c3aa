//! What a policy is about that targets routes.

use std::{fmt, sync::Arc};

use super::Kind;

/// A route of the policy's namespace, or a rule of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub kind: Kind,
    pub route: Arc<str>,
    /// `None`: all of its rules.
    pub rule: Option<Arc<str>>,
}

/// `HTTPRoute orders, rule slow`
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.route)?;
        self.rule.iter().try_for_each(|rule| write!(f, ", rule {rule}"))
    }
}
