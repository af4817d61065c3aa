//! What a process has used: CPU time by its own clock (nanoseconds, threads that have ended included), and memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{time::clock_getcpuclockid, unistd::Pid};

use super::load::Outcome;

/// Measures a span of load: begun when the warm-up is over, finished with what the client saw.
#[derive(Debug)]
pub(super) struct Meter {
    proxy: Option<u32>,
    cpu: Duration,
    began: Instant,
}

impl Meter {
    /// `proxy` is the process whose CPU time and memory are read.
    pub(super) fn start(proxy: Option<u32>) -> Result<Self> {
        let cpu = proxy.map(cpu).transpose()?.unwrap_or_default();
        Ok(Self { proxy, cpu, began: Instant::now() })
    }

    /// `latencies` of all requests of the span, in nanoseconds.
    pub(super) fn finish(self, latencies: Vec<u64>) -> Result<Outcome> {
        let elapsed = self.began.elapsed();
        let mut outcome = Outcome::new(latencies, elapsed);
        if let Some(proxy) = self.proxy {
            outcome.cpu_us = Some(cpu(proxy)?.saturating_sub(self.cpu).as_secs_f64() * 1e6);
            outcome.rss_kib = Some(peak_rss_kib(proxy)?);
        }
        Ok(outcome)
    }
}

/// User and system time of a process since it was started.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let clock =
        clock_getcpuclockid(Pid::from_raw(pid as i32)).with_context(|| format!("no process {pid}"))?;
    Ok(clock.now().with_context(|| format!("cannot read the CPU time of process {pid}"))?.into())
}

/// The most memory that was ever resident, in KiB.
pub(super) fn peak_rss_kib(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// The memory that is resident, in KiB.
pub(super) fn rss_kib(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, name: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| file.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    number.with_context(|| format!("{file} has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_something() {
        let own = std::process::id();
        let before = cpu(own).unwrap();
        let mut sum = 0_u64;
        while cpu(own).unwrap() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(rss_kib(own).unwrap() > 0);
        assert!(peak_rss_kib(own).unwrap() >= rss_kib(own).unwrap());
        // Above the highest that Linux gives.
        assert!(cpu(1 << 23).is_err());
    }
}
