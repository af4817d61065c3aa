//! What becomes of good objects, value by value.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::{api_server::ApiServer, *};
use crate::govern::policy::{self as to, Part};

fn checked<K: Kind>(object: &Value) -> K::Checked {
    match read::<K>(object) {
        Ok((_, checked)) => checked,
        Err(errors) => panic!("{errors:#?}"),
    }
}

/// The one thing in a lane or policy.
fn one<T: Clone>(list: &[T]) -> T {
    assert_eq!(list.len(), 1);
    list[0].clone()
}

#[test]
fn what_is_not_said_is_as_govern_has_it() {
    let name = Some("shop/main".into());
    let bare: Policy = checked::<TrafficPolicy>(&policy(&json!({})));
    assert_eq!(bare, Policy { name: name.clone(), ..Policy::default() });
    let empty = json!({
        "loadBalancer": {"warmUp": {}}, "drain": {}, "circuitBreaker": {}, "timeouts": {},
        "outlierDetection": {"successRate": {}}, "retry": {"budget": {}, "backoff": {}},
        "concurrency": {"adaptive": {}}, "fallbacks": [{"name": "stale", "conditions": ["Timeout"], "type": "Stale", "stale": {"shared": true}}],
    });
    let wanted = Policy {
        name,
        load_balancer: to::LoadBalancer {
            warmup: Some(to::WarmUp::default()),
            ..to::LoadBalancer::default()
        },
        circuit_breaker: Some(to::CircuitBreaker::default()),
        outlier_detection: Some(to::OutlierDetection {
            success_rate: Some(to::SuccessRate::default()),
            ..to::OutlierDetection::default()
        }),
        retry: Some(to::Retry::default()),
        concurrency: Some(to::Concurrency {
            max_requests: 1000,
            adaptive: Some(to::Adaptive::default()),
            scope: to::Scope::Node,
            mode: to::Mode::Enforce,
        }),
        fallbacks: vec![
            to::Fallback {
                name: "stale".into(),
                on: vec![to::FallbackOn::Timeout],
                action: to::FallbackAction::Stale(to::StaleAnswer::default()),
            }
            .into(),
        ],
        ..Policy::default()
    };
    assert_eq!(checked::<TrafficPolicy>(&policy(&empty)), wanted);
    // The API server fills its defaults in before it stores an object: they must be the same.
    let mut stored = policy(&empty);
    stored["spec"] = ApiServer::of::<TrafficPolicy>().defaulted(&stored)["spec"].clone();
    assert_ne!(stored, policy(&empty));
    assert_eq!(checked::<TrafficPolicy>(&stored), wanted);
}

#[test]
fn what_is_said_arrives() {
    let seconds = Duration::from_secs;
    let policy = checked::<TrafficPolicy>(&policy(&json!({
        "mode": "Observe",
        "loadBalancer": {
            "type": "LeastRequest", "panicThresholdPercent": 30, "directEndpoints": "Rebalance",
            "warmUp": {
                "duration": "1m30s", "aggression": 2, "minimumPercent": 5, "delay": "3s", "startOn": "FirstRequest",
                "healthCheckPaths": ["/healthz", "/actuator/*"], "maxWait": "4m",
            },
        },
        "drain": {"timeout": "20s"},
        "concurrency": {
            "maxRequests": 64, "mode": "Enforce",
            "adaptive": {"minRequests": 4, "updateInterval": "50ms", "minRttInterval": "2m"},
        },
        "circuitBreaker": {
            "interval": "20s", "minimumRequests": 7, "errorPercent": 0, "errorCount": 3, "openDuration": "6s",
            "halfOpenRequests": 2, "scope": "Node", "slowRequest": {"threshold": "800ms", "percent": 12.5},
        },
        "outlierDetection": {
            "consecutiveErrors": 0, "interval": "4s", "baseEjectionTime": "5s", "maxEjectionTime": "50s",
            "maxEjectionPercent": 25, "mode": "Enforce",
            "successRate": {"minimumEndpoints": 3, "minimumRequests": 11, "stdevFactor": 1.5},
        },
        "timeouts": {"request": "0s", "backendRequest": "2s"},
        "retry": {
            "attempts": 3, "codes": [503], "grpcCodes": ["UNAVAILABLE", "DATA_LOSS"], "conditions": ["Timeout"],
            "methods": ["GET", "POST"], "budget": {"percent": 15, "minRetriesPerSecond": 2.5},
            "backoff": {"base": "10ms", "max": "1s"},
        },
    })));
    assert_eq!(
        policy,
        Policy {
            name: Some("shop/main".into()),
            load_balancer: to::LoadBalancer {
                algorithm: to::Algorithm::LeastRequest,
                warmup: Some(to::WarmUp {
                    duration: seconds(90),
                    aggression: 2.0,
                    minimum_percent: 5.0,
                    delay: seconds(3),
                    start_on: to::StartOn::FirstRequest,
                    health_check_paths: vec!["/healthz".into(), "/actuator/*".into()],
                    max_wait: Some(seconds(240)),
                }),
                panic_threshold_percent: 30.0,
                direct_endpoints: to::DirectEndpoints::Rebalance,
            },
            drain: to::Drain { timeout: Some(seconds(20)), mode: to::Mode::Observe },
            rate_limits: Vec::new(),
            concurrency: Some(to::Concurrency {
                max_requests: 64,
                adaptive: Some(to::Adaptive {
                    min_requests: 4,
                    update_interval: Duration::from_millis(50),
                    min_rtt_interval: seconds(120),
                }),
                scope: to::Scope::Node,
                mode: to::Mode::Enforce,
            }),
            circuit_breaker: Some(to::CircuitBreaker {
                interval: seconds(20),
                minimum_requests: 7,
                error_percent: None,
                error_count: Some(3),
                slow_request: Some(to::SlowRequest { threshold: Duration::from_millis(800), percent: 12.5 }),
                open_duration: seconds(6),
                half_open_requests: 2,
                scope: to::BreakerScope::Node,
                mode: to::Mode::Observe,
            }),
            outlier_detection: Some(to::OutlierDetection {
                consecutive_errors: None,
                success_rate: Some(to::SuccessRate {
                    minimum_endpoints: 3,
                    minimum_requests: 11,
                    stdev_factor: 1.5,
                }),
                interval: seconds(4),
                base_ejection: seconds(5),
                max_ejection: seconds(50),
                max_ejection_percent: 25.0,
                mode: to::Mode::Enforce,
            }),
            timeouts: to::Timeouts {
                backend_request: Some(seconds(2)),
                mode: to::Mode::Observe,
                ..to::Timeouts::default()
            },
            retry: Some(to::Retry {
                attempts: 3,
                on: to::RetryOn {
                    statuses: vec![503],
                    grpc_statuses: vec![14, 15],
                    reset: false,
                    timeout: true,
                },
                methods: vec![Method::GET, Method::POST],
                budget_percent: 15.0,
                budget_minimum: 2.5,
                backoff_base: Duration::from_millis(10),
                backoff_max: seconds(1),
            }),
            fallbacks: Vec::new(),
            ..Policy::default()
        }
    );
}

#[test]
fn rules_arrive_with_what_the_policy_says_where_they_say_nothing() {
    let policy = checked::<TrafficPolicy>(&policy(&json!({
        "mode": "Observe",
        "timeouts": {"request": "1s"},
        "concurrency": {"maxRequests": 9},
        "rateLimits": [{"name": "all", "requests": 100}],
        "headers": {"response": {"remove": ["Server-Timing"]}},
        "stripTags": {"from": [{"workload": "ingress"}]},
        "rules": [
            {
                "name": "reports",
                "match": {"path": {"value": "/reports"}, "from": [{"namespace": "shop"}]},
                "timeouts": {"request": "9s"},
                "rateLimits": [{"name": "few", "requests": 1}],
                "circuitBreaker": {"mode": "Enforce"},
                "fallbacks": [
                    {"name": "none", "conditions": ["Timeout"], "type": "Static", "static": {"status": 204}},
                ],
                "headers": {"request": {
                    "set": [{"name": "X-A", "value": "1"}], "add": [{"name": "x-a", "value": "2"}], "remove": ["X-B"],
                }},
            },
            {"name": "rest", "rateLimits": []},
        ],
    })));
    let value = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let [reports, rest] = &*policy.rules else { panic!("two rules") };
    assert_eq!(&*reports.name, "reports");
    assert_eq!(reports.matches.path, Some(to::PathMatch::Prefix("/reports".to_owned())));
    assert_eq!(reports.matches.from.len(), 1);
    let of_reports = &reports.policy;
    assert_eq!(of_reports.timeouts.request, Some(Duration::from_secs(9)));
    assert_eq!(of_reports.concurrency, policy.concurrency);
    let limit = one(&of_reports.rate_limits);
    assert_eq!((&*limit.name, limit.mode), ("reports/few", to::Mode::Observe));
    assert_eq!(of_reports.circuit_breaker.as_ref().map(|breaker| breaker.mode), Some(to::Mode::Enforce));
    assert_eq!(&*one(&of_reports.fallbacks).name, "reports/none");
    assert_eq!(
        of_reports.headers.request,
        to::Edits {
            remove: vec![HeaderName::from_static("x-b")],
            set: vec![value("x-a", "1")],
            add: vec![value("x-a", "2")],
        }
    );
    assert!(of_reports.headers.response.is_empty(), "headers are one part");
    let own =
        [Part::RateLimits, Part::CircuitBreaker, Part::Timeouts, Part::Fallbacks, Part::Headers].into_iter();
    assert_eq!(reports.own, own.collect());

    assert_eq!(rest.matches, to::RequestMatch::default());
    assert!(
        rest.policy.rate_limits.is_empty() && rest.own.has(Part::RateLimits) && rest.policy.rules.is_empty()
    );
    assert_eq!(rest.policy.headers, policy.headers);
    assert_eq!(policy.headers.response.remove, ["server-timing"]);
    assert_eq!(policy.strip_tags.map(|strip| strip.from.len()), Some(1));
    assert_eq!(policy.rate_limits.len(), 1);
}

#[test]
fn rate_limits_arrive() {
    let limit = |spec: Value| {
        let policy = checked::<TrafficPolicy>(&policy(&json!({"mode": "Observe", "rateLimits": [spec]})));
        (*one(&policy.rate_limits)).clone()
    };
    let base = to::RateLimit {
        name: "l".into(),
        requests: 10.0,
        interval: Duration::from_secs(1),
        burst: 10.0,
        behaviour: to::Behaviour::Reject,
        key: to::LimitKey::None,
        scope: to::Scope::Node,
        matches: to::RequestMatch::default(),
        mode: to::Mode::Observe,
    };
    assert_eq!(limit(json!({"name": "l", "requests": 10})), base);
    assert_eq!(
        limit(json!({
            "name": "l", "requests": 10, "interval": "1m", "burst": 2, "mode": "Enforce", "scope": "Caller",
            "type": "WarmUp", "warmUp": {"duration": "20s", "coldFactor": 4}, "key": {"type": "Header", "name": "X-User"},
        })),
        to::RateLimit {
            interval: Duration::from_secs(60),
            burst: 2.0,
            behaviour: to::Behaviour::WarmUp { duration: Duration::from_secs(20), cold_factor: 4.0 },
            key: to::LimitKey::Header(HeaderName::from_static("x-user")),
            scope: to::Scope::Caller,
            mode: to::Mode::Enforce,
            ..base.clone()
        }
    );
    let queue = |timeout| to::Behaviour::Queue { timeout: Duration::from_millis(timeout) };
    let queued = limit(
        json!({"name": "l", "requests": 10, "type": "Queue", "key": {"type": "QueryParam", "name": "q"}}),
    );
    assert_eq!(queued.behaviour, queue(500));
    assert_eq!(queued.key, to::LimitKey::QueryParameter("q".into()));
    let queued = limit(
        json!({"name": "l", "requests": 10, "type": "Queue", "queue": {"timeout": "2s"}, "key": {"type": "Caller"}}),
    );
    assert_eq!(queued.behaviour, queue(2000));
    assert_eq!(queued.key, to::LimitKey::Caller);
    let by_workload = limit(json!({"name": "l", "requests": 10, "key": {"type": "Workload"}}));
    assert_eq!(by_workload.key, to::LimitKey::Workload);
    let matched = limit(json!({"name": "l", "requests": 10, "match": {
        "methods": ["POST"],
        "path": {"value": "/orders"},
        "headers": [{"name": "X-A", "value": "1"}, {"name": "x-b", "type": "Prefix", "value": "2"}],
        "queryParams": [{"name": "c", "type": "Present"}],
        "cookies": [{"name": "d", "type": "Absent"}, {"name": "e", "type": "RegularExpression", "value": "^f"}],
        "from": [{"namespace": "web", "workload": "shop", "podLabels": {"a": "b"}}],
    }}));
    let is = to::ValueTest::Is;
    assert_eq!(
        matched.matches,
        to::RequestMatch {
            methods: vec![Method::POST],
            path: Some(to::PathMatch::Prefix("/orders".to_owned())),
            headers: vec![
                (HeaderName::from_static("x-a"), is(to::ValueMatch::Exact("1".to_owned()))),
                (HeaderName::from_static("x-b"), is(to::ValueMatch::Prefix("2".to_owned()))),
            ],
            query_parameters: vec![("c".to_owned(), to::ValueTest::Present)],
            cookies: vec![
                ("d".to_owned(), to::ValueTest::Absent),
                (
                    "e".to_owned(),
                    is(to::ValueMatch::Regex(to::Pattern(
                        regex::bytes::Regex::new("^f").expect("a pattern")
                    )))
                ),
            ],
            from: vec![to::CallerMatch {
                namespace: Some("web".into()),
                workload: Some("shop".into()),
                labels: vec![("a".into(), "b".into())],
            }],
        }
    );
}

#[test]
fn static_answers_arrive() {
    let policy = checked::<TrafficPolicy>(&policy(&json!({"fallbacks": [{
        "name": "sorry", "type": "Static",
        "conditions": ["LimitExceeded", "CircuitOpen", "NoEndpoint", "ConnectFailure", "Timeout", "ServerError"],
        "static": {"status": 200, "headers": [{"name": "Content-Type", "value": "text/plain"}], "body": "später"},
    }]})));
    let fallback = one(&policy.fallbacks);
    assert_eq!(fallback.on.len(), 6);
    assert_eq!(
        fallback.action,
        to::FallbackAction::Static(to::StaticAnswer {
            status: 200,
            headers: vec![(HeaderName::from_static("content-type"), HeaderValue::from_static("text/plain"))],
            body: "später".as_bytes().to_vec().into(),
        })
    );
}

#[test]
fn lanes_arrive() {
    let bare = checked::<TrafficLane>(&lane(&json!({})));
    assert_eq!((&*bare.name, bare.tag.as_str()), ("shop/main", "gray"));
    assert_eq!((bare.fallback, bare.service_fallbacks.len(), bare.priority), (to::Detour::default(), 0, 0));
    assert!(bare.selector.is_none() && bare.targets.is_empty() && bare.entry.is_empty());

    let lane = checked::<TrafficLane>(&lane(&json!({
        "fallback": "Fail",
        "fallbackLanes": ["staging"],
        "serviceFallbacks": [
            {"name": "gateway", "fallback": "Baseline"}, {"name": "stock", "lanes": []},
            {"name": "web", "lanes": ["dev"], "fallback": "Baseline"},
        ],
        "priority": 7,
        "workloadSelector": {
            "matchLabels": {"app": "orders"},
            "matchExpressions": [{"key": "track", "operator": "NotIn", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}],
        },
        "targetRefs": [{"name": "gateway"}, {"name": "web", "sectionName": "http"}],
        "entry": [{
            "match": {"cookies": [{"name": "beta", "value": "yes"}]},
            "percentage": {"percent": 2.5, "key": {"type": "Cookie", "name": "uid"}},
        }],
    })));
    let detour = |lanes: &[&str], then| to::Detour {
        lanes: lanes.iter().map(|tag| tag.parse().expect("a tag")).collect(),
        then,
    };
    assert_eq!(lane.fallback, detour(&["staging"], to::LaneFallback::Fail));
    assert_eq!(
        lane.service_fallbacks.into_iter().collect::<Vec<_>>(),
        [
            ("gateway".into(), detour(&["staging"], to::LaneFallback::Baseline)),
            ("stock".into(), detour(&[], to::LaneFallback::Fail)),
            ("web".into(), detour(&["dev"], to::LaneFallback::Baseline)),
        ]
    );
    assert_eq!(lane.priority, 7);
    assert_eq!(
        lane.selector.expect("a selector").requirements,
        [
            to::Requirement::In("app".into(), vec!["orders".into()]),
            to::Requirement::NotIn("track".into(), vec!["a".into(), "b".into()]),
            to::Requirement::DoesNotExist("x".into()),
        ]
    );
    assert_eq!(
        lane.targets,
        [
            Target { service: "gateway".into(), port: None },
            Target { service: "web".into(), port: Some("http".into()) },
        ]
    );
    let rule = one(&lane.entry);
    assert_eq!(rule.matches.cookies.len(), 1);
    assert_eq!(
        rule.percentage,
        Some(to::Percentage { percent: 2.5, key: to::PercentageKey::Cookie("uid".into()) })
    );
}

#[test]
fn every_error_is_told_at_once_and_none_that_follows_from_another() {
    let bad = policy(&json!({
        "targetRefs": [],
        "loadBalancer": {"warmUp": {"minimumPercent": 200, "duraton": "1s"}},
        // No limit at all without adaptive, but what was written may be one: nothing is said of it.
        "concurrency": {"maxRequests": "many"},
        "rateLimits": [{"name": "a", "requests": 1, "type": "Que", "queue": {}}, {"name": "b", "requests": 0}],
        "retry": {"codes": [500, 400], "backoff": {"base": "1d"}},
    }));
    assert_eq!(
        errors::<TrafficPolicy>(&bad),
        [
            "spec.concurrency.maxRequests: an integer is needed, not the string \"many\"",
            "spec.loadBalancer.warmUp.duraton: there is no such field: did you mean \"duration\"?",
            "spec.rateLimits[0].type: \"Que\" is not allowed: did you mean \"Queue\"? allowed are \"Reject\", \"Queue\", \
         \"WarmUp\"",
            "spec.retry.codes[1]: 400 is not retried: allowed are 429 and 500 to 599",
            "spec.retry.backoff.base: \"1d\" is no duration such as \"1m30s\" or \"500ms\": allowed are 1ms to 1m",
            "spec.loadBalancer.warmUp.minimumPercent: 200 is out of range: allowed are 0.01 to 100",
            "spec.rateLimits[1].requests: 0 is out of range: allowed are 1 to 1000000000",
            "spec.targetRefs: 0 items: allowed are 1 to 64",
        ]
    );
}

#[test]
fn an_error_names_the_value_that_was_written_and_what_to_write() {
    for (spec, wanted) in [
        (
            json!({"circuitBreaker": {"errorPercent": -1}}),
            &["spec.circuitBreaker.errorPercent: -1 is out of range: allowed are 0 to 100"][..],
        ),
        (
            json!({"outlierDetection": {"consecutiveErrors": -1}}),
            &["spec.outlierDetection.consecutiveErrors: -1 is out of range: allowed are 0 to 1000000"],
        ),
        (
            json!({"concurrency": {"maxRequests": -1, "adaptive": {}}}),
            &["spec.concurrency.maxRequests: -1 is out of range: allowed are 1 to 1000000"],
        ),
        (
            json!({"outlierDetection": {"baseEjectionTime": "1000h"}}),
            &["spec.outlierDetection.baseEjectionTime: \"1000h\" is out of range: allowed are 1ms to 24h"],
        ),
        (
            json!({"retry": {"backoff": {"base": "1h"}}}),
            &["spec.retry.backoff.base: \"1h\" is out of range: allowed are 1ms to 1m"],
        ),
        (
            json!({"circuitBreaker": {"errorPercent": 1e300}}),
            &["spec.circuitBreaker.errorPercent: 1e+300 is out of range: allowed are 0 to 100"],
        ),
        (
            json!({"timeouts": {"request": 5, "backendRequest": 1.5}}),
            &[
                "spec.timeouts.backendRequest: a string is needed, not 1.5: a duration has a unit, as in \"1s500ms\"",
                "spec.timeouts.request: a string is needed, not 5: a duration has a unit, as in \"5s\"",
            ],
        ),
        (
            json!({"timeouts": {"request": "5"}}),
            &[
                "spec.timeouts.request: \"5\" is no duration such as \"1m30s\" or \"500ms\": did you mean \"5s\"? allowed are 0s \
               to 24h",
            ],
        ),
        (
            json!({"timeouts": {"request": true}}),
            &["spec.timeouts.request: a string is needed, not true: a duration is written as in \"1m30s\""],
        ),
        (
            json!({"headers": {"request": {"set": [{"name": "x-a", "value": 1}]}}}),
            &["spec.headers.request.set[0].value: a string is needed, not 1: write it in quotes, \"1\""],
        ),
    ] {
        assert_eq!(errors::<TrafficPolicy>(&policy(&spec)), wanted, "{spec}");
    }
    let whole = policy(&json!({"rateLimits": [{"name": "a", "requests": 1e3}], "retry": {"attempts": 5.0}}));
    assert_eq!(checked::<TrafficPolicy>(&whole).retry.map(|retry| retry.attempts), Some(5));
}

#[test]
fn changes_of_the_tag_headers_of_an_agent_are_found() {
    let names = ["x-lane", "x-other"].map(HeaderName::from_static);
    let edits = json!({
        "request": {"set": [{"name": "x", "value": "1"}, {"name": "X-Lane", "value": "1"}], "remove": ["x-other"]},
        "response": {"remove": ["x-lane"]},
    });
    let spec = json!({"headers": edits, "rules": [{"name": "a"}, {"name": "b", "headers": edits}]});
    let found: Vec<_> = tag_changes(&spec, &names).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "spec.headers.request.set[1].name: \"X-Lane\" carries the tag: it cannot be changed",
            "spec.headers.request.remove[0]: \"x-other\" carries the tag: it cannot be changed",
            "spec.rules[1].headers.request.set[1].name: \"X-Lane\" carries the tag: it cannot be changed",
            "spec.rules[1].headers.request.remove[0]: \"x-other\" carries the tag: it cannot be changed",
        ]
    );
    assert_eq!(tag_changes(&json!({}), &names), []);
}

#[test]
fn an_object_without_a_spec_or_with_a_strange_status_is_read() {
    for bad in [json!({}), json!({"spec": null}), json!({"metadata": {"name": "a"}, "spec": {}})] {
        assert!(!errors::<TrafficPolicy>(&bad).is_empty(), "{bad}");
    }
    assert_eq!(errors::<TrafficPolicy>(&json!({"spec": 7})), ["spec: an object is needed, not 7"]);
    assert_eq!(errors::<TrafficPolicy>(&json!([])), ["spec: not set: it is needed"]);
    let mut strange = policy(&json!({}));
    strange["status"] = json!({"conditions": 7});
    assert_eq!(errors::<TrafficPolicy>(&strange), [""; 0]);
    strange["metadata"]["labels"] = json!({"a": 1});
    assert_eq!(errors::<TrafficPolicy>(&strange), ["metadata.labels.a: a string is needed, not 1"]);
}

#[test]
fn what_is_retried_by_default_goes_by_what_is_a_failure() {
    for (errors, statuses, grpc_statuses) in [
        (json!(null), vec![502, 503, 504], vec![14]),
        (json!({}), vec![502, 503, 504], vec![14]),
        (json!({"codes": [404, 429, 503]}), vec![502, 503, 504, 429], vec![14]),
        (json!({"classes": [], "codes": [500, 503]}), vec![503, 500], vec![14]),
        (json!({"grpcCodes": ["NOT_FOUND", "RESOURCE_EXHAUSTED"]}), vec![502, 503, 504], vec![8]),
    ] {
        let of_policy = checked::<TrafficPolicy>(&policy(&json!({"errors": errors, "retry": {}})));
        let of_rule = checked::<TrafficPolicy>(&policy(
            &json!({"retry": {"attempts": 2}, "rules": [{"name": "a", "errors": errors}]}),
        ));
        let rule = &of_rule.rules[0];
        assert_eq!(rule.own.has(Part::Errors), !errors.is_null());
        let own = rule.policy.retry.as_ref().expect("it is the policy's");
        assert_eq!(own.attempts, 2);
        for retry in [of_policy.retry.as_ref().expect("it is there"), own] {
            assert_eq!(
                (&retry.on.statuses, &retry.on.grpc_statuses),
                (&statuses, &grpc_statuses),
                "{errors}"
            );
        }
        let wanted = json!(statuses);
        let spec =
            json!({"errors": errors, "retry": {}, "rules": [{"name": "a", "errors": errors, "retry": {}}]});
        let values = effective::values(&spec);
        for field in ["retry.codes", "rules[0].retry.codes"] {
            let told = values.iter().find(|effect| effect.field == field).expect("it is told");
            assert_eq!(told.value, wanted, "{field}");
        }
        assert!(values.iter().any(|effect| effect.field == "errors.classes"));
    }
    for (code, number) in
        [("CANCELLED", 1), ("DEADLINE_EXCEEDED", 4), ("UNIMPLEMENTED", 12), ("UNAUTHENTICATED", 16)]
    {
        let policy = checked::<TrafficPolicy>(&policy(&json!({"errors": {"grpcCodes": [code]}})));
        assert_eq!(policy.errors.grpc_statuses, [number], "{code}");
        assert_eq!(crate::observe::reason::grpc_name(number), code);
    }
}
