//! The static table (RFC 7541, appendix A), and finding a name in it without comparing with each.

use std::num::NonZeroU8;

/// Its entries; the first has index 1.
const ENTRIES: [(&str, &str); COUNT] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// How many there are: an index above it is one of the dynamic table.
pub(super) const COUNT: usize = 61;

/// A name that the static table has: the index of its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StaticName(NonZeroU8);

/// Names by their [`slot`]; 0 where there is none.
const SLOTS: [u8; 256] = {
    let mut slots = [0; 256];
    let mut at = 0;
    while at < COUNT {
        let name = ENTRIES[at].0.as_bytes();
        let first = first_of(at);
        let slot = slot(name);
        assert!(slots[slot] == 0 || slots[slot] == first, "two names in one slot");
        slots[slot] = first;
        at += 1;
    }
    slots
};

/// The canonical index of each entry's name.
const FIRSTS: [u8; COUNT] = {
    let mut firsts = [0; COUNT];
    let mut at = 0;
    while at < COUNT {
        firsts[at] = first_of(at);
        at += 1;
    }
    firsts
};

/// The index of the first entry with the name of the one at `at`: entries with one name stand together.
const fn first_of(mut at: usize) -> u8 {
    while at > 0 && same(ENTRIES[at - 1].0.as_bytes(), ENTRIES[at].0.as_bytes()) {
        at -= 1;
    }
    at as u8 + 1
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// A slot of its own for each name of the table; the factors were found by trying, and [`SLOTS`] proves them. Not for an
/// empty name.
const fn slot(name: &[u8]) -> usize {
    let length = name.len();
    let sum = name[length - 1] as usize * 42
        + length * 160
        + name[length / 2] as usize * 247
        + name[0] as usize * 99;
    (sum & 0xffff) >> 4 & 0xff
}

impl StaticName {
    pub(crate) const AUTHORITY: Self = Self::named(":authority");
    pub(crate) const METHOD: Self = Self::named(":method");
    pub(crate) const PATH: Self = Self::named(":path");
    pub(crate) const SCHEME: Self = Self::named(":scheme");
    pub(crate) const STATUS: Self = Self::named(":status");

    /// For constants: the name has to be in the table.
    pub(crate) const fn named(name: &str) -> Self {
        let index = SLOTS[slot(name.as_bytes())];
        match NonZeroU8::new(index) {
            Some(known) if same(ENTRIES[index as usize - 1].0.as_bytes(), name.as_bytes()) => Self(known),
            _ => panic!("no name of the static table"),
        }
    }

    pub(crate) fn find(name: &[u8]) -> Option<Self> {
        if name.is_empty() {
            return None;
        }
        let index = NonZeroU8::new(SLOTS[slot(name)])?;
        (ENTRIES[usize::from(index.get()) - 1].0.as_bytes() == name).then_some(Self(index))
    }

    /// The lowest index that has this name.
    pub(crate) const fn index(self) -> u8 {
        self.0.get()
    }

    pub(crate) fn bytes(self) -> &'static [u8] {
        ENTRIES[usize::from(self.index()) - 1].0.as_bytes()
    }

    /// The index of the entry with this value, too.
    pub(super) fn with_value(self, value: &[u8]) -> Option<u8> {
        let index = match (self.index(), value) {
            (2, b"GET") | (4, b"/") | (6, b"http") | (8, b"200") | (16, b"gzip, deflate") => self.index(),
            (2, b"POST") => 3,
            (4, b"/index.html") => 5,
            (6, b"https") => 7,
            (8, b"204") => 9,
            (8, b"206") => 10,
            (8, b"304") => 11,
            (8, b"400") => 12,
            (8, b"404") => 13,
            (8, b"500") => 14,
            _ => return None,
        };
        Some(index)
    }
}

/// The entry at an index, if it is one of this table.
pub(super) fn entry(index: usize) -> Option<(StaticName, &'static [u8])> {
    let at = index.checked_sub(1)?;
    let name = StaticName(NonZeroU8::new(*FIRSTS.get(at)?)?);
    Some((name, ENTRIES[at].1.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_found_by_its_name_and_value() {
        for index in 1..=COUNT {
            let (name, value) = ENTRIES[index - 1];
            let found = StaticName::find(name.as_bytes()).expect("it is in the table");
            assert_eq!(found.bytes(), name.as_bytes());
            assert_eq!(entry(index), Some((found, value.as_bytes())));
            // An empty value in the table is none (it only stands for the name).
            let with_value = (!value.is_empty()).then_some(index as u8);
            assert_eq!(found.with_value(value.as_bytes()), with_value, "{name}: {value}");
            assert_eq!(found.with_value(b"other"), None);
        }
        assert_eq!(entry(0), None);
        assert_eq!(entry(COUNT + 1), None);
    }

    #[test]
    fn a_name_that_differs_in_one_byte_is_not_found() {
        for (name, _) in ENTRIES {
            for at in 0..name.len() {
                for byte in 0..=255 {
                    let mut other = name.as_bytes().to_vec();
                    other[at] = byte;
                    let in_table = ENTRIES.iter().any(|(name, _)| name.as_bytes() == other);
                    assert_eq!(StaticName::find(&other).is_some(), in_table, "{other:?}");
                }
            }
        }
        assert_eq!(StaticName::find(b""), None);
        assert_eq!(StaticName::find(b"te"), None);
    }
}
