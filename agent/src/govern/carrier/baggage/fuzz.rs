//! A fuzz target about `baggage` and the other headers that carry a tag: lines are headers.

use super::{MAX_BYTES, MAX_MEMBERS, members, remove, set, value_of, values};
use crate::govern::carrier::Carrier;

const KEY: &str = "x-mse-tag";
const TAG: &[u8] = b"gray";

/// The members of others. What is nothing but white space is none.
fn others<'a>(headers: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let members = headers.flat_map(members);
    members.filter(|member| value_of(member, KEY).is_none() && !member.trim_ascii().is_empty()).collect()
}

/// The tag is in all members that have its key, and nowhere else has a byte changed; what is taken out is out.
pub(crate) fn baggage(input: &[u8]) {
    let headers = || input.split(|byte| *byte == b'\n');
    let found = headers().flat_map(|header| values(header, KEY)).count();
    match set(headers(), KEY, TAG) {
        Some(edited) => {
            let now: Vec<_> = values(&edited, KEY).collect();
            assert_eq!(now.len(), found.max(1));
            assert!(now.iter().all(|value| **value == *TAG));
            assert_eq!(others(headers()), others(std::iter::once(&edited[..])));
            assert_eq!(set(std::iter::once(&edited[..]), KEY, TAG), None, "it is there already");
            assert!(edited.len() <= input.len() + (found + 1) * TAG.len() + KEY.len() + 2);
            assert!(found > 0 || edited.len() <= MAX_BYTES);
        }
        None if found > 0 => {
            assert!(headers().flat_map(|header| values(header, KEY)).all(|value| *value == *TAG));
        }
        None => {
            let members = headers().flat_map(members).count();
            assert!(members >= MAX_MEMBERS || input.len() + KEY.len() + TAG.len() + 2 > MAX_BYTES);
        }
    }
    match remove(headers(), KEY) {
        Some(left) => {
            assert!(found > 0 && values(&left, KEY).count() == 0);
            assert_eq!(others(headers()), others(std::iter::once(&left[..])));
        }
        None => assert_eq!(found, 0),
    }
    for carrier in Carrier::ALL {
        if let Some(edited) = carrier.set(headers(), KEY, TAG) {
            assert_eq!(
                carrier.set(std::iter::once(&edited[..]), KEY, TAG),
                None,
                "{carrier:?}: it is there already"
            );
            assert!(
                carrier.remove(std::iter::once(&edited[..]), KEY).is_some(),
                "{carrier:?}: it can be taken out"
            );
        }
    }
}
