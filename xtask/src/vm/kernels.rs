//! Kernels that nodes run, from Debian's packages.
//!
//! They are fetched into the cache by an apt with a configuration of its own: the machine's package sources stay as they
//! are, and a kernel of another release is never installed. The mirror is the one that the machine's sources name.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{self, say};
use crate::{apt, workspace};

/// A kernel of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    /// As it is named on the command line.
    pub(super) name: &'static str,
    /// Debian's release that has it.
    suite: &'static str,
    /// The package that depends on the newest build of it.
    package: &'static str,
    /// Sluice can capture on it; otherwise the agent has to say in one line why not.
    pub(super) supported: bool,
    /// It is tried in CI, too. The others take the same way through the code.
    pub(super) in_ci: bool,
}

const CLOUD: &str = "linux-image-cloud-amd64";
const GENERIC: &str = "linux-image-amd64";

/// The oldest first.
pub(super) const KERNELS: [Kernel; 5] = [
    Kernel { name: "5.10-cloud", suite: "bullseye", package: CLOUD, supported: false, in_ci: true },
    Kernel { name: "6.1-cloud", suite: "bookworm", package: CLOUD, supported: true, in_ci: true },
    Kernel { name: "6.1", suite: "bookworm", package: GENERIC, supported: true, in_ci: false },
    Kernel { name: "6.12-cloud", suite: "trixie", package: CLOUD, supported: true, in_ci: true },
    Kernel { name: "6.12", suite: "trixie", package: GENERIC, supported: true, in_ci: false },
];

/// The kernels with these names.
pub(super) fn named(names: &[String]) -> Result<Vec<Kernel>> {
    let known = || KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            let found = KERNELS.iter().find(|kernel| kernel.name == name);
            found.copied().with_context(|| format!("there is no kernel `{name}`; there are: {}", known()))
        })
        .collect()
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Holds `boot` and `lib/modules`.
    directory: PathBuf,
    /// As `uname -r` has it.
    pub(super) release: String,
}

impl Fetched {
    fn at(directory: PathBuf) -> Option<Self> {
        let modules = std::fs::read_dir(modules_in(&directory)?).ok()?;
        let release = modules.flatten().find_map(|entry| entry.file_name().into_string().ok())?;
        let fetched = Self { directory, release };
        fetched.image().is_file().then_some(fetched)
    }

    /// What qemu boots.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The directory below which `lib/modules` is.
    pub(super) fn modules_root(&self) -> PathBuf {
        // Releases with a merged /usr have it below that.
        let usr = self.directory.join("usr");
        if usr.join("lib/modules").is_dir() { usr } else { self.directory.clone() }
    }
}

fn modules_in(directory: &Path) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"].map(|path| directory.join(path)).into_iter().find(|path| path.is_dir())
}

/// Finds the kernel in the cache, or fetches it.
pub(super) fn fetch(kernel: &Kernel) -> Result<Fetched> {
    let _lock = workspace::lock_cache()?;
    let folder = workspace::cache_dir()?.join("kernels");
    let home = folder.join(kernel.name);
    if let Some(fetched) = Fetched::at(home.clone()) {
        return Ok(fetched);
    }
    if !apt::available() {
        bail!("the kernels come as Debian packages, which this system cannot fetch: it has no apt");
    }
    say(&format!(
        "fetching the kernel {} (package {} of Debian {})",
        kernel.name, kernel.package, kernel.suite
    ));
    let partial = folder.join(format!("{}.partial", kernel.name));
    shell::remove_dir(&home)?;
    shell::remove_dir(&partial)?;
    let apt = PrivateApt::new(&partial.join("apt"), kernel.suite)?;
    let package = apt.dependency(kernel.package)?;
    let archive = apt.download(&package)?;
    shell::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&partial))?;
    shell::remove_dir(&partial.join("apt"))?;
    let unpacked = Fetched::at(partial.clone()).with_context(|| {
        format!("the package {package} has no kernel and modules where they are expected")
    })?;
    // The package leaves this to its installation.
    let root = unpacked.modules_root();
    shell::run(Command::new(kmod("depmod")?).arg("--basedir").arg(&root).arg(&unpacked.release))?;
    std::fs::rename(&partial, &home).with_context(|| format!("cannot write {}", home.display()))?;
    Fetched::at(home).context("the unpacked kernel is not in the cache")
}

/// A program of the package `kmod`.
pub(super) fn kmod(program: &str) -> Result<PathBuf> {
    shell::which(program).with_context(|| format!("there is no `{program}`: install kmod"))
}

/// An apt that knows one release and nothing of the machine's own lists.
struct PrivateApt {
    directory: PathBuf,
}

impl PrivateApt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "download"] {
            let part = directory.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let (uri, keys) = mirror()?;
        let line = format!("deb [signed-by={keys}] {uri} {suite} main\n");
        let sources = directory.join("sources.list");
        std::fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
        let apt = Self { directory: directory.to_owned() };
        shell::run(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for (option, value) in [
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "none"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.directory.join(value).display()));
        }
        // No more of a release than its list of packages, and as root without a change of user, who may not write here.
        for option in [
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            "APT::Sandbox::User=root",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// What a package of which only the dependency counts depends on.
    fn dependency(&self, package: &str) -> Result<String> {
        let said = shell::read(self.command("apt-cache").args(["depends", "--important", package]))?;
        // (Newer releases name a package of common files, too.)
        let mut depends = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = depends.find(|name| name.starts_with("linux-image-"));
        Ok(found.with_context(|| format!("the package {package} depends on no kernel:\n{said}"))?.to_owned())
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let folder = self.directory.join("download");
        shell::run(self.command("apt-get").args(["download", "-qq", package]).current_dir(&folder))?;
        let mut entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let archive = entries.next().context("apt-get downloaded nothing")??.path();
        ensure!(entries.next().is_none(), "apt-get downloaded more than {package}");
        Ok(archive)
    }
}

/// Where this machine gets Debian from, and the keys by which Debian's releases are known.
fn mirror() -> Result<(String, &'static str)> {
    const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let filter = [
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    ];
    let ask = || shell::read(Command::new("apt-get").args(filter));
    let first = |said: &str| said.lines().next().map(str::to_owned);
    let uri = if let Some(uri) = first(&ask()?) {
        uri
    } else {
        // Lists that were never fetched name no origin.
        apt::update()?;
        first(&ask()?).context("the package sources of this system name no mirror of Debian")?
    };
    ensure!(Path::new(KEYS).is_file(), "there is no {KEYS}: install debian-archive-keyring");
    Ok((uri, KEYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name_and_unknown_ones_named() {
        let found = named(&["6.12".to_owned(), "5.10-cloud".to_owned()]).expect("both are there");
        assert_eq!(found.iter().map(|kernel| kernel.suite).collect::<Vec<_>>(), ["trixie", "bullseye"]);
        let error = named(&["6.13".to_owned()]).expect_err("there is none").to_string();
        assert!(error.contains("`6.13`") && error.contains("6.12-cloud"), "{error}");
    }

    #[test]
    fn ci_tries_a_kernel_that_is_too_old_and_some_that_are_not() {
        let in_ci = |supported| KERNELS.iter().any(|kernel| kernel.in_ci && kernel.supported == supported);
        assert!(in_ci(true) && in_ci(false));
    }
}
