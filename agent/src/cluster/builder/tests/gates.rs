//! Pods that are not Ready before they are warm.

use super::*;
use crate::cluster::warm_gate::{Gated, Word};

const HERE: &str = "n1";

fn options() -> Options {
    Options { node: Some(HERE.into()), warm_gates: true, ..Options::default() }
}

fn policy(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: sluice.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: p, namespace: shop}}, \
         spec: {{targetRefs: [{{name: orders}}]{spec}}}}}\n"
    )
}

const WARMS: &str = ", loadBalancer: {warmUp: {duration: 60s}}";

/// A pod with the gate, whose containers are ready since then.
fn waiting(name: &str, ip: &str, since: Option<&str>, more: &str) -> String {
    let conditions = since.map_or(String::new(), |since| {
        format!("{{type: ContainersReady, status: \"True\", lastTransitionTime: \"{since}\"}}")
    });
    pod(name, ip, ", labels: {app: orders}")
        .replace("nodeName: n1", "nodeName: n1, readinessGates: [{conditionType: sluice.dev/warm}]")
        .replace("phase: Running", &format!("phase: Running, conditions: [{conditions}{more}]"))
}

/// What the EndpointSlice controller says of a pod that is not Ready.
fn unready(ip: &str, pod: &str) -> String {
    endpoint(ip, pod).replacen('{', "{conditions: {ready: false, serving: false}, ", 1)
}

fn now() -> u64 {
    Nanos::at(std::time::Instant::now()).0
}

fn word(builder: &Builder, pod: &str) -> Option<Word> {
    let name = Name { namespace: "shop".into(), name: pod.into() };
    builder.gates().pods.get(&name).and_then(|gated: &Gated| gated.word(now()))
}

fn seconds_ago(seconds: u64) -> String {
    let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
    k8s_openapi::jiff::Timestamp::try_from(then).unwrap().to_string()
}

fn usable(snapshot: &Snapshot) -> Vec<String> {
    let orders = service(snapshot, "10.96.0.1:80");
    addresses(&orders.endpoints.iter().filter(|e| e.is_usable()).cloned().collect::<Vec<_>>())
}

#[test]
fn one_whose_containers_are_ready_is_called_where_a_warm_up_is_said() {
    let slices = slice("s", "orders", &[endpoint("10.0.0.1", "old"), unready("10.0.0.2", "new")].join(", "));
    let old = ready_since(&pod("old", "10.0.0.1", ""), "2026-01-01T10:00:00Z");
    let new = |since: Option<&str>, more: &str| waiting("new", "10.0.0.2", since, more);
    let text = format!("{SHOP}{}{slices}{old}{}", svc("orders", "10.96.0.1", ""), new(None, ""));
    let mut builder = start(options(), &(text.clone() + &policy(WARMS)));
    assert_eq!(usable(&next(&mut builder)), ["10.0.0.1:8080"], "its containers are not ready");
    assert_eq!(word(&builder, "new"), None);

    let since = seconds_ago(20);
    apply(&mut builder, &new(Some(&since), ""));
    let snapshot = next(&mut builder);
    assert_eq!(usable(&snapshot), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(word(&builder, "new"), Some(Word::WarmingUp));
    assert!(service(&snapshot, "10.96.0.1:80").endpoints[1].ready_since_nanos.is_some());

    // It is Ready at last: the same endpoint, at the same point of its curve.
    let warm = ", {type: sluice.dev/warm, status: \"True\"}, {type: Ready, status: \"True\", lastTransitionTime: \"2026-01-01T12:00:00Z\"}";
    apply(&mut builder, &new(Some(&since), warm));
    apply(
        &mut builder,
        &slice("s", "orders", &[endpoint("10.0.0.1", "old"), endpoint("10.0.0.2", "new")].join(", ")),
    );
    assert!(builder.build(Instant::now()).is_none(), "nothing is new for who calls it");
    assert_eq!(word(&builder, "new"), None);

    // One that leaves gets nothing any more.
    let leaving = new(Some(&since), "")
        .replace("uid: uid-new", "uid: uid-new, deletionTimestamp: \"2026-01-01T00:00:00Z\"");
    apply(&mut builder, &leaving);
    apply(&mut builder, &slices);
    let snapshot = next(&mut builder);
    assert_eq!(usable(&snapshot), ["10.0.0.1:8080"]);
    assert!(service(&snapshot, "10.96.0.1:80").endpoints[1].is_draining());
    assert_eq!(word(&builder, "new"), None);
}

#[test]
fn where_nothing_warms_up_it_is_said_at_once_and_kubernetes_has_the_word() {
    let since = seconds_ago(1);
    let slices = slice("s", "orders", &unready("10.0.0.2", "new"));
    let gated = waiting("new", "10.0.0.2", Some(&since), "");
    let text = format!("{SHOP}{}{slices}{gated}", svc("orders", "10.96.0.1", ""));
    for (policy, expected) in [
        (String::new(), Word::NotNeeded),
        (policy(", timeout: 1s"), Word::NotNeeded),
        (policy(WARMS), Word::WarmingUp),
    ] {
        let mut builder = start(options(), &(text.clone() + &policy));
        let snapshot = next(&mut builder);
        let called = expected == Word::WarmingUp;
        assert_eq!(!usable(&snapshot).is_empty(), called, "{policy}");
        assert_eq!(word(&builder, "new"), Some(expected), "{policy}");
    }
    // A policy that comes or goes counts.
    let mut builder = start(options(), &text);
    next(&mut builder);
    apply(&mut builder, &policy(WARMS));
    next(&mut builder);
    assert_eq!(word(&builder, "new"), Some(Word::WarmingUp));
    delete(&mut builder, &policy(WARMS));
    next(&mut builder);
    assert_eq!(word(&builder, "new"), Some(Word::NotNeeded));
    // And a pod of no Service.
    delete(&mut builder, &svc("orders", "10.96.0.1", ""));
    next(&mut builder);
    assert_eq!(word(&builder, "new"), Some(Word::NotNeeded));
}

#[test]
fn the_selector_says_it_before_the_slice_does() {
    let gated = waiting("new", "10.0.0.2", Some(&seconds_ago(1)), "");
    for (selector, expected) in [
        (", selector: {app: orders}", Word::WarmingUp),
        (", selector: {app: orders, tier: web}", Word::NotNeeded),
        ("", Word::NotNeeded),
    ] {
        let text = format!("{SHOP}{}{gated}{}", svc("orders", "10.96.0.1", selector), policy(WARMS));
        let mut builder = start(options(), &text);
        next(&mut builder);
        assert_eq!(word(&builder, "new"), Some(expected), "{selector}");
    }
}

#[test]
fn agents_say_it_of_pods_of_their_own_node_in_enrolled_namespaces() {
    let since = seconds_ago(1);
    let of = |name: &str, ip: &str| waiting(name, ip, Some(&since), "");
    let text = format!(
        "{SHOP}{}{}{}{}",
        svc("orders", "10.96.0.1", ", selector: {app: orders}"),
        policy(WARMS),
        of("here", "10.0.0.1"),
        of("there", "10.0.0.2").replace("nodeName: n1", "nodeName: n2")
    ) + &of("outside", "10.0.0.3").replace("namespace: shop", "namespace: bank")
        + &slice("s", "orders", &[unready("10.0.0.1", "here"), unready("10.0.0.2", "there")].join(", "));
    let mut builder = start(options(), &text);
    let snapshot = next(&mut builder);
    // All follow the curve.
    assert_eq!(usable(&snapshot), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let gates = builder.gates();
    let names: Vec<_> = gates.pods.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/here"]);
    assert!(gates.enrolled.iter().map(|name| &**name).eq(["shop"]));
    // What is no news is none.
    let before = gates.clone();
    apply(&mut builder, &svc("other", "10.96.0.2", ""));
    next(&mut builder);
    assert!(Arc::ptr_eq(&before, builder.gates()));
    delete(&mut builder, &of("here", "10.0.0.1"));
    next_if_any(&mut builder);
    assert!(builder.gates().pods.is_empty());
}

#[test]
fn agents_that_do_not_set_the_gate_say_so_and_leave_it_to_kubernetes() {
    let gated = waiting("new", "10.0.0.2", Some(&seconds_ago(1)), "");
    let text = format!(
        "{SHOP}{}{}{gated}{}",
        svc("orders", "10.96.0.1", ", selector: {app: orders}"),
        slice("s", "orders", &unready("10.0.0.2", "new")),
        policy(WARMS)
    );
    let mut builder = start(Options { warm_gates: false, ..options() }, &text);
    let snapshot = next(&mut builder);
    assert_eq!(usable(&snapshot), Vec::<String>::new());
    assert!(builder.gates().pods.is_empty());
    let messages = messages(&builder);
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].starts_with("Pod shop/new: spec.readinessGates: sluice.dev/warm"), "{messages:?}");
}

#[test]
fn one_without_hints_does_not_end_the_preference_for_the_zone() {
    let hinted = |ip: &str, name: &str, zone: &str| {
        endpoint(ip, name).replacen(
            '{',
            &format!("{{zone: {zone}, hints: {{forZones: [{{name: {zone}}}]}}, "),
            1,
        )
    };
    let plain =
        |ip: &str, name: &str, zone: &str| unready(ip, name).replacen('{', &format!("{{zone: {zone}, "), 1);
    let all = [
        hinted("10.0.0.1", "a1", "a"),
        hinted("10.0.0.2", "b1", "b"),
        plain("10.0.0.3", "a2", "a"),
        plain("10.0.0.4", "b2", "b"),
    ];
    let since = seconds_ago(1);
    let pods = ready_since(&pod("a1", "10.0.0.1", ""), &since)
        + &ready_since(&pod("b1", "10.0.0.2", ""), &since)
        + &waiting("a2", "10.0.0.3", Some(&since), "")
        + &waiting("b2", "10.0.0.4", Some(&since), "");
    for (from, expected) in [
        (&all[..], &["10.0.0.1:8080", "10.0.0.3:8080"][..]),
        // The first of a Service: nobody has hints, and nobody is left out.
        (&all[2..], &["10.0.0.3:8080", "10.0.0.4:8080"]),
    ] {
        let text = format!(
            "{SHOP}{}{}{pods}{}",
            svc("orders", "10.96.0.1", ""),
            slice("s", "orders", &from.join(", ")),
            policy(WARMS)
        );
        let mut builder = start(Options { zone: Some("a".into()), ..options() }, &text);
        let snapshot = next(&mut builder);
        assert_eq!(addresses(&service(&snapshot, "10.96.0.1:80").baseline), expected);
    }
}

#[test]
fn an_agent_that_starts_in_the_middle_goes_on_and_a_lane_warms_too() {
    let gated = |seconds| {
        waiting("new", "10.0.0.2", Some(&seconds_ago(seconds)), "")
            .replace("app: orders", "app: orders, sluice.dev/tag: gray")
    };
    for (seconds, expected) in [(30, Word::WarmingUp), (61, Word::Warm)] {
        let text = format!(
            "{SHOP}{}{}{}{}",
            svc("orders", "10.96.0.1", ""),
            slice("s", "orders", &unready("10.0.0.2", "new")),
            gated(seconds),
            policy(WARMS)
        );
        let mut builder = start(options(), &text);
        let snapshot = next(&mut builder);
        assert_eq!(word(&builder, "new"), Some(expected), "{seconds}");
        let orders = service(&snapshot, "10.96.0.1:80");
        assert!(orders.baseline.is_empty() && orders.lanes.len() == 1);
    }
}
