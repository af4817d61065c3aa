//! Rate and concurrency limits, and the requests they are about.

use super::*;

/// A policy with a rate limit that says this besides.
fn limit(more: &Value) -> Value {
    let mut limit = json!({"name": "main", "requests": 10});
    for (field, value) in more.as_object().into_iter().flatten() {
        limit[field] = value.clone();
    }
    policy(&json!({"rateLimits": [limit]}))
}

#[test]
fn about_limits() {
    let concurrency = |rule: Value| policy(&json!({"concurrency": rule}));
    agree::<TrafficPolicy>(
        vec![
            policy(&json!({"rateLimits": null})),
            limit(&json!({})),
            limit(&json!({"interval": "1ms", "burst": 1, "scope": "Caller", "mode": "Observe"})),
            limit(&json!({"requests": 1_000_000_000, "interval": "24h", "burst": 1_000_000_000})),
            limit(&json!({"type": "Queue"})),
            limit(&json!({"type": "Queue", "queue": {"timeout": "1m"}})),
            limit(&json!({"type": "WarmUp", "warmUp": {}})),
            limit(&json!({"type": "WarmUp", "warmUp": {"duration": "1s", "coldFactor": 1.1}})),
            limit(&json!({"scope": "Cluster"})),
            limit(&json!({"scope": "Cluster", "type": "Reject", "burst": 5, "mode": "Observe"})),
            limit(&json!({"key": {"type": "Caller"}})),
            limit(&json!({"key": {"type": "Workload"}})),
            limit(&json!({"key": {"type": "Header", "name": "X-User"}})),
            limit(&json!({"key": {"type": "QueryParam", "name": "käufer id"}})),
            concurrency(json!({"maxRequests": 1})),
            concurrency(json!({"adaptive": {}})),
            concurrency(json!({"maxRequests": 7, "adaptive": {"minRequests": 7}})),
            concurrency(
                json!({"adaptive": {"minRequests": 1000, "updateInterval": "10ms", "minRttInterval": "1h"}}),
            ),
        ],
        vec![
            (limit(&json!({"requests": 0})), "spec.rateLimits[0].requests", "1 to 1000000000", Everywhere),
            (
                limit(&json!({"requests": 1.5})),
                "spec.rateLimits[0].requests",
                "an integer is needed",
                Everywhere,
            ),
            (
                limit(&json!({"requests": u64::MAX})),
                "spec.rateLimits[0].requests",
                "18446744073709551615 is not allowed: allowed are 1 to 1000000000",
                Everywhere,
            ),
            (limit(&json!({"requests": 1e30})), "spec.rateLimits[0].requests", "1 to 1000000000", Everywhere),
            (limit(&json!({"requests": null})), "spec.rateLimits[0].requests", "not set", Everywhere),
            (
                limit(&json!({"burst": 0})),
                "spec.rateLimits[0].burst",
                "0 is out of range: allowed are 1",
                Everywhere,
            ),
            (limit(&json!({"burst": -3})), "spec.rateLimits[0].burst", "-3 is out of range", Everywhere),
            (limit(&json!({"interval": "0s"})), "spec.rateLimits[0].interval", "1ms to 24h", Everywhere),
            (limit(&json!({"name": ""})), "spec.rateLimits[0].name", "must not be empty", Everywhere),
            (limit(&json!({"name": "Main"})), "spec.rateLimits[0].name", "a-z", Everywhere),
            (
                limit(&json!({"type": "Throttle"})),
                "spec.rateLimits[0].type",
                "\"Reject\", \"Queue\"",
                Everywhere,
            ),
            (
                limit(&json!({"queue": {}})),
                "spec.rateLimits[0].queue",
                "goes with type Queue only",
                Everywhere,
            ),
            (
                limit(&json!({"type": "Queue", "warmUp": {}})),
                "spec.rateLimits[0].warmUp",
                "goes with type WarmUp only",
                Everywhere,
            ),
            (
                limit(&json!({"type": "Queue", "burst": 5})),
                "spec.rateLimits[0].burst",
                "type Queue",
                Everywhere,
            ),
            (
                limit(&json!({"type": "Queue", "queue": {"timeout": "61s"}})),
                "spec.rateLimits[0].queue.timeout",
                "1ms to 1m",
                Everywhere,
            ),
            (
                limit(&json!({"type": "WarmUp", "warmUp": {"coldFactor": 1}})),
                "spec.rateLimits[0].warmUp.coldFactor",
                "1.1 to 100",
                Everywhere,
            ),
            (
                limit(&json!({"scope": "Cluster", "key": {"type": "Caller"}})),
                "spec.rateLimits[0].key",
                "does not go with scope Cluster",
                Everywhere,
            ),
            (
                limit(&json!({"scope": "Cluster", "type": "Queue"})),
                "spec.rateLimits[0].type",
                "goes with type Reject only",
                Everywhere,
            ),
            (
                concurrency(json!({"maxRequests": 1, "scope": "Cluster"})),
                "spec.concurrency.scope",
                "Cluster",
                Everywhere,
            ),
            (
                limit(&json!({"key": {"type": "Header"}})),
                "spec.rateLimits[0].key.name",
                "needs a name",
                Everywhere,
            ),
            (limit(&json!({"key": {"name": "a"}})), "spec.rateLimits[0].key.type", "not set", Everywhere),
            (
                limit(&json!({"key": {"type": "Caller", "name": "x"}})),
                "spec.rateLimits[0].key.name",
                "goes without a name",
                Everywhere,
            ),
            (
                limit(&json!({"key": {"type": "Header", "name": "x user"}})),
                "spec.rateLimits[0].key.name",
                "no header name",
                Everywhere,
            ),
            (
                policy(&json!({"rateLimits": [{"name": "a", "requests": 1}, {"name": "a", "requests": 2}]})),
                "spec.rateLimits[1].name",
                "spec.rateLimits[0] already",
                Everywhere,
            ),
            (concurrency(json!({})), "spec.concurrency.maxRequests", "needed unless adaptive", Everywhere),
            (
                concurrency(json!({"maxRequests": 0})),
                "spec.concurrency.maxRequests",
                "1 to 1000000",
                Everywhere,
            ),
            (
                concurrency(json!({"adaptive": true})),
                "spec.concurrency.adaptive",
                "an object is needed, not true",
                Everywhere,
            ),
            (
                concurrency(json!({"maxRequests": 5, "adaptive": {"minRequests": 6}})),
                "spec.concurrency.adaptive.minRequests",
                "above maxRequests, 5",
                Everywhere,
            ),
            (
                concurrency(json!({"adaptive": {"minRequests": 1001}})),
                "spec.concurrency.adaptive.minRequests",
                "above maxRequests, 1000",
                Everywhere,
            ),
            (
                concurrency(json!({"maxRequests": 2, "adaptive": {}})),
                "spec.concurrency.adaptive.minRequests",
                "3 is above maxRequests, 2",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_matching() {
    let matching = |rule: Value| limit(&json!({"match": rule}));
    let field = "spec.rateLimits[0].match.headers[0].value";
    let from = |rule: Value, field: &str, message| {
        let field = format!("spec.rateLimits[0].match.from[0]{field}").leak();
        (matching(json!({"from": [rule]})), &*field, message, Everywhere)
    };
    let path = |value: &str, message| {
        let rule = matching(json!({"path": {"type": "Exact", "value": value}}));
        (rule, "spec.rateLimits[0].match.path.value", message, Everywhere)
    };
    let header = |rule: Value| {
        let mut header = json!({"name": "x-a"});
        for (field, value) in rule.as_object().into_iter().flatten() {
            header[field] = value.clone();
        }
        matching(json!({"headers": [header]}))
    };
    agree::<TrafficPolicy>(
        vec![
            matching(json!({})),
            matching(json!({"methods": ["GET", "X-CUSTOM"]})),
            matching(json!({"path": {"value": "/"}})),
            matching(json!({"path": {"type": "Exact", "value": "/a"}})),
            matching(json!({"path": {"value": "//a/%6b/../x%3B"}})),
            matching(json!({"path": {"type": "RegularExpression", "value": "^/a/[^/]*\\?#;{2}$"}})),
            matching(json!({"path": {"type": "RegularExpression", "value": "[0-9]+$"}})),
            header(json!({"value": ""})),
            header(json!({"type": "Prefix", "value": "b"})),
            header(json!({"type": "RegularExpression", "value": "^(a|b)$"})),
            header(json!({"type": "Present"})),
            header(json!({"type": "Absent"})),
            matching(json!({"queryParams": [{"name": "page no", "value": "1"}]})),
            matching(json!({"cookies": [{"name": "beta", "type": "Present"}]})),
            matching(
                json!({"from": [{"namespace": "shop", "workload": "web.v2"}, {"podLabels": {"a.b/c": "", "d": "e"}}]}),
            ),
        ],
        vec![
            (
                matching(json!({"methods": ["GE T"]})),
                "spec.rateLimits[0].match.methods[0]",
                "no method",
                Everywhere,
            ),
            (
                matching(json!({"methods": ["GET", "GET"]})),
                "spec.rateLimits[0].match.methods[1]",
                "already",
                Everywhere,
            ),
            (
                matching(json!({"path": {"value": "orders"}})),
                "spec.rateLimits[0].match.path.value",
                "a path begins with '/'",
                Everywhere,
            ),
            (
                matching(json!({"methods": ["get"]})),
                "spec.rateLimits[0].match.methods[0]",
                "methods are in upper case, as in \"GET\"",
                Everywhere,
            ),
            from(json!({}), "", "empty: "),
            from(json!({"podLabels": {}}), "", "empty: "),
            from(json!({"namespace": "Shop"}), ".namespace", "a-z"),
            from(json!({"workload": "-web"}), ".workload", "beginning and ending"),
            from(json!({"podLabels": {"a": "b c"}}), ".podLabels.a", "up to 63"),
            from(json!({"pod": "web-1"}), ".pod", "did you mean \"podLabels\"?"),
            (
                matching(json!({"from": [{"podLabels": {"a b": "c"}}]})),
                "spec.rateLimits[0].match.from[0].podLabels",
                "no label key",
                ToSluice,
            ),
            path("/a?b=c", "conditions on it are queryParams"),
            path("/a#b", "without a fragment"),
            path("/a;v=1", "without parameters"),
            path("/api/*", "type PathPrefix is about all that is below it"),
            path("/orders/{id}", "without placeholders"),
            (
                matching(json!({"path": {"value": "/%ff"}})),
                "spec.rateLimits[0].match.path.value",
                "no UTF-8",
                ToSluice,
            ),
            (
                matching(json!({"path": {"type": "RegularExpression", "value": "("}})),
                "spec.rateLimits[0].match.path.value",
                "\"(\" is no regular expression that can be used: unclosed group",
                Everywhere,
            ),
            (
                matching(json!({"path": {"type": "RegularExpression", "value": "(?:a{100}){200}"}})),
                "spec.rateLimits[0].match.path.value",
                "too large",
                ToSluice,
            ),
            (
                header(json!({"type": "RegularExpression", "value": "[z-a]"})),
                field,
                "no regular expression",
                Everywhere,
            ),
            (header(json!({"type": "RegularExpression"})), field, "needs a value", Everywhere),
            (header(json!({})), field, "needs a value", Everywhere),
            (header(json!({"type": "Present", "value": "x"})), field, "goes without a value", Everywhere),
            (
                header(json!({"value": long(1025)})),
                field,
                "1025 characters: allowed are at most 1024",
                Everywhere,
            ),
            (
                header(json!({"name": "x a", "value": "b"})),
                "spec.rateLimits[0].match.headers[0].name",
                "no header name",
                Everywhere,
            ),
            (
                matching(json!({"cookies": [{"name": "a=b", "value": "b"}]})),
                "spec.rateLimits[0].match.cookies[0].name",
                "\"a=b\" is not allowed",
                Everywhere,
            ),
            (
                matching(json!({"queryParams": [{"name": "a\nb", "value": "b"}]})),
                "spec.rateLimits[0].match.queryParams[0].name",
                "has to match",
                Everywhere,
            ),
            (
                matching(json!({"header": []})),
                "spec.rateLimits[0].match.header",
                "did you mean \"headers\"?",
                Everywhere,
            ),
        ],
    );
}
