//! `cargo xtask fuzz`: the fuzz targets of `agent/fuzz`, guided by coverage, with a stable compiler.
//!
//! libFuzzer needs no more of the compiler than LLVM's coverage counters, which flags for LLVM ask for. Only what finds
//! bad memory accesses needs a nightly: `cargo +nightly fuzz run TARGET` in `agent`. CI runs the same targets without
//! counters, in the tests of the agent ([`run_in_ci`]).

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{self, say};
use crate::{apt, workspace};

/// For each target. They are spread over the processors.
const SECONDS_IN_CI: u64 = 15;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The target [default: all of them, one after the other]
    target: Option<String>,
    /// How long for each target, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u64,
    /// Where randomness begins [default: elsewhere each time]
    #[arg(long)]
    seed: Option<u32>,
}

/// As cargo-fuzz has them, without sanitizers.
const FLAGS: [&str; 10] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Clink-dead-code",
    "-Ccodegen-units=1",
    "-Copt-level=2",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let home = home();
    let all = targets()?;
    let chosen = match &args.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("no target {target}: there are {}", all.join(", ")),
    };
    if shell::which("c++").is_none() {
        apt::install(&["g++"], "building libFuzzer", "install a C++ compiler")?;
    }
    let host = host()?;
    let built = workspace::target_dir()?.join("fuzz");
    let mut cargo = workspace::cargo_without_programs();
    cargo
        .current_dir(&home)
        .args(["build", "--release", "--locked", "--target", &host, "--target-dir"])
        .arg(&built);
    for target in &chosen {
        cargo.args(["--bin", target]);
    }
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    shell::run(&mut cargo).context("the fuzz targets could not be built")?;
    for target in &chosen {
        // What is found goes first: libFuzzer adds to the first directory that it is given.
        let found = home.join("found").join(target);
        let artifacts = home.join("artifacts").join(target);
        for directory in [&found, &artifacts] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut fuzz = workspace::command(built.join(&host).join("release").join(target));
        fuzz.arg(&found).arg(home.join("corpus").join(target));
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzz.args([format!("-max_total_time={}", args.time), "-max_len=4096".into(), "-timeout=10".into()]);
        fuzz.args(["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-print_final_stats=1"]);
        fuzz.args(args.seed.map(|seed| format!("-seed={seed}")));
        shell::run(&mut fuzz)
            .with_context(|| format!("{target} failed; the input is in {}", artifacts.display()))?;
    }
    say(&format!("{} targets have held for {} s each", chosen.len(), args.time));
    Ok(())
}

/// The same targets in the tests of the agent, which are built already.
pub(crate) fn run_in_ci() -> Result<()> {
    let mut cargo = workspace::whole("test");
    cargo.args(["--lib", "--", "fuzzing::", "--nocapture"]);
    shell::run(cargo.env("SLUICE_FUZZ_SECONDS", SECONDS_IN_CI.to_string()))
}

pub(crate) fn home() -> PathBuf {
    workspace::root().join("agent/fuzz")
}

fn targets() -> Result<Vec<String>> {
    let directory = home().join("fuzz_targets");
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let name = PathBuf::from(entry?.file_name());
        targets.extend(name.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    targets.sort();
    ensure!(!targets.is_empty(), "{} is empty", directory.display());
    Ok(targets)
}

/// The compiler's own target. Named to cargo, so that build scripts are built without counters.
fn host() -> Result<String> {
    let version = shell::read(workspace::command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_are_found_by_their_programs() {
        let targets = super::targets().expect("they are there");
        assert!(targets.contains(&"hpack".to_owned()) && targets.is_sorted(), "{targets:?}");
    }
}
