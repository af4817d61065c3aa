//! `cargo xtask image`: the container image of the agent, as an OCI archive, without a daemon.
//!
//! The image is one static binary on nothing else: what it needs beside itself (the API server's certificate, names) the
//! cluster mounts. The same source and compiler give the same bytes.

mod elf;
mod oci;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

pub(crate) use self::oci::Image;
use crate::arch::Arch;
use crate::shell::{self, say};
use crate::{build, cross, setup, workspace};

/// Policies that the binary checks, to show that it runs.
const POLICIES: &str = "deploy/examples/gray-release/release.yaml";

/// A node with a thousand pods pulls it a thousand times less often than an application; still, it is pulled on each.
const MOST_BYTES: usize = 25 << 20;

/// For C: a source that says when it was compiled (the allocator's does) says the same each time. Unlike `SOURCE_DATE_EPOCH`
/// a change of flags is noticed by what was compiled before.
const WITHOUT_TIME: &str = "-Wno-builtin-macro-redefined -D__DATE__=\"\" -D__TIME__=\"\"";

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Where to write the archive [default: `sluice-VERSION-ARCHITECTURE.oci.tar` in the target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name, as manifests name it [default: `sluice:VERSION`]
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// The architecture [default: this machine's]
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// Write the image's files into this directory instead, for a Dockerfile to copy
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "tag"])]
    rootfs: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let arch = args.arch.map_or_else(Arch::native, Ok)?;
    let content = fit_binary(arch)?;
    if let Some(directory) = &args.rootfs {
        let to = directory.join("sluice");
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&to, content))
            .and_then(|()| std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", to.display()))?;
        say(&format!("the image's files are in {}", directory.display()));
        return Ok(());
    }
    let image = of(arch, content, args.tag.clone());
    let archive = archive(std::slice::from_ref(&image))?;
    let output = match &args.output {
        Some(output) => output.clone(),
        None => workspace::target_dir()?.join(format!("sluice-{}-{}.oci.tar", image.version, arch.oci())),
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

/// The image of a binary, which is its only file.
pub(crate) fn of(arch: Arch, binary: Vec<u8>, name: Option<String>) -> Image<'static> {
    let version = workspace::version();
    Image {
        name: name.unwrap_or_else(|| format!("sluice:{version}")),
        architecture: arch.oci(),
        version,
        revision: revision(),
        files: BTreeMap::from([("sluice".to_owned(), binary)]),
    }
}

/// The archive of an image, or of one for each of several architectures. Reads it back, as a container runtime would.
pub(crate) fn archive(images: &[Image<'_>]) -> Result<Vec<u8>> {
    let archive = oci::archive(images)?;
    let most = MOST_BYTES * images.len();
    ensure!(archive.len() <= most, "the archive has {} bytes, more than {most}", archive.len());
    let read = oci::read_all(&archive).context("the archive that was written cannot be read")?;
    ensure!(read.len() == images.len(), "{} images in the archive, not {}", read.len(), images.len());
    for (read, image) in read.iter().zip(images) {
        let (name, content) = read.entrypoint()?;
        ensure!(image.files[name] == content, "{name} in the archive is not what was put there");
    }
    Ok(archive)
}

/// The image of this machine's architecture as a runtime unpacks its archive: `rootfs` with its files and `config.json`
/// with its configuration, in a directory of the target directory.
pub(crate) fn unpacked() -> Result<PathBuf> {
    let arch = Arch::native()?;
    let archive = archive(&[of(arch, fit_binary(arch)?, None)])?;
    let directory = workspace::target_dir()?.join("image-test");
    shell::remove_dir(&directory)?;
    let root = directory.join("rootfs");
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    for read in oci::read_all(&archive)? {
        read.unpack(&root).with_context(|| format!("cannot unpack the image into {}", root.display()))?;
        std::fs::write(directory.join("config.json"), read.config.to_string())?;
    }
    Ok(directory)
}

/// Builds the agent's static binary, and checks that it is fit for an image.
pub(crate) fn fit_binary(arch: Arch) -> Result<Vec<u8>> {
    let object = build::ebpf_for(arch)?;
    let path = static_binary(arch, &object)?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (binary, programs) = (read(&path)?, read(&object)?);
    check_binary(arch, &binary, &programs)?;
    Ok(binary)
}

/// Whether a binary is fit for an image: needs nothing else, carries these eBPF programs, and runs.
fn check_binary(arch: Arch, binary: &[u8], programs: &[u8]) -> Result<()> {
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
    let run = |arguments: &[&OsStr]| {
        let mut command = if arch.is_native() {
            Command::new(&extracted)
        } else {
            let mut emulator = Command::new(cross::emulator(arch)?);
            emulator.arg(&extracted);
            emulator
        };
        shell::read(command.args(arguments).env_clear().current_dir(&directory))
    };
    let said = run(&["version".as_ref()])?;
    let wanted = [
        format!("sluice {}", workspace::version()),
        format!("built for: {}", arch.musl()),
        format!("eBPF programs: embedded ({} bytes)", programs.len()),
    ];
    for line in wanted {
        ensure!(said.lines().any(|other| other == line), "the agent does not say {line:?}: {said:?}");
    }
    // More than printing: it reads files, and judges what is in them.
    let policies = workspace::root().join(POLICIES);
    run(&["check".as_ref(), policies.as_os_str()])?;
    shell::remove_dir(&directory)
}

/// The agent as the image has it.
pub(crate) fn static_agent() -> Result<PathBuf> {
    static_binary(Arch::native()?, &build::ebpf()?)
}

fn static_binary(arch: Arch, object: &Path) -> Result<PathBuf> {
    static_program(arch, object, "sluice")
}

/// A package's program of its name, for musl: with nothing to link at run time, and without this machine's paths in it.
pub(crate) fn static_program(arch: Arch, object: &Path, name: &str) -> Result<PathBuf> {
    let target = setup::musl(arch)?;
    let mut cargo = workspace::cargo_with_programs(object);
    cargo.args(["build", "--package", name, "--bin", name, "--release", "--locked", "--target", &target]);
    // Panics name file and line without symbols. The names of symbols that link-time optimization makes differ from build to
    // build, where nothing else does, and so would a build id that is made from them.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols").env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    let mut flags =
        ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,--build-id=none"].map(str::to_owned).to_vec();
    flags.extend(workspace::remapped_paths());
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let mut c_flags = WITHOUT_TIME.to_owned();
    if !arch.is_native() {
        let compiler = cross::compiler(arch)?;
        let target = target.replace('-', "_");
        c_flags = format!("{} {c_flags}", compiler.flags);
        cargo.env(format!("CC_{target}"), &compiler.gcc);
        cargo.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), &compiler.gcc);
    }
    cargo.env(format!("CFLAGS_{}", target.replace('-', "_")), c_flags);
    shell::run(&mut cargo).with_context(|| format!("the static {name} could not be built"))?;
    Ok(workspace::target_dir()?.join(target).join("release").join(name))
}

/// The commit, where there is one.
pub(crate) fn revision() -> Option<String> {
    let commit = shell::ask(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace::root()))?;
    let changed = shell::ask(
        Command::new("git")
            .args(["status", "--porcelain", "--untracked-files=no"])
            .current_dir(workspace::root()),
    )?;
    let suffix = if changed.trim().is_empty() { "" } else { "-dirty" };
    Some(format!("{}{suffix}", commit.trim()))
}
