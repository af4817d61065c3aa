//! Sluice: a node agent that governs the HTTP and gRPC calls between Kubernetes services.
//!
//! The modules, in the order in which a connection meets them:
//!
//! - [`cluster`]: what the cluster looks like. Sources of Kubernetes objects become one model, handed out as immutable snapshots.
//! - [`capture`]: how a connection gets here. eBPF programs, the pods' network namespaces, the listeners inside them.
//! - [`proxy`]: what happens to it. Accept, detect, HTTP, tunnel, pool, upstream.
//! - [`govern`]: what is decided about it. Tag, lane, balance. Pure: no sockets, no clock of its own.
//! - [`lease`]: its part of a limit of the whole cluster, from a store that all agents share.
//! - [`observe`]: what is told about it. Metrics, the last 15 minutes, traces and the access log.
//! - [`admin`]: who can ask. `/metrics`, `/healthz`, `/readyz`, and a live page.
//! - [`ask`]: how: `sluice get`, `explain`, `status`, `top`, `call`, `dump`; and [`kubectl`], `kubectl sluice`, from elsewhere.
//! - [`config`]: what the operator chose. [`api`]: the words of the Kubernetes objects that Sluice reads.
//! - [`offline`]: what `sluice` does without a cluster: `sluice check`, `sluice crds`, `sluice reference`.
//! - [`tls`]: whom the agent trusts where it connects itself.
//! - [`run`]: wires everything; owns start, drain and stop. [`cli`]: the command line.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod api;
pub mod ask;
pub mod capture;
pub mod cli;
mod clock;
pub mod cluster;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod govern;
pub mod kubectl;
pub mod lease;
pub mod observe;
pub mod offline;
pub mod proxy;
pub mod run;
pub mod tls;
