//! The harness of the end-to-end tests, the demo and the bench: a small Kubernetes node made of what the
//! kernel has, on which the real agent runs.
//!
//! A [`World`] is a node: a network namespace with a bridge, a cgroup subtree that looks like the kubelet's, a
//! directory of manifests. A [`Pod`] is a namespace on that bridge and a cgroup; processes enter both before they
//! open a socket. The world plays the parts of Kubernetes that matter here: addresses are handed out, endpoint slices
//! follow pods and services, and, where a test wants it, connections to ClusterIPs are translated as kube-proxy does.
//!
//! Worlds do not meet: each has its own namespaces and cgroups, and nothing outside them is touched. Whatever ends
//! the test - success, panic, `kill -9` - ends everything that it started.

pub mod api_server;
pub mod bench;
pub mod collector;
pub mod kubectl;

mod agent;
mod browser;
mod cgroup;
mod chain;
mod container;
mod daemon_set;
mod depot;
mod forward;
mod kube_proxy;
mod manifests;
mod memory;
mod metrics;
mod netns;
mod nobody;
mod node;
mod objects;
mod pod;
mod process;
mod prometheus;
mod seccomp;
mod shop;
mod wait;
mod warden;
mod world;

pub use agent::{Agent, AgentBuilder};
pub use browser::{Browser, Scheme};
pub use chain::{Answer, Hop, LoadReport, StormReport};
pub use container::{Container, Image, TOKEN};
pub use daemon_set::DaemonSet;
pub use depot::Depot;
pub use forward::{Relay, forward};
pub use metrics::Metrics;
pub use netns::NetNs;
pub use nobody::nobody;
pub use objects::{Capture, Service, ServiceBuilder};
pub use pod::{Pod, PodBuilder};
pub use process::{Place, Process, run};
pub use prometheus::{Prometheus, promtool_check_metrics};
pub use shop::{App, CHAIN, IN_LANE, LANE, Load, Shop, ask};
pub use wait::{PATIENCE, eventually};
pub use world::{World, binary, test, test_in, test_with_both};
