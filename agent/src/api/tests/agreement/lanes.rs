//! Lanes.

use super::*;

#[test]
fn about_lanes() {
    let entry = |rule: Value| lane(&json!({"entry": [rule]}));
    let share = |percent: Value, key: Value| entry(json!({"percentage": {"percent": percent, "key": key}}));
    let outside = |address: &str| lane(&json!({"endpoints": [{"service": "orders", "address": address}]}));
    let selector = |selector: Value| lane(&json!({"workloadSelector": selector}));
    let expression = |expression: Value| selector(json!({"matchExpressions": [expression]}));
    let user = json!({"type": "Header", "name": "x-user"});
    agree::<TrafficLane>(
        vec![
            lane(&json!({})),
            lane(&json!({"trustIncomingTag": false, "targetRefs": [{"name": "gateway"}]})),
            lane(&json!({"trustIncomingTag": true})),
            lane(&json!({"priority": -1000, "fallbackLanes": ["staging", "dev.2"]})),
            lane(&json!({"fallback": "Fail", "serviceFallbacks": [
                {"name": "gateway", "fallback": "Baseline"}, {"name": "stock", "lanes": []},
            ]})),
            lane(&json!({"endpoints": [
                {"service": "orders", "address": "192.168.1.20:8080"},
                {"service": "orders", "sectionName": "http", "address": "[fd00::20]:8080"},
            ]})),
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
            (outside("laptop:8080"), "spec.endpoints[0].address", "an address and a port, as in", Everywhere),
            (
                outside("192.168.1.20"),
                "spec.endpoints[0].address",
                "an address and a port, as in",
                Everywhere,
            ),
            (outside("192.168.1.256:80"), "spec.endpoints[0].address", "an address and a port", ToSluice),
            (outside("192.168.1.20:0"), "spec.endpoints[0].address", "an address and a port", ToSluice),
            (outside("127.0.0.1:8080"), "spec.endpoints[0].address", "loopback", ToSluice),
            (outside("169.254.169.254:80"), "spec.endpoints[0].address", "link-local", ToSluice),
            (
                lane(&json!({"endpoints": [{"service": "orders"}]})),
                "spec.endpoints[0].address",
                "not set",
                Everywhere,
            ),
            (lane(&json!({"tag": null})), "spec.tag", "not set", Everywhere),
            (lane(&json!({"tag": ""})), "spec.tag", "must not be empty", Everywhere),
            (lane(&json!({"tag": "-gray"})), "spec.tag", "letter or digit", Everywhere),
            (lane(&json!({"tag": long(64)})), "spec.tag", "1 to 63", Everywhere),
            (lane(&json!({"fallback": "None"})), "spec.fallback", "\"Baseline\", \"Fail\"", Everywhere),
            (lane(&json!({"priority": 1001})), "spec.priority", "-1000 to 1000", Everywhere),
            (
                lane(&json!({"fallbackLanes": ["gray"]})),
                "spec.fallbackLanes[0]",
                "the lane itself",
                Everywhere,
            ),
            (lane(&json!({"fallbackLanes": ["a", "a"]})), "spec.fallbackLanes[1]", "already", Everywhere),
            (lane(&json!({"fallbackLanes": ["a b"]})), "spec.fallbackLanes[0]", "is no tag", Everywhere),
            (
                lane(&json!({"serviceFallbacks": [{"name": "a"}]})),
                "spec.serviceFallbacks[0]",
                "fallback or lanes is needed",
                Everywhere,
            ),
            (
                lane(&json!({"serviceFallbacks": [{"name": "a", "lanes": ["b", "gray"]}]})),
                "spec.serviceFallbacks[0].lanes[1]",
                "the lane itself",
                Everywhere,
            ),
            (
                lane(&json!({"serviceFallbacks": [{"name": "a", "lanes": []}, {"name": "a", "lanes": []}]})),
                "spec.serviceFallbacks[1].name",
                "names are unique",
                Everywhere,
            ),
            (
                lane(&json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}]})),
                "spec.targetRefs",
                "a lane targets Services",
                Everywhere,
            ),
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
