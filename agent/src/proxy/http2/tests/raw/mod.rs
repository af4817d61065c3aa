//! Peers whose frames are written by hand.
//!
//! A [`Wire`] is one end of a connection. It keeps its windows as the RFC asks and answers SETTINGS and PING, unless told
//! otherwise; whatever else is sent is what a test makes of [`frames`]. It shares the codecs with the proxy, which have
//! their own tests, and nothing else.

pub(super) mod backend;
pub(super) mod frames;
pub(super) mod wire;

pub(super) use self::{
    backend::Backend,
    wire::{Answer, Event, Handle, Stream, Wire, Wishes},
};
