//! A proxy that carries a given number of HTTP/1.1 requests, of connections with one each, or of gRPC calls, and ends: for
//! callgrind, which counts the instructions of a process (`cargo xtask bench instructions`).
//!
//! The client and the origin are this program once more, in a process that is not counted. Two runs that differ in the
//! number of requests alone differ by what those requests cost. One connection carries one request at a time, so that the
//! number does not depend on who runs when: it is the floor of what a request costs, without what the kernel does.

mod grpc;
mod peers;
mod proxy;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// musl's own allocator takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Carries requests through a proxy, to be counted
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Be the proxy
    Proxy {
        /// How many requests
        #[arg(long)]
        requests: u64,
        /// A directory of manifests with one Service, and the TrafficPolicy that holds for it, if one does
        #[arg(long)]
        manifests: PathBuf,
        /// What they are
        #[arg(long, value_enum, default_value_t)]
        work: Work,
    },
    /// Be the client and the origin of a proxy, which starts this itself
    #[command(hide = true)]
    Peers {
        #[arg(long)]
        requests: u64,
        #[arg(long, value_enum)]
        work: Work,
    },
}

/// What the client does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Requests of HTTP/1 over one connection
    #[default]
    Requests,
    /// Requests of HTTP/1, each over a connection of its own
    Connections,
    /// Unary gRPC calls over one connection
    Grpc,
}

impl Work {
    /// As arguments have it.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().part {
        Part::Proxy { requests, manifests, work } => proxy::run(requests, work, &manifests),
        Part::Peers { requests, work } => peers::run(requests, work),
    };
    report(done)
}

fn report(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}
