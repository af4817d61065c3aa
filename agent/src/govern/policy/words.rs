//! Entry rules of lanes in words, as the dashboard shows them.

use std::fmt;

use super::{
    CallerMatch, EntryRule, PathMatch, Percentage, PercentageKey, RequestMatch, ValueMatch, ValueTest,
};

/// `10 % by cookie user of requests with GET /orders/*, header x-beta`
impl fmt::Display for EntryRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.percentage, self.matches == RequestMatch::default()) {
            (None, true) => write!(f, "all requests"),
            (None, false) => write!(f, "requests with {}", self.matches),
            (Some(percentage), true) => write!(f, "{percentage} of all requests"),
            (Some(percentage), false) => write!(f, "{percentage} of requests with {}", self.matches),
        }
    }
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % by ", self.percent)?;
        match &self.key {
            PercentageKey::Header(name) => write!(f, "header {name}"),
            PercentageKey::Cookie(name) => write!(f, "cookie {name}"),
            PercentageKey::ClientAddress => write!(f, "client address"),
        }
    }
}

/// Its parts, all of which must hold.
impl fmt::Display for RequestMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = self.methods.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let path = self.path.as_ref().map(ToString::to_string);
        let called: Vec<_> = Some(methods).filter(|all| !all.is_empty()).into_iter().chain(path).collect();
        let mut parts: Vec<String> = (!called.is_empty()).then(|| called.join(" ")).into_iter().collect();
        parts.extend(self.headers.iter().map(|(name, test)| format!("header {name}{test}")));
        parts
            .extend(self.query_parameters.iter().map(|(name, test)| format!("query parameter {name}{test}")));
        parts.extend(self.cookies.iter().map(|(name, test)| format!("cookie {name}{test}")));
        if !self.from.is_empty() {
            let from: Vec<_> = self.from.iter().map(ToString::to_string).collect();
            parts.push(format!("a client of {}", from.join(" or ")));
        }
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{}/*", prefix.strip_suffix('/').unwrap_or(prefix)),
            Self::Regex(pattern) => write!(f, "path like {}", pattern.0.as_str()),
        }
    }
}

impl fmt::Display for ValueTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => Ok(()),
            Self::Absent => write!(f, " not set"),
            Self::Is(ValueMatch::Exact(value)) => write!(f, "={value}"),
            Self::Is(ValueMatch::Prefix(value)) => write!(f, "={value}*"),
            Self::Is(ValueMatch::Regex(pattern)) => write!(f, " like {}", pattern.0.as_str()),
        }
    }
}

impl fmt::Display for CallerMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_ref().map(|namespace| format!("namespace {namespace}"));
        let workload = self.workload.as_ref().map(|workload| format!("workload {workload}"));
        let labels = self.labels.iter().map(|(key, value)| format!("label {key}={value}"));
        let parts: Vec<_> = namespace.into_iter().chain(workload).chain(labels).collect();
        if parts.is_empty() {
            return f.write_str("any workload");
        }
        f.write_str(&parts.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Method};

    use super::*;
    use crate::govern::policy::Pattern;

    #[test]
    fn a_rule_says_which_requests_enter() {
        let all = RequestMatch::default();
        let some = RequestMatch {
            methods: vec![Method::GET, Method::HEAD],
            path: Some(PathMatch::Prefix("/orders/".into())),
            headers: vec![
                (HeaderName::from_static("x-beta"), ValueTest::Present),
                (HeaderName::from_static("x-user"), ValueTest::Is(ValueMatch::Exact("ann".into()))),
            ],
            query_parameters: vec![("q".into(), ValueTest::Absent)],
            cookies: vec![(
                "user".into(),
                ValueTest::Is(ValueMatch::Regex(Pattern("^a".parse().expect("an expression")))),
            )],
            from: vec![
                CallerMatch {
                    namespace: Some("edge".into()),
                    workload: Some("gateway".into()),
                    labels: vec![],
                },
                CallerMatch { labels: vec![("app".into(), "web".into())], ..CallerMatch::default() },
            ],
        };
        let tenth = Percentage { percent: 10.0, key: PercentageKey::Cookie("user".into()) };
        for (matches, percentage, said) in [
            (all.clone(), None, "all requests"),
            (all, Some(tenth.clone()), "10 % by cookie user of all requests"),
            (
                RequestMatch { methods: vec![Method::PUT], ..RequestMatch::default() },
                Some(Percentage { percent: 0.5, key: PercentageKey::ClientAddress }),
                "0.5 % by client address of requests with PUT",
            ),
            (
                some,
                None,
                "requests with GET or HEAD /orders/*, header x-beta, header x-user=ann, query parameter q not set, \
                 cookie user like ^a, a client of namespace edge and workload gateway or label app=web",
            ),
        ] {
            assert_eq!(EntryRule { matches, percentage }.to_string(), said);
        }
    }
}
