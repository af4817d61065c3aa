//! What is read: files, directories and lists, and what they have of services and namespaces.

use std::{fs, io, path::Path};

use clap::Parser as _;
use serde_json::Value;

use super::{Line, check, policy, run};
use crate::api;

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
