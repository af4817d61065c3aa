//! A worker's store of buffers.
//!
//! A connection holds a buffer only while bytes are on their way: it takes one when its socket becomes readable and gives
//! it back when it is empty. Ten thousand idle connections hold none, and busy ones keep using the few that are warm in
//! the processor's cache.

use std::cell::RefCell;

use bytes::BytesMut;

/// One read's worth. Large enough for the head and body of most answers, so that each costs one read and one write.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;

/// How many free buffers a worker keeps: 2 MiB.
const KEPT: usize = 64;

#[derive(Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<BytesMut>>,
}

impl Buffers {
    /// An empty buffer with room for [`BUFFER_BYTES`].
    pub(crate) fn take(&self) -> BytesMut {
        self.free.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
    }

    /// Takes back a buffer that is no longer needed, whatever is left in it.
    pub(crate) fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        // Reclaims what `advance` has cut off the front; a buffer that was grown for one large head is not kept.
        if !buffer.try_reclaim(BUFFER_BYTES) || buffer.capacity() > BUFFER_BYTES {
            return;
        }
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            free.push(buffer);
        }
    }

    /// Gives `buffer` back if it is empty, leaving one without memory in its place.
    pub(crate) fn give_if_empty(&self, buffer: &mut BytesMut) {
        if buffer.is_empty() && buffer.capacity() > 0 {
            self.give(std::mem::take(buffer));
        }
    }

    /// Leaves `buffer` no more memory than its bytes need, if that is much less than it has: for what is kept while
    /// something is waited for.
    pub(crate) fn compact(&self, buffer: &mut BytesMut) {
        if buffer.capacity() >= BUFFER_BYTES / 2 && buffer.len() <= BUFFER_BYTES / 4 {
            let small = BytesMut::from(&buffer[..]);
            self.give(std::mem::replace(buffer, small));
        }
    }

    /// Makes sure that `buffer` has memory.
    pub(crate) fn fill(&self, buffer: &mut BytesMut) {
        if buffer.capacity() == 0 {
            *buffer = self.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn a_buffer_comes_back_whole_after_use() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(&[7; 1000]);
        buffer.advance(900);
        buffers.give(buffer);
        let again = buffers.take();
        assert!(again.is_empty());
        assert_eq!(again.capacity(), BUFFER_BYTES);
        assert!(buffers.free.borrow().is_empty());
    }

    #[test]
    fn what_is_kept_takes_no_more_than_it_needs() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"GET / HTTP/1.1");
        buffers.compact(&mut buffer);
        assert_eq!(&buffer[..], b"GET / HTTP/1.1");
        assert!(buffer.capacity() < 100);
        assert_eq!(buffers.free.borrow().len(), 1);
        let mut full = buffers.take();
        full.resize(BUFFER_BYTES, 0);
        buffers.compact(&mut full);
        assert_eq!(full.capacity(), BUFFER_BYTES);
    }

    #[test]
    fn neither_grown_nor_surplus_buffers_are_kept() {
        let buffers = Buffers::default();
        buffers.give(BytesMut::with_capacity(4 * BUFFER_BYTES));
        assert!(buffers.free.borrow().is_empty());
        for _ in 0..2 * KEPT {
            buffers.give(BytesMut::with_capacity(BUFFER_BYTES));
        }
        assert_eq!(buffers.free.borrow().len(), KEPT);
    }
}
