//! What a connection may hold, and all connections of a pod together.

use std::rc::Rc;

use super::{calm, flow};
use crate::{clock::Nanos, proxy::share::Share};

/// Streams that a client may have open on one connection. gRPC servers have no limit of their own by default, and clients
/// put everything on one connection, so a low one would be felt; each stream costs a few KiB.
pub(crate) const MAX_STREAMS: usize = 1024;

/// The most that a head may have, as the RFC counts it. (The same as over HTTP/1.)
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// What a message with more has.
pub(crate) const TOO_LARGE: &str = "headers of more than 64 KiB";

/// Unsent bytes of messages above which streams wait. More than the kernel takes in one write, so that it is never idle.
pub(crate) const OUT_LIMIT: usize = 128 * 1024;

/// What one stream may add to them while others wait.
pub(super) const TURN: usize = 16 * 1024;

/// The last part of what an endpoint takes on all streams together. A stream of which much was not taken leaves it to the others
/// (see [`Core::room`](super::core::Core::room)). A quarter of what there is at first: an endpoint that has read everything
/// gives at least half of it again by itself.
pub(super) const RESERVE: usize = flow::INITIAL as usize / 4;

/// The least of a share that is worth a frame where a stream has more to send. A share gets smaller with each that is used, and an
/// endpoint may take small frames for an attack: Tomcat counts each non-final one as its `overheadDataThreshold` (1,024) divided by its
/// size, and ends the connection of all streams at about a hundred. What it gives again of them is small, too. No more than
/// this, for endpoints give the window of a stream again late: one that waits for a larger share may wait for ever.
pub(super) const WORTH: usize = 256;

/// Bytes of the text that are kept with which a peer ends a connection: logs have them.
pub(super) const GO_AWAY_TEXT: usize = 200;

/// What each stream that has more to send should have of what an endpoint takes on all together. Where it would be less, further ones
/// go to another connection: some endpoints read a few streams at once (Tomcat twenty), and those that wait would keep the window
/// from those that are read.
const SHARE: usize = 4 * 1024;

/// How many streams may send over a connection on which an endpoint takes so much.
pub(crate) const fn senders(window: usize) -> usize {
    window.div_ceil(SHARE)
}

/// The same before the endpoint has given more than there is at first.
pub(crate) const FIRST_SENDERS: usize = senders(flow::INITIAL as usize);

/// Unsent bytes above which nothing more is read: they can only be answers to what was read.
pub(crate) const OUT_STOP: usize = OUT_LIMIT + 128 * 1024;

/// The largest windows that a peer is given which fills smaller ones: an endpoint two milliseconds away can send
/// 128 MiB/s on one stream.
pub(super) const LARGEST_STREAM_WINDOW: u32 = 256 * 1024;
pub(super) const LARGEST_WINDOW: u32 = 1024 * 1024;

/// By how much the windows of all streams together may have grown.
pub(super) const GROWTH: u32 = 4 * 1024 * 1024;

/// Of HPACK's tables, of frames that are not whole, and of the rest.
pub(super) const OVERHEAD: usize = 4 * 1024;

/// What the window of a stream begins with where there are so many: together no more than 8 MiB.
pub(crate) const fn base_window(streams: usize) -> u32 {
    match streams {
        0..=128 => flow::INITIAL,
        129..=512 => 16 * 1024,
        _ => 8 * 1024,
    }
}

/// What all HTTP/2 connections of a pod on a worker may use together.
pub(crate) struct Allowance {
    /// Bytes.
    pub(crate) bytes: Rc<Share>,
    pub(crate) calm: calm::Shared,
}

impl Allowance {
    pub(crate) fn new(bytes: usize) -> Rc<Self> {
        Rc::new(Self { bytes: Share::new(bytes), calm: calm::Shared::new(Nanos::now()) })
    }

    /// Bytes in use.
    pub(crate) fn held(&self) -> usize {
        self.bytes.limit() - self.bytes.left()
    }

    /// There is plenty: windows may grow.
    pub(super) fn is_ample(&self) -> bool {
        self.bytes.left() > self.bytes.limit() / 2
    }

    /// What is left is for what goes on already.
    pub(crate) fn is_scarce(&self) -> bool {
        self.bytes.left() < self.bytes.limit() / 4
    }
}
