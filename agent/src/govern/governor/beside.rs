//! The limits of rules that would hold for a request if its server took its path for another one.
//!
//! Which rule holds is decided by the normal form of the path, so that no request changes its rule by how some other server could
//! read it. But `/open/..%2fsecret` is `/secret` to a server that decodes first: if only the limits of the rule for `/open` counted
//! it, those of the rule for `/secret` could be evaded. So it is counted by the limits of each rule that holds for one of its
//! [`Forms`], and by the policy's own if none holds for one of them.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::Governor;
use crate::govern::{
    concurrency::Limiter,
    path::Forms,
    policy::{Part, Policy, RateLimit},
    request::Request,
    throttle::Throttles,
};

/// What limits a request beside the rule that holds for it.
#[derive(Debug)]
pub struct Beside {
    /// All rate limits: those of what governs the request, too.
    pub throttles: Throttles,
    /// Limits on requests in flight, each with the policy or rule that has it.
    pub limiters: Vec<(Arc<Limiter>, Arc<Policy>)>,
    policies: Vec<Arc<Policy>>,
    /// The names of the rules; `None`: the policy itself.
    pub rules: Vec<Option<Arc<str>>>,
}

impl Beside {
    /// The TrafficPolicy that says a rate limit, where `own` governs the request.
    pub fn said_by<'p>(&'p self, limit: &RateLimit, own: &'p Policy) -> Option<&'p Arc<str>> {
        let has = |policy: &&Policy| policy.rate_limits.iter().any(|one| one.name == limit.name);
        let others = self.policies.iter().map(|policy| &**policy);
        std::iter::once(own).chain(others).find(has).unwrap_or(own).said_by(Part::RateLimits)
    }
}

impl Governor {
    /// What limits a request beside what governs it ([`Self::ruled`]); nearly always nothing.
    pub fn beside(&self, on_route: Option<&str>, request: &impl Request) -> Option<Box<Beside>> {
        if !self.rules.iter().any(|ruled| ruled.rule.matches.path.is_some()) {
            return None;
        }
        let forms = Forms::of(request);
        if forms.others().is_empty() {
            return None;
        }
        let rule_for =
            |path: &[u8]| self.rules.iter().position(|ruled| ruled.rule.matches.matches_as(request, path));
        let own = rule_for(&request.normal_path());
        let mut rules: SmallVec<[Option<usize>; 4]> = smallvec![own];
        for rule in forms.others().iter().map(|form| rule_for(form)) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let of_rule = |rule: Option<usize>| self.over(on_route, rule).map_or(self, |ruled| &ruled.governor);
        let (own, others) = (of_rule(own), &rules[1..]);
        let governors = || others.iter().map(|rule| of_rule(*rule));
        let throttles = own.throttles.and(governors().map(|other| &other.throttles));
        let mut limiters: Vec<(Arc<Limiter>, Arc<Policy>)> = Vec::new();
        for other in governors() {
            if let Some(limiter) = &other.limiter {
                let mut known = limiters.iter().map(|(known, _)| known).chain(&own.limiter);
                if !known.any(|known| Arc::ptr_eq(known, limiter)) {
                    limiters.push((limiter.clone(), other.policy.clone()));
                }
            }
        }
        let adds = throttles.iter().count() > own.throttles.iter().count() || !limiters.is_empty();
        let name = |rule: &Option<usize>| Some(self.rules.get((*rule)?)?.rule.name.clone());
        adds.then(|| {
            Box::new(Beside {
                throttles,
                limiters,
                policies: governors().map(|other| other.policy.clone()).collect(),
                rules: others.iter().map(name).collect(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::govern::{
        path::disguise::{Of, disguised},
        policy::{
            Behaviour, Concurrency, LimitKey, Mode, Parts, PathMatch, RequestMatch, Rule, Scope, Timeouts,
        },
        request::tests::Plain,
    };

    fn rate(name: &str) -> Arc<RateLimit> {
        Arc::new(RateLimit {
            name: name.into(),
            requests: 1.0,
            interval: std::time::Duration::from_secs(3600),
            burst: 1.0,
            behaviour: Behaviour::Reject,
            key: LimitKey::None,
            scope: Scope::Node,
            matches: RequestMatch::default(),
            mode: Mode::Enforce,
        })
    }

    fn limited(name: &str, max_requests: u32) -> Policy {
        let concurrency =
            Some(Concurrency { max_requests, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
        Policy {
            rate_limits: vec![rate(name)],
            concurrency,
            name: Some("shop/orders".into()),
            ..Policy::default()
        }
    }

    fn rule(name: &str, policy: Policy, own: &[Part]) -> Arc<Rule> {
        let path = Some(PathMatch::Prefix(format!("/{name}")));
        let matches = RequestMatch { path, ..RequestMatch::default() };
        let own = own.iter().copied().collect::<Parts>();
        Arc::new(Rule { name: name.into(), matches, policy: Arc::new(policy), own })
    }

    /// Rules for `/open`, `/actuator` and `/slow`, of which the last has no limits of its own.
    fn governor() -> Arc<Governor> {
        let both = &[Part::RateLimits, Part::Concurrency][..];
        let slow = Policy { timeouts: Timeouts::default(), ..limited("base", 5) };
        let rules = vec![
            rule("open", limited("open", 9), both),
            rule("actuator", limited("actuator", 1), both),
            rule("slow", slow, &[Part::Timeouts]),
        ];
        Governor::next(None, Arc::new(Policy { rules, ..limited("base", 5) }), 0)
    }

    /// What counts a request: rate limits, and how many limits on requests in flight beside its rule's.
    fn counted(governor: &Governor, request: &impl Request) -> (Option<String>, Vec<String>, usize) {
        let ruled = governor.ruled(None, request);
        let own = ruled.map_or(governor, |ruled| &ruled.governor);
        let beside = governor.beside(None, request);
        let throttles = beside.as_ref().map_or(own.throttles(), |beside| &beside.throttles);
        let mut names: Vec<_> = throttles.iter().map(|throttle| throttle.rule().name.to_string()).collect();
        names.sort();
        (
            ruled.map(|ruled| ruled.rule.name.to_string()),
            names,
            beside.map_or(0, |beside| beside.limiters.len()),
        )
    }

    #[test]
    fn a_request_keeps_its_rule_and_is_counted_by_those_of_its_other_forms() {
        let governor = governor();
        for (target, rule, limits, limiters) in [
            ("/open/x", Some("open"), &["open"][..], 0),
            ("/actuator", Some("actuator"), &["actuator"], 0),
            ("/", None, &["base"], 0),
            // All forms have the same rule.
            ("/open/a%2fb", Some("open"), &["open"], 0),
            ("/open/%25", Some("open"), &["open"], 0),
            ("/open?next=/a/../actuator", Some("open"), &["open"], 0),
            ("/open/..%2factuator/x", Some("open"), &["actuator", "open"], 1),
            ("/actuator%2fx", None, &["actuator", "base"], 1),
            ("//h/actuator", None, &["actuator", "base"], 1),
            ("/\\actuator", None, &["actuator", "base"], 1),
            ("/%u0061ctuator", None, &["actuator", "base"], 1),
            ("/open?/../actuator", Some("open"), &["actuator", "open"], 1),
            ("/open/..%2fx", Some("open"), &["base", "open"], 1),
            // Two that share their limits.
            ("/slow/..%2fx", Some("slow"), &["base"], 0),
        ] {
            let limits: Vec<_> = limits.iter().map(ToString::to_string).collect();
            let wanted = (rule.map(ToOwned::to_owned), limits, limiters);
            assert_eq!(counted(&governor, &Plain::get(target)), wanted, "{target}");
        }
        let plain = Governor::next(None, Arc::new(limited("base", 5)), 0);
        assert!(plain.beside(None, &Plain::get("/open/..%2factuator")).is_none());
        let beside = governor.beside(None, &Plain::get("/open/..%2factuator")).expect("two rules");
        assert_eq!(beside.rules, [Some("actuator".into())]);
        let said = beside.said_by(&rate("actuator"), governor.policy());
        assert_eq!(said.map(|name| &**name), Some("shop/orders"));
    }

    proptest! {
        #[test]
        fn no_disguise_evades_the_limits_of_a_rule(target in disguised(), below in "(/open)?") {
            let (_, limits, _) = counted(&governor(), &Of(target.clone()));
            prop_assert!(limits.contains(&"actuator".to_owned()), "{target} {limits:?}");
            // However it got there, it is counted by what governs it.
            let other = format!("{below}{target}");
            let request = Of(other);
            let governor = governor();
            let own = governor.ruled(None, &request).map_or(&*governor, |ruled| &ruled.governor);
            let (_, limits, _) = counted(&governor, &request);
            prop_assert!(own.throttles().iter().all(|one| limits.contains(&one.rule().name.to_string())));
        }
    }
}
