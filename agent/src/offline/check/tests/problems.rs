//! What cannot be right is one problem each, which names its place and what is allowed there.

use std::fs;

use super::{check, policy};

#[test]
fn what_only_looks_like_an_object_of_ours_is_named() {
    let lane = |head: &str| format!("{head}spec: {{tag: gray}}\n");
    let ours = "apiVersion: sluice.dev/v1alpha1\nkind: TrafficLane\n";
    let namespace = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{sluice.dev/capture: {annotation}}}}}\n"
        )
    };
    let table = [
        (
            lane("apiVersion: sluice.io/v1alpha1\nkind: TrafficLane\nmetadata: {name: gray}\n"),
            "apiVersion: \"sluice.io/v1alpha1\" does not exist: allowed is \"sluice.dev/v1alpha1\"",
        ),
        (
            lane("kind: TrafficLane\nmetadata: {name: gray}\n"),
            "apiVersion: not set: of a TrafficLane it is \"sluice.dev/v1alpha1\"",
        ),
        (
            lane(&format!("{ours}metadata: {{name: My_Lane}}\n")),
            "metadata.name: \"My_Lane\" is no name: allowed are",
        ),
        (lane(&format!("{ours}metadata: {{name: 12}}\n")), "metadata.name: a string is needed, not 12"),
        (lane(&format!("{ours}metadata: {{generateName: a}}\n")), "metadata.name: not set: it is needed"),
        (
            lane(&format!("{ours}metadata: {{name: a, namespace: yes}}\n")),
            "metadata.namespace: a string is needed, not true",
        ),
        (
            lane(&format!("{ours}metadata: {{name: a, namespace: Shop_1}}\n")),
            "metadata.namespace: \"Shop_1\" is no name: allowed are",
        ),
        (
            namespace("'true'"),
            "Namespace shop: metadata.annotations[\"sluice.dev/capture\"]: \"true\" is neither \"enabled\" nor \"disabled\"",
        ),
        (
            namespace("true"),
            "metadata.annotations[\"sluice.dev/capture\"]: a string is needed, not true: allowed are enabled, disabled",
        ),
    ];
    for (text, expected) in table {
        let (good, _, complaints) = check(&text, &["-"]);
        assert!(!good && complaints.contains(expected), "{text}\n{complaints}");
    }
}

#[test]
fn numbers_and_heads_are_named_as_they_are_written() {
    let limit = |number: &str| {
        policy(
            "a",
            &format!("  targetRefs: [{{name: x}}]\n  rateLimits: [{{name: a, requests: {number}}}]\n"),
        )
    };
    for good in ["1e3", "1000.0", "1_000", "0x10", "007"] {
        let (good_one, _, complaints) = check(&limit(good), &["-"]);
        assert!(good_one, "{good}: {complaints}");
    }
    assert_eq!(
        check(&limit("010"), &["-"]).2,
        "-:8: TrafficPolicy shop/a: spec.rateLimits[0].requests: 010 is 8 for kubectl, since a leading 0 means octal: write 8 or 10\n"
    );
    let ours = "apiVersion: sluice.dev/v1alpha1\n";
    for (head, wanted) in [
        (
            "metadata: {name: a}\n",
            "-:1: default/a: kind: not set: allowed are \"TrafficPolicy\", \"TrafficLane\" and \"AccessPolicy\"\n",
        ),
        ("kind: 7\nmetadata: {name: a}\n", "-:2: default/a: kind: a string is needed, not 7\n"),
    ] {
        let (good, _, complaints) = check(&format!("{ours}{head}"), &["-"]);
        assert!(!good);
        assert_eq!(complaints, wanted);
    }
}

#[test]
fn annotations_and_labels_for_sluice_mean_something_or_are_named() {
    let object = |kind: &str, metadata: &str| {
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop, {metadata}}}\n")
    };
    let deployment = |metadata: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: a, namespace: shop}}\nspec: {{template: {{metadata: {{{metadata}}}}}}}\n"
        )
    };
    for (text, wanted) in [
        (
            object("Service", "annotations: {sluice.dev/acess-log: enabled}"),
            "Service shop/a: metadata.annotations[\"sluice.dev/acess-log\"]: there is no sluice.dev/acess-log, so it has no effect: \
             did you mean sluice.dev/access-log?",
        ),
        (
            object("Service", "annotations: {sluice.dev/access-log: '2'}"),
            "\"2\" is neither \"enabled\" nor \"disabled\" nor a ratio from 0 to 1",
        ),
        (
            object("Service", "annotations: {sluice.dev/access-log: 0.5}"),
            "a string is needed, not 0.5: allowed are enabled, disabled, a ratio such as \"0.01\"",
        ),
        (
            object("Service", "annotations: {sluice.dev/capture: enabled}"),
            "as an annotation of a Service it has no effect: it is an annotation of a Namespace, or an annotation of a Pod",
        ),
        (
            object("Pod", "annotations: {sluice.dev/tag: gray}"),
            "as an annotation of a Pod it has no effect: it is a label of a Pod",
        ),
        (object("Pod", "annotations: {sluice.dev/capture: 'off'}"), "\"off\" is neither"),
        (object("Pod", "labels: {sluice.dev/tag: '-x'}"), "metadata.labels[\"sluice.dev/tag\"]: "),
        (
            object("Namespace", "annotations: {sluice.io/capture: enabled}"),
            "there is no sluice.io/capture, so it has no effect: did you mean sluice.dev/capture?",
        ),
        (
            object("ConfigMap", "annotations: {sluice.dev/zzz: ''}"),
            "there is no sluice.dev/zzz, so it has no effect: allowed are sluice.dev/capture, sluice.dev/access-log, sluice.dev/reclaim, sluice.dev/endpoints, sluice.dev/propagation, sluice.dev/tag",
        ),
        (
            deployment("labels: {sluice.dev/tags: gray}"),
            "-:4: Deployment shop/a: spec.template.metadata.labels[\"sluice.dev/tags\"]: there is no sluice.dev/tags",
        ),
        (
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a}\nspec: {jobTemplate: {spec: {template: {metadata: {annotations: \
             {sluice.dev/capture: no}}}}}}\n"
                .to_owned(),
            "spec.jobTemplate.spec.template.metadata.annotations[\"sluice.dev/capture\"]: a string is needed, not false",
        ),
    ] {
        let (good, _, complaints) = check(&text, &["-"]);
        assert!(!good && complaints.contains(wanted), "{text}\n{complaints}");
        assert_eq!(complaints.lines().filter(|line| !line.contains(": note: ")).count(), 1, "{complaints}");
    }
    for good in [
        object("Service", "annotations: {sluice.dev/access-log: '0.5', example.com/capture: x}"),
        object(
            "Pod",
            "annotations: {sluice.dev/capture: disabled}, labels: {sluice.dev/tag: gray, app: sluice}",
        ),
        deployment("labels: {sluice.dev/tag: gray}"),
    ] {
        assert_eq!(
            check(&good, &["-"]),
            (
                true,
                "no TrafficPolicy, no TrafficLane, no AccessPolicy and no route of a Service in these files\n"
                    .to_owned(),
                String::new()
            )
        );
    }
}

#[test]
fn the_tag_headers_of_the_agents_cannot_be_changed() {
    let text = policy("a", "  targetRefs: [{name: x}]\n  headers: {request: {remove: [x-lane]}}\n");
    assert!(check(&text, &["-"]).0);
    let (good, _, complaints) = check(&text, &["-", "--tag-header", "x-lane,x-other"]);
    assert!(!good);
    assert_eq!(
        complaints,
        "-:8: TrafficPolicy shop/a: spec.headers.request.remove[0]: \"x-lane\" carries the tag: it cannot be changed\n"
    );
}

#[test]
fn what_cannot_be_read_or_is_no_object_hides_nothing() {
    for (text, what) in [("hello\n", "the string \"hello\""), ("- a\n- b\n", "a list"), ("7\n", "7")] {
        let (good, _, complaints) = check(text, &["-"]);
        assert!(!good);
        assert_eq!(
            complaints,
            format!("-:1: {what} is no object of Kubernetes: that is a mapping with apiVersion and kind\n")
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("a file");
    write("bad.yaml", policy("a", "  targetRefs: []\n").as_bytes());
    write("latin1.yaml", b"a: \xe4\n");
    write("patch.yaml", b"- {op: remove, path: /spec}\n");
    let path = directory.path().to_str().expect("UTF-8");
    let (good, _, complaints) = check("", &[path, "/nonexistent/x.yaml"]);
    assert!(!good);
    let lines: Vec<_> = complaints.lines().collect();
    assert_eq!(lines.len(), 4, "{complaints}");
    assert!(lines[0].contains("spec.targetRefs: 0 items"), "{complaints}");
    assert!(lines[1].contains("latin1.yaml: it cannot be read: "), "{complaints}");
    assert!(lines[2].starts_with("/nonexistent/x.yaml: it cannot be read: "), "{complaints}");
    // Those of a directory may be patches of kustomize.
    assert!(lines[3].contains("patch.yaml:1: note: a list is no object"), "{complaints}");
}

#[test]
fn every_problem_is_a_line_that_names_its_place() {
    let text = policy(
        "orders",
        "  targetRefs:\n  - name: orders\n  circuitBreaker:\n    openDuration: 0s\n    erorPercent: 5\n",
    ) + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n---\n\
         apiVersion: sluice.dev/v1\nkind: TrafficLane\nmetadata: {name: gray}\n---\n\
         apiVersion: sluice.dev/v1alpha1\nkind: TraficLane\nmetadata: {name: gray}\n---\n\
         apiVersion: sluice.dev/v1alpha1\nkind: TrafficLane\nmetadata: {name: gray}\nspec: {tag: '-'}\n";
    let (good, out, complaints) = check(&text, &["-"]);
    assert!(!good && out.is_empty(), "{out}");
    assert_eq!(
        complaints.lines().collect::<Vec<_>>(),
        [
            "-:10: TrafficPolicy shop/orders: spec.circuitBreaker.openDuration: \"0s\" is out of range: allowed are 1ms to 1h",
            "-:11: TrafficPolicy shop/orders: spec.circuitBreaker.erorPercent: there is no such field: did you mean \
         \"errorPercent\"?",
            "-:17: TrafficLane default/gray: apiVersion: \"sluice.dev/v1\" does not exist: allowed is \"sluice.dev/v1alpha1\"",
            "-:22: TraficLane default/gray: kind: \"TraficLane\" is not allowed: did you mean \"TrafficLane\"? allowed are \
         \"TrafficPolicy\", \"TrafficLane\", \"AccessPolicy\"",
            "-:28: TrafficLane default/gray: spec.tag: \"-\" is not allowed: allowed are letters, digits, '-', '_' and '.', \
         beginning and ending with a letter or digit",
        ]
    );
}

#[test]
fn broken_yaml_and_doubles_are_problems() {
    let (good, _, complaints) = check("a: [1\n", &["-"]);
    assert!(!good && complaints.starts_with("-:") && complaints.contains("no valid YAML"), "{complaints}");
    let twice = policy("a", "  targetRefs: [{name: x}]\n").repeat(2);
    let (good, _, complaints) = check(&twice, &["-"]);
    assert!(!good);
    assert_eq!(
        complaints,
        "-:12: TrafficPolicy shop/a: metadata.name: there is a TrafficPolicy shop/a already, at -:4\n"
    );
}

#[test]
fn words_of_other_systems_name_ours() {
    let target = "  targetRefs: [{name: orders}]\n";
    for (spec, wanted) in [
        (
            "  retry: {perTryTimeout: 1s}\n",
            "spec.retry.perTryTimeout: there is no such field: Istio's perTryTimeout is timeouts.backendRequest",
        ),
        ("  loadBalancer: {algorithm: RoundRobin}\n", "Envoy's algorithm is type"),
        ("  rateLimits: [{name: a, count: 5}]\n", "Sentinel's count is requests"),
        ("  rateLimits: [{name: a, requests: 5, match: {uri: {exact: /a}}}]\n", "Istio's uri is path"),
        (
            "  rateLimits: [{name: a, requests: 5, match: {path: {exact: /a}}}]\n",
            "Istio's exact is type: Exact, with the text in value",
        ),
        (
            "  fallbacks: [{name: a, on: [Timeout], type: Static, static: {status: 200}}]\n",
            "on is conditions",
        ),
        (
            "  rateLimits: [{name: a, requests: 5, match: {methods: [get]}}]\n",
            "methods are in upper case, as in \"GET\"",
        ),
    ] {
        let (good, _, complaints) = check(&policy("orders", &format!("{target}{spec}")), &["-"]);
        assert!(!good && complaints.contains(wanted), "{spec}: {complaints}");
    }
    let namespace = "  targetRefs: [{name: orders, namespace: shop}]\n";
    let (_, _, complaints) = check(&policy("orders", namespace), &["-"]);
    assert!(complaints.contains("a policy is in the namespace of its targets"), "{complaints}");
}

#[test]
fn grpc_statuses_have_names() {
    for (field, item) in [("retry", "14"), ("errors", "14")] {
        let text = policy("a", &format!("  targetRefs: [{{name: x}}]\n  {field}: {{grpcCodes: [{item}]}}\n"));
        let (good, _, complaints) = check(&text, &["-"]);
        let wanted = format!(
            "spec.{field}.grpcCodes[0]: a string is needed, not 14: did you mean \"UNAVAILABLE\"? allowed are \"CANCELLED\""
        );
        assert!(!good && complaints.contains(&wanted), "{complaints}");
    }
}
