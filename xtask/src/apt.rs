//! Debian packages: which are missing, and installing those.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};

/// Whether this system has Debian's package manager.
pub(crate) fn available() -> bool {
    shell::which("apt-get").is_some() && shell::which("dpkg-query").is_some()
}

pub(crate) fn is_installed(package: &str) -> bool {
    let status = shell::ask(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_some_and(|status| status.ends_with(" installed"))
}

/// Installs those of `packages` that are missing. `by_hand` is what to do on a system where that cannot work.
pub(crate) fn install(packages: &[&str], purpose: &str, by_hand: &str) -> Result<()> {
    if !available() {
        bail!("{purpose} needs what this system's package manager has to give; by hand: {by_hand}");
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("{purpose} needs the Debian packages {}: installing them", missing.join(", ")));
    if missing.iter().any(|package| !has_candidate(package)) {
        say("the package lists lack one of them: updating the lists");
        update()?;
        if let Some(package) = missing.iter().find(|package| !has_candidate(package)) {
            bail!("the package sources of this system have no package `{package}`; by hand: {by_hand}");
        }
    }
    if attempt(&missing).is_err() {
        // Lists that are a few weeks old name versions that the mirror no longer has.
        say("that failed: updating the package lists and trying once more");
        update()?;
        attempt(&missing)?;
    }
    Ok(())
}

/// Fetches a package's archive into `directory`, without installing anything. Needs no root but for updating the lists.
pub(crate) fn download(package: &str, directory: &Path, by_hand: &str) -> Result<PathBuf> {
    let mut archives = download_all(&[package], directory, by_hand)?;
    archives.pop().with_context(|| format!("apt-get left no package in {}", directory.display()))
}

fn download_all(packages: &[&str], directory: &Path, by_hand: &str) -> Result<Vec<PathBuf>> {
    let attempt = || {
        let mut apt = Command::new("apt-get");
        // As root it would change to a user who may not write into our directories, and warn of it.
        apt.args(["download", "-qq", "-oAPT::Sandbox::User=root"]).args(packages);
        shell::run(apt.current_dir(directory))
    };
    let lacking = || packages.iter().find(|package| !has_candidate(package));
    if lacking().is_some() || attempt().is_err() {
        say("that failed: updating the package lists and trying once more");
        update()?;
        if let Some(package) = lacking() {
            bail!("the package sources of this system have no package `{package}`; by hand: {by_hand}");
        }
        attempt()?;
    }
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let files = entries.into_iter().map(|entry| entry.path());
    Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// `package` and the packages that installing it would install with it; nothing is installed.
pub(crate) fn would_install(package: &str, by_hand: &str) -> Result<Vec<String>> {
    let simulate = || {
        let mut apt = Command::new("apt-get");
        apt.env("LC_ALL", "C").args(["install", "--simulate", "-qq", "--no-install-recommends", package]);
        shell::ask(&mut apt).map(|said| simulated(&said)).filter(|found| !found.is_empty())
    };
    if !available() {
        bail!("this system has no package manager of Debian; by hand: {by_hand}");
    }
    if let Some(found) = simulate() {
        return Ok(found);
    }
    say(&format!("the package lists lack {package} or what it needs: updating the lists"));
    update()?;
    simulate().with_context(|| {
        format!("the package sources of this system do not have {package} and all that it needs; by hand: {by_hand}")
    })
}

/// The packages that a simulated installation names.
fn simulated(said: &str) -> Vec<String> {
    let lines = said.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Puts the files of packages into the directory `home` instead of installing them, all or nothing.
pub(crate) fn unpack(packages: &[&str], home: &Path, by_hand: &str) -> Result<()> {
    let partial = home.with_extension("partial");
    let archives = partial.join("archives");
    shell::remove_dir(home)?;
    shell::remove_dir(&partial)?;
    std::fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    for archive in download_all(packages, &archives, by_hand)? {
        shell::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&partial))?;
    }
    shell::remove_dir(&archives)?;
    std::fs::rename(&partial, home).with_context(|| format!("cannot write {}", home.display()))
}

/// Brings installed packages to the newest version that the package sources have.
pub(crate) fn upgrade(packages: &[&str]) -> Result<()> {
    update()?;
    attempt(packages)
}

const WHY: &str = "to install Debian packages";

pub(crate) fn update() -> Result<()> {
    shell::run(shell::as_root("apt-get", WHY)?.args(["update", "-qq"]))
}

/// `--no-remove`: a package that conflicts with one the user has is for the user to settle.
fn attempt(packages: &[&str]) -> Result<()> {
    let mut apt = shell::as_root("env", WHY)?;
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-oDpkg::Use-Pty=0"]);
    shell::run(apt.args(["--no-install-recommends", "--no-remove"]).args(packages))
}

fn has_candidate(package: &str) -> bool {
    let policy = shell::ask(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]));
    policy.is_some_and(|policy| policy_names_candidate(&policy))
}

fn policy_names_candidate(policy: &str) -> bool {
    policy
        .lines()
        .any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
}

#[cfg(test)]
mod tests {
    use super::{policy_names_candidate, simulated};

    #[test]
    fn what_would_be_installed_is_read_from_the_simulation() {
        let said = "Remv qemu-utils [1:10.0.2]\nInst libslirp0 (4.7.0-1 Debian:12 [amd64])\n\
                    Inst qemu-system-x86 [1:7.1] (1:7.2 Debian:12 [amd64])\nConf libslirp0 (4.7.0-1)\n";
        assert_eq!(simulated(said), ["libslirp0", "qemu-system-x86"]);
        assert!(simulated("").is_empty());
    }

    #[test]
    fn a_candidate_is_read_from_the_policy() {
        assert!(policy_names_candidate("rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n"));
        assert!(!policy_names_candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!policy_names_candidate(""));
    }
}
