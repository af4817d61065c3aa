//! Reading and editing one member of a W3C `baggage` header, leaving every other byte as it was.
//!
//! `baggage: userId=alice,x-mse-tag=gray;ttl=5 , other=%20` is a list of `key=value;properties` split by commas,
//! with optional white space around each part, values percent-encoded. <https://www.w3.org/TR/baggage/>
//! Members that are malformed are none of our business: they are neither read nor touched.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::members;

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

/// Takes out the members `key` of the request's `baggage` headers, given in the order of the head.
///
/// Returns the value of the one header that is to stand in the place of them all, which is empty if no member is left; `None`
/// if there is nothing to take out. All other members stay byte for byte and in order.
pub fn remove<'a>(headers: impl Iterator<Item = &'a [u8]>, key: &str) -> Option<Vec<u8>> {
    super::without(headers, |member| value_of(member, key).is_some())
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
    // An empty value stands right behind the `=`.
    let first = position(value, |byte| !is_space(byte)).unwrap_or(0);
    let last = value.iter().rposition(|byte| !is_space(*byte)).map_or(first, |last| last + 1);
    Some(equals + 1 + first..equals + 1 + last)
}

fn position(bytes: &[u8], test: impl Fn(u8) -> bool) -> Option<usize> {
    bytes.iter().position(|byte| test(*byte))
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "x-mse-tag";

    fn read(header: &str) -> Vec<String> {
        values(header.as_bytes(), KEY).map(|value| String::from_utf8_lossy(&value).into_owned()).collect()
    }

    fn edit(headers: &[&str], tag: &str) -> Option<String> {
        set(headers.iter().map(|header| header.as_bytes()), KEY, tag.as_bytes())
            .map(|edited| String::from_utf8(edited).expect("these are text"))
    }

    #[test]
    fn values_are_found_among_others() {
        for (header, expected) in [
            ("x-mse-tag=gray", &["gray"][..]),
            ("a=1,x-mse-tag=gray,b=2", &["gray"]),
            ("a=1 ,\tx-mse-tag =  gray ; ttl=5;p , b=2", &["gray"]),
            ("x-mse-tag=gr%61y", &["gray"]),
            ("x-mse-tag=a,x-mse-tag=b", &["a", "b"]),
            ("x-mse-tag=", &[""]),
            ("x-mse-tag=a=b", &["a=b"]),
            ("x-mse-tag=%zz", &["%zz"]),
            // Another key, another case of it, a property, a malformed member.
            ("x-mse-tags=no,ax-mse-tag=no,X-MSE-TAG=no,a=1;x-mse-tag=no,x-mse-tag,x-mse-tag;p=1", &[]),
            ("x-mse-tag;p=q", &[]),
            ("", &[]),
            (",,,", &[]),
            ("=", &[]),
        ] {
            assert_eq!(read(header), expected, "{header:?}");
        }
    }

    #[test]
    fn only_the_value_of_the_member_changes() {
        for (header, expected) in [
            ("x-mse-tag=blue", "x-mse-tag=gray"),
            ("a=%20 , x-mse-tag = blue ;ttl=5;p,b=2\t", "a=%20 , x-mse-tag = gray ;ttl=5;p,b=2\t"),
            ("x-mse-tag=,a=1", "x-mse-tag=gray,a=1"),
            ("x-mse-tag=  ;p", "x-mse-tag=gray  ;p"),
            ("x-mse-tag=gr%61y", "x-mse-tag=gray"),
            ("x-mse-tag=blue,a=1,x-mse-tag=red", "x-mse-tag=gray,a=1,x-mse-tag=gray"),
            (",,x-mse-tag=blue,,", ",,x-mse-tag=gray,,"),
        ] {
            assert_eq!(edit(&[header], "gray").as_deref(), Some(expected), "{header:?}");
        }
        assert_eq!(edit(&["a=1,x-mse-tag=gray;p"], "gray"), None, "it is there already");
    }

    #[test]
    fn a_member_that_is_missing_is_appended_and_several_headers_become_one() {
        assert_eq!(edit(&[], "gray").as_deref(), Some("x-mse-tag=gray"));
        assert_eq!(edit(&["  "], "gray").as_deref(), Some("x-mse-tag=gray"));
        assert_eq!(edit(&["a=1"], "gray").as_deref(), Some("a=1,x-mse-tag=gray"));
        assert_eq!(edit(&["a=1 , b=2", "c"], "gray").as_deref(), Some("a=1 , b=2,c,x-mse-tag=gray"));
        assert_eq!(
            edit(&["a=1", "x-mse-tag=blue", "b=2"], "gray").as_deref(),
            Some("a=1,x-mse-tag=gray,b=2")
        );
    }

    #[test]
    fn the_header_is_never_made_longer_than_everybody_can_carry() {
        let full = (0..63).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(edit(&[&full], "gray"), Some(format!("{full},x-mse-tag=gray")));
        let full = format!("{full},k63=v");
        assert_eq!(edit(&[&full], "gray"), None);

        let room = MAX_BYTES - ",x-mse-tag=gray".len();
        let long = format!("k={}", "v".repeat(room - 2));
        assert_eq!(edit(&[&long], "gray").map(|edited| edited.len()), Some(MAX_BYTES));
        assert_eq!(edit(&[&format!("{long}v")], "gray"), None);
        // A member that is there is replaced all the same: it was the caller who went past the limit.
        let long = format!("{long}v,x-mse-tag=blue");
        assert_eq!(edit(&[&long], "gray"), Some(long.replace("blue", "gray")));
    }

    /// Members as others write them, and as nobody should.
    fn member() -> impl Strategy<Value = Vec<u8>> {
        let ours = "[ \t]{0,2}x-mse-tag[ \t]{0,2}=[ \t]{0,2}[a-z0-9%=]{0,6}[ \t]{0,2}(;[a-z=]{0,4})?";
        prop_oneof![
            2 => ours.prop_map(String::into_bytes),
            4 => "[ \t]?[a-z]{1,5} ?= ?[!-+--:<-~]{0,8}( ?;[a-z= ]{0,6})?".prop_map(String::into_bytes),
            3 => prop::collection::vec(any::<u8>().prop_filter("a comma splits", |b| *b != b','), 0..12),
        ]
    }

    proptest! {
        #[test]
        fn setting_changes_our_members_and_nothing_else(
            headers in prop::collection::vec(prop::collection::vec(member(), 0..5), 0..4),
            tag in "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?",
        ) {
            let headers: Vec<Vec<u8>> = headers.iter().map(|members| members.join(&b","[..])).collect();
            let before: Vec<&[u8]> = headers.iter().flat_map(|header| members(header)).collect();
            let had = headers.iter().flat_map(|header| values(header, KEY)).count();
            let edited = set(headers.iter().map(Vec::as_slice), KEY, tag.as_bytes());
            let joined = headers.join(&b","[..]);
            let after_bytes = edited.clone().unwrap_or(joined);

            // Every reader finds the tag and nothing else under our key, and setting it again changes nothing.
            let found: Vec<_> = values(&after_bytes, KEY).collect();
            prop_assert_eq!(found.len(), had.max(1));
            prop_assert!(found.iter().all(|value| **value == *tag.as_bytes()));
            prop_assert_eq!(set([after_bytes.as_slice()].into_iter(), KEY, tag.as_bytes()), None);

            // The others are there, in order, byte for byte.
            let others = |members: &mut dyn Iterator<Item = &[u8]>| -> Vec<Vec<u8>> {
                members.filter(|member| value_of(member, KEY).is_none()).map(<[u8]>::to_vec).collect()
            };
            let kept = others(&mut members(&after_bytes));
            if before.iter().all(|member| member.trim_ascii().is_empty()) {
                prop_assert!(kept.iter().all(|member| member.trim_ascii().is_empty()));
            } else {
                prop_assert_eq!(kept, others(&mut before.into_iter()));
            }
        }

        #[test]
        fn taking_out_leaves_the_others(
            headers in prop::collection::vec(prop::collection::vec(member(), 0..5), 0..4),
        ) {
            let headers: Vec<Vec<u8>> = headers.iter().map(|members| members.join(&b","[..])).collect();
            let had = headers.iter().any(|header| values(header, KEY).next().is_some());
            let edited = remove(headers.iter().map(Vec::as_slice), KEY);
            prop_assert_eq!(edited.is_some(), had);
            if let Some(edited) = edited {
                let others: Vec<&[u8]> = headers
                    .iter()
                    .flat_map(|header| members(header))
                    .filter(|member| value_of(member, KEY).is_none())
                    .collect();
                prop_assert_eq!(values(&edited, KEY).count(), 0);
                prop_assert_eq!(edited, others.join(&b","[..]));
            }
        }

        #[test]
        fn reading_anything_does_not_panic_and_agrees_with_a_plain_reader(header in prop::collection::vec(prop_oneof![1 => any::<u8>(), 6 => prop::sample::select(b"kkk==,; \t%6\r\x0c".to_vec())], 0..80)) {
            let plain: Vec<Vec<u8>> = header
                .split(|byte| *byte == b',')
                .filter_map(|member| {
                    let pair = member.split(|byte| *byte == b';').next()?;
                    let equals = pair.iter().position(|byte| *byte == b'=')?;
                    let trim = |bytes: &[u8]| -> Vec<u8> {
                        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
                        text.trim_matches([' ', '\t']).chars().map(|c| c as u8).collect()
                    };
                    (trim(&pair[..equals]) == b"k").then(|| percent_decode(&trim(&pair[equals + 1..])).collect())
                })
                .collect();
            let ours: Vec<Vec<u8>> = values(&header, "k").map(Cow::into_owned).collect();
            prop_assert_eq!(ours, plain);
        }
    }
}
