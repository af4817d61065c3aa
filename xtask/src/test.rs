//! `cargo xtask test`: unit tests, in-process tests, and the tests in the kernel of this machine.
//!
//! The first two are what plain `cargo test` runs, without root and without the eBPF toolchain. The tests in the kernel
//! are behind the feature `kernel` of the tests crate; cargo builds them as the user and only runs them as root.
//!
//! Only by name, because they build the image first: its test in a container, and other kernels in virtual machines.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::shell;
use crate::{build, clients, image, manifests, prometheus, runtime, setup, vm, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which tests to run [default: unit, inprocess and kernel]
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
    /// The image, built, unpacked and run in a container as the DaemonSet says, as root
    Image,
    /// The image's binary on other kernels, in virtual machines
    Vm,
}

/// What runs where no kind is named.
const DEFAULT: [Kind; 3] = [Kind::Unit, Kind::Inprocess, Kind::Kernel];

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.kinds.contains(&Kind::Vm) {
        ensure!(args.kinds.len() == 1, "`vm` takes the names of kernels as arguments: run it by itself");
        let names = args.arguments.iter().map(|name| name.to_string_lossy().into_owned());
        return vm::run(&names.collect::<Vec<_>>());
    }
    let kinds = if args.kinds.is_empty() { &DEFAULT[..] } else { &args.kinds };
    let wanted = |kind| kinds.contains(&kind);
    // First of all, so that the agent is not built twice, without the eBPF programs and with them.
    let kernel = wanted(Kind::Kernel).then(kernel).transpose()?;
    let mut plain = Vec::new();
    if wanted(Kind::Unit) {
        let mut cargo = workspace::whole("test");
        cargo.args(["--no-fail-fast", "--lib", "--bins"]);
        plain.push(cargo);
    }
    if wanted(Kind::Inprocess) {
        let mut cargo = workspace::whole("test");
        cargo.arg("--no-fail-fast");
        cargo.args(workspace::plain_tests()?.iter().map(|name| format!("--test={name}")));
        side_by_side(&mut cargo, WAITING_INPROCESS)?;
        plain.push(cargo);
    }
    if wanted(Kind::Unit) && wanted(Kind::Inprocess) {
        // Examples in comments are not among the targets.
        let mut cargo = workspace::whole("test");
        cargo.arg("--doc");
        plain.push(cargo);
    }
    // All of them, whatever fails: who looks at failures wants to see all.
    let ran: Vec<_> =
        plain.iter_mut().map(|cargo| shell::run(cargo.arg("--").args(&args.arguments))).collect();
    ran.into_iter().collect::<Result<()>>()?;
    for mut cargo in kernel.into_iter().chain(wanted(Kind::Image).then(image).transpose()?) {
        shell::run(cargo.arg("--").args(&args.arguments))?;
    }
    Ok(())
}

/// So many in-process tests run for each processor: they wait for peers that say nothing.
const WAITING_INPROCESS: usize = 6;
/// So many tests in the kernel run for each processor. With three some fail that a request's time is part of: their programs keep a
/// processor busy for a third of the time.
const WAITING_KERNEL: usize = 1;
/// However many processors there are.
const MOST_AT_ONCE: usize = 32;

/// Has more tests run at once than there are processors, unless somebody has said how many (`RUST_TEST_THREADS`).
fn side_by_side(cargo: &mut Command, for_each_processor: usize) -> Result<()> {
    const THREADS: &str = "RUST_TEST_THREADS";
    if std::env::var_os(THREADS).is_none() {
        let processors = std::thread::available_parallelism().context("how many processors there are")?.get();
        cargo.env(THREADS, (processors * for_each_processor).min(MOST_AT_ONCE.max(processors)).to_string());
    }
    Ok(())
}

/// `cargo xtask test image`.
pub(crate) fn run_image() -> Result<()> {
    shell::run(&mut image()?)
}

/// The command that runs the tests in the kernel, once everything that they use is there.
fn kernel() -> Result<Command> {
    setup::pods()?;
    setup::browser()?;
    setup::proxies()?;
    setup::store()?;
    let clients = clients::install()?;
    let programs = prometheus::programs()?;
    let built = build::all(false)?;
    let mut cargo = as_root(&["harness", "kernel"])?;
    side_by_side(&mut cargo, WAITING_KERNEL)?;
    cargo.env("SLUICE_BIN", built.agent()).env("SLUICE_PYTHON", clients.python);
    cargo.env("SLUICE_GRPC_JS", clients.grpc_js).env("SLUICE_JAVA_VIRTUAL", clients.java_virtual);
    cargo.env("SLUICE_PROMETHEUS", programs.prometheus).env("SLUICE_PROMTOOL", programs.promtool);
    Ok(cargo)
}

/// The command that runs the test of the image, once it is built and unpacked.
fn image() -> Result<Command> {
    setup::pods()?;
    let profile = runtime::profile()?;
    let unpacked = image::unpacked()?;
    let rendered = manifests::default()?;
    let mut cargo = as_root(&["image"])?;
    cargo.env("SLUICE_IMAGE", unpacked).env("SLUICE_SECCOMP", profile);
    if let Some(rendered) = rendered {
        cargo.env("SLUICE_RENDERED", rendered);
    }
    Ok(cargo)
}

/// The command that builds these tests of the tests crate, and the programs that run in the pods, as the user, and runs the
/// tests as root.
fn as_root(tests: &[&str]) -> Result<Command> {
    let mut cargo = workspace::whole("test");
    cargo.arg("--no-fail-fast");
    cargo.args(tests.iter().map(|test| format!("--test={test}")));
    let prefix = shell::root_prefix("for the tests in the kernel (namespaces, cgroups, eBPF)")?;
    if !prefix.is_empty() {
        cargo.arg("--config").arg(format!("target.'cfg(unix)'.runner={}", toml_array(&prefix)?));
    }
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
