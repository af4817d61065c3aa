//! `sluice-bench`: direct, Sluice, nginx, haproxy and nghttpx in one run and one topology, and a service that is overloaded.
//! `cargo xtask bench` builds what it needs.
//!
//! The same program is the origin and the client, in their pods.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::bench::{
    Load, ProxyKind, Record,
    floods::{self, Kind},
    http_load::{self, Ending},
    http2_load::{self, Call},
    load, origin, overload, report,
    run::{self, Plan, bears},
    socket_load,
};

/// Compares Sluice with a direct connection, nginx, haproxy and nghttpx
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Write the medians as JSON too: one record a proxy and load
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many rounds; the medians of the rounds are reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each proxy bears each load in a round
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Only the loads whose name contains this; may be given more than once
    #[arg(long, value_name = "LOAD", value_parser = known_load)]
    only: Vec<String>,
    /// Only these proxies, separated by commas: direct, sluice, rules (Sluice with every rule on), observed
    /// (Sluice with history, access log and traces), inbound (Sluice at the
    /// endpoint), both (at the client and at the endpoint), nginx, haproxy, nghttpx (HTTP/2 alone)
    #[arg(long, value_delimiter = ',', default_values_t = ProxyKind::ALL)]
    proxies: Vec<ProxyKind>,
}

/// The parts that the bench plays in its pods.
#[derive(Debug, Subcommand)]
enum Part {
    /// Answer requests on one port and send without end on the other
    #[command(hide = true)]
    Origin { http: u16, http2: u16, bulk: u16 },
    /// Put load on an address and report as JSON
    #[command(hide = true)]
    Load(LoadOptions),
    /// Send frames that carry nothing, and report as JSON what became of that
    #[command(hide = true)]
    Flood {
        target: SocketAddr,
        #[arg(value_enum)]
        kind: Kind,
        connections: usize,
        #[arg(value_parser = seconds)]
        time: Duration,
        /// Flood a sink of this process instead
        #[arg(long)]
        sink: bool,
    },
}

#[derive(Debug, clap::Args)]
struct LoadOptions {
    target: SocketAddr,
    #[arg(value_enum)]
    work: WorkName,
    /// The size of each answer, or how many streams each connection has
    size: usize,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    wait_for: SocketAddr,
    #[arg(long, value_parser = seconds)]
    warmup: Duration,
    #[arg(long, value_parser = seconds)]
    time: Duration,
    /// The process whose CPU time and memory are read
    #[arg(long)]
    proxy: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WorkName {
    KeepAlive,
    NewConnections,
    Close,
    Http2,
    GrpcUnary,
    GrpcStreaming,
    Bulk,
    Connect,
    Idle,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds from 0.01 to 3600".to_owned()),
    }
}

fn known_load(name: &str) -> Result<String, String> {
    let mut names: Vec<String> = load::all().iter().map(ToString::to_string).collect();
    names.push(overload::NAME.to_owned());
    names.extend(floods::all().into_iter().map(floods::name));
    if names.iter().any(|known| known.contains(name)) {
        return Ok(name.to_owned());
    }
    Err(format!("(part of) one of {}", names.join(", ")))
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.part {
        Some(Part::Origin { http, http2, bulk }) => serve(*http, *http2, *bulk),
        Some(Part::Load(options)) => put(options),
        Some(Part::Flood { target, kind, connections, time, sink }) => {
            flood(*target, *kind, *connections, *time, *sink)
        }
        None => compare(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(http: u16, http2: u16, bulk: u16) -> Result<()> {
    let listen = |port| origin::listen((Ipv4Addr::UNSPECIFIED, port).into());
    let (http, http2, bulk) = (listen(http)?, listen(http2)?, listen(bulk)?);
    println!("listening");
    origin::serve(&http, &http2, &bulk)
}

fn flood(target: SocketAddr, kind: Kind, connections: usize, time: Duration, sink: bool) -> Result<()> {
    println!("begins");
    let became = if sink {
        floods::flood_sink(kind, connections, time)?
    } else {
        floods::flood(target, kind, connections, time)
    };
    println!("{}", serde_json::to_string(&became)?);
    Ok(())
}

fn put(options: &LoadOptions) -> Result<()> {
    let &LoadOptions { target, work, size, connections, wait_for, warmup, time, proxy } = options;
    socket_load::wait_for(wait_for)?;
    let http = |ending| {
        http_load::run(&http_load::Options { target, connections, bytes: size, ending, warmup, time, proxy })
    };
    let http2 = |call| {
        http2_load::run(&http2_load::Options {
            target,
            connections,
            streams: size,
            call,
            warmup,
            time,
            proxy,
        })
    };
    let outcome = match work {
        WorkName::KeepAlive => http(Ending::Kept)?,
        WorkName::NewConnections => http(Ending::Left)?,
        WorkName::Close => http(Ending::Asked)?,
        WorkName::Http2 => http2(Call::Get)?,
        WorkName::GrpcUnary => http2(Call::Unary)?,
        WorkName::GrpcStreaming => http2(Call::Streaming)?,
        WorkName::Bulk => socket_load::bulk(target, warmup, time, proxy)?,
        WorkName::Connect => socket_load::connect(target, warmup, time)?,
        WorkName::Idle => socket_load::idle(target, connections, proxy)?,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn compare(options: &Options) -> Result<()> {
    let named = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part));
    let wanted =
        |load: &Load| named(&load.to_string()) && options.proxies.iter().any(|&proxy| bears(proxy, *load));
    let mut proxies = options.proxies.clone();
    proxies.sort_unstable();
    proxies.dedup();
    let loads: Vec<Load> = load::all().into_iter().filter(wanted).collect();
    let plan = Plan { loads, proxies, rounds: options.rounds, time: options.seconds };
    let mut records = if plan.loads.is_empty() { Vec::new() } else { side_by_side(&plan)? };
    if named(overload::NAME) && plan.proxies.contains(&ProxyKind::Sluice) {
        let outcomes = overload::run(|case| eprintln!("overload: {case}"))?;
        print!("{}", overload::table(&outcomes));
        records.extend(outcomes.iter().map(overload::Outcome::record));
    }
    let floods: Vec<_> = floods::all().into_iter().filter(|flood| named(&floods::name(*flood))).collect();
    if !floods.is_empty() && plan.proxies.contains(&ProxyKind::Sluice) {
        let outcomes = floods::run(&floods, plan.time, |flood| eprintln!("{flood}"))?;
        print!("{}", floods::table(&outcomes));
        records.extend(outcomes.iter().map(floods::Outcome::record));
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&records)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn side_by_side(plan: &Plan) -> Result<Vec<Record>> {
    let samples = run::run(plan, |sample| {
        let (round, outcome) = (sample.round + 1, &sample.outcome);
        eprintln!(
            "round {round}/{}: {} {}: {} requests",
            plan.rounds, sample.load, sample.proxy, outcome.requests
        );
    })?;
    let records = report::records(&samples);
    print!("{}\n{}", report::table(&records), report::aims(&records));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn wrong_values_exit_with_2() {
        for line in [
            &["sluice-bench", "--only", "http3"][..],
            &["sluice-bench", "--proxies", "envoy"],
            &["sluice-bench", "--rounds", "0"],
            &["sluice-bench", "--seconds", "-1"],
            &["sluice-bench", "--fast"],
        ] {
            assert_eq!(
                Options::try_parse_from(line).expect_err("the line is wrong").exit_code(),
                2,
                "{line:?}"
            );
        }
    }
}
