//! Bytes that wait to be written: frames one behind the other, and large data where it is, so that it is not copied.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Data of at least this many bytes is written from where it is.
const NOT_COPIED: usize = 2048;

/// What one write may consist of.
pub(crate) const SLICES: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Before `tail`.
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    /// Bytes in `parts`.
    ahead: usize,
    /// Bytes that were ever written.
    written: u64,
}

impl Out {
    /// Where frames are appended.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends data, whose frame's head has just been.
    pub(crate) fn data(&mut self, data: Bytes) {
        if data.len() < NOT_COPIED {
            self.tail.extend_from_slice(&data);
            return;
        }
        let heads = self.tail.split().freeze();
        self.ahead += heads.len() + data.len();
        if !heads.is_empty() {
            self.parts.push_back(heads);
        }
        self.parts.push_back(data);
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.ahead + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When this many bytes have been [`written`](Self::written), all that waits now has been.
    pub(crate) fn end(&self) -> u64 {
        self.written + self.len() as u64
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The only part, if there is but one.
    pub(crate) fn single(&self) -> Option<&[u8]> {
        self.parts.is_empty().then_some(&self.tail)
    }

    /// What comes first, as far as `slices` reach. Returns how many there are.
    pub(crate) fn slices<'s>(&'s self, slices: &mut [IoSlice<'s>; SLICES]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let parts = self.parts.iter().map(|part| &part[..]).chain(tail);
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// So much was written.
    pub(crate) fn advance(&mut self, mut amount: usize) {
        self.written += amount as u64;
        while let Some(part) = self.parts.front_mut() {
            if amount < part.len() {
                part.advance(amount);
                self.ahead -= amount;
                return;
            }
            amount -= part.len();
            self.ahead -= part.len();
            self.parts.pop_front();
        }
        if amount == self.tail.len() {
            // Keeps its memory.
            self.tail.clear();
        } else {
            self.tail.advance(amount);
        }
    }

    /// What it takes in memory, at most: large data may be a part of something else.
    pub(crate) fn held(&self) -> usize {
        self.ahead + self.tail.capacity()
    }

    /// Nothing more comes for now: keeps little memory.
    pub(crate) fn rest(&mut self) {
        const KEPT: usize = 1024;
        if self.is_empty() && self.tail.capacity() > KEPT {
            self.tail = BytesMut::new();
        }
    }

    /// Whoever will not write any more has no use for it.
    pub(crate) fn discard(&mut self) {
        self.parts.clear();
        self.tail = BytesMut::new();
        self.ahead = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_as_they_came(
            steps in prop::collection::vec((any::<bool>(), 0..9000_usize, 0..30_000_usize), 0..50),
        ) {
            let (mut out, mut expected, mut got) = (Out::default(), Vec::new(), Vec::new());
            for (n, (whole, length, writes)) in steps.into_iter().enumerate() {
                let data = vec![n as u8; length];
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&data);
                out.tail().extend_from_slice(b"head");
                out.data(data.into());
                prop_assert_eq!(out.end(), expected.len() as u64);
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = out.slices(&mut slices);
                let there: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                if let Some(single) = out.single() {
                    prop_assert_eq!(single, &there[..]);
                }
                let amount = if whole { there.len() } else { writes.min(there.len()) };
                got.extend_from_slice(&there[..amount]);
                out.advance(amount);
                prop_assert_eq!((out.written(), out.len()), (got.len() as u64, expected.len() - got.len()));
            }
            prop_assert!(expected.starts_with(&got));
        }
    }
}
