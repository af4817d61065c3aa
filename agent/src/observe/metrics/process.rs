//! What the process itself uses, by the names that Prometheus's client libraries agree on.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>
//!
//! The collector of the `prometheus` crate counts CPU time in whole seconds, so that an agent which uses a hundredth of a core
//! shows a step every two minutes. The kernel counts ticks of 10 ms.

use std::{collections::HashMap, fs};

use prometheus::{
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

use super::families::{counter, family, gauge};

/// Ticks a second in `/proc`: USER_HZ, which is 100 wherever Sluice runs (x86-64 and arm64).
/// <https://elixir.bootlin.com/linux/v6.12/source/include/asm-generic/param.h#L9>
const TICKS: f64 = 100.0;

/// Name, help, kind, and where the value is in a [`Reading`].
type Family = (&'static str, &'static str, MetricType, fn(&Reading) -> Option<f64>);

const FAMILIES: [Family; 7] = [
    (
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        MetricType::COUNTER,
        |at| at.cpu,
    ),
    ("process_open_fds", "Number of open file descriptors.", MetricType::GAUGE, |at| at.open_fds),
    ("process_max_fds", "Maximum number of open file descriptors.", MetricType::GAUGE, |at| at.max_fds),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes.", MetricType::GAUGE, |at| {
        at.virtual_memory
    }),
    ("process_resident_memory_bytes", "Resident memory size in bytes.", MetricType::GAUGE, |at| at.resident),
    (
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        MetricType::GAUGE,
        |at| at.started,
    ),
    ("process_threads", "Number of OS threads in the process.", MetricType::GAUGE, |at| at.threads),
];

/// The process at a moment. What cannot be read is left out.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    cpu: Option<f64>,
    started: Option<f64>,
    threads: Option<f64>,
    virtual_memory: Option<f64>,
    resident: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

impl Reading {
    /// `booted`: seconds since the epoch.
    fn now(booted: Option<f64>) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let mut reading = Self::default();
        reading.stat(&read("stat"), booted);
        reading.status(&read("status"));
        reading.limits(&read("limits"));
        // One of them is that of the directory.
        reading.open_fds =
            fs::read_dir("/proc/self/fd").ok().map(|all| (all.count().saturating_sub(1)) as f64);
        reading
    }

    /// `pid (name) state ppid ...`: the name may hold anything, also parentheses and spaces.
    /// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>
    fn stat(&mut self, text: &str, booted: Option<f64>) {
        let Some((_, rest)) = text.rsplit_once(')') else { return };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // They are numbered from 1, and the state is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        self.cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
        self.threads = field(20);
        self.started = booted.zip(field(22)).map(|(booted, ticks)| booted + ticks / TICKS);
    }

    fn status(&mut self, text: &str) {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib * 1024.0)
        };
        self.virtual_memory = bytes("VmSize");
        self.resident = bytes("VmRSS");
    }

    /// The limit that holds is the first of the two; `unlimited` is none.
    fn limits(&mut self, text: &str) {
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
        self.max_fds = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    }
}

/// `btime 1700000000`
fn booted(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The collector.
pub(super) struct Process {
    booted: Option<f64>,
    descs: Vec<Desc>,
}

impl Process {
    pub(super) fn new() -> Self {
        let desc = |(name, help, ..): &Family| {
            Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), HashMap::new())
                .expect("names are constant and valid")
        };
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { booted: booted(&stat), descs: FAMILIES.iter().map(desc).collect() }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = Reading::now(self.booted);
        let all = FAMILIES.iter().zip(&self.descs);
        all.map(|((_, _, kind, value), desc)| {
            let metric = value(&reading).map(|value| match kind {
                MetricType::COUNTER => counter(Vec::new(), value),
                _ => gauge(Vec::new(), value),
            });
            family(desc, *kind, metric.into_iter().collect())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

    use super::*;

    #[test]
    fn files_are_taken_apart() {
        let mut reading = Reading::default();
        reading.stat(
            "7 (a) b) (c) S 1 7 7 0 -1 4194304 901 0 0 0 123 45 0 0 20 0 3 0 250 1000000 64 18446744073709551615 1",
            Some(1_700_000_000.0),
        );
        reading.status("Name:\ta\nVmSize:\t    1000 kB\nVmRSS:\t     500 kB\nThreads:\t3\n");
        reading.limits(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            1024                 524288               files     \n",
        );
        let wanted = Reading {
            cpu: Some(1.68),
            started: Some(1_700_000_002.5),
            threads: Some(3.0),
            virtual_memory: Some(1_024_000.0),
            resident: Some(512_000.0),
            open_fds: None,
            max_fds: Some(1024.0),
        };
        assert_eq!(reading, wanted);
        assert_eq!(booted("cpu  1 2\nbtime 1700000000\nprocesses 7\n"), Some(1_700_000_000.0));

        let mut nothing = Reading::default();
        for text in ["", "7 (a", "7 (a) S 1", "7 (a) S x x x x x x x x x x x x"] {
            nothing.stat(text, None);
            nothing.status(text);
            nothing.limits(text);
            nothing
                .limits("Max open files            unlimited            unlimited            files     \n");
            assert_eq!(nothing, Reading::default(), "{text}");
        }
    }

    #[test]
    fn the_kernel_says_the_same() {
        let cpu = || {
            let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
            let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            seconds(usage.user_time()) + seconds(usage.system_time())
        };
        // Enough that whole seconds would not do: the tests around do their part.
        while cpu() < 0.25 {
            std::hint::black_box((0..100_000u64).sum::<u64>());
        }
        let (before, families, after) = (cpu(), Process::new().collect(), cpu());
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap();
            let metric = &family.get_metric()[0];
            match family.get_field_type() {
                MetricType::COUNTER => metric.get_counter().get_value(),
                _ => metric.get_gauge().get_value(),
            }
        };
        // Both of its parts are whole ticks.
        let told = value("process_cpu_seconds_total");
        assert!(before - 2.0 / TICKS <= told && told <= after + 2.0 / TICKS, "{before} {told} {after}");
        assert_eq!(value("process_max_fds") as u64, getrlimit(Resource::RLIMIT_NOFILE).unwrap().0);
        let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
            - value("process_start_time_seconds");
        assert!(age > -2.0, "it started {age} s ago");
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_resident_memory_bytes") > 1e6);
    }
}
