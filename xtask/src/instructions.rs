//! `cargo xtask bench instructions`: how many instructions of its own the agent needs for a request, counted by callgrind.
//!
//! Times on shared machines scatter by tens of percent, instructions hardly at all: so this is what CI compares with
//! committed numbers. It says nothing of what the kernel does for a request, nor of caches. `agent/instructions` is what
//! runs: the proxy as the image has it, between a client and an origin that are not counted.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::arch::Arch;
use crate::shell::{self, say, which};
use crate::{apt, build, image, workspace};

const PACKAGE: &str = "sluice-instructions";
/// The runs differ in the number of requests alone, and so by what those cost.
const FEW: u64 = 1_000;
const MANY: u64 = 3_000;
/// Compilers differ by about this from version to version.
const TOLERANCE_PERCENT: u64 = 6;

struct Load {
    /// The directory of its manifests in `agent/instructions/loads`.
    name: &'static str,
    /// What a request was seen to cost. Who makes it cheaper, or finds that what is gained is worth more, writes down here
    /// what this prints.
    known: u64,
}

const LOADS: [Load; 2] =
    [Load { name: "no-policy", known: 24_729 }, Load { name: "every-rule", known: 32_979 }];

pub(crate) fn run() -> Result<()> {
    if which("valgrind").is_none() {
        apt::install(&["valgrind"], "counting instructions", "install Valgrind")?;
    }
    let program = image::static_program(Arch::native()?, &build::ebpf()?, PACKAGE)?;
    let mut over = Vec::new();
    for load in LOADS {
        let few = count(&program, load.name, FEW)?;
        let many = count(&program, load.name, MANY)?;
        ensure!(many > few, "{MANY} requests cost {many} instructions, and {FEW} {few}");
        let each = (many - few) / (MANY - FEW);
        say(&format!(
            "{}: {each} instructions a request, {:.2} x the {} that are known",
            load.name,
            each as f64 / load.known as f64,
            load.known
        ));
        if each * 100 > load.known * (100 + TOLERANCE_PERCENT) {
            over.push(load.name);
        }
    }
    if !over.is_empty() {
        bail!(
            "a request costs over {TOLERANCE_PERCENT} % more instructions than is known with {}: make it cheaper, or say in \
             the commit what it gives for them and write the new number into {}",
            over.join(" and "),
            file!()
        );
    }
    Ok(())
}

/// The instructions of a proxy that carries so many requests.
fn count(program: &Path, load: &str, requests: u64) -> Result<u64> {
    let manifests = workspace::root().join("agent/instructions/loads").join(load);
    let counted = workspace::target_dir()?.join(format!("instructions-{load}.out"));
    let mut valgrind = workspace::command("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", counted.display()));
    valgrind.arg(program).args(["proxy", "--requests", &requests.to_string(), "--manifests"]).arg(manifests);
    shell::read(&mut valgrind)?;
    let text = std::fs::read_to_string(&counted)
        .with_context(|| format!("callgrind has left no {}", counted.display()))?;
    total(&text).with_context(|| format!("{} names no total", counted.display()))
}

/// From a file of callgrind.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("summary: "));
    line?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::total;

    #[test]
    fn the_total_is_read() {
        let text =
            "version: 1\nevents: Ir\nsummary: 24644279\n\nob=(4) /lib/x\nfn=(1) f\n0 7\ntotals: 24644279\n";
        assert_eq!(total(text), Some(24_644_279));
        assert_eq!(total("events: Ir\n"), None);
        assert_eq!(total("summary: many\n"), None);
    }
}
