//! Clients that send HTTP/2 frames which carry nothing, and a pod beside them: what it feels of that, and what becomes of
//! them. Nothing here is asserted. The flood itself takes a part of the processors, so what the pod feels is compared with
//! what it feels of the same clients when they flood somebody else: a sink in their own pod, which takes little and ends them
//! after a while, as the agent does.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{
    Record,
    frames::{
        self, DATA, END_HEADERS, END_STREAM, Frame, GO_AWAY, Greeting, HEADERS, PING, PREFACE, RESET,
        SETTINGS,
    },
    load::Outcome as Calls,
    usage,
};
use crate::{Agent, Capture, Pod, Process, Service, World, binary};

/// What it is called beside the loads.
pub const NAME: &str = "floods";

const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// How long a client that was ended waits before it comes again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a sink bears a connection, and how often it reads.
const SUNK_AFTER: Duration = Duration::from_millis(1200);
const SINK_PAUSE: Duration = Duration::from_millis(50);

const HTTP2: u16 = 8082;

/// What is sent, as fast as it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Ping,
    Settings,
    WindowUpdate,
    Priority,
    EmptyData,
    /// Streams that are opened and given up.
    Reset,
    /// Streams that the other end is made to reset (CVE-2025-8671).
    MadeToReset,
}

impl Kind {
    /// `id`: a stream that is open, or the next one.
    fn put(self, out: &mut Vec<u8>, id: &mut u32) {
        // GET http://a/, all but the authority of the static table.
        const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
        match self {
            Self::Ping => frames::put(out, PING, 0, 0, &[0; 8]),
            Self::Settings => frames::put(out, SETTINGS, 0, 0, &[]),
            Self::WindowUpdate => frames::put(out, WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
            Self::Priority => frames::put(out, PRIORITY, 0, 1, &[0; 5]),
            Self::EmptyData => frames::put(out, DATA, 0, 1, &[]),
            Self::Reset | Self::MadeToReset => {
                *id += 2;
                frames::put(out, HEADERS, END_HEADERS | END_STREAM, *id, &GET);
                if self == Self::Reset {
                    frames::put(out, RESET, 0, *id, &8_u32.to_be_bytes());
                } else {
                    frames::put(out, WINDOW_UPDATE, 0, *id, &0_u32.to_be_bytes());
                }
            }
        }
    }
}

/// What became of the clients that flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Became {
    pub connections: u64,
    /// Ended with GOAWAY, `ENHANCE_YOUR_CALM`.
    pub calmed: u64,
    pub bytes: u64,
}

/// Floods `target` over so many connections, each of which comes again when it is ended.
pub fn flood(target: SocketAddr, kind: Kind, connections: usize, time: Duration) -> Became {
    let (opened, calmed, bytes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + time;
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                while Instant::now() < end {
                    if let Ok(stream) = TcpStream::connect(target) {
                        opened.fetch_add(1, Ordering::Relaxed);
                        let ended = one(&stream, kind, end, &bytes).is_ok_and(|ended| ended);
                        calmed.fetch_add(u64::from(ended), Ordering::Relaxed);
                    }
                    thread::sleep(AGAIN.min(end.saturating_duration_since(Instant::now())));
                }
            });
        }
    });
    Became { connections: opened.into_inner(), calmed: calmed.into_inner(), bytes: bytes.into_inner() }
}

/// Takes a little of each connection, and ends it as soon as the agent does.
fn sink() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the sink cannot listen")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut buffer, begun) = ([0; 4096], Instant::now());
                while begun.elapsed() < SUNK_AFTER && matches!(stream.read(&mut buffer), Ok(1..)) {
                    thread::sleep(SINK_PAUSE);
                }
            });
        }
    });
    Ok(address)
}

/// Floods such a sink instead.
pub fn flood_sink(kind: Kind, connections: usize, time: Duration) -> Result<Became> {
    Ok(flood(sink()?, kind, connections, time))
}

/// One connection. Whether it was told to be calm.
fn one(stream: &TcpStream, kind: Kind, end: Instant, bytes: &AtomicU64) -> Result<bool> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_millis(50)))?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut out = PREFACE.to_vec();
    let _greeting = Greeting::begin(&mut out);
    // POST http://a/: it goes on.
    frames::put(&mut out, HEADERS, END_HEADERS, 1, &[0x83, 0x86, 0x84, 0x41, 1, b'a']);
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(stream, end));
        let mut id = 1;
        while Instant::now() < end && !reader.is_finished() {
            while out.len() < 32 * 1024 {
                kind.put(&mut out, &mut id);
            }
            match (&mut &*stream).write(&out) {
                Ok(count) => {
                    out.drain(..count);
                    bytes.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        Ok(reader.join().is_ok_and(|code| code == Some(ENHANCE_YOUR_CALM)))
    })
}

/// Reads until the end. The code of GOAWAY, if one came.
fn read(mut stream: &TcpStream, end: Instant) -> Option<u32> {
    let (mut input, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while Instant::now() < end {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => input.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return None,
        }
        let mut at = 0;
        while let Some(frame) = Frame::first(&input, at) {
            if frame.kind == GO_AWAY
                && let Some(&[c0, c1, c2, c3]) = input.get(frame.begin + 4..frame.begin + 8)
            {
                return Some(u32::from_be_bytes([c0, c1, c2, c3]));
            }
            at = frame.end;
        }
        input.drain(..at);
    }
    None
}

/// What a pod beside a flood saw without it and with it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub kind: Kind,
    pub connections: usize,
    pub before: Calls,
    /// Beside the same flood of somebody else.
    pub elsewhere: Calls,
    pub during: Calls,
    pub became: Became,
    /// Connections that bypassed the agent, because their pod had used up its part, and because the agent did not keep up.
    pub bypassed: [u64; 2],
    /// CPU time of the agent meanwhile, in seconds.
    pub cpu: f64,
    /// Resident memory of the agent, in KiB.
    pub memory: [u64; 2],
}

impl Outcome {
    fn name(&self) -> String {
        name((self.kind, self.connections))
    }

    fn ratio(&self) -> f64 {
        self.during.p99_us / self.elsewhere.p99_us.max(1.0)
    }

    pub fn record(&self) -> Record {
        Record {
            proxy: "sluice".to_owned(),
            load: self.name(),
            rps: Some(self.during.requests as f64 / self.during.seconds),
            p50_us: Some(self.during.p50_us),
            p99_us: Some(self.during.p99_us),
            ..Record::default()
        }
    }
}

/// Every flood: its kind, and over how many connections it comes.
pub fn all() -> Vec<(Kind, usize)> {
    let mut floods: Vec<_> = Kind::value_variants().iter().map(|kind| (*kind, 1)).collect();
    floods.push((Kind::Ping, 200));
    floods
}

/// What it is called beside the loads.
pub fn name((kind, connections): (Kind, usize)) -> String {
    let kind = kind.to_possible_value();
    let kind = kind.as_ref().map_or("", |value| value.get_name());
    format!("{NAME}: {kind} x{connections}")
}

/// Plays these floods for `time` each; `progress` is told each as it begins.
pub fn run(floods: &[(Kind, usize)], time: Duration, mut progress: impl FnMut(&str)) -> Result<Vec<Outcome>> {
    let world = World::new("floods")?;
    // A flood may use up what its pod may have of the agent, which it then bypasses.
    world.kube_proxy()?;
    world.namespace("bench", Capture::Enabled)?;
    let attacker = world.pod("bench", "attacker").start()?;
    let bystander = world.pod("bench", "bystander").start()?;
    let origin = world.pod("bench", "origin").label("app", "origin").start()?;
    let service = world.service("bench", "origin").port("http2", HTTP2, HTTP2).apply()?;
    let mut process =
        origin.spawn("origin", binary("sluice-bench")?, &["origin", "8080", &HTTP2.to_string(), "8081"])?;
    process.says("listening")?;
    let agent = world.agent().start()?;
    agent.enrolled(&attacker)?;
    agent.enrolled(&bystander)?;
    let bench = Bench { attacker: &attacker, bystander: &bystander, service: &service, agent: &agent };
    let played = floods.iter().map(|(kind, connections)| {
        progress(&name((*kind, *connections)));
        bench.play(*kind, *connections, time)
    });
    played.collect()
}

struct Bench<'w> {
    attacker: &'w Pod,
    bystander: &'w Pod,
    service: &'w Service,
    agent: &'w Agent,
}

impl Bench<'_> {
    fn target(&self) -> String {
        SocketAddr::from((self.service.ipv4, HTTP2)).to_string()
    }

    fn play(&self, kind: Kind, connections: usize, time: Duration) -> Result<Outcome> {
        let before = self.calls(time)?;
        let memory = || Ok::<_, anyhow::Error>(self.agent.memory()? / 1024);
        let resident = memory()?;
        let bypassed = self.bypassed()?;
        let (elsewhere, _) = self.beside(kind, connections, time, &["--sink"])?;
        let cpu = self.cpu()?;
        let (during, became) = self.beside(kind, connections, time, &[])?;
        let cpu = self.cpu()? - cpu;
        let now = self.bypassed()?;
        let bypassed = [now[0] - bypassed[0], now[1] - bypassed[1]];
        let memory = [resident, memory()?];
        Ok(Outcome { kind, connections, before, elsewhere, during, became, bypassed, cpu, memory })
    }

    /// Calls beside a flood.
    fn beside(
        &self,
        kind: Kind,
        connections: usize,
        time: Duration,
        more: &[&str],
    ) -> Result<(Calls, Became)> {
        let name = kind.to_possible_value().context("a kind that is hidden")?;
        let seconds = (time + Duration::from_secs(2)).as_secs_f64().to_string();
        let (target, count) = (self.target(), connections.to_string());
        let arguments = [&["flood", &target, name.get_name(), &count, &seconds][..], more].concat();
        let mut flood: Process = self.attacker.spawn("flood", binary("sluice-bench")?, &arguments)?;
        flood.says("begins")?;
        let during = self.calls(time)?;
        flood.wait()?;
        let said = flood.log();
        let line = said.lines().rev().find(|line| line.starts_with('{')).context("the flood says nothing")?;
        Ok((during, serde_json::from_str(line)?))
    }

    fn bypassed(&self) -> Result<[u64; 2]> {
        Ok([
            self.agent.connects("bypassed_over_budget")?,
            self.agent.connects("bypassed_agent_unresponsive")?,
        ])
    }

    fn cpu(&self) -> Result<f64> {
        Ok(usage::cpu(self.agent.pid())?.as_secs_f64())
    }

    /// Calls one after the other, over one connection.
    fn calls(&self, time: Duration) -> Result<Calls> {
        let (target, time) = (self.target(), time.as_secs_f64().to_string());
        let arguments = [
            "load",
            &target,
            "--wait-for",
            &target,
            "--connections",
            "1",
            "--warmup",
            "0.4",
            "--time",
            &time,
            "http2",
            "1",
        ];
        let answer = self.bystander.run(binary("sluice-bench")?, &arguments)?;
        serde_json::from_str(&answer).with_context(|| format!("the client's report: {answer:?}"))
    }
}

/// Side by side, for people.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut out = format!(
        "\nfloods: what another pod's calls feel of a client that sends what carries nothing, beside the same flood of a sink\n{:<20}{:>10}{:>11}{:>11}{:>8}{:>13}{:>13}{:>9}{:>10}{:>9}{:>16}\n",
        "",
        "p99 us",
        "of a sink",
        "beside it",
        "ratio",
        "connections",
        "over, late",
        "calmed",
        "MiB sent",
        "CPU s",
        "agent KiB"
    );
    for outcome in outcomes {
        let _ = writeln!(
            out,
            "{:<20}{:>10.0}{:>11.0}{:>11.0}{:>8.2}{:>13}{:>13}{:>9}{:>10.1}{:>9.2}{:>16}",
            outcome.name().trim_start_matches("floods: "),
            outcome.before.p99_us,
            outcome.elsewhere.p99_us,
            outcome.during.p99_us,
            outcome.ratio(),
            outcome.became.connections,
            format!("{}, {}", outcome.bypassed[0], outcome.bypassed[1]),
            outcome.became.calmed,
            outcome.became.bytes as f64 / f64::from(1 << 20),
            outcome.cpu,
            format!("{} > {}", outcome.memory[0], outcome.memory[1]),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_whole_frames_and_streams_have_numbers_of_their_own() {
        for kind in Kind::value_variants() {
            let (mut out, mut id) = (Vec::new(), 1);
            kind.put(&mut out, &mut id);
            kind.put(&mut out, &mut id);
            let (mut at, mut streams) = (0, Vec::new());
            while let Some(frame) = Frame::first(&out, at) {
                streams.push(frame.stream);
                at = frame.end;
            }
            assert_eq!(at, out.len(), "{kind:?}");
            if matches!(kind, Kind::Reset | Kind::MadeToReset) {
                assert_eq!(streams, [3, 3, 5, 5], "{kind:?}");
            }
        }
    }

    #[test]
    fn the_table_says_by_how_much_calls_are_slower() {
        let calls = |p99_us| Calls { requests: 10, seconds: 1.0, p99_us, ..Calls::default() };
        let became = Became { connections: 3, calmed: 2, bytes: 3 << 20 };
        let outcome = Outcome {
            kind: Kind::EmptyData,
            connections: 1,
            before: calls(100.0),
            elsewhere: calls(200.0),
            during: calls(220.0),
            became,
            bypassed: [1, 0],
            cpu: 0.25,
            memory: [9000, 9100],
        };
        let text = table(&[outcome]);
        let row: Vec<_> = text.lines().nth(3).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "empty-data",
                "x1",
                "100",
                "200",
                "220",
                "1.10",
                "3",
                "1,",
                "0",
                "2",
                "3.0",
                "0.25",
                "9000",
                ">",
                "9100"
            ]
        );
    }
}
