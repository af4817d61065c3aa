//! `cargo xtask bench`: direct, Sluice, nginx, haproxy and nghttpx in one run and one topology, by `sluice-bench`; and what a
//! large cluster costs, by the bench `soak` of the agent.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Result;

use crate::{build, instructions, setup, shell, workspace};

/// The flags of `sluice-bench`, which explains the loads.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Write the results as JSON too: one record a proxy and load
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many rounds; the medians of the rounds are reported
    #[arg(long)]
    rounds: Option<u32>,
    /// How long each proxy bears each load in a round
    #[arg(long)]
    seconds: Option<f64>,
    /// Only the loads whose name contains this
    #[arg(long, value_name = "LOAD")]
    only: Vec<String>,
    /// Only these, separated by commas: direct, sluice, rules, observed, inbound, both, threads, nginx, haproxy, nghttpx
    #[arg(long, value_name = "PROXIES")]
    proxies: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Count the agent's own instructions for a request, and compare with what is known (not as root)
    Instructions,
    /// Follow a large cluster that changes all the time: memory, CPU, delay (not as root)
    Soak {
        /// Its flags: `--help` tells them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.other {
        Some(Other::Instructions) => return instructions::run(),
        Some(Other::Soak { arguments }) => {
            // It follows a cluster and captures nothing.
            let mut cargo = workspace::cargo_without_programs();
            return shell::run(
                cargo.args(["bench", "--package=sluice", "--bench=soak", "--"]).args(arguments),
            );
        }
        None => {}
    }
    setup::pods()?;
    setup::proxies()?;
    let built = build::all(true)?;
    let mut bench =
        shell::as_root(built.bin.join("sluice-bench"), "for the bench (namespaces, cgroups, eBPF)")?;
    bench.env("SLUICE_BIN", built.agent());
    if let Some(file) = &args.json {
        bench.arg("--json").arg(file);
    }
    if let Some(rounds) = args.rounds {
        bench.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(seconds) = args.seconds {
        bench.arg("--seconds").arg(seconds.to_string());
    }
    for load in &args.only {
        bench.arg("--only").arg(load);
    }
    if let Some(proxies) = &args.proxies {
        bench.arg("--proxies").arg(proxies);
    }
    shell::run(&mut bench)
}
