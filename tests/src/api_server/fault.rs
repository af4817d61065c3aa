//! What may be wrong with an API server.

use std::time::Duration;

/// Instead of what is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with a `Status` object.
    Status(u16),
    /// This status and `Retry-After`, without a `Status` object, as flow control answers.
    Overloaded(u16, u64),
    /// 200, and an `ERROR` event of this code (watches only).
    ErrorEvent(u16),
    /// The request is taken and never answered.
    Hang,
    /// The answer begins, and does not go on.
    Stall,
    /// An answer without anything in it, at once.
    Empty,
    /// What a proxy on the way says that is asked for a page.
    Html,
    /// A redirect to where a browser would log in.
    Redirect,
    /// This status, with a page for browsers.
    Page(u16),
    /// The answer comes this much later.
    Slow(Duration),
}

/// How open watches are broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The answer ends in order.
    End,
    /// The connection is closed, in the middle of the answer.
    Cut,
    /// The connection is closed in the middle of the next event.
    CutInEvent,
    /// Half of the next event, and then silence.
    StallInEvent,
    /// Silence: neither events nor bookmarks.
    Stall,
}
