//! Streams that fall silent (`timeouts.streamIdle` of a policy).
//!
//! A stream is an answer of server-sent events, a gRPC call whose answer has begun, or a connection that has changed its
//! protocol. Who moves its bytes says how many have passed so far; who waits for its end looks when they stopped.

use std::cell::Cell;

use super::deadline::Elapsed;
use crate::{
    clock::Nanos,
    govern::policy::{Mode, Timeouts},
};

/// What kind of stream an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Server-sent events. <https://html.spec.whatwg.org/multipage/server-sent-events.html>
    Events,
    Grpc,
}

impl Kind {
    /// By the headers of an answer; `None`: it is none.
    pub(super) fn of<'h>(mut headers: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> Option<Self> {
        let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(b"content-type"))?;
        let begins = |with: &[u8]| {
            let rest = value.get(..with.len()).filter(|start| start.eq_ignore_ascii_case(with));
            let next = value.get(with.len());
            rest.is_some() && matches!(next, None | Some(b';' | b' ' | b'\t' | b'+'))
        };
        match () {
            () if begins(b"text/event-stream") => Some(Self::Events),
            () if begins(b"application/grpc") => Some(Self::Grpc),
            () => None,
        }
    }
}

/// Since when nothing has passed in a stream.
#[derive(Debug)]
pub(crate) struct Idle {
    most: Nanos,
    mode: Mode,
    moved: Cell<u64>,
    since: Cell<Nanos>,
    /// It has been silent for too long once.
    overdue: Cell<bool>,
}

impl Idle {
    /// A stream begins; `None`: it may be silent for as long as it likes.
    pub(crate) fn begin(timeouts: Timeouts) -> Option<Self> {
        let most = Nanos::of(timeouts.stream_idle?);
        Some(Self {
            most,
            mode: timeouts.mode,
            moved: Cell::new(0),
            since: Cell::new(Nanos::now()),
            overdue: Cell::new(false),
        })
    }

    /// So many bytes have passed in all, in both directions.
    pub(crate) fn note(&self, moved: u64) {
        if self.moved.replace(moved) != moved {
            let now = Nanos::now();
            self.look(now);
            self.since.set(now);
        }
    }

    fn look(&self, now: Nanos) {
        if now >= self.since.get() + self.most {
            self.overdue.set(true);
        }
    }

    /// When it is over, if nothing passes until then; `None`: never.
    pub(super) fn due(&self) -> Option<(Nanos, Elapsed)> {
        (self.mode == Mode::Enforce).then(|| (self.since.get() + self.most, Elapsed::StreamIdle))
    }

    /// Whether it would have been ended by now, if that were not only observed.
    pub(crate) fn would_have_ended(&self) -> bool {
        self.look(Nanos::now());
        self.mode == Mode::Observe && self.overdue.get()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stream_is_known_by_its_type() {
        for (value, kind) in [
            ("text/event-stream", Some(Kind::Events)),
            ("Text/Event-Stream;charset=utf-8", Some(Kind::Events)),
            ("application/grpc", Some(Kind::Grpc)),
            ("application/grpc+proto", Some(Kind::Grpc)),
            ("application/grpc-web", None),
            ("text/event-streams", None),
            ("text/html", None),
            ("", None),
        ] {
            let headers = [("content-length", "3"), ("Content-Type", value)];
            let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            assert_eq!(Kind::of(headers), kind, "{value}");
        }
        assert_eq!(Kind::of(std::iter::empty()), None);
    }

    #[test]
    fn what_passes_puts_the_end_off() {
        let timeouts =
            |mode| Timeouts { stream_idle: Some(Duration::from_secs(3600)), mode, ..Timeouts::default() };
        assert!(Idle::begin(Timeouts::default()).is_none());
        let idle = Idle::begin(timeouts(Mode::Enforce)).expect("it is limited");
        let first = idle.due();
        idle.note(0);
        assert_eq!(idle.due(), first, "nothing has passed");
        while Nanos::now() == idle.since.get() {}
        idle.note(1);
        assert!(idle.due().map(|(at, _)| at) > first.map(|(at, _)| at));
        assert!(!idle.would_have_ended());
        let idle = Idle::begin(timeouts(Mode::Observe)).expect("it is looked at");
        assert!(idle.due().is_none() && !idle.would_have_ended());
        let none = Timeouts { stream_idle: Some(Duration::ZERO), ..timeouts(Mode::Observe) };
        assert!(Idle::begin(none).expect("it is looked at").would_have_ended());
    }
}
