use std::{fs, path::Path};

use clap::Parser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::{
    self, TrafficPolicy,
    effective::{self, Effect},
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Whether all is well, standard output, standard error.
fn check(input: &str, arguments: &[&str]) -> (bool, String, String) {
    let line = Line::try_parse_from(["check"].iter().chain(arguments)).expect("a command line");
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let good = run(&line.args, &mut input.as_bytes(), &mut out, &mut complaints).expect("readable files");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (good, text(out), text(complaints))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: {name}\n  namespace: shop\n\
         spec:\n{spec}---\n"
    )
}

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

#[test]
fn services_in_the_files_are_looked_up() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n\
                   spec: {ports: [{name: http, port: 80}]}\n---\n";
    let text = service.to_owned()
        + &policy(
            "a",
            "  targetRefs:\n  - {name: orders, sectionName: http}\n  - {name: orders, sectionName: web}\n  - name: oders\n",
        );
    let (good, _, complaints) = check(&text, &["-"]);
    assert!(good, "what is not in the files may be in the cluster: {complaints}");
    assert_eq!(
        complaints.lines().collect::<Vec<_>>(),
        [
            "-:14: TrafficPolicy shop/a: spec.targetRefs[1]: note: Service orders has no port web in these files",
            "-:15: TrafficPolicy shop/a: spec.targetRefs[2]: note: there is no Service oders in these files: did you mean orders?",
        ]
    );
}

#[test]
fn a_target_that_is_not_in_the_files_is_told_and_fails_where_it_has_to_be() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n\
                   spec: {ports: [{name: http, port: 80}]}\n---\n";
    let of = |name: &str| policy("a", &format!("  targetRefs: [{{name: {name}}}]\n"));
    let lane = "apiVersion: sluice.dev/v1alpha1\nkind: TrafficLane\nmetadata: {name: gray, namespace: shop}\n\
                spec: {tag: gray, targetRefs: [{name: odrers}]}\n";
    // The title, and what is said where the files need not hold everything, and where they do.
    for (text, title, note, strict_note) in [
        (service.to_owned() + &of("orders"), "Service shop/orders", "", ""),
        (
            service.to_owned() + &of("odrers"),
            "Service shop/odrers (not in these files)",
            "there is no Service odrers in these files: did you mean orders?",
            "there is no Service odrers in these files: did you mean orders?",
        ),
        (
            service.to_owned() + &of("pricing"),
            "Service shop/pricing (not in these files)",
            "there is no Service pricing in these files",
            "there is no Service pricing in these files",
        ),
        (
            of("orders"),
            "Service shop/orders (not in these files)",
            "",
            "there is no Service orders in these files",
        ),
        (lane.to_owned(), "TrafficLane shop/gray", "", "there is no Service odrers in these files"),
    ] {
        let (good, out, notes) = check(&text, &["-"]);
        assert!(good, "it may be in the cluster: {notes}");
        assert!(out.starts_with(title), "{title}: {out}");
        assert!(notes.trim_end().ends_with(note) && notes.is_empty() == note.is_empty(), "{note}: {notes}");
        let (good, out, notes) = check(&text, &["-", "--strict"]);
        assert_eq!(good, strict_note.is_empty(), "{notes}");
        assert!(out.starts_with(title), "{title}: {out}");
        assert!(notes.trim_end().ends_with(strict_note), "{strict_note}: {notes}");
    }
    let (_, out, _) = check(&(service.to_owned() + &of("odrers")), &["-", "-o", "json"]);
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["services"][0]["inFiles"], false, "{out}");
}

#[test]
fn a_namespace_in_the_files_that_is_not_enrolled_is_worth_a_word() {
    let targeted = policy("a", "  targetRefs:\n  - name: orders\n");
    let namespace = |annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n---\n"
        )
    };
    for annotations in ["", "sluice.dev/capture: disabled"] {
        for text in [namespace(annotations) + &targeted, targeted.clone() + &namespace(annotations)] {
            let (good, _, complaints) = check(&text, &["-"]);
            assert!(good, "it may be enrolled in the cluster: {complaints}");
            assert!(
                complaints.contains("TrafficPolicy shop/a: note: Namespace shop is not enrolled in these files: unless it is in the \
                                     cluster (sluice.dev/capture: enabled), nothing of this is active"),
                "{annotations}: {complaints}"
            );
        }
    }
    let (_, _, complaints) = check(&(namespace("sluice.dev/capture: enabled") + &targeted), &["-"]);
    assert!(!complaints.contains("enrolled"), "{complaints}");
    assert!(!check(&targeted, &["-"]).2.contains("enrolled"), "nothing is known of the namespace");
}

#[test]
fn directories_lists_and_namespaces() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
            .and_then(|()| fs::write(path, text))
            .expect("a file");
    };
    write(
        "below/lane.yml",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: sluice.dev/v1alpha1\n  kind: TrafficLane\n  metadata: {name: gray}\n  spec: {tag: gray, entry: [{match: {}}]}\n",
    );
    write(".hidden.yaml", "a: [");
    write("notes.txt", "a: [");
    let path = directory.path().to_str().expect("UTF-8");
    let (good, out, complaints) = check("", &[path, "--namespace", "shop"]);
    assert!(good, "{complaints}");
    assert_eq!(
        out,
        "TrafficLane shop/gray: tag gray, fallback Baseline, entry rules: 1 for calls to all Services\n"
    );

    let line = Line::try_parse_from(["check", "/nonexistent/x.yaml"]).expect("a command line");
    let error =
        run(&line.args, &mut io::empty(), &mut io::sink(), &mut io::sink()).expect_err("no such file");
    assert!(error.to_string().starts_with("cannot read /nonexistent/x.yaml: "), "{error}");
    assert!(Line::try_parse_from(["check"]).is_err());
    for bad in ["orders", "a/b/c", "/b", "a/", "a/b:"] {
        assert!(Line::try_parse_from(["check", "-", "--service", bad]).is_err(), "{bad}");
    }
}

/// What the documentation and the examples show, word for word.
#[test]
fn what_is_shown_to_users_makes_sense() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut shown = 0;
    for page in ["README.md", "deploy/README.md", "deploy/RECIPES.md", "deploy/SPRING.md"] {
        let text = fs::read_to_string(root.join(page)).expect("a page");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        for block in blocks {
            shown += block.matches(api::API_VERSION).count();
            let (_, _, complaints) = check(block, &["-", "--namespace", "shop"]);
            let problems: Vec<_> = complaints.lines().filter(|line| !line.contains(": note: ")).collect();
            assert_eq!(problems, [""; 0], "{page}:\n{block}");
        }
    }
    assert!(shown > 0, "no page shows a policy");
    let examples = root.join("deploy/examples");
    let (good, _, complaints) = check("", &[examples.to_str().expect("UTF-8")]);
    assert!(good, "{complaints}");
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

#[test]
fn rules_that_can_never_act_are_noted() {
    let notes = |spec: &str| {
        let (good, _, notes) = check(&policy("orders", spec), &["-"]);
        assert!(good, "{spec}: {notes}");
        notes
    };
    let target = "  targetRefs: [{name: orders}]\n";
    for (spec, wanted) in [
        ("  retry: {conditions: [Timeout]}\n", "spec.retry.conditions: note: Timeout never happens"),
        ("  retry: {grpcCodes: [UNAVAILABLE]}\n", "spec.retry.grpcCodes: note: no gRPC call is retried"),
        (
            "  retry: {budget: {percent: 0, minRetriesPerSecond: 0}}\n",
            "spec.retry.budget: note: both are 0: nothing is retried",
        ),
        (
            "  fallbacks: [{name: a, conditions: [ServerError, CircuitOpen], type: Stale, stale: {shared: true}}]\n",
            "spec.fallbacks[0].conditions[1]: note: CircuitOpen never happens: circuitBreaker is not set",
        ),
        (
            "  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
            "spec.fallbacks[0].conditions[0]: note: Timeout never happens: timeouts sets neither request nor backendRequest",
        ),
        (
            "  fallbacks: [{name: a, conditions: [LimitExceeded], type: Static, static: {status: 200}}]\n",
            "spec.fallbacks[0].conditions[0]: note: LimitExceeded never happens",
        ),
        (
            "  fallbacks: [{name: a, conditions: [ServerError], type: Static, static: {status: 200}}, \
             {name: b, conditions: [ServerError], type: Stale, stale: {shared: true}}]\n",
            "spec.fallbacks[1]: note: b is never used: a before it always has a response",
        ),
        (
            "  timeouts: {request: 1s}\n  circuitBreaker: {slowRequest: {threshold: 2s, percent: 50}}\n",
            "spec.circuitBreaker.slowRequest.threshold: note: 2s is no less than the timeout, 1s",
        ),
        (
            "  timeouts: {request: 1s}\n  rateLimits: [{name: a, requests: 1, type: Queue, queue: {timeout: 2s}}]\n",
            "spec.rateLimits[0].queue.timeout: note: 2s is no less than timeouts.request, 1s",
        ),
        (
            "  rateLimits: [{name: a, requests: 1, type: Queue}]\n",
            "spec.rateLimits[0]: note: type Queue without queue: a request waits for its turn for up to 500ms",
        ),
        ("  circuitBreaker: {errorPercent: 0.5}\n", "note: 0.5 is less than one percent: 50 is 50 %"),
        ("  circuitBreaker: {errorCount: 5}\n", "note: 5 errors open it only once there are 20 requests"),
        (
            "  loadBalancer: {warmUp: {delay: 5s}}\n",
            "note: in a rollout the old pods carry what new ones do not take yet: minReadySeconds: 125",
        ),
        ("  drain: {}\n", "spec.drain: note: without a timeout it changes nothing"),
        (
            "  rules: [{name: a}, {name: b, timeouts: {request: 1s}}]\n",
            "spec.rules[1]: note: rule b is never used: rule a before it matches all of its requests",
        ),
        (
            "  rules: [{name: a, retry: {conditions: [Timeout]}}]\n",
            "spec.rules[0].retry.conditions: note: Timeout never happens",
        ),
    ] {
        let said = notes(&format!("{target}{spec}"));
        assert!(said.contains(wanted), "{spec}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for spec in [
        "  retry: {conditions: [Timeout]}\n  timeouts: {backendRequest: 1s}\n",
        "  timeouts: {request: 1s}\n  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
        "  timeouts: {backendRequest: 1s}\n  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
        "  concurrency: {maxRequests: 1}\n  fallbacks: [{name: a, conditions: [LimitExceeded], type: Static, static: {status: 200}}]\n",
        "  circuitBreaker: {errorPercent: 50}\n  fallbacks: [{name: a, conditions: [CircuitOpen], type: Static, static: {status: 200}}]\n",
        "  rules: [{name: a, circuitBreaker: {}}]\n  fallbacks: [{name: a, conditions: [CircuitOpen], type: Static, static: {status: 200}}]\n",
        "  fallbacks: [{name: a, conditions: [ServerError], type: Stale, stale: {shared: true}}, \
         {name: b, conditions: [ServerError], type: Static, static: {status: 200}}]\n",
    ] {
        assert_eq!(notes(&format!("{target}{spec}")), "", "{spec}");
    }
    // What is inherited is there.
    let own = format!("{target}  retry: {{conditions: [Timeout]}}\n");
    let defaults = "  targetRefs: [{kind: Namespace, name: shop}]\n  timeouts: {backendRequest: 1s}\n";
    let both = policy("orders", &own) + &policy("defaults", defaults);
    assert_eq!(check(&both, &["-"]).2, "");
    let alone = policy("orders", &format!("{own}  inherit: None\n")) + &policy("defaults", defaults);
    assert!(check(&alone, &["-"]).2.contains("Timeout never happens"));
    // A Deployment that waits keeps the old pods.
    let warm = policy("orders", &format!("{target}  loadBalancer: {{warmUp: {{}}}}\n"));
    let deployment = |seconds: u32| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: orders, namespace: shop}}\nspec: {{minReadySeconds: {seconds}}}\n"
        )
    };
    assert!(check(&(warm.clone() + &deployment(30)), &["-"]).2.contains("minReadySeconds: 120"));
    assert_eq!(check(&(warm + &deployment(120)), &["-"]).2, "");
}

#[test]
fn lanes_are_noted_too() {
    let lane = |spec: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: TrafficLane\nmetadata: {{name: gray, namespace: shop}}\nspec: {{tag: gray, {spec}}}\n---\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\n";
    let beta = "match: {headers: [{name: x-beta, value: 'yes'}]}";
    let key = "key: {type: Header, name: x-user-id}";
    for (spec, wanted) in [
        (
            format!("entry: [{{{beta}}}]"),
            "spec.entry: note: without targetRefs requests enter the lane at every Service of the namespace",
        ),
        (
            format!("targetRefs: [{{name: orders}}], entry: [{{percentage: {{percent: 0, {key}}}}}]"),
            "spec.entry[0].percentage.percent: note: 0: no request enters",
        ),
        (
            format!("targetRefs: [{{name: orders}}], entry: [{{percentage: {{percent: 0.2, {key}}}}}]"),
            "spec.entry[0].percentage.percent: note: 0.2 is less than one percent: 20 is 20 %",
        ),
        (
            format!(
                "targetRefs: [{{name: orders}}], entry: [{{{beta}}}, {{{beta}, percentage: {{percent: 5, {key}}}}}]"
            ),
            "spec.entry[1]: note: it adds nothing",
        ),
        ("targetRefs: [{name: order}]".to_owned(), "there is no Service order in these files"),
        (
            "serviceFallbacks: [{name: stock, fallback: Fail}]".to_owned(),
            "spec.serviceFallbacks: note: there is no Service stock in these files",
        ),
        (
            "fallbackLanes: [staging]".to_owned(),
            "there is no TrafficLane with the tag staging in these files",
        ),
    ] {
        let (good, _, notes) = check(&format!("{service}{}", lane(&spec)), &["-"]);
        assert!(good && notes.contains(wanted), "{spec}: {notes}");
        assert_eq!(notes.lines().count(), 1, "{notes}");
    }
    let (_, _, notes) = check(&format!("{service}{}", lane("targetRefs: [{name: orders}]")), &["-"]);
    assert_eq!(notes, "");
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
fn slips_are_noted() {
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{port}]}}\n---\n"
        )
    };
    let notes = |text: String| {
        let (good, out, complaints) = check(&text, &["-"]);
        assert!(good, "{complaints}");
        format!("{out}{complaints}")
    };
    for (spec, field) in [
        ("  circuitBreaker:\n", "spec.circuitBreaker"),
        ("  outlierDetection:\n", "spec.outlierDetection"),
        ("  concurrency: {maxRequests: 5, adaptive: }\n", "spec.concurrency.adaptive"),
    ] {
        let said = notes(policy("a", &format!("  targetRefs: [{{name: x}}]\n{spec}")));
        let wanted = format!("{field}: note: null: it is not set, and off; ");
        assert!(said.contains(&wanted), "{said}");
    }
    assert!(!notes(policy("a", "  targetRefs: [{name: x}]\n  circuitBreaker: {}\n")).contains("null"));

    // An object whose namespace was forgotten.
    let forgotten = policy("a", "  targetRefs: [{name: x}]\n").replace("  namespace: shop\n", "");
    let said = notes(format!("{}{forgotten}", service("x", "{name: http, port: 80}")));
    assert!(
        said.contains("TrafficPolicy default/a: metadata.namespace: note: not set, so it is in default")
            && said.contains("are in shop"),
        "{said}"
    );
    assert!(!notes(forgotten.clone()).contains("metadata.namespace"), "there are no others");
    let there =
        check(&format!("{}{forgotten}", service("x", "{name: http, port: 80}")), &["-n", "shop", "-"]);
    assert!(!there.1.contains("metadata.namespace"), "it is told where: {}", there.1);

    // Rules about requests where there are none.
    let timeouts = policy("a", "  targetRefs: [{name: db}]\n  timeouts: {request: 1s}\n");
    for (port, noted) in [
        ("{name: redis, port: 6379}", true),
        ("{port: 6379, appProtocol: redis}", true),
        ("{name: redis, port: 6379}, {name: http, port: 80}", false),
        ("{name: db, port: 6379}", false),
    ] {
        let said = notes(format!("{}{timeouts}", service("db", port)));
        let note =
            "all ports of Service db are declared not to speak HTTP, so timeouts.request has no effect on it";
        assert_eq!(said.contains(note), noted, "{port}: {said}");
    }

    // A workload that nobody has.
    let from = |workload: &str| {
        let limit = format!(
            "  targetRefs: [{{name: x}}]\n  rateLimits: [{{name: a, requests: 1, match: {{from: [{{workload: {workload}}}]}}}}]\n"
        );
        let deployment =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: checkout, namespace: shop}\n---\n";
        notes(format!("{deployment}{}", policy("a", &limit)))
    };
    assert!(!from("checkout").contains("there is no workload"));
    let said = from("chekout");
    assert!(
        said.contains("spec.rateLimits[0].match.from[0].workload: note: there is no workload chekout in these files: did you mean checkout?"),
        "{said}"
    );
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

fn route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: orders, port: 80}}]\n  rules:\n{spec}---\n"
    )
}

#[test]
fn routes_are_shown_in_the_order_in_which_they_apply() {
    let services = ["orders", "orders-canary"].map(|name| {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}}}\n---\n")
    });
    let rules = "  - name: rest\n    backendRefs: [{name: orders, port: 80, weight: 95}, {name: orders-canary, port: 80, weight: 5}]\n\
                 \x20 - name: slow\n    matches: [{path: {value: /reports}, method: GET}]\n    timeouts: {request: 9s}\n    \
                 filters: [{type: RequestMirror, requestMirror: {percent: 20, backendRef: {name: orders-canary, port: 80}}}]\n    \
                 backendRefs: [{name: orders, port: 80}]\n";
    let target = |rule: &str| {
        format!(
            "  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders{rule}}}]\n  concurrency: {{maxRequests: 5}}\n"
        )
    };
    let text = services.concat()
        + &route("orders", rules)
        + &policy("whole", &target(""))
        + &policy("slow", &target(", sectionName: slow"));
    let (good, out, complaints) = check(&text, &["--strict", "-"]);
    assert!(good, "{complaints}");
    let wanted = "Service shop/orders:80: routes for all clients, the first that matches applies\n\
        \x20 HTTPRoute shop/orders, rule slow: GET /reports/*\n\
        \x20   TrafficPolicy shop/slow; to orders.shop:80; copies 20 % to orders-canary.shop:80; request within 9s\n\
        \x20 HTTPRoute shop/orders, rule rest: any path\n\
        \x20   TrafficPolicy shop/whole; 95 of 100 to orders.shop:80; 5 of 100 to orders-canary.shop:80\n";
    assert!(out.contains(wanted), "{out}");
    let (_, json, _) = check(&text, &["-o", "json", "-"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["routes"][0]["rules"][0]["policy"], "shop/slow");

    // What is wrong is named, and where.
    for (more, expected) in [
        (
            policy("another", &target("")),
            "HTTPRoute orders is targeted by TrafficPolicy shop/another already",
        ),
        (policy("none", &target(", sectionName: fast")), "note: HTTPRoute orders has no rule fast"),
        (
            route("bad", "  - filters: [{type: ExtensionRef}]\n"),
            "HTTPRoute shop/bad: spec.rules[0].filters[0].type: \"ExtensionRef\" is not supported",
        ),
        (
            route("lost", "  - backendRefs: [{name: ordres, port: 80}]\n"),
            "rule rules[0]: there is no Service ordres in these files: did you mean orders?",
        ),
        (
            route("plain", "  - backendRefs: [{name: orders, port: 80}]\n").replace("group: '', ", ""),
            "HTTPRoute shop/plain: spec.parentRefs[0].group: note: a Service is of the group \"\"",
        ),
    ] {
        let (good, _, complaints) = check(&(text.clone() + &more), &["--strict", "-"]);
        assert!(!good && complaints.contains(expected), "{expected}: {complaints}");
    }
    // A route of a gateway is none of ours.
    let gateways = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: g, namespace: shop}\n\
                    spec: {parentRefs: [{name: public}], rules: anything}\n";
    assert!(check(gateways, &["-"]).0);
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

#[test]
fn an_expression_that_allows_more_than_whole_paths_is_noted() {
    let access = |action: &str, value: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  targetRefs: [{{name: x}}]\n  rules: [{{name: r, action: {action}, to: [{{paths: [{{type: RegularExpression, value: '{value}'}}]}}]}}]\n"
        )
    };
    for (action, value, noted) in [
        ("Allow", "/public/.*", true),
        ("Allow", "^/public/", true),
        ("Allow", "^/public/.*$", false),
        ("Deny", "/admin", false),
    ] {
        let (good, said, complaints) = check(&access(action, value), &["-"]);
        assert!(good, "{complaints}");
        let told = format!("{said}{complaints}").contains("allows every path that it matches a part of");
        assert_eq!(told, noted, "{action} {value}: {said}{complaints}");
    }
}

/// Routes whose fields make sense, and that cannot work, or say something else than was meant.
#[test]
fn routes_that_cannot_work_are_noted() {
    let service = |namespace: &str, name: &str, rest: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{rest}}}}}\n---\n"
        )
    };
    let services = [
        service("shop", "orders", "ports: [{name: http, port: 80}, {name: redis, port: 6379}]"),
        service(
            "shop",
            "canary",
            "ports: [{name: http, port: 80}, {name: redis, port: 6379}, {name: grpc, port: 90}]",
        ),
        service("shop", "headless", "clusterIP: None, ports: [{port: 80}]"),
        service("next", "far", "ports: [{port: 80}]"),
        service("outside", "out", "ports: [{port: 80}]"),
        "{apiVersion: v1, kind: Namespace, metadata: {name: outside}}\n---\n".to_owned(),
    ]
    .concat();
    let with = |parent: &str, rules: &str| {
        let wanted = "{group: '', kind: Service, name: orders, port: 80}";
        services.clone() + &route("r", rules).replace(wanted, parent)
    };
    let orders = "{group: '', kind: Service, name: orders, port: 80}";
    let to = |backend: &str| format!("  - backendRefs: [{{{backend}}}]\n");
    let good = to("name: canary, port: 80");
    let matching =
        |what: &str| format!("  - matches: [{what}]\n    backendRefs: [{{name: canary, port: 80}}]\n");
    let parent = |rest: &str| format!("{{group: '', kind: Service, {rest}}}");
    for (text, expected) in [
        (
            with(&parent("name: orders, port: 81"), &good),
            "Service shop/orders has no such port: it has 80 (http), 6379 (redis)",
        ),
        (with(&parent("name: orders, sectionName: web"), &good), "Service shop/orders has no such port"),
        (
            with(&parent("name: orders, port: 6379"), &good),
            "Service shop/orders is declared to speak another protocol than HTTP",
        ),
        (with(&parent("name: headless"), &good), "Service shop/headless is headless"),
        (
            with(&parent("name: out, namespace: outside"), &good),
            "Namespace outside is not enrolled in these files",
        ),
        (
            with("{group: '', kind: service, name: orders}", &good),
            "parentRefs[0].kind: note: there is no kind \"service\"",
        ),
        (
            with(orders, &to("name: canary, port: 81")),
            "rule rules[0]: Service canary.shop:81: it has no port 81, but 80 (http)",
        ),
        (
            with(orders, &to("name: canary, port: 6379")),
            "Service canary.shop:6379 is declared to speak another protocol",
        ),
        (
            with(orders, &to("name: canary, port: 90")),
            "Service canary.shop:90 is declared to speak HTTP/2, and Service shop/orders HTTP/1",
        ),
        (
            with(orders, &to("name: far, namespace: next, port: 80")),
            "no ReferenceGrant in these files allows HTTPRoute of namespace shop",
        ),
        (
            with(orders, &to("name: out, namespace: outside, port: 80")),
            "Namespace outside is not enrolled in these files: its part",
        ),
        (
            with(orders, &to("name: canary, port: 80, weight: 0")),
            "spec.rules[0].backendRefs: note: no backend has a weight",
        ),
        (with(orders, "  - name: a\n"), "spec.rules[0].backendRefs: note: no backend has a weight"),
        (
            with(orders, &(good.clone() + &good)),
            "spec.rules[1]: note: never applies: rules[0] has the same matches",
        ),
        (
            with(orders, &matching("{path: {value: '/a/*'}}")),
            "matches[0].path.value: note: * stands for itself here",
        ),
        (
            with(orders, &matching("{headers: [{name: X-A, value: '1'}, {name: x-a, value: '2'}]}")),
            "matches[0].headers[1]: note: has no effect",
        ),
        (
            with(orders, &good).replace("  rules:", "  hostnames: [a.example]\n  rules:"),
            "spec.hostnames: note: has no effect",
        ),
        (
            with(orders, &good).replace("parentRefs: [", "parentRef: ["),
            "spec.parentRefs: note: not set: a route without a parent is left alone: did you mean",
        ),
        (
            with(orders, &good).replace("kind: HTTPRoute", "kind: HttpRoute"),
            "kind: note: there is no kind \"HttpRoute\": did you mean \"HTTPRoute\"?",
        ),
        (
            with(orders, &good).replace("k8s.io/v1\n", "k8s.io/v1alpha2\n"),
            "apiVersion: note: \"gateway.networking.k8s.io/v1alpha2\"",
        ),
        (
            services.clone()
                + "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: r, namespace: shop}}\n",
            "GRPCRoute shop/r: spec: note: not set",
        ),
        (with(orders, &good).replace("name: r,", ""), "HTTPRoute shop/: metadata.name: not set"),
        (with(orders, &good).replace("name: r,", "name: R_1,"), "metadata.name: \"R_1\" is no name"),
        // What the API server rejects is an error.
        (
            with(
                orders,
                "  - name: a\n    backendRefs: [{name: canary, port: 80}]\n  - name: a\n    matches: [{method: GET}]\n    backendRefs: [{name: canary, port: 80}]\n",
            ),
            "spec.rules[1].name: \"a\" is there already",
        ),
        (with(orders, &good.repeat(17)), "spec.rules: 17 items: allowed are 1 to 16"),
        (
            with(orders, &matching(&["{method: GET}"; 65].join(", "))),
            "spec.rules[0].matches: 65 items: allowed are at most 64",
        ),
        (
            with(orders, &matching("{path: {value: '/a//b'}}")),
            "path.value: \"/a//b\" is no path: \"//\" cannot be matched",
        ),
        (
            with(orders, &matching("{path: {value: '/a%2fb'}}")),
            "\"/a%2fb\" is no path: \"%2f\" cannot be matched",
        ),
        (with(orders, &matching("{path: {value: '/a/..'}}")), "\"/a/..\" is no path"),
        (with(orders, &matching("{path: {value: '/a b'}}")), "\"/a b\" is no path: ' ' is not in any"),
        (
            with(orders, &matching("{path: {value: '/a?x=1'}}")),
            "\"/a?x=1\" is no path: a query is matched by queryParams",
        ),
        (with(orders, &matching("{path: {value: '/a%'}}")), "\"/a%\" is no path: a % stands before two"),
        (
            with(orders, &matching("{headers: [{name: a, value: yes}]}")),
            "headers[0].value: a string is needed, not true: write it in quotes",
        ),
    ] {
        let (good, _, complaints) = check(&text, &["--strict", "-"]);
        assert!(!good && complaints.contains(expected), "{expected}: {complaints}");
    }
    // A grant says that it may be.
    let grant = "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: next}, \
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}\n";
    let far = with(orders, &to("name: far, namespace: next, port: 80")) + grant;
    let (good, _, complaints) = check(&far, &["--strict", "-"]);
    assert!(good, "{complaints}");
}

/// What an AccessPolicy asks for that can never hold, or has no effect, is noted; what makes sense is not.
#[test]
fn access_policies_that_do_nothing_or_too_much_are_noted() {
    let base = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: shop}
spec: {ports: [{name: redis, port: 6379}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway, namespace: shop}
spec: {template: {spec: {serviceAccountName: gateway}}}
---
";
    let access = |target: &str, spec: &str| {
        format!(
            "{base}apiVersion: sluice.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  targetRefs: [{{{target}}}]\n  {spec}\n"
        )
    };
    let web = "name: web";
    for (target, spec, field, message) in [
        (
            web,
            "rules: [{name: r, from: [{serviceAccount: gatway}]}]",
            "spec.rules[0].from[0].serviceAccount",
            "no pod in shop has the service account gatway in these files: did you mean gateway?",
        ),
        (
            web,
            "rules: [{name: r, from: [{namespace: outside}]}]",
            "spec.rules[0].from[0].namespace",
            "Namespace outside is not enrolled in these files",
        ),
        (
            web,
            "hidden: [{name: r, paths: [{value: /a}], from: [{namespace: shopp}]}]",
            "spec.hidden[0].from[0].namespace",
            "there is no Namespace shopp in these files: did you mean shop?",
        ),
        (
            web,
            "rules: [{name: r, to: [{methods: ['*']}]}]",
            "spec.rules[0].to[0].methods",
            "* is a method by itself",
        ),
        (
            web,
            "hidden: [{name: r, paths: [{value: /}]}]",
            "spec.hidden[0].paths[0].value",
            "every path is hidden",
        ),
        ("name: cache", "rules: [{name: r, to: [{methods: [GET]}]}]", "spec.targetRefs[0]", "all are reset"),
        (
            "name: cache",
            "hidden: [{name: r, paths: [{value: /a}]}]",
            "spec.targetRefs[0]",
            "hidden has no effect on it",
        ),
        (
            "name: cache",
            "rules: [{name: r, action: Deny, to: [{methods: [GET]}]}]",
            "spec.targetRefs[0]",
            "rules with methods or paths have no effect on it",
        ),
        (
            "kind: Namespace, group: '', name: shop",
            "rules: [{name: r, to: [{methods: [GET]}]}]",
            "spec.targetRefs[0]",
            "all ports of Service cache are declared not to speak HTTP: no rule with methods",
        ),
    ] {
        let (good, _, complaints) = check(&access(target, spec), &["-"]);
        assert!(good, "{spec}: {complaints}");
        let noted = complaints.contains(&format!("{field}: note: ")) && complaints.contains(message);
        assert!(noted && complaints.lines().count() == 1, "{spec}: {complaints}");
    }
    for (target, spec) in [
        (
            web,
            "rules: [{name: r, from: [{serviceAccount: gateway}], to: [{methods: [GET], paths: [{value: /%61/../b/}]}]}]",
        ),
        (web, "hidden: [{name: r, paths: [{value: /actuator}], from: [{namespace: shop}]}]"),
        ("name: cache", "rules: [{name: r, from: [{workload: gateway}]}]"),
        ("kind: Namespace, group: '', name: shop", "hidden: [{name: r, paths: [{value: /actuator}]}]"),
    ] {
        let (_, _, complaints) = check(&access(target, spec), &["-"]);
        assert_eq!(complaints, "", "{spec}");
    }
}
