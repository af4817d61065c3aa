//! Reading an object as strictly as `kubectl apply` does: what a type does not know, or needs and does not get, is named.
//!
//! The types of k8s-openapi pass over unknown fields and fill in missing ones. So an object is read and written again, and
//! what comes out must be what went in. One version of Kubernetes is compiled in; the fields used here are older than the
//! oldest that is supported.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub(crate) fn complaints<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let object = without_nulls(object);
    let again = match serde_json::from_value::<T>(object.clone()) {
        Ok(read) => without_nulls(&serde_json::to_value(read).unwrap()),
        Err(error) => return vec![error.to_string()],
    };
    let mut found = Vec::new();
    compare("", &object, &again, &mut found);
    found
}

/// A field that is null is not set.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            set.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn compare(path: &str, written: &Value, read: &Value, found: &mut Vec<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                match read.get(name) {
                    Some(read) => compare(&below(name), value, read, found),
                    None => found.push(format!("{}: unknown", below(name))),
                }
            }
            let missing = read.keys().filter(|name| !written.contains_key(*name));
            found.extend(missing.map(|name| format!("{}: missing", below(name))));
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                compare(&format!("{path}[{index}]"), written, read, found);
            }
        }
        (Value::Number(written), Value::Number(read)) if written.as_f64() == read.as_f64() => {}
        _ if written == read => {}
        _ => found.push(format!("{path}: {written} is read as {read}")),
    }
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

/// What of the Prometheus operator's PodMonitor is used here.
/// <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PodMonitor>
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PodMonitorSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMetricsEndpoint {
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    regex: Option<String>,
    target_label: String,
    replacement: Option<String>,
}

/// What of the Prometheus operator's PrometheusRule is used here; promtool has the last word on the rules.
/// <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PrometheusRule>
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PrometheusRuleSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrometheusRuleSpec {
    groups: Vec<RuleGroup>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    r#for: Option<String>,
    labels: Option<Value>,
    annotations: Option<Value>,
}

/// What of a kustomization is used here; kustomize itself has the last word.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    resources: Vec<String>,
    config_map_generator: Option<Value>,
    labels: Option<Value>,
    images: Option<Value>,
    patches: Option<Value>,
}
