//! What is decided about a request: its tag, its lane, its endpoint.
//!
//! Pure: no sockets, no clock of its own, no global state. Time and randomness are arguments, so that tests are exact.

pub mod endpoint;
pub mod tag;
