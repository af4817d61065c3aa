//! Every piece of YAML that the documentation and the examples show is what kubectl makes of it: it is read as kubectl
//! reads it, and applied to a double of the API server as `kubectl apply` does, with strict field validation.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sluice_tests::{
    api_server::ApiServer,
    kubectl::{self, is_not_text},
};
use tempfile::TempDir;

use crate::manifests::{deploy, patches};

/// A piece of YAML.
struct Shown {
    /// File and line.
    origin: String,
    text: String,
    /// A part of an object: it is read and not applied.
    fragment: bool,
}

fn root() -> PathBuf {
    fs::canonicalize(deploy().join("..")).unwrap()
}

/// All files below a directory of this repository, without what is built or hidden.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn shown_in(path: &Path) -> Vec<Shown> {
    let name = path.strip_prefix(root()).unwrap().display().to_string();
    let text = || fs::read_to_string(path).unwrap();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => blocks(&name, &text()),
        // Those of a chart are templates: the chart's own tests render them.
        Some("yaml" | "yml") if !path.components().any(|part| part.as_os_str() == "templates") => {
            // Patches, values and configuration are no objects.
            let text = text();
            let is_patch =
                path.parent().is_some_and(|directory| patches(directory).iter().any(|patch| patch == path));
            let is_chart = path.ends_with("Chart.yaml");
            let fragment =
                is_patch || is_chart || !text.starts_with("apiVersion:") && !text.contains("\napiVersion:");
            vec![Shown { origin: format!("{name}:1"), text, fragment }]
        }
        _ => Vec::new(),
    }
}

/// The code blocks of a page that hold YAML: those that say so, and what shell commands read from the block itself.
fn blocks(name: &str, text: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let mut block: Vec<(usize, &str)> = Vec::new();
        for (at, line) in lines.by_ref() {
            if line.trim() == "```" {
                break;
            }
            block.push((at, line.get(indent..).unwrap_or_default()));
        }
        let words: Vec<&str> = info.split_whitespace().collect();
        match words.first().copied().unwrap_or_default() {
            "yaml" | "yml" => found.push(Shown {
                origin: format!("{name}:{}", at + 2),
                text: block.iter().flat_map(|(_, line)| [*line, "\n"]).collect(),
                fragment: words.contains(&"fragment"),
            }),
            "sh" | "console" => {
                let mut lines = block.into_iter();
                while let Some((at, line)) = lines.next() {
                    let Some((_, end)) = line.split_once("<<") else { continue };
                    let end = end.trim_start_matches('-').trim_matches(['\'', '"', ' ']);
                    let document = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != end);
                    let text = document.flat_map(|line| [line, "\n"]).collect();
                    found.push(Shown { origin: format!("{name}:{}", at + 2), text, fragment: false });
                }
            }
            _ => {}
        }
    }
    found
}

/// `TrafficPolicy` -> `trafficpolicies`
fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) if !lower.ends_with("ay") && !lower.ends_with("ey") => format!("{stem}ies"),
        _ if lower.ends_with('s') || lower.ends_with("sh") => format!("{lower}es"),
        _ => format!("{lower}s"),
    }
}

/// A double with the CustomResourceDefinitions of `deploy/` and of Gateway API, and a client of it.
struct Cluster {
    _server: ApiServer,
    _directory: TempDir,
    client: kube::Client,
}

impl Cluster {
    async fn start() -> Self {
        let server = ApiServer::start().unwrap();
        for (_, text) in sluice::api::manifests().unwrap() {
            let [definition] = kubectl::read(&text).unwrap().try_into().unwrap();
            server.apply("customresourcedefinitions", definition);
        }
        for resource in ["httproutes", "grpcroutes", "referencegrants", "xmeshes"] {
            let path = root().join("tests/schemas").join(format!("{resource}.json"));
            let definition = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            server.apply("customresourcedefinitions", definition);
        }
        let directory = TempDir::new().unwrap();
        let file = server.kubeconfig(directory.path(), "token").unwrap();
        let file = kube::config::Kubeconfig::read_from(file).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await;
        let client = kube::Client::try_from(config.unwrap()).unwrap();
        Self { _server: server, _directory: directory, client }
    }

    /// As `kubectl apply` does with an object that is not there yet.
    async fn apply(&self, object: &Value) -> Result<(), String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        let prefix = if version.contains('/') { "apis" } else { "api" };
        let namespace = match text("/metadata/namespace") {
            "" => String::new(),
            namespace => format!("namespaces/{namespace}/"),
        };
        let path = format!(
            "/{prefix}/{version}/{namespace}{}?fieldManager=kubectl-create&fieldValidation=Strict",
            plural(kind)
        );
        let request = http::Request::post(path).body(object.to_string().into_bytes()).unwrap();
        self.client.request::<Value>(request).await.map(drop).map_err(|error| error.to_string())
    }
}

/// Kinds that the API server does not know: kustomize's own, and those of operators that are somebody else's.
fn is_foreign(object: &Value) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    version.starts_with("kustomize.config.k8s.io/")
        || version.starts_with("monitoring.coreos.com/")
        || version.starts_with("argoproj.io/")
        || version.starts_with("flagger.app/")
        || version.starts_with("krew.googlecontainertools.github.com/")
}

#[tokio::test]
async fn what_is_shown_can_be_applied_with_kubectl() {
    let cluster = Cluster::start().await;
    let mut paths = Vec::new();
    files(&root(), &mut paths);
    let (mut applied, mut wrong) = (BTreeMap::<String, usize>::new(), Vec::new());
    for Shown { origin, text, fragment } in paths.iter().flat_map(|path| shown_in(path)) {
        let objects = match kubectl::read(&text) {
            Ok(objects) => objects,
            Err(error) => {
                wrong.push(format!("{origin}: {error}"));
                continue;
            }
        };
        for object in objects.iter().filter(|object| !fragment && !is_foreign(object)) {
            let kind = object["kind"].as_str().unwrap_or_default();
            match cluster.apply(object).await {
                Ok(()) => *applied.entry(kind.to_owned()).or_default() += 1,
                // The examples and the recipes are about the same objects.
                Err(error) if error.contains("AlreadyExists") => {}
                Err(error) => wrong.push(format!("{origin}: {kind} {}: {error}", object["metadata"]["name"])),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for kind in ["TrafficPolicy", "TrafficLane", "HTTPRoute", "DaemonSet", "ClusterRole", "EndpointSlice"] {
        assert!(applied.contains_key(kind), "no {kind} is shown: {applied:?}");
    }
}

#[tokio::test]
async fn what_kubectl_would_refuse_is_refused() {
    let cluster = Cluster::start().await;
    let policy = |spec: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  \
             targetRefs: [{{name: orders}}]\n  {spec}\n"
        )
    };
    for (spec, wrong) in [
        ("loadBalancer: {warmup: {}}", "Additional properties are not allowed ('warmup' was unexpected)"),
        ("mode: off", "/spec/mode"),
        ("retry: {attempts: '3'}", "/spec/retry/attempts"),
        ("concurrency: {}", "needed unless adaptive is set"),
    ] {
        let [object] = kubectl::read(&policy(spec)).unwrap().try_into().unwrap();
        let error = cluster.apply(&object).await.unwrap_err();
        assert!(error.contains(wrong), "{spec}: {error}");
    }
    for (spec, wrong) in [
        ("fallbacks: [{name: a, on: [Timeout], type: Stale}]", "the key true is no text"),
        ("mode: Observe\n  mode: Enforce", "\"mode\" is there already"),
    ] {
        let error = kubectl::read(&policy(spec)).unwrap_err().to_string();
        assert!(error.contains(wrong), "{spec}: {error}");
    }
    let [service] = kubectl::read("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {port: 80}\n")
        .unwrap()
        .try_into()
        .unwrap();
    let error = cluster.apply(&service).await.unwrap_err();
    assert!(error.contains("spec.port: unknown"), "{error}");
    let [unknown] = kubectl::read("apiVersion: sluice.dev/v1\nkind: Gate\nmetadata: {name: a}\n")
        .unwrap()
        .try_into()
        .unwrap();
    let error = cluster.apply(&unknown).await.unwrap_err();
    assert!(error.contains("no matches for kind \"Gate\""), "{error}");
}

#[test]
fn blocks_are_found_in_pages() {
    let page = "# a\n```yaml\na: 1\n```\n1. x\n   ```yaml fragment\n   b:\n     c: 2\n   ```\n\
                ```sh\nkubectl apply -f - <<'EOF'\nd: 3\nEOF\necho\n```\n```text\ne: 4\n```\n";
    let found: Vec<_> = blocks("page", page)
        .into_iter()
        .map(|Shown { origin, text, fragment }| (origin, text, fragment))
        .collect();
    assert_eq!(
        found,
        [
            ("page:3".to_owned(), "a: 1\n".to_owned(), false),
            ("page:7".to_owned(), "b:\n  c: 2\n".to_owned(), true),
            ("page:12".to_owned(), "d: 3\n".to_owned(), false),
        ]
    );
}

/// Field names and values that may be chosen: what must be put in quotes is not found by who forgets them.
fn words_of(schema: &Value, path: &str, found: &mut Vec<(String, String)>) {
    let mut word = |text: &Value| {
        if let Some(text) = text.as_str() {
            found.push((path.to_owned(), text.to_owned()));
        }
    };
    schema["enum"].as_array().into_iter().flatten().for_each(&mut word);
    match &schema["default"] {
        Value::Array(items) => items.iter().for_each(&mut word),
        default => word(default),
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        found.push((path.clone(), name.clone()));
        words_of(schema, &path, found);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            words_of(&schema[part], path, found);
        }
    }
}

#[test]
fn no_word_of_ours_is_something_else_in_yaml_1_1() {
    let mut words = Vec::new();
    for (_, text) in sluice::api::manifests().unwrap() {
        let [definition] = kubectl::read(&text).unwrap().try_into().unwrap();
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            words_of(&version["schema"]["openAPIV3Schema"], &kind, &mut words);
        }
    }
    assert!(words.len() > 200, "{}", words.len());
    // The empty word is the API group of Services, and a default.
    words.retain(|(_, word)| !word.is_empty());
    // In a manifest the values of flags are those of environment variables.
    let flags = crate::configuration::flags();
    for flag in flags.get_arguments() {
        let name = format!("--{}", flag.get_long().unwrap());
        let values = flag.get_possible_values();
        words.extend(values.iter().map(|value| (name.clone(), value.get_name().to_owned())));
        let defaults = flag.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
        // Numbers have to be in quotes in every manifest, whoever's variable it is.
        let defaults = defaults.filter(|value| value.parse::<f64>().is_err());
        words.extend(defaults.map(|value| (name.clone(), value)));
    }
    let wrong: Vec<_> = words.iter().filter(|(_, word)| is_not_text(word)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
