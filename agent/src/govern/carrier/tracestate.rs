//! Reading and editing one member of a W3C `tracestate` header, which every tracer that keeps Trace Context passes on.
//!
//! `tracestate: x-mse-tag=gray,congo=t61rcWkgMzE` is a list of `key=value`, the newest first, with optional white space around
//! the commas. <https://www.w3.org/TR/trace-context/#tracestate-header>

use super::members;

/// More a list must not have; who gets more drops the header whole.
const MAX_MEMBERS: usize = 32;

/// So many bytes everybody passes on. Past them members of others would be cut off.
const MAX_BYTES: usize = 512;

/// The longest key.
const MAX_KEY: usize = 256;

/// Whether a member may have this key: lower-case letters, digits, `_`, `-`, `*` and `/`, a letter or digit first.
pub(crate) fn is_key(key: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    key.len() <= MAX_KEY
        && key.as_bytes().first().is_some_and(alphanumeric)
        && key.bytes().all(|byte| alphanumeric(&byte) || matches!(byte, b'_' | b'-' | b'*' | b'/'))
}

/// The values of the members with this key: one, if its writers keep to the specification.
pub(super) fn values<'a>(line: &'a [u8], key: &'a str) -> impl Iterator<Item = &'a [u8]> {
    members(line).filter_map(move |member| value_of(member, key))
}

/// The value of a member, if its key is `key`.
pub(super) fn value_of<'a>(member: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let value = member.trim_ascii_start().strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
    Some(value.trim_ascii_end())
}

/// See [`super::Carrier::set`]. A member that is new or changed stands first, as the specification demands; all others keep
/// their order. There is no room past what the specification allows, and then nothing is dropped for ours.
pub(super) fn set<'a>(lines: impl Iterator<Item = &'a [u8]>, key: &str, tag: &[u8]) -> Option<Vec<u8>> {
    let mut edited = Vec::with_capacity(128);
    edited.extend_from_slice(key.as_bytes());
    edited.push(b'=');
    edited.extend_from_slice(tag);
    let (mut others, mut found, mut changed) = (0, false, false);
    for member in lines.flat_map(members).filter(|member| !member.trim_ascii().is_empty()) {
        if let Some(value) = value_of(member, key) {
            found = true;
            changed |= value != tag;
        } else {
            others += 1;
            edited.push(b',');
            edited.extend_from_slice(member);
        }
    }
    if found { changed } else { others < MAX_MEMBERS && edited.len() <= MAX_BYTES }.then_some(edited)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "x-mse-tag";

    fn read(line: &str) -> Vec<&str> {
        values(line.as_bytes(), KEY).map(|value| std::str::from_utf8(value).unwrap()).collect()
    }

    fn edit(lines: &[&str]) -> Option<String> {
        let edited = set(lines.iter().map(|line| line.as_bytes()), KEY, b"gray")?;
        Some(String::from_utf8(edited).unwrap())
    }

    #[test]
    fn values_are_found_among_others() {
        assert_eq!(read("x-mse-tag=gray"), ["gray"]);
        assert_eq!(read("congo=t61 ,\t x-mse-tag=gray ,rojo=00"), ["gray"]);
        assert_eq!(read("x-mse-tag=a,x-mse-tag=b"), ["a", "b"]);
        for none in
            ["", ",", "x-mse-tag", "x-mse-tag =gray", "ax-mse-tag=gray", "x-mse-tags=gray", "congo=x-mse-tag"]
        {
            assert!(read(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn what_is_new_stands_first() {
        assert_eq!(edit(&[]).unwrap(), "x-mse-tag=gray");
        assert_eq!(edit(&["", " ,"]).unwrap(), "x-mse-tag=gray");
        assert_eq!(edit(&["rojo=00, congo=1"]).unwrap(), "x-mse-tag=gray,rojo=00, congo=1");
        assert_eq!(edit(&["rojo=00", "x-mse-tag=blue,congo=1"]).unwrap(), "x-mse-tag=gray,rojo=00,congo=1");
        assert_eq!(edit(&["rojo=00,x-mse-tag=gray"]), None, "it is there, wherever");
        assert_eq!(edit(&["x-mse-tag=gray", "x-mse-tag=blue"]).unwrap(), "x-mse-tag=gray");
    }

    #[test]
    fn nothing_is_dropped_for_ours() {
        let full = (0..32).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(edit(&[&full]), None);
        let room = full.strip_suffix(",k31=v").unwrap();
        assert_eq!(edit(&[room]).unwrap(), format!("x-mse-tag=gray,{room}"));
        assert_eq!(edit(&[&format!("{full},x-mse-tag=blue")]).unwrap(), format!("x-mse-tag=gray,{full}"));

        let others = MAX_BYTES - "x-mse-tag=gray,k=".len();
        assert_eq!(edit(&[&format!("k={}", "v".repeat(others))]).unwrap().len(), MAX_BYTES);
        assert_eq!(edit(&[&format!("k={}", "v".repeat(others + 1))]), None);
    }

    #[test]
    fn keys_are_those_of_the_specification() {
        for good in ["x-mse-tag", "a", "0a", "a_b*c/d"] {
            assert!(is_key(good), "{good}");
        }
        for bad in ["", "-a", "x.tag", "X-Tag", "x tag", &"a".repeat(257)] {
            assert!(!is_key(bad), "{bad}");
        }
    }
}
