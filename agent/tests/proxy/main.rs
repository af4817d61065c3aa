//! The proxy in-process: real sockets on loopback, hostile and odd peers, no kernel programs.

mod bodies;
mod breaking;
mod callers;
mod connections;
mod detection;
mod drain;
mod endpoints;
mod entry;
mod failing;
mod fallbacks;
mod framing;
mod headers;
mod interim;
mod lanes;
mod limits;
mod origin;
mod peer;
mod pipelining;
mod retries;
mod retry_policy;
mod rig;
mod splits;
mod throttling;
mod timeouts;
mod tunnels;
mod upgrades;
