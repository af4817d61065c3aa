//! Whether two sets of rendered objects are the same, but for what Helm and kustomize each add.

use std::collections::BTreeMap;

use serde_json::Value;

/// What the chart adds to objects, and kustomize does not.
const ADDED: [&str; 4] =
    ["app.kubernetes.io/managed-by", "helm.sh/chart", "helm.sh/resource-policy", "checksum/config"];

/// Objects by kind and name. `Err` names one that is there twice.
type Objects = BTreeMap<(String, String), Value>;

/// What is different, by object and path; empty if nothing is.
pub(super) fn differences(chart: &[Value], kustomize: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let chart = objects(chart, &mut found);
    let kustomize = objects(kustomize, &mut found);
    for ((kind, name), object) in &chart {
        match kustomize.get(&(kind.clone(), name.clone())) {
            Some(other) => compare(&format!("{kind} {name}: "), object, other, &mut found),
            None => found.push(format!("{kind} {name} is in the chart only")),
        }
    }
    for key in kustomize.keys().filter(|key| !chart.contains_key(*key)) {
        found.push(format!("{} {} is not in the chart", key.0, key.1));
    }
    found
}

fn objects(rendered: &[Value], found: &mut Vec<String>) -> Objects {
    let mut objects = Objects::new();
    for object in rendered.iter().filter(|object| !object.is_null()) {
        let object = plain("", object);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (text(&object["kind"]), text(&object["metadata"]["name"]));
        if objects.insert(key.clone(), object).is_some() {
            found.push(format!("{} {} is there twice", key.0, key.1));
        }
    }
    objects
}

/// An object without what only one side has.
fn plain(field: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name, plain(name, value)));
            let kept = fields.filter(|(name, value)| {
                let nothing = value.as_object().is_some_and(serde_json::Map::is_empty);
                let only_added = nothing && ["labels", "annotations"].contains(&name.as_str());
                !ADDED.contains(&name.as_str()) && !only_added
            });
            kept.map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => items.iter().map(|item| plain("", item)).collect(),
        Value::String(text) if field == "name" => without_hash(text).into(),
        other => other.clone(),
    }
}

/// Kustomize puts a hash of its content behind the name of the ConfigMap `sluice`.
fn without_hash(name: &str) -> &str {
    match name.strip_prefix("sluice-") {
        Some(hash) if hash.len() == 10 && hash.chars().all(|c| c.is_ascii_alphanumeric()) => "sluice",
        _ => name,
    }
}

fn compare(path: &str, chart: &Value, kustomize: &Value, found: &mut Vec<String>) {
    match (chart, kustomize) {
        (Value::Object(chart), Value::Object(kustomize)) => {
            let mut names: Vec<&String> = chart.keys().chain(kustomize.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let of = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or_default();
                compare(&format!("{path}.{name}"), &of(chart), &of(kustomize), found);
            }
        }
        (Value::Array(chart), Value::Array(kustomize)) if chart.len() == kustomize.len() => {
            for (index, (chart, kustomize)) in chart.iter().zip(kustomize).enumerate() {
                compare(&format!("{path}[{index}]"), chart, kustomize, found);
            }
        }
        _ if chart == kustomize => {}
        _ => found.push(format!("{path}: {chart} in the chart, {kustomize} by kustomize")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, spec: &Value) -> Value {
        json!({ "kind": "A", "metadata": { "name": name }, "spec": spec })
    }

    #[test]
    fn only_what_each_adds_is_passed_over() {
        let chart = json!({
            "kind": "ConfigMap",
            "metadata": {
                "name": "sluice",
                "labels": { "a": "b", "helm.sh/chart": "sluice-0.1.0" },
                "annotations": { "helm.sh/resource-policy": "keep" },
            },
        });
        let kustomize = json!({
            "kind": "ConfigMap",
            "metadata": { "name": "sluice-gb4h5mtk8c", "labels": { "a": "b" } },
        });
        assert_eq!(differences(&[chart.clone(), Value::Null], std::slice::from_ref(&kustomize)), [""; 0]);
        let mut other = kustomize.clone();
        other["metadata"]["labels"]["a"] = json!("c");
        assert_eq!(differences(&[chart], &[other]).len(), 1);
        assert_eq!(without_hash("sluice-dashboard"), "sluice-dashboard");
        assert_eq!(without_hash("sluice-status"), "sluice-status");
    }

    #[test]
    fn every_difference_is_named() {
        let chart = [object("a", &json!({ "x": [1, { "y": 2 }], "z": 1 })), object("b", &json!({}))];
        let kustomize = [object("a", &json!({ "x": [1, { "y": 3 }], "w": 1 })), object("c", &json!({}))];
        assert_eq!(
            differences(&chart, &kustomize),
            [
                "A a: .spec.w: null in the chart, 1 by kustomize",
                "A a: .spec.x[1].y: 2 in the chart, 3 by kustomize",
                "A a: .spec.z: 1 in the chart, null by kustomize",
                "A b is in the chart only",
                "A c is not in the chart",
            ]
        );
        let twice = [object("a", &json!({})), object("a", &json!({}))];
        assert_eq!(differences(&twice, &twice[..1]), ["A a is there twice"]);
    }
}
