//! The chart's templates: the manifests, with the values in the place of what may differ.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::node::Document;
use super::values::Source;

/// In the place of the namespace that the base names.
const NAMESPACE: &str = "{{ .Release.Namespace }}";

/// All files that are made of manifests, by their path in the chart.
pub(super) fn all(source: &Source) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut add = |name: &str, from: &str, text: String| {
        files.insert(
            format!("templates/{name}"),
            format!("{{{{- /* Made by `cargo xtask chart` from deploy/{from}. */ -}}}}\n{text}"),
        );
    };
    add("daemonset.yaml", "base/daemonset.yaml", daemon_set(&source.daemon_set)?);
    add("configmap.yaml", "base/config.env", CONFIG_MAP.to_owned());
    add("rbac.yaml", "base/rbac.yaml", rbac(&source.rbac)?);
    // The setting asks for the permission.
    let warm_gate = rbac(&source.warm_gate)?;
    add(
        "warm-gate.yaml",
        "overlays/warm-gate/role.yaml",
        format!(
            "{{{{- if eq (toString ((.Values.config).SLUICE_WARM_GATE)) \"enabled\" }}}}\n{warm_gate}{{{{- end }}}}\n"
        ),
    );
    let switched =
        |switch: &str, text: String| format!("{{{{- if .Values.{switch} }}}}\n{text}{{{{- end }}}}\n");
    add(
        "token-keys.yaml",
        "overlays/token-keys/role.yaml",
        switched("tokenKeys.configMaps", rbac(&source.token_keys)?),
    );
    add(
        "token-keys-secrets.yaml",
        "overlays/token-keys-secrets/role.yaml",
        switched("tokenKeys.secrets", rbac(&source.token_keys_secrets)?),
    );
    add("quota.yaml", "base/quota.yaml", quota(&source.quota)?);
    add("namespace.yaml", "base/namespace.yaml", switched("namespace.create", namespace(&source.namespace)?));
    add(
        "podmonitor.yaml",
        "overlays/monitoring/pod-monitor.yaml",
        switched("podMonitor.enabled", pod_monitor(&source.pod_monitor)?),
    );
    add(
        "prometheusrule.yaml",
        "overlays/monitoring/rules.yml",
        switched("prometheusRule.enabled", PROMETHEUS_RULE.to_owned()),
    );
    add(
        "dashboard.yaml",
        "overlays/monitoring/dashboard.json",
        switched("dashboard.enabled", DASHBOARD.to_owned()),
    );
    for (name, text) in &source.definitions {
        let from = format!("base/crds/{name}");
        add(&format!("crds/{name}"), &from, switched("crds.install", definition(text)?));
    }
    let rules = source.rules.lines().skip_while(|line| line.starts_with('#'));
    files.insert("files/rules.yml".to_owned(), rules.flat_map(|line| [line, "\n"]).collect());
    files.insert("files/dashboard.json".to_owned(), source.dashboard.clone());
    Ok(files)
}

/// A manifest's object with the release's namespace (and labels from the values, unless `labels` is empty or `None`).
/// `None` stands for an object of the whole cluster.
fn object(text: &str, labels: Option<&str>) -> Result<Document> {
    ensure!(!text.contains("{{"), "a manifest that looks like a template: {text}");
    let mut document = Document::new(text);
    let mut include = "{{- include \"sluice.labels\" . | nindent 4 }}".to_owned();
    if let Some(values) = labels.filter(|values| !values.is_empty()) {
        include.push_str(&with(values, &format!("{{{{- toYaml . | nindent {} }}}}", 4)));
    }
    if document.has("metadata.labels") {
        // It is among those of the release.
        document.remove("app.kubernetes.io/part-of: sluice");
        document.add_in("metadata.labels", &include)?;
    } else {
        let lines: String = include.lines().flat_map(|line| ["\n  ", line]).collect();
        document.add_after("metadata.name", &format!("labels:{lines}"))?;
    }
    if labels.is_some() && !document.has("metadata.namespace") {
        document.add_after("metadata.name", &format!("namespace: {NAMESPACE}"))?;
    }
    document.substitute("namespace: sluice-system", &format!("namespace: {NAMESPACE}"));
    Ok(document)
}

/// Lines that are there if the value is not empty.
fn with(value: &str, lines: &str) -> String {
    format!("\n{{{{- with .Values.{value} }}}}\n{lines}\n{{{{- end }}}}")
}

/// A field whose whole content is a value, where that is not empty. `indent` is that of the content.
fn field(name: &str, indent: usize) -> String {
    format!(
        "{{{{- with .Values.{name} }}}}\n{name}:\n  {{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}"
    )
}

fn daemon_set(text: &str) -> Result<String> {
    let mut agents = object(text, Some(""))?;
    agents.replace("spec.updateStrategy", &field("updateStrategy", 4))?;
    agents.add_in(
        "spec.template.metadata.labels",
        with("podLabels", "{{- toYaml . | nindent 8 }}").trim_start(),
    )?;
    agents.add_in(
        "spec.template.metadata.annotations",
        "{{- if not (include \"sluice.knowsAppArmor\" .) }}\n\
         container.apparmor.security.beta.kubernetes.io/agent: unconfined\n\
         {{- end }}\n\
         # A change of the configuration rolls the agents over, without loss.\n\
         checksum/config: {{ .Values.config | toJson | sha256sum }}\n\
         {{- with .Values.podAnnotations }}\n\
         {{- toYaml . | nindent 8 }}\n\
         {{- end }}",
    )?;
    agents.add_after("spec.template.spec.serviceAccountName", &field("imagePullSecrets", 8))?;
    agents.replace(
        "spec.template.spec.priorityClassName",
        "{{- with .Values.priorityClassName }}\npriorityClassName: {{ . }}\n{{- end }}",
    )?;
    agents.add_after("spec.template.spec.tolerations", &field("affinity", 8))?;
    for name in ["nodeSelector", "tolerations"] {
        agents.replace(&format!("spec.template.spec.{name}"), &field(name, 8))?;
    }
    agents.replace(
        "spec.template.spec.terminationGracePeriodSeconds",
        "terminationGracePeriodSeconds: {{ include \"sluice.gracePeriod\" . }}",
    )?;
    let container = "spec.template.spec.containers.0";
    agents.replace(&format!("{container}.image"), "image: {{ include \"sluice.image\" . | quote }}")?;
    agents.replace(
        &format!("{container}.imagePullPolicy"),
        "imagePullPolicy: {{ .Values.image.pullPolicy }}",
    )?;
    agents.replace(&format!("{container}.resources"), &field("resources", 12))?;
    let profile = format!("{container}.securityContext.appArmorProfile");
    agents.replace_with_comment(
        &profile,
        "{{- if include \"sluice.knowsAppArmor\" . }}\n\
         # The default profile forbids to look at the processes of others, and so at /proc/PID/ns/net.\n\
         appArmorProfile:\n  type: Unconfined\n\
         {{- end }}\n\
         {{- with .Values.seLinuxOptions }}\n\
         seLinuxOptions:\n  {{- toYaml . | nindent 14 }}\n\
         {{- end }}",
    )?;
    agents.add_in(
        &format!("{container}.volumeMounts"),
        with("extraVolumeMounts", "{{- toYaml . | nindent 12 }}").trim_start(),
    )?;
    agents.add_in(
        "spec.template.spec.volumes",
        with("extraVolumes", "{{- toYaml . | nindent 8 }}").trim_start(),
    )?;
    Ok(agents.text())
}

/// The settings, in the form that they have in `values.yaml`.
const CONFIG_MAP: &str = r#"apiVersion: v1
kind: ConfigMap
metadata:
  name: sluice
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "sluice.labels" . | nindent 4 }}
{{- with .Values.config }}
data:
  {{- range $variable, $value := . }}
  {{ $variable }}: {{ include "sluice.setting" $value | quote }}
  {{- end }}
{{- end }}
"#;

/// The same object as overlays/monitoring/prometheus-rule.yaml. The rules have braces of their own, so they are a file.
const PROMETHEUS_RULE: &str = r#"apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sluice
  namespace: {{ .Release.Namespace }}
  labels:
    app.kubernetes.io/name: sluice
    {{- include "sluice.labels" . | nindent 4 }}
    {{- with .Values.prometheusRule.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- .Files.Get "files/rules.yml" | nindent 2 }}
"#;

const DASHBOARD: &str = r#"apiVersion: v1
kind: ConfigMap
metadata:
  name: sluice-dashboard
  namespace: {{ .Release.Namespace }}
  labels:
    app.kubernetes.io/name: sluice
    {{- include "sluice.labels" . | nindent 4 }}
    {{- with .Values.dashboard.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
data:
  sluice.json: |
{{ .Files.Get "files/dashboard.json" | indent 4 }}
"#;

/// Only the system's priority classes are restricted to where a quota names them.
fn quota(text: &str) -> Result<String> {
    let mut quota = object(text, Some(""))?;
    let values = "spec.scopeSelector.matchExpressions.0.values";
    quota.replace(values, "values: [{{ .Values.priorityClassName }}]")?;
    Ok(format!(
        "{{{{- if and .Values.resourceQuota.create (hasPrefix \"system-\" .Values.priorityClassName) }}}}\n{}{{{{- end }}}}\n",
        quota.text()
    ))
}

fn rbac(text: &str) -> Result<String> {
    let mut made = Vec::new();
    for text in text.split("---\n") {
        let of_the_cluster = text.contains("\nkind: ClusterRole");
        made.push(object(text, (!of_the_cluster).then_some(""))?.text());
    }
    Ok(made.join("---\n"))
}

fn namespace(text: &str) -> Result<String> {
    let mut namespace = object(text, None)?;
    namespace.substitute("name: sluice-system", &format!("name: {NAMESPACE}"));
    Ok(namespace.text())
}

fn pod_monitor(text: &str) -> Result<String> {
    let mut monitor = object(text, Some("podMonitor.labels"))?;
    monitor.replace("spec.podMetricsEndpoints.0.interval", "interval: {{ .Values.podMonitor.interval }}")?;
    monitor.substitute(":9465", ":{{ include \"sluice.metricsPort\" . }}");
    Ok(monitor.text())
}

fn definition(text: &str) -> Result<String> {
    let mut definition = object(text, None)?;
    let keep = "{{- if .Values.crds.keep }}\nannotations:\n  helm.sh/resource-policy: keep\n{{- end }}";
    ensure!(!definition.has("metadata.annotations"), "a definition with annotations: {text}");
    definition.add_after("metadata.name", keep)?;
    Ok(definition.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_get_the_namespace_and_labels_of_the_release() {
        let made = object("kind: A\nmetadata:\n  name: a\nspec:\n  b: 1\n", Some("")).expect("good").text();
        assert_eq!(
            made,
            "kind: A\nmetadata:\n  name: a\n  namespace: {{ .Release.Namespace }}\n  labels:\n    \
             {{- include \"sluice.labels\" . | nindent 4 }}\nspec:\n  b: 1\n"
        );
        let own =
            "kind: A\nmetadata:\n  name: a\n  labels:\n    x: y\n    app.kubernetes.io/part-of: sluice\n";
        let made = object(own, None).expect("good").text();
        assert_eq!(
            made,
            "kind: A\nmetadata:\n  name: a\n  labels:\n    x: y\n    {{- include \"sluice.labels\" . | nindent 4 }}\n"
        );
        assert!(
            object("kind: A\nmetadata:\n  name: '{{'\n", None).is_err(),
            "Helm would take it for its own"
        );
    }
}
