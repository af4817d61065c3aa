//! What is told: metrics and the access log, and the words for answers that Sluice makes up.

pub mod access_log;
pub mod metrics;
pub mod reason;
