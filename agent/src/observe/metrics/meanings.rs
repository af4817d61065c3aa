//! What the values of this room's labels mean, for the reference.

use super::{
    AccessDecision, AttemptOutcome, Connect, Described, Detection, EjectionCause, FallbackAction,
    LimitDecision, Meaning, MirrorOutcome, Overdue, RetryCause, TagOutcome,
    outcomes::{CLASSES, MODES, described, tokens},
};
use crate::{
    govern::{carrier::Carrier, lane::TagSource},
    observe::{
        fault::{MessagePart, Sender},
        reason::Reason,
    },
};

pub(super) fn document(registry: &Described) {
    for (metric, label, values) in [
        ("sluice_connections_total", "outcome", described(&Detection::ALL)),
        ("sluice_upstream_connects_total", "outcome", described(&Connect::ALL)),
        ("sluice_connections_open", "peer", sides()),
        ("sluice_requests_total", "code", described(&CLASSES)),
        ("sluice_requests_total", "reason", reasons()),
        ("sluice_rule_requests_total", "code", described(&CLASSES)),
        ("sluice_route_requests_total", "route_kind", route_kinds()),
        ("sluice_route_requests_total", "code", described(&CLASSES)),
        ("sluice_tunnels_total", "reason", reasons()),
        ("sluice_bytes_total", "direction", directions()),
        ("sluice_tags_total", "outcome", described(&TagOutcome::ALL)),
        ("sluice_tag_carriers_total", "carrier", carriers()),
        ("sluice_retries_total", "cause", described(&RetryCause::ALL)),
        ("sluice_mirrored_requests_total", "outcome", described(&MirrorOutcome::ALL)),
        ("sluice_rate_limit_requests_total", "decision", described(&LimitDecision::ALL)),
        ("sluice_concurrency_limit_requests_total", "decision", described(&LimitDecision::ALL)),
        ("sluice_circuit_breaker_requests_total", "decision", described(&LimitDecision::ALL)),
        ("sluice_access_requests_total", "decision", described(&AccessDecision::ALL)),
        ("sluice_access_client_requests_total", "decision", described(&AccessDecision::ALL)),
        ("sluice_access_tokens_total", "result", described(&tokens())),
        ("sluice_ejections_total", "cause", described(&EjectionCause::ALL)),
        ("sluice_ejections_total", "mode", described(&MODES)),
        ("sluice_attempts_total", "outcome", described(&AttemptOutcome::ALL)),
        ("sluice_timeouts_observed_total", "timeout", described(&Overdue::ALL)),
        ("sluice_invalid_messages_total", "peer", described(&Sender::ALL)),
        ("sluice_invalid_messages_total", "part", described(&MessagePart::ALL)),
        ("sluice_fallbacks_total", "action", described(&FallbackAction::ALL)),
    ] {
        registry.document(metric, label, values);
    }
}

fn sides() -> Vec<Meaning> {
    vec![
        ("client".to_owned(), "Connections that clients opened"),
        ("upstream".to_owned(), "Connections to endpoints, idle ones in the pool included"),
    ]
}

fn route_kinds() -> Vec<Meaning> {
    vec![
        ("HTTPRoute".to_owned(), "The route is an HTTPRoute of Gateway API"),
        ("GRPCRoute".to_owned(), "The route is a GRPCRoute of Gateway API"),
    ]
}

fn directions() -> Vec<Meaning> {
    vec![
        ("request".to_owned(), "From the client to the endpoint"),
        ("response".to_owned(), "From the endpoint to the client"),
    ]
}

fn carriers() -> Vec<Meaning> {
    let meaning = |source: TagSource| match source {
        TagSource::Header => "A tag header (`--tag-header`)",
        TagSource::Carrier(Carrier::Baggage) => "The member of W3C `baggage`",
        TagSource::Carrier(Carrier::Tracestate) => "The member of W3C `tracestate`, beside a `traceparent`",
        TagSource::Carrier(Carrier::Correlation) => {
            "The member of SkyWalking's `sw8-correlation`, beside a `sw8`"
        }
        TagSource::Trace => {
            "Nothing but the id of its trace, with which it came to the pod (`sluice.dev/propagation: trace` or `thread`)"
        }
        TagSource::Thread => {
            "Nothing in the request: the thread that sends it is handling a request that came with the tag (`sluice.dev/propagation: thread`)"
        }
        TagSource::Workload => "Nothing in the request: the calling pod has this tag itself.",
        TagSource::Entry => "Nothing in the request: an entry rule of a TrafficLane",
    };
    TagSource::ALL.map(|source| (source.as_str().to_owned(), meaning(source))).into()
}

fn reasons() -> Vec<Meaning> {
    let none = (String::new(), "Sluice passed the response on, or the tunnel ended by itself.");
    let all = Reason::ALL.map(|reason| (reason.code().to_owned(), reason.message()));
    std::iter::once(none).chain(all).collect()
}
