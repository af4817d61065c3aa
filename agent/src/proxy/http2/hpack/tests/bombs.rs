//! Blocks that are cut off, broken, or made to cost more than they weigh.

use super::*;

/// A block of each form: indexed, literals with and without an entry, plain and in Huffman code, and a table size.
fn every_form() -> Vec<u8> {
    hex(
        "3fe11f 82 400a637573746f6d2d6b65790d637573746f6d2d686561646572 be 418cf1e3c2e5f23a6ba0ab90f4ff 040c2f73616d706c652f70617468 \
         100870617373776f726406736563726574 7f000162 0f11 03616263",
    )
}

#[test]
fn a_block_that_is_cut_off_is_an_error_or_says_less() {
    let whole = every_form();
    let all = decode(&mut Decoder::new(TABLE_SIZE), &whole).expect("it is one");
    let mut ends = 0;
    for length in 0..whole.len() {
        match decode(&mut Decoder::new(TABLE_SIZE), &whole[..length]) {
            Ok(fields) => {
                assert_eq!(fields[..], all[..fields.len()]);
                ends += 1;
            }
            Err(error) => assert!(matches!(error, Error::Compression(_)), "{length}"),
        }
    }
    // The empty one, behind the size, and behind each field but the last one.
    assert_eq!(ends, 1 + all.len());
}

#[test]
fn what_is_no_header_block_is_refused() {
    for (block, why) in [
        ("80", "index 0"),
        ("be", "an index behind an empty table"),
        ("ff00", "the same in two bytes"),
        ("ffffffff7f", "an index far behind"),
        ("ffffffffff7f", "a number of more than 28 bits"),
        ("ff8080808000", "a number with needless bytes"),
        ("ffffffffffffffffffffff", "a number without end"),
        ("7f0001 61", "a literal whose name is behind the table"),
        ("400161", "no value"),
        ("40016102 61", "a value that is cut off"),
        ("40", "no name"),
        ("4081", "a name in Huffman code that is cut off"),
        ("00 82 ffff 00", "padding of more than seven bits"),
        ("00 84 fffffffc 00", "the end's own code"),
        ("00 81 00 00", "padding of zeros"),
        ("3fe21f", "a table of one byte more than 4096"),
        ("3fffffff7f", "a table far larger"),
        ("82 20", "a size behind a field"),
        ("82 3fe11f", "the same with a size that could be"),
    ] {
        let result = decode(&mut Decoder::new(TABLE_SIZE), &hex(block));
        assert!(matches!(result, Err(Error::Compression(_))), "{why}: {result:?}");
    }
}

#[test]
fn a_table_that_had_to_become_smaller_is_told_of() {
    let mut decoder = Decoder::new(0);
    assert_eq!(
        decode(&mut decoder, &hex("400161 0162")),
        Ok(vec![pair("a", "b")]),
        "nothing is acknowledged yet"
    );
    decoder.set_max_table(0);
    assert!(decode(&mut decoder, &hex("82")).is_err());
    decoder.set_max_table(33);
    assert_eq!(decode(&mut decoder, &hex("20 3f02 400161 00")), Ok(vec![pair("a", "")]));
    assert_eq!(entries(decoder.table()), (vec![pair("a", "")], 33));
    assert!(decode(&mut decoder, &hex("3f03")).is_err(), "34 bytes are too many");
}

#[test]
fn an_entry_that_is_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(TABLE_SIZE);
    decode(&mut decoder, &hex("400161 0162")).expect("an entry");
    let mut large = hex("400163");
    large.extend_from_slice(&hex("7f e1 1e"));
    large.extend(vec![b'x'; 0x7f + 0x61 + (0x1e << 7)]);
    let fields = decode(&mut decoder, &large).expect("it is a field nonetheless");
    assert_eq!(fields[0].0, b"c");
    assert_eq!(entries(decoder.table()), (vec![], 0));
    // By the name of an entry that leaves for it.
    decode(&mut decoder, &hex("400161 0162")).expect("an entry");
    let mut large = hex("7e 7f e0 1e");
    large.extend(vec![b'x'; 0x7f + 0x60 + (0x1e << 7)]);
    decode(&mut decoder, &large).expect("it is a field");
    let (entries, size) = entries(decoder.table());
    assert_eq!((entries.len(), entries[0].0.as_slice(), size), (1, &b"a"[..], TABLE_SIZE));
}

#[test]
fn a_list_above_its_limit_is_decoded_and_not_given() {
    let mut decoder = Decoder::new(TABLE_SIZE);
    // An entry of 3,000 bytes, and 50,000 references to it: 150 MB in 50 KB.
    let mut bomb = hex("400161 7f b9 16");
    bomb.extend(vec![b'x'; 0x7f + 0x39 + (0x16 << 7)]);
    bomb.extend(vec![0xbe; 50_000]);
    bomb.extend(hex("400162 0163"));
    let mut given = 0;
    let result =
        decoder.decode(&bomb, 65_536, &mut |field| given += field.name.len() + field.value.len() + 32);
    assert_eq!(result, Err(Error::TooLarge));
    assert!(given > 60_000 && given <= 65_536);
    assert_eq!(entries(decoder.table()).0[0], pair("b", "c"), "the table is in step");
    assert_eq!(decode(&mut decoder, &hex("be")), Ok(vec![pair("b", "c")]));
    // Nothing is given behind what was too large, also if it would fit.
    let mut names = Vec::new();
    let limited = decoder.decode(&hex("84 87 bf 84"), 100, &mut |field| names.push(field.name.to_vec()));
    assert_eq!((limited, names), (Err(Error::TooLarge), vec![b":path".to_vec(), b":scheme".to_vec()]));
    // Exactly the limit is not above it.
    assert_eq!(decoder.decode(&hex("84"), 38, &mut |_| ()), Ok(()));
    assert_eq!(decoder.decode(&hex("84"), 37, &mut |_| ()), Err(Error::TooLarge));
}

#[test]
fn what_is_held_does_not_grow() {
    let mut decoder = Decoder::new(TABLE_SIZE);
    for n in 0..20_000_u32 {
        // Entries of all sizes, by new names and by those of entries.
        let length = n * 37 % 127;
        let mut block = if n % 3 == 0 { hex("40 04 61626364") } else { vec![0x7f, (n % 7) as u8] };
        if n % 3 != 0 && entries(decoder.table()).0.len() < 8 {
            block = hex("4002 6162");
        }
        block.push(length as u8);
        block.extend(vec![b'v'; length as usize]);
        decode(&mut decoder, &block).expect("it is one");
        // A long string in Huffman code in between.
        if n % 1000 == 0 {
            let mut block = hex("00 01 61 ff 81 fe 03");
            block.extend(vec![0x18; 0x7f + 1 + (0x7e << 7) + (3 << 14)]);
            decode(&mut decoder, &block).expect("it is one");
        }
    }
    assert!(entries(decoder.table()).1 <= TABLE_SIZE);
    assert!(decoder.held() < 32 * 1024, "{}", decoder.held());
}

/// A table that forgets nothing, as the RFC describes it.
#[derive(Default)]
struct Model(Vec<Pair>);

impl Model {
    fn insert(&mut self, pair: Pair, max: usize) {
        self.0.insert(0, pair);
        while self.size() > max {
            self.0.pop();
        }
    }

    fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum()
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_without_harm(blocks in prop::collection::vec(any::<Vec<u8>>(), 1..8)) {
        let mut decoder = Decoder::new(TABLE_SIZE);
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
            prop_assert!(entries(decoder.table()).1 <= TABLE_SIZE);
        }
    }

    #[test]
    fn the_table_is_the_one_that_the_rfc_describes(
        max in 0_usize..400,
        steps in prop::collection::vec((0_usize..70, 0_usize..60, 0_usize..40), 0..200),
    ) {
        let mut decoder = Decoder::new(TABLE_SIZE);
        let mut block = BytesMut::new();
        integer::put(&mut block, 0x20, 5, max);
        decode(&mut decoder, &block).expect("a size");
        let mut model = Model::default();
        for (of, name, value) in steps {
            let value = vec![b'v'; value];
            let mut block = BytesMut::new();
            let entry = of.checked_sub(fixed::COUNT + 1).and_then(|place| model.0.get(place));
            let name = entry.map_or_else(|| vec![b'n'; name], |(name, _)| name.clone());
            if entry.is_some() {
                integer::put(&mut block, 0x40, 6, of);
            } else {
                block.extend_from_slice(&[0x40, name.len() as u8]);
                block.extend_from_slice(&name);
            }
            block.extend_from_slice(&[value.len() as u8]);
            block.extend_from_slice(&value);
            prop_assert_eq!(decode(&mut decoder, &block), Ok(vec![(name.clone(), value.clone())]));
            model.insert((name, value), max);
            prop_assert_eq!(entries(decoder.table()), (model.0.clone(), model.size()));
        }
    }
}
