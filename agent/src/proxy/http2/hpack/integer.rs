//! Numbers as HPACK writes them: in the low bits of a byte, and in further ones if they do not fit (RFC 7541, section 5.1).

use bytes::{BufMut, BytesMut};

use super::Error;

/// Bytes that may follow the first: 28 bits, far more than a header block can have.
const FURTHER: u32 = 4;

/// Takes a number whose first byte was `first`, with its low `bits`, off `input`.
pub(super) fn take(first: u8, bits: u32, input: &mut &[u8]) -> Result<usize, Error> {
    let most = (1 << bits) - 1;
    let low = usize::from(first) & most;
    if low < most {
        return Ok(low);
    }
    let mut number = most;
    for n in 0..FURTHER {
        let Some((&byte, rest)) = input.split_first() else {
            return Err(Error::Compression("it ends within a number"));
        };
        *input = rest;
        number += usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Error::Compression("a number is too large"))
}

/// Writes a number behind the high bits `pattern` of its first byte.
pub(super) fn put(out: &mut BytesMut, pattern: u8, bits: u32, number: usize) {
    let most = (1 << bits) - 1;
    if number < most {
        return out.put_u8(pattern | number as u8);
    }
    out.put_u8(pattern | most as u8);
    let mut rest = number - most;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}
