use serde_json::Value;

use super::*;
use crate::admin::desk::{Pods, Policies, Services};

fn problem(message: &str) -> Problem {
    Problem { message: message.to_owned(), action: format!("Mend {message}.") }
}

fn node(name: &str, ready: bool, problems: &[&str]) -> Node {
    let status = Status {
        version: VERSION.to_owned(),
        node: Some(name.to_owned()),
        kernel: "6.1.0".to_owned(),
        ready,
        draining: false,
        snapshot_age_seconds: Some(1.0),
        snapshot_generation: 1,
        snapshot_restored: false,
        pods: Pods { enrolled: 3, pending: u64::from(!ready) as usize, other_mesh: 0 },
        services: Services { managed: 2, endpoints: 4, ready_endpoints: 3, in_flight: 0 },
        policies: Policies { active: 1, inactive: 1, ..Policies::default() },
        route_rules: 0,
        problems: problems.iter().map(|message| problem(message)).collect(),
    };
    Node { name: name.to_owned(), pod: Some(format!("sluice-{name}")), status: Ok(status) }
}

fn silent(name: &str, why: &str) -> Node {
    let why = Unreached::Down { pod: format!("sluice-{name}"), why: why.to_owned() };
    Node { name: name.to_owned(), pod: None, status: Err(why) }
}

#[test]
fn the_worst_node_is_first_and_what_is_the_same_is_told_once() {
    let report = Report::new(
        vec![
            node("a", true, &[]),
            node("b", true, &["policy", "endpoint"]),
            node("c", false, &["start", "policy"]),
            silent("d", "CrashLoopBackOff"),
            node("e", true, &["policy"]),
        ],
        1,
    );
    let order: Vec<&str> = report.nodes.iter().map(|node| &*node.name).collect();
    assert_eq!(order, ["d", "c", "b", "e", "a"]);
    let problems: Vec<_> = report.problems.iter().map(|one| (&*one.message, one.nodes.join(","))).collect();
    let wanted = [("start", "c"), ("policy", "c,b,e"), ("endpoint", "b")];
    assert_eq!(problems, wanted.map(|(message, nodes)| (message, nodes.to_owned())));
    assert!(!report.is_good());

    let wanted = "\
5 nodes with an agent: 3 ready, 1 not ready, 1 without an answer
1 agents are wanted and have no pod: kubectl describe the DaemonSet, its events say why

node  version  state      pods                   services                         policies                problems
c     VERSION  NOT READY  3 enrolled, 1 pending  2 ports, 3 of 4 endpoints ready  1 active, 1 not active  2
b     VERSION  ready      3 enrolled             2 ports, 3 of 4 endpoints ready  1 active, 1 not active  2
e     VERSION  ready      3 enrolled             2 ports, 3 of 4 endpoints ready  1 active, 1 not active  1
a     VERSION  ready      3 enrolled             2 ports, 3 of 4 endpoints ready  1 active, 1 not active  0

without an answer:
  - d: pod sluice-d does not run: CrashLoopBackOff

what is wrong, and what to do:
  - c: start
    Mend start.
  - c, b, e: policy
    Mend policy.
  - b: endpoint
    Mend endpoint.
";
    // As wide as the heading.
    assert_eq!(shown(&report), wanted.replace("VERSION", &format!("{VERSION:7}")));

    let json: Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["nodes"][0]["error"], "pod sluice-d does not run: CrashLoopBackOff");
    assert_eq!((&json["nodes"][1]["node"], &json["nodes"][1]["pod"]), (&"c".into(), &"sluice-c".into()));
    assert_eq!(json["nodes"][1]["status"]["ready"], false);
    assert_eq!(json["problems"][1]["nodes"], serde_json::json!(["c", "b", "e"]));
    assert_eq!((&json["lacking"], &json["plugin_version"]), (&1.into(), &VERSION.into()));
}

#[test]
fn a_cluster_in_which_nothing_is_wrong_says_so() {
    let report = Report::new(vec![node("a", true, &[]), node("b", true, &[])], 0);
    assert!(report.is_good() && shown(&report).ends_with("\nnothing is wrong\n"), "{}", shown(&report));
    assert!(!Report::new(vec![node("a", true, &[])], 1).is_good());
    let all = Report::new(vec![node("a", true, &["x"]), node("b", true, &["x"])], 0);
    assert!(shown(&all).contains("  - all nodes: x\n"), "{}", shown(&all));
    let nobody = Report::new(vec![silent("a", "\u{1b}[2J")], 0);
    assert!(shown(&nobody).contains("\\u{1b}[2J"), "{}", shown(&nobody));
}

#[test]
fn of_many_nodes_some_are_named() {
    assert_eq!(named(&["a"]), "a");
    assert_eq!(named(&["a", "b", "c", "d"]), "a, b, c, d");
    assert_eq!(named(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 more");
}
