//! What the chart says of itself: `Chart.yaml`, `values.yaml` with comments, the schema of the values, the README.

use std::fmt::Write as _;

use anyhow::Result;
use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::Setting;
use super::values::{OneValue, Source};
use crate::workspace;

/// The dashboard's.
const ICON: &[u8] = include_bytes!("../../../agent/src/admin/page/icon.svg");

const ABOUT_CONFIG: &str = "Settings of the agents: environment variables of `sluice agent`, as in deploy/base/config.env. \
                            deploy/reference/settings.md lists all of them.";

/// Variables that the DaemonSet sets on each node, and that a setting could not change; and the socket that its probes ask.
const OF_THE_NODE: [&str; 3] = ["SLUICE_NODE", "SLUICE_NODE_ADDRESS", "SLUICE_ADMIN_SOCKET"];

pub(super) fn chart_yaml() -> String {
    let version = workspace::version();
    let icon = base64::engine::general_purpose::STANDARD.encode(ICON);
    // The oldest Kubernetes that COMPATIBILITY.md names.
    format!(
        "# Made by `cargo xtask chart`.
apiVersion: v2
name: sluice
description: A node agent for Kubernetes that routes and protects the HTTP and gRPC calls between services
type: application
version: {version}
appVersion: {version}
kubeVersion: '>=1.29.0-0'
icon: data:image/svg+xml;base64,{icon}
keywords: [canary, circuit-breaker, ebpf, lanes, rate-limiting, warm-up]
annotations:
  artifacthub.io/license: Apache-2.0
"
    )
}

pub(super) fn values_yaml(source: &Source, values: &[OneValue]) -> String {
    let mut text = "# Made by `cargo xtask chart`. README.md has the same as a table.\n".to_owned();
    let mut group = "";
    for (index, value) in values.iter().enumerate() {
        // Where the reader expects it: before what concerns the pods.
        if value.key == "resources" {
            config(&mut text, source);
        }
        let (parent, name) = value.key.split_once('.').unwrap_or(("", value.key));
        let indent = if parent.is_empty() { 0 } else { 2 };
        if parent != group || parent.is_empty() {
            text.push('\n');
        }
        if parent != group && !parent.is_empty() {
            let _ = writeln!(text, "{parent}:");
        }
        group = parent;
        comment(&mut text, indent, value.about);
        entry(&mut text, indent, name, &values[index].default);
    }
    text
}

fn config(text: &mut String, source: &Source) {
    text.push('\n');
    comment(text, 0, ABOUT_CONFIG);
    text.push_str("config:\n");
    for set in &source.settings {
        for line in &set.comment {
            let _ = writeln!(text, "  # {line}");
        }
        entry(text, 2, &set.variable, &typed(&set.value));
    }
}

/// Numbers as numbers; everything else as text.
fn typed(value: &str) -> Value {
    match value.parse::<u32>() {
        Ok(number) => json!(number),
        Err(_) => json!(value),
    }
}

/// A comment of lines that are not too long.
fn comment(text: &mut String, indent: usize, about: &str) {
    let mut line = String::new();
    for word in about.split_whitespace() {
        if !line.is_empty() && indent + line.len() + word.len() > 110 {
            let _ = writeln!(text, "{}#{line}", " ".repeat(indent));
            line.clear();
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(text, "{}#{line}", " ".repeat(indent));
}

/// A key with its value, in block style.
fn entry(text: &mut String, indent: usize, key: &str, value: &Value) {
    let _ = write!(text, "{}{key}:", " ".repeat(indent));
    after_key(text, indent, value);
}

fn after_key(text: &mut String, indent: usize, value: &Value) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            for (name, value) in fields {
                entry(text, indent + 2, name, value);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                let mut inner = String::new();
                match item {
                    Value::Object(fields) => {
                        for (name, value) in fields {
                            entry(&mut inner, indent + 4, name, value);
                        }
                    }
                    other => {
                        inner.push_str(&" ".repeat(indent + 4));
                        let _ = writeln!(inner, "{}", scalar(other));
                    }
                }
                let _ = write!(text, "{}- {}", " ".repeat(indent + 2), inner.trim_start());
            }
        }
        other => {
            let _ = writeln!(text, " {}", scalar(other));
        }
    }
}

/// Text is quoted where YAML 1.1, which Helm reads, or a reader could take it for something else.
fn scalar(value: &Value) -> String {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"];
    match value {
        Value::String(text) => {
            // As in 128Mi and 15s.
            let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let quantity = digits.len() < text.len() && ["m", "s", "Ki", "Mi", "Gi"].contains(&digits);
            let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
                && !WORDS.contains(&text.to_ascii_lowercase().as_str());
            if plain || quantity { text.clone() } else { value.to_string() }
        }
        other => other.to_string(),
    }
}

pub(super) fn schema(values: &[OneValue], settings: &[Setting]) -> Result<String> {
    let closed = |properties: Map<String, Value>| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let mut top = Map::new();
    for value in values {
        let mut schema = value.schema.clone();
        schema["description"] = json!(value.about);
        let (parent, name) = value.key.split_once('.').unwrap_or(("", value.key));
        if parent.is_empty() {
            top.insert(name.to_owned(), schema);
        } else {
            let group = top.entry(parent).or_insert_with(|| closed(Map::new()));
            group["properties"][name] = schema;
        }
    }
    let mut variables = Map::new();
    for setting in settings.iter().filter(|setting| !OF_THE_NODE.contains(&&*setting.variable)) {
        variables.insert(setting.variable.clone(), variable(setting));
    }
    let mut config = closed(variables);
    config["description"] = json!(ABOUT_CONFIG);
    top.insert("config".to_owned(), config);
    // What Helm gives every chart that is part of another.
    top.insert("global".to_owned(), json!({ "type": "object" }));
    let mut schema = closed(top);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Values of the chart sluice. Made by `cargo xtask chart`.");
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

/// No setting is a truth value: what YAML takes for one is a mistake.
fn variable(setting: &Setting) -> Value {
    if setting.values.is_empty() {
        return json!({ "description": setting.help, "type": ["string", "number"] });
    }
    json!({ "description": setting.help, "enum": setting.values })
}

pub(super) fn readme(source: &Source, values: &[OneValue]) -> String {
    let mut text = README.to_owned();
    let mut row = |key: &str, default: &Value, about: &str| {
        let default = match default {
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let _ = writeln!(text, "| `{key}` | {default} | {} |", about.replace('|', "\\|"));
    };
    for value in values {
        if value.key == "resources" {
            row("config", &json!({}), ABOUT_CONFIG);
            for set in &source.settings {
                row(&format!("config.{}", set.variable), &typed(&set.value), &set.comment.join(" "));
            }
        }
        row(value.key, &value.default, value.about);
    }
    text
}

const README: &str = "\
# The Helm chart of Sluice

Made by `cargo xtask chart` from the manifests in `deploy/`, and compared with what kustomize makes of them: both install the
same objects. Helm 3.17 or later, Kubernetes 1.29 or later.

```sh
kubectl create namespace sluice-system
kubectl label namespace sluice-system pod-security.kubernetes.io/enforce=privileged
helm install sluice deploy/chart/sluice --namespace sluice-system --set image.repository=registry.example.com/platform/sluice
kubectl -n sluice-system rollout status daemonset/sluice
```

The label is for clusters on which Pod Security Admission allows less by default; SECURITY.md says what each privilege is
for. A release of Sluice has this chart as a package, `sluice-VERSION.tgz`.

- **Upgrade**: `helm upgrade`. The CustomResourceDefinitions are upgraded with it.
- **Uninstall**: `helm uninstall sluice --namespace sluice-system`. The CustomResourceDefinitions and all policies stay, unless
  `crds.keep` is `false`. To delete them: `kubectl delete crd trafficpolicies.sluice.dev trafficlanes.sluice.dev accesspolicies.sluice.dev`.
- **From kustomize to Helm**: `helm install --take-ownership`. Delete the old ConfigMap `sluice-…` afterwards.
- There is one release in a cluster: the objects are named `sluice`, whatever the release's name.

`config` takes the variables that deploy/reference/settings.md lists. A variable that does not exist is an error of `helm install`.

| value | default | |
|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_written_so_that_helm_reads_the_same() {
        let value = json!({
            "words": ["a", "off", "No", "1", "", "a b", "node:9465,x", "x-mse-tag", "12Mi"],
            "items": [{ "a": 1, "b": { "c": [true] } }, { "d": [] }],
            "empty": {},
        });
        let mut text = String::new();
        entry(&mut text, 0, "top", &value);
        let read: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(read["top"], value, "{text}");
        for word in ["off", "No", "1", "", "1e3", "0x1f"] {
            assert!(scalar(&json!(word)).starts_with('"'), "{word}");
        }
    }
}
