//! What it costs to follow a large cluster that changes all the time, and how soon a change is in force.
//!
//! `cargo bench --bench soak`, or `cargo xtask bench soak`. The API server's double is this program once more, in a
//! process of its own, so that memory and CPU are the agent's: the watches over TLS, the model, the snapshots.

mod delays;
mod flip;
mod server;

use self::delays::Delays;

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::resource::{UsageWho, getrusage},
    time::{ClockId, clock_gettime},
};
use sluice::{
    cluster::{
        Cluster,
        builder::Options,
        kubernetes::{self, Patience},
        model::Snapshot,
    },
    run::small_pages,
};

/// That of the image: what an allocator keeps is a part of what an agent takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Follows a large cluster that changes all the time
#[derive(Clone, Debug, Parser)]
struct Size {
    /// Services, spread over the namespaces
    #[arg(long, default_value_t = 10_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=60_000))]
    services: usize,
    /// Endpoints, each with its pod, spread over the services
    #[arg(long, default_value_t = 100_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    endpoints: usize,
    /// Namespaces that are enrolled
    #[arg(long, default_value_t = 50, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    namespaces: usize,
    /// Pods in as many namespaces that are not enrolled, each with a slice of its own in ten
    #[arg(long, default_value_t = 0, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=1_000_000))]
    others: usize,
    /// Objects that change in a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    changes: u64,
    /// For how long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Only measure what the change of one endpoint costs the model in clusters of several sizes
    #[arg(long)]
    flip: bool,
    /// Be the API server, with its kubeconfig in this directory
    #[arg(long, hide = true)]
    server: Option<PathBuf>,
    /// What cargo says to all benches
    #[arg(long, hide = true)]
    bench: bool,
}

/// For how many agents it is said what the API server does.
const AGENTS: usize = 1000;
const MEMORY_MIB: f64 = 250.0;
const CORES: f64 = 0.5;
const P99: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let size = Size::parse();
    let outcome = match &size.server {
        Some(directory) => server::run(&size, directory).map(|()| true),
        None if size.flip => flip::run().map(|()| true),
        None => soak(&size),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A change that the double has made, and that a snapshot has not shown yet.
struct Awaited {
    at_nanos: u64,
    service: SocketAddr,
    endpoint: SocketAddr,
    ready: bool,
}

impl Awaited {
    /// `<nanos> <service> <address> <0|1>`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let at_nanos = words.next()?.parse().ok()?;
        let service = (server::cluster_ip(words.next()?.parse().ok()?), 80).into();
        let endpoint = (words.next()?.parse::<Ipv4Addr>().ok()?, 8080).into();
        Some(Self { at_nanos, service, endpoint, ready: words.next()? == "1" })
    }

    fn is_in(&self, snapshot: &Snapshot) -> bool {
        snapshot.destination(self.service).is_some_and(|found| {
            let endpoints = &found.service.endpoints;
            let at = endpoints.binary_search_by_key(&self.endpoint, |endpoint| endpoint.address);
            at.is_ok_and(|at| endpoints[at].ready == self.ready)
        })
    }
}

/// Whether the aims are reached.
fn soak(size: &Size) -> Result<bool> {
    small_pages();
    let directory = tempfile::tempdir()?;
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--services", &size.services.to_string(), "--endpoints", &size.endpoints.to_string()])
        .args(["--namespaces", &size.namespaces.to_string(), "--changes", &size.changes.to_string()])
        .args(["--others", &size.others.to_string()])
        .arg("--server")
        .arg(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the API server's double")?;
    let mut tell = server.stdin.take().context("it has a standard input")?;
    let mut lines = BufReader::new(server.stdout.take().context("it has a standard output")?).lines();
    let first = lines.next().context("the double has ended")??;
    ensure!(first == "ready", "the double says {first:?}");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let kubeconfig = directory.path().join("kubeconfig");
    let began = monotonic_nanos();
    let cluster = runtime.block_on(async {
        let client = kubernetes::client_of(move || find(kubeconfig.clone()), Patience::default()).await?;
        let options = Options { node: Some("node-0".into()), ..Options::default() };
        let cluster = Cluster::start(kubernetes::open(client), options);
        cluster.synced().await.context("the cluster's source has ended")?;
        anyhow::Ok(cluster)
    })?;
    let first_picture = Duration::from_nanos(monotonic_nanos() - began);
    let (after_list, peak_of_list) = memory()?;
    // The status, and with it the counts, come a moment after the snapshot.
    std::thread::sleep(Duration::from_secs(1));
    let counts = cluster.status().counts;
    println!(
        "{} namespaces, {} services, {} endpoints: first picture after {:.1} s; {after_list:.0} MiB, at most {peak_of_list:.0}",
        counts.namespaces,
        counts.services,
        counts.endpoints,
        first_picture.as_secs_f64(),
    );

    let (sender, changes) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            match line.strip_prefix("done ") {
                Some(done) => {
                    let (count, sent) = done.split_once(' ')?;
                    return Some((count.parse::<u64>().ok()?, sent.parse::<u64>().ok()?));
                }
                None => sender.send(Awaited::parse(&line)).ok()?,
            }
        }
        None
    });
    let (cpu, generation, start) = (cpu_seconds()?, cluster.status().generation, monotonic_nanos());
    writeln!(tell, "{}", size.seconds)?;
    tell.flush()?;
    let early = std::thread::spawn({
        let quarter = Duration::from_secs(size.seconds) / 4;
        move || {
            std::thread::sleep(quarter);
            memory()
        }
    });
    let delays = runtime.block_on(follow(&cluster, &changes))?;
    let (early, _) = early.join().ok().context("it only sleeps")??;
    let seconds = Duration::from_nanos(monotonic_nanos() - start).as_secs_f64();
    let (made, sent) = reader.join().ok().flatten().context("the double has ended before its time")?;
    let cores = (cpu_seconds()? - cpu) / seconds;
    let snapshots = cluster.status().generation - generation;
    let (steady, peak) = memory()?;
    drop(tell);
    server.wait()?;

    let (p50, p99, most) = (delays.at(0.5), delays.at(0.99), delays.at(1.0));
    println!(
        "{made} changes in {seconds:.0} s ({:.0} a second), {snapshots} snapshots, {} changes that can be seen",
        made as f64 / seconds,
        delays.count(),
    );
    println!("from a change to the snapshot in force: p50 {p50:.0?}, p99 {p99:.0?}, at most {most:.0?}");
    let watches: usize = cluster.status().watches.values().map(|watches| watches.open).sum();
    let rate = sent as f64 / seconds / 1024.0;
    println!("the API server sends {rate:.0} KiB/s over {watches} watches");
    println!(
        "as many for {AGENTS} agents: {AGENTS} connections, {} watches, {:.0} MiB/s",
        watches * AGENTS,
        rate * AGENTS as f64 / 1024.0,
    );
    println!("memory: {early:.0} MiB after a quarter of the time, {steady:.0} at the end");
    let aims = [
        (
            format!("memory: {steady:.0} MiB now, {peak:.0} at most (aim: below {MEMORY_MIB})"),
            peak < MEMORY_MIB,
        ),
        (format!("CPU: {cores:.2} cores (aim: below {CORES})"), cores < CORES),
        (format!("delay: p99 {p99:.0?} (aim: below {P99:.0?})"), p99 < P99),
    ];
    for (aim, reached) in &aims {
        println!("[{}] {aim}", if *reached { "ok" } else { "missed" });
    }
    Ok(aims.iter().all(|(_, reached)| *reached))
}

/// How long each change took to get into a snapshot, until the double is done and all are there.
async fn follow(cluster: &Cluster, changes: &mpsc::Receiver<Option<Awaited>>) -> Result<Delays> {
    let mut snapshots = cluster.snapshots();
    let mut waiting: VecDeque<Awaited> = VecDeque::new();
    let mut delays = Delays::default();
    let mut done = false;
    while !done || !waiting.is_empty() {
        let next = tokio::time::timeout(Duration::from_secs(1), snapshots.changed()).await;
        let now = monotonic_nanos();
        let quiet = next.is_err();
        let snapshot = snapshots.borrow_and_update().clone();
        loop {
            match changes.try_recv() {
                Ok(change) => {
                    let change = change.context("the double says what cannot be understood")?;
                    // Overtaken: the same endpoint has changed once more.
                    waiting.retain(|other| other.endpoint != change.endpoint);
                    waiting.push_back(change);
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => {
                    done = true;
                    break;
                }
            }
        }
        waiting.retain(|change| {
            let there = change.is_in(&snapshot);
            if there {
                delays.note(Duration::from_nanos(now.saturating_sub(change.at_nanos)));
            }
            !there
        });
        // Those whose pod was replaced in the meantime never come.
        let lost = |change: &Awaited| now.saturating_sub(change.at_nanos) > 10_000_000_000;
        if quiet || done {
            waiting.retain(|change| !lost(change) || !is_endpoint_gone(&snapshot, change));
            ensure!(
                !(done && waiting.iter().any(lost)),
                "a change never came: {} are missing",
                waiting.len()
            );
        }
    }
    ensure!(delays.count() > 0, "nothing has changed");
    Ok(delays)
}

fn is_endpoint_gone(snapshot: &Snapshot, change: &Awaited) -> bool {
    snapshot.destination(change.service).is_some_and(|found| {
        found.service.endpoints.iter().all(|endpoint| endpoint.address.ip() != change.endpoint.ip())
    })
}

async fn find(path: PathBuf) -> Result<Config, kubernetes::Error> {
    let kubeconfig =
        Kubeconfig::read_from(path).map_err(|error| kubernetes::Error::NoCluster(error.to_string()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.map_err(|error| kubernetes::Error::NoCluster(error.to_string()))
}

/// The same clock in both processes.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Resident memory of this process, now and at most, in MiB.
fn memory() -> Result<(f64, f64)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        anyhow::Ok(kib / 1024.0)
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
