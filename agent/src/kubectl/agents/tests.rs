use serde_json::{Value, json};

use super::*;

fn pod(name: &str, node: &str, created: &str, status: &Value) -> Pod {
    let object = json!({
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"nodeName": node, "containers": [{"name": "side"}, {"name": "agent"}]},
        "status": status,
    });
    serde_json::from_value(object).unwrap()
}

fn running() -> Value {
    json!({"phase": "Running", "containerStatuses": [{"name": "agent", "state": {"running": {}}, "image": "",
        "imageID": "", "ready": false, "restartCount": 0}]})
}

fn waiting(reason: &str) -> Value {
    json!({"phase": "Running", "containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false,
        "restartCount": 3,
        "state": {"waiting": {"reason": reason, "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]})
}

fn set(desired: i32) -> DaemonSet {
    let status = json!({"desiredNumberScheduled": desired, "currentNumberScheduled": 0, "numberMisscheduled": 0,
        "numberReady": 0});
    serde_json::from_value(json!({"metadata": {"name": "sluice"}, "status": status})).unwrap()
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

fn name(agents: &Agents, node: &str) -> String {
    match agents.of(node) {
        Some(Ok(agent)) => agent.pod.clone(),
        Some(Err(why)) => why.to_string(),
        None => "nobody".to_owned(),
    }
}

#[test]
fn of_two_agents_of_a_node_the_one_that_takes_over_is_asked_as_soon_as_it_runs() {
    let mut leaving = pod("old", "c", NEW, &running());
    leaving.metadata.deletion_timestamp.clone_from(&leaving.metadata.creation_timestamp);
    let agents = Agents::new(
        vec![
            pod("old", "a", OLD, &running()),
            pod("new", "a", NEW, &running()),
            pod("new", "b", NEW, &waiting("ImagePullBackOff")),
            pod("old", "b", OLD, &running()),
            leaving,
            pod("new", "c", OLD, &running()),
        ],
        &[set(3)],
    );
    assert_eq!(["a", "b", "c", "d"].map(|node| name(&agents, node)), ["new", "old", "new", "nobody"]);
    assert_eq!(agents.lacking, 0);
}

#[test]
fn an_agent_that_does_not_run_says_why() {
    // Not scheduled yet: its DaemonSet says for which node it is.
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]}]}}});
    let pending: Pod = serde_json::from_value(json!({
        "metadata": {"name": "sluice-c"},
        "spec": {"affinity": affinity, "containers": [{"name": "agent"}]},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available"}]},
    }))
    .unwrap();
    let nowhere: Pod =
        serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": {"containers": []}})).unwrap();
    let agents = Agents::new(
        vec![
            pod("sluice-a", "a", OLD, &waiting("CrashLoopBackOff")),
            pod("sluice-b", "b", OLD, &json!({"phase": "Pending"})),
            pending,
            nowhere,
        ],
        &[set(5)],
    );
    for (node, wanted) in [
        ("a", "pod sluice-a does not run: CrashLoopBackOff: back-off 40s; its program ended with 1 (Error)"),
        ("b", "pod sluice-b does not run: Pending"),
        ("c", "pod sluice-c does not run: Unschedulable: 0/3 nodes are available"),
    ] {
        assert_eq!(name(&agents, node), wanted);
    }
    assert_eq!(agents.lacking, 2);
    assert!(!agents.is_empty() && Agents::default().is_empty());
}

#[test]
fn the_container_and_the_program_are_those_of_the_pod() {
    let mut other = pod("x", "a", OLD, &running());
    let agent_of = |pod: &Pod| Agents::new(vec![pod.clone()], &[]).of("a").unwrap().clone().unwrap();
    assert_eq!(
        agent_of(&other),
        Agent { pod: "x".into(), container: "agent".into(), program: "/sluice".into() }
    );
    other.spec.as_mut().unwrap().containers[1].command =
        Some(vec!["/opt/sluice".to_owned(), "agent".to_owned()]);
    assert_eq!(agent_of(&other).program, "/opt/sluice");
    // Another name, said by the annotation.
    other.spec.as_mut().unwrap().containers[1].name = "proxy".to_owned();
    other.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].name = "proxy".to_owned();
    let annotation = [(DEFAULT_CONTAINER.to_owned(), "proxy".to_owned())];
    other.metadata.annotations = Some(annotation.into());
    assert_eq!(agent_of(&other).container, "proxy");
}

#[test]
fn a_node_that_has_none_is_not_among_those_that_are_asked() {
    let agents =
        || Agents::new(vec![pod("x", "a", OLD, &running()), pod("y", "b", OLD, &running())], &[set(3)]);
    assert_eq!(agents().lacking, 1);
    let one = agents().only(&["b".to_owned()]).unwrap();
    assert_eq!((one.all().count(), one.lacking, name(&one, "b")), (1, 0, "y".to_owned()));
    let error = agents().only(&["b".to_owned(), "z".to_owned()]).unwrap_err().to_string();
    assert_eq!(error, "--node: no agent runs on node \"z\"; there are agents on a, b");
    assert_eq!(agents().only(&[]).unwrap().all().count(), 2);
}
