//! How streams and connections end: in order, with GOAWAY in two parts, or for what the peer did.

use super::{
    core::{Core, Ended, LEAVING, Leaving, Role},
    flow,
    room::Turns,
    state::Closed,
    streams::Key,
};
use crate::{
    observe::fault::Fault,
    proxy::http2::frame::{Code, write},
};

impl Core {
    /// The connection is to end when its streams have: the peer opens no more.
    pub(crate) fn leave(&mut self) {
        if self.leaving != Leaving::No || self.ended.is_some() {
            return;
        }
        self.leaving = Leaving::Announced;
        write::go_away(self.out.tail(), flow::LARGEST, Code::NO_ERROR, b"");
        write::ping(self.out.tail(), LEAVING, false);
        self.rouse();
    }

    /// The second part of leaving: no stream that comes now is taken.
    pub(crate) fn leave_finally(&mut self) {
        if self.leaving == Leaving::Announced && self.ended.is_none() {
            self.leaving = Leaving::Final(self.highest);
            write::go_away(self.out.tail(), self.highest, Code::NO_ERROR, b"");
            self.rouse();
        }
    }

    /// The last stream of a connection that leaves has ended.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.leaving, Leaving::Final(_)) && self.streams.len() == 0
    }

    /// The connection ends, and with it its streams. With a violation the peer is told why.
    pub(crate) fn end(&mut self, why: Ended) {
        if self.ended.is_some() {
            if why == Ended::Lost {
                // Nor will it hear why.
                self.out.discard();
            }
            return;
        }
        self.ended = Some(why);
        match why {
            Ended::Violation(code, debug) => {
                let last = match self.role {
                    Role::Server => self.highest,
                    Role::Client => 0,
                };
                write::go_away(self.out.tail(), last, code, debug.as_bytes());
            }
            Ended::Lost => self.out.discard(),
            Ended::Finished => {}
        }
        self.accepted.clear();
        self.departing.clear();
        let broken = why.fault();
        let keys: Vec<_> = self.streams.iter_mut().map(|(key, _)| key).collect();
        for key in keys {
            self.lose(key, Closed::Lost, broken);
        }
        self.turns = Turns::default();
        self.wake_watchers();
        self.rouse();
    }

    /// A stream is closed by what happens to it from outside.
    pub(super) fn lose(&mut self, key: Key, how: Closed, broken: Option<Fault>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.state.close(how) {
            stream.broken = stream.broken.or(broken);
            stream.wake();
            if !stream.whole {
                self.discard(key);
            }
            self.look_again();
        }
        self.forget_if_over(key);
    }

    /// What a stream has come to its end with is freed, if nobody holds it.
    pub(super) fn forget_if_over(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.state.closed().is_none() {
            return;
        }
        let held = stream.held;
        self.streams.note_closed(key);
        if held {
            return;
        }
        let Some(stream) = self.streams.get(key) else { return };
        let grown = stream.window.size().saturating_sub(self.base);
        self.grown = self.grown.saturating_sub(grown);
        self.turns.leave(key, stream.waiting);
        self.discard(key);
        self.streams.remove(key);
        if self.leaving != Leaving::No || self.changing.is_none() && self.base != flow::INITIAL {
            self.rouse();
        }
    }

    /// The connection is no longer needed: it ends when its last stream has.
    pub(crate) fn retire(&mut self) {
        if self.leaving == Leaving::No && self.ended.is_none() {
            self.leaving = Leaving::Final(0);
            self.remote.last.get_or_insert(flow::LARGEST);
            self.rouse();
        }
    }

    /// Everything is done: says so to the peer, which is not waited for.
    pub(crate) fn finish(&mut self) {
        if self.role == Role::Client && self.ended.is_none() {
            write::go_away(self.out.tail(), 0, Code::NO_ERROR, b"");
        }
        self.end(Ended::Finished);
    }
}
