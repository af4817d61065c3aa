//! `cargo xtask image`: the container image of the agent, as an OCI archive, without a daemon.
//!
//! The image is one static binary on nothing else: what it needs beside itself (the API server's certificate, names) the
//! cluster mounts. The same source and compiler give the same bytes.

mod elf;
mod oci;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{self, say};
use crate::{build, setup, workspace};

/// A node with a thousand pods pulls it a thousand times less often than an application; still, it is pulled on each.
const MOST_BYTES: usize = 25 << 20;

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Where to write the archive [default: `sluice-VERSION-ARCHITECTURE.oci.tar` in the target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name, as manifests name it [default: `sluice:VERSION`]
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// Write the image's files into this directory instead, for a Dockerfile to copy
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "tag"])]
    rootfs: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let object = build::ebpf()?;
    let binary = static_binary(&object)?;
    let content = std::fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let programs = std::fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    check_binary(&content, &programs)?;
    if let Some(directory) = &args.rootfs {
        let to = directory.join("sluice");
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::copy(&binary, &to))
            .and_then(|_| std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", to.display()))?;
        say(&format!("the image's files are in {}", directory.display()));
        return Ok(());
    }
    let version = env!("CARGO_PKG_VERSION");
    let image = oci::Image {
        name: args.tag.clone().unwrap_or_else(|| format!("sluice:{version}")),
        architecture: oci_architecture()?,
        version,
        revision: revision(),
        files: BTreeMap::from([("sluice".to_owned(), content)]),
    };
    let archive = image.archive()?;
    check_archive(&archive, &image.files["sluice"])?;
    let output = match &args.output {
        Some(output) => output.clone(),
        None => workspace::target_dir()?.join(format!("sluice-{version}-{}.oci.tar", image.architecture)),
    };
    std::fs::write(&output, &archive).with_context(|| format!("cannot write {}", output.display()))?;
    say(&format!(
        "the image {} is {} ({:.1} MiB); on a node: ctr -n k8s.io images import {}",
        image.name,
        output.display(),
        archive.len() as f64 / f64::from(1 << 20),
        output.file_name().unwrap_or_default().display()
    ));
    Ok(())
}

/// Whether the archive is one, and small enough. Reads it back, as a container runtime would.
fn check_archive(archive: &[u8], binary: &[u8]) -> Result<()> {
    ensure!(archive.len() <= MOST_BYTES, "the image has {} bytes, more than {MOST_BYTES}", archive.len());
    let read = oci::read(archive).context("the archive that was written cannot be read")?;
    let (name, content) = read.entrypoint()?;
    ensure!(content == binary, "{name} in the archive is not what was put there");
    Ok(())
}

/// Whether a binary is fit for an image: needs nothing else, carries these eBPF programs, and runs.
fn check_binary(binary: &[u8], programs: &[u8]) -> Result<()> {
    ensure!(elf::is_static(binary)?, "the agent needs a dynamic linker, which an image has not");
    ensure!(
        memchr::memmem::find(binary, programs).is_some(),
        "the agent does not carry the eBPF programs that were built for it: it could not capture anything"
    );
    let directory = workspace::target_dir()?.join("image-check");
    shell::remove_dir(&directory)?;
    std::fs::create_dir_all(&directory)?;
    let extracted = directory.join("sluice");
    std::fs::write(&extracted, binary)?;
    std::fs::set_permissions(&extracted, std::fs::Permissions::from_mode(0o755))?;
    // Nothing of this system, as nothing will be there.
    let said = shell::read(Command::new(&extracted).arg("version").env_clear().current_dir(&directory))?;
    let wanted = [
        format!("sluice {}", env!("CARGO_PKG_VERSION")),
        format!("eBPF programs: embedded ({} bytes)", programs.len()),
    ];
    for line in wanted {
        ensure!(said.lines().any(|other| other == line), "the agent does not say {line:?}: {said:?}");
    }
    shell::remove_dir(&directory)
}

/// The agent as the image has it.
pub(crate) fn static_agent() -> Result<PathBuf> {
    static_binary(&build::ebpf()?)
}

/// The agent for musl, with nothing to link at run time, and without this machine's paths in it.
fn static_binary(object: &Path) -> Result<PathBuf> {
    let target = setup::musl()?;
    let mut cargo = workspace::cargo_with_programs(object);
    cargo.args(["build", "--package=sluice", "--bin=sluice", "--release", "--locked", "--target", &target]);
    // Panics still name functions; lines are left out, which halves the image.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo").env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (from, to) in [(Some(workspace::root().to_owned()), "sluice"), (cargo_home(), "cargo")] {
        flags.extend(from.map(|from| format!("--remap-path-prefix={}={to}", from.display())));
    }
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    shell::run(&mut cargo).context("the static agent could not be built")?;
    Ok(workspace::target_dir()?.join(target).join("release/sluice"))
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
}

/// As OCI (and Go) name this machine's architecture.
fn oci_architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}: build on x86_64 or aarch64"),
    }
}

/// The commit, where there is one.
fn revision() -> Option<String> {
    let commit = shell::ask(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace::root()))?;
    let changed = shell::ask(
        Command::new("git")
            .args(["status", "--porcelain", "--untracked-files=no"])
            .current_dir(workspace::root()),
    )?;
    let suffix = if changed.trim().is_empty() { "" } else { "-dirty" };
    Some(format!("{}{suffix}", commit.trim()))
}
