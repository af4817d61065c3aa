//! What of kinds that neither Kubernetes nor Sluice define is used in `deploy/`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// krew's manifest of a plugin.
/// <https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/>
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Plugin {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PluginSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginSpec {
    version: String,
    short_description: String,
    description: String,
    caveats: String,
    platforms: Vec<Platform>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    uri: String,
    sha256: String,
    bin: String,
}
