//! The loads of the bench, and what a client reports of one.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::http2_load::Call;

/// Connections that the idle loads hold. What a pair costs is the difference over the difference.
pub const IDLE: [usize; 2] = [100, 1100];

/// One load: what the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub work: Work,
    pub connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// HTTP/1.1 requests one after the other on each connection, answered with as many bytes.
    KeepAlive { bytes: usize },
    /// As [`Work::KeepAlive`] with 100 bytes, but the client closes its connection after each answer, without a word
    /// before: a proxy may keep its own connection to the origin.
    NewConnections,
    /// As [`Work::NewConnections`], but each request says `connection: close`, which Sluice and nginx pass on: a
    /// connection on either side for each request.
    Close,
    /// Calls over HTTP/2, so many at a time on each connection, with 100 bytes each way or back.
    Http2 { call: Call, streams: usize },
    /// One TCP connection through which the origin sends without end. A "request" is one MiB.
    Bulk,
    /// `connect()` to an address that is not managed, from an enrolled pod. A "request" is one connect.
    Connect,
    /// Connections that are open after one request each, all at once, so that as many lead to the origin.
    Idle,
}

/// All of them, in the order of the report.
pub fn all() -> Vec<Load> {
    let mut loads = Vec::new();
    for bytes in [100, 16 * 1024] {
        for connections in [1, 32, 256] {
            loads.push(Load { work: Work::KeepAlive { bytes }, connections });
        }
    }
    loads.push(Load { work: Work::NewConnections, connections: 32 });
    loads.push(Load { work: Work::Close, connections: 32 });
    for (connections, streams) in [(1, 32), (16, 16), (64, 1)] {
        loads.push(Load { work: Work::Http2 { call: Call::Get, streams }, connections });
    }
    for call in [Call::Unary, Call::Streaming] {
        loads.push(Load { work: Work::Http2 { call, streams: 16 }, connections: 16 });
    }
    loads.push(Load { work: Work::Bulk, connections: 1 });
    loads.push(Load { work: Work::Connect, connections: 1 });
    loads.extend(IDLE.map(|connections| Load { work: Work::Idle, connections }));
    loads
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.connections;
        match self.work {
            Work::KeepAlive { bytes } if bytes % 1024 == 0 => {
                write!(f, "keepalive-{connections}-{}k", bytes / 1024)
            }
            Work::KeepAlive { bytes } => write!(f, "keepalive-{connections}-{bytes}b"),
            Work::NewConnections => write!(f, "new-connections-{connections}"),
            Work::Close => write!(f, "close-{connections}"),
            Work::Http2 { call: Call::Get, streams } => write!(f, "h2-{connections}x{streams}"),
            Work::Http2 { call: Call::Unary, streams } => write!(f, "grpc-unary-{connections}x{streams}"),
            Work::Http2 { call: Call::Streaming, streams } => {
                write!(f, "grpc-streaming-{connections}x{streams}")
            }
            Work::Bulk => f.write_str("tcp-bulk"),
            Work::Connect => f.write_str("connect-ungoverned"),
            Work::Idle => write!(f, "idle-{connections}"),
        }
    }
}

/// What a client saw in the measured time, and what the proxy used in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of the proxy, user and system, in microseconds; `None` without a proxy.
    pub cpu_us: Option<f64>,
    /// Resident memory of the proxy: the peak since it was started, or for [`Work::Idle`] that at the end.
    pub rss_kib: Option<u64>,
}

impl Outcome {
    /// From the latencies of all requests, in nanoseconds.
    pub(super) fn new(mut latencies: Vec<u64>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        Self {
            requests: latencies.len() as u64,
            seconds: elapsed.as_secs_f64(),
            p50_us: percentile(&latencies, 50) / 1e3,
            p99_us: percentile(&latencies, 99) / 1e3,
            cpu_us: None,
            rss_kib: None,
        }
    }
}

/// The smallest value that is not exceeded by `percent` of the `sorted` values; 0 if there is none.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default() as f64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn loads_have_names_of_their_own() {
        let names: Vec<_> = all().iter().map(ToString::to_string).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for name in [
            "keepalive-32-100b",
            "keepalive-256-16k",
            "new-connections-32",
            "close-32",
            "h2-16x16",
            "grpc-streaming-16x16",
            "tcp-bulk",
            "idle-1100",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}");
        }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<u64> = (1..=200).collect();
        assert_eq!([1, 50, 99, 100].map(|percent| percentile(&sorted, percent) as u64), [2, 100, 198, 200]);
        assert_eq!([50, 99].map(|percent| percentile(&[7], percent) as u64), [7, 7]);
        assert_eq!(percentile(&[], 50) as u64, 0);
    }
}
