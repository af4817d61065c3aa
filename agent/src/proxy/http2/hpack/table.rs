//! The dynamic table (RFC 7541, sections 2.3.2 and 4): entries in the order in which they came, the oldest leaving first.
//!
//! The bytes of all entries stand one behind the other in one buffer. An entry that leaves is only forgotten; when half as
//! much as the table may hold is dead, what lives moves to the front. So nothing is allocated for an entry, a field is one
//! slice, and a byte is moved at most about twice.

use std::collections::VecDeque;

use super::{OVERHEAD, fixed::StaticName};

/// An entry. `T` is what its user keeps with it.
struct Entry<T> {
    /// Where its bytes begin, counted from the first byte that the table ever had.
    begin: usize,
    /// Bytes of the name, unless the static table has it.
    name: usize,
    value: usize,
    known: Option<StaticName>,
    kept: T,
}

impl<T> Entry<T> {
    fn size(&self) -> usize {
        self.known.map_or(self.name, |known| known.bytes().len()) + self.value + OVERHEAD
    }
}

/// Where the name of a new entry is.
#[derive(Clone, Copy)]
pub(super) enum Name<'a> {
    Known(StaticName),
    /// That of the entry at this place.
    Of(usize),
    New(&'a [u8]),
}

/// A name and a value, as they stand in the table.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) known: Option<StaticName>,
}

pub(super) struct Table<T> {
    bytes: Vec<u8>,
    /// How many bytes have been moved out of `bytes` at its front.
    gone: usize,
    /// The newest first.
    entries: VecDeque<Entry<T>>,
    size: usize,
    max: usize,
}

impl<T> Table<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), gone: 0, entries: VecDeque::new(), size: 0, max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What its entries count together.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// What it takes in memory.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry<T>>()
    }

    /// The entry at a place, counted from the newest.
    pub(super) fn get(&self, place: usize) -> Option<Line<'_>> {
        let entry = self.entries.get(place)?;
        let begin = entry.begin - self.gone;
        let middle = begin + entry.name;
        let name = entry.known.map_or(&self.bytes[begin..middle], |known| known.bytes());
        Some(Line { name, value: &self.bytes[middle..middle + entry.value], known: entry.known })
    }

    /// What is kept with the entry at a place.
    pub(super) fn kept(&self, place: usize) -> Option<&T> {
        self.entries.get(place).map(|entry| &entry.kept)
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.make_room(0);
        if self.entries.is_empty() {
            // Whoever wants no table gets its memory back.
            *self = Self { gone: self.gone + self.bytes.len(), ..Self::new(max) };
        }
    }

    /// Adds an entry, for which the oldest ones leave. What is larger than the table empties it, and is not added.
    ///
    /// `Name::Of` is a place that [`Self::get`] has answered.
    pub(super) fn insert(&mut self, name: Name<'_>, value: &[u8], kept: T) -> bool {
        let begin = self.gone + self.bytes.len();
        let (known, length) = match name {
            Name::Known(known) => (Some(known), known.bytes().len()),
            Name::New(name) => (None, name.len()),
            Name::Of(place) => match self.entries.get(place) {
                Some(Entry { known: Some(known), .. }) => (Some(*known), known.bytes().len()),
                Some(entry) => (None, entry.name),
                None => (None, 0),
            },
        };
        let size = length + value.len() + OVERHEAD;
        if size > self.max {
            self.make_room(self.max);
            return false;
        }
        match name {
            Name::New(name) => self.bytes.extend_from_slice(name),
            // Before its entry may have to leave.
            Name::Of(place) if known.is_none() => {
                let from = self.entries[place].begin - self.gone;
                self.bytes.extend_from_within(from..from + length);
            }
            Name::Of(_) | Name::Known(_) => {}
        }
        self.bytes.extend_from_slice(value);
        self.make_room(size);
        let name = if known.is_some() { 0 } else { length };
        self.entries.push_front(Entry { begin, name, value: value.len(), known, kept });
        self.size += size;
        self.move_up();
        true
    }

    /// Lets the oldest leave until there is room for `size`.
    fn make_room(&mut self, size: usize) {
        while self.size + size > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }

    fn move_up(&mut self) {
        let Some(oldest) = self.entries.back() else { return };
        let dead = oldest.begin - self.gone;
        if dead > self.max / 2 {
            self.bytes.drain(..dead);
            self.gone += dead;
        }
    }
}
