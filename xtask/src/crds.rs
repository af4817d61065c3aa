//! `cargo xtask crds`: the CustomResourceDefinitions in `deploy/base/crds`, made from the agent's Rust types.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::generated::{Args, Generated};
use crate::{build, chart, shell, workspace};

const COMMITTED: &str = "deploy/base/crds";

pub(crate) fn run(args: Args) -> Result<()> {
    if args.check {
        return check();
    }
    made()?.write()?;
    // It contains them.
    chart::write()
}

/// Fails if the definitions that are committed are not those that the Rust types make.
pub(crate) fn check() -> Result<()> {
    made()?.check()
}

fn made() -> Result<Generated> {
    let made = workspace::target_dir()?.join("crds");
    if made.exists() {
        fs::remove_dir_all(&made).with_context(|| format!("cannot remove {}", made.display()))?;
    }
    shell::run(build::agent_command()?.arg("crds").arg(&made))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&made).with_context(|| format!("cannot read {}", made.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", made.display()))?;
        let text = fs::read_to_string(entry.path())
            .with_context(|| format!("cannot read {}", entry.path().display()))?;
        files.push((Path::new(COMMITTED).join(entry.file_name()), text));
    }
    files.sort();
    Ok(Generated { command: "cargo xtask crds", files, stale: Vec::new() })
}
