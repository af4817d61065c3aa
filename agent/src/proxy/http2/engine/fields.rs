//! The fields of a head or of trailers, in one buffer: names and values one behind the other, as they came.
//!
//! Nothing is made of a field that only passes through: it is copied once when it is decoded and read where it stands
//! when it is encoded. What a hop changes is taken out, added at the end, or edited in place.

use bytes::BytesMut;

use super::super::hpack::{Encoder, Field, Indexing, StaticName};

#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a field stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    begin: u32,
    /// Bytes of the name, none if it is `known`.
    name: u32,
    value: u32,
    known: Option<StaticName>,
    never_indexed: bool,
}

impl Fields {
    pub(crate) fn push(&mut self, field: Field<'_>) {
        let begin = self.bytes.len() as u32;
        if field.known.is_none() {
            self.bytes.extend_from_slice(field.name);
        }
        let name = self.bytes.len() as u32 - begin;
        self.bytes.extend_from_slice(field.value);
        let (value, never_indexed) = (field.value.len() as u32, field.never_indexed);
        self.places.push(Place { begin, name, value, known: field.known, never_indexed });
    }

    /// Adds a field of our own, whose name is in lower case.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.push(Field { name, value, known: StaticName::find(name), never_indexed: false });
    }

    fn read(&self, place: &Place) -> Field<'_> {
        let begin = place.begin as usize;
        let middle = begin + place.name as usize;
        let name = match place.known {
            Some(known) => known.bytes(),
            None => &self.bytes[begin..middle],
        };
        let value = &self.bytes[middle..middle + place.value as usize];
        Field { name, value, known: place.known, never_indexed: place.never_indexed }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.places.iter().map(|place| self.read(place))
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The first value of this name, which is in lower case.
    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|field| field.name == name).map(|field| field.value)
    }

    pub(crate) fn known(&self, name: StaticName) -> Option<&[u8]> {
        self.places.iter().find(|place| place.known == Some(name)).map(|place| self.read(place).value)
    }

    /// The value of a pseudo-header, in its place; one that is not there is put before all others.
    pub(crate) fn set_known(&mut self, name: StaticName, value: &[u8]) {
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        let value = value.len() as u32;
        let new = Place { begin, name: 0, value, known: Some(name), never_indexed: false };
        match self.places.iter_mut().find(|place| place.known == Some(name)) {
            Some(place) => *place = new,
            None => self.places.insert(0, new),
        }
    }

    pub(crate) fn remove(&mut self, is_removed: impl Fn(&[u8]) -> bool) {
        let Self { bytes, places } = self;
        places.retain(|place| {
            let begin = place.begin as usize;
            !is_removed(match place.known {
                Some(known) => known.bytes(),
                None => &bytes[begin..begin + place.name as usize],
            })
        });
    }

    /// Shows names and values; values may be changed in place.
    pub(crate) fn edit(&mut self, mut edit: impl FnMut(&[u8], &mut [u8])) {
        for place in &self.places {
            let begin = place.begin as usize;
            let rest = &mut self.bytes[begin..begin + (place.name + place.value) as usize];
            let (name, value) = rest.split_at_mut(place.name as usize);
            match place.known {
                Some(known) => edit(known.bytes(), value),
                None => edit(name, value),
            }
        }
    }

    /// Appends them to a header block.
    pub(crate) fn encode(&self, encoder: &mut Encoder, out: &mut BytesMut) {
        for field in self.iter() {
            let indexing = if field.never_indexed { Indexing::Never } else { Indexing::Auto };
            match field.known {
                Some(known) => encoder.encode_known(out, known, field.value, indexing),
                None => encoder.encode(out, field.name, field.value, indexing),
            }
        }
    }

    /// What it takes in memory.
    pub(crate) fn held(&self) -> usize {
        self.bytes.capacity() + self.places.capacity() * size_of::<Place>()
    }

    /// Empties it, and keeps its memory unless that has grown large.
    pub(crate) fn clear(&mut self) {
        const KEPT: usize = 4096;
        if self.held() > KEPT {
            *self = Self::default();
        } else {
            self.bytes.clear();
            self.places.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fields {
        let mut fields = Fields::default();
        for (name, value) in
            [(":method", "GET"), ("x-a", "1"), ("cookie", "a=b"), ("x-a", "22"), ("x-empty", "")]
        {
            fields.add(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn text(fields: &Fields) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let lines = fields.iter().map(|field| format!("{}={}", text(field.name), text(field.value)));
        lines.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn fields_stay_in_order_and_are_found() {
        let fields = sample();
        assert_eq!(text(&fields), ":method=GET x-a=1 cookie=a=b x-a=22 x-empty=");
        assert_eq!(fields.get(b"x-a"), Some(&b"1"[..]));
        assert_eq!(fields.get(b"x-empty"), Some(&b""[..]));
        assert_eq!(fields.get(b"x-b"), None);
        assert_eq!(fields.known(StaticName::METHOD), Some(&b"GET"[..]));
        assert_eq!(fields.known(StaticName::PATH), None);
    }

    #[test]
    fn fields_are_taken_out_added_and_changed_in_place() {
        let mut fields = sample();
        fields.remove(|name| name == b"x-a" || name == b"cookie");
        fields.add(b"x-tag", b"gray");
        fields.edit(|name, value| {
            if name == b"x-tag" || name == b":method" {
                value.make_ascii_uppercase();
                value[0] = b'!';
            }
        });
        assert_eq!(text(&fields), ":method=!ET x-empty= x-tag=!RAY");
    }

    #[test]
    fn memory_that_has_grown_large_is_not_kept() {
        let mut fields = sample();
        fields.clear();
        assert!(fields.len() == 0 && fields.held() > 0);
        fields.add(b"x-large", &[b'a'; 5000]);
        fields.clear();
        assert_eq!(fields.held(), 0);
    }
}
