//! The proxy in-process: real sockets on loopback, hostile and odd peers, no kernel programs.

mod http1;
mod rig;
