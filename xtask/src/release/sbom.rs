//! The bill of materials: every crate whose code is in the binary, or was run to build it, in CycloneDX.
//! <https://cyclonedx.org/docs/1.6/json/>
//!
//! The crates are those that cargo compiles for the agent and for the eBPF programs inside it. Those that only run while
//! it is built (build scripts, procedural macros) have the scope `excluded`, which means just that. The same Cargo.lock
//! gives the same text: no time, and a serial number that is made from the content.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::sha256;
use crate::{shell, workspace};

/// Name and version.
type Id = (String, String);

/// A crate from the lock file, with what its package says.
#[derive(Debug, Default, Clone)]
pub(super) struct Crate {
    /// An SPDX expression.
    pub(super) licence: String,
    /// The directory of its source.
    pub(super) source: std::path::PathBuf,
    checksum: Option<String>,
    repository: Option<String>,
}

/// What is built into the agent.
#[derive(Debug)]
pub(super) struct Materials {
    /// In the binary, or in the eBPF programs in it.
    pub(super) linked: BTreeSet<Id>,
    /// These and those that are only run while it is built.
    edges: BTreeMap<Id, BTreeSet<Id>>,
    crates: BTreeMap<Id, Crate>,
    compiler: String,
}

impl Materials {
    pub(super) fn collect() -> Result<Self> {
        let metadata = shell::read(workspace::cargo().args(["metadata", "--locked", "--format-version=1"]))?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let lock = std::fs::read_to_string(workspace::root().join("Cargo.lock"))?;
        let mut all = crates(&metadata, &checksums(&lock))?;
        let tree = |package: &str, rest: &[&str]| -> Result<BTreeMap<Id, BTreeSet<Id>>> {
            let mut cargo = workspace::cargo();
            cargo
                .args(["tree", "--locked", "--prefix=depth", "--format= {p}", "--package", package])
                .args(rest);
            edges(&shell::read(&mut cargo)?)
        };
        let mut linked = BTreeSet::new();
        let mut edges = BTreeMap::<Id, BTreeSet<Id>>::new();
        // On both architectures: where they differ the union is what is said.
        for target in ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"] {
            linked.extend(tree("sluice", &["--edges=normal,no-proc-macro", "--target", target])?.into_keys());
            for (id, needs) in tree("sluice", &["--edges=normal,build", "--target", target])? {
                edges.entry(id).or_default().extend(needs);
            }
        }
        let programs = ["--features=programs", "--target=all"];
        linked.extend(
            tree("sluice-ebpf", &[&["--edges=normal,no-proc-macro"], &programs[..]].concat())?.into_keys(),
        );
        for (id, needs) in tree("sluice-ebpf", &[&["--edges=normal,build"], &programs[..]].concat())? {
            edges.entry(id).or_default().extend(needs);
        }
        all.retain(|id, _| edges.contains_key(id));
        if let Some((name, version)) = edges.keys().find(|id| !all.contains_key(*id)) {
            anyhow::bail!("cargo names no package {name} {version}");
        }
        let compiler = shell::read(workspace::command("rustc").arg("--version"))?;
        let compiler = compiler.split_whitespace().nth(1).context("rustc says no version")?.to_owned();
        Ok(Self { linked, edges, crates: all, compiler })
    }

    /// The crates in the binary that come from elsewhere.
    pub(super) fn foreign(&self) -> impl Iterator<Item = (&Id, &Crate)> {
        self.crates.iter().filter(|(id, one)| one.checksum.is_some() && self.linked.contains(*id))
    }

    /// The bill as CycloneDX JSON.
    pub(super) fn cyclonedx(&self) -> Result<String> {
        let version = workspace::version();
        let own = |id: &Id| self.crates[id].checksum.is_none();
        let product = ("sluice".to_owned(), version.to_owned());
        let mut components: Vec<Value> = self
            .crates
            .iter()
            .filter(|(id, _)| **id != product)
            .map(|(id, one)| component(id, one, self.linked.contains(id)))
            .collect();
        components.push(json!({
            "type": "library",
            "bom-ref": "rust-std",
            "name": "rust-std",
            "version": self.compiler,
            "description": "Rust's standard library, with the musl libc that it brings along",
            "scope": "required",
            "licenses": [{ "expression": "(MIT OR Apache-2.0) AND MIT" }],
        }));
        let dependencies: Vec<Value> = self
            .edges
            .iter()
            .map(|(id, needs)| {
                let needs: Vec<String> = needs.iter().map(reference).collect();
                json!({ "ref": reference(id), "dependsOn": needs })
            })
            .collect();
        ensure!(own(&product), "sluice is a crate from elsewhere");
        let mut bill = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "tools": { "components": [{ "type": "application", "name": "cargo xtask release", "version": version }] },
                "component": {
                    "type": "application",
                    "bom-ref": reference(&product),
                    "name": "sluice",
                    "version": version,
                    "licenses": [{ "expression": self.crates[&product].licence }],
                },
            },
            "components": components,
            "dependencies": dependencies,
        });
        bill["serialNumber"] = json!(serial(&serde_json::to_vec(&bill)?));
        Ok(serde_json::to_string_pretty(&bill)? + "\n")
    }
}

/// A UUID of the content's digest (version 8 of RFC 9562: of one's own making).
fn serial(content: &[u8]) -> String {
    let digits = sha256(content);
    format!(
        "urn:uuid:{}-{}-8{}-a{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    )
}

/// What names a component within the bill.
fn reference((name, version): &Id) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

fn component(id: &Id, one: &Crate, linked: bool) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(id),
        "name": id.0,
        "version": id.1,
        "scope": if linked { "required" } else { "excluded" },
        // As it was written before SPDX had expressions: `MIT/Apache-2.0`.
        "licenses": [{ "expression": one.licence.replace('/', " OR ") }],
    });
    if let Some(checksum) = &one.checksum {
        component["purl"] = json!(reference(id));
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = &one.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

/// From `cargo metadata`.
fn crates(metadata: &Value, checksums: &BTreeMap<Id, String>) -> Result<BTreeMap<Id, Crate>> {
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().context("cargo names no packages")? {
        let text = |field: &str| package[field].as_str().map(str::to_owned);
        let id = (text("name").context("a package without a name")?, text("version").unwrap_or_default());
        let manifest = std::path::PathBuf::from(text("manifest_path").unwrap_or_default());
        let one = Crate {
            licence: text("license").unwrap_or_else(|| "NONE".to_owned()),
            source: manifest.parent().context("a manifest without a directory")?.to_owned(),
            checksum: checksums.get(&id).cloned(),
            repository: text("repository"),
        };
        found.insert(id, one);
    }
    Ok(found)
}

/// From Cargo.lock: what the registry says of each crate's archive.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let of = |block: &str, field: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(" = \""));
        line.and_then(|line| line.strip_suffix('"')).map(str::to_owned)
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| Some(((of(block, "name")?, of(block, "version")?), of(block, "checksum")?)))
        .collect()
}

/// From `cargo tree --prefix=depth --format=' {p}'`: who needs whom. Repeated subtrees are left out there.
fn edges(tree: &str) -> Result<BTreeMap<Id, BTreeSet<Id>>> {
    let mut edges = BTreeMap::<Id, BTreeSet<Id>>::new();
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let depth: usize =
            words.next().and_then(|depth| depth.parse().ok()).with_context(|| line.to_owned())?;
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            anyhow::bail!("cargo tree says {line:?}")
        };
        let id = (name.to_owned(), version.trim_start_matches('v').to_owned());
        above.truncate(depth);
        if let Some(parent) = above.last() {
            edges.entry(parent.clone()).or_default().insert(id.clone());
        }
        edges.entry(id.clone()).or_default();
        above.push(id);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn edges_are_read_from_the_tree() {
        let tree = "0 a v1.0.0 (/x)\n1 b v1.0.0\n2 c v1.0.0\n1 d v1.0.0 (proc-macro)\n2 b v1.0.0 (*)\n";
        let read = edges(tree).expect("a tree");
        let needs = |name: &str| read[&id(name)].iter().map(|id| id.0.as_str()).collect::<Vec<_>>();
        assert_eq!((needs("a"), needs("b"), needs("d")), (vec!["b", "d"], vec!["c"], vec!["b"]));
        assert!(needs("c").is_empty() && read.len() == 4);
    }

    #[test]
    fn checksums_are_read_from_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"ab\"\n\n\
                    [[package]]\nname = \"own\"\nversion = \"1.0.0\"\ndependencies = [\n \"a\",\n]\n";
        assert_eq!(checksums(lock), BTreeMap::from([(id("a"), "ab".to_owned())]));
    }

    /// What the schema of CycloneDX 1.6 requires, and what others look things up by.
    #[test]
    fn the_bill_of_this_workspace_is_whole() {
        let materials = Materials::collect().expect("collected");
        let bill: Value = serde_json::from_str(&materials.cyclonedx().expect("made")).expect("JSON");
        assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.6")));
        let serial = bill["serialNumber"].as_str().unwrap_or_default();
        assert!(serial.starts_with("urn:uuid:") && serial.len() == 45, "{serial}");
        let components = bill["components"].as_array().expect("components");
        let mut references =
            BTreeSet::from([bill["metadata"]["component"]["bom-ref"].as_str().expect("a reference")]);
        for component in components {
            assert_eq!(component["type"], "library", "{component}");
            assert!(component["name"].is_string() && component["version"].is_string(), "{component}");
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            let own = component["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("sluice") || name == "rust-std");
            let checksum = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert!(own || checksum.len() == 64, "{component}");
            assert!(
                references.insert(component["bom-ref"].as_str().expect("a reference")),
                "twice: {component}"
            );
        }
        for dependency in bill["dependencies"].as_array().expect("dependencies") {
            let needs = dependency["dependsOn"].as_array().expect("a list").iter();
            for reference in needs.chain([&dependency["ref"]]) {
                assert!(
                    references.contains(reference.as_str().expect("text")),
                    "{reference} is no component"
                );
            }
        }
        let scope = |name: &str| {
            components
                .iter()
                .find(|one| one["name"] == name)
                .map(|one| one["scope"].clone())
                .unwrap_or_default()
        };
        // In the binary; in the programs in it; run by the compiler.
        assert_eq!(
            [scope("tokio"), scope("aya-ebpf"), scope("serde_derive")],
            ["required", "required", "excluded"]
        );
        assert_eq!(scope("proptest"), Value::Null, "only tests need it");
    }
}
