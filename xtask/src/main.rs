//! `cargo xtask`: what building, testing, showing and measuring Sluice needs beyond plain cargo.
//!
//! The eBPF programs are built by another compiler configuration than the agent, and the kernel tests, the demo
//! and the bench need root and a few Debian packages. Every subcommand here fetches what it needs through
//! [`setup`], says so line by line, and asks for root only for installing packages and for touching the kernel.

mod apt;
mod arch;
mod archive;
mod bench;
mod beside;
mod build;
mod chart;
mod ci;
mod clients;
mod crds;
mod cross;
mod demo;
mod deny;
mod fuzz;
mod generated;
mod helm;
mod image;
mod instructions;
mod manifests;
mod mutants;
mod programs;
mod prometheus;
mod readme;
mod reference;
mod references;
mod release;
mod runtime;
mod setup;
mod shell;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests, shows and measures Sluice.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the other tasks need, where it is missing (they call it themselves)
    Setup(setup::Args),
    /// Build the eBPF programs and the agent that carries them
    Build(build::Args),
    /// Run the tests: unit, in-process and in the kernel (the last as root)
    Test(test::Args),
    /// Show the whole path in the kernel of this machine (as root)
    Demo(demo::Args),
    /// Compare Sluice with a direct connection, nginx and haproxy (as root)
    Bench(bench::Args),
    /// Write the container image of the agent as an OCI archive
    Image(image::Args),
    /// Write the CustomResourceDefinitions to deploy/base/crds, from the Rust types
    Crds(generated::Args),
    /// Write the pages of deploy/reference, and the PrometheusRule
    Reference(generated::Args),
    /// Write the Helm chart in deploy/chart, from the manifests in deploy/
    Chart(generated::Args),
    /// Render what is in deploy/ with kustomize and Helm, and check the results
    Manifests,
    /// Write everything that is published of a version: images, chart, kubectl plugin, bill of materials, checksums
    Release(release::Args),
    /// Check licences, sources and advisories of the dependencies with cargo-deny
    Deny(deny::Args),
    /// Run the fuzz targets of agent/fuzz with libFuzzer
    Fuzz(fuzz::Args),
    /// Change the code in a sample of places, and see whether the tests notice (hours)
    Mutants(mutants::Args),
    /// Run every check that CI runs
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.task {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Crds(args) => crds::run(args),
        Task::Reference(args) => reference::run(args),
        Task::Chart(args) => chart::run(args),
        Task::Manifests => manifests::check(),
        Task::Release(args) => release::run(&args),
        Task::Deny(args) => deny::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Mutants(args) => mutants::run(&args),
        Task::Ci => ci::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_or_task_exits_with_2() {
        for line in [&["xtask", "build", "--fast"][..], &["xtask", "deploy"], &["xtask", "test", "slow"]] {
            let error = Cli::try_parse_from(line).expect_err("the line is wrong");
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn every_task_that_the_readme_shows_exists() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))
            .expect("README.md stands at the root of the workspace");
        let lines = readme::xtask_lines(&readme);
        assert!(!lines.is_empty(), "README.md shows no `cargo xtask` line");
        for line in lines {
            let words = std::iter::once("xtask").chain(line.split_whitespace().skip(2));
            if let Err(error) = Cli::try_parse_from(words) {
                assert_eq!(error.exit_code(), 0, "README.md shows `{line}`: {error}");
            }
        }
    }

    #[test]
    fn the_readme_names_the_test_command() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))
            .expect("README.md stands at the root of the workspace");
        assert_eq!(readme::test_command(&readme).expect("a test command"), "cargo xtask test");
    }
}
