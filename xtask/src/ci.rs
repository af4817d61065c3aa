//! `cargo xtask ci`: every check that CI runs, the cheapest first.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::beside::{Beside, Weight};
use crate::shell::{self, say};
use crate::{
    build, chart, crds, demo, deny, fuzz, instructions, manifests, prometheus, readme, reference, references,
    setup, test, vm, workspace,
};

type Check = (&'static str, fn() -> Result<()>);

const EBPF: &str = "the eBPF programs build";
const TESTS_BUILD: &str = "the tests build";

const CHECKS: &[Check] = &[
    ("Cargo.lock fits the manifests", lock),
    ("licences and sources of the dependencies", deny::check),
    ("what the project refers to is there", references::check),
    ("formatting", || shell::run(workspace::cargo().args(["fmt", "--all", "--check"]))),
    (EBPF, || build::ebpf().map(drop)),
    ("clippy", clippy),
    (TESTS_BUILD, build::tests),
    ("the CustomResourceDefinitions are what the Rust types say", crds::check),
    ("the reference and the PrometheusRule are up to date", reference::check),
    ("the Helm chart is what the manifests say", chart::check),
    ("the recording and alerting rules", || where_there_is(prometheus::programs(), prometheus::check_rules)),
    ("documentation", documentation),
    ("the manifests, rendered", || where_there_is(setup::kustomize(), manifests::check)),
    ("the test command of README.md", readme_test),
    ("the fuzz targets, from their corpus", fuzz::run_in_ci),
    ("the image, run as the DaemonSet says", test::run_image),
    ("what a request costs the agent in instructions", instructions::run),
    ("other kernels, in virtual machines", vm::run_in_ci),
    ("the demo", || demo::run(&demo::Args::default())),
];

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let mut fetching = None;
    for (name, check) in CHECKS {
        let began = Instant::now();
        say(&format!("check: {name}"));
        check().with_context(|| format!("check failed: {name}"))?;
        match *name {
            // That installs Debian's packages itself. Where nobody is root, somebody may be asked for a password.
            EBPF if shell::is_root() => fetching = Some(Beside::start(&["setup"], Weight::Same)?),
            TESTS_BUILD => {
                // Whoever needs what is missing will say so again.
                if let Some(Err(missing)) = fetching.take().map(Beside::end) {
                    say(&format!("{missing:#}"));
                }
            }
            _ => {}
        }
        say(&format!("check passed: {name} ({} s)", began.elapsed().as_secs()));
    }
    say(&format!("all {} checks passed ({} s)", CHECKS.len(), start.elapsed().as_secs()));
    Ok(())
}

/// A check that needs a tool which not every machine can be given. Without it the check is left out, and says so.
fn where_there_is<T>(tool: Result<T>, check: impl FnOnce() -> Result<()>) -> Result<()> {
    match tool {
        Ok(_) => check(),
        Err(missing) => {
            say(&format!("left out: {missing:#}"));
            Ok(())
        }
    }
}

/// Of the workspace, and of the fuzz targets, which are a workspace of their own: a dependency that the agent gets is theirs, too.
fn lock() -> Result<()> {
    for home in [workspace::root().to_owned(), fuzz::home()] {
        let mut cargo = workspace::cargo();
        cargo.args(["metadata", "--locked", "--format-version=1"]).current_dir(&home);
        shell::read(&mut cargo).with_context(|| format!("Cargo.lock in {}", home.display()))?;
    }
    Ok(())
}

/// With the tests in the kernel: nothing but whole targets depends on their feature, so that there is no more to see without it.
fn clippy() -> Result<()> {
    shell::run(workspace::whole("clippy").args(["--all-targets", "--", "-D", "warnings"]))
}

fn documentation() -> Result<()> {
    let mut cargo = workspace::whole("doc");
    cargo.args(["--no-deps", "--document-private-items", "--lib"]);
    // The agent's program has the name of its library, and would overwrite that.
    let programs = workspace::programs(|_, program| program != "sluice")?;
    cargo.args(programs.iter().map(|name| format!("--bin={name}")));
    // With the features of clippy's libraries, which are checked already. There are no examples.
    cargo.arg("--examples");
    // The pages are for those who work on Sluice: links to private items lead somewhere in them.
    shell::run(cargo.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
}

/// Exactly what README.md tells people to type. Beside the tests, which wait most of the time, what later checks need is built.
fn readme_test() -> Result<()> {
    // So that it is not installed while the tests install something.
    setup::musl(Arch::native()?)?;
    let building = Beside::start(&["build", "--static"], Weight::Idle)?;
    let file = workspace::root().join("README.md");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    shell::run(
        Command::new("bash").args(["-c", readme::test_command(&text)?]).current_dir(workspace::root()),
    )?;
    building.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_the_tests_crate_does_not_depend_on_its_feature() {
        let mut files = Vec::new();
        for folder in ["src", "tests"] {
            chart::list(&workspace::root().join("tests").join(folder), &mut files).unwrap();
        }
        assert!(files.len() > 50, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(!text.contains("feature = \"kernel\""), "clippy sees {} with it only", file.display());
        }
    }
}
