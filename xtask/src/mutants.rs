//! `cargo xtask mutants`: whether the tests notice when the code is changed. A sample, for all would take days.
//!
//! cargo-mutants changes one place of a copy of the project at a time and runs the agent's unit tests. What it reports as
//! missed needs a test, or makes no difference.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::shell::{self, say};
use crate::{programs, workspace};

const VERSION: &str = "27.1.0";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only in files that match, such as `agent/src/govern/**`
    #[arg(long, value_name = "GLOB", default_values = ["agent/src/govern/**", "agent/src/proxy/http1/**"])]
    file: Vec<String>,
    /// How many
    #[arg(long, default_value_t = 40)]
    count: usize,
    /// Which: the same seed chooses the same ones of the same code
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only name them
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = programs::find("cargo-mutants", VERSION)?;
    let mutants = |list: bool| {
        let mut command = workspace::command(&program);
        command.args(["mutants", "--package=sluice"]);
        for glob in &args.file {
            command.args(["--file", glob]);
        }
        if list {
            command.args(["--list", "--line-col=true"]);
        }
        command
    };
    let all = shell::read(&mut mutants(true))?;
    let all: Vec<&str> = all.lines().filter(|line| !line.is_empty()).collect();
    ensure!(!all.is_empty(), "no mutants in these files");
    let sample = sample(&all, args.count, args.seed);
    say(&format!("{} of {} mutants, with seed {}", sample.len(), all.len(), args.seed));
    if args.list {
        for name in &sample {
            say(name);
        }
        return Ok(());
    }
    let output = workspace::target_dir()?.join("mutants");
    leave_out(&output, &all, &sample)?;
    let mut command = mutants(false);
    // Unit tests: what they do not notice, the slower tests may.
    command.arg("--iterate").arg("--output").arg(&output).args(["--no-shuffle", "--", "--lib"]);
    shell::run(&mut command).context("some mutants were missed, or the tests fail without any")
}

/// Has cargo-mutants take all others for caught by an earlier run, which `--iterate` passes over. Its filters by name (`--re`)
/// know nothing of fields that are left out of structs: it would try each of them.
fn leave_out(output: &Path, all: &[&str], sample: &[&str]) -> Result<()> {
    let earlier = output.join("mutants.out");
    shell::remove_dir(&earlier)?;
    std::fs::create_dir_all(&earlier)
        .and_then(|()| std::fs::write(earlier.join("caught.txt"), others(all, sample)))
        .with_context(|| format!("cannot write to {}", earlier.display()))
}

/// The names that are not in the sample, a line each.
fn others(all: &[&str], sample: &[&str]) -> String {
    let sample: HashSet<_> = sample.iter().collect();
    all.iter().filter(|name| !sample.contains(name)).flat_map(|name| [*name, "\n"]).collect()
}

/// So many, chosen by the seed, in their order.
fn sample<'a>(all: &[&'a str], count: usize, seed: u64) -> Vec<&'a str> {
    let mut places: Vec<usize> = (0..all.len()).collect();
    let mut state = seed;
    for place in (1..places.len()).rev() {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        places.swap(place, ((mixed ^ (mixed >> 31)) % (place as u64 + 1)) as usize);
    }
    places.truncate(count);
    places.sort_unstable();
    places.into_iter().map(|place| all[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_the_same_and_another_seed_others() {
        let names: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let one = sample(&all, 10, 1);
        assert_eq!(one, sample(&all, 10, 1));
        assert_ne!(one, sample(&all, 10, 2));
        assert!(one.len() == 10 && one.is_sorted());
        assert_eq!(sample(&all, 1000, 1), all);
    }

    #[test]
    fn all_others_are_left_out() {
        let all = [
            "a.rs:1:2: replace < with <=",
            "a.rs:1:2: replace < with ==",
            "b.rs:3:4: delete field x from struct X",
        ];
        assert_eq!(others(&all, &all[1..2]), format!("{}\n{}\n", all[0], all[2]));
        assert_eq!(others(&all, &all), "");
    }
}
