//! A container runtime for the test of the image: crun, and the system call filter that runtimes apply by default.
//!
//! The filter is a file of containers/common, which Podman and CRI-O bring along. Where neither is installed it comes from
//! Debian's package of it, unpacked into the cache: nothing else of the package is of use here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{say, which};
use crate::{apt, workspace};

const PACKAGE: &str = "golang-github-containers-common";
const PROFILE: &str = "usr/share/containers/seccomp.json";
const PURPOSE: &str = "running the image as nodes do";

/// What the test of the image needs to know: where the filter is. The runtime is on `PATH`.
pub(crate) fn profile() -> Result<PathBuf> {
    let by_hand = "install crun, and the package `containers-common` of Podman or CRI-O";
    if which("crun").is_none() {
        apt::install(&["crun"], PURPOSE, by_hand)?;
    }
    for directory in ["/", "/etc/containers"] {
        let installed = Path::new(directory).join(if directory == "/" { PROFILE } else { "seccomp.json" });
        if installed.is_file() {
            return Ok(installed);
        }
    }
    let _lock = workspace::lock_cache()?;
    let home = workspace::cache_dir()?.join(PACKAGE);
    let profile = home.join(PROFILE);
    if profile.is_file() {
        return Ok(profile);
    }
    if !apt::available() {
        bail!("{PURPOSE} needs what this system's package manager has to give; by hand: {by_hand}");
    }
    say(&format!("{PURPOSE} needs Debian's package {PACKAGE}: unpacking it into {}", home.display()));
    apt::unpack(&[PACKAGE], &home, by_hand)?;
    profile
        .is_file()
        .then_some(profile)
        .with_context(|| format!("the package has no {PROFILE}; by hand: {by_hand}"))
}
