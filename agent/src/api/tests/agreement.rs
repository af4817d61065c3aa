//! Good and bad objects, each through the code and through the CustomResourceDefinition.

use super::{api_server::ApiServer, *};

/// Who can know that an object is bad.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// The API server refuses it too.
    Everywhere,
    /// It gets in, and the object's status tells.
    ToSluice,
}
use Known::{Everywhere, ToSluice};

/// What is bad: the spec, the field, a part of what is said about it.
type Bad = (Value, &'static str, &'static str, Known);

fn agree<K: Kind>(good: Vec<Value>, bad: Vec<Bad>) {
    let server = ApiServer::of::<K>();
    for object in good {
        assert_eq!(errors::<K>(&object), [""; 0], "{object:#}");
        assert_eq!(server.refusals(&object), [""; 0], "{object:#}");
    }
    for (object, field, message, known) in bad {
        let found = read::<K>(&object).err().unwrap_or_default();
        assert!(
            found.iter().any(|error| error.field == field && error.message.contains(message)),
            "not {field}: {message}, but {found:#?}\n{object:#}"
        );
        assert_eq!(found.len(), 1, "only {field} is wrong: {found:#?}\n{object:#}");
        let refusals = server.refusals(&object);
        assert_eq!(refusals.is_empty(), known == ToSluice, "{refusals:?}\n{object:#}");
    }
}

fn long(length: usize) -> String {
    "a".repeat(length)
}

#[test]
fn about_what_is_targeted() {
    let targets = |targets: Value| policy(&json!({"targetRefs": targets}));
    let many = |count: usize| (0..count).map(|i| json!({"name": format!("s{i}")})).collect::<Value>();
    agree::<TrafficPolicy>(
        vec![
            targets(json!([{"group": "", "kind": "Service", "name": "orders"}])),
            targets(json!([{"name": "orders", "sectionName": null}, {"name": "stock"}])),
            targets(
                json!([{"name": "orders", "sectionName": "http"}, {"name": "orders", "sectionName": "grpc"}]),
            ),
            targets(many(64)),
        ],
        vec![
            (targets(json!([])), "spec.targetRefs", "0 items: allowed are 1 to 64", Everywhere),
            (targets(many(65)), "spec.targetRefs", "65 items: allowed are 1 to 64", Everywhere),
            (targets(json!(null)), "spec.targetRefs", "not set", Everywhere),
            (targets(json!({"name": "a"})), "spec.targetRefs", "a list is needed, not an object", Everywhere),
            (targets(json!([{"kind": "Service"}])), "spec.targetRefs[0].name", "not set", Everywhere),
            (targets(json!([{"name": "Orders"}])), "spec.targetRefs[0].name", "a-z", Everywhere),
            (targets(json!([{"name": ""}])), "spec.targetRefs[0].name", "must not be empty", Everywhere),
            (targets(json!([{"name": long(64)}])), "spec.targetRefs[0].name", "1 to 63", Everywhere),
            (
                targets(json!([{"name": "a", "kind": "Deployment"}])),
                "spec.targetRefs[0].kind",
                "allowed is \"Service\"",
                Everywhere,
            ),
            (
                targets(json!([{"name": "a", "group": "apps"}])),
                "spec.targetRefs[0].group",
                "allowed is",
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
    let warmup = |rule: Value| policy(&json!({"loadBalancer": {"warmup": rule}}));
    agree::<TrafficPolicy>(
        vec![
            balancer(json!({})),
            balancer(json!({"type": "RoundRobin", "panicThresholdPercent": 0})),
            warmup(json!({})),
            warmup(json!({"duration": "1s", "aggression": 0.01, "minimumPercent": 0.01, "delay": "0s"})),
            warmup(json!({"duration": "24h", "aggression": 100, "minimumPercent": 100, "delay": "1h"})),
            warmup(json!({"startOn": "FirstRequest", "healthCheckPaths": ["/healthz", "/actuator/*"]})),
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
                balancer(json!({"warmUp": {}})),
                "spec.loadBalancer.warmUp",
                "did you mean \"warmup\"?",
                Everywhere,
            ),
            (balancer(json!([])), "spec.loadBalancer", "an object is needed", Everywhere),
            (warmup(json!({"duration": "0s"})), "spec.loadBalancer.warmup.duration", "1s to 24h", Everywhere),
            (
                warmup(json!({"duration": "-5s"})),
                "spec.loadBalancer.warmup.duration",
                "no duration",
                Everywhere,
            ),
            (
                warmup(json!({"duration": "2 m"})),
                "spec.loadBalancer.warmup.duration",
                "no duration",
                Everywhere,
            ),
            (
                warmup(json!({"duration": "99999h"})),
                "spec.loadBalancer.warmup.duration",
                "1s to 24h",
                Everywhere,
            ),
            (
                warmup(json!({"duration": 120})),
                "spec.loadBalancer.warmup.duration",
                "a string is needed",
                Everywhere,
            ),
            (
                warmup(json!({"minimumPercent": 101})),
                "spec.loadBalancer.warmup.minimumPercent",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"minimumPercent": -1})),
                "spec.loadBalancer.warmup.minimumPercent",
                "-1 is out",
                Everywhere,
            ),
            (
                warmup(json!({"aggression": 0})),
                "spec.loadBalancer.warmup.aggression",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"aggression": 1e300})),
                "spec.loadBalancer.warmup.aggression",
                "0.01 to 100",
                Everywhere,
            ),
            (
                warmup(json!({"startOn": "ready"})),
                "spec.loadBalancer.warmup.startOn",
                "did you mean",
                Everywhere,
            ),
            (
                warmup(json!({"healthCheckPaths": ["health"]})),
                "spec.loadBalancer.warmup.healthCheckPaths[0]",
                "begins with '/'",
                Everywhere,
            ),
            (
                warmup(json!({"healthCheckPaths": ["/a", "/a"]})),
                "spec.loadBalancer.warmup.healthCheckPaths[1]",
                "already",
                Everywhere,
            ),
            (policy(&json!({"drain": {"timeout": "0s"}})), "spec.drain.timeout", "1ms to 1h", Everywhere),
            (policy(&json!({"mode": "Dry"})), "spec.mode", "\"Enforce\", \"Observe\"", Everywhere),
            (policy(&json!({"rateLimit": []})), "spec.rateLimit", "did you mean \"rateLimits\"?", Everywhere),
        ],
    );
}

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
            limit(&json!({"key": {"type": "Caller"}})),
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
            matching(json!({"methods": ["GET", "get", "X-CUSTOM"]})),
            matching(json!({"path": {"value": "/"}})),
            matching(json!({"path": {"type": "Exact", "value": "/a"}})),
            matching(json!({"path": {"type": "RegularExpression", "value": "[0-9]+$"}})),
            header(json!({"value": ""})),
            header(json!({"type": "Prefix", "value": "b"})),
            header(json!({"type": "RegularExpression", "value": "^(a|b)$"})),
            header(json!({"type": "Present"})),
            header(json!({"type": "Absent"})),
            matching(json!({"queryParams": [{"name": "page no", "value": "1"}]})),
            matching(json!({"cookies": [{"name": "beta", "type": "Present"}]})),
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

#[test]
fn about_failures() {
    let breaker = |rule: Value| policy(&json!({"circuitBreaker": rule}));
    let outlier = |rule: Value| policy(&json!({"outlierDetection": rule}));
    let timeouts = |rule: Value| policy(&json!({"timeouts": rule}));
    let retry = |rule: Value| policy(&json!({"retry": rule}));
    agree::<TrafficPolicy>(
        vec![
            breaker(json!({})),
            breaker(json!({"errorPercent": 0, "errorCount": 1})),
            breaker(json!({"errorPercent": 0, "slowRequest": {"threshold": "1ms", "percent": 100}})),
            outlier(json!({})),
            outlier(json!({"consecutiveErrors": 0, "successRate": {}})),
            outlier(json!({"baseEjectionTime": "30s", "maxEjectionTime": "30s", "maxEjectionPercent": 0})),
            timeouts(json!({})),
            timeouts(json!({"request": "1s", "backendRequest": "1s"})),
            timeouts(json!({"request": "0s", "backendRequest": "24h"})),
            timeouts(json!({"request": "1s", "backendRequest": "0s"})),
            retry(json!({})),
            retry(json!({"codes": [], "grpcCodes": [], "conditions": ["Reset"]})),
            retry(json!({"attempts": 10, "codes": [429, 500, 599], "methods": ["POST"]})),
            retry(
                json!({"budget": {"percent": 0, "minRetriesPerSecond": 0}, "backoff": {"base": "1ms", "max": "1ms"}}),
            ),
        ],
        vec![
            (breaker(json!({"interval": "0s"})), "spec.circuitBreaker.interval", "100ms to 1h", Everywhere),
            (
                breaker(json!({"openDuration": "0s"})),
                "spec.circuitBreaker.openDuration",
                "1ms to 1h",
                Everywhere,
            ),
            (
                breaker(json!({"errorPercent": 0})),
                "spec.circuitBreaker.errorPercent",
                "only threshold",
                Everywhere,
            ),
            (
                breaker(json!({"errorPercent": 100.5})),
                "spec.circuitBreaker.errorPercent",
                "0 to 100",
                Everywhere,
            ),
            (breaker(json!({"errorCount": 0})), "spec.circuitBreaker.errorCount", "1 to 1000000", Everywhere),
            (
                breaker(json!({"minimumRequests": 0})),
                "spec.circuitBreaker.minimumRequests",
                "1 to",
                Everywhere,
            ),
            (
                breaker(json!({"halfOpenRequests": 0})),
                "spec.circuitBreaker.halfOpenRequests",
                "1 to 1000",
                Everywhere,
            ),
            (
                breaker(json!({"slowRequest": {"threshold": "1s"}})),
                "spec.circuitBreaker.slowRequest.percent",
                "not set",
                Everywhere,
            ),
            (
                breaker(json!({"slowRequest": {"threshold": "1s", "percent": 0}})),
                "spec.circuitBreaker.slowRequest.percent",
                "0.01 to 100",
                Everywhere,
            ),
            (
                outlier(json!({"consecutiveErrors": 0})),
                "spec.outlierDetection.consecutiveErrors",
                "only rule",
                Everywhere,
            ),
            (
                outlier(json!({"baseEjectionTime": "10m"})),
                "spec.outlierDetection.maxEjectionTime",
                "5m is below baseEjectionTime, 10m",
                Everywhere,
            ),
            (
                outlier(json!({"successRate": {"minimumEndpoints": 1}})),
                "spec.outlierDetection.successRate.minimumEndpoints",
                "2 to 10000",
                Everywhere,
            ),
            (
                outlier(json!({"maxEjectionPercent": -1})),
                "spec.outlierDetection.maxEjectionPercent",
                "0 to 100",
                Everywhere,
            ),
            (
                timeouts(json!({"request": "1s", "backendRequest": "2s"})),
                "spec.timeouts.backendRequest",
                "2s is above request, 1s",
                Everywhere,
            ),
            (timeouts(json!({"request": "25h"})), "spec.timeouts.request", "0s to 24h", Everywhere),
            (
                timeouts(json!({"backend": "1s"})),
                "spec.timeouts.backend",
                "did you mean \"backendRequest\"?",
                Everywhere,
            ),
            (retry(json!({"attempts": 0})), "spec.retry.attempts", "1 to 10", Everywhere),
            (
                retry(json!({"codes": [404]})),
                "spec.retry.codes[0]",
                "allowed are 429 and 500 to 599",
                Everywhere,
            ),
            (
                retry(json!({"codes": [450]})),
                "spec.retry.codes[0]",
                "allowed are 429 and 500 to 599",
                Everywhere,
            ),
            (retry(json!({"codes": [500, 500]})), "spec.retry.codes[1]", "already", Everywhere),
            (
                retry(json!({"codes": [], "grpcCodes": [], "conditions": []})),
                "spec.retry.codes",
                "nothing",
                Everywhere,
            ),
            (
                retry(json!({"grpcCodes": ["unavailable"]})),
                "spec.retry.grpcCodes[0]",
                "\"UNAVAILABLE\"?",
                Everywhere,
            ),
            (
                retry(json!({"conditions": ["Reset", "Reset"]})),
                "spec.retry.conditions[1]",
                "already",
                Everywhere,
            ),
            (retry(json!({"methods": []})), "spec.retry.methods", "0 items: allowed are 1 to 16", Everywhere),
            (retry(json!({"budget": {"percent": 101}})), "spec.retry.budget.percent", "0 to 100", Everywhere),
            (
                retry(json!({"backoff": {"base": "1s"}})),
                "spec.retry.backoff.max",
                "250ms is below base, 1s",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_fallbacks() {
    let fallback = |more: Value| {
        let mut fallback = json!({"name": "main", "on": ["CircuitOpen"]});
        for (field, value) in more.as_object().into_iter().flatten() {
            fallback[field] = value.clone();
        }
        policy(&json!({"fallbacks": [fallback]}))
    };
    let answer = |answer: Value| fallback(json!({"type": "Static", "static": answer}));
    agree::<TrafficPolicy>(
        vec![
            answer(
                json!({"status": 200, "body": "{}", "headers": [{"name": "Content-Type", "value": "a\tb"}]}),
            ),
            answer(json!({"status": 204, "body": ""})),
            answer(json!({"status": 200, "body": long(65536)})),
            fallback(json!({"type": "Stale"})),
            fallback(json!({"type": "Stale", "stale": {"maxAge": "1ms", "maxBytes": 1024}})),
        ],
        vec![
            (fallback(json!({"type": "Static"})), "spec.fallbacks[0].static", "not set", Everywhere),
            (
                fallback(json!({"type": "Stale", "static": {"status": 200}})),
                "spec.fallbacks[0].static",
                "goes with type Static only",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Static", "static": {"status": 200}, "stale": {}})),
                "spec.fallbacks[0].stale",
                "goes with type Stale only",
                Everywhere,
            ),
            (fallback(json!({})), "spec.fallbacks[0].type", "not set", Everywhere),
            (fallback(json!({"type": "Stale", "on": []})), "spec.fallbacks[0].on", "1 to 6", Everywhere),
            (
                fallback(json!({"type": "Stale", "on": ["Down"]})),
                "spec.fallbacks[0].on[0]",
                "allowed are",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "on": ["Timeout", "Timeout"]})),
                "spec.fallbacks[0].on[1]",
                "already",
                Everywhere,
            ),
            (answer(json!({"status": 199})), "spec.fallbacks[0].static.status", "200 to 599", Everywhere),
            (answer(json!({"status": 600})), "spec.fallbacks[0].static.status", "200 to 599", Everywhere),
            (
                answer(json!({"status": 304, "body": "x"})),
                "spec.fallbacks[0].static.body",
                "without a body",
                Everywhere,
            ),
            (
                answer(json!({"status": 200, "body": long(65537)})),
                "spec.fallbacks[0].static.body",
                "64 KiB",
                Everywhere,
            ),
            (
                answer(json!({"status": 200, "body": "ä".repeat(32769)})),
                "spec.fallbacks[0].static.body",
                "65538 bytes",
                Everywhere,
            ),
            (
                answer(json!({"status": 200, "headers": [{"name": "Content-Length", "value": "1"}]})),
                "spec.fallbacks[0].static.headers[0].name",
                "Sluice sets this header itself",
                Everywhere,
            ),
            (
                answer(json!({"status": 200, "headers": [{"name": "x", "value": "a\r\nb: c"}]})),
                "spec.fallbacks[0].static.headers[0].value",
                "control characters",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"maxBytes": 1023}})),
                "spec.fallbacks[0].stale.maxBytes",
                "1024 to 1073741824",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"maxAge": "0s"}})),
                "spec.fallbacks[0].stale.maxAge",
                "1ms",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_lanes() {
    let entry = |rule: Value| lane(&json!({"entry": [rule]}));
    let share = |percent: Value, key: Value| entry(json!({"percentage": {"percent": percent, "key": key}}));
    let selector = |selector: Value| lane(&json!({"workloadSelector": selector}));
    let expression = |expression: Value| selector(json!({"matchExpressions": [expression]}));
    let user = json!({"type": "Header", "name": "x-user"});
    agree::<TrafficLane>(
        vec![
            lane(&json!({})),
            lane(&json!({"fallback": "Fail", "targetRefs": [{"name": "gateway", "sectionName": "http"}]})),
            selector(json!({"matchLabels": {"app.kubernetes.io/version": "2", "track": ""}})),
            expression(json!({"key": "track", "operator": "In", "values": ["gray"]})),
            expression(json!({"key": "track", "operator": "Exists"})),
            entry(json!({"match": {"headers": [{"name": "x-user", "value": "ann"}]}})),
            share(json!(0), user.clone()),
            share(json!(0.1), json!({"type": "Cookie", "name": "uid"})),
            share(json!(100), json!({"type": "ClientAddress"})),
            lane(&json!({"entry": [
                {"match": {"path": {"value": "/a"}}, "percentage": {"percent": 60, "key": user}},
                {"match": {"path": {"value": "/b"}}, "percentage": {"percent": 60, "key": user}},
            ]})),
        ],
        vec![
            (lane(&json!({"tag": null})), "spec.tag", "not set", Everywhere),
            (lane(&json!({"tag": ""})), "spec.tag", "must not be empty", Everywhere),
            (lane(&json!({"tag": "-gray"})), "spec.tag", "letter or digit", Everywhere),
            (lane(&json!({"tag": long(64)})), "spec.tag", "1 to 63", Everywhere),
            (lane(&json!({"fallback": "None"})), "spec.fallback", "\"Baseline\", \"Fail\"", Everywhere),
            (
                lane(&json!({"targetRefs": [{"name": "a"}, {"name": "a"}]})),
                "spec.targetRefs[1]",
                "overlap",
                Everywhere,
            ),
            (entry(json!({})), "spec.entry[0]", "match or percentage is needed", Everywhere),
            (share(json!(101), user.clone()), "spec.entry[0].percentage.percent", "0 to 100", Everywhere),
            (share(json!(-1), user.clone()), "spec.entry[0].percentage.percent", "0 to 100", Everywhere),
            (share(json!(5), json!(null)), "spec.entry[0].percentage.key", "not set", Everywhere),
            (
                share(json!(5), json!({"type": "Header"})),
                "spec.entry[0].percentage.key.name",
                "needs a name",
                Everywhere,
            ),
            (
                share(json!(5), json!({"type": "ClientAddress", "name": "a"})),
                "spec.entry[0].percentage.key.name",
                "goes without",
                Everywhere,
            ),
            (
                share(json!(5), json!({"type": "Cookie", "name": "a;b"})),
                "spec.entry[0].percentage.key.name",
                "is not allowed",
                Everywhere,
            ),
            (
                lane(&json!({"entry": [
                    {"percentage": {"percent": 60, "key": user}},
                    {"match": {}, "percentage": {"percent": 60, "key": user}},
                ]})),
                "spec.entry[1]",
                "spec.entry[0]: say one percentage",
                ToSluice,
            ),
            (selector(json!({})), "spec.workloadSelector", "every pod of the namespace", Everywhere),
            (
                selector(json!({"matchLabels": {"a b": "c"}})),
                "spec.workloadSelector.matchLabels",
                "\"a b\" is no label key",
                ToSluice,
            ),
            (
                selector(json!({"matchLabels": {"a": "b c"}})),
                "spec.workloadSelector.matchLabels.a",
                "63 letters",
                Everywhere,
            ),
            (
                selector(json!({"labels": {}})),
                "spec.workloadSelector.labels",
                "did you mean \"matchLabels\"?",
                Everywhere,
            ),
            (
                expression(json!({"key": "a", "operator": "in", "values": ["b"]})),
                "spec.workloadSelector.matchExpressions[0].operator",
                "did you mean \"In\"?",
                Everywhere,
            ),
            (
                expression(json!({"key": "a", "operator": "In"})),
                "spec.workloadSelector.matchExpressions[0].values",
                "needs values",
                Everywhere,
            ),
            (
                expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
                "spec.workloadSelector.matchExpressions[0].values",
                "goes without values",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn both_halves_of_a_label_are_told_what_is_wrong_with_them() {
    let lane = object(
        "TrafficLane",
        json!({}),
        &json!({"tag": "gray", "workloadSelector": {"matchLabels": {"a b": "b c"}}}),
    );
    let errors = errors::<TrafficLane>(&lane);
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors.iter().any(|error| error.contains("\"a b\" is no label key")), "{errors:#?}");
    assert!(errors.iter().any(|error| error.contains("\"b c\" is not allowed")), "{errors:#?}");
}
