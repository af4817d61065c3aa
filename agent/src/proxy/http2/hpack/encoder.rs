//! Fields to header blocks.
//!
//! What comes again is worth an entry of the table, after which it is one byte; what is another one in each request is not,
//! and would only push the others out. Nobody says which is which, so the encoder looks: a field is added when it comes for
//! the second time within a short while ([`Index::seen`]). What everybody knows to change or to be a secret is told by
//! [`habit`].
//!
//! Strings are in Huffman code only where an entry is made of them: that is paid for once. What is sent each time anew is
//! sent as it is, which costs neither end anything but a fifth more bytes of it.

use ahash::RandomState;
use bytes::{BufMut, BytesMut};
use std::hash::{BuildHasher, Hasher};

use super::{
    OVERHEAD, TABLE_SIZE, fixed,
    fixed::StaticName,
    huffman, integer,
    table::{Line, Name, Table},
};

/// Whether a field may stand in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Indexing {
    /// As the encoder sees fit.
    Auto,
    /// In no table, neither here nor further on. A field that came so has to go so.
    Never,
}

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Nothing.
    Common,
    /// Its value is another one nearly each time.
    Changes,
    /// Its value is a secret: who can see sizes and send fields of his own must not be able to guess at it (RFC 7541,
    /// section 7.1).
    Secret,
}

/// Cookies below this could be guessed at (RFC 7541, section 7.1.3).
const SHORT_COOKIE: usize = 20;

/// Buckets of the index, about as many as a table of [`TABLE_SIZE`] has entries.
const BUCKETS: usize = 128;

/// What is remembered of what came of late: so many sets of so many hashes.
const SETS: usize = 32;
const WAYS: usize = 4;

/// A field of average length has its strings in this many bytes at most, so that room for it is made once.
const ROOM: usize = 128;

pub(crate) struct Encoder {
    table: Table<Links>,
    /// Once there is something to find.
    index: Option<Box<Index>>,
    /// The most that we want to hold.
    bound: usize,
    /// The table's size has changed: the smallest that it had since the peer was told. Told with the next block.
    smallest: Option<usize>,
    hasher: RandomState,
}

/// Finds entries by their hash: each bucket has the newest entry, and each entry the next older one of its bucket. Entries
/// are named by their number, which goes on; as the oldest leave first, a chain ends where an entry has left, and nothing
/// need be taken out.
struct Index {
    /// By name and value.
    fields: [u32; BUCKETS],
    /// By names that the static table does not have.
    names: [u32; BUCKETS],
    /// The hashes of what came of late and is not in the table.
    seen: [[u32; WAYS]; SETS],
    /// Where the lots come from that are drawn between them.
    lots: u32,
    /// The number of the next entry.
    next: u32,
}

/// The next older entries of an entry's buckets.
struct Links {
    field: u32,
    name: u32,
}

impl Index {
    fn new() -> Self {
        // No entry has number 0 while it could be in the table: it would be an older one than all of them.
        Self { fields: [0; BUCKETS], names: [0; BUCKETS], seen: [[0; WAYS]; SETS], lots: 1, next: 1 }
    }

    fn bucket(hash: u64) -> usize {
        hash as usize % BUCKETS
    }

    /// The place of an entry in the table, counted from the newest. Far behind its end for one that has left.
    fn place(&self, number: u32) -> usize {
        self.next.wrapping_sub(1).wrapping_sub(number) as usize
    }

    /// The place of the newest entry of a chain that `fits`.
    fn find<'t>(
        &self,
        table: &'t Table<Links>,
        mut number: u32,
        next: impl Fn(&Links) -> u32,
        fits: impl Fn(Line<'t>) -> bool,
    ) -> Option<usize> {
        // Numbers come again after four billion; what is not older than the one before it is no chain any more.
        let mut least = 0;
        loop {
            let place = self.place(number);
            if place < least {
                return None;
            }
            if fits(table.get(place)?) {
                return Some(place);
            }
            number = next(table.kept(place)?);
            least = place + 1;
        }
    }

    /// Whether something with this hash came of late. From now on it did.
    fn seen(&mut self, hash: u64) -> bool {
        // Never 0, which is nothing's.
        let mark = (hash >> 32) as u32 | 1;
        let set = &mut self.seen[hash as usize % SETS];
        if set.contains(&mark) {
            return true;
        }
        // Were always the oldest forgotten, fields that come in turn, one more than a set has room for, would push each
        // other out for ever. So a lot is drawn (xorshift, Marsaglia 2003).
        self.lots ^= self.lots << 13;
        self.lots ^= self.lots >> 17;
        self.lots ^= self.lots << 5;
        set[self.lots as usize % WAYS] = mark;
        false
    }
}

impl Encoder {
    /// `bound`: the most that this end wants to hold, whatever the peer offers.
    pub(crate) fn new(bound: usize) -> Self {
        Self::hashing(bound, RandomState::new())
    }

    /// Which fields meet in a bucket or a set is the hasher's choice: a test gives its own.
    pub(super) fn hashing(bound: usize, hasher: RandomState) -> Self {
        let table = Table::new(TABLE_SIZE);
        let mut encoder = Self { table, index: None, bound, smallest: None, hasher };
        encoder.set_max_table(TABLE_SIZE);
        encoder
    }

    /// The peer's `SETTINGS_HEADER_TABLE_SIZE`. The next block tells it what was made of it.
    pub(crate) fn set_max_table(&mut self, offered: usize) {
        let max = offered.min(self.bound);
        if max == self.table.max() {
            return;
        }
        self.smallest = Some(self.smallest.unwrap_or(usize::MAX).min(max));
        self.table.set_max(max);
        if self.table.len() == 0 {
            self.index = None;
        }
    }

    /// What it takes in memory.
    pub(crate) fn held(&self) -> usize {
        self.table.held() + if self.index.is_some() { size_of::<Index>() } else { 0 }
    }

    /// Appends a field to a block.
    pub(crate) fn encode(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8], indexing: Indexing) {
        self.put(out, StaticName::find(name), name, value, indexing);
    }

    /// The same for a name whose number is known.
    pub(crate) fn encode_known(
        &mut self,
        out: &mut BytesMut,
        name: StaticName,
        value: &[u8],
        indexing: Indexing,
    ) {
        self.put(out, Some(name), name.bytes(), value, indexing);
    }

    fn put(
        &mut self,
        out: &mut BytesMut,
        known: Option<StaticName>,
        name: &[u8],
        value: &[u8],
        indexing: Indexing,
    ) {
        if self.smallest.is_some() {
            self.tell_sizes(out);
        }
        if let Some(index) = known.and_then(|known| known.with_value(value))
            && indexing == Indexing::Auto
        {
            return integer::put(out, 0x80, 7, index.into());
        }
        out.reserve(ROOM);
        let habit = habit(known, name, value);
        if indexing == Indexing::Never || habit == Habit::Secret {
            let index = self.name_index(known, name);
            return literal(out, Form::Never, index, name, value);
        }
        if let Some(known) = known
            && (habit == Habit::Changes || self.table.max() == 0)
        {
            return literal(out, Form::Plain, Some(known.index().into()), name, value);
        }
        if self.table.max() == 0 {
            return literal(out, Form::Plain, None, name, value);
        }
        self.remembered(out, known, name, value, habit);
    }

    /// A field that may be in the table, or come into it.
    fn remembered(
        &mut self,
        out: &mut BytesMut,
        known: Option<StaticName>,
        name: &[u8],
        value: &[u8],
        habit: Habit,
    ) {
        let (of_name, of_field) = self.hashes(known, name, value);
        let Self { table, index, .. } = self;
        let index = index.get_or_insert_with(|| Box::new(Index::new()));
        if habit == Habit::Common {
            let fits = |line: Line<'_>| line.value == value && line.known == known && line.name == name;
            let first = index.fields[Index::bucket(of_field)];
            if let Some(place) = index.find(table, first, |links| links.field, fits) {
                return integer::put(out, 0x80, 7, fixed::COUNT + 1 + place);
            }
        }
        let (place, name_index) = if let Some(known) = known {
            (None, Some(usize::from(known.index())))
        } else {
            let first = index.names[Index::bucket(of_name)];
            let place = index.find(table, first, |links| links.name, |line| line.name == name);
            (place, place.map(|place| fixed::COUNT + 1 + place))
        };
        // A name that comes again is worth an entry, whatever its value: then at least it is one byte or two.
        let hash = if name_index.is_some() { of_field } else { of_name };
        let worth = habit == Habit::Common || name_index.is_none();
        let fits = name.len() + value.len() + OVERHEAD <= table.max() / 2;
        if !(worth && fits && index.seen(hash)) {
            return literal(out, Form::Plain, name_index, name, value);
        }
        literal(out, Form::Added, name_index, name, value);
        let number = index.next;
        index.next = number.wrapping_add(1);
        let (field, of_name) = (Index::bucket(of_field), Index::bucket(of_name));
        let links = Links { field: index.fields[field], name: index.names[of_name] };
        index.fields[field] = number;
        index.names[of_name] = number;
        let name = match (known, place) {
            (Some(known), _) => Name::Known(known),
            (None, Some(place)) => Name::Of(place),
            (None, None) => Name::New(name),
        };
        // It is no larger than half the table, so it is in it.
        table.insert(name, value, links);
    }

    /// Of the name, and of the field.
    fn hashes(&self, known: Option<StaticName>, name: &[u8], value: &[u8]) -> (u64, u64) {
        let mut hasher = self.hasher.build_hasher();
        match known {
            Some(known) => hasher.write_u8(known.index()),
            None => hasher.write(name),
        }
        let of_name = hasher.finish();
        hasher.write(value);
        (of_name, hasher.finish())
    }

    fn name_index(&self, known: Option<StaticName>, name: &[u8]) -> Option<usize> {
        if let Some(known) = known {
            return Some(known.index().into());
        }
        let index = self.index.as_ref()?;
        let (of_name, _) = self.hashes(None, name, b"");
        let first = index.names[Index::bucket(of_name)];
        let place = index.find(&self.table, first, |links| links.name, |line| line.name == name)?;
        Some(fixed::COUNT + 1 + place)
    }

    /// A size that was smaller in between is told too: the peer's table lost entries by it (RFC 7541, section 4.2).
    #[cold]
    fn tell_sizes(&mut self, out: &mut BytesMut) {
        let max = self.table.max();
        if let Some(smallest) = self.smallest.take().filter(|smallest| *smallest < max) {
            integer::put(out, 0x20, 5, smallest);
        }
        integer::put(out, 0x20, 5, max);
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table<impl Sized> {
        &self.table
    }
}

fn habit(known: Option<StaticName>, name: &[u8], value: &[u8]) -> Habit {
    match known {
        Some(
            known::AGE
            | known::CONTENT_LENGTH
            | known::CONTENT_RANGE
            | known::DATE
            | known::ETAG
            | known::EXPIRES
            | known::IF_MODIFIED_SINCE
            | known::IF_NONE_MATCH
            | known::LAST_MODIFIED
            | known::LOCATION
            | known::RANGE
            | known::RETRY_AFTER,
        ) => Habit::Changes,
        Some(known::AUTHORIZATION | known::PROXY_AUTHORIZATION | known::SET_COOKIE) => Habit::Secret,
        Some(known::COOKIE) if value.len() < SHORT_COOKIE => Habit::Secret,
        Some(_) => Habit::Common,
        None => match name {
            b"b3" | b"baggage" | b"grpc-timeout" | b"sw8" | b"traceparent" | b"tracestate"
            | b"x-b3-spanid" | b"x-b3-traceid" | b"x-request-id" => Habit::Changes,
            _ => Habit::Common,
        },
    }
}

/// Names of the static table that are used here.
mod known {
    use super::StaticName;

    macro_rules! names {
        ($($constant:ident $name:literal)*) => {
            $(pub(super) const $constant: StaticName = StaticName::named($name);)*
        };
    }

    names! {
        AGE "age"
        AUTHORIZATION "authorization"
        CONTENT_LENGTH "content-length"
        CONTENT_RANGE "content-range"
        COOKIE "cookie"
        DATE "date"
        ETAG "etag"
        EXPIRES "expires"
        IF_MODIFIED_SINCE "if-modified-since"
        IF_NONE_MATCH "if-none-match"
        LAST_MODIFIED "last-modified"
        LOCATION "location"
        PROXY_AUTHORIZATION "proxy-authorization"
        RANGE "range"
        RETRY_AFTER "retry-after"
        SET_COOKIE "set-cookie"
    }
}

/// How a literal is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The peer adds it to its table.
    Added,
    Plain,
    /// Nobody adds it to any table.
    Never,
}

fn literal(out: &mut BytesMut, form: Form, name_index: Option<usize>, name: &[u8], value: &[u8]) {
    let (pattern, bits) = match form {
        Form::Added => (0x40, 6),
        Form::Plain => (0, 4),
        Form::Never => (0x10, 4),
    };
    integer::put(out, pattern, bits, name_index.unwrap_or(0));
    let compressed = form == Form::Added;
    if name_index.is_none() {
        string(out, name, compressed);
    }
    string(out, value, compressed);
}

fn string(out: &mut BytesMut, text: &[u8], compressed: bool) {
    if compressed {
        let length = huffman::encoded_length(text);
        if length < text.len() {
            integer::put(out, 0x80, 7, length);
            return huffman::encode(text, out);
        }
    }
    integer::put(out, 0, 7, text.len());
    out.put_slice(text);
}
