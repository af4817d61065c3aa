//! The client and the origin: each sends what it always sends, and reads as many bytes as that has.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};

use crate::{Work, grpc};

/// As much head as a service's client of every day sends.
const REQUEST: &[u8] =
    b"GET /orders/17 HTTP/1.1\r\nHost: orders.shop\r\nUser-Agent: client/1.0\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip\r\nConnection: keep-alive\r\nx-user: 42\r\n\r\n";

/// The same of one that asks nothing more, so that there is a connection for each on the other side, too.
const LAST_REQUEST: &[u8] =
    b"GET /orders/17 HTTP/1.1\r\nHost: orders.shop\r\nUser-Agent: client/1.0\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip\r\nConnection: close\r\nx-user: 42\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\
    Date: Sat, 01 Jan 2000 00:00:00 GMT\r\n\r\n\
    ....................................................................................................";

/// Tells its standard output where the origin listens, reads from its standard input where the proxy does, and sends it
/// as much work as that.
pub(crate) fn run(requests: u64, work: Work) -> Result<()> {
    let origin = TcpListener::bind("127.0.0.1:0").context("the origin cannot listen")?;
    println!("{}", origin.local_addr()?);
    thread::spawn(move || {
        for connection in origin.incoming().flatten() {
            thread::spawn(
                move || if work == Work::Grpc { grpc::respond(connection) } else { respond(connection) },
            );
        }
    });
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let proxy: SocketAddr = line.trim().parse().with_context(|| format!("{line:?} is no address"))?;
    let mut response = Vec::new();
    let mut request = |connection: &mut TcpStream, head: &[u8]| {
        connection.write_all(head)?;
        read_message(connection, &mut response, 100)
    };
    let connect = || {
        let connection = TcpStream::connect(proxy)?;
        connection.set_nodelay(true)?;
        anyhow::Ok(connection)
    };
    match work {
        Work::Grpc => grpc::call(TcpStream::connect(proxy)?, requests),
        Work::Requests => {
            let mut connection = connect()?;
            (0..requests).try_for_each(|_| request(&mut connection, REQUEST))
        }
        Work::Connections => (0..requests).try_for_each(|_| request(&mut connect()?, LAST_REQUEST)),
    }
}

/// Answers requests for as long as the connection lasts.
fn respond(mut connection: TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        read_message(&mut connection, &mut request, 0)?;
        connection.write_all(RESPONSE)?;
    }
}

/// Reads a head and a body of this length; the proxy may add to heads.
fn read_message(connection: &mut TcpStream, message: &mut Vec<u8>, body: usize) -> Result<()> {
    message.clear();
    let mut buffer = [0; 4096];
    loop {
        let read = connection.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "the connection was closed after {} bytes of a message", message.len());
        message.extend_from_slice(&buffer[..read]);
        let end = message.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end
            && message.len() >= end + 4 + body
        {
            anyhow::ensure!(
                message.starts_with(b"GET ") || message.starts_with(b"HTTP/1.1 200 "),
                "not what was to come: {}",
                String::from_utf8_lossy(message)
            );
            return Ok(());
        }
    }
}
