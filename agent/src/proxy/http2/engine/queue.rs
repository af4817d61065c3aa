//! Data of a stream that has come and waits to be passed on.
//!
//! Data is taken as a slice of the buffer that it was read into, and mostly leaves again before the next read. What does
//! not must not keep a whole buffer alive for a few bytes: it is moved into memory of its own before the connection reads
//! again ([`Queue::settle`]).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Data smaller than this joins what is there, if something is: small messages that wait go on together.
const JOINED: usize = 1024;

/// Slices of at least this many bytes may keep their buffer alive, which is at most a few times larger.
const WORTH_A_BUFFER: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    first: Bytes,
    more: VecDeque<Bytes>,
    /// Behind those.
    tail: BytesMut,
    length: usize,
    /// Of `first` and `more`, how many have memory of their own.
    settled: usize,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.length += data.len();
        if self.first.is_empty() {
            self.first = data;
        } else if data.len() < JOINED {
            self.tail.extend_from_slice(&data);
            if self.tail.len() >= WORTH_A_BUFFER {
                self.seal();
            }
        } else {
            self.seal();
            self.more.push_back(data);
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail).freeze();
            self.more.push_back(tail);
        }
    }

    /// Takes at most so much of what is next.
    pub(crate) fn take(&mut self, most: usize) -> Bytes {
        if self.first.len() > most {
            self.length -= most;
            return self.first.split_to(most);
        }
        self.settled = self.settled.saturating_sub(1);
        let next = self.more.pop_front().unwrap_or_else(|| std::mem::take(&mut self.tail).freeze());
        let taken = std::mem::replace(&mut self.first, next);
        self.length -= taken.len();
        taken
    }

    /// The connection is about to read again: what is still here gets memory of its own, unless it fills a good part of
    /// its buffer.
    pub(crate) fn settle(&mut self) {
        let owned = |slice: &mut Bytes| {
            if slice.len() < WORTH_A_BUFFER {
                *slice = Bytes::copy_from_slice(slice);
            }
        };
        if self.first.is_empty() {
            return;
        }
        if self.settled == 0 {
            owned(&mut self.first);
        }
        self.more.iter_mut().skip(self.settled.saturating_sub(1)).for_each(owned);
        self.settled = 1 + self.more.len();
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A slice of a larger buffer.
    fn slice(length: usize, byte: u8) -> Bytes {
        Bytes::from(vec![byte; length + 100]).slice(50..50 + length)
    }

    #[test]
    fn small_data_that_waits_goes_on_together() {
        let mut queue = Queue::default();
        for n in 0..100 {
            queue.push(slice(6, n));
        }
        assert_eq!(queue.len(), 600);
        assert_eq!(queue.take(usize::MAX), vec![0; 6]);
        assert_eq!(queue.take(usize::MAX).len(), 594);
        assert!(queue.is_empty() && queue.take(usize::MAX).is_empty());
    }

    #[test]
    fn what_stays_keeps_no_foreign_buffer() {
        let buffer = BytesMut::zeroed(4096);
        let buffer = buffer.freeze();
        let mut queue = Queue::default();
        queue.push(buffer.slice(0..1500));
        queue.push(buffer.slice(1500..3000));
        queue.push(buffer.slice(3000..3010));
        queue.settle();
        assert!(buffer.is_unique());
        queue.push(buffer.slice(0..2000));
        queue.settle();
        assert!(buffer.is_unique());
        assert_eq!(queue.len(), 5010);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(steps in prop::collection::vec((0..3_u8, 0..20_000_usize), 0..60)) {
            let (mut queue, mut expected, mut next) = (Queue::default(), Vec::new(), 0_u8);
            let mut got = Vec::new();
            for (step, amount) in steps {
                match step {
                    0 => {
                        next = next.wrapping_add(1);
                        expected.extend(std::iter::repeat_n(next, amount));
                        queue.push(slice(amount, next));
                    }
                    1 => {
                        let taken = queue.take(amount.max(1));
                        prop_assert!(taken.len() <= amount.max(1));
                        prop_assert_eq!(taken.is_empty(), expected.len() == got.len());
                        got.extend_from_slice(&taken);
                    }
                    _ => queue.settle(),
                }
                prop_assert_eq!(queue.len(), expected.len() - got.len());
            }
            while !queue.is_empty() {
                got.extend_from_slice(&queue.take(7000));
            }
            prop_assert!(got == expected);
        }
    }
}
