//! What holds for a service, value by value, with the policy that says it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{check, policy, route};
use crate::api::{
    self, TrafficPolicy,
    effective::{self, Effect},
};

#[test]
fn every_value_has_its_source() {
    let text = policy(
        "orders",
        "  targetRefs: [{name: orders}, {name: stock, sectionName: http}]\n  loadBalancer: {type: Random}\n  \
         rateLimits:\n  - {name: burst, requests: 5, type: Queue}\n",
    );
    let (good, out, complaints) = check(&text, &["-"]);
    assert!(good && complaints.contains("type Queue without queue"), "{complaints}");
    let squeezed: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "Service shop/orders (not in these files)",
        "Service shop/stock:http (not in these files)",
        "loadBalancer.type Random TrafficPolicy shop/orders",
        "loadBalancer.panicThresholdPercent 50 default",
        "loadBalancer.warmUp off default",
        "rateLimits[0].requests 5 TrafficPolicy shop/orders",
        "rateLimits[0].interval 1s default",
        "rateLimits[0].queue.timeout 500ms default",
        "rateLimits[0].mode Enforce default",
        "circuitBreaker off default",
        "mode Enforce default",
    ] {
        assert!(squeezed.iter().any(|found| found == line), "no {line:?} in\n{out}");
    }
    assert!(!out.contains("rateLimits[0].burst"), "a queue has no burst\n{out}");
    assert!(!out.contains("rateLimits[0].warmUp"), "{out}");
}

#[test]
fn the_oldest_policy_wins_and_a_port_goes_before_its_service() {
    let dated = |name: &str, created: &str, spec: &str| {
        policy(name, spec).replacen(
            "metadata:\n",
            &format!("metadata:\n  creationTimestamp: \"{created}\"\n"),
            1,
        )
    };
    let text = dated("a", "2026-02-01T00:00:00Z", "  targetRefs: [{name: orders}]\n  retry: {attempts: 2}\n")
        + &dated("b", "2026-01-01T00:00:00Z", "  targetRefs: [{name: orders}]\n  retry: {attempts: 3}\n")
        + &policy("c", "  targetRefs: [{name: orders, sectionName: grpc}]\n  retry: {attempts: 4}\n");
    let (good, _, complaints) = check(&text, &["-"]);
    assert!(!good);
    assert_eq!(
        complaints,
        "-:8: TrafficPolicy shop/a: spec.targetRefs[0]: Service orders is targeted by TrafficPolicy shop/b already, which \
         is older: this one is not active there\n"
    );
    for (service, attempts) in
        [("shop/orders:grpc", json!(4)), ("shop/orders:http", json!(3)), ("shop/stock", json!(null))]
    {
        let (_, out, _) = check(&text, &["-", "-o", "json", "--service", service]);
        let report: Value = serde_json::from_str(&out).expect("JSON");
        let values = report["services"][0]["values"].as_array().expect("values");
        let found = values.iter().find(|value| value["field"] == "retry.attempts");
        assert_eq!(found.map_or(&Value::Null, |found| &found["value"]), &attempts, "{service}\n{out}");
        assert_eq!(report["services"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn a_service_is_told_with_what_it_has_of_its_namespace() {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let text = service("orders")
        + &service("stock")
        + &policy(
            "all",
            "  targetRefs: [{kind: Namespace, name: shop}]\n  timeouts: {request: 5s}\n  retry: {}\n",
        )
        + &policy("orders", "  targetRefs: [{name: orders}]\n  timeouts: {request: 1s}\n")
        + &policy("more", "  targetRefs: [{kind: Namespace, name: shop}]\n");
    let (good, _, complaints) = check(&text, &["-"]);
    assert!(!good);
    assert_eq!(
        complaints,
        "-:36: TrafficPolicy shop/more: spec.targetRefs[0]: Namespace shop is targeted by TrafficPolicy shop/all already, \
         first by name: this one is not active\n"
    );
    let text = text.split("---\n").take(4).collect::<Vec<_>>().join("---\n");
    let (good, out, complaints) = check(&text, &["-"]);
    assert!(good, "{complaints}");
    let of = |title: &str, field: &str| {
        let block = out
            .split('\n')
            .skip_while(|line| *line != title)
            .skip(1)
            .take_while(|line| line.starts_with("  "));
        let lines: Vec<_> = block.filter(|line| line.trim().starts_with(field)).collect();
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    for (title, field, wanted) in [
        ("Service shop/orders", "timeouts.request", "timeouts.request 1s TrafficPolicy shop/orders"),
        ("Service shop/orders", "retry.attempts", "retry.attempts 1 default"),
        ("Service shop/stock", "timeouts.request", "timeouts.request 5s TrafficPolicy shop/all"),
        (
            "every other Service of Namespace shop",
            "timeouts.request",
            "timeouts.request 5s TrafficPolicy shop/all",
        ),
    ] {
        assert_eq!(of(title, field), [wanted], "{title}\n{out}");
    }
    let (_, out, _) = check(&text, &["-", "-o", "json", "--service", "shop/orders"]);
    let report: Value = serde_json::from_str(&out).expect("JSON");
    let told = &report["services"][0];
    assert_eq!(
        (&told["policy"], &told["inheritsFrom"]),
        (&json!("shop/orders"), &json!(["shop/all"])),
        "{out}"
    );
    let bad = policy("p", "  targetRefs: [{kind: Namespace, name: other}]\n");
    let (good, _, complaints) = check(&bad, &["-"]);
    assert!(
        !good && complaints.contains("\"other\" is another namespace: a policy is about its own, \"shop\""),
        "{complaints}"
    );
}

/// Puts the values together again to a spec that says all of them.
fn spelled_out(effects: &[Effect]) -> Value {
    let mut spec = json!({"targetRefs": [{"name": "orders"}]});
    for effect in effects.iter().filter(|effect| effect.value != effective::OFF) {
        let mut place = &mut spec;
        for part in effect.field.split('.') {
            let (name, index) = match part.split_once('[') {
                Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
                None => (part, None),
            };
            place = &mut place[name];
            if let Some(index) = index {
                if place.is_null() {
                    *place = json!([]);
                }
                let items = place.as_array_mut().expect("a list");
                if items.len() <= index {
                    items.push(json!({}));
                }
                place = &mut items[index];
            }
        }
        *place = effect.value.clone();
    }
    spec
}

proptest! {
    /// What is told is what is in force: a policy that says every value comes to the same.
    #[test]
    fn what_is_told_is_what_is_in_force(parts in prop::collection::vec(prop::sample::select(vec![
        r#"{"mode": "Observe"}"#,
        r#"{"loadBalancer": {"warmUp": {}}}"#,
        r#"{"loadBalancer": {"type": "RoundRobin", "warmUp": {"duration": "5s", "healthCheckPaths": ["/a"]}}}"#,
        r#"{"drain": {"timeout": "5s"}}"#,
        r#"{"rateLimits": [{"name": "a", "requests": 7}, {"name": "b", "requests": 7, "type": "Queue", "mode": "Enforce"}]}"#,
        r#"{"rateLimits": [{"name": "a", "requests": 7, "type": "WarmUp", "match": {"headers": [{"name": "x", "value": "y"}]}}]}"#,
        r#"{"concurrency": {"adaptive": {}}}"#,
        r#"{"concurrency": {"maxRequests": 5}}"#,
        r#"{"circuitBreaker": {"errorCount": 5, "slowRequest": {"threshold": "1s", "percent": 5}}}"#,
        r#"{"circuitBreaker": {}}"#,
        r#"{"headers": {"request": {"set": [{"name": "x-a", "value": "b c"}], "remove": ["x-b"]}}}"#,
        r#"{"stripTags": {"from": [{"namespace": "ingress"}]}}"#,
        r#"{"rules": [{"name": "r", "match": {"path": {"value": "/r"}}, "timeouts": {"request": "9s"}, "circuitBreaker": {}}]}"#,
        r#"{"rules": [{"name": "r", "rateLimits": [{"name": "a", "requests": 7, "type": "Queue"}], "retry": {"attempts": 2}, "concurrency": {"adaptive": {}}}, {"name": "s"}]}"#,
        r#"{"outlierDetection": {"successRate": {}}}"#,
        r#"{"timeouts": {"request": "5s"}}"#,
        r#"{"retry": {}}"#,
        r#"{"retry": {"codes": [], "backoff": {"base": "1ms"}}}"#,
        r#"{"fallbacks": [{"name": "a", "conditions": ["Timeout"], "type": "Stale", "stale": {"shared": true}}]}"#,
        r#"{"fallbacks": [{"name": "a", "conditions": ["Timeout"], "type": "Stale", "stale": {"varyBy": ["x"], "maxAge": "5s"}}]}"#,
        r#"{"fallbacks": [{"name": "a", "conditions": ["Timeout"], "type": "Static", "static": {"status": 200, "body": "a b"}}]}"#,
    ]), 0..8)) {
        let mut spec = json!({"targetRefs": [{"name": "orders"}]});
        for part in parts {
            let part: Value = serde_json::from_str(part).expect("JSON");
            for (field, value) in part.as_object().expect("an object") {
                spec[field] = value.clone();
            }
        }
        let read = |spec: Value| api::read::<TrafficPolicy>(&json!({"apiVersion": api::API_VERSION, "kind": "TrafficPolicy", "metadata": {"name": "a"}, "spec": spec})).map(|(_, policy)| policy);
        let whole = spelled_out(&effective::values(&spec));
        let wanted = read(spec).expect("a good policy");
        prop_assert_eq!(read(whole.clone()).map_err(|errors| format!("{errors:?} in {whole:#}")), Ok(wanted));
    }
}

/// As the agent has it: a Service that a route sends to takes from the policy of the one that is called.
#[test]
fn a_service_is_told_with_what_it_has_of_the_one_that_is_called() {
    let rules = "  - backendRefs: [{name: orders-stable, port: 80}, {name: orders-canary, port: 80}]\n";
    let text = route("orders", rules)
        + &policy(
            "orders",
            "  targetRefs: [{name: orders}]\n  timeouts: {request: 1s}\n  drain: {timeout: 7s}\n",
        )
        + &policy("canary", "  targetRefs: [{name: orders-canary}]\n  timeouts: {request: 2s}\n")
        + &policy("all", "  targetRefs: [{kind: Namespace, name: shop}]\n  retry: {attempts: 3}\n");
    let of = |service: &str, field: &str| {
        let (_, out, complaints) = check(&text, &["-", "--service", service]);
        let mut lines = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("{out}{complaints}"))
    };
    for (service, field, wanted) in [
        ("shop/orders-stable", "timeouts.request", "timeouts.request 1s TrafficPolicy shop/orders"),
        ("shop/orders-canary", "timeouts.request", "timeouts.request 2s TrafficPolicy shop/canary"),
        ("shop/orders-canary", "drain.timeout", "drain.timeout 7s TrafficPolicy shop/orders"),
    ] {
        assert_eq!(of(service, field), wanted, "{service}");
    }
    let retried = "retry.attempts 3 TrafficPolicy shop/all";
    assert_eq!(
        (&*of("shop/orders-stable", "retry.attempts"), &*of("shop/orders-canary", "retry.attempts")),
        (retried, retried)
    );
}
