//! Whose turn it is: room for what streams have to say, given in the order in which they asked, and what is unsent.

use super::{
    core::Core,
    limits::{OUT_LIMIT, TURN},
    streams::{Key, Waiting},
};
use crate::proxy::share::Taken;

impl Core {
    /// Its peer has not taken what it was sent: a further stream would wait behind others.
    pub(crate) fn is_stuck(&self) -> bool {
        self.credit.left() == 0 || self.out.len() >= OUT_LIMIT
    }

    /// Streams that wait for room are woken in their turn, a few at a time. True: there are more, and room for them.
    pub(crate) fn serve_waiting(&mut self) -> bool {
        const AT_ONCE: usize = 8;
        for _ in 0..AT_ONCE {
            if self.is_stuck() {
                return false;
            }
            let Some(key) = self.waiting.pop_front() else { return false };
            if let Some(stream) = self.streams.get_mut(key)
                && stream.waiting == Waiting::Connection
            {
                stream.waiting = Waiting::Not;
                stream.wake();
            }
        }
        !self.waiting.is_empty()
    }

    /// How much of a message can be sent on a stream now.
    pub(crate) fn room(&self, key: Key) -> usize {
        let Some(stream) = self.streams.get(key) else { return 0 };
        let turn = if self.waiting.is_empty() { OUT_LIMIT } else { TURN };
        let left = OUT_LIMIT.saturating_sub(self.out.len());
        stream.credit.left().min(self.credit.left()).min(left).min(turn)
    }

    /// A head can be sent on a stream now, however large the windows are.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    /// The stream is woken when there may be room. `data`: windows count, too.
    pub(crate) fn wait_for_room(&mut self, key: Key, data: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.waiting == Waiting::Connection {
            return;
        }
        if data && stream.credit.left() == 0 {
            stream.waiting = Waiting::Stream;
        } else {
            stream.waiting = Waiting::Connection;
            self.waiting.push_back(key);
            // Should there be room by now.
            self.rouse();
        }
    }

    /// Frees `place` when everything that was said so far has left.
    pub(crate) fn depart(&mut self, place: Taken) {
        if !self.out.is_empty() && self.ended.is_none() {
            self.departing.push_back((self.out.end(), place));
        }
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, amount: usize) {
        self.out.advance(amount);
        let written = self.out.written();
        while self.departing.front().is_some_and(|(end, _)| *end <= written) {
            self.departing.pop_front();
        }
    }

    /// Everything was written: what is only kept to be used again goes, if nothing is under way.
    pub(crate) fn rest(&mut self) {
        if self.streams.len() == 0 {
            self.out.rest();
            self.spare.truncate(1);
        }
    }
}
