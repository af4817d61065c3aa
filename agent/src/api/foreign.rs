//! Words of other systems for what has another name here.

/// A field of another system.
struct Foreign {
    word: &'static str,
    /// A field that the object has here in which it may stand; empty: any.
    among: &'static str,
    of: &'static str,
    /// What it is called here, or what to do.
    ours: &'static str,
}

const fn foreign(of: &'static str, among: &'static str, word: &'static str, ours: &'static str) -> Foreign {
    Foreign { word, among, of, ours }
}

const WORDS: [Foreign; 73] = [
    // What YAML makes of `on`.
    foreign("YAML 1.1", "conditions", "true", "what it reads for on; the field is conditions"),
    foreign("an earlier version", "conditions", "on", "conditions"),
    // https://istio.io/latest/docs/reference/config/networking/
    foreign("Istio", "", "perTryTimeout", "timeouts.backendRequest"),
    foreign("Istio", "", "retryOn", "codes, grpcCodes and conditions in retry"),
    foreign("Istio", "codes", "numRetries", "attempts"),
    foreign("Istio", "", "timeout", "timeouts.request"),
    foreign("Istio", "", "retries", "retry"),
    foreign("Istio", "path", "uri", "path"),
    foreign("Istio", "path", "method", "methods, a list"),
    foreign("Istio", "path", "authority", "a condition on the header host"),
    foreign("Istio", "path", "sourceLabels", "from[].podLabels"),
    foreign("Istio", "path", "sourceNamespace", "from[].namespace"),
    foreign("Istio", "value", "exact", "type: Exact, with the text in value"),
    foreign("Istio", "value", "prefix", "type: PathPrefix or Prefix, with the text in value"),
    foreign("Istio", "value", "regex", "type: RegularExpression, with the text in value"),
    foreign("Istio", "warmUp", "simple", "type"),
    foreign("Istio", "warmUp", "warmupDurationSecs", "warmUp.duration"),
    foreign("Istio", "warmUp", "consistentHash", "sessionAffinity: ClientIP of the Service"),
    foreign("Istio", "", "connectionPool", "concurrency.maxRequests"),
    foreign("Istio", "", "http1MaxPendingRequests", "a rate limit of type Queue"),
    foreign("Istio", "maxRequests", "http2MaxRequests", "maxRequests"),
    foreign("Istio", "maxRequests", "maxConnections", "maxRequests"),
    foreign("Istio", "consecutiveErrors", "consecutive5xxErrors", "consecutiveErrors"),
    foreign("Istio", "consecutiveErrors", "consecutiveGatewayErrors", "consecutiveErrors"),
    foreign("Istio", "targetRefs", "host", "targetRefs"),
    foreign("Istio", "targetRefs", "hosts", "targetRefs"),
    foreign("Istio", "targetRefs", "selector", "targetRefs, or workloadSelector in a TrafficLane"),
    foreign("Istio", "targetRefs", "subsets", "a TrafficLane for each tag"),
    foreign("Istio", "targetRefs", "trafficPolicy", "the spec of a TrafficPolicy itself"),
    foreign("Istio", "percentage", "weight", "percentage.percent"),
    // https://www.envoyproxy.io/docs/envoy/latest/api-v3/
    foreign("Envoy", "", "per_try_timeout", "timeouts.backendRequest"),
    foreign("Envoy", "", "retry_on", "codes, grpcCodes and conditions in retry"),
    foreign("Envoy", "codes", "num_retries", "attempts"),
    foreign("Envoy", "codes", "retriableStatusCodes", "codes"),
    foreign("Envoy", "warmUp", "algorithm", "type"),
    foreign("Envoy", "warmUp", "lb_policy", "type"),
    foreign("Envoy", "warmUp", "slowStart", "warmUp"),
    foreign("Envoy", "duration", "slowStartWindow", "duration"),
    foreign("Envoy", "duration", "minWeightPercent", "minimumPercent"),
    foreign("Envoy", "", "streamIdleTimeout", "timeouts.streamIdle"),
    foreign("Envoy", "", "connectTimeout", "timeouts.connect"),
    foreign("Envoy", "burst", "maxTokens", "burst"),
    foreign("Envoy", "burst", "tokensPerFill", "requests"),
    foreign("Envoy", "burst", "fillInterval", "interval"),
    foreign("Envoy", "maxRequests", "maxPendingRequests", "maxRequests, with a rate limit of type Queue"),
    foreign("Envoy", "consecutiveErrors", "consecutive5xx", "consecutiveErrors"),
    // https://sentinelguard.io/en-us/docs/flow-control.html
    foreign("Sentinel", "burst", "count", "requests"),
    foreign("Sentinel", "burst", "qps", "requests, with interval: 1s"),
    foreign("Sentinel", "burst", "grade", "requests here, or concurrency.maxRequests for threads"),
    foreign("Sentinel", "burst", "controlBehavior", "type"),
    foreign("Sentinel", "burst", "maxQueueingTimeMs", "queue.timeout"),
    foreign("Sentinel", "burst", "warmUpPeriodSec", "warmUp.duration"),
    foreign("Sentinel", "burst", "limitApp", "match.from"),
    foreign("Sentinel", "openDuration", "timeWindow", "openDuration"),
    foreign("Sentinel", "openDuration", "minRequestAmount", "minimumRequests"),
    foreign("Sentinel", "openDuration", "slowRatioThreshold", "slowRequest.percent"),
    foreign("Sentinel", "openDuration", "statIntervalMs", "interval"),
    // https://resilience4j.readme.io/docs/circuitbreaker, and the pages beside it
    foreign("resilience4j", "openDuration", "failureRateThreshold", "errorPercent"),
    foreign("resilience4j", "openDuration", "slowCallRateThreshold", "slowRequest.percent"),
    foreign("resilience4j", "openDuration", "slowCallDurationThreshold", "slowRequest.threshold"),
    foreign("resilience4j", "openDuration", "slidingWindowSize", "interval, a time"),
    foreign("resilience4j", "openDuration", "minimumNumberOfCalls", "minimumRequests"),
    foreign("resilience4j", "openDuration", "waitDurationInOpenState", "openDuration"),
    foreign("resilience4j", "openDuration", "permittedNumberOfCallsInHalfOpenState", "halfOpenRequests"),
    foreign("resilience4j", "attempts", "maxAttempts", "attempts, which does not count the first one"),
    foreign("resilience4j", "attempts", "waitDuration", "backoff.base"),
    foreign("resilience4j", "burst", "limitForPeriod", "requests"),
    foreign("resilience4j", "burst", "limitRefreshPeriod", "interval"),
    foreign("resilience4j", "burst", "timeoutDuration", "queue.timeout, with type: Queue"),
    foreign("resilience4j", "targetRefs", "bulkhead", "concurrency"),
    foreign("resilience4j", "maxRequests", "maxConcurrentCalls", "maxRequests"),
    foreign("resilience4j", "targetRefs", "timeLimiter", "timeouts.request"),
    // https://gateway-api.sigs.k8s.io/geps/gep-713/
    foreign(
        "Gateway API",
        "sectionName",
        "namespace",
        "left out: a policy is in the namespace of its targets",
    ),
];

/// `Istio's uri is path`, if a field of an object that has the `known` ones is another system's.
pub(super) fn meant<'a>(name: &str, mut known: impl Iterator<Item = &'a str>) -> Option<String> {
    // (No two of them are about the same word in the same place.)
    let same = |one: &&Foreign| one.word.eq_ignore_ascii_case(name);
    let known: Vec<_> = WORDS.iter().any(|one| same(&one)).then(|| known.by_ref().collect())?;
    let found = WORDS.iter().filter(same).find(|one| one.among.is_empty() || known.contains(&one.among))?;
    Some(format!("{}'s {} is {}", found.of, found.word, found.ours))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::api::{TrafficLane, TrafficPolicy, crds, definition};

    #[test]
    fn it_says_what_is_meant_where_it_may_stand() {
        for (word, known, wanted) in [
            ("uri", &["path", "methods"][..], Some("Istio's uri is path")),
            ("URI", &["path"], Some("Istio's uri is path")),
            ("count", &["burst"], Some("Sentinel's count is requests")),
            ("count", &["maxRequests"], None),
            (
                "maxAttempts",
                &["attempts"],
                Some("resilience4j's maxAttempts is attempts, which does not count the first one"),
            ),
            (
                "failureRateThreshold",
                &["openDuration"],
                Some("resilience4j's failureRateThreshold is errorPercent"),
            ),
            ("perTryTimeout", &["attempts"], Some("Istio's perTryTimeout is timeouts.backendRequest")),
            ("request", &["burst"], None),
        ] {
            assert_eq!(meant(word, known.iter().copied()).as_deref(), wanted, "{word}");
        }
    }

    /// All objects in a schema, as the names of their fields.
    fn objects(schema: &Value, all: &mut Vec<Vec<String>>) {
        if let Some(fields) = schema["properties"].as_object() {
            all.push(fields.keys().cloned().collect());
            fields.values().for_each(|schema| objects(schema, all));
        }
        for further in [&schema["items"], &schema["additionalProperties"]] {
            if further.is_object() {
                objects(further, all);
            }
        }
    }

    #[test]
    fn no_word_of_another_system_is_one_of_ours_where_it_may_stand() {
        let mut all = Vec::new();
        objects(&crds::schema_of(&definition::<TrafficPolicy>(), "spec"), &mut all);
        objects(&crds::schema_of(&definition::<TrafficLane>(), "spec"), &mut all);
        for one in &WORDS {
            let here =
                |fields: &&Vec<String>| one.among.is_empty() || fields.iter().any(|field| field == one.among);
            let mut places = all.iter().filter(here).peekable();
            assert!(places.peek().is_some(), "{} may stand nowhere", one.word);
            if !one.among.is_empty() {
                assert!(
                    places.all(|fields| !fields.iter().any(|field| field == one.word)),
                    "{} is a field of ours",
                    one.word
                );
            }
        }
    }
}
