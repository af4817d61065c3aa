//! `sluice-peers`: whether a server sees of each of many short connections the client that it is of.
//!
//! `serve` is an HTTP server that compares the addresses that accept() and getpeername() gave with what the request says that its
//! client is, and answers with them; `/report` answers with what it has counted. `call` makes connections from few local ports,
//! so that each is used again at once, many of them reset; and reports as JSON.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::StormReport;
use socket2::{Domain, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);

/// Many short connections, and a server that knows whose each is
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers each request with the addresses of its client
    Serve {
        #[arg(long)]
        port: u16,
        /// How many connections it serves at a time
        #[arg(long, default_value_t = 24)]
        threads: usize,
    },
    /// Makes connections
    Call {
        /// The servers, asked in turns
        #[arg(required = true)]
        targets: Vec<SocketAddr>,
        /// How many connections in all
        #[arg(long)]
        connections: usize,
        /// How many at a time
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
}

fn main() -> Result<ExitCode> {
    match Options::parse().command {
        Command::Serve { port, threads } => serve(port, threads),
        Command::Call { targets, connections, threads } => {
            let (next, report) = (AtomicUsize::new(0), Mutex::<StormReport>::default());
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let own = calls(&targets, connections, &next);
                        report.lock().unwrap_or_else(PoisonError::into_inner).add(own);
                    });
                }
            });
            let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
            println!("{}", serde_json::to_string(&report)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn serve(port: u16, threads: usize) -> Result<ExitCode> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(IpAddr::from([0_u16; 8]), port).into())?;
    socket.listen(1024)?;
    let listener = TcpListener::from(socket);
    println!("listening");
    let report = Mutex::<StormReport>::default();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Ok((connection, accepted)) = listener.accept() {
                    let counted = connection_of(connection, plain(accepted), &report);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    match counted {
                        Ok(Some(said)) if said == accepted_text(accepted) => report.right += 1,
                        Ok(Some(said)) => {
                            report.wrong += 1;
                            report.note(format!("{said} was accepted as {accepted}"));
                        }
                        Ok(None) => {}
                        // It left, in whatever way.
                        Err(_) => report.abandoned += 1,
                    }
                }
            });
        }
    });
    Ok(ExitCode::FAILURE)
}

fn accepted_text(accepted: SocketAddr) -> String {
    plain(accepted).to_string()
}

/// Who the client says that it is; `None` if it only asked for the report.
fn connection_of(
    mut connection: TcpStream,
    accepted: SocketAddr,
    report: &Mutex<StormReport>,
) -> Result<Option<String>> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let head = head(&mut connection)?;
    let path = head.split(' ').nth(1).and_then(|path| path.strip_prefix('/')).context("no path")?;
    let (body, client) = if path == "report" {
        let report = report.lock().unwrap_or_else(PoisonError::into_inner);
        (serde_json::to_string(&*report)?, None)
    } else {
        // A client that has gone has no name any more, but was accepted all the same.
        let named = connection.peer_addr().map_or_else(|error| error.to_string(), accepted_text);
        // Others than `call` do not say who they are.
        let client = path.parse::<SocketAddr>().is_ok().then(|| path.to_owned());
        (format!("{accepted} {named}"), client)
    };
    let length = body.len();
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    // What became of the answer is the client's to say.
    let _ = connection.write_all(whole.as_bytes());
    Ok(client)
}

fn head(connection: &mut TcpStream) -> Result<String> {
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let length = connection.read(&mut part)?;
        ensure!(length > 0, "it ended");
        head.extend_from_slice(&part[..length]);
    }
    Ok(String::from_utf8(head)?)
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Read to the end, then closed.
    Close,
    /// Read to the end, then reset.
    Reset,
    /// Reset as soon as the request is sent.
    Asked,
    /// Reset before anything is sent.
    Silent,
}

fn calls(targets: &[SocketAddr], connections: usize, next: &AtomicUsize) -> StormReport {
    let mut report = StormReport::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= connections {
            return report;
        }
        let end = match number / targets.len() % 8 {
            0 => End::Silent,
            3 => End::Asked,
            1 | 4 | 6 => End::Reset,
            _ => End::Close,
        };
        match call(targets[number % targets.len()], end) {
            Ok(None) => report.abandoned += 1,
            Ok(Some((own, seen))) if seen == format!("{own} {own}") => report.right += 1,
            Ok(Some((own, seen))) => {
                report.wrong += 1;
                report.note(format!("{own} was seen as {seen:?}"));
            }
            Err(error) => {
                report.failed += 1;
                report.note(format!("{error:#}"));
            }
        }
    }
}

/// The client's address, and what the server said of it.
fn call(target: SocketAddr, end: End) -> Result<Option<(SocketAddr, String)>> {
    let mut connection = TcpStream::connect(target).context("connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    if end != End::Close {
        // Closing then sends a reset, and the port is free at once.
        SockRef::from(&connection).set_linger(Some(Duration::ZERO))?;
    }
    if end == End::Silent {
        return Ok(None);
    }
    let own = plain(connection.local_addr()?);
    let request = format!("GET /{own} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).context("write")?;
    if end == End::Asked {
        return Ok(None);
    }
    let mut response = String::new();
    connection.read_to_string(&mut response).context("read")?;
    let (head, body) = response.split_once("\r\n\r\n").context("no response")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{response}");
    Ok(Some((own, body.to_owned())))
}
