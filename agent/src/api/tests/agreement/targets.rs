//! What a policy is about, and how endpoints are chosen.

use super::*;

#[test]
fn about_what_is_targeted() {
    let targets = |targets: Value| policy(&json!({"targetRefs": targets}));
    let of_route =
        |kind: &str, name: &str| json!({"group": "gateway.networking.k8s.io", "kind": kind, "name": name});
    let on_route = |spec: &Value| {
        let mut on_route = policy(spec);
        on_route["spec"]["targetRefs"] = json!([of_route("HTTPRoute", "orders")]);
        on_route
    };
    let many = |count: usize| (0..count).map(|i| json!({"name": format!("s{i}")})).collect::<Value>();
    agree::<TrafficPolicy>(
        vec![
            targets(json!([{"group": "", "kind": "Service", "name": "orders"}])),
            targets(json!([{"name": "orders", "sectionName": null}, {"name": "stock"}])),
            targets(
                json!([{"name": "orders", "sectionName": "http"}, {"name": "orders", "sectionName": "grpc"}]),
            ),
            targets(many(64)),
            targets(json!([{"kind": "Namespace", "name": "shop"}])),
            targets(json!([of_route("HTTPRoute", "orders"), of_route("GRPCRoute", "orders")])),
            targets(json!([{
                "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "orders.v1", "sectionName": "slow",
            }])),
            on_route(
                &json!({"timeouts": {"request": "1s"}, "mode": "Observe", "rateLimits": [], "inherit": "All"}),
            ),
            policy(&json!({"inherit": "None"})),
        ],
        vec![
            (targets(json!([])), "spec.targetRefs", "0 items: allowed are 1 to 64", Everywhere),
            (targets(many(65)), "spec.targetRefs", "65 items: allowed are 1 to 64", Everywhere),
            (targets(json!(null)), "spec.targetRefs", "not set", Everywhere),
            (targets(json!({"name": "a"})), "spec.targetRefs", "a list is needed, not an object", Everywhere),
            (targets(json!([{"kind": "Service"}])), "spec.targetRefs[0].name", "not set", Everywhere),
            (targets(json!([{"name": "Orders"}])), "spec.targetRefs[0].name", "a-z", Everywhere),
            (targets(json!([{"name": ""}])), "spec.targetRefs[0].name", "must not be empty", Everywhere),
            (
                targets(json!([{"kind": "Namespace", "name": ""}])),
                "spec.targetRefs[0].name",
                "must not be empty",
                Everywhere,
            ),
            (
                targets(json!([{"kind": "Namespace", "name": "Shop"}])),
                "spec.targetRefs[0].name",
                "a-z",
                Everywhere,
            ),
            (targets(json!([{"name": long(64)}])), "spec.targetRefs[0].name", "at most 63", Everywhere),
            (targets(json!([{"name": "a.b"}])), "spec.targetRefs[0].name", "at most 63", Everywhere),
            (
                targets(json!([{"kind": "HTTPRoute", "name": "a"}])),
                "spec.targetRefs[0].group",
                "are of the group gateway.networking.k8s.io",
                Everywhere,
            ),
            (
                targets(json!([{"group": "gateway.networking.k8s.io", "name": "a"}])),
                "spec.targetRefs[0].group",
                "Service and Namespace of the empty group",
                Everywhere,
            ),
            (
                targets(json!([of_route("HTTPRoute", "a"), {"name": "a"}])),
                "spec.targetRefs",
                "that targets routes has no other targets",
                Everywhere,
            ),
            (
                targets(json!([of_route("HTTPRoute", "a"), of_route("HTTPRoute", "a")])),
                "spec.targetRefs[1]",
                "overlap",
                Everywhere,
            ),
            (on_route(&json!({"loadBalancer": {}})), "spec.loadBalancer", "does not set", Everywhere),
            (on_route(&json!({"drain": {}})), "spec.drain", "does not set", Everywhere),
            (on_route(&json!({"outlierDetection": {}})), "spec.outlierDetection", "does not set", Everywhere),
            (on_route(&json!({"stripTags": {}})), "spec.stripTags", "does not set", Everywhere),
            (on_route(&json!({"rules": [{"name": "a"}]})), "spec.rules", "does not set", Everywhere),
            (on_route(&json!({"inherit": "None"})), "spec.inherit", "does not set", Everywhere),
            (
                targets(json!([{"name": "a", "kind": "Deployment"}])),
                "spec.targetRefs[0].kind",
                "allowed are \"Service\", \"Namespace\"",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a", "group": "apps"}])),
                "spec.targetRefs[0].group",
                "allowed are",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a", "sectionName": ""}])),
                "spec.targetRefs[0].sectionName",
                "must not be empty",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a"}, {"name": "b"}, {"name": "a"}])),
                "spec.targetRefs[2]",
                "spec.targetRefs[0] already",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a", "sectionName": "http"}, {"name": "a"}])),
                "spec.targetRefs[1]",
                "overlap",
                Everywhere,
            ),
            (
                targets(json!([{"kind": "Namespace", "name": "other"}])),
                "spec.targetRefs[0].name",
                "a policy is about its own, \"shop\"",
                ToSluice,
            ),
            (
                targets(json!([{"kind": "Namespace", "name": "shop"}, {"name": "orders"}])),
                "spec.targetRefs",
                "that targets its Namespace has no other targets",
                Everywhere,
            ),
            (
                targets(json!([{"kind": "Namespace", "name": "shop", "sectionName": "http"}])),
                "spec.targetRefs[0].sectionName",
                "a Namespace has no ports",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a", "namespace": "other"}])),
                "spec.targetRefs[0].namespace",
                "no such field",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_load_balancing() {
    let balancer = |rule: Value| policy(&json!({"loadBalancer": rule}));
    let warmup = |rule: Value| policy(&json!({"loadBalancer": {"warmUp": rule}}));
    agree::<TrafficPolicy>(
        vec![
            balancer(json!({})),
            balancer(json!({"type": "RoundRobin", "panicThresholdPercent": 0})),
            warmup(json!({})),
            warmup(json!({"duration": "1s", "aggression": 0.01, "minimumPercent": 0.01, "delay": "0s"})),
            warmup(json!({"duration": "24h", "aggression": 100, "minimumPercent": 100, "delay": "1h"})),
            warmup(json!({"startOn": "FirstRequest", "healthCheckPaths": ["/healthz", "/actuator/*"]})),
            warmup(json!({"maxWait": "1s"})),
            warmup(json!({"maxWait": "48h"})),
            policy(&json!({"drain": {}})),
            policy(&json!({"drain": {"timeout": "1m30s"}})),
        ],
        vec![
            (
                balancer(json!({"type": "LeastRequests"})),
                "spec.loadBalancer.type",
                "did you mean \"LeastRequest\"?",
                Everywhere,
            ),
            (
                balancer(json!({"panicThresholdPercent": 101})),
                "spec.loadBalancer.panicThresholdPercent",
                "101 is out of range: allowed are 0 to 100",
                Everywhere,
            ),
            (
                balancer(json!({"panicThresholdPercent": "50%"})),
                "spec.loadBalancer.panicThresholdPercent",
                "a number is needed, not the string \"50%\"",
                Everywhere,
            ),
            (
                balancer(json!({"warmup": {}})),
                "spec.loadBalancer.warmup",
                "did you mean \"warmUp\"?",
                Everywhere,
            ),
            (balancer(json!([])), "spec.loadBalancer", "an object is needed", Everywhere),
            (warmup(json!({"maxWait": "0s"})), "spec.loadBalancer.warmUp.maxWait", "1s to 48h", Everywhere),
            (warmup(json!({"duration": "0s"})), "spec.loadBalancer.warmUp.duration", "1s to 24h", Everywhere),
            (
                warmup(json!({"duration": "-5s"})),
                "spec.loadBalancer.warmUp.duration",
                "no duration",
                Everywhere,
            ),
            (
                warmup(json!({"duration": "2 m"})),
                "spec.loadBalancer.warmUp.duration",
                "no duration",
                Everywhere,
            ),
            (
                warmup(json!({"duration": "99999h"})),
                "spec.loadBalancer.warmUp.duration",
                "1s to 24h",
                Everywhere,
            ),
            (
                warmup(json!({"duration": 120})),
                "spec.loadBalancer.warmUp.duration",
                "a string is needed",
                Everywhere,
            ),
            (
                warmup(json!({"minimumPercent": 101})),
                "spec.loadBalancer.warmUp.minimumPercent",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"minimumPercent": -1})),
                "spec.loadBalancer.warmUp.minimumPercent",
                "-1 is out",
                Everywhere,
            ),
            (
                warmup(json!({"aggression": 0})),
                "spec.loadBalancer.warmUp.aggression",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"aggression": 1e300})),
                "spec.loadBalancer.warmUp.aggression",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"startOn": "ready"})),
                "spec.loadBalancer.warmUp.startOn",
                "did you mean",
                Everywhere,
            ),
            (
                warmup(json!({"healthCheckPaths": ["health"]})),
                "spec.loadBalancer.warmUp.healthCheckPaths[0]",
                "begins with '/'",
                Everywhere,
            ),
            (
                warmup(json!({"healthCheckPaths": ["/a", "/a"]})),
                "spec.loadBalancer.warmUp.healthCheckPaths[1]",
                "already",
                Everywhere,
            ),
            (policy(&json!({"drain": {"timeout": "0s"}})), "spec.drain.timeout", "1ms to 1h", Everywhere),
            (policy(&json!({"mode": "Dry"})), "spec.mode", "\"Enforce\", \"Observe\"", Everywhere),
            (policy(&json!({"rateLimit": []})), "spec.rateLimit", "did you mean \"rateLimits\"?", Everywhere),
        ],
    );
}
