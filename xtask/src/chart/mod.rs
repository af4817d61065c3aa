//! `cargo xtask chart`: the Helm chart in `deploy/chart/sluice`, made from the manifests that kustomize reads.
//!
//! `deploy/base` and `deploy/overlays/monitoring` are the source: their files become templates by replacing and adding
//! single nodes ([`templates`]), their settings become the defaults of the values ([`values`]), and both become the schema
//! and the README ([`tell`]). Written by hand are only the helpers, the notes and the sets of values in `ci/`.
//!
//! [`rendered`] has Helm render the chart, and compares the result with what kustomize makes of the same files.

mod compare;
mod node;
mod rendered;
mod tell;
mod templates;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::generated::{Args, Generated};
use crate::{archive, build, shell, workspace};

pub(crate) use rendered::{check as check_rendered, render};

/// Where the chart is.
pub(crate) const CHART: &str = "deploy/chart/sluice";

/// What is written by hand, as paths in the chart.
const BY_HAND: [&str; 3] = [".helmignore", "templates/NOTES.txt", "templates/_helpers.tpl"];

/// Sets of values to render the chart with, for [`rendered`].
const SETS: &str = "ci/";

pub(crate) fn run(args: Args) -> Result<()> {
    if args.check { check() } else { write() }
}

/// Writes the chart's files.
pub(crate) fn write() -> Result<()> {
    made()?.write()
}

/// Fails if the chart that is committed is not what it would be made of.
pub(crate) fn check() -> Result<()> {
    made()?.check()
}

fn made() -> Result<Generated> {
    let files = files()?;
    let here = Path::new(CHART);
    let stale = unknown(&workspace::root().join(CHART), &files)?;
    Ok(Generated {
        command: "cargo xtask chart",
        files: files.into_iter().map(|(path, text)| (here.join(path), text)).collect(),
        stale: stale.into_iter().map(|path| here.join(path)).collect(),
    })
}

/// All files that are made, by their path in the chart.
fn files() -> Result<BTreeMap<String, String>> {
    let settings = settings()?;
    let source = values::Source::read(&workspace::root().join("deploy"))?;
    let values = values::all(&source)?;
    let mut files = templates::all(&source)?;
    files.insert("Chart.yaml".to_owned(), tell::chart_yaml());
    files.insert("values.yaml".to_owned(), tell::values_yaml(&source, &values));
    files.insert("values.schema.json".to_owned(), tell::schema(&values, &settings)?);
    files.insert("README.md".to_owned(), tell::readme(&source, &values));
    Ok(files)
}

/// One flag of the agent, as `sluice settings` tells it.
#[derive(Debug)]
struct Setting {
    variable: String,
    values: Vec<String>,
    help: String,
}

fn settings() -> Result<Vec<Setting>> {
    let text = shell::read(build::agent_command()?.arg("settings"))?;
    let flags: Vec<serde_json::Value> =
        serde_json::from_str(&text).context("`sluice settings` printed no JSON")?;
    let setting = |flag: &serde_json::Value| {
        let values = flag["values"].as_array().into_iter().flatten();
        Some(Setting {
            variable: flag["variable"].as_str()?.to_owned(),
            values: values.filter_map(|value| value.as_str().map(str::to_owned)).collect(),
            help: flag["help"].as_str()?.to_owned(),
        })
    };
    flags.iter().map(setting).collect::<Option<_>>().context("`sluice settings` printed something else")
}

/// Files of the chart that are neither made nor written by hand.
fn unknown(root: &Path, files: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    if root.is_dir() {
        list(root, &mut paths)?;
    }
    let mut unknown = Vec::new();
    for path in paths {
        let path = path.strip_prefix(root)?.to_owned();
        let text = path.to_string_lossy();
        if !files.contains_key(&*text) && !BY_HAND.contains(&&*text) && !text.starts_with(SETS) {
            unknown.push(path);
        }
    }
    Ok(unknown)
}

/// The chart as a package: what `helm package` would make, without the time at which it was made.
pub(crate) fn packed() -> Result<Vec<u8>> {
    let root = workspace::root().join(CHART);
    let mut paths = Vec::new();
    list(&root, &mut paths)?;
    let mut files = Vec::new();
    for path in paths {
        let inner = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        // As .helmignore says.
        if !inner.starts_with(SETS) {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((format!("sluice/{inner}"), content));
        }
    }
    let files = files.iter().map(|(path, content)| (path.as_str(), content.as_slice(), 0o644));
    archive::gzip(&archive::tar(files)?)
}

/// All files below a directory, sorted.
pub(crate) fn list(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}
