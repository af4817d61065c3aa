//! `sluice-storm`: short connections in large numbers, closed, reset and abandoned, to servers that speak first.
//!
//! Every server says its name as its first line. A connection that reaches another server than the one that was
//! dialled is wrong, and there must be none. Reports as JSON.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use sluice_tests::StormReport;
use socket2::{Domain, Socket, Type};

/// Many short connections to servers that say their names
#[derive(Debug, Parser)]
struct Options {
    /// Address and the name that is expected there, as in `10.96.0.7:3306=orders`
    #[arg(required = true, value_parser = target)]
    targets: Vec<(SocketAddr, String)>,
    /// How many connections in all
    #[arg(long, default_value_t = 50_000)]
    connections: usize,
    /// How many at a time
    #[arg(long, default_value_t = 8)]
    threads: usize,
}

fn target(text: &str) -> Result<(SocketAddr, String), String> {
    let (address, name) = text.split_once('=').ok_or("address=name")?;
    Ok((address.parse().map_err(|_| "no address and port")?, name.to_owned()))
}

/// How a connection ends.
#[derive(Clone, Copy)]
enum End {
    /// Read to the end, then closed.
    Close,
    /// Read the name, then reset.
    Reset,
    /// Reset before anything was read.
    Abandon,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let next = AtomicUsize::new(0);
    let reports = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(|| storm(&options, &next))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the threads do not panic")).collect::<Vec<_>>()
    });
    let mut total = StormReport::default();
    for report in reports {
        total.add(report);
    }
    println!("{}", serde_json::to_string(&total)?);
    Ok(())
}

fn storm(options: &Options, next: &AtomicUsize) -> StormReport {
    let mut report = StormReport::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= options.connections {
            return report;
        }
        // Neighbours in time go to different servers and end differently.
        let (address, name) = &options.targets[number % options.targets.len()];
        let end = match number / options.targets.len() % 4 {
            0 => End::Abandon,
            1 => End::Reset,
            _ => End::Close,
        };
        match connection(*address, end) {
            Ok(None) => report.abandoned += 1,
            Ok(Some(said)) if said == *name => report.right += 1,
            Ok(Some(said)) => {
                report.wrong += 1;
                report.note(format!("{name} was dialled and {said:?} answered"));
            }
            Err(error) => {
                report.failed += 1;
                report.note(format!("{error:#}"));
            }
        }
    }
}

/// The name that the server said.
fn connection(address: SocketAddr, end: End) -> Result<Option<String>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect(&address.into()).context("connect")?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    if matches!(end, End::Abandon | End::Reset) {
        // Closing then sends a reset, and the port is free at once.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    if matches!(end, End::Abandon) {
        return Ok(None);
    }
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).context("read")?;
    if matches!(end, End::Close) {
        let mut rest = String::new();
        reader.read_line(&mut rest).context("read to the end")?;
    }
    Ok(Some(line.split(' ').next().unwrap_or_default().to_owned()))
}
