//! Building for another architecture: Debian's cross compiler with musl's own headers, and an emulator to run the result.
//!
//! Nothing foreign is installed: musl's headers are of the other architecture's package, which is fetched with lists of
//! its own and unpacked into the cache, and so is QEMU. The compiler is an ordinary package of this architecture.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::shell::{self, say};
use crate::{apt, workspace};

/// What another architecture's binaries are built with.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// Compiles C, and links.
    pub(crate) gcc: String,
    /// Flags that make it use musl's headers instead of glibc's.
    pub(crate) flags: String,
}

/// The cross compiler for `arch`.
pub(crate) fn compiler(arch: Arch) -> Result<Compiler> {
    let gcc = format!("{}-linux-gnu-gcc", arch.name());
    if shell::which(&gcc).is_none() {
        apt::install(
            &[&format!("gcc-{}", arch.gnu_package())],
            "building for another architecture",
            &format!("install {gcc}"),
        )?;
    }
    let own = shell::read(Command::new(&gcc).arg("-print-file-name=include"))?;
    let musl = headers(arch)?;
    Ok(Compiler { flags: format!("-nostdinc -isystem {} -isystem {}", own.trim(), musl.display()), gcc })
}

/// musl's headers for `arch`.
fn headers(arch: Arch) -> Result<PathBuf> {
    let home = workspace::cache_dir()?.join(format!("musl-dev-{}", arch.oci()));
    let include = home.join(format!("usr/include/{}-linux-musl", arch.name()));
    let _lock = workspace::lock_cache()?;
    if include.join("stdlib.h").is_file() {
        return Ok(include);
    }
    say(&format!("unpacking Debian's musl-dev for {} into {}", arch.oci(), home.display()));
    let partial = workspace::cache_dir()?.join("musl-dev.partial");
    shell::remove_dir(&partial)?;
    // The system's own lists know only its own architecture, and are left as they are.
    for directory in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(partial.join(directory))?;
    }
    let apt = |what: &str| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&partial).args(["-qq", "-oAPT::Sandbox::User=root", "-oAcquire::Languages=none"]);
        for option in [
            format!("APT::Architecture={}", arch.oci()),
            format!("APT::Architectures={}", arch.oci()),
            format!("Dir::State::lists={}", partial.join("lists").display()),
            format!("Dir::Cache={}", partial.join("cache").display()),
        ] {
            apt.arg(format!("-o{option}"));
        }
        apt.arg(what);
        apt
    };
    shell::run(&mut apt("update"))?;
    shell::run(apt("download").arg("musl-dev"))?;
    let archive = std::fs::read_dir(&partial)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")?;
    shell::remove_dir(&home)?;
    let unpacked = partial.join("unpacked");
    shell::run(Command::new("dpkg-deb").arg("--extract").args([&archive, &unpacked]))?;
    std::fs::rename(&unpacked, &home)
        .with_context(|| format!("cannot move {} to {}", unpacked.display(), home.display()))?;
    shell::remove_dir(&partial)?;
    Ok(include)
}

/// A program that runs binaries of `arch` on this machine.
pub(crate) fn emulator(arch: Arch) -> Result<PathBuf> {
    let name = format!("qemu-{}-static", arch.name());
    if let Some(installed) = shell::which(&name) {
        return Ok(installed);
    }
    let _lock = workspace::lock_cache()?;
    let emulator = workspace::cache_dir()?.join(&name);
    if shell::ask(Command::new(&emulator).arg("--version")).is_some() {
        return Ok(emulator);
    }
    say(&format!("taking {name} out of Debian's qemu-user-static, into {}", emulator.display()));
    let partial = workspace::cache_dir()?.join("qemu.partial");
    shell::remove_dir(&partial)?;
    std::fs::create_dir_all(&partial)?;
    let archive = apt::download("qemu-user-static", &partial, &format!("install {name}"))?;
    // Of two dozen emulators one is needed.
    unpack_one(&archive, &format!("./usr/bin/{name}"), &partial)?;
    std::fs::rename(partial.join("usr/bin").join(&name), &emulator)?;
    shell::remove_dir(&partial)?;
    Ok(emulator)
}

fn unpack_one(archive: &Path, file: &str, directory: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let tar = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let unpacked = shell::run(
        Command::new("tar").arg("--extract").arg("--directory").arg(directory).arg(file).stdin(tar),
    );
    let _ = dpkg.wait();
    unpacked
}
