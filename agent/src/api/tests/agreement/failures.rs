//! Breakers, ejection, timeouts, retries, fallbacks.

use super::*;

#[test]
fn about_failures() {
    let breaker = |rule: Value| policy(&json!({"circuitBreaker": rule}));
    let outlier = |rule: Value| policy(&json!({"outlierDetection": rule}));
    let timeouts = |rule: Value| policy(&json!({"timeouts": rule}));
    let errors = |rule: Value| policy(&json!({"errors": rule}));
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
            timeouts(json!({"request": "1s", "streamIdle": "5m"})),
            errors(json!({})),
            errors(json!({"classes": [], "codes": [429, 599], "grpcCodes": []})),
            errors(json!({"classes": ["4xx", "5xx"], "grpcCodes": ["RESOURCE_EXHAUSTED", "NOT_FOUND"]})),
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
            (errors(json!({"codes": [399]})), "spec.errors.codes[0]", "400 to 599", Everywhere),
            (errors(json!({"codes": [429, 429]})), "spec.errors.codes[1]", "there already", Everywhere),
            (errors(json!({"classes": ["3xx"]})), "spec.errors.classes[0]", "\"4xx\", \"5xx\"", Everywhere),
            (errors(json!({"grpcCodes": ["OK"]})), "spec.errors.grpcCodes[0]", "not allowed", Everywhere),
            (timeouts(json!({"streamIdle": "25h"})), "spec.timeouts.streamIdle", "0s to 24h", Everywhere),
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
            (retry(json!({"methods": ["post"]})), "spec.retry.methods[0]", "as in \"POST\"", Everywhere),
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
        let mut fallback = json!({"name": "main", "conditions": ["CircuitOpen"]});
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
            fallback(json!({"type": "Stale", "stale": {"shared": true}})),
            fallback(json!({"type": "Stale", "stale": {"varyBy": ["X-User", "token"], "shared": false}})),
            fallback(
                json!({"type": "Stale", "stale": {"maxAge": "1ms", "maxBytes": 1024, "varyBy": ["x-user"]}}),
            ),
        ],
        vec![
            (fallback(json!({"type": "Static"})), "spec.fallbacks[0].static", "not set", Everywhere),
            (
                fallback(json!({"type": "Stale", "static": {"status": 200}, "stale": {"shared": true}})),
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
            (
                fallback(json!({"type": "Stale", "stale": {"shared": true}, "conditions": []})),
                "spec.fallbacks[0].conditions",
                "1 to 6",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"shared": true}, "conditions": ["Down"]})),
                "spec.fallbacks[0].conditions[0]",
                "allowed are",
                Everywhere,
            ),
            (
                fallback(
                    json!({"type": "Stale", "stale": {"shared": true}, "conditions": ["Timeout", "Timeout"]}),
                ),
                "spec.fallbacks[0].conditions[1]",
                "already",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale"})),
                "spec.fallbacks[0].stale",
                "could get another's",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {}})),
                "spec.fallbacks[0].stale.varyBy",
                "the request headers that tell users apart",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"shared": false}})),
                "spec.fallbacks[0].stale.varyBy",
                "shared: true if all users may get the same",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"shared": true, "varyBy": ["x-user"]}})),
                "spec.fallbacks[0].stale.varyBy",
                "nothing that tells users apart",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"varyBy": []}})),
                "spec.fallbacks[0].stale.varyBy",
                "1 to 16",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"varyBy": ["a b"]}})),
                "spec.fallbacks[0].stale.varyBy[0]",
                "no header name",
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
                fallback(json!({"type": "Stale", "stale": {"shared": true, "maxBytes": 1023}})),
                "spec.fallbacks[0].stale.maxBytes",
                "1024 to 1073741824",
                Everywhere,
            ),
            (
                fallback(json!({"type": "Stale", "stale": {"shared": true, "maxAge": "0s"}})),
                "spec.fallbacks[0].stale.maxAge",
                "1ms",
                Everywhere,
            ),
        ],
    );
}
