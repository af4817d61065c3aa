//! Header blocks to fields.

use super::{
    Error, Field, OVERHEAD, TABLE_SIZE,
    fixed::{self, StaticName},
    huffman, integer,
    table::{Line, Name, Table},
};

/// The index of the dynamic table's newest entry.
const FIRST_OF_TABLE: usize = fixed::COUNT + 1;

/// What may be kept for the next strings in Huffman code.
const KEPT_TEXT: usize = 8 * 1024;

/// What a peer's header blocks mean: all of them, in the order in which they came.
pub(crate) struct Decoder {
    table: Table<()>,
    /// The most that the peer may choose for its table.
    bound: usize,
    /// Strings that were in Huffman code: of the field that is being read.
    text: Vec<u8>,
}

/// A string of a literal.
#[derive(Clone, Copy)]
enum Text<'a> {
    Plain(&'a [u8]),
    /// In the decoder's `text`, from here to there.
    Decoded(usize, usize),
}

impl<'a> Text<'a> {
    fn take(input: &mut &'a [u8], text: &mut Vec<u8>) -> Result<Self, Error> {
        let (first, rest) = input.split_first().ok_or(Error::Compression("it ends before a string"))?;
        *input = rest;
        let length = integer::take(*first, 7, input)?;
        let Some((string, rest)) = input.split_at_checked(length) else {
            return Err(Error::Compression("it ends within a string"));
        };
        *input = rest;
        if first & 0x80 == 0 {
            return Ok(Self::Plain(string));
        }
        let begin = text.len();
        huffman::decode(string, text)
            .map_err(|_| Error::Compression("a string is not in the code for strings"))?;
        Ok(Self::Decoded(begin, text.len()))
    }

    fn bytes<'t>(&self, text: &'t [u8]) -> &'t [u8]
    where
        'a: 't,
    {
        match *self {
            Self::Plain(string) => string,
            Self::Decoded(begin, end) => &text[begin..end],
        }
    }
}

/// Passes fields on, up to a limit.
struct Sink<'s, F> {
    left: usize,
    full: bool,
    to: &'s mut F,
}

impl<F: FnMut(Field<'_>)> Sink<'_, F> {
    fn put(&mut self, field: Field<'_>) {
        let size = field.name.len() + field.value.len() + OVERHEAD;
        match self.left.checked_sub(size) {
            Some(left) if !self.full => {
                self.left = left;
                (self.to)(field);
            }
            _ => self.full = true,
        }
    }
}

impl Decoder {
    /// `bound`: what we tell the peer as `SETTINGS_HEADER_TABLE_SIZE`. Until it has acknowledged a smaller one than the
    /// protocol's default it may use that; the acknowledgement is told with `set_max_table`.
    pub(crate) fn new(bound: usize) -> Self {
        Self { table: Table::new(TABLE_SIZE), bound: bound.max(TABLE_SIZE), text: Vec::new() }
    }

    /// The peer has acknowledged this `SETTINGS_HEADER_TABLE_SIZE`. If its table is larger, its next block has to begin
    /// with a smaller size.
    #[cfg(test)]
    pub(crate) fn set_max_table(&mut self, bound: usize) {
        self.bound = bound;
    }

    /// What it takes in memory.
    pub(crate) fn held(&self) -> usize {
        self.table.held() + self.text.capacity()
    }

    /// Decodes a whole header block and gives its fields to `sink`, one after the other.
    ///
    /// Their names and values with 32 bytes for each field may have `limit` bytes together (RFC 9113, section 6.5.2). What
    /// is above it is decoded, so that the tables stay in step, but not given; [`Error::TooLarge`] is told at the end. Any
    /// other error leaves the decoder unusable.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        sink: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Error> {
        let mut input = block;
        let mut sink = Sink { left: limit, full: false, to: sink };
        self.take_sizes(&mut input)?;
        while let Some((&first, rest)) = input.split_first() {
            input = rest;
            if first & 0x80 != 0 {
                let index = integer::take(first, 7, &mut input)?;
                let Line { name, value, known } = indexed(&self.table, index)?;
                sink.put(Field { name, value, known, never_indexed: false });
            } else if first & 0xe0 == 0x20 {
                return Err(Error::Compression("the table's size changes within it"));
            } else {
                self.literal(first, &mut input, &mut sink)?;
            }
        }
        if self.text.capacity() > KEPT_TEXT {
            self.text = Vec::new();
        }
        if sink.full { Err(Error::TooLarge) } else { Ok(()) }
    }

    /// The sizes for the table with which a block may begin.
    fn take_sizes(&mut self, input: &mut &[u8]) -> Result<(), Error> {
        while let Some((&first, rest)) = input.split_first()
            && first & 0xe0 == 0x20
        {
            *input = rest;
            let max = integer::take(first, 5, input)?;
            if max > self.bound {
                return Err(Error::Compression("its table is to be larger than it may be"));
            }
            self.table.set_max(max);
        }
        if self.table.max() > self.bound {
            return Err(Error::Compression("its table did not become smaller, as it has to"));
        }
        Ok(())
    }

    fn literal<F: FnMut(Field<'_>)>(
        &mut self,
        first: u8,
        input: &mut &[u8],
        sink: &mut Sink<'_, F>,
    ) -> Result<(), Error> {
        let Self { table, text, .. } = self;
        let is_added = first & 0x40 != 0;
        let never_indexed = first & 0xf0 == 0x10;
        let index = integer::take(first, if is_added { 6 } else { 4 }, input)?;
        text.clear();
        if index == 0 {
            let (name, value) = (Text::take(input, text)?, Text::take(input, text)?);
            let (name, value) = (name.bytes(text), value.bytes(text));
            let known = StaticName::find(name);
            sink.put(Field { name, value, known, never_indexed });
            if is_added {
                table.insert(known.map_or(Name::New(name), Name::Known), value, ());
            }
        } else {
            let value = Text::take(input, text)?;
            let value = value.bytes(text);
            let Line { name, known, .. } = indexed(table, index)?;
            sink.put(Field { name, value, known, never_indexed });
            if is_added {
                table.insert(known.map_or_else(|| Name::Of(index - FIRST_OF_TABLE), Name::Known), value, ());
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table<()> {
        &self.table
    }
}

/// What stands at an index of both tables together.
fn indexed(table: &Table<()>, index: usize) -> Result<Line<'_>, Error> {
    if let Some((known, value)) = fixed::entry(index) {
        return Ok(Line { name: known.bytes(), value, known: Some(known) });
    }
    // Index 0 is none of the static table, and none here.
    let place = index.checked_sub(FIRST_OF_TABLE);
    place.and_then(|place| table.get(place)).ok_or(Error::Compression("no entry has its index"))
}
