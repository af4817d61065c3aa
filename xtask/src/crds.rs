//! `cargo xtask crds`: the CustomResourceDefinitions in `deploy/base/crds`, made from the agent's Rust types.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::shell;
use crate::{chart, workspace};

const COMMITTED: &str = "deploy/base/crds";

/// Arguments of `cargo xtask crds`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if what is there differs from what the Rust types say
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    write(&workspace::root().join(COMMITTED))?;
    // It contains them.
    chart::write()
}

/// Fails if the definitions that are committed are not those that the Rust types make.
pub(crate) fn check() -> Result<()> {
    let made = workspace::target_dir()?.join("crds");
    if made.exists() {
        fs::remove_dir_all(&made).with_context(|| format!("cannot remove {}", made.display()))?;
    }
    write(&made)?;
    let entries = fs::read_dir(&made).with_context(|| format!("cannot read {}", made.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", made.display()))?;
        let committed = workspace::root().join(COMMITTED).join(entry.file_name());
        let text = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        if text(&committed)? != text(&entry.path())? {
            bail!(
                "{COMMITTED}/{} is not what the Rust types say: run `cargo xtask crds` and commit what it writes",
                entry.file_name().display()
            );
        }
    }
    Ok(())
}

fn write(directory: &Path) -> Result<()> {
    let mut cargo = workspace::cargo();
    shell::run(cargo.args(["run", "--quiet", "--package=sluice", "--", "crds"]).arg(directory))
}
