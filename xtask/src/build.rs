//! `cargo xtask build`: the eBPF programs, then everything that embeds or uses them.
//!
//! The programs go to `<target>/bpf/sluice.bpf.o`, and every build that needs them is told so (`SLUICE_BPF_OBJECT`). They
//! have a target directory of their own, `<target>/bpf-build`: another compiler builds them, and sharing one would make each
//! rebuild the other's. It is not below `<target>/bpf`, as whatever changes there makes cargo build the agent anew.
//!
//! What is not a release is built with the features that the tests ask for ([`workspace::whole`]), so that the tests build nothing
//! of it again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::shell::{self, say};
use crate::{image, instructions, setup, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build with optimizations
    #[arg(long)]
    release: bool,
    /// Build the static programs instead: the image's, and the one whose instructions are counted
    #[arg(long, conflicts_with = "release")]
    r#static: bool,
}

/// Where the results are.
#[derive(Debug)]
pub(crate) struct Built {
    /// The agent and the programs of the tests crate.
    pub(crate) bin: PathBuf,
}

impl Built {
    /// The agent.
    pub(crate) fn agent(&self) -> PathBuf {
        self.bin.join("sluice")
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.r#static {
        for program in [image::static_agent()?, instructions::program()?] {
            say(&format!("{} is built", program.display()));
        }
        return Ok(());
    }
    let built = all(args.release)?;
    say(&format!("the agent is {}", built.agent().display()));
    Ok(())
}

/// Builds the eBPF programs, the agent and the programs of the tests crate.
pub(crate) fn all(release: bool) -> Result<Built> {
    let object = ebpf()?;
    if release {
        // With the features of the agent that ships.
        let mut cargo = workspace::cargo_with_programs(&object);
        shell::run(cargo.args(["build", "--package=sluice", "--package=sluice-tests", "--release"]))?;
    } else {
        let mut cargo = with_test_features("build");
        let programs = workspace::programs(|package, _| ["sluice", "sluice-tests"].contains(&package))?;
        cargo.args(programs.iter().map(|name| format!("--bin={name}")));
        shell::run(&mut cargo)?;
    }
    let bin = workspace::target_dir()?.join(if release { "release" } else { "debug" });
    Ok(Built { bin })
}

/// The agent for what it prints of itself, with the eBPF programs if those are there. Builds it quietly.
pub(crate) fn agent_command() -> Result<Command> {
    shell::run(with_test_features("build").args(["--quiet", "--bin=sluice"]))?;
    Ok(workspace::command(workspace::target_dir()?.join("debug/sluice")))
}

/// Everything that the tests consist of, at once: one crate after the other leaves processors idle.
pub(crate) fn tests() -> Result<()> {
    shell::run(workspace::whole("test").args(["--no-run", "--lib", "--bins", "--tests"]))
}

/// Only commands about tests or examples take in what these depend upon. There are no examples.
fn with_test_features(subcommand: &str) -> Command {
    let mut cargo = workspace::whole(subcommand);
    cargo.arg("--examples");
    cargo
}

/// Builds the eBPF programs for this machine, if anything of them changed.
pub(crate) fn ebpf() -> Result<PathBuf> {
    ebpf_for(Arch::native()?)
}

/// The same for another architecture.
pub(crate) fn ebpf_for(arch: Arch) -> Result<PathBuf> {
    let toolchain = setup::ebpf()?;
    let target = workspace::target_dir()?;
    let (object, build) = if arch.is_native() {
        (workspace::bpf_object()?, target.join("bpf-build"))
    } else {
        let folder = target.join(format!("bpf-{}", arch.name()));
        (folder.join("sluice.bpf.o"), target.join(format!("bpf-build-{}", arch.name())))
    };
    let folder = object.parent().context("the object lies in a folder of the target directory")?;
    say(&format!("building the eBPF programs with {toolchain}"));
    let mut cargo = toolchain.cargo(arch);
    cargo.args([
        "build",
        "--package=sluice-ebpf",
        "--bin=sluice-programs",
        "--features=programs",
        "--release",
    ]);
    cargo.args(["-Zbuild-std=core", "--target=bpfel-unknown-none", "--target-dir"]).arg(&build);
    shell::run(&mut cargo).context("the eBPF programs could not be built")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    copy_if_changed(&build.join("bpfel-unknown-none/release/sluice-programs"), &object)?;
    Ok(object)
}

/// An object that did not change keeps its time stamp, so that the agent is not built again for nothing. A changed
/// one is put in place whole: the agent's build script may read it at any time.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let partial = to.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, new).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}
