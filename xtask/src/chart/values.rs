//! The values of the chart: where each default comes from, what may be given instead, and what it is for.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::workspace;

/// What the chart is made from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) daemon_set: String,
    pub(super) quota: String,
    pub(super) rbac: String,
    pub(super) warm_gate: String,
    pub(super) token_keys: String,
    pub(super) token_keys_secrets: String,
    pub(super) namespace: String,
    pub(super) pod_monitor: String,
    pub(super) rules: String,
    pub(super) dashboard: String,
    /// Name and text.
    pub(super) definitions: Vec<(String, String)>,
    pub(super) settings: Vec<Set>,
    kustomization: String,
    monitoring: String,
}

/// A variable that `config.env` sets, and the comment above it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) comment: Vec<String>,
    pub(super) variable: String,
    pub(super) value: String,
}

impl Source {
    pub(super) fn read(deploy: &Path) -> Result<Self> {
        let read = |path: &str| {
            let path = deploy.join(path);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut definitions = Vec::new();
        let mut paths = Vec::new();
        super::list(&deploy.join("base/crds"), &mut paths)?;
        for path in paths {
            let name =
                path.file_name().context("a definition without a name")?.to_string_lossy().into_owned();
            definitions.push((name.clone(), read(&format!("base/crds/{name}"))?));
        }
        Ok(Self {
            daemon_set: read("base/daemonset.yaml")?,
            quota: read("base/quota.yaml")?,
            rbac: read("base/rbac.yaml")?,
            warm_gate: read("overlays/warm-gate/role.yaml")?,
            token_keys: read("overlays/token-keys/role.yaml")?,
            token_keys_secrets: read("overlays/token-keys-secrets/role.yaml")?,
            namespace: read("base/namespace.yaml")?,
            pod_monitor: read("overlays/monitoring/pod-monitor.yaml")?,
            rules: read("overlays/monitoring/rules.yml")?,
            dashboard: read("overlays/monitoring/dashboard.json")?,
            definitions,
            settings: settings(&read("base/config.env")?)?,
            kustomization: read("base/kustomization.yaml")?,
            monitoring: read("overlays/monitoring/kustomization.yaml")?,
        })
    }
}

/// What `config.env` sets. A comment that a blank line follows is about the file.
fn settings(text: &str) -> Result<Vec<Set>> {
    let mut settings = Vec::new();
    let mut comment = Vec::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix('#') {
            comment.push(about.trim_start().to_owned());
        } else if line.is_empty() {
            comment.clear();
        } else {
            let (variable, value) = line.split_once('=').with_context(|| format!("config.env: {line}"))?;
            settings.push(Set {
                comment: std::mem::take(&mut comment),
                variable: variable.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    ensure!(!settings.is_empty(), "config.env sets nothing");
    Ok(settings)
}

/// One value.
#[derive(Debug)]
pub(super) struct OneValue {
    /// As in `image.tag`.
    pub(super) key: &'static str,
    pub(super) default: Value,
    /// Of JSON Schema, without the description.
    pub(super) schema: Value,
    /// Sentences, in Markdown.
    pub(super) about: &'static str,
}

/// All values but `config`, in the order of `values.yaml`.
pub(super) fn all(source: &Source) -> Result<Vec<OneValue>> {
    let parse = |text: &str| -> Result<Value> { Ok(serde_saphyr::from_str(text)?) };
    let daemon_set = parse(&source.daemon_set)?;
    let pod_monitor = parse(&source.pod_monitor)?;
    let kustomization = parse(&source.kustomization)?;
    let monitoring = parse(&source.monitoring)?;
    ensure!(
        kustomization["images"][0]["newTag"] == workspace::version(),
        "the image's tag in base/kustomization.yaml is not the version {}",
        workspace::version()
    );
    let of = |object: &Value, pointer: &str| -> Result<Value> {
        object.pointer(pointer).cloned().with_context(|| format!("no {pointer} in the manifest"))
    };
    let pod = |field: &str| of(&daemon_set, &format!("/spec/template/spec/{field}"));
    let agent = |field: &str| of(&daemon_set, &format!("/spec/template/spec/containers/0/{field}"));
    let mut dashboard = of(&monitoring, "/configMapGenerator/0/options/labels")?;
    // The chart puts these on everything.
    if let Some(labels) = dashboard.as_object_mut() {
        labels.retain(|name, _| !name.starts_with("app.kubernetes.io/"));
    }
    let string = || json!({ "type": "string" });
    let switch = || json!({ "type": "boolean" });
    let object = || json!({ "type": "object" });
    let list = || json!({ "type": "array", "items": { "type": "object" } });
    let words = || json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let value = |key, default, schema, about| OneValue { key, default, schema, about };
    Ok(vec![
        value(
            "image.repository",
            of(&kustomization, "/images/0/newName")?,
            json!({ "type": "string", "minLength": 1 }),
            "Where the nodes find the image, without a tag.",
        ),
        value("image.tag", json!(""), string(), "The image's tag. Empty: the chart's `appVersion`."),
        value(
            "image.digest",
            json!(""),
            json!({ "type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$" }),
            "The image's digest, as in `sha256:…`. It is used instead of the tag, so that every node runs the same bytes.",
        ),
        value(
            "image.pullPolicy",
            agent("imagePullPolicy")?,
            json!({ "enum": ["Always", "IfNotPresent", "Never"] }),
            "When the kubelet pulls the image.",
        ),
        value(
            "imagePullSecrets",
            json!([]),
            json!({
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": { "name": { "type": "string", "minLength": 1 } },
                    "required": ["name"],
                    "additionalProperties": false,
                },
            }),
            "Secrets with the registry's credentials, as in `[{name: registry}]`.",
        ),
        value("resources", agent("resources")?, object(), "Requests and limits of the agent."),
        value("nodeSelector", pod("nodeSelector")?, words(), "Labels of the nodes that get an agent."),
        value(
            "tolerations",
            pod("tolerations")?,
            list(),
            "Taints of nodes that get an agent nevertheless. Pods on a node without an agent connect directly.",
        ),
        value("affinity", json!({}), object(), "Affinity of the agents' pods."),
        value(
            "priorityClassName",
            pod("priorityClassName")?,
            string(),
            "Priority class of the agents' pods. Empty: the cluster's default.",
        ),
        value(
            "terminationGracePeriodSeconds",
            pod("terminationGracePeriodSeconds")?,
            json!({ "type": "integer", "minimum": 5 }),
            "Seconds that a stopping agent has. At least five more than `SLUICE_DRAIN_TIMEOUT`; tunnels go on for no longer, whatever `SLUICE_TUNNEL_DRAIN_TIMEOUT` says.",
        ),
        value(
            "updateStrategy",
            of(&daemon_set, "/spec/updateStrategy")?,
            object(),
            "How agents are replaced. By default a node's new agent is ready before the old one stops.",
        ),
        value("podAnnotations", json!({}), words(), "More annotations of the agents' pods."),
        value(
            "podLabels",
            json!({}),
            json!({
                "type": "object",
                "additionalProperties": { "type": "string" },
                "propertyNames": { "not": { "const": "app.kubernetes.io/name" } },
            }),
            "More labels of the agents' pods.",
        ),
        value(
            "seLinuxOptions",
            json!({}),
            words(),
            "SELinux context of the agent: `{type: spc_t}` on nodes that enforce SELinux.",
        ),
        value(
            "extraVolumes",
            json!([]),
            list(),
            "More volumes, for example a node's directory for the access log.",
        ),
        value("extraVolumeMounts", json!([]), list(), "Where the agent mounts them."),
        value(
            "crds.install",
            json!(true),
            switch(),
            "Install and upgrade the CustomResourceDefinitions with the chart. `false`: you apply them yourself.",
        ),
        value(
            "crds.keep",
            json!(true),
            switch(),
            "Keep the CustomResourceDefinitions, and so all policies, when the release is uninstalled.",
        ),
        value(
            "namespace.create",
            json!(false),
            switch(),
            "Make the release's namespace an object of the chart, with the labels that Pod Security Admission needs. For \
             tools that render the chart; `helm install` itself needs the namespace before.",
        ),
        value(
            "resourceQuota.create",
            json!(true),
            switch(),
            "Create the ResourceQuota without which some managed clusters reject pods with a system priority class.",
        ),
        value(
            "tokenKeys.configMaps",
            json!(false),
            switch(),
            "Let the agents read ConfigMaps, for keys of tokens that AccessPolicies have there (`jwks.configMap`).",
        ),
        value(
            "tokenKeys.secrets",
            json!(false),
            switch(),
            "Let the agents read **all Secrets of the cluster**, for keys of tokens that AccessPolicies have there (`jwks.secret`). \
             Public keys belong into a ConfigMap: leave it off if you can.",
        ),
        value(
            "podMonitor.enabled",
            json!(false),
            switch(),
            "Create a PodMonitor, for the Prometheus operator. It scrapes the port of `node:PORT` in `SLUICE_ADMIN`.",
        ),
        value(
            "podMonitor.interval",
            of(&pod_monitor, "/spec/podMetricsEndpoints/0/interval")?,
            json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }),
            "How often the agents are scraped.",
        ),
        value("podMonitor.labels", json!({}), words(), "Labels that your Prometheus selects PodMonitors by."),
        value(
            "prometheusRule.enabled",
            json!(false),
            switch(),
            "Create a PrometheusRule with the recording and alerting rules, for the Prometheus operator.",
        ),
        value(
            "prometheusRule.labels",
            json!({}),
            words(),
            "Labels that your Prometheus selects PrometheusRules by.",
        ),
        value(
            "dashboard.enabled",
            json!(false),
            switch(),
            "Create a ConfigMap with the Grafana dashboard, for Grafana's sidecar.",
        ),
        value("dashboard.labels", dashboard, words(), "Labels that Grafana's sidecar selects ConfigMaps by."),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_the_comment_above_them() {
        let read = settings("# About all.\n\nA=1\n# About b,\n# still.\nB=x=y\n").expect("good");
        let set = |comment: &[&str], variable: &str, value: &str| Set {
            comment: comment.iter().map(|&line| line.to_owned()).collect(),
            variable: variable.to_owned(),
            value: value.to_owned(),
        };
        assert_eq!(read, [set(&[], "A", "1"), set(&["About b,", "still."], "B", "x=y")]);
        assert!(settings("# nothing\n").is_err());
        assert!(settings("A\n").is_err());
    }
}
