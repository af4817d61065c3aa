//! What goes: heads, data and trailers of streams, resets, and what streams that are opened begin with.
//!
//! All of it is appended to what is [unsent](super::out), in the order in which it is said, and written together when the
//! connection is driven. Who sends asks for [room](Core::room) first: what cannot leave stays where it came from.

use bytes::{Bytes, BytesMut};

use super::{
    core::{Core, Role},
    fields::Fields,
    state::{Closed, Sent, State},
    streams::{Key, Stream, UNNUMBERED},
};
use crate::{
    clock::Nanos,
    proxy::http2::{
        frame::{Code, write},
        hpack::{Encoder, Indexing},
    },
};

/// What stands in front of the fields of a head.
pub(crate) enum Pseudo {
    /// They are among them.
    Within,
    Status(u16),
}

impl Pseudo {
    fn encode(&self, encoder: &mut Encoder, out: &mut BytesMut) {
        if let Self::Status(status) = self {
            let digit = |value: u16| b'0' + (value % 10) as u8;
            let digits = [digit(status / 100), digit(status / 10), digit(*status)];
            encoder.encode(out, b":status", &digits, Indexing::Auto);
        }
    }
}

impl Core {
    /// Makes a stream, which is opened with its head; `None`: this connection takes no more.
    pub(crate) fn open(&mut self) -> Option<Key> {
        if self.role != Role::Client || !self.takes_streams() {
            return None;
        }
        let key = self.streams.insert(Stream::new(UNNUMBERED, self.base, self.remote.window));
        self.adapt();
        Some(key)
    }

    /// Gives a stream that is to be opened the next number: whoever waits for room for its head may be overtaken. False: it is not
    /// to be opened any more.
    fn number(&mut self, key: Key) -> bool {
        match self.streams.get(key) {
            Some(stream) if stream.id != UNNUMBERED => true,
            Some(stream) if stream.state == State::NEW && self.takes_streams() => {
                self.streams.number(key, self.next);
                self.next += 2;
                true
            }
            _ => false,
        }
    }

    fn say(&mut self, key: Key, what: Sent) -> Option<u32> {
        let stream = self.streams.get_mut(key)?;
        stream.state.send(what).then_some(stream.id)
    }

    /// Sends a head. False: the stream is not to have one any more.
    pub(crate) fn send_head(&mut self, key: Key, pseudo: &Pseudo, fields: &Fields, end: bool) -> bool {
        let interim = matches!(pseudo, Pseudo::Status(100..200))
            || fields.known(super::super::hpack::StaticName::STATUS).is_some_and(|status| status[0] == b'1');
        let what = if interim { Sent::Interim } else { Sent::Head { end } };
        if !self.number(key) {
            return false;
        }
        let Some(id) = self.say(key, what) else { return false };
        self.write_fields(id, end, |encoder, out| {
            pseudo.encode(encoder, out);
            fields.encode(encoder, out);
        });
        self.said(key, end);
        true
    }

    /// Sends trailers, which end the stream.
    pub(crate) fn send_trailers(&mut self, key: Key, fields: &Fields) -> bool {
        let Some(id) = self.say(key, Sent::Trailers) else { return false };
        self.write_fields(id, true, |encoder, out| fields.encode(encoder, out));
        self.said(key, true);
        true
    }

    fn write_fields(&mut self, id: u32, end: bool, fields: impl FnOnce(&mut Encoder, &mut BytesMut)) {
        let Self { out, encoder, remote, .. } = self;
        write::headers(out.tail(), id, end, remote.max_frame, |out| fields(encoder, out));
        self.calm.earn(0);
    }

    /// Sends data, no more than there is [`room`](Self::room) for. `end`: nothing follows.
    pub(crate) fn send_data(&mut self, key: Key, mut data: Bytes, end: bool) -> bool {
        let max = self.remote.max_frame as usize;
        self.use_turn(key);
        loop {
            let part = data.split_to(data.len().min(max));
            let end = end && data.is_empty();
            let Some(id) = self.say(key, Sent::Data { end }) else { return false };
            let length = part.len();
            if let Some(stream) = self.streams.get_mut(key) {
                stream.credit.take(length);
            }
            self.credit.take(length);
            write::data(self.out.tail(), id, length as u32, end);
            self.out.data(part);
            self.calm.earn(length);
            if data.is_empty() {
                break;
            }
        }
        self.said(key, end);
        true
    }

    fn said(&mut self, key: Key, end: bool) {
        if end {
            self.streams.note_sent(key);
            self.forget_if_over(key);
            self.look_again();
        }
        self.rouse();
    }

    pub(super) fn write_reset(&mut self, id: u32, code: Code) {
        write::reset(self.out.tail(), id, code);
        if self.role == Role::Client {
            self.worn |= self.wear.note(Nanos::now());
        }
    }

    /// Resets a stream, unless it is closed.
    pub(crate) fn reset(&mut self, key: Key, code: Code) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let id = stream.id;
        // Of a stream that is yet to be opened nobody has heard.
        let unheard = self.role == Role::Client && stream.state == State::NEW && !stream.whole;
        if stream.state.close(Closed::ByUs(code)) {
            if self.ended.is_none() && !unheard {
                self.write_reset(id, code);
                self.rouse();
            }
            self.discard(key);
            self.look_again();
        }
        self.forget_if_over(key);
    }

    /// Resets a stream although it may have ended in order: what its peer sent on it was an error.
    pub(crate) fn condemn(&mut self, key: Key, code: Code) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if matches!(stream.state.closed(), Some(Closed::Ended)) && self.ended.is_none() {
            stream.state = State::Closed(Closed::ByUs(code));
            let id = stream.id;
            self.write_reset(id, code);
        } else {
            self.reset(key, code);
        }
    }

    /// Takes of a stream's data what has come, and gives its window again.
    pub(crate) fn take_data(&mut self, key: Key, most: usize) -> Bytes {
        let Some(stream) = self.streams.get_mut(key) else { return Bytes::new() };
        let data = stream.queue.take(most);
        if !data.is_empty() {
            self.release(key, data.len());
        }
        data
    }

    /// The heads and trailers that were here have been taken.
    pub(crate) fn took_fields(&mut self, key: Key, fields: &Fields) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let held = fields.held().min(stream.heads);
        stream.heads -= held;
        self.held -= held;
    }

    /// Whoever holds a stream lets it go. One that has not come to its end is given up.
    pub(crate) fn let_go(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.held = false;
        stream.waker = None;
        if stream.state.closed().is_none() {
            let code = match (self.role, stream.state.sending()) {
                // The response is complete: its client need not send the rest (RFC 9113, section 8.1).
                (Role::Server, None) => Code::NO_ERROR,
                _ => Code::CANCEL,
            };
            self.reset(key, code);
        } else {
            self.forget_if_over(key);
        }
    }
}
