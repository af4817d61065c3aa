//! The manifests as kustomize and Helm render them: what is sent to the API server, checked like the files that it is made
//! from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::shell::{self, say};
use crate::{chart, helm, setup, workspace};

/// Renders every kustomization below `deploy/` and the chart, and has the results checked by the agent's tests.
pub(crate) fn check() -> Result<()> {
    let renderer = setup::kustomize()?;
    let rendered = workspace::target_dir()?.join("rendered");
    shell::remove_dir(&rendered)?;
    std::fs::create_dir_all(&rendered)?;
    let deploy = workspace::root().join("deploy");
    let directories = kustomizations(&deploy)?;
    ensure!(!directories.is_empty(), "no kustomization in {}", deploy.display());
    for directory in directories {
        let said = rendered_by(&renderer, &directory)?;
        let name = directory.strip_prefix(&deploy)?.to_string_lossy().replace('/', "-");
        std::fs::write(rendered.join(format!("deploy-{name}.yaml")), said)?;
    }
    match helm::programs() {
        Ok(_) => chart::check_rendered(&rendered)?,
        Err(missing) => say(&format!("the chart is left out: {missing:#}")),
    }
    let mut cargo = workspace::whole("test");
    cargo.arg("--test=deploy").env("SLUICE_RENDERED", rendered);
    shell::run(&mut cargo)
}

/// What `kubectl apply -k deploy/` sends, in a file; `None` where there is nothing that renders it.
pub(crate) fn default() -> Result<Option<PathBuf>> {
    let Ok(renderer) = setup::kustomize() else { return Ok(None) };
    let file = workspace::target_dir()?.join("rendered-default.yaml");
    std::fs::write(&file, rendered_by(&renderer, &workspace::root().join("deploy"))?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Some(file))
}

fn rendered_by(renderer: &[String], directory: &Path) -> Result<String> {
    shell::read(Command::new(&renderer[0]).args(&renderer[1..]).arg(directory))
        .with_context(|| format!("{} cannot be rendered", directory.display()))
}

/// The directories from here on down that have one.
fn kustomizations(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if directory.join("kustomization.yaml").is_file() {
        found.push(directory.to_owned());
    }
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(kustomizations(&entry.path())?);
        }
    }
    found.sort();
    Ok(found)
}
