//! What the policy asks before the request goes on: the rule that holds for it, rate limits, concurrency, and the circuit
//! breaker of where it would go.

use http::HeaderName;

use super::walk::{Chosen, Stopped, Walk, shown};
use crate::{
    govern::{
        concurrency::Limiter,
        policy::{FallbackOn, Mode, Part, Policy, Scope},
        tag::Tag,
        throttle::{Admission, Holds},
    },
    observe::reason::Reason,
    proxy::{
        by_caller::ByCaller,
        explain::{Stage, Verdict, rule},
        http1::View,
    },
};

impl Walk<'_> {
    /// Which rule of the policy holds, and what the policy changes in headers.
    pub(super) fn rules(&mut self) {
        let service = self.service;
        let view = ByCaller { view: View(&self.forwarded), workload: self.caller };
        let on_route = self.routed.and_then(|(course, _)| course.policy.as_deref());
        self.ruled = service.governor.ruled(on_route, &view).map(|ruled| &**ruled);
        if let (Some(policy), Some(ruled)) = (on_route, self.ruled) {
            let parts: Vec<_> = ruled.rule.own.iter().map(Part::name).collect();
            let what = format!("targets the route: its {} apply", parts.join(", "));
            self.steps.say(Stage::Rule, Verdict::Changes, what, Some(format!("TrafficPolicy {policy}")));
        } else if !service.governor.rules().is_empty() {
            let (verdict, what) = match self.ruled {
                Some(ruled) => {
                    (Verdict::Changes, format!("{} applies: it is the first that matches", ruled.rule.name))
                }
                None => (Verdict::Passes, "none matches: the policy applies".to_owned()),
            };
            let name =
                self.ruled.map_or_else(|| "rules".to_owned(), |ruled| format!("rule {}", ruled.rule.name));
            let because = self.rule(&name, Part::Rules);
            self.steps.say(Stage::Rule, verdict, what, because);
        }
        self.beside = service.governor.beside(on_route, &view);
        if let Some(beside) = &self.beside {
            let names = beside.rules.iter().map(|name| match name {
                Some(name) => format!("rule {name}"),
                None => "the policy".to_owned(),
            });
            let what = format!(
                "some servers take the path for another one: the limits of {} count it, too",
                names.collect::<Vec<_>>().join(", ")
            );
            let because = self.rule("rules", Part::Rules);
            self.steps.say(Stage::Rule, Verdict::Changes, what, because);
        }
        let headers = &self.governor().policy().headers;
        for (edits, of) in [(&headers.request, "request"), (&headers.response, "response")] {
            if !edits.is_empty() {
                let names = |names: Vec<&HeaderName>| {
                    names.into_iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
                };
                let set = edits.set.iter().chain(&edits.add).map(|(name, _)| name).collect();
                let what = format!(
                    "headers of the {of}: sets or adds [{}], removes [{}]",
                    names(set),
                    names(edits.remove.iter().collect())
                );
                let because = self.rule(&format!("headers.{of}"), Part::Headers);
                self.steps.say(Stage::Rule, Verdict::Changes, what, because);
            }
        }
    }

    pub(super) fn admit(&mut self) -> Result<(), Stopped> {
        let governor = self.governor();
        let at_endpoint = "limits what comes to each endpoint: the agent of its node decides";
        for limit in governor.policy().rate_limits.iter().filter(|limit| limit.scope == Scope::Endpoint) {
            let because = self.rule(&format!("rule {}", limit.name), Part::RateLimits);
            self.steps.say(Stage::RateLimit, Verdict::Passes, at_endpoint, because);
        }
        if governor.policy().concurrency.as_ref().is_some_and(|limit| limit.scope == Scope::Endpoint) {
            let because = self.rule("concurrency", Part::Concurrency);
            self.steps.say(Stage::Concurrency, Verdict::Passes, at_endpoint, because);
        }
        let view = ByCaller { view: View(&self.forwarded), workload: self.caller };
        let beside = self.beside.take();
        let throttles = beside.as_ref().map_or(governor.throttles(), |beside| &beside.throttles);
        let shares: Vec<_> = throttles
            .iter()
            .filter_map(|throttle| {
                Some((throttle.rule().name.clone(), throttle.tally(self.now)?, throttle.holds()?))
            })
            .collect();
        let rules = throttles.copy_for(&view, &self.caller.uid, self.now);
        let verdict = rules.admit(&view, &self.caller.uid, None, self.now);
        for (limit, admission) in verdict.decisions() {
            let enforced = limit.mode == Mode::Enforce;
            let (verdict, what) = match admission {
                Admission::Now => (Verdict::Passes, "admits it at once".to_owned()),
                Admission::After(wait) if enforced => {
                    (Verdict::Changes, format!("lets it wait for {} first", shown(wait)))
                }
                Admission::After(wait) => {
                    (Verdict::WouldStop, format!("mode Observe: it would let it wait for {}", shown(wait)))
                }
                Admission::Refused { retry_after } if enforced => {
                    (Verdict::Stops, format!("rejects it; retry after {}", shown(retry_after)))
                }
                Admission::Refused { .. } => {
                    (Verdict::WouldStop, "mode Observe: it would reject it".to_owned())
                }
            };
            let share = shares.iter().find(|(name, ..)| *name == limit.name).map(|(_, tally, holds)| {
                // Never more than there is: of what is nearly one, none can be taken.
                let left = (tally.left.max(0.0) * 10.0).floor() / 10.0;
                match holds {
                    Holds::Leased => format!(" (the cluster's limit: this node holds {left:.1} requests)"),
                    Holds::Part(part) if *part < 1.0 => format!(
                        " (the cluster's limit, without its store: this node has {:.0} % of it, and {left:.1} requests left)",
                        part * 100.0
                    ),
                    Holds::Part(_) => {
                        format!(" (the cluster's limit, counted on this node alone: {left:.1} requests left)")
                    }
                }
            });
            let what = what + share.as_deref().unwrap_or_default();
            let said_by = match &beside {
                Some(beside) => beside.said_by(limit, governor.policy()),
                None => governor.policy().said_by(Part::RateLimits),
            };
            let because = Some(rule(&format!("rule {}", limit.name), said_by.map(|name| &**name)));
            self.steps.say(Stage::RateLimit, verdict, what, because);
        }
        if verdict.refusal().is_some() {
            return Err(Stopped {
                reason: Reason::RateLimited,
                on: Some(FallbackOn::LimitExceeded),
                because: None,
            });
        }
        let own = governor.limiter().map(|limiter| (limiter, governor.policy()));
        let others =
            beside.iter().flat_map(|beside| &beside.limiters).map(|(limiter, policy)| (limiter, policy));
        own.into_iter().chain(others).try_for_each(|(limiter, policy)| self.ask_limiter(limiter, policy))
    }

    fn ask_limiter(&mut self, limiter: &Limiter, policy: &Policy) -> Result<(), Stopped> {
        let (in_flight, limit) = (limiter.in_flight(), limiter.limit());
        let full = limiter.would_refuse(&self.caller.uid, self.now);
        let kept =
            if full && in_flight < limit { "; those that are left are kept for other pods" } else { "" };
        let counted = format!("{in_flight} requests are in flight, {limit} may be{kept}");
        let verdict = match (full, limiter.config().mode) {
            (false, _) => Verdict::Passes,
            (true, Mode::Enforce) => Verdict::Stops,
            (true, Mode::Observe) => Verdict::WouldStop,
        };
        let said_by = policy.said_by(Part::Concurrency).map(|name| &**name);
        let because = Some(rule("concurrency", said_by));
        self.steps.say(Stage::Concurrency, verdict, counted, because);
        match verdict {
            Verdict::Stops => Err(Stopped {
                reason: Reason::ConcurrencyLimited,
                on: Some(FallbackOn::LimitExceeded),
                because: None,
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn ask_breaker(&mut self, chosen: Chosen) -> Result<Chosen, Stopped> {
        let Some(breakers) = self.governor().breakers() else { return Ok(chosen) };
        let lane = chosen.endpoint.tag.as_ref();
        let breaker = breakers.copy_of(&self.caller.uid, lane);
        let state = breaker.state(self.now).code();
        let why = breaker
            .recent_transitions()
            .last()
            .map_or_else(String::new, |last| format!(", for {}", last.why));
        let whose = if breakers.are_shared() { "of the node" } else { "of this pod" };
        let of = format!("that {whose} for {} is {state}{why}", lane.map_or("the baseline", Tag::as_str));
        let (verdict, what) = match breaker.try_acquire(self.now) {
            Ok(leave) if leave.would_reject().is_some() => {
                (Verdict::WouldStop, format!("{of}; mode Observe: it would reject it"))
            }
            Ok(_) => (Verdict::Passes, of),
            Err(open) => (Verdict::Stops, format!("{of}; retry after {}", shown(open.retry_after))),
        };
        let because = self.rule("circuitBreaker", Part::CircuitBreaker);
        self.steps.say(Stage::CircuitBreaker, verdict, what, because);
        match verdict {
            Verdict::Stops => {
                Err(Stopped { reason: Reason::CircuitOpen, on: Some(FallbackOn::CircuitOpen), because: None })
            }
            _ => Ok(chosen),
        }
    }
}
