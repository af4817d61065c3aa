//! An HTTP/2 connection, of a caller or to an endpoint: the frames, streams and windows of RFC 9113.
//!
//! ```text
//!   socket -> driver -> reader ----> streams, each with its state ----> handle -> who carries the message
//!   socket <- driver <- out <- writer <-------------------------------- handle <-
//! ```
//!
//! [`state`] is the state machine of a stream, [`flow`] the windows, [`calm`] what a peer may do besides carrying
//! messages, [`message`] what a message has to be: all pure. [`core`] has what a connection is made of, [`reader`] and
//! [`writer`] are its two directions; none of them does I/O, that is the [`driver`]'s. A [`handle`] is a stream for those who
//! carry its messages. Both ends of a connection, server and client, are the same code.

pub(super) mod calm;
pub(super) mod core;
pub(super) mod driver;
pub(super) mod fields;
pub(super) mod flow;
pub(super) mod handle;
pub(super) mod message;
mod out;
mod queue;
mod reader;
mod state;
mod streams;
pub(super) mod writer;

#[cfg(test)]
mod tests;
