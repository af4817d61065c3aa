//! What the operator chose: the flags of `sluice agent`, each with an environment equivalent.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::HeaderName;

/// How access log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    #[default]
    Off,
    Text,
    Json,
}

/// Flags of `sluice agent`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Directory of Kubernetes manifests (Namespace, Service, EndpointSlice, Pod) that is watched for changes [default: the
    /// cluster that the agent runs in, or that the kubeconfig names, is watched]
    #[arg(long, value_name = "DIR", env = "SLUICE_MANIFESTS")]
    pub manifests: Option<PathBuf>,

    /// The cgroup (v2) that holds all pods [default: the first `kubepods*` below the cgroup v2 mount]
    #[arg(long, value_name = "DIR", env = "SLUICE_PODS_CGROUP")]
    pub pods_cgroup: Option<PathBuf>,

    /// The name of this node, for `internalTrafficPolicy: Local` and topology hints
    #[arg(long, value_name = "NAME", env = "SLUICE_NODE")]
    pub node: Option<String>,

    /// The zone of this node, for topology hints
    #[arg(long, value_name = "ZONE", env = "SLUICE_ZONE")]
    pub zone: Option<String>,

    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "ADDRESS", env = "SLUICE_ADMIN", default_value = "127.0.0.1:9465")]
    pub admin: SocketAddr,

    /// Threads that carry traffic [default: one per core, at most 4]
    #[arg(long, value_name = "N", env = "SLUICE_WORKERS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,

    /// Request header that carries the tag; give it more than once for several, the first is set on forwarded requests
    #[arg(
        long,
        value_name = "NAME",
        env = "SLUICE_TAG_HEADER",
        value_delimiter = ',',
        default_value = "x-mse-tag"
    )]
    pub tag_header: Vec<HeaderName>,

    /// One line per request, to standard output
    #[arg(long, value_name = "FORMAT", env = "SLUICE_ACCESS_LOG", default_value = "off")]
    pub access_log: AccessLogFormat,

    /// What to log: a level, or per module as in `info,sluice::proxy=debug`
    #[arg(long, value_name = "FILTER", env = "SLUICE_LOG", default_value = "info")]
    pub log: String,

    /// How long a stopping agent waits for requests in flight
    #[arg(long, value_name = "SECONDS", env = "SLUICE_DRAIN_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub drain_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("whole seconds from 0 to 3600".to_owned()),
    }
}
