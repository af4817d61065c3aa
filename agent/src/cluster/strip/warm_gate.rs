//! What a pod says of its readiness gate `sluice.dev/warm`.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-readiness-gate>

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};

use crate::{
    api,
    cluster::object::{ToldWarm, WarmGate},
};

const CONTAINERS_READY: &str = "ContainersReady";

/// `None`: it does not have the gate.
pub(super) fn of(spec: &PodSpec, status: &PodStatus) -> Option<WarmGate> {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    let ours = |kind: &str| kind == api::WARM_CONDITION;
    gates.iter().find(|gate| ours(&gate.condition_type))?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let find = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let others = gates.iter().map(|gate| &*gate.condition_type).filter(|kind| !ours(kind));
    let waits_since = others
        .chain([CONTAINERS_READY])
        .map(|kind| find(kind).filter(|condition| condition.status == "True").map(since))
        // All of them hold since the last of them does. One that does not say since when: nobody knows, so it is long ago.
        .try_fold(SystemTime::UNIX_EPOCH, |last, since| Some(last.max(since?.unwrap_or(last))));
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let runs = |state: Option<&_>| {
        state.is_none_or(|state: &k8s_openapi::api::core::v1::ContainerState| state.running.is_some())
    };
    Some(WarmGate {
        waits_since,
        is_down: containers.iter().any(|container| !runs(container.state.as_ref())),
        told: find(api::WARM_CONDITION).map(|condition| ToldWarm {
            is_warm: condition.status == "True",
            reason: condition.reason.as_deref().unwrap_or_default().into(),
            since: since(condition),
        }),
    })
}

fn since(condition: &PodCondition) -> Option<SystemTime> {
    Some(condition.last_transition_time.as_ref()?.0.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn gate(gates: &[&str], status: &Value) -> Option<WarmGate> {
        let gates: Vec<_> = gates.iter().map(|kind| json!({ "conditionType": kind })).collect();
        let spec = json!({ "containers": [], "readinessGates": gates });
        of(&serde_json::from_value(spec).unwrap(), &serde_json::from_value(status.clone()).unwrap())
    }

    fn condition(kind: &str, status: &str, second: u64) -> Value {
        json!({ "type": kind, "status": status, "reason": "R",
            "lastTransitionTime": format!("1970-01-01T00:00:{second:02}Z") })
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn it_waits_for_the_gate_alone_once_everything_else_holds() {
        let (ready, lb) = (condition("ContainersReady", "True", 7), "example.com/lb");
        for (gates, conditions, waits_since) in [
            (&["sluice.dev/warm"][..], json!([ready]), Some(at(7))),
            (&["sluice.dev/warm"], json!([condition("ContainersReady", "False", 7)]), None),
            (&["sluice.dev/warm"], json!([condition("Ready", "True", 7)]), None),
            (&["sluice.dev/warm"], Value::Null, None),
            (&[lb, "sluice.dev/warm"], json!([ready]), None),
            (&[lb, "sluice.dev/warm"], json!([ready, condition(lb, "False", 9)]), None),
            (&[lb, "sluice.dev/warm"], json!([ready, condition(lb, "True", 9)]), Some(at(9))),
            (&[lb, "sluice.dev/warm"], json!([ready, condition(lb, "True", 3)]), Some(at(7))),
            // What it says of itself is not waited for.
            (&["sluice.dev/warm"], json!([ready, condition("sluice.dev/warm", "False", 9)]), Some(at(7))),
            (&["sluice.dev/warm"], json!([{ "type": "ContainersReady", "status": "True" }]), Some(at(0))),
        ] {
            let found = gate(gates, &json!({ "conditions": conditions })).unwrap();
            assert_eq!(found.waits_since, waits_since, "{gates:?} {conditions}");
        }
        assert_eq!(gate(&[lb], &json!({ "conditions": [ready] })), None);
        assert_eq!(gate(&[], &json!({})), None);
    }

    #[test]
    fn it_tells_what_stands_there_and_whether_all_containers_run() {
        let container = |state: Value| json!({ "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state });
        let (up, down) = (container(json!({ "running": {} })), container(json!({ "waiting": {} })));
        let of = |containers: Value, told: Value| {
            gate(&["sluice.dev/warm"], &json!({ "conditions": told, "containerStatuses": containers }))
                .unwrap()
        };
        assert!(!of(json!([up]), json!([])).is_down);
        assert!(of(json!([up, down]), json!([])).is_down);
        let told = of(json!([up]), json!([condition("sluice.dev/warm", "True", 5)])).told.unwrap();
        assert_eq!(told, ToldWarm { is_warm: true, reason: "R".into(), since: Some(at(5)) });
        assert!(!of(json!([]), json!([condition("sluice.dev/warm", "Unknown", 5)])).told.unwrap().is_warm);
    }
}
