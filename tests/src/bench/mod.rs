//! The bench: what the agent costs, beside no proxy at all, nginx, haproxy and nghttpx, in one run and one topology.
//!
//! Client and proxy are in pod A, the origin is in pod B, a bridge lies between. The other proxies are dialled on the
//! loopback interface of pod A; with Sluice the client dials the service's ClusterIP and is redirected by eBPF, as any
//! application is. Every proxy has one worker. Only ratios within one round mean anything on a machine that is shared,
//! so each load goes through all the proxies in turn before the next, and ratios are taken within a round.
//!
//! Beside that, [`overload`] shows what the adaptive limit on requests in flight is good for: an origin that collapses under
//! load, with and without it; [`floods`] what another pod feels of clients that flood their HTTP/2 connections.
//!
//! [`run()`] plays the rounds; [`proxies`] starts what is measured; [`origin`] answers in pod B; [`http_load`], [`http2_load`]
//! and [`socket_load`] are the clients, one program with one thread in pod A; [`usage`] reads what a proxy has used;
//! [`report`] takes the medians.

pub mod floods;
pub mod http2_load;
pub mod http_load;
pub mod load;
pub mod origin;
pub mod overload;
pub mod proxies;
pub mod report;
pub mod run;
pub mod socket_load;

mod epoll;
mod frames;
mod http2_origin;
mod message;
mod usage;

pub use load::{Load, Work};
pub use proxies::ProxyKind;
pub use report::Record;
pub use run::run;
