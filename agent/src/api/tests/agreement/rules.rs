//! Rules for some requests, and headers.

use super::*;

#[test]
fn about_rules() {
    let rule = |more: Value| {
        let mut rule = json!({"name": "main"});
        for (field, value) in more.as_object().into_iter().flatten() {
            rule[field] = value.clone();
        }
        policy(&json!({"rules": [rule]}))
    };
    agree::<TrafficPolicy>(
        vec![
            policy(&json!({"rules": []})),
            rule(json!({})),
            rule(json!({"match": {"methods": ["GET"]}, "rateLimits": [], "fallbacks": []})),
            rule(json!({"concurrency": {"maxRequests": 1}, "retry": {}, "timeouts": {"request": "0s"}})),
            rule(json!({"rateLimits": [{"name": "a", "requests": 1}], "circuitBreaker": {}})),
            // A limit of a rule is called main/a.
            policy(&json!({
                "rateLimits": [{"name": "a", "requests": 1}],
                "rules": [{"name": "main", "rateLimits": [{"name": "a", "requests": 1}]}],
            })),
        ],
        vec![
            (policy(&json!({"rules": [{}]})), "spec.rules[0].name", "not set", Everywhere),
            (rule(json!({"name": "A b"})), "spec.rules[0].name", "a-z", Everywhere),
            (
                policy(&json!({"rules": [{"name": "a"}, {"name": "a"}]})),
                "spec.rules[1].name",
                "names are unique",
                Everywhere,
            ),
            (
                rule(json!({"rateLimits": [{"name": "a", "requests": 1}, {"name": "a", "requests": 1}]})),
                "spec.rules[0].rateLimits[1].name",
                "names are unique",
                Everywhere,
            ),
            (
                rule(json!({"match": {"path": {"value": "/a?b"}}})),
                "spec.rules[0].match.path.value",
                "queryParams",
                Everywhere,
            ),
            (
                rule(json!({"timeouts": {"request": "1s", "backendRequest": "2s"}})),
                "spec.rules[0].timeouts.backendRequest",
                "above request",
                Everywhere,
            ),
            (rule(json!({"drain": {}})), "spec.rules[0].drain", "no such field", Everywhere),
            (
                rule(json!({"fallbacks": [{"name": "a", "conditions": ["Timeout"], "type": "Stale"}]})),
                "spec.rules[0].fallbacks[0].stale",
                "not set",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_headers() {
    let headers = |more: Value| policy(&json!({"headers": more}));
    let request = |more: Value| headers(json!({"request": more}));
    let strip = |more: Value| policy(&json!({"stripTags": more}));
    agree::<TrafficPolicy>(
        vec![
            request(json!({"set": [{"name": "X-A", "value": ""}]})),
            request(
                json!({"add": [{"name": "x-a", "value": "a\tb"}], "remove": ["cookie", "Authorization"]}),
            ),
            headers(
                json!({"response": {"remove": ["set-cookie", "baggage"], "set": [{"name": "x-mse-tag", "value": "a"}]}}),
            ),
            policy(&json!({"rules": [{"name": "a", "headers": {"response": {"remove": ["x"]}}}]})),
            strip(json!({})),
            strip(json!({"from": [{"namespace": "ingress"}]})),
        ],
        vec![
            (headers(json!({})), "spec.headers", "empty: ", Everywhere),
            (request(json!({})), "spec.headers.request", "empty: ", Everywhere),
            (request(json!({"set": []})), "spec.headers.request", "empty: ", Everywhere),
            (
                request(json!({"set": [{"name": "Host", "value": "a"}]})),
                "spec.headers.request.set[0].name",
                "Sluice sets this header itself",
                Everywhere,
            ),
            (
                request(json!({"remove": ["x-a", "Content-Length"]})),
                "spec.headers.request.remove[1]",
                "Sluice sets this header itself",
                Everywhere,
            ),
            (
                request(json!({"set": [{"name": "x-a", "value": "a"}, {"name": "X-MSE-Tag", "value": "a"}]})),
                "spec.headers.request.set[1].name",
                "carries the tag: it cannot be changed",
                Everywhere,
            ),
            (
                request(json!({"add": [{"name": "baggage", "value": "a=b"}]})),
                "spec.headers.request.add[0].name",
                "carries the tag",
                Everywhere,
            ),
            (
                policy(&json!({"rules": [{"name": "a", "headers": {"request": {"remove": ["Baggage"]}}}]})),
                "spec.rules[0].headers.request.remove[0]",
                "carries the tag",
                Everywhere,
            ),
            (
                request(json!({"remove": ["x-a", "x-a"]})),
                "spec.headers.request.remove[1]",
                "already",
                Everywhere,
            ),
            (
                request(json!({"add": [{"name": "x", "value": "a"}, {"name": "x", "value": "b"}]})),
                "spec.headers.request.add[1].name",
                "names are unique",
                Everywhere,
            ),
            (
                request(json!({"add": [{"name": "x", "value": "a\r\nb: c"}]})),
                "spec.headers.request.add[0].value",
                "control characters",
                Everywhere,
            ),
            (strip(json!({"from": [{}]})), "spec.stripTags.from[0]", "empty: ", Everywhere),
        ],
    );
}
