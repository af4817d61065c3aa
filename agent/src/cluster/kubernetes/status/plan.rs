//! What a status is to say, and whether it says so already. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};

use crate::{
    api,
    cluster::{object::Key, verdict::Judged},
};

/// The API server takes 32768 characters; nobody reads as many.
const LONGEST_MESSAGE: usize = 4096;

/// The conditions to be written; `None` if the object says all of it. A condition that stays true or untrue keeps the time
/// since when.
pub(super) fn conditions(judged: &Judged, now: &Value) -> Option<Value> {
    let mut news = false;
    let conditions = judged.verdict.conditions().into_iter().map(|(kind, condition)| {
        let status = if condition.holds { "True" } else { "False" };
        let reason = condition.reason.as_str();
        let message: String = condition.message.chars().take(LONGEST_MESSAGE).collect();
        let told = judged.told.iter().find(|told| &*told.kind == kind);
        news |= told.is_none_or(|told| {
            (&*told.status, &*told.reason, &*told.message) != (status, reason, &*message)
                || told.generation != judged.generation
        });
        let since = told.filter(|told| &*told.status == status).map(|told| Value::from(&*told.since));
        let mut condition = json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| now.clone()),
        });
        if let Some(generation) = judged.generation {
            condition["observedGeneration"] = generation.into();
        }
        condition
    });
    let conditions = Value::Array(conditions.collect());
    news.then_some(conditions)
}

/// The patch (server-side apply) that writes them. It names the object's UID, so that another object of the same name is
/// left alone.
pub(super) fn patch(key: &Key, judged: &Judged, conditions: &Value) -> Value {
    let mut metadata = json!({ "name": &*key.name.name, "namespace": &*key.name.namespace });
    if let Some(uid) = &judged.uid {
        metadata["uid"] = Value::from(&**uid);
    }
    json!({
        "apiVersion": api::API_VERSION,
        "kind": key.kind.as_str(),
        "metadata": metadata,
        "status": { "conditions": conditions },
    })
}

/// Now, as an object's times are written.
pub(super) fn now() -> Value {
    serde_json::to_value(Time(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{
        object::Told,
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
        }
    }

    fn good() -> Verdict {
        Verdict::of(Some("in force".to_owned()), &[])
    }

    const TOLD: [(&str, &str, &str, &str); 2] =
        [("Accepted", "True", "Accepted", "in force"), ("Programmed", "True", "Programmed", "in force")];

    #[test]
    fn what_is_said_already_is_not_written() {
        let now = json!("now");
        assert_eq!(conditions(&judged(good(), &TOLD), &now), None);
        assert!(conditions(&judged(good(), &TOLD[..1]), &now).is_some(), "one is missing");
        let newer = Judged { generation: Some(4), ..judged(good(), &TOLD) };
        assert_eq!(conditions(&newer, &now).unwrap()[0]["observedGeneration"], 4);
    }

    #[test]
    fn a_time_changes_with_the_status_only() {
        let now = json!("now");
        let short = Shortfall { reason: Reason::Conflicted, message: "other".to_owned() };
        let partly = Verdict::of(Some("in force".to_owned()), &[short]);
        let written = conditions(&judged(partly, &TOLD), &now).unwrap();
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
