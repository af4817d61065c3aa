//! What is told: metrics and the access log.
