//! The streams of a connection: by number, and where they are.

use std::{collections::VecDeque, task::Waker};

use ahash::AHashMap;

use super::{
    fields::Fields,
    flow::{Credit, Window},
    message::Response,
    queue::Queue,
    state::{Closed, State},
};
use crate::observe::fault::Fault;

/// Streams that were reset of late are remembered: what their peer had sent before it heard of that is dropped without a
/// word.
const REMEMBERED: usize = 512;

/// Numbers that a client has passed over are remembered, the last so many ranges of them: to open one of these is an error
/// of the connection, to go on with a stream that has ended is not. A client that passes over still more is told the latter.
const PASSED_OVER: usize = 64;

/// Where a stream is. Valid as long as the stream is held or has not come to its end.
pub(crate) type Key = usize;

/// The number of a stream that is to be opened, and has none: it gets the next one with its head, as numbers have to be used in
/// their order (RFC 9113, section 5.1.1). Larger than any.
pub(crate) const UNNUMBERED: u32 = u32::MAX;

/// What a stream waits for, before more can be sent on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Waiting {
    #[default]
    Not,
    /// That the peer makes the stream's own window larger.
    Stream,
    /// That less is unsent, in its turn: it is in the queue of those that do.
    Unsent,
    /// That the peer takes more on the connection, or leaves more of it to this stream, in its turn among those that do.
    Connection,
    /// No longer: it is its turn to use what the peer takes on the connection, before those that wait for that.
    Called,
}

#[derive(Debug)]
pub(crate) struct Stream {
    /// Its number, or [`UNNUMBERED`].
    pub(crate) id: u32,
    pub(crate) state: State,
    /// What the peer may send.
    pub(crate) window: Window,
    /// What it lets us send.
    pub(crate) credit: Credit,
    /// Data that has come.
    pub(crate) queue: Queue,
    /// Interim responses that have come, and how many there were.
    pub(crate) interim: VecDeque<Response>,
    pub(crate) interims: u32,
    pub(crate) response: Option<Response>,
    pub(crate) trailers: Option<Fields>,
    /// Bytes of heads and trailers that are here.
    pub(crate) heads: usize,
    /// What is still to come of a body whose length was told.
    pub(crate) left: Option<u64>,
    /// It asked with HEAD: a length is not that of a body.
    pub(crate) head_only: bool,
    pub(crate) waiting: Waiting,
    /// Who is told of what happens to it.
    pub(crate) waker: Option<Waker>,
    /// Everything that the peer had to say has come.
    pub(crate) whole: bool,
    /// Someone holds it, or will.
    pub(crate) held: bool,
    /// It counts as open.
    pub(crate) counted: bool,
    /// It counts as one on which something is still to be sent.
    pub(crate) sending: bool,
    /// What the peer did, if it was closed because of that.
    pub(crate) broken: Option<Fault>,
    /// In the list of those that data has come for.
    pub(crate) fresh: bool,
}

impl Stream {
    pub(crate) fn new(id: u32, window: u32, credit: u32) -> Self {
        Self {
            id,
            state: State::NEW,
            window: Window::new(window),
            credit: Credit::new(credit),
            queue: Queue::default(),
            interim: VecDeque::new(),
            interims: 0,
            response: None,
            trailers: None,
            heads: 0,
            left: None,
            head_only: false,
            waiting: Waiting::Not,
            waker: None,
            whole: false,
            held: true,
            counted: true,
            sending: true,
            broken: None,
            fresh: false,
        }
    }

    /// Nothing more will come of it but what is here.
    pub(crate) fn has_all(&self) -> bool {
        self.state.receiving().is_none()
    }

    /// The peer's message has come whole, and all of it was taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.whole && self.queue.is_empty() && self.trailers.is_none()
    }

    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Streams {
    slots: Vec<Option<Box<Stream>>>,
    free: Vec<Key>,
    by_id: AHashMap<u32, Key>,
    /// Those that have not been closed.
    open: usize,
    /// Those on which something is still to be sent.
    sending: usize,
    /// Of those that were reset from this side, the last ones.
    reset: VecDeque<u32>,
    /// Numbers of streams that were never opened, from one to another.
    passed_over: VecDeque<(u32, u32)>,
}

impl Streams {
    /// How many have not come to their end, or are held.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many are not closed.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// On how many something is still to be sent.
    pub(crate) fn sending(&self) -> usize {
        self.sending
    }

    /// Everything was sent on the stream, or will not be.
    pub(crate) fn note_sent(&mut self, key: Key) {
        if let Some(stream) = self.get_mut(key)
            && std::mem::take(&mut stream.sending)
        {
            self.sending -= 1;
        }
    }

    /// The stream is closed, if it was not before.
    pub(crate) fn note_closed(&mut self, key: Key) {
        self.note_sent(key);
        if let Some(stream) = self.get_mut(key)
            && std::mem::take(&mut stream.counted)
        {
            self.open -= 1;
        }
    }

    pub(crate) fn insert(&mut self, stream: Stream) -> Key {
        self.open += usize::from(stream.counted);
        self.sending += usize::from(stream.sending);
        let id = stream.id;
        let stream = Some(Box::new(stream));
        let key = if let Some(key) = self.free.pop() {
            self.slots[key] = stream;
            key
        } else {
            self.slots.push(stream);
            self.slots.len() - 1
        };
        if id != UNNUMBERED {
            self.by_id.insert(id, key);
        }
        key
    }

    /// Gives a stream its number.
    pub(crate) fn number(&mut self, key: Key, id: u32) {
        if let Some(stream) = self.get_mut(key) {
            stream.id = id;
            self.by_id.insert(id, key);
        }
    }

    pub(crate) fn find(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Stream> {
        self.slots.get(key)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.slots.get_mut(key)?.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, key: Key) {
        self.note_closed(key);
        let Some(stream) = self.slots.get_mut(key).and_then(Option::take) else { return };
        self.by_id.remove(&stream.id);
        self.free.push(key);
        if self.len() == 0 {
            // Whoever had many streams once gives their places back.
            self.slots.clear();
            self.free.clear();
        }
        if stream.id != UNNUMBERED && matches!(stream.state, State::Closed(Closed::ByUs(_))) {
            if self.reset.len() == REMEMBERED {
                self.reset.pop_front();
            }
            self.reset.push_back(stream.id);
        }
    }

    /// It was reset from this side, not long ago.
    pub(crate) fn was_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }

    /// The peer opens stream `id`, after `highest` as the last one.
    pub(crate) fn note_opened(&mut self, highest: u32, id: u32) {
        let next = if highest == 0 { 1 } else { highest + 2 };
        if id > next {
            if self.passed_over.len() == PASSED_OVER {
                self.passed_over.pop_front();
            }
            self.passed_over.push_back((next, id - 2));
        }
    }

    /// A higher stream was opened, and this one never.
    pub(crate) fn was_passed_over(&self, id: u32) -> bool {
        self.passed_over.iter().any(|(first, last)| (*first..=*last).contains(&id))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut Stream)> {
        self.slots.iter_mut().enumerate().filter_map(|(key, slot)| Some((key, slot.as_deref_mut()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::frame::Code, *};

    #[test]
    fn places_are_used_again_and_given_back() {
        let mut streams = Streams::default();
        let keys: Vec<_> = (0..3).map(|n| streams.insert(Stream::new(2 * n + 1, 1, 1))).collect();
        assert_eq!((streams.len(), streams.find(3)), (3, Some(keys[1])));
        streams.remove(keys[1]);
        assert!(streams.find(3).is_none() && streams.get(keys[1]).is_none());
        assert_eq!(streams.insert(Stream::new(7, 1, 1)), keys[1]);
        for key in keys {
            streams.remove(key);
        }
        assert_eq!((streams.len(), streams.slots.len()), (0, 0));
    }

    #[test]
    fn streams_without_a_number_count_and_are_found_once_they_have_one() {
        let mut streams = Streams::default();
        let (one, other) =
            (streams.insert(Stream::new(UNNUMBERED, 1, 1)), streams.insert(Stream::new(UNNUMBERED, 1, 1)));
        assert_eq!((streams.len(), streams.open(), streams.find(UNNUMBERED)), (2, 2, None));
        streams.number(other, 1);
        assert_eq!(streams.find(1), Some(other));
        streams.get_mut(one).unwrap().state.close(Closed::ByUs(Code::CANCEL));
        streams.remove(one);
        assert!(!streams.was_reset(UNNUMBERED));
        streams.remove(other);
        assert_eq!((streams.len(), streams.slots.len()), (0, 0));
    }

    #[test]
    fn numbers_that_were_passed_over_are_told_from_those_that_were_used() {
        let mut streams = Streams::default();
        let mut highest = 0;
        for id in [1, 3, 9, 11, 21] {
            streams.note_opened(highest, id);
            highest = id;
        }
        let passed_over: Vec<_> = (1..30).step_by(2).filter(|id| streams.was_passed_over(*id)).collect();
        assert_eq!(passed_over, [5, 7, 13, 15, 17, 19]);
        for _ in 0..1000 {
            streams.note_opened(highest, highest + 4);
            highest += 4;
        }
        assert_eq!(streams.passed_over.len(), PASSED_OVER);
        assert!(streams.was_passed_over(highest - 2) && !streams.was_passed_over(5));
        let mut late = Streams::default();
        late.note_opened(0, 5);
        assert!(late.was_passed_over(1) && late.was_passed_over(3) && !late.was_passed_over(5));
    }

    #[test]
    fn the_last_ones_that_were_reset_are_remembered() {
        let mut streams = Streams::default();
        for n in 0..=REMEMBERED as u32 {
            let key = streams.insert(Stream::new(n, 1, 1));
            streams.get_mut(key).unwrap().state.close(Closed::ByUs(Code::CANCEL));
            streams.remove(key);
        }
        assert!(!streams.was_reset(0) && streams.was_reset(1) && streams.was_reset(REMEMBERED as u32));
        let key = streams.insert(Stream::new(9999, 1, 1));
        streams.get_mut(key).unwrap().state.close(Closed::Ended);
        streams.remove(key);
        assert!(!streams.was_reset(9999));
    }
}
