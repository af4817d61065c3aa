//! The code for strings (RFC 7541, appendix B).
//!
//! It is canonical: codes of one length follow each other in the order of their symbols, and longer ones follow shorter
//! ones. So the lengths say all, and the tables are made of them when this is compiled. Decoding looks [`BITS`] bits up at
//! a time, which are most often two characters; what is longer is rare, and found by its length.

use bytes::{BufMut, BytesMut};

/// How many bits each symbol's code has. The last one is the end of the string, which is never written.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const SYMBOLS: usize = 257;

/// The symbol that ends a string; only its first bits are written, as padding.
const END: u16 = 256;

const LONGEST: usize = 30;

/// How many bits are looked up at once.
const BITS: usize = 12;

/// How many codes there are of each length.
const COUNTS: [u32; LONGEST + 1] = {
    let mut counts = [0; LONGEST + 1];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        counts[LENGTHS[symbol] as usize] += 1;
        symbol += 1;
    }
    counts
};

/// The first code of each length.
const FIRSTS: [u32; LONGEST + 1] = {
    let mut firsts = [0; LONGEST + 1];
    let mut length = 1;
    while length <= LONGEST {
        firsts[length] = (firsts[length - 1] + COUNTS[length - 1]) << 1;
        length += 1;
    }
    firsts
};

/// The symbols in the order of their codes, and where in it each length begins.
const SORTED: ([u16; SYMBOLS], [u32; LONGEST + 1]) = {
    let (mut sorted, mut starts) = ([0; SYMBOLS], [0; LONGEST + 1]);
    let (mut length, mut at) = (0, 0);
    while length <= LONGEST {
        starts[length] = at as u32;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                sorted[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    (sorted, starts)
};

/// A symbol's code, and how many bits it has.
static CODES: [(u32, u8); SYMBOLS] = {
    let mut codes = [(0, 0); SYMBOLS];
    let mut at = 0;
    while at < SYMBOLS {
        let symbol = SORTED.0[at] as usize;
        let length = LENGTHS[symbol] as usize;
        codes[symbol] = (FIRSTS[length] + at as u32 - SORTED.1[length], length as u8);
        at += 1;
    }
    codes
};

/// What [`BITS`] bits begin with: one or two symbols, or none whose code is that short.
#[derive(Clone, Copy)]
struct Looked {
    symbols: [u8; 2],
    /// The bits of the first symbol; 0 if there is none.
    first: u8,
    /// The bits of all of them.
    all: u8,
}

static LOOKED: [Looked; 1 << BITS] = {
    let mut table = [Looked { symbols: [0; 2], first: 0, all: 0 }; 1 << BITS];
    let mut bits = 0;
    while bits < 1 << BITS {
        if let Some((one, length)) = short(bits, BITS) {
            let looked = &mut table[bits];
            looked.symbols[0] = one;
            looked.first = length as u8;
            looked.all = length as u8;
            let left = BITS - length;
            if let Some((two, length)) = short(bits & ((1 << left) - 1), left) {
                looked.symbols[1] = two;
                looked.all += length as u8;
            }
        }
        bits += 1;
    }
    table
};

/// The symbol with which `bits`, of which there are `have`, begin, if all of its code is there.
const fn short(bits: usize, have: usize) -> Option<(u8, usize)> {
    let mut length = 1;
    while length <= have {
        let code = (bits >> (have - length)) as u32;
        if code >= FIRSTS[length] && code - FIRSTS[length] < COUNTS[length] {
            let symbol = SORTED.0[(SORTED.1[length] + code - FIRSTS[length]) as usize];
            return Some((symbol as u8, length));
        }
        length += 1;
    }
    None
}

/// It is no string of this code, or ends with other bits than the first ones of the end's code, or with more than seven.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad;

/// Decodes a string and appends it to `out`.
pub(super) fn decode(mut source: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
    let begin = out.len();
    // The shortest code has five bits, and two characters are always written where the next ones belong.
    out.resize(begin + source.len() * 8 / 5 + 2, 0);
    let mut at = begin;
    // What was taken and not decoded stands in the high bits; `have` of them.
    let (mut bits, mut have) = (0_u64, 0_usize);
    loop {
        if have < 32 {
            if let Some((four, rest)) = source.split_first_chunk() {
                bits |= u64::from(u32::from_be_bytes(*four)) << (32 - have);
                have += 32;
                source = rest;
            } else if let Some((&byte, rest)) = source.split_first() {
                bits |= u64::from(byte) << (56 - have);
                have += 8;
                source = rest;
                continue;
            }
        }
        let looked = LOOKED[(bits >> (64 - BITS)) as usize];
        let (all, first) = (usize::from(looked.all), usize::from(looked.first));
        if first != 0 && all <= have {
            out[at..at + 2].copy_from_slice(&looked.symbols);
            at += 1 + usize::from(all != first);
            bits <<= all;
            have -= all;
        } else if first != 0 && first <= have {
            out[at] = looked.symbols[0];
            at += 1;
            bits <<= first;
            have -= first;
        } else if have < 8 && bits == !(u64::MAX >> have) {
            out.truncate(at);
            return Ok(());
        } else {
            let (symbol, length) = long(bits, have).ok_or(Bad)?;
            out[at] = symbol;
            at += 1;
            bits <<= length;
            have -= length;
        }
    }
}

/// The symbol with which `bits`, of which there are `have`, begin, if its code is longer than what is looked up.
#[cold]
fn long(bits: u64, have: usize) -> Option<(u8, usize)> {
    for length in BITS + 1..=LONGEST.min(have) {
        let code = (bits >> (64 - length)) as u32;
        if let Some(offset) = code.checked_sub(FIRSTS[length])
            && offset < COUNTS[length]
        {
            let symbol = SORTED.0[(SORTED.1[length] + offset) as usize];
            return (symbol != END).then_some((symbol as u8, length));
        }
    }
    None
}

/// How many bytes a string has in this code.
pub(super) fn encoded_length(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

/// Appends a string in this code.
pub(super) fn encode(text: &[u8], out: &mut BytesMut) {
    // In the low bits; `have` of them are yet to be written.
    let (mut bits, mut have) = (0_u64, 0_u32);
    for byte in text {
        let (code, length) = CODES[usize::from(*byte)];
        bits = bits << length | u64::from(code);
        have += u32::from(length);
        if have >= 32 {
            have -= 32;
            out.put_u32((bits >> have) as u32);
        }
    }
    if have > 0 {
        let last = (bits << 32 | u64::from(u32::MAX)) >> have;
        out.put_slice(&(last as u32).to_be_bytes()[..have.div_ceil(8) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(source: &[u8]) -> Result<Vec<u8>, Bad> {
        let mut out = b"before".to_vec();
        decode(source, &mut out)?;
        Ok(out[6..].to_vec())
    }

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode(text, &mut out);
        assert_eq!(out.len(), encoded_length(text));
        out.to_vec()
    }

    #[test]
    fn every_code_is_a_prefix_of_its_own() {
        let share: f64 = LENGTHS.iter().map(|length| (-f64::from(*length)).exp2()).sum();
        assert!((share - 1.0).abs() < f64::EPSILON, "no bits are left over");
        assert_eq!(CODES[usize::from(END)], (0x3fff_ffff, 30));
        // Some of appendix B's.
        for (symbol, code, length) in [
            (b'0', 0, 5),
            (b' ', 0x14, 6),
            (b'!', 0x3f8, 10),
            (b'~', 0x1ffd, 13),
            (0, 0x1ff8, 13),
            (10, 0x3fff_fffc, 30),
        ] {
            assert_eq!(CODES[usize::from(symbol)], (code, length));
        }
    }

    #[test]
    fn every_pair_of_characters_comes_back() {
        for one in 0..=255 {
            assert_eq!(decoded(&encoded(&[one])), Ok(vec![one]));
            for two in 0..=255 {
                assert_eq!(decoded(&encoded(&[one, two])), Ok(vec![one, two]));
            }
        }
    }

    #[test]
    fn padding_is_the_beginning_of_the_end_and_less_than_a_byte() {
        assert_eq!(decoded(b""), Ok(vec![]));
        // `0` has five zero bits.
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
        for padding in 0..7 {
            assert_eq!(decoded(&[padding]), Err(Bad), "{padding:03b}");
        }
        // Eight bits and more of padding.
        for bytes in 1..8 {
            assert_eq!(decoded(&vec![0xff; bytes]), Err(Bad));
        }
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(Bad));
        // The end itself.
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc]), Err(Bad));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff, 0xff]), Err(Bad));
        // A code that is cut off.
        assert_eq!(decoded(&[0xff, 0x00]), Err(Bad));
    }

    /// Bit by bit, from the codes alone.
    fn decoded_slowly(source: &[u8]) -> Result<Vec<u8>, Bad> {
        let bits: Vec<u32> =
            source.iter().flat_map(|byte| (0..8).rev().map(move |n| u32::from(byte >> n & 1))).collect();
        let (mut out, mut code, mut length) = (vec![], 0, 0);
        for bit in bits {
            code = code << 1 | bit;
            length += 1;
            match CODES.iter().position(|known| *known == (code, length)) {
                Some(256) => return Err(Bad),
                Some(symbol) => {
                    out.push(symbol as u8);
                    (code, length) = (0, 0);
                }
                None if length >= 30 => return Err(Bad),
                None => {}
            }
        }
        if length < 8 && code == (1 << length) - 1 { Ok(out) } else { Err(Bad) }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_comes_back(text: Vec<u8>) {
            prop_assert_eq!(decoded(&encoded(&text)), Ok(text));
        }

        #[test]
        fn any_bytes_are_decoded_as_bit_by_bit(source: Vec<u8>) {
            prop_assert_eq!(decoded(&source), decoded_slowly(&source));
        }

        #[test]
        fn bytes_like_codes_are_decoded_as_bit_by_bit(text in "[ -~]{0,40}", cut in 0_usize..8, bit in 0_usize..320) {
            let mut source = encoded(text.as_bytes());
            source.truncate(source.len().saturating_sub(cut));
            if let Some(byte) = source.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            prop_assert_eq!(decoded(&source), decoded_slowly(&source));
        }
    }
}
