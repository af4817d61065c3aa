//! What is told: metrics, traces and the access log, and the words for answers that Sluice makes up.

pub mod access_log;
pub mod fault;
pub mod history;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod reason;
pub mod sampling;
pub mod trace;
