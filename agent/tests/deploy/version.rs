//! The version is said in one place, the workspace's Cargo.toml. Wherever else it has to stand it is the same.

use std::fs;

use serde_json::Value;

use crate::manifests::deploy;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn read(file: &str) -> String {
    let path = deploy().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn kustomize_and_helm_take_the_image_of_this_version() {
    for file in ["base/kustomization.yaml", "overlays/private-registry/kustomization.yaml"] {
        let kustomization: Value = serde_saphyr::from_str(&read(file)).unwrap();
        assert_eq!(kustomization["images"][0]["newTag"], VERSION, "{file}");
    }
    let chart: Value = serde_saphyr::from_str(&read("chart/sluice/Chart.yaml")).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&VERSION.into(), &VERSION.into()));
}

#[test]
fn krew_installs_this_version_under_the_name_that_kubectl_looks_for() {
    let plugin: Value = serde_saphyr::from_str(&read("krew/sluice.yaml")).unwrap();
    let spec = &plugin["spec"];
    assert_eq!(
        (&plugin["metadata"]["name"], &spec["version"]),
        (&"sluice".into(), &format!("v{VERSION}").into())
    );
    // krew's own rule.
    assert!(spec["shortDescription"].as_str().is_some_and(|text| text.len() <= 50), "{spec:#}");
    let platforms = spec["platforms"].as_array().unwrap();
    for (platform, arch) in platforms.iter().zip(["amd64", "arm64"]) {
        assert_eq!(platform["selector"]["matchLabels"], serde_json::json!({"os": "linux", "arch": arch}));
        // What the release fills in.
        let upper = arch.to_uppercase();
        assert_eq!(platform["uri"], format!("${{URI_{upper}}}"));
        assert_eq!(platform["sha256"], format!("${{SHA256_{upper}}}"));
        assert_eq!(platform["bin"], "kubectl-sluice");
    }
    assert_eq!(platforms.len(), 2);
}

/// The versions that a text gives the image, a chart's package or an archive of ours: `sluice:1.2.3`, `sluice-1.2.3.tgz`.
fn versions(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, name) in text.match_indices("sluice") {
        let Some(rest) = text[at + name.len()..].strip_prefix([':', '-']) else { continue };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let version = rest[..end].trim_end_matches('.');
        if version.split('.').count() == 3 && version.split('.').all(|part| !part.is_empty()) {
            found.push(version);
        }
    }
    found
}

#[test]
fn documentation_names_this_version() {
    let mut seen = 0;
    for file in ["README.md", "Dockerfile", "chart/sluice/README.md", "../README.md", "../RELEASING.md"] {
        let Ok(text) = fs::read_to_string(deploy().join(file)) else { continue };
        for version in versions(&text) {
            assert_eq!(version, VERSION, "{file}");
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen}");
    assert_eq!(versions("sluice:1.2.3 sluice-0.1.0.tgz, sluice:1.2.3."), ["1.2.3", "0.1.0", "1.2.3"]);
    assert!(versions("sluice: 1 sluice-system sluice-1.2 sluice:1.").is_empty());
}

#[test]
fn the_changelog_knows_what_is_released() {
    let changelog = read("../CHANGELOG.md");
    let headings: Vec<&str> = changelog.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings.first(), Some(&"Unreleased"), "{headings:?}");
    // `## 0.1.0 (2026-01-31)`, newest first; none of them newer than this version.
    let number = |heading: &str| -> Vec<u32> {
        let version = heading.split(' ').next().unwrap_or_default();
        version.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{heading}"))).collect()
    };
    let released: Vec<Vec<u32>> = headings[1..].iter().map(|heading| number(heading)).collect();
    assert!(released.is_sorted_by(|newer, older| newer > older), "{headings:?}");
    assert!(released.first().is_none_or(|newest| *newest <= number(VERSION)), "{headings:?}");
}
