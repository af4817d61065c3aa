//! `cargo xtask test`: unit tests, in-process tests, and the tests in the kernel of this machine.
//!
//! The first two are what plain `cargo test` runs, without root and without the eBPF toolchain. The tests in the kernel
//! are behind the feature `kernel` of the tests crate; cargo builds them as the user and only runs them as root.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::shell;
use crate::{build, clients, prometheus, setup, vm, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which tests to run [default: all of them but vm]
    kinds: Vec<Kind>,
    /// Arguments for the test programs, such as part of a test's name; for `vm` the names of kernels
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Pure decisions, exactly
    Unit,
    /// Parts of the agent against hostile and odd peers
    Inprocess,
    /// The whole in the kernel, with pods and real clients, as root
    Kernel,
    /// The image's binary on other kernels, in virtual machines
    Vm,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.kinds.contains(&Kind::Vm) {
        ensure!(args.kinds.len() == 1, "`vm` takes the names of kernels as arguments: run it by itself");
        let names = args.arguments.iter().map(|name| name.to_string_lossy().into_owned());
        return vm::run(&names.collect::<Vec<_>>());
    }
    let wanted = |kind| args.kinds.is_empty() || args.kinds.contains(&kind);
    // First of all, so that the agent is not built twice, without the eBPF programs and with them.
    let kernel = wanted(Kind::Kernel).then(kernel).transpose()?;
    let targets: Option<&[&str]> = match (wanted(Kind::Unit), wanted(Kind::Inprocess)) {
        (true, true) => Some(&[]),
        (true, false) => Some(&["--lib", "--bins"]),
        (false, true) => Some(&["--test=*"]),
        (false, false) => None,
    };
    if let Some(targets) = targets {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--workspace", "--no-fail-fast"]).args(targets);
        shell::run(cargo.arg("--").args(&args.arguments))?;
    }
    if let Some(mut cargo) = kernel {
        shell::run(cargo.arg("--").args(&args.arguments))?;
    }
    Ok(())
}

/// The command that runs the tests in the kernel, once everything that they use is there.
fn kernel() -> Result<Command> {
    setup::pods()?;
    setup::browser()?;
    let python = clients::install()?;
    let programs = prometheus::programs()?;
    let built = build::all(false)?;
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--package=sluice-tests", "--features=kernel", "--test=*", "--no-fail-fast"]);
    let prefix = shell::root_prefix("for the tests in the kernel (namespaces, cgroups, eBPF)")?;
    if !prefix.is_empty() {
        cargo.arg("--config").arg(format!("target.'cfg(unix)'.runner={}", toml_array(&prefix)?));
    }
    cargo.env("SLUICE_BIN", built.agent()).env("SLUICE_PYTHON", python);
    cargo.env("SLUICE_PROMETHEUS", programs.prometheus).env("SLUICE_PROMTOOL", programs.promtool);
    Ok(cargo)
}

/// `words` as a TOML array of strings.
fn toml_array(words: &[OsString]) -> Result<String> {
    let quoted: Result<Vec<String>> = words
        .iter()
        .map(|word| {
            let word = word.to_str().context("PATH is not valid UTF-8")?;
            Ok(format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")))
        })
        .collect();
    Ok(format!("[{}]", quoted?.join(",")))
}

#[cfg(test)]
mod tests {
    use super::toml_array;

    #[test]
    fn words_are_quoted_for_cargo() {
        let words = ["sudo".into(), "PATH=/a \"b\":/c".into()];
        assert_eq!(toml_array(&words).expect("valid UTF-8"), r#"["sudo","PATH=/a \"b\":/c"]"#);
    }
}
