//! What is wrong, and how much ends with it: the error of one stream resets that stream (RFC 9113, section 5.4.2). Whatever
//! a peer makes us do here it pays for.

use super::{
    calm::{Verdict, Work},
    core::{Core, Role},
    state::{Closed, Wrong},
    streams::Key,
};
use crate::{
    clock::Nanos,
    proxy::http2::frame::{Code, Error},
};

impl Core {
    pub(super) fn pay(&mut self, work: Work, now: Nanos) -> Verdict {
        self.calm.spend(work, &self.allowance.calm, now)
    }

    /// Whether the stream has never been opened.
    fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.highest,
            Role::Client => id.is_multiple_of(2) || id >= self.next,
        }
    }

    pub(super) fn not_idle(&self, id: u32, why: &'static str) -> Result<(), Error> {
        if self.is_idle(id) { Err(Error::Connection(Code::PROTOCOL_ERROR, why)) } else { Ok(()) }
    }

    /// A stream error: only that stream ends.
    pub(super) fn fail(&mut self, id: u32, wrong: Wrong, now: Nanos) -> Result<Verdict, Error> {
        self.not_idle(id, "an error on an idle stream")?;
        Ok(match self.streams.find(id) {
            Some(key) => self.break_stream(key, wrong, now),
            None => self.late(id, now),
        })
    }

    /// Resets a stream for what its peer did.
    pub(super) fn break_stream(&mut self, key: Key, wrong: Wrong, now: Nanos) -> Verdict {
        let Some(stream) = self.streams.get(key) else { return Verdict::Go };
        let id = stream.id;
        match stream.state.closed() {
            None => {}
            // The peer knew: it is told as if the stream were no longer held.
            Some(Closed::Ended | Closed::ByPeer(_)) => return self.refuse(id, Code::STREAM_CLOSED, now),
            Some(Closed::ByUs(_)) => return self.pay_late(now),
            Some(Closed::Unprocessed | Closed::Lost) => return self.pay(Work::Control, now),
        }
        if let Some(stream) = self.streams.get_mut(key) {
            // What came before the error is no whole message.
            stream.whole = false;
        }
        self.lose(key, Closed::ByUs(wrong.code), Some(wrong.fault));
        self.refuse(id, wrong.code, now)
    }

    /// Resets a stream that is not there, or no longer.
    pub(super) fn refuse(&mut self, id: u32, code: Code, now: Nanos) -> Verdict {
        self.write_reset(id, code);
        self.pay(Work::Reset, now)
    }

    /// What comes of a stream that was reset from this side. An endpoint that goes on with one response, say with interim
    /// ones without end, shares its connection with other requests, which must not end for it.
    pub(super) fn pay_late(&mut self, now: Nanos) -> Verdict {
        match self.role {
            Role::Server => self.pay(Work::Control, now),
            Role::Client => Verdict::Go,
        }
    }

    /// Something has come for a stream that is closed. What was sent before its peer knew is nothing; else it is told.
    pub(super) fn late(&mut self, id: u32, now: Nanos) -> Verdict {
        if self.streams.was_reset(id) {
            self.pay_late(now)
        } else {
            self.refuse(id, Code::STREAM_CLOSED, now)
        }
    }
}
