//! Texts that go with a release: the licences of what is in the binary, the notes, the manifest of the kubectl plugin.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::sbom::Materials;
use crate::arch::Arch;

/// The licence texts of all crates in the binary, each text once. Their licences ask for it wherever the binary goes.
pub(super) fn licences(materials: &Materials) -> Result<String> {
    let mut by_text = BTreeMap::<String, Vec<String>>::new();
    let mut without = Vec::new();
    for ((name, version), one) in materials.foreign() {
        let texts = licence_files(&one.source)?;
        if texts.is_empty() {
            without.push(format!("{name} {version} ({})", one.licence));
        }
        for text in texts {
            by_text.entry(text).or_default().push(format!("{name} {version} ({})", one.licence));
        }
    }
    let mut made =
        "Sluice contains the following crates. Their licences follow, each text once.\n".to_owned();
    if !without.is_empty() {
        let _ = write!(made, "\nWithout a licence file in their package: {}.\n", without.join(", "));
    }
    for (text, crates) in by_text {
        let _ = write!(made, "\n{}\n{}\n\n{}\n", "=".repeat(80), crates.join("\n"), text.trim_end());
    }
    Ok(made)
}

fn licence_files(source: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(source)
        .with_context(|| format!("the source of a crate is not where cargo says: {}", source.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let is_licence = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"].iter().any(|word| name.starts_with(word))
    };
    let mut texts = Vec::new();
    for path in paths.iter().filter(|path| is_licence(path) && path.is_file()) {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        texts.push(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
    }
    Ok(texts)
}

/// The section of the changelog about this version; that of what is not released yet if `draft`.
pub(super) fn notes(changelog: &str, version: &str, draft: bool) -> Result<String> {
    let section = |wanted: &str| {
        let mut sections = changelog.split("\n## ").skip(1);
        sections.find(|section| section.split_whitespace().next() == Some(wanted))
    };
    let found = match section(version) {
        Some(section) => section,
        None if draft => section("Unreleased").context("CHANGELOG.md has no section `Unreleased`")?,
        None => bail!(
            "CHANGELOG.md has no section for {version}: give `Unreleased` its number and date, or use --draft"
        ),
    };
    Ok(format!("# Sluice {}\n", found.trim_end()))
}

/// A package of the kubectl plugin.
pub(super) struct Package {
    pub(super) arch: Arch,
    pub(super) file: String,
    pub(super) sha256: String,
}

/// The manifest by which krew installs the plugin. <https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/>
pub(super) fn krew(version: &str, url: &str, packages: &[Package]) -> String {
    let mut text = format!(
        "# Made by `cargo xtask release`.
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: sluice
spec:
  version: v{version}
  homepage: {url}
  shortDescription: Ask the agents of Sluice
  description: |
    Shows the health of the agents on all nodes, explains where a request goes
    and why, sends test requests as a pod, and checks policies.
  platforms:
"
    );
    for Package { arch, file, sha256 } in packages {
        let _ = write!(
            text,
            "    - selector:
        matchLabels:
          os: linux
          arch: {}
      uri: {url}/{file}
      sha256: {sha256}
      bin: kubectl-sluice
      files:
        - from: kubectl-sluice
          to: .
        - from: LICENSE
          to: .
",
            arch.oci()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\nAbout.\n\n## Unreleased\n\n- c\n\n## 0.2.0 (2026-12-01)\n\n### Added\n\n- b\n\n## 0.1.0 (2026-01-01)\n\n- a\n";

    #[test]
    fn notes_are_the_section_of_the_version() {
        let of = |version, draft| notes(CHANGELOG, version, draft);
        assert_eq!(of("0.2.0", false).expect("there"), "# Sluice 0.2.0 (2026-12-01)\n\n### Added\n\n- b\n");
        assert_eq!(of("0.1.0", true).expect("there"), "# Sluice 0.1.0 (2026-01-01)\n\n- a\n");
        assert_eq!(of("0.3.0", true).expect("a draft"), "# Sluice Unreleased\n\n- c\n");
        assert!(of("0.3.0", false).is_err() && of("0.1", false).is_err());
    }

    #[test]
    fn krew_gets_one_platform_for_each_package() {
        let package = |arch, file: &str| Package { arch, file: file.to_owned(), sha256: "ab".repeat(32) };
        let packages = [package(Arch::X86_64, "a.tar.gz"), package(Arch::Aarch64, "b.tar.gz")];
        let text = krew("0.1.0", "https://example.com/releases", &packages);
        let read: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(read["spec"]["version"], "v0.1.0");
        let platforms = read["spec"]["platforms"].as_array().expect("platforms");
        assert_eq!(platforms.len(), 2);
        assert_eq!(platforms[1]["selector"]["matchLabels"]["arch"], "arm64");
        assert_eq!(platforms[1]["uri"], "https://example.com/releases/b.tar.gz");
        for platform in platforms {
            assert_eq!(platform["sha256"].as_str().map(str::len), Some(64));
            assert_eq!(platform["bin"], "kubectl-sluice");
        }
    }
}
