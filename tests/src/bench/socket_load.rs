//! Loads below HTTP: bulk transfer, connects, and connections that are idle.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::{
    load::Outcome,
    message,
    usage::{self, Meter},
};

const MIB: usize = 1 << 20;

/// How long idle connections are left alone before the memory is read: time to give buffers back.
const IDLE_TIME: Duration = Duration::from_millis(1500);

const PATIENCE: Duration = Duration::from_secs(20);

/// Receives for `time`, after as much again as `warmup` that is not counted. Latencies are those of a MiB.
pub fn bulk(target: SocketAddr, warmup: Duration, time: Duration, proxy: Option<u32>) -> Result<Outcome> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("cannot connect to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 256 * 1024];
    receive(&mut stream, &mut buffer, warmup)?;
    let meter = Meter::start(proxy)?;
    let latencies = receive(&mut stream, &mut buffer, time)?;
    meter.finish(latencies)
}

fn receive(stream: &mut TcpStream, buffer: &mut [u8], time: Duration) -> Result<Vec<u64>> {
    let mut latencies = Vec::new();
    let end = Instant::now() + time;
    let (mut began, mut count) = (Instant::now(), 0);
    while began < end {
        let read = stream.read(buffer).context("the bulk connection was lost")?;
        ensure!(read > 0, "the bulk connection was closed");
        count += read;
        while count >= MIB {
            latencies.push(began.elapsed().as_nanos() as u64);
            began = Instant::now();
            count -= MIB;
        }
    }
    Ok(latencies)
}

/// Connects and resets in a loop; the latency is that of `connect()` alone.
pub fn connect(target: SocketAddr, warmup: Duration, time: Duration) -> Result<Outcome> {
    connects(target, warmup)?;
    let latencies = connects(target, time)?;
    // What lies between the connects is the bench's own.
    let elapsed = Duration::from_nanos(latencies.iter().sum());
    Ok(Outcome::new(latencies, elapsed))
}

fn connects(target: SocketAddr, time: Duration) -> Result<Vec<u64>> {
    let mut latencies = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        // Ends with a reset, so that no port stays behind in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        let began = Instant::now();
        socket.connect(&target.into()).with_context(|| format!("cannot connect to {target}"))?;
        latencies.push(began.elapsed().as_nanos() as u64);
    }
    Ok(latencies)
}

/// Opens `connections` that have one request each under way at the same time, and reads the proxy's memory when they
/// have been idle for a while.
pub fn idle(target: SocketAddr, connections: usize, proxy: Option<u32>) -> Result<Outcome> {
    let start = Instant::now();
    let request = format!("GET /100/{connections} HTTP/1.1\r\nhost: origin\r\n\r\n");
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(target).with_context(|| format!("cannot connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        streams.push(stream);
    }
    let mut latencies = Vec::with_capacity(connections);
    for stream in &mut streams {
        answer(stream).context("an idle connection")?;
        latencies.push(start.elapsed().as_nanos() as u64);
    }
    thread::sleep(IDLE_TIME);
    let mut outcome = Outcome::new(latencies, start.elapsed());
    outcome.rss_kib = proxy.map(usage::rss_kib).transpose()?;
    Ok(outcome)
}

fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut input = [0; 4096];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut input[filled..]).context("was lost before its answer")?;
        ensure!(read > 0, "was closed before its answer");
        filled += read;
        match message::answer_length(&input[..filled])? {
            Some(length) if filled >= length => return Ok(()),
            _ => {}
        }
    }
}

/// Waits until something accepts connections at `target`.
pub fn wait_for(target: SocketAddr) -> Result<()> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&target, Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("waited {PATIENCE:?} in vain for {target}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::bench::origin;

    #[test]
    fn the_origin_bears_every_load() {
        let any = || origin::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (http, http2, sink) = (any(), any(), any());
        let (target, bulk_target) = (http.local_addr().unwrap(), sink.local_addr().unwrap());
        thread::spawn(move || origin::serve(&http, &http2, &sink));
        let time = Duration::from_millis(50);
        wait_for(target).unwrap();
        assert!(connect(target, Duration::ZERO, time).unwrap().requests > 0);
        assert!(bulk(bulk_target, Duration::ZERO, time, Some(std::process::id())).unwrap().requests > 0);
        let idle = idle(target, 50, Some(std::process::id())).unwrap();
        assert_eq!(idle.requests, 50);
        assert!(idle.rss_kib > Some(0));
    }
}
