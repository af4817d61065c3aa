//! Reading and editing one member of a W3C `baggage` header, leaving every other byte as it was.
//!
//! `baggage: userId=alice,x-mse-tag=gray;ttl=5 , other=%20` is a list of `key=value;properties` split by commas,
//! with optional white space around each part, values percent-encoded. <https://www.w3.org/TR/baggage/>
//! Members that are malformed are none of our business: they are neither read nor touched.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// What every platform must be able to carry: past either, some drop the header whole, so we never make a
/// header that is longer. <https://www.w3.org/TR/baggage/#limits>
const MAX_MEMBERS: usize = 64;
const MAX_BYTES: usize = 8192;

/// The percent-decoded values of the members with this key, in order.
pub fn values<'a>(header: &'a [u8], key: &'a str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    members(header).filter_map(move |member| {
        let value = value_of(member, key)?;
        Some(percent_decode(&member[value]).into())
    })
}

/// Sets the member `key` to `tag` in the request's `baggage` headers, given in the order of the head.
///
/// Returns the value of the one header that is to stand in the place of them all, or `None` if they are to stay as
/// they are. Every member with that key gets the tag, because readers differ in whether the first or the last
/// counts; its properties, and all other members, stay byte for byte and in order. Where there is no such member
/// one is appended, unless the header would pass the limits of W3C: members of others are never put at risk, and
/// the tag still travels in its own header.
pub fn set<'a>(headers: impl Iterator<Item = &'a [u8]>, key: &str, tag: &[u8]) -> Option<Vec<u8>> {
    // A tag's characters need no encoding in a baggage value: letters, digits, '-', '_', '.'.
    let mut edited = Vec::with_capacity(128);
    let (mut count, mut found, mut changed) = (0, false, false);
    for header in headers {
        for member in members(header) {
            if count > 0 {
                edited.push(b',');
            }
            count += 1;
            match value_of(member, key) {
                Some(value) => {
                    found = true;
                    changed |= &member[value.clone()] != tag;
                    edited.extend_from_slice(&member[..value.start]);
                    edited.extend_from_slice(tag);
                    edited.extend_from_slice(&member[value.end..]);
                }
                None => edited.extend_from_slice(member),
            }
        }
    }
    if found {
        return changed.then_some(edited);
    }
    // A header of nothing but white space is a list without members.
    if edited.trim_ascii().is_empty() {
        edited.clear();
        count = 0;
    }
    if count > 0 {
        edited.push(b',');
    }
    edited.extend_from_slice(key.as_bytes());
    edited.push(b'=');
    edited.extend_from_slice(tag);
    (count < MAX_MEMBERS && edited.len() <= MAX_BYTES).then_some(edited)
}

/// The members with the white space around them. Neither keys, values nor properties may hold a comma.
fn members(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| *byte == b',')
}

/// Where in `member` the value is (white space around it left out), if its key is `key`.
fn value_of(member: &[u8], key: &str) -> Option<std::ops::Range<usize>> {
    let start = position(member, |byte| !is_space(byte))?;
    let rest = member[start..].strip_prefix(key.as_bytes())?;
    let before_equals = position(rest, |byte| !is_space(byte))?;
    if rest[before_equals] != b'=' {
        return None;
    }
    let equals = start + key.len() + before_equals;
    let end = position(&member[equals..], |byte| byte == b';').map_or(member.len(), |at| equals + at);
    let value = &member[equals + 1..end];
    let first = position(value, |byte| !is_space(byte)).unwrap_or(0);
    let length = value.trim_ascii().len();
    Some(equals + 1 + first..equals + 1 + first + length)
}

fn position(bytes: &[u8], test: impl Fn(u8) -> bool) -> Option<usize> {
    bytes.iter().position(|byte| test(*byte))
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}
