//! Cargo's helpers that only some tasks need: built once a user and machine, in the version that is named here.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell::{self, say};
use crate::workspace;

/// The program `name` of the package of the same name, from the cache, or built from crates.io (some minutes).
pub(crate) fn find(name: &str, version: &str) -> Result<PathBuf> {
    let home = workspace::cache_dir()?.join(format!("{name}-{version}"));
    let program = home.join("bin").join(name);
    // Run it: what an older system has built may lack a library. As cargo does, with the subcommand's name: some know no flag
    // without it, and would be built anew each time.
    let subcommand = name.strip_prefix("cargo-").unwrap_or(name);
    let runs = || shell::ask(Command::new(&program).args([subcommand, "--version"])).is_some();
    if runs() {
        return Ok(program);
    }
    let _lock = workspace::lock_cache()?;
    if runs() {
        return Ok(program);
    }
    say(&format!("building {name} {version} into {} (some minutes)", home.display()));
    let partial = workspace::cache_dir()?.join(format!("{name}.partial"));
    shell::remove_dir(&partial)?;
    let mut cargo = workspace::plain_cargo();
    // Not at the root of the workspace: its cargo configuration has no say here.
    cargo.current_dir("/").args(["install", name, "--version", version, "--locked", "--root"]).arg(&partial);
    cargo.arg("--target-dir").arg(partial.join("build")).env_remove("RUSTFLAGS");
    shell::run(&mut cargo).with_context(|| format!("{name} could not be built"))?;
    shell::remove_dir(&partial.join("build"))?;
    shell::remove_dir(&home)?;
    std::fs::rename(&partial, &home)
        .with_context(|| format!("cannot move {} to {}", partial.display(), home.display()))?;
    Ok(program)
}
