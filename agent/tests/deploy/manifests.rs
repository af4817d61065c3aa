//! The manifests, and what they are checked against.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sluice::api;
use sluice_tests::{
    api_server::strict::{builtin, complaints as complaints_about},
    kubectl,
};

use crate::strict;

/// One document of one file.
pub(crate) struct Manifest {
    pub(crate) origin: String,
    pub(crate) object: Value,
}

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// All that lie in `deploy/`, and, where somebody has rendered them, those.
pub(crate) fn all() -> Vec<Manifest> {
    let mut manifests = read(&deploy());
    if let Some(rendered) = std::env::var_os("SLUICE_RENDERED") {
        let rendered = read(Path::new(&rendered));
        assert!(!rendered.is_empty(), "nothing was rendered");
        manifests.extend(rendered);
    }
    manifests
}

/// The only one of that kind in the base.
pub(crate) fn base(kind: &str) -> Value {
    let mut found: Vec<_> =
        read(&deploy().join("base")).into_iter().filter(|manifest| manifest.object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}s in deploy/base");
    found.remove(0).object
}

fn read(directory: &Path) -> Vec<Manifest> {
    let mut manifests = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let patches = patches(directory);
    for path in entries {
        if path.join("Chart.yaml").is_file() {
            // Templates, and no manifests before Helm has rendered them.
        } else if path.is_dir() {
            manifests.extend(read(&path));
        } else if patches.contains(&path) {
            // A part of an object. What comes of it is seen when it is rendered.
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let documents =
                kubectl::read(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let origin = |object: &Value| {
                format!("{}: {} {}", path.display(), object["kind"], object["metadata"]["name"])
            };
            manifests
                .extend(documents.into_iter().map(|object| Manifest { origin: origin(&object), object }));
        }
    }
    manifests
}

/// The files that a kustomization puts on top of objects.
pub(crate) fn patches(directory: &Path) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(directory.join("kustomization.yaml")) else { return Vec::new() };
    let kustomization: Value = serde_saphyr::from_str(&text).unwrap();
    let patches = kustomization["patches"].as_array().cloned().unwrap_or_default();
    patches.iter().filter_map(|patch| Some(directory.join(patch["path"].as_str()?))).collect()
}

/// What the API server would complain about: unknown and missing fields, wrong types.
fn complaints(object: &Value) -> Vec<String> {
    if let Some(complaints) = builtin(object) {
        return complaints;
    }
    let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    match (version.unwrap_or_default(), kind.unwrap_or_default()) {
        ("monitoring.coreos.com/v1", "PodMonitor") => complaints_about::<strict::PodMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => complaints_about::<strict::PrometheusRule>(object),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") => {
            complaints_about::<strict::Kustomization>(object)
        }
        ("krew.googlecontainertools.github.com/v1alpha2", "Plugin") => {
            complaints_about::<strict::Plugin>(object)
        }
        (api::API_VERSION, "TrafficPolicy") => own::<api::TrafficPolicy>(object),
        (api::API_VERSION, "TrafficLane") => own::<api::TrafficLane>(object),
        (version, kind) => vec![format!("nobody here knows {version} {kind}")],
    }
}

/// Of the agent's own kinds.
fn own<K: api::Kind>(object: &Value) -> Vec<String> {
    match api::read::<K>(object) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_api_server_takes_every_manifest() {
    let manifests = all();
    assert!(manifests.len() > 20, "only {} were found", manifests.len());
    let wrong: Vec<String> = manifests
        .iter()
        .flat_map(|manifest| {
            let complaints = complaints(&manifest.object).into_iter();
            complaints.map(|complaint| format!("{}: {complaint}", manifest.origin))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_makes_no_sense_is_complained_about() {
    let mut daemon_set = base("DaemonSet");
    assert_eq!(complaints(&daemon_set), [""; 0]);
    let good = daemon_set.clone();
    daemon_set["spec"]["template"]["spec"]["containers"][0]["resource"] = "x".into();
    assert_eq!(complaints(&daemon_set), ["spec.template.spec.containers[0].resource: unknown"]);
    daemon_set = good.clone();
    daemon_set["spec"].as_object_mut().unwrap().remove("selector");
    assert_eq!(complaints(&daemon_set), ["spec.selector: missing"]);
    daemon_set = good;
    daemon_set["spec"]["template"]["spec"]["hostPID"] = "yes".into();
    assert_eq!(complaints(&daemon_set).len(), 1);
    let lane = serde_json::json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane", "metadata": { "name": "a" }, "spec": { "tga": "gray" },
    });
    assert!(!complaints(&lane).is_empty());
}
