//! A proxy that carries a given number of HTTP/1.1 requests, or gRPC calls, and ends: for callgrind, which counts the instructions of a
//! process (`cargo xtask bench instructions`).
//!
//! The client and the origin are this program once more, in a process that is not counted. Two runs that differ in the
//! number of requests alone differ by what those requests cost. One connection carries one request at a time, so that the
//! number does not depend on who runs when: it is the floor of what a request costs, without what the kernel does.

mod grpc;
mod peers;
mod proxy;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

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
        /// They are unary gRPC calls
        #[arg(long)]
        grpc: bool,
    },
    /// Be the client and the origin of a proxy, which starts this itself
    #[command(hide = true)]
    Peers {
        #[arg(long)]
        requests: u64,
        #[arg(long)]
        grpc: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().part {
        Part::Proxy { requests, manifests, grpc } => proxy::run(requests, grpc, &manifests),
        Part::Peers { requests, grpc } => peers::run(requests, grpc),
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
