//! What `deploy/` says of metrics: the table, the rules, the dashboard, and the page that alerts lead to.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use sluice::{offline, run};

use crate::manifests::deploy;

fn read(file: &str) -> String {
    let path = deploy().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rules() -> Value {
    serde_saphyr::from_str(&read("overlays/monitoring/rules.yml")).unwrap()
}

/// Alerts and records.
fn all_rules() -> Vec<Value> {
    let groups = rules()["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn alerts() -> Vec<Value> {
    all_rules().into_iter().filter(|rule| rule["alert"].is_string()).collect()
}

#[test]
fn the_reference_is_what_the_program_says() {
    for (name, text) in offline::reference::pages(&sluice::cli::command()).unwrap() {
        let committed = read(&format!("reference/{name}"));
        assert!(committed == text, "{name}: run `cargo xtask reference` and commit what it writes");
    }
}

#[test]
fn the_operator_gets_the_same_rules() {
    let object: Value = serde_saphyr::from_str(&read("overlays/monitoring/prometheus-rule.yaml")).unwrap();
    assert!(object["spec"] == rules(), "run `cargo xtask reference` and commit what it writes");
}

/// The names in an expression that are metrics of ours, or recorded.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_part(c));
    words.filter(|word| word.contains("sluice_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// Whether an agent serves, or a rule records, a series of that name.
fn is_known(name: &str) -> bool {
    let registered = run::metrics().unwrap();
    let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part));
    registered.iter().any(|metric| metric.name == name)
        || of_histogram.is_some_and(|base| {
            registered
                .iter()
                .any(|metric| metric.name == base && ["histogram", "summary"].contains(&metric.kind))
        })
        || all_rules().iter().any(|rule| rule["record"] == name)
}

#[test]
fn rules_ask_for_metrics_that_there_are() {
    for rule in all_rules() {
        for name in metrics_in(rule["expr"].as_str().unwrap()) {
            assert!(is_known(&name), "{rule:#}: {name}");
        }
    }
    assert!(!is_known("sluice_retries"));
}

#[test]
fn every_alert_leads_to_the_reference_which_knows_it() {
    let page = read("reference/alerts.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let runbook = format!("deploy/reference/alerts.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], *runbook, "{name}");
        for part in ["summary", "description", "action"] {
            let text = alert["annotations"][part].as_str().unwrap_or_default();
            assert!(text.ends_with('.'), "{name}: {part}: {text}");
        }
        let shown = format!(
            "\n## {name}\n\n{}\n\nWhat to do: ",
            alert["annotations"]["description"].as_str().unwrap().trim()
        );
        assert!(page.contains(&shown), "run `cargo xtask reference`: {shown}");
    }
}

#[test]
fn every_alert_is_tested() {
    let tests: Value = serde_saphyr::from_str(&read("overlays/monitoring/rules-test.yml")).unwrap();
    let cases = tests["tests"].as_array().unwrap();
    for alert in alerts() {
        let fires = |case: &Value| {
            let expected = case["alert_rule_test"].as_array().cloned().unwrap_or_default();
            let of_it: Vec<_> =
                expected.into_iter().filter(|one| one["alertname"] == alert["alert"]).collect();
            let firing = |one: &Value| !one["exp_alerts"].as_array().unwrap().is_empty();
            of_it.iter().any(firing) && !of_it.iter().all(firing)
        };
        assert!(
            cases.iter().any(fires),
            "no test in which {} fires, and one in which it does not",
            alert["alert"]
        );
    }
}
