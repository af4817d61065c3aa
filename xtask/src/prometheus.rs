//! Prometheus and promtool, for the tests and for checking the rules in `deploy/`.
//!
//! They come from the system, or else from Debian's package. That is unpacked into the cache and not installed: installing it
//! would make a user and start a server on every interface. The programs need nothing else of the package.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{self, say};
use crate::{apt, workspace};

const PACKAGE: &str = "prometheus";

/// The directory of the rules.
pub(crate) const RULES: &str = "deploy/overlays/monitoring";

/// Where the two programs are.
pub(crate) struct Programs {
    pub(crate) prometheus: PathBuf,
    pub(crate) promtool: PathBuf,
}

impl Programs {
    fn at(directory: &Path) -> Option<Self> {
        let programs = Self {
            prometheus: directory.join("usr/bin/prometheus"),
            promtool: directory.join("usr/bin/promtool"),
        };
        programs.run().then_some(programs)
    }

    fn run(&self) -> bool {
        let runs = |program: &Path| shell::ask(Command::new(program).arg("--version")).is_some();
        runs(&self.prometheus) && runs(&self.promtool)
    }
}

/// Finds the programs, or fetches them.
pub(crate) fn programs() -> Result<Programs> {
    if let (Some(prometheus), Some(promtool)) = (shell::which("prometheus"), shell::which("promtool")) {
        return Ok(Programs { prometheus, promtool });
    }
    let _lock = workspace::lock_cache()?;
    let home = workspace::cache_dir()?.join(PACKAGE);
    if let Some(programs) = Programs::at(&home) {
        return Ok(programs);
    }
    let by_hand = "install Prometheus 2.42 or later, with promtool (https://prometheus.io/download/)";
    if !apt::available() {
        bail!(
            "checking metrics and rules needs what this system's package manager has to give; by hand: {by_hand}"
        );
    }
    say(&format!(
        "checking metrics and rules needs Debian's package {PACKAGE}: unpacking it into {}",
        home.display()
    ));
    apt::unpack(&[PACKAGE], &home, by_hand)?;
    let programs = Programs::at(&home);
    programs.with_context(|| format!("the programs of the package do not run; by hand: {by_hand}"))
}

/// The rules in `deploy/`: that they are rules, and that alerts fire when they should and only then.
pub(crate) fn check_rules() -> Result<()> {
    let promtool = programs()?.promtool;
    let rules = workspace::root().join(RULES);
    for (check, file) in [("check", "rules.yml"), ("test", "rules-test.yml")] {
        let file = rules.join(file);
        ensure!(file.is_file(), "there is no {}", file.display());
        shell::run(Command::new(&promtool).args([check, "rules"]).arg(&file))?;
    }
    Ok(())
}
