//! `cargo xtask bench instructions`: how many instructions of its own the agent needs for a request of HTTP/1, for a connection
//! with one, and for a unary call of gRPC, counted by callgrind.
//!
//! Times on shared machines scatter by tens of percent, instructions hardly at all: so this is what CI compares with
//! committed numbers. It says nothing of what the kernel does for a request, nor of caches. `agent/instructions` is what
//! runs: the proxy as the image has it, between a client and an origin that are not counted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::arch::Arch;
use crate::shell::{self, say, which};
use crate::{apt, build, image, workspace};

const PACKAGE: &str = "sluice-instructions";
/// The runs differ in the number of requests alone, and so by what those cost.
const FEW: u64 = 1_000;
const MANY: u64 = 3_000;
/// Of how many runs of gRPC calls the least counts.
const GRPC_RUNS: usize = 4;
/// Compilers differ by about this from version to version.
const TOLERANCE_PERCENT: u64 = 6;

struct Load {
    name: &'static str,
    /// The directory of its manifests in `agent/instructions/loads`.
    manifests: &'static str,
    work: Work,
    /// So many HTTPRoutes besides, of which one is about the requests.
    routes: usize,
    /// What a request was seen to cost. Who makes it cheaper, or finds that what is gained is worth more, writes down here
    /// what this prints. `None`: it is compared with another load.
    known: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Requests of HTTP/1 over one connection.
    Requests,
    /// The same, each over a connection of its own on both sides.
    Connections,
    /// Unary gRPC calls over one connection.
    Grpc,
}

impl Work {
    /// As `agent/instructions` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Grpc => "grpc",
        }
    }
}

const HTTP1: Load =
    Load { name: "no-policy", manifests: "no-policy", work: Work::Requests, routes: 0, known: None };

const LOADS: [Load; 7] = [
    Load { known: Some(22_900), ..HTTP1 },
    Load { name: "every-rule", manifests: "every-rule", known: Some(28_600), ..HTTP1 },
    Load { name: "new-connections", work: Work::Connections, known: None, ..HTTP1 },
    Load { name: "grpc", work: Work::Grpc, known: Some(49_800), ..HTTP1 },
    Load { name: "grpc-every-rule", manifests: "every-rule", work: Work::Grpc, known: Some(56_400), ..HTTP1 },
    Load { name: "one-route", routes: 1, ..HTTP1 },
    Load { name: "thousand-routes", routes: 1_000, ..HTTP1 },
];
/// What a thousand routes may cost a request more than one.
const ROUTES_PERCENT: u64 = 5;

pub(crate) fn run() -> Result<()> {
    if which("valgrind").is_none() {
        apt::install(&["valgrind"], "counting instructions", "install Valgrind")?;
    }
    let program = program()?;
    let (mut over, mut found) = (Vec::new(), BTreeMap::new());
    for load in LOADS {
        let few = least(&program, &load, FEW)?;
        let many = least(&program, &load, MANY)?;
        ensure!(many > few, "{MANY} requests cost {many} instructions, and {FEW} {few}");
        let each = (many - few) / (MANY - FEW);
        let compared = load.known.map_or_else(String::new, |known| {
            format!(", {:.2} x the {known} that are known", each as f64 / known as f64)
        });
        say(&format!("{}: {each} instructions a request{compared}", load.name));
        if load.known.is_some_and(|known| each * 100 > known * (100 + TOLERANCE_PERCENT)) {
            over.push(load.name);
        }
        found.insert(load.name, each);
    }
    let (one, thousand) = (found["one-route"], found["thousand-routes"]);
    ensure!(
        thousand * 100 <= one * (100 + ROUTES_PERCENT),
        "with a thousand routes a request costs {thousand} instructions, and with one {one}: allowed are {ROUTES_PERCENT} % more"
    );
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

/// What is counted.
pub(crate) fn program() -> Result<PathBuf> {
    image::static_program(Arch::native()?, &build::ebpf()?, PACKAGE)
}

/// The least of some runs. Over HTTP/2 a request takes more tasks to be woken where they are interrupted: by some percent, and
/// by chance.
fn least(program: &Path, load: &Load, requests: u64) -> Result<u64> {
    let runs = if load.work == Work::Grpc { GRPC_RUNS } else { 1 };
    let mut least = u64::MAX;
    for _ in 0..runs {
        least = least.min(count(program, load, requests)?);
    }
    Ok(least)
}

/// The instructions of a proxy that carries so many requests.
fn count(program: &Path, load: &Load, requests: u64) -> Result<u64> {
    let manifests = manifests(load)?;
    let counted = workspace::target_dir()?.join(format!("instructions-{}.out", load.name));
    let mut valgrind = workspace::command("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", counted.display()));
    valgrind.arg(program).args(["proxy", "--requests", &requests.to_string(), "--manifests"]).arg(manifests);
    valgrind.args(["--work", load.work.name()]);
    shell::read(&mut valgrind)?;
    let text = fs::read_to_string(&counted)
        .with_context(|| format!("callgrind has left no {}", counted.display()))?;
    total(&text).with_context(|| format!("{} names no total", counted.display()))
}

/// The directory of a load's manifests, with its routes.
fn manifests(load: &Load) -> Result<PathBuf> {
    let written = workspace::root().join("agent/instructions/loads").join(load.manifests);
    if load.routes == 0 {
        return Ok(written);
    }
    let directory = workspace::target_dir()?.join("instructions").join(load.name);
    fs::create_dir_all(&directory)?;
    fs::copy(written.join("service.yaml"), directory.join("service.yaml"))?;
    // As gateways have them: a prefix each, some with a method or a header besides.
    let routes = (0..load.routes).map(|number| {
        let prefix = if number == 0 { "/orders".to_owned() } else { format!("/api/v{}/things-{number}", number % 7) };
        let more = match number % 3 {
            1 => ", method: POST",
            2 => ", headers: [{name: x-version, value: two}]",
            _ => "",
        };
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: route-{number}, namespace: shop}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: orders}}], rules: [{{matches: [{{path: {{type: PathPrefix, \
             value: {prefix}}}{more}}}], backendRefs: [{{name: orders, port: 80}}]}}]}}}}\n"
        )
    });
    fs::write(directory.join("routes.yaml"), routes.collect::<String>())?;
    Ok(directory)
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
