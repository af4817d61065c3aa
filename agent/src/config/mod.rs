//! What the operator chose: the flags of `sluice agent`, each with an environment equivalent.
//!
//! [`settings`] tells what is in force and where it comes from, and takes care of the environment.

mod address;
mod limit_store;
pub(crate) mod number;
pub mod settings;
mod telemetry;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use http::HeaderName;

use self::number::whole;
pub use self::{
    address::{AdminAddress, NoNodeAddress},
    limit_store::{LimitStore, NoStoreAddress, StoreAddress},
    settings::{Origin, Setting, Settings},
    telemetry::Telemetry,
};

use crate::{
    govern::{jwt::AllowedHost, lane::DEFAULT_TAG_HEADER},
    observe::sampling::Ratio,
};

/// Where a BPF file system is mounted as a rule.
pub const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";
/// Where the admin socket is, if nobody says otherwise.
pub const ADMIN_SOCKET: &str = "/run/sluice/sluice.sock";

/// How access log lines look, if there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    #[default]
    None,
    Text,
    Json,
}

/// Flags of `sluice agent`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Directory of Kubernetes manifests (Namespace, Service, EndpointSlice, Pod, TrafficPolicy, TrafficLane,
    /// AccessPolicy, HTTPRoute, GRPCRoute, ReferenceGrant) to watch instead of the API server [default: the API server of
    /// the cluster that the agent runs in, or that the kubeconfig names]
    #[arg(long, value_name = "DIR", env = "SLUICE_MANIFESTS")]
    pub manifests: Option<PathBuf>,

    /// The cgroup (v2) that holds all pods, as a full path; needed only if there is no cgroup named `kubepods`,
    /// `kubepods.slice` or `*-kubepods.slice`, or more than one [default: that cgroup]
    #[arg(long, value_name = "DIR", env = "SLUICE_PODS_CGROUP")]
    pub pods_cgroup: Option<PathBuf>,

    /// The name of this node, for `internalTrafficPolicy: Local` and topology hints
    #[arg(long, value_name = "NAME", env = "SLUICE_NODE", value_parser = object_name)]
    pub node: Option<String>,

    /// The IP address of this node: what `node` stands for in --admin
    #[arg(long, value_name = "IP", env = "SLUICE_NODE_ADDRESS")]
    pub node_address: Option<IpAddr>,

    /// The zone of this node, for topology hints [default: the node's label `topology.kubernetes.io/zone`]
    #[arg(long, value_name = "ZONE", env = "SLUICE_ZONE")]
    pub zone: Option<String>,

    /// Where /metrics, /healthz, /readyz, /config and the dashboard are served over TCP: an IP address or `node`, and a
    /// port; may be given more than once
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "SLUICE_ADMIN",
        value_delimiter = ',',
        default_value = "127.0.0.1:9465"
    )]
    pub admin: Vec<AdminAddress>,

    /// The Unix socket for root that serves the same, and what `sluice status`, `explain`, `call`, `dump` and
    /// `log-level` need; or `none`
    #[arg(long, value_name = "PATH", env = "SLUICE_ADMIN_SOCKET", default_value = ADMIN_SOCKET)]
    pub admin_socket: AdminSocket,

    /// File in which the last known state of the cluster is kept: an agent that starts while the API server is away runs on
    /// it; not used with --manifests [default: none]
    #[arg(long, value_name = "PATH", env = "SLUICE_STATE_FILE", value_parser = absolute)]
    pub state_file: Option<PathBuf>,

    /// Host that AccessPolicies may have keys of tokens fetched from (`jwks.uri`), as in login.example.com, *.corp.example (all
    /// below the domain) or 10.0.0.7:8443; port 443 if none is named; may be given more than once, in the variable separated by commas [default: none]
    // Who writes a policy must not make the agents call whatever they can reach.
    #[arg(long, value_name = "HOST", env = "SLUICE_JWKS_HOSTS", value_delimiter = ',')]
    pub jwks_hosts: Vec<AllowedHost>,

    /// File with the CAs, as PEM, that certificates of these hosts have to be of; it is read again when keys are fetched
    /// [default: the public CAs that Mozilla trusts]
    #[arg(long, value_name = "PATH", env = "SLUICE_JWKS_CA_FILE", value_parser = absolute)]
    pub jwks_ca_file: Option<PathBuf>,

    /// Key of a taint that the agent takes off its node when it is ready, so that no pod starts there before, as in
    /// `sluice.dev/agent-not-ready`; needs --node and the permission to patch nodes [default: none]
    #[arg(long, value_name = "KEY", env = "SLUICE_STARTUP_TAINT", value_parser = taint_key)]
    pub startup_taint: Option<String>,

    /// Whether the agent sets conditions of its node's pods: the readiness gate `sluice.dev/warm` when they have warmed up, with
    /// requests to them until then, and `sluice.dev/first-request` for warm-ups that begin with that: `enabled` or `disabled`; needs
    /// --node and the permission to patch pods/status
    #[arg(
        long,
        value_name = "STATE",
        env = "SLUICE_WARM_GATE",
        default_value = "disabled",
        value_parser = enabled,
        action = clap::ArgAction::Set
    )]
    pub warm_gate: bool,

    /// Threads that carry traffic [default: one per core, at most 4]
    #[arg(long, value_name = "N", env = "SLUICE_WORKERS", value_parser = whole::<u16>(1..=64))]
    pub workers: Option<u16>,

    /// Request header that carries the tag; may be given more than once: all are read, the first is set on forwarded
    /// requests
    #[arg(
        long,
        value_name = "NAME",
        env = "SLUICE_TAG_HEADER",
        value_delimiter = ',',
        default_value = DEFAULT_TAG_HEADER
    )]
    pub tag_header: Vec<HeaderName>,

    /// Format of the access log: a line for each request that has ended
    #[arg(long, value_name = "FORMAT", env = "SLUICE_ACCESS_LOG", default_value = "none")]
    pub access_log: AccessLogFormat,

    /// File to which the access log is appended; it may be rotated [default: standard output]
    #[arg(long, value_name = "PATH", env = "SLUICE_ACCESS_LOG_FILE")]
    pub access_log_file: Option<PathBuf>,

    /// Ratio of requests that are logged, from 0 (none) to 1 (all); the annotation sluice.dev/access-log of the Service
    /// or its Namespace overrides it
    #[arg(long, value_name = "RATIO", env = "SLUICE_ACCESS_LOG_RATIO", default_value = "1")]
    pub access_log_ratio: Ratio,

    #[command(flatten)]
    pub telemetry: Telemetry,

    #[command(flatten)]
    pub limit_store: LimitStore,

    /// The agent's log level (off, error, warn, info or debug), or one per module as in `info,sluice::proxy=debug`
    #[arg(long, value_name = "FILTER", env = "SLUICE_LOG", default_value = "info")]
    pub log: String,

    /// Connections that one pod may have open through the agent; and four times as many HTTP/2 requests in flight
    // The thread pools of a large Java service hold a few hundred; a pod that leaks them must not use up the memory and
    // descriptors of all.
    #[arg(
        long,
        value_name = "N",
        env = "SLUICE_CONNECTIONS_PER_POD",
        default_value_t = 4096,
        value_parser = whole::<u32>(16..=1_000_000)
    )]
    pub connections_per_pod: u32,

    /// MiB that may wait for slow peers, in the agent and in the kernel, of all pods together. New connections of a pod bypass the
    /// agent once its part of that waits; those that are open may still fill their buffers [default: half of the agent's memory
    /// limit]
    #[arg(
        long,
        value_name = "MIB",
        env = "SLUICE_CONNECTION_MEMORY",
        value_parser = whole::<u32>(16..=1_048_576)
    )]
    pub connection_memory: Option<u32>,

    /// How many services, lanes and endpoints have a history of the last 15 minutes, second by second, at 33 KiB each;
    /// 0 for none
    #[arg(
        long,
        value_name = "N",
        env = "SLUICE_HISTORY_SERIES",
        default_value_t = 1000,
        value_parser = whole::<u32>(0..=100_000)
    )]
    pub history_series: u32,

    /// Count the TCP connections of enrolled pods in the kernel, also those that are not redirected (metrics
    /// sluice_flow_*): `enabled` or `disabled`
    #[arg(
        long,
        value_name = "STATE",
        env = "SLUICE_KERNEL_FLOWS",
        default_value = "enabled",
        value_parser = enabled,
        action = clap::ArgAction::Set
    )]
    pub kernel_flows: bool,

    /// Connections a second and pod that are ended when they are idle, if they are older than their pod's enrolment and the
    /// Service or its Namespace has the annotation sluice.dev/reclaim: enabled; 0 for none
    #[arg(
        long,
        value_name = "N",
        env = "SLUICE_RECLAIM_RATE",
        default_value_t = 1,
        value_parser = whole::<u16>(0..=1000)
    )]
    pub reclaim_rate: u16,

    /// How long such a connection must have been without a byte after its last response
    // Longer than a response pauses before its end.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SLUICE_RECLAIM_IDLE",
        default_value = "5",
        value_parser = positive_seconds
    )]
    pub reclaim_idle: Duration,

    /// The BPF file system in which the agent pins what refuses connections while no agent is there, for AccessPolicies with
    /// whenUnattended: Refuse; it pins nothing else
    #[arg(
        long,
        value_name = "DIR",
        env = "SLUICE_BPF_FILE_SYSTEM",
        default_value = BPF_FILE_SYSTEM,
        value_parser = directory
    )]
    pub bpf_file_system: PathBuf,

    /// How long a stopping agent waits for requests in flight before it closes them
    #[arg(long, value_name = "SECONDS", env = "SLUICE_DRAIN_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub drain_timeout: Duration,

    /// How many hours an agent that stops goes on with the tunnels (TLS, databases, WebSockets) that are open, beside the agent
    /// that takes its place; 0: as long as --drain-timeout
    #[arg(
        long,
        value_name = "HOURS",
        env = "SLUICE_TUNNEL_DRAIN_TIMEOUT",
        default_value = "4",
        value_parser = hours
    )]
    pub tunnel_drain_timeout: Duration,

    /// How long a stopping agent keeps clients' idle connections open, so that clients learn at their next request that
    /// they are to reconnect; at most --drain-timeout
    #[arg(long, value_name = "SECONDS", env = "SLUICE_DRAIN_IDLE_TIMEOUT", default_value = "5", value_parser = seconds)]
    pub drain_idle_timeout: Duration,
}

fn enabled(text: &str) -> Result<bool, String> {
    match text {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("enabled, or disabled".to_owned()),
    }
}

/// A name that an object of Kubernetes can have, such as a node's.
///
/// # Errors
/// What is allowed.
pub fn object_name(text: &str) -> Result<String, String> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let bytes = text.as_bytes();
    if bytes.len() <= 253 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().copied().all(inner) {
        return Ok(text.to_owned());
    }
    Err("allowed are 1 to 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
        .to_owned())
}

/// As labels have them: a name, and before it a domain and a slash if there is one.
fn taint_key(text: &str) -> Result<String, String> {
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = name.as_bytes();
    let is_name =
        bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().copied().all(inner);
    if is_name && domain.is_none_or(|domain| object_name(domain).is_ok()) {
        return Ok(text.to_owned());
    }
    Err("the key of a taint, as in sluice.dev/agent-not-ready".to_owned())
}

/// The absolute path of a directory.
///
/// # Errors
/// What is allowed.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    absolute(text).map_err(|_| "the absolute path of a directory".to_owned())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.ends_with('/') {
        return Ok(text.into());
    }
    Err("the absolute path of a file".to_owned())
}

fn hours(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(hours) if hours <= 168 => Ok(Duration::from_secs(u64::from(hours) * 3600)),
        _ => Err("whole hours from 0 to 168".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("whole seconds from 0 to 3600".to_owned()),
    }
}

fn positive_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).ok().filter(|time| !time.is_zero()).ok_or_else(|| "whole seconds from 1 to 3600".to_owned())
}

impl Config {
    /// The addresses of `--admin`, each of them once.
    ///
    /// # Errors
    /// One of them names the node, whose address is not known.
    pub fn admin_addresses(&self) -> Result<Vec<SocketAddr>, NoNodeAddress> {
        let mut addresses = Vec::with_capacity(self.admin.len());
        for admin in &self.admin {
            let address = admin.resolve(self.node_address)?;
            // A node on which everything is at loopback, as in tests, or an address that is given twice.
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}

/// Where the admin socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminSocket {
    None,
    At(PathBuf),
}

impl AdminSocket {
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::None => None,
            Self::At(path) => Some(path),
        }
    }
}

impl FromStr for AdminSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err("an absolute path, or `none`".to_owned()),
        }
    }
}

impl fmt::Display for AdminSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_listened_at_twice() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            config: Config,
        }
        let parse = |arguments: &[&str]| {
            <Line as clap::Parser>::parse_from([&["agent"], arguments].concat()).config.admin_addresses()
        };
        let admin = "--admin=node:9465,127.0.0.1:9465";
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            parse(&[admin, "--node-address=10.0.0.7"]).unwrap(),
            addresses(&["10.0.0.7:9465", "127.0.0.1:9465"])
        );
        assert_eq!(parse(&[admin, "--node-address=127.0.0.1"]).unwrap(), addresses(&["127.0.0.1:9465"]));
        assert!(parse(&[admin]).is_err());
    }

    #[test]
    fn a_node_has_a_name() {
        for good in ["a", "node-1", "ip-10-0-0-1.eu-west-1.compute.internal", "1"] {
            assert_eq!(object_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "A B", "Node-1", "-a", "a-", "a_b", "ä", "a/b", &"a".repeat(254)] {
            assert!(object_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_state_is_in_a_file_with_an_absolute_path() {
        assert_eq!(absolute("/var/lib/sluice/state.gz"), Ok("/var/lib/sluice/state.gz".into()));
        for bad in ["", "state.gz", "/var/lib/sluice/"] {
            assert!(absolute(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_taint_has_a_key() {
        for good in ["sluice.dev/agent-not-ready", "a", "a.b/C_d"] {
            assert_eq!(taint_key(good).as_deref(), Ok(good));
        }
        for bad in ["", "/a", "a/", "a/b/c", "A/b", "a=b", "a:NoSchedule"] {
            assert!(taint_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_socket_has_an_absolute_path_or_there_is_none() {
        assert_eq!("none".parse(), Ok(AdminSocket::None));
        assert_eq!("/run/a.sock".parse(), Ok(AdminSocket::At("/run/a.sock".into())));
        assert!("a.sock".parse::<AdminSocket>().is_err());
        assert!("".parse::<AdminSocket>().is_err());
    }
}
