//! What became of a request that has ended.

use super::{Ended, Explanation, Outcome, Stage, Steps, Verdict, by_thread, rule, text};
use crate::{
    clock::Nanos,
    govern::lane::TagSource,
    observe::{metrics::TagOutcome, reason::Reason},
    proxy::{
        decisions::{Decision, Event},
        way,
    },
};

/// Tells of a decision that was kept.
pub(crate) fn tell(decision: &Decision, now: Nanos) -> Explanation {
    let mut steps = Steps::default();
    let caller = decision.names.as_ref().map(|names| {
        // Of clients that are no known pods there is the address.
        let namespace = Some(&*names.caller_namespace).filter(|namespace| !namespace.is_empty());
        namespace
            .map_or_else(|| names.caller.to_string(), |namespace| format!("{namespace}/{}", names.caller))
    });
    let at = decision.names.as_ref().and_then(|names| names.at);
    let service =
        decision.names.as_ref().map(|names| format!("{}.{}:{}", names.service, names.namespace, names.port));
    let object =
        decision.names.as_ref().map(|names| format!("Service {}/{}", names.namespace, names.service));
    let caller = caller.unwrap_or_default();
    let (what, who) = match at {
        Some(endpoint) => (format!("it came to {endpoint}"), format!("client {caller}")),
        None => ("it went through the agent".to_owned(), format!("Pod {caller}")),
    };
    steps.say(Stage::Enrolled, Verdict::Passes, what, Some(who));
    steps.say(
        Stage::Managed,
        Verdict::Passes,
        format!("it was for {}", service.as_deref().unwrap_or("-")),
        object.clone(),
    );
    if at.is_none() {
        tag(decision, &mut steps, &caller);
    }
    let mut outcome = Outcome::of(String::new());
    let (mut ruled, mut invalid) = (None, None);
    let mut asked = 0;
    for event in &decision.events {
        match event {
            Event::Linked => steps.say(Stage::Request, Verdict::Changes, super::LINKED, None),
            Event::Routed { rule, goes_on } => {
                let verdict = if *goes_on { Verdict::Changes } else { Verdict::Stops };
                let what = match rule {
                    Some(rule) => format!("{} held for it", way::shown(rule)),
                    None => "no rule of its routes matched".to_owned(),
                };
                steps.say(Stage::Route, verdict, what, None);
            }
            Event::Matched { rule } => {
                let what = format!("rule {rule} applied to it");
                steps.say(Stage::Rule, Verdict::Changes, what, None);
            }
            Event::Queued { rule, wait } => {
                let what = format!("it waited for {wait:?}");
                steps.say(Stage::RateLimit, Verdict::Changes, what, Some(format!("rule {rule}")));
            }
            Event::WouldRefuse { rule } => {
                let what = "mode Observe: enforced, it would have been rejected";
                steps.say(Stage::RateLimit, Verdict::WouldStop, what, Some(format!("rule {rule}")));
            }
            Event::Chosen { endpoint, pod, panic } => {
                if asked == 0 {
                    lane(decision, &mut steps, object.clone());
                }
                asked += 1;
                outcome.endpoint = Some(endpoint.to_string());
                outcome.pod = pod.as_deref().map(str::to_owned);
                let held_out = if *panic { "; panic: too few were usable" } else { "" };
                let what = format!("{}{held_out}", shown(&outcome));
                let verdict = if *panic { Verdict::Changes } else { Verdict::Passes };
                steps.say(Stage::Endpoint, verdict, what, None);
            }
            Event::InOtherFamily { address } => {
                let what = format!(
                    "the connection to it leads to {address}, the same pod's address of the other family"
                );
                steps.say(Stage::Endpoint, Verdict::Changes, what, None);
            }
            Event::Failed { status, reason } => {
                let what = match reason {
                    Some(reason) => reason.message().to_owned(),
                    None => format!("it responded {status}"),
                };
                steps.say(Stage::Endpoint, Verdict::Changes, what, None);
            }
            Event::Retried => steps.say(Stage::Retry, Verdict::Changes, "it was retried", None),
            Event::Invalid { fault } => invalid = Some(*fault),
            Event::Ruled { rule: name, policy } => ruled = Some((name.clone(), policy.clone())),
        }
    }
    if asked == 0 && decision.tag_outcome == Some(TagOutcome::Rejected) {
        lane(decision, &mut steps, object);
    }
    let because = ruled.map(|(name, policy)| {
        let named = if name.starts_with(char::is_lowercase) && stage_of(decision.reason) != Stage::RateLimit {
            name.to_string()
        } else {
            format!("rule {name}")
        };
        match (decision.reason, &policy) {
            (Some(Reason::AccessDenied | Reason::Unauthenticated), Some(policy)) => {
                format!("rule {name} of AccessPolicy {policy}")
            }
            _ => rule(&named, policy.as_deref()),
        }
    });
    if let Some(reason) = decision.reason {
        let what = match invalid {
            Some(fault) => format!("{}: it has {fault}", reason.message()),
            None => reason.message().to_owned(),
        };
        steps.say(stage_of(Some(reason)), Verdict::Stops, what, because);
    }
    outcome.status = (decision.status != 0).then_some(decision.status);
    outcome.reason = decision.reason.map(|reason| reason.code().to_owned());
    outcome.message = match (decision.reason, decision.status, asked) {
        (_, 0, _) => "the client got no response".to_owned(),
        (Some(reason), status, 0) => format!("Sluice responded {status} itself: {}", reason.message()),
        (Some(reason), status, _) => format!("the client got {status}: {}", reason.message()),
        (None, status, _) => format!("{} responded {status}", shown(&outcome)),
    };
    Explanation {
        ended: Some(Ended {
            seconds_ago: (now.since(decision.ended).0 / 1_000_000) as f64 / 1e3,
            duration_ms: (decision.took.0 / 1000) as f64 / 1e3,
            trace_id: (decision.ids.trace != 0).then(|| format!("{:032x}", decision.ids.trace)),
        }),
        caller,
        service,
        method: text(&decision.method),
        path: text(&decision.path),
        steps: steps.0,
        candidates: Vec::new(),
        outcome,
    }
}

fn shown(outcome: &Outcome) -> String {
    match (&outcome.endpoint, &outcome.pod) {
        (Some(endpoint), Some(pod)) => format!("{pod} ({endpoint})"),
        (Some(endpoint), None) => endpoint.clone(),
        (None, _) => "nobody".to_owned(),
    }
}

fn tag(decision: &Decision, steps: &mut Steps, caller: &str) {
    let because = decision.tag_source.map(|source| match source {
        TagSource::Header => "a tag header of the request".to_owned(),
        TagSource::Carrier(carrier) => format!("the request's header {}", carrier.header()),
        TagSource::Trace => {
            format!("the request's trace: it came to Pod {caller} with this tag (sluice.dev/propagation)")
        }
        TagSource::Thread => by_thread(caller),
        TagSource::Workload => format!("Pod {caller}, whose own tag it is"),
        TagSource::Entry => "an entry rule of a TrafficLane".to_owned(),
    });
    let removed = "the tag that it came with was removed (trustIncomingTag: false)";
    match &decision.tag {
        Some(tag) if decision.tag_distrusted => {
            steps.say(Stage::Tag, Verdict::Changes, format!("{}; {removed}", tag.as_str()), because);
        }
        None if decision.tag_distrusted => {
            steps.say(Stage::Tag, Verdict::Changes, format!("none: {removed}"), because);
        }
        Some(tag) => steps.say(Stage::Tag, Verdict::Changes, tag.as_str(), because),
        None => steps.say(Stage::Tag, Verdict::Passes, "none", because),
    }
}

fn lane(decision: &Decision, steps: &mut Steps, object: Option<String>) {
    let Some(tag) = &decision.tag else { return };
    let tag = tag.as_str();
    let (verdict, what) = match decision.tag_outcome {
        Some(TagOutcome::FellBack) => (
            Verdict::Changes,
            format!(
                "the service had no usable endpoint in lane {tag}: it fell back to the baseline, and kept its tag"
            ),
        ),
        Some(TagOutcome::Rejected) => {
            (Verdict::Stops, format!("lane {tag} has no usable endpoint, and may not fall back"))
        }
        _ => (Verdict::Passes, format!("an endpoint in lane {tag}")),
    };
    steps.say(Stage::Lane, verdict, what, object);
}

/// Where a request with this reason ends.
fn stage_of(reason: Option<Reason>) -> Stage {
    match reason {
        Some(Reason::RateLimited) => Stage::RateLimit,
        Some(Reason::ConcurrencyLimited | Reason::Overloaded) => Stage::Concurrency,
        Some(Reason::LaneUnavailable) => Stage::Lane,
        Some(Reason::CircuitOpen) => Stage::CircuitBreaker,
        Some(Reason::AccessDenied | Reason::Unauthenticated | Reason::PathHidden) => Stage::Access,
        Some(Reason::Timeout | Reason::RequestTimeout) => Stage::Timeout,
        Some(
            Reason::NoEndpoint
            | Reason::UpstreamConnect
            | Reason::UpstreamReset
            | Reason::UpstreamProtocol
            | Reason::UpstreamError
            | Reason::EndpointDrained,
        ) => Stage::Endpoint,
        _ => Stage::Request,
    }
}
