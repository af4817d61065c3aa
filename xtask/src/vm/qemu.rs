//! The emulator that runs the machines: the installed one, or Debian's, unpacked into the cache.
//!
//! It is not installed: of the two dozen packages that it needs one or another conflicts with what a machine has (`qemu-utils`
//! of Debian's backports does), and nothing else of the project needs them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};
use crate::{apt, workspace};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const BY_HAND: &str = "install qemu-system-x86_64";

/// An emulator that was seen to start.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where its libraries are, beside those of the system.
    libraries: Option<OsString>,
}

impl Qemu {
    /// Finds it, or fetches it.
    pub(super) fn get() -> Result<Self> {
        if let Some(program) = shell::which(PROGRAM) {
            return Ok(Self { program, libraries: None });
        }
        let _lock = workspace::lock_cache()?;
        let home = workspace::cache_dir()?.join("qemu-system");
        if let Some(unpacked) = Self::at(&home)? {
            return Ok(unpacked);
        }
        say(&format!("unpacking Debian's {PACKAGE} into {}", home.display()));
        let packages = apt::would_install(PACKAGE, BY_HAND)?;
        apt::unpack(&packages.iter().map(String::as_str).collect::<Vec<_>>(), &home, BY_HAND)?;
        match Self::at(&home)? {
            Some(unpacked) => Ok(unpacked),
            None => {
                bail!("{PROGRAM} of the package {PACKAGE} does not start on this system; by hand: {BY_HAND}")
            }
        }
    }

    /// The one that is unpacked there, if it starts: libraries that the system had then may be gone.
    fn at(home: &Path) -> Result<Option<Self>> {
        let folders = ["usr/lib", "lib"].map(|folder| home.join(folder).join("x86_64-linux-gnu"));
        let libraries = std::env::join_paths(folders).context("the path of the cache has a colon in it")?;
        let found = Self { program: home.join("usr/bin").join(PROGRAM), libraries: Some(libraries) };
        let starts = shell::ask(found.command().arg("--version")).is_some();
        Ok(starts.then_some(found))
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}
