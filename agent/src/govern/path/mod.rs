//! Paths as rules compare them: as the server will see them.
//!
//! `//a`, `/%61`, `/./a`, `/x/../a` and `/a;x=1` are all `/a` to a server, and a rule about `/a` that did not hold for them could
//! be walked around. So paths are compared in a normal form; what is forwarded is what came, byte for byte. In the order in
//! which servlet containers take these steps:
//!
//! 1. Parameters of path elements (`;x=1`) are left out (RFC 3986, section 3.3; Jakarta Servlet 6.0, section 3.5.2).
//! 2. Percent-encodings are decoded (RFC 3986, section 6.2.2.2), once. Those stay, in upper case, that stand for what would
//!    have a meaning of its own in a path: `/`, `\`, `%`, `;`, `?`, `#` and control characters. A `%` that encodes nothing becomes
//!    `%25`.
//! 3. Empty elements and dot segments are removed (section 5.2.4): `//`, `/./`, `/../`.
//!
//! A normal form is its own normal form, so that a rule may be written either way. Case matters, and so does a slash at the end.
//!
//! Servers differ, and what restricts must hold for whatever one of them makes of a target: those are its [`Forms`].

#[cfg(test)]
pub(in crate::govern) mod disguise;
mod forms;

use std::borrow::Cow;

use smallvec::SmallVec;

pub use self::forms::{Forms, Seen};

/// The normal form of a path without its query. What does not begin with a slash (`*`, the authority of CONNECT) is none, and
/// stays as it is.
pub fn normal(path: &[u8]) -> Cow<'_, [u8]> {
    let Some(elements) = path.strip_prefix(b"/").filter(|rest| !is_normal::<false>(rest)) else {
        return path.into();
    };
    let mut out = Vec::with_capacity(path.len() + 8);
    let mut elements = elements.split(|byte| *byte == b'/').peekable();
    while let Some(element) = elements.next() {
        let start = out.len();
        out.push(b'/');
        decode(element.split(|byte| *byte == b';').next().unwrap_or_default(), &mut out);
        match &out[start + 1..] {
            b"" | b"." => out.truncate(start),
            b".." => {
                let parent = out[..start].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => continue,
        }
        // What ends with an empty element or a dot segment ends with a slash.
        if elements.peek().is_none() {
            out.push(b'/');
        }
    }
    out.into()
}

/// What is behind the first `elements` elements of a path's normal form, as it came. Asked of a path that has as many.
pub fn after(path: &[u8], elements: usize) -> &[u8] {
    // Where the elements end that are left, so far.
    let mut ends: SmallVec<[usize; 16]> = SmallVec::new();
    let mut decoded = Vec::new();
    let mut start = 1;
    for element in path.strip_prefix(b"/").into_iter().flat_map(|rest| rest.split(|byte| *byte == b'/')) {
        let end = start + element.len();
        decoded.clear();
        decode(element.split(|byte| *byte == b';').next().unwrap_or_default(), &mut decoded);
        match &*decoded {
            b"" | b"." => {}
            b".." => drop(ends.pop()),
            _ => ends.push(end),
        }
        start = end + 1;
    }
    match elements.checked_sub(1) {
        None => path,
        Some(last) => ends.get(last).map_or(&[], |end| &path[*end..]),
    }
}

/// The elements of a path behind its first slash, decoded and without their parameters: empty ones and dot segments, too.
fn elements(path: &[u8]) -> Vec<Vec<u8>> {
    let element = |element: &[u8]| {
        let mut out = Vec::with_capacity(element.len());
        decode(element.split(|byte| *byte == b';').next().unwrap_or_default(), &mut out);
        out
    };
    path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/').map(element).collect()
}

/// Whether all servers take a path for the same one, which is nearly always so: it is in its normal form, and has nothing in it that
/// some read otherwise.
fn is_plain(path: &[u8]) -> bool {
    path.strip_prefix(b"/").is_some_and(is_normal::<true>)
}

/// Whether there is nothing to do, which is nearly always. `rest` is what is behind the first slash. `PLAIN`: see [`is_plain`].
fn is_normal<const PLAIN: bool>(rest: &[u8]) -> bool {
    let mut at_start = true;
    for (at, byte) in rest.iter().enumerate() {
        let more = match byte {
            b'%' | b';' => true,
            b'\\' | b'#' => PLAIN,
            b'/' => at_start,
            // `.gitignore` is none, and looked at all the same.
            b'.' => at_start && matches!(rest.get(at + 1), None | Some(b'/' | b'.')),
            _ => false,
        };
        if more {
            return false;
        }
        at_start = *byte == b'/';
    }
    true
}

fn decode(element: &[u8], out: &mut Vec<u8>) {
    let mut rest = element;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let digit = |at: usize| char::from(*rest.get(at)?).to_digit(16);
        let (byte, length) = match (digit(0), digit(1)) {
            (Some(high), Some(low)) => ((high * 16 + low) as u8, 2),
            _ => (b'%', 0),
        };
        rest = &rest[length..];
        if matches!(byte, b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0..=0x1f | 0x7f) {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(path: &str) -> String {
        String::from_utf8(normal(path.as_bytes()).into_owned()).expect("these are text")
    }

    #[test]
    fn what_a_server_takes_for_the_same_is_the_same() {
        for path in [
            "/a",
            "//a",
            "///a",
            "/%61",
            "/./a",
            "/x/../a",
            "/x/y/../../a",
            "/../a",
            "/a;x=1",
            "/a;",
            "/;p/a",
            "/x/..;p=1/a",
            "/%2e/a",
            "/x/%2E%2e/a",
            "/x/%2e%2e;p/a;q",
            "/.;/a",
        ] {
            assert_eq!(of(path), "/a", "{path}");
        }
        for (path, wanted) in [
            ("/", "/"),
            ("//", "/"),
            ("/..", "/"),
            ("/.", "/"),
            ("/;p", "/"),
            ("/a/", "/a/"),
            ("/a//", "/a/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/;p", "/a/"),
            ("/a;p/b", "/a/b"),
            ("/A", "/A"),
            ("/a%20b", "/a b"),
            ("/k%c3%a4ufer", "/käufer"),
            ("/orders%3Acancel", "/orders:cancel"),
            // What would be something else if it were decoded.
            ("/a%2fb", "/a%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/a%3bx", "/a%3Bx"),
            ("/a%3fb%23c", "/a%3Fb%23c"),
            ("/a%00%7f", "/a%00%7F"),
            // Once is enough.
            ("/%2561", "/%2561"),
            ("/%%36%31", "/%2561"),
            ("/100%", "/100%25"),
            ("/%zz%4", "/%25zz%254"),
            // Dots that are none of those.
            ("/.well-known/x", "/.well-known/x"),
            ("/..a/b..", "/..a/b.."),
            ("/.../a", "/.../a"),
            // No paths.
            ("*", "*"),
            ("", ""),
            ("a.shop:443", "a.shop:443"),
        ] {
            assert_eq!(of(path), wanted, "{path}");
        }
    }

    #[test]
    fn what_is_normal_already_is_not_copied() {
        for path in ["/", "/orders/7", "/a/.well-known", "/a.b/c..d", "/a/"] {
            assert!(
                matches!(normal(path.as_bytes()), Cow::Borrowed(_)) && is_plain(path.as_bytes()),
                "{path}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own_and_has_nothing_left_to_remove(path in "(/|//|\\.|\\.\\.|;|%2e|%2f|%25|%|61|%61|a|B|[ -~]){0,12}|\\PC{0,12}") {
            let path = format!("/{path}");
            let once = normal(path.as_bytes()).into_owned();
            prop_assert_eq!(&*normal(&once), &*once);
            prop_assert!(once.starts_with(b"/"));
            let elements: Vec<_> = once[1..].split(|byte| *byte == b'/').collect();
            let (last, inner) = elements.split_last().expect("there is one");
            prop_assert!(inner.iter().all(|element| !element.is_empty()), "{:?}", String::from_utf8_lossy(&once));
            prop_assert!(inner.iter().chain([last]).all(|element| !matches!(element, [b'.'] | [b'.', b'.'])));
            prop_assert!(!once.contains(&b';'));
        }
    }
}
