//! Whose turn it is: room for what streams have to say, given in the order in which they asked, and what is unsent.

use std::collections::VecDeque;

use super::{
    core::{Core, Role},
    limits::{OUT_LIMIT, RESERVE, TURN, WORTH, senders},
    streams::{Key, Stream, Waiting},
};
use crate::proxy::share::Taken;

/// Streams that wait for what all of them share.
#[derive(Default)]
pub(super) struct Turns {
    /// That less is unsent, the first one first.
    unsent: VecDeque<Key>,
    /// That the peer takes more on the connection, the first one first.
    connection: VecDeque<Key>,
    /// How many of the latter may look whether it does.
    may_look: usize,
    /// How many of them have been called of late, and have not sent yet.
    called: usize,
}

impl Turns {
    /// Nobody waits who could go on but for this stream.
    fn is_alone(&self, stream: &Stream) -> bool {
        let others = self.called - usize::from(stream.waiting == Waiting::Called).min(self.called);
        self.unsent.is_empty() && self.may_look == 0 && others == 0
    }

    /// Nobody is before this stream in using what the peer takes on the connection.
    fn is_first(&self, stream: &Stream) -> bool {
        stream.waiting == Waiting::Called || self.connection.is_empty() && self.called == 0
    }

    /// What one of those that are called may use of what the peer takes, whichever of them comes first.
    fn share(&self, left: usize) -> usize {
        if self.called > 1 { left.min((left / self.called).max(WORTH)) } else { left }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.unsent.len() + self.connection.len()
    }

    /// A stream has gone that may wait.
    pub(super) fn leave(&mut self, key: Key, waiting: Waiting) {
        match waiting {
            Waiting::Not | Waiting::Stream => {}
            Waiting::Unsent => self.unsent.retain(|other| *other != key),
            Waiting::Connection => self.connection.retain(|other| *other != key),
            Waiting::Called => self.called = self.called.saturating_sub(1),
        }
    }

    /// Whose turn it is. `data`: the peer takes data.
    fn next(&mut self, data: bool) -> Option<(Key, Waiting)> {
        if let Some(key) = self.unsent.pop_front() {
            return Some((key, Waiting::Unsent));
        }
        self.may_look = self.may_look.min(self.connection.len());
        if !data || self.may_look == 0 {
            return None;
        }
        self.may_look -= 1;
        Some((self.connection.pop_front()?, Waiting::Connection))
    }
}

impl Core {
    /// Its peer has not taken what it was sent: a further stream would wait behind others, or have to share what is
    /// [kept](RESERVE) for those that are there.
    pub(crate) fn is_stuck(&self) -> bool {
        self.credit.left() < RESERVE || !self.has_room()
    }

    /// On how many streams something is still to be sent.
    pub(crate) fn senders(&self) -> usize {
        self.streams.sending()
    }

    /// On how many it may be, by what the peer takes on all of them.
    pub(crate) fn most_senders(&self) -> usize {
        senders(self.most_credit)
    }

    /// Streams that wait for room are woken in their turn, a few at a time. True: there are more, and room for them.
    pub(crate) fn serve_waiting(&mut self) -> bool {
        const AT_ONCE: usize = 8;
        let data = self.credit.left() > 0;
        // Who was called before this has had its chance, and holds up nobody any more.
        self.turns.called = 0;
        for _ in 0..AT_ONCE {
            if !self.has_room() {
                return false;
            }
            let Some((key, waiting)) = self.turns.next(data) else { return false };
            if let Some(stream) = self.streams.get_mut(key)
                && stream.waiting == waiting
            {
                stream.waiting = Waiting::Not;
                if waiting == Waiting::Connection && self.role == Role::Server {
                    stream.waiting = Waiting::Called;
                    self.turns.called += 1;
                }
                stream.wake();
            }
        }
        !self.turns.unsent.is_empty() || data && self.turns.may_look > 0
    }

    /// Streams that wait for the connection may look whether there is room now, when it is driven again.
    pub(super) fn look_again(&mut self) {
        self.turns.may_look = self.turns.connection.len();
        if self.turns.may_look > 0 {
            self.rouse();
        }
    }

    /// How much can be sent on a stream now that has so much to say.
    pub(crate) fn room(&self, key: Key, wanted: usize) -> usize {
        let Some(stream) = self.streams.get(key) else { return 0 };
        let turn = if self.turns.is_alone(stream) { OUT_LIMIT } else { TURN };
        let left = OUT_LIMIT.saturating_sub(self.out.len());
        stream.credit.left().min(self.credit_for(stream, wanted)).min(left).min(turn)
    }

    /// A stream sends data: if it was called for that, the next one may come.
    pub(super) fn use_turn(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && stream.waiting == Waiting::Called
        {
            stream.waiting = Waiting::Not;
            self.turns.leave(key, Waiting::Called);
        }
    }

    /// How much of what the peer takes on the connection a stream may use.
    ///
    /// All of what a client takes, or its share, when it is the stream's turn. A client gives it again as it reads, to the connection and to the stream
    /// of which it has read: so a download that it reads at once could use all of it again each time, and what it waits for
    /// on other streams, however small, would come when the download is over.
    ///
    /// All but for the [last part](RESERVE) of what an endpoint takes. Its connection is shared by streams of many clients,
    /// and it may give it again only as its application reads: one upload that is not read would use it up, and stall all
    /// of them. So a stream may use of the last part what keeps all that the endpoint has not taken of it, `u`, at a
    /// quarter of what is left to the others, `r`: `u + x <= (r - x) / 4`. (A stream that sends alone harms nobody: new ones
    /// are opened on another connection.) It waits for a share that is [worth](WORTH) a frame, unless that is all it has to say.
    fn credit_for(&self, stream: &Stream, wanted: usize) -> usize {
        let left = self.credit.left();
        if self.role == Role::Server {
            return if self.turns.is_first(stream) { self.turns.share(left) } else { 0 };
        }
        let above = left.saturating_sub(RESERVE);
        if stream.credit.left() <= above || self.streams.sending() <= 1 {
            return left;
        }
        let untaken = above + stream.credit.used_of(self.remote.window);
        let of_the_last = (left - above).saturating_sub(4 * untaken) / 5;
        let share = above + of_the_last;
        if share < WORTH.min(wanted) { 0 } else { share }
    }

    /// A head can be sent on a stream now, however large the windows are.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    /// The stream is woken when there may be room. `data`: for so much of it, so that windows count, too.
    pub(crate) fn wait_for_room(&mut self, key: Key, data: Option<usize>) {
        let Some(stream) = self.streams.get(key) else { return };
        match stream.waiting {
            // It keeps its turn, and looks what it waits for when that comes.
            Waiting::Unsent => return,
            Waiting::Connection if data.is_some() => return,
            waiting => self.turns.leave(key, waiting),
        }
        let waiting = match data {
            Some(_) if stream.credit.left() == 0 => Waiting::Stream,
            Some(wanted) if self.credit_for(stream, wanted) == 0 => Waiting::Connection,
            _ => Waiting::Unsent,
        };
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.waiting = waiting;
        match waiting {
            Waiting::Not | Waiting::Stream | Waiting::Called => {}
            Waiting::Connection => {
                self.turns.connection.push_back(key);
                if self.role == Role::Server && self.credit.left() > 0 {
                    // Only others are before it.
                    self.look_again();
                }
            }
            Waiting::Unsent => {
                self.turns.unsent.push_back(key);
                // Should there be room by now.
                self.rouse();
            }
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
