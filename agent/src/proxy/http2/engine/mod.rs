//! An HTTP/2 connection, of a caller or to an endpoint: the frames, streams and windows of RFC 9113.
//!
//! ```text
//!   socket -> driver -> reader ----> streams, each with its state ----> handle -> who carries the message
//!   socket <- driver <- out <- writer <-------------------------------- handle <-
//! ```
//!
//! [`state`] is the state machine of a stream, [`flow`] a window, [`calm`] what a peer may do besides carrying messages,
//! [`message`] what a message has to be, [`limits`] what may be held: all pure. [`core`] has what a connection is made of;
//! the other files each have a part of what it does. [`reader`] takes frames and gives them to [`heads`], [`content`] and
//! [`control`], which have [`errors`] for what is wrong; [`writer`] makes frames. Below both are [`windows`] (what the peer
//! is given), [`room`] (whose turn it is to send) and [`ending`]. None of them does I/O, that is the [`driver`]'s. A
//! [`handle`] is a stream for those who carry its messages. Both ends of a connection, server and client, are the same code.

pub(super) mod calm;
mod content;
mod control;
pub(super) mod core;
pub(super) mod driver;
mod ending;
mod errors;
pub(super) mod fields;
pub(super) mod flow;
pub(super) mod handle;
mod heads;
pub(super) mod limits;
pub(super) mod message;
mod out;
mod queue;
mod reader;
mod room;
mod state;
mod streams;
mod windows;
pub(super) mod writer;

#[cfg(test)]
mod tests;
