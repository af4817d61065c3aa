//! What a status is to say, and whether it says so already. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};

use crate::{
    api,
    cluster::{
        object::Key,
        verdict::{Condition, Judged},
    },
};

/// The API server takes 32768 characters; nobody reads as many.
const LONGEST_MESSAGE: usize = 4096;

/// Whether the object says all of it.
pub(super) fn says_so(judged: &Judged) -> bool {
    judged.targets == judged.shown
        && judged.verdict.conditions().into_iter().all(|(kind, condition)| {
            let told = judged.told.iter().find(|told| &*told.kind == kind);
            told.is_some_and(|told| {
                (&*told.status, &*told.reason) == (status(condition), condition.reason.as_str())
                    && &*told.message == message(condition)
                    && told.generation == judged.generation
            })
        })
}

/// The patch (server-side apply) that makes it say so. A condition that stays true or untrue keeps the time since when. The
/// object's UID is named, so that another object of the same name is left alone.
pub(super) fn patch(key: &Key, judged: &Judged, now: &Value) -> Value {
    let mut metadata = json!({ "name": &*key.name.name, "namespace": &*key.name.namespace });
    if let Some(uid) = &judged.uid {
        metadata["uid"] = Value::from(&**uid);
    }
    let mut status = json!({ "conditions": conditions(judged, now) });
    if let Some(targets) = &judged.targets {
        status["targets"] = Value::from(&**targets);
    }
    json!({
        "apiVersion": api::API_VERSION,
        "kind": key.kind.as_str(),
        "metadata": metadata,
        "status": status,
    })
}

fn conditions(judged: &Judged, now: &Value) -> Value {
    let conditions = judged.verdict.conditions().into_iter().map(|(kind, condition)| {
        let status = status(condition);
        let told = judged.told.iter().find(|told| &*told.kind == kind && &*told.status == status);
        let mut written = json!({
            "type": kind,
            "status": status,
            "reason": condition.reason.as_str(),
            "message": message(condition),
            "lastTransitionTime": told.map_or_else(|| now.clone(), |told| Value::from(&*told.since)),
        });
        if let Some(generation) = judged.generation {
            written["observedGeneration"] = generation.into();
        }
        written
    });
    conditions.collect()
}

fn status(condition: &Condition) -> &'static str {
    if condition.holds { "True" } else { "False" }
}

fn message(condition: &Condition) -> &str {
    short(&condition.message)
}

/// As much of a message as is written.
pub(super) fn short(message: &str) -> &str {
    message.char_indices().nth(LONGEST_MESSAGE).map_or(message, |(end, _)| &message[..end])
}

/// Now, as an object's times are written.
pub(in crate::cluster::kubernetes) fn now() -> Value {
    serde_json::to_value(Time(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{
        object::{Kind, Name, Told},
        verdict::{Reason, Shortfall, Verdict},
    };

    fn judged(verdict: Verdict, told: &[(&str, &str, &str, &str)]) -> Judged {
        let told = told.iter().map(|(kind, status, reason, message)| Told {
            kind: (*kind).into(),
            status: (*status).into(),
            reason: (*reason).into(),
            message: (*message).into(),
            generation: Some(3),
            since: "2026-01-01T00:00:00Z".into(),
        });
        Judged {
            uid: Some("u".into()),
            generation: Some(3),
            verdict: Arc::new(verdict),
            told: told.collect(),
            targets: Some("orders".into()),
            shown: Some("orders".into()),
            lane: None,
        }
    }

    fn good() -> Verdict {
        Verdict::of(Some("in force".to_owned()), &[])
    }

    const TOLD: [(&str, &str, &str, &str); 2] =
        [("Accepted", "True", "Accepted", "in force"), ("Programmed", "True", "Programmed", "in force")];

    #[test]
    fn what_is_said_already_is_not_written() {
        assert!(says_so(&judged(good(), &TOLD)));
        assert!(!says_so(&judged(good(), &TOLD[..1])), "one is missing");
        let newer = Judged { generation: Some(4), ..judged(good(), &TOLD) };
        assert!(!says_so(&newer));
        assert_eq!(conditions(&newer, &json!("now"))[0]["observedGeneration"], 4);
        let other = Judged { targets: Some("orders, stock".into()), ..judged(good(), &TOLD) };
        assert!(!says_so(&other));
        let name = Name { namespace: "shop".into(), name: "p".into() };
        let patch = patch(&Key { kind: Kind::TrafficPolicy, name }, &other, &json!("now"));
        assert_eq!(patch["status"]["targets"], "orders, stock");
        // A message that is too long is cut, and then not written for ever.
        let long = "ä".repeat(LONGEST_MESSAGE + 1);
        let verdict = Verdict::of(Some(long.clone()), &[]);
        let cut = &long[..LONGEST_MESSAGE * 2];
        let told = [("Accepted", "True", "Accepted", cut), ("Programmed", "True", "Programmed", cut)];
        assert!(says_so(&judged(verdict, &told)));
    }

    #[test]
    fn a_time_changes_with_the_status_only() {
        let now = json!("now");
        let short = Shortfall { reason: Reason::Conflicted, message: "other".to_owned() };
        let partly = Verdict::of(Some("in force".to_owned()), &[short]);
        let written = conditions(&judged(partly, &TOLD), &now);
        let expected = json!([
            {
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "in force; other",
                "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z",
            },
            {
                "type": "Programmed", "status": "False", "reason": "Conflicted", "message": "in force; other",
                "observedGeneration": 3, "lastTransitionTime": "now",
            },
        ]);
        assert_eq!(written, expected);
    }

    #[test]
    fn times_are_written_as_kubernetes_does() {
        let now = now();
        let text = now.as_str().unwrap();
        assert!(text.ends_with('Z') && text.len() >= "2026-01-01T00:00:00Z".len(), "{text}");
    }
}
