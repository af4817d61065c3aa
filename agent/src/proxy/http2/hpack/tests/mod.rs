//! Both ends against the RFC, against each other, and against what means harm.

mod bombs;
mod encoding;
mod examples;

use bytes::BytesMut;
use proptest::prelude::*;

use super::{table::Table, *};

/// A field's name and value.
type Pair = (Vec<u8>, Vec<u8>);

fn pair(name: &str, value: &str) -> Pair {
    (name.into(), value.into())
}

/// The entries of a dynamic table, newest first, and its size.
fn entries<T>(table: &Table<T>) -> (Vec<Pair>, usize) {
    let lines = (0..table.len()).filter_map(|place| table.get(place));
    (lines.map(|line| (line.name.to_vec(), line.value.to_vec())).collect(), table.size())
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Pair>, Error> {
    let mut fields = Vec::new();
    decoder.decode(block, usize::MAX, &mut |field: Field<'_>| {
        assert_eq!(field.known, StaticName::find(field.name));
        fields.push((field.name.to_vec(), field.value.to_vec()));
    })?;
    Ok(fields)
}

fn encode(encoder: &mut Encoder, fields: &[Pair]) -> BytesMut {
    let mut block = BytesMut::new();
    for (name, value) in fields {
        encoder.encode(&mut block, name, value, Indexing::Auto);
    }
    block
}
