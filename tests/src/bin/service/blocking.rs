//! The service as a blocking server: a thread for each connection, which reads one request, asks the next service, passes on nothing
//! of what it was asked with, responds, and ends.

use std::{
    io::{BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Answer, Hop};

use crate::Options;

/// Nobody waits for longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Accepts connections for ever.
pub(crate) fn accept(listener: &TcpListener, options: &'static Options) {
    for connection in listener.incoming() {
        match connection {
            Ok(connection) => {
                thread::spawn(move || {
                    if let Err(error) = serve(&connection, options) {
                        eprintln!("a connection: {error:#}");
                    }
                });
            }
            Err(error) => {
                eprintln!("cannot accept: {error}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn serve(mut connection: &TcpStream, options: &Options) -> Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    read_head(&mut BufReader::new(connection))?;
    let next = options.next.as_ref().map(|next| next.authority().context("the next service has no address"));
    let mut answer = match next.transpose()? {
        Some(next) => ask(next.as_str().parse().context("the next service has no IP address and port")?)?,
        None => Answer::default(),
    };
    answer.chain.insert(
        0,
        Hop {
            service: options.name.clone(),
            version: options.version.clone(),
            pod: options.pod.clone(),
            ..Hop::default()
        },
    );
    let body = serde_json::to_vec(&answer)?;
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}

fn ask(next: SocketAddr) -> Result<Answer> {
    let mut there = TcpStream::connect(next)?;
    there.set_read_timeout(Some(PATIENCE))?;
    there.write_all(format!("GET / HTTP/1.1\r\nhost: {next}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut there = BufReader::new(there);
    let head = read_head(&mut there)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.context("a response without a length")?];
    there.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn read_head(from: &mut impl std::io::BufRead) -> Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(from.read_line(&mut head)? > 0, "it ended within the head");
    }
    Ok(head)
}
