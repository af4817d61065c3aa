//! What is allowed and most likely not meant: rules that can never act, and words that say something else than they seem to.
//!
//! Nothing here refuses an object. A note is about a field that is set; where it would be wrong if the policy inherited
//! something from its namespace, it says what.

use std::{cell::RefCell, time::Duration};

use super::{
    Fallback, FallbackCondition, RateLimitType, RetryCondition, Said, TrafficLaneSpec, TrafficPolicySpec,
    field::{At, Errors},
    span,
};
use crate::govern::policy::{Behaviour, FallbackAction, Mode, Part, Policy, RequestMatch, Timeouts, WarmUp};

/// Something worth a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `spec.retry.conditions`
    pub field: String,
    pub message: String,
    /// It is void if the policy inherits one of these.
    pub unless: &'static [Part],
    /// It is void where Deployments wait so many seconds for a new pod (`minReadySeconds`).
    pub unless_waited: Option<u64>,
}

#[derive(Default)]
struct Notes(RefCell<Vec<Note>>);

impl Notes {
    fn say(&self, at: &At<'_>, message: impl Into<String>, unless: &'static [Part]) {
        let note = Note { field: at.to_string(), message: message.into(), unless, unless_waited: None };
        self.0.borrow_mut().push(note);
    }
}

/// About a policy that makes sense, and what it came to.
pub fn of_policy(spec: &TrafficPolicySpec, policy: &Policy) -> Vec<Note> {
    let (notes, errors) = (Notes::default(), Errors::default());
    let at = errors.at("spec");
    if let (Some(balancer), balance) = (&spec.load_balancer, &policy.load_balancer) {
        let at = at.field("loadBalancer");
        if let (Some(warm_up), Some(curve)) = (&balancer.warm_up, &balance.warmup) {
            let at = at.field("warmUp");
            notes.warm_up(curve, &at);
            notes.percentage(warm_up.minimum_percent, &at.field("minimumPercent"));
        }
        notes.percentage(balancer.panic_threshold_percent, &at.field("panicThresholdPercent"));
    }
    if spec.drain.as_ref().is_some_and(|drain| drain.timeout.is_none()) {
        let message = "without a timeout it changes nothing: requests to a terminating endpoint may last";
        notes.say(&at.field("drain"), message, &[]);
    }
    if let Some(outlier) = &spec.outlier_detection {
        let at = at.field("outlierDetection");
        notes.percentage(outlier.max_ejection_percent, &at.field("maxEjectionPercent"));
    }
    // What falls back for the whole policy may do so for what a rule refuses.
    let sharing: Vec<&Policy> = std::iter::once(policy)
        .chain(policy.rules.iter().filter(|rule| !rule.own.has(Part::Fallbacks)).map(|rule| &*rule.policy))
        .collect();
    notes.said(spec.said(), policy, &sharing, &at);
    for (i, (rule, of_rule)) in spec.rules.iter().zip(&policy.rules).enumerate() {
        let (at, name) = (at.field("rules"), &rule.name);
        let at = at.index(i);
        let taken = policy.rules[..i]
            .iter()
            .find(|earlier| earlier.matches == RequestMatch::default() || earlier.matches == of_rule.matches);
        if let Some(earlier) = taken {
            let message = format!(
                "rule {name} is never used: rule {} before it matches all of its requests",
                earlier.name
            );
            notes.say(&at, message, &[]);
        }
        notes.said(rule.said(), &of_rule.policy, &[&of_rule.policy], &at);
    }
    notes.0.into_inner()
}

/// About a lane that makes sense.
pub fn of_lane(spec: &TrafficLaneSpec) -> Vec<Note> {
    let (notes, errors) = (Notes::default(), Errors::default());
    let at = errors.at("spec");
    let entry = at.field("entry");
    if !spec.entry.is_empty() && spec.target_refs.is_empty() {
        let message = "without targetRefs requests enter the lane at every Service of the namespace";
        notes.say(&entry, message, &[]);
    }
    if spec.trust_incoming_tag == Some(false) {
        let trust = at.field("trustIncomingTag");
        if spec.entry.is_empty() {
            let message =
                "false has no effect without entry: tags are removed where requests may enter the lane";
            notes.say(&trust, message, &[]);
        } else if spec.target_refs.is_empty() {
            let message = "without targetRefs false holds at every Service of the namespace: pods without a tag that pass one on lose \
                           it there, too, and requests leave the lane; name the Services that are called from outside";
            notes.say(&trust, message, &[]);
        }
    }
    let matches = |i: usize| spec.entry[i].matches.clone().unwrap_or_default();
    for (i, rule) in spec.entry.iter().enumerate() {
        let at = entry.index(i);
        let percentage = at.field("percentage");
        if let Some(share) = &rule.percentage {
            if share.percent == 0.0 {
                notes.say(&percentage.field("percent"), "0: no request enters the lane by this rule", &[]);
            }
            notes.percentage(Some(share.percent), &percentage.field("percent"));
        }
        let takes_all = |earlier: &usize| {
            let all = super::RequestMatch::default();
            spec.entry[*earlier].percentage.is_none()
                && (matches(*earlier) == all || matches(*earlier) == matches(i))
        };
        if let Some(earlier) = (0..i).find(takes_all) {
            let message = format!("it adds nothing: all of its requests enter by {entry}[{earlier}] already");
            notes.say(&at, message, &[]);
        }
    }
    notes.0.into_inner()
}

impl Notes {
    /// What a policy says, or a rule of it. `policy`: what holds; `sharing`: where its fallbacks hold.
    fn said(&self, all: Said<'_>, policy: &Policy, sharing: &[&Policy], at: &At<'_>) {
        let limits = all.rate_limits.unwrap_or_default().iter().zip(&policy.rate_limits).enumerate();
        for (i, (said, limit)) in limits {
            let (at, request) = (at.field("rateLimits"), policy.timeouts.request);
            let at = at.index(i);
            let Behaviour::Queue { timeout } = limit.behaviour else { continue };
            if said.behaviour == Some(RateLimitType::Queue) && said.queue.is_none() {
                let message = format!(
                    "type Queue without queue: a request waits for its turn for up to {}, and is rejected if that is not enough",
                    span::text(timeout)
                );
                self.say(&at, message, &[]);
            }
            if let Some(request) = request.filter(|request| *request <= timeout) {
                let message = format!(
                    "{} is no less than timeouts.request, {}: no request waits for so long",
                    span::text(timeout),
                    span::text(request)
                );
                self.say(&at.field("queue").field("timeout"), message, &[]);
            }
        }
        if let (Some(said), Some(breaker)) = (all.circuit_breaker, &policy.circuit_breaker) {
            let at = at.field("circuitBreaker");
            self.percentage(said.error_percent, &at.field("errorPercent"));
            self.percentage(
                said.slow_request.as_ref().map(|slow| slow.percent),
                &at.field("slowRequest").field("percent"),
            );
            if let (Some(slow), Some(most)) = (breaker.slow_request, longest(policy.timeouts))
                && slow.threshold >= most
            {
                let message = format!(
                    "{} is no less than the timeout, {}: no request is slow, it is ended before, and fails",
                    span::text(slow.threshold),
                    span::text(most)
                );
                self.say(&at.field("slowRequest").field("threshold"), message, &[]);
            }
            if let Some(errors) = breaker.error_count.filter(|errors| *errors < breaker.minimum_requests) {
                let message = format!(
                    "{errors} errors open it only once there are {} requests in the interval (minimumRequests)",
                    breaker.minimum_requests
                );
                self.say(&at.field("errorCount"), message, &[]);
            }
        }
        if let (Some(said), Some(retry)) = (all.retry, &policy.retry) {
            let at = at.field("retry");
            let waits = said.conditions.as_ref().is_some_and(|all| all.contains(&RetryCondition::Timeout));
            if waits && policy.timeouts.backend_request.is_none() {
                let message = "Timeout never happens: timeouts.backendRequest is not set, and timeouts.request leaves no time to \
                               retry";
                self.say(&at.field("conditions"), message, &[Part::Timeouts]);
            }
            let of_grpc = said.grpc_codes.as_ref().is_some_and(|codes| !codes.is_empty());
            if of_grpc && !retry.methods.contains(&http::Method::POST) {
                let message = "no gRPC call is retried: all of them are POST, which methods does not list";
                self.say(&at.field("grpcCodes"), message, &[]);
            }
            if retry.budget_percent == 0.0 && retry.budget_minimum == 0.0 {
                self.say(&at.field("budget"), "both are 0: nothing is retried", &[]);
            }
        }
        if let Some(fallbacks) = all.fallbacks {
            self.fallbacks(fallbacks, policy, sharing, &at.field("fallbacks"));
        }
    }

    fn fallbacks(&self, said: &[Fallback], policy: &Policy, sharing: &[&Policy], at: &At<'_>) {
        for (i, (said, fallback)) in said.iter().zip(&policy.fallbacks).enumerate() {
            let at = at.index(i);
            for (j, condition) in said.conditions.iter().enumerate() {
                let conditions = at.field("conditions");
                let never = |why: &str, unless| {
                    self.say(&conditions.index(j), format!("{condition:?} never happens: {why}"), unless);
                };
                let nowhere = |there: fn(&Policy) -> bool| !sharing.iter().any(|policy| there(policy));
                match condition {
                    FallbackCondition::CircuitOpen if nowhere(|policy| policy.circuit_breaker.is_some()) => {
                        never("circuitBreaker is not set", &[Part::CircuitBreaker]);
                    }
                    FallbackCondition::LimitExceeded
                        if nowhere(|policy| {
                            policy.concurrency.is_some() || !policy.rate_limits.is_empty()
                        }) =>
                    {
                        let unless = &[Part::RateLimits, Part::Concurrency];
                        never("neither rateLimits nor concurrency is set", unless);
                    }
                    FallbackCondition::Timeout if nowhere(|policy| longest(policy.timeouts).is_some()) => {
                        never("timeouts sets neither request nor backendRequest", &[Part::Timeouts]);
                    }
                    _ => {}
                }
            }
            // A static response is always there.
            let earlier = policy.fallbacks[..i].iter();
            let always: Vec<_> =
                earlier.filter(|one| matches!(one.action, FallbackAction::Static(_))).collect();
            let covered = |on| always.iter().find(|earlier| earlier.on.contains(on));
            if let Some(first) = fallback.on.first().and_then(covered)
                && fallback.on.iter().all(|on| covered(on).is_some())
            {
                let message = format!(
                    "{} is never used: {} before it always has a response (put type Stale before Static)",
                    said.name, first.name
                );
                self.say(&at, message, &[]);
            }
        }
    }

    fn warm_up(&self, curve: &WarmUp, at: &At<'_>) {
        let seconds = curve.delay.saturating_add(curve.duration).as_secs_f64().ceil() as u64;
        let message = format!(
            "in a rollout the old pods carry what new ones do not take yet: minReadySeconds: {seconds} in the Deployment keeps them \
             until new ones are warm"
        );
        let note = Note { field: at.to_string(), message, unless: &[], unless_waited: Some(seconds) };
        self.0.borrow_mut().push(note);
    }

    /// Says what a part of one means where percent are meant.
    fn percentage(&self, percent: Option<f64>, at: &At<'_>) {
        if let Some(percent) = percent.filter(|percent| *percent > 0.0 && *percent < 1.0) {
            let meant = percent * 100.0;
            self.say(at, format!("{percent} is less than one percent: {meant} is {meant} %"), &[]);
        }
    }
}

/// How long an attempt may take.
fn longest(timeouts: Timeouts) -> Option<Duration> {
    let ends = timeouts.mode == Mode::Enforce;
    timeouts.backend_request.into_iter().chain(timeouts.request).min().filter(|_| ends)
}
