//! What servers may take a request's path for.
//!
//! The normal form is what most do. Others decode an encoded slash or backslash, before or after they remove dot segments, and
//! decode again what comes of it; know `%u0061` (IIS, Jetty 9); take a backslash for a slash; end a path at a NUL, a question mark or a
//! number sign that was encoded; know no parameters (`..;` is a name to them); remove dot segments before empty elements (RFC 3986,
//! section 5.2.4, has no rule that joins slashes), or not at all; read the whole as a reference, so that a scheme at its beginning, or
//! what is behind two slashes, is none of the path. Each of that makes of `/public/..%2fadmin`, `/admin%2fx/../env`, `/\x/admin` or
//! `/admin//../env` another path. A path in which there is anything of the kind has all of these forms.
//!
//! Servers that join their root with the whole target (`path.join(root, request.url)` in Node) take the query for a part of the
//! path, so that `/open?/../admin` is `/admin` to them. A target whose query has such a segment has those forms, too.
//!
//! What restricts (a rule that denies, a hidden path, a limit) holds for a request if it holds for one form, what allows if for all.

use std::{borrow::Cow, cell::OnceCell};

use crate::govern::{path, request::Request};

/// So often a server may decode in a row, and more than that no known one does.
const DECODINGS: usize = 4;

/// The forms of one path.
#[derive(Debug)]
pub struct Forms<'p> {
    normal: Cow<'p, [u8]>,
    others: Vec<Vec<u8>>,
}

/// The forms of a request's path, made when they are first asked for.
#[derive(Debug)]
pub struct Seen<'r, R> {
    request: &'r R,
    forms: OnceCell<Forms<'r>>,
}

impl<'r, R: Request> Seen<'r, R> {
    pub fn new(request: &'r R) -> Self {
        Self { request, forms: OnceCell::new() }
    }

    pub fn request(&self) -> &'r R {
        self.request
    }

    pub fn forms(&self) -> &Forms<'r> {
        self.forms.get_or_init(|| Forms::of(self.request))
    }
}

impl<'p> Forms<'p> {
    pub fn of(request: &'p impl Request) -> Self {
        Self::of_path(request.path(), request.target())
    }

    /// `target`: the path with its query.
    fn of_path(path: &'p [u8], target: &[u8]) -> Self {
        let query = target.get(path.len()..).filter(|query| may_climb(query));
        if query.is_none() && (path::is_plain(path) || path == b"*") {
            return Self { normal: path.into(), others: Vec::new() };
        }
        let mut forms = Self { normal: path::normal(path), others: Vec::new() };
        if !path::is_plain(path) {
            // A target without a slash is none of a server's paths, and some servers put one before it.
            forms.add_decoded(&rooted(path));
            // Others take what is behind a scheme (`http:/admin`). HTTP's readers let none through; this is for whatever else asks.
            if let Some(behind) = behind_scheme(path) {
                forms.add_decoded(&rooted(behind));
            }
        }
        if query.is_some() {
            forms.add_whole(&rooted(target));
        }
        forms
    }

    /// A path as it came, and what it is for those who decode it.
    fn add_decoded(&mut self, path: &[u8]) {
        let without = without_authority(path);
        for each in std::iter::once(path).chain(without) {
            self.add(each);
            let known = self.add_stages(each, false);
            if known {
                self.add_stages(each, true);
            }
        }
    }

    /// What comes of a path that is decoded once, twice and so on. Whether there was a `%uXXXX` in any of that.
    fn add_stages(&mut self, path: &[u8], units: bool) -> bool {
        let mut written = path.to_vec();
        let mut has_units = false;
        for _ in 0..DECODINGS {
            has_units |= unit_in(&written);
            let next = decoded(&written, units);
            if next == written {
                break;
            }
            self.add(&literal(&next));
            // Slashes that were encoded may be in the place of those before an authority.
            if let Some(behind) = without_authority(&next) {
                self.add(&literal(behind));
            }
            written = next;
        }
        has_units
    }

    /// What the whole target is for those who take it for a path.
    fn add_whole(&mut self, target: &[u8]) {
        for units in [false, true] {
            let mut written = target.to_vec();
            let mut has_units = false;
            for _ in 0..=DECODINGS {
                self.add_climbed(&written);
                has_units |= unit_in(&written);
                let mut slashes = written.clone();
                turn_backslashes(&mut slashes);
                if slashes != written {
                    self.add_climbed(&slashes);
                }
                let next = decoded_whole(&written, units);
                if next == written {
                    break;
                }
                written = next;
            }
            if !has_units {
                return;
            }
        }
    }

    /// What becomes of a whole target by its dot segments, if it has any that go up.
    fn add_climbed(&mut self, target: &[u8]) {
        let elements = || target.split(|byte| *byte == b'/').skip(1);
        let name = |element: &[u8]| memchr::memchr(b';', element).unwrap_or(element.len());
        if !elements().any(|element| element[..name(element)] == *b"..") {
            return;
        }
        let has_parameters = memchr::memchr(b';', target).is_some();
        for without_parameters in [false, true].into_iter().take(1 + usize::from(has_parameters)) {
            for keeps_empty in [false, true] {
                let mut left: Vec<&[u8]> = Vec::new();
                for element in elements() {
                    match if without_parameters { &element[..name(element)] } else { element } {
                        b"." => {}
                        b"" if !keeps_empty => {}
                        b".." => drop(left.pop()),
                        element => left.push(element),
                    }
                }
                let mut path = Vec::with_capacity(target.len());
                for element in left {
                    path.push(b'/');
                    path.extend_from_slice(element);
                }
                end(&mut path);
                // A query that has stayed was none of the path.
                let path = rooted(&path);
                self.push(path::normal(&path).into_owned());
                self.push(path::normal(&literal(&path)).into_owned());
            }
        }
    }

    /// What becomes of a path by what is done about its dot segments and empty elements, and in which order.
    fn add(&mut self, path: &[u8]) {
        let elements = path::elements(path);
        let is_dots = |element: &Vec<u8>| matches!(&element[..], b"." | b"..");
        if elements.iter().any(is_dots) {
            self.push(joined(elements.iter()));
            let mut left: Vec<&Vec<u8>> = Vec::new();
            for element in &elements {
                match &element[..] {
                    b"." => {}
                    b".." => drop(left.pop()),
                    _ => left.push(element),
                }
            }
            let nothing = Vec::new();
            let ends = elements.last().filter(|last| is_dots(last)).map(|_| &nothing);
            self.push(joined(left.into_iter().chain(ends)));
        }
        self.push(path::normal(path).into_owned());
    }

    fn push(&mut self, form: Vec<u8>) {
        if form != *self.normal && !self.others.contains(&form) {
            self.others.push(form);
        }
    }

    fn all_of_them(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&*self.normal).chain(self.others.iter().map(Vec::as_slice))
    }

    /// All but the normal one; nearly always none.
    pub(in crate::govern) fn others(&self) -> &[Vec<u8>] {
        &self.others
    }

    /// Whether it is so for one of them.
    pub(in crate::govern) fn any(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        self.all_of_them().any(test)
    }

    /// Whether it is so for all of them.
    pub(in crate::govern) fn all(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        self.all_of_them().all(test)
    }
}

/// As a path, without empty elements but at its end.
fn joined<'e>(elements: impl Iterator<Item = &'e Vec<u8>>) -> Vec<u8> {
    let mut path = Vec::new();
    let mut slash = true;
    for element in elements {
        slash = element.is_empty();
        if !slash {
            path.push(b'/');
            path.extend_from_slice(element);
        }
    }
    if slash {
        path.push(b'/');
    }
    path
}

/// Everything is decoded once, and means what it may mean. `units`: `%u0061`, a unit of UTF-16, is `a`.
fn decoded(path: &[u8], units: bool) -> Vec<u8> {
    let mut out = decoded_whole(path, units);
    end(&mut out);
    turn_backslashes(&mut out);
    out
}

/// The same of a target, in which nothing ends the path, and a backslash is one.
fn decoded_whole(target: &[u8], units: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(target.len());
    let mut rest = target;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        let encoded = if *first == b'%' { behind } else { &[] };
        if let Some((unit, behind)) = unit(encoded).filter(|_| units) {
            out.extend_from_slice(unit.encode_utf8(&mut [0; 4]).as_bytes());
            rest = behind;
        } else if let Some((byte, behind)) = octet(encoded) {
            out.push(byte);
            rest = behind;
        } else {
            out.push(*first);
        }
    }
    out
}

/// What some servers take for the end of a path ends it.
fn end(path: &mut Vec<u8>) {
    let end = path.iter().position(|byte| matches!(byte, 0 | b'?' | b'#')).unwrap_or(path.len());
    path.truncate(end);
}

fn turn_backslashes(path: &mut [u8]) {
    path.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
}

/// Whoever decodes no further takes a percent sign for itself.
fn literal(path: &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == b'%').collect::<Vec<_>>().join(&b"%25"[..])
}

/// Whether there may be a segment `..` in a query, decoded so often as you like. A look at its dots and percent signs.
fn may_climb(query: &[u8]) -> bool {
    memchr::memchr2_iter(b'.', b'%', query).any(|at| match (query[at], &query[at + 1..]) {
        (b'.', rest) => matches!(rest, [b'.' | b'%', ..]),
        // A dot, or what becomes a percent sign or one of its digits.
        (_, rest) => {
            matches!(rest, [b'2', b'e' | b'E' | b'5' | b'%', ..] | [b'u' | b'U' | b'%', ..])
        }
    })
}

/// What two digits behind a percent sign stand for, and what follows them.
fn octet(behind: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = behind.split_at_checked(2)?;
    Some((u8::try_from(number(digits)?).ok()?, rest))
}

/// The same of `u` and four digits.
fn unit(behind: &[u8]) -> Option<(char, &[u8])> {
    let (digits, rest) =
        behind.strip_prefix(b"u").or_else(|| behind.strip_prefix(b"U"))?.split_at_checked(4)?;
    // Halves of pairs stand for no character that a rule would be about.
    Some((char::from_u32(number(digits)?).unwrap_or(char::REPLACEMENT_CHARACTER), rest))
}

fn unit_in(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path).any(|at| unit(&path[at + 1..]).is_some())
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
}

/// With a slash at its beginning. One that has a backslash there is read as if that were the slash.
fn rooted(path: &[u8]) -> Cow<'_, [u8]> {
    if path.starts_with(b"/") { path.into() } else { [b"/", path].concat().into() }
}

/// What is behind a scheme and its colon (RFC 3986, section 3.1).
fn behind_scheme(path: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', path)?;
    let (first, others) = path[..colon].split_first()?;
    let rest = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (first.is_ascii_alphabetic() && others.iter().all(rest)).then(|| &path[colon + 1..])
}

/// What is left of a path that has an authority before it, for who reads it as a reference. RFC 3986 (section 4.2) has `//x` for
/// that; who parses URLs as browsers do (WHATWG's URL Standard, "special authority ignore slashes state") takes any two slashes or more,
/// and a backslash for each of them.
fn without_authority(path: &[u8]) -> Option<&[u8]> {
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let slashes = path.iter().take_while(|byte| is_slash(byte)).count();
    let behind = path.get(slashes..).filter(|_| slashes >= 2)?;
    // Without a path it asks for `/`.
    Some(behind.iter().position(is_slash).map_or(b"/", |at| &behind[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::path::disguise::Of;

    fn of(path: &str) -> Vec<String> {
        let request = Of(path.to_owned());
        let forms = Forms::of(&request);
        forms.all_of_them().map(|form| String::from_utf8_lossy(form).into_owned()).collect()
    }

    #[test]
    fn what_servers_may_take_a_path_for_is_among_its_forms() {
        for (path, wanted) in [
            ("/a/b", &["/a/b"][..]),
            ("/%61", &["/a"]),
            ("/a;x=1/b", &["/a/b"]),
            ("/a%2fb", &["/a%2Fb", "/a/b"]),
            ("/admin%3bx=1", &["/admin%3Bx=1", "/admin"]),
            ("/admin%00.html", &["/admin%00.html", "/admin"]),
            ("/admin%3fx", &["/admin%3Fx", "/admin"]),
            ("/admin#x", &["/admin#x", "/admin"]),
            ("/100%25", &["/100%25"]),
            // The normal form, with dot segments left as they are, and with them removed before empty elements.
            ("/a//../b", &["/b", "/a/../b", "/a/b"]),
            ("/a/..;/b", &["/b", "/a/../b"]),
            ("/a/..", &["/", "/a/.."]),
            ("//x/admin/env", &["/x/admin/env", "/admin/env"]),
            ("admin/env", &["admin/env", "/admin/env"]),
            ("http:/admin", &["http:/admin", "/http:/admin", "/admin"]),
            ("*", &["*"]),
        ] {
            assert_eq!(of(path), wanted, "{path}");
        }
        for (path, one) in [
            ("/x/..%2fadmin", "/admin"),
            ("/x/%2e%2e%2fadmin", "/admin"),
            ("/x%5c..%5cadmin", "/admin"),
            ("/x\\..\\admin", "/admin"),
            ("/%2561dmin", "/admin"),
            ("/%25252561dmin", "/admin"),
            // What servers read as URLs.
            ("x:/admin/env", "/admin/env"),
            ("h-t.p+1:/%61dmin", "/admin"),
            ("x:y/../admin", "/admin"),
            ("x:admin", "/admin"),
            ("x:\\admin", "/admin"),
            ("x:", "/"),
            ("file://y/admin", "/admin"),
            ("http:///admin", "/admin"),
            ("http:\\\\y\\admin", "/admin"),
            ("///x/admin", "/admin"),
            ("////x//admin", "/admin"),
            ("/\\x/admin", "/admin"),
            ("/\\x\\admin", "/admin"),
            ("/\\/x/admin", "/admin"),
            ("//\\x/admin", "/admin"),
            ("\\\\x/admin", "/admin"),
            ("\\/x/admin", "/admin"),
            ("/\\x/%61dmin", "/admin"),
            ("//x/%2561dmin", "/admin"),
            ("//x/y/..%2fadmin", "/admin"),
            ("/%5cx/admin", "/admin"),
            ("/%2fx/admin", "/admin"),
            ("/%252fx/admin", "/admin"),
            ("//x%2fy/admin", "/admin"),
            // Behind an authority, nothing is `/`.
            ("//x", "/"),
            // As IIS and Jetty 9 decode.
            ("/%u0061dmin", "/admin"),
            ("/%U0061%64min", "/admin"),
            ("/x%u002f..%u002fadmin", "/admin"),
            ("/x/%u002e%u002E/admin", "/admin"),
            ("/%25u0061dmin", "/admin"),
            ("/%u0025%u0036%u0031dmin", "/admin"),
            ("//x/%u0061dmin", "/admin"),
            ("/admin%u003bx", "/admin"),
            ("/k%u00e4ufer", "/k\u{e4}ufer"),
            ("/%ud83d", "/\u{fffd}"),
            // None of those.
            ("/%u006", "/%25u006"),
            // Decoded first, then without dot segments.
            ("/admin%2fx/../env", "/admin/env"),
            ("/x/%2f/../admin/env", "/admin/env"),
            ("/admin/env#/../../x", "/admin/env"),
            ("/admin/env/..;/..;/x", "/admin/env/../../x"),
            ("/admin/env/../../x", "/admin/env/../../x"),
            ("/admin/env;/../../x", "/admin/env/../../x"),
            // Decoded once and no further.
            ("/public/..%2fadmin/%252e%252e%252fpublic", "/admin/%252e%252e%252fpublic"),
        ] {
            assert!(of(path).iter().any(|form| form == one), "{path} {:?}", of(path));
        }
    }

    #[test]
    fn a_query_that_goes_up_is_a_part_of_the_path_to_some() {
        for target in [
            "/open?/../admin",
            "/?/../admin",
            "/open?a=1&b=/../admin",
            "/a/b?/../../admin",
            "/open?/../../../admin",
            "/open?/%2e%2e/admin",
            "/open?/.%2E/admin",
            "/open?%2f..%2fadmin",
            "/open?%2F%2e%2e%2Fadmin",
            "/open?\\..\\admin",
            "/open?%5c..%5cadmin",
            "/open?/%252e%252e/admin",
            "/open?%252f..%252fadmin",
            "/open?/%252e./admin",
            "/open?/%%32e%%32e/admin",
            "/open?/%2%65%2%65/admin",
            "/open?/%u002e%u002e/admin",
            "/open?%u002f..%u002fadmin",
            "/open?/../%61dmin",
            "/open?/../admin?x",
            "/open?/../admin#x",
            "/open?/../admin%3fx",
            "/open?/../admin%00.txt",
            "/open?/./../admin",
            "/open?//../admin",
            "/open?/x/../../admin",
            "/open?;/../admin",
            "/open?/..;x/admin",
            "//open?/../../admin",
            "?/../admin",
        ] {
            assert!(of(target).iter().any(|form| form == "/admin"), "{target} {:?}", of(target));
        }
        // Parameters are names to these, and empty elements none.
        assert!(of("/a/b?//;/../../admin").contains(&"/a/admin".to_owned()));
        // Nothing that some read otherwise.
        for target in [
            "/open?next=/a/../b",
            "/open?range=1..5",
            "/open?a=1.%20b",
            "/open?a=...&b=/.../",
            "/open?%2e%2e",
            "/open?a=%25&b=/./c",
            "/open?a=100%",
        ] {
            assert_eq!(of(target), ["/open"], "{target}");
        }
        assert_eq!(of("/open/a?next=/../b"), ["/open/a", "/open/b"]);
        assert_eq!(of("/open/a?next=/.."), ["/open/a", "/open"]);
        assert!(!may_climb(b"?a=%E4%BD%A0&b=1.5&c=a.b"), "most queries are not looked at twice");
    }

    #[test]
    fn bytes_that_are_no_text_are_bytes() {
        let forms = |target: &'static [u8]| {
            let forms =
                Forms::of_path(&target[..memchr::memchr(b'?', target).unwrap_or(target.len())], target);
            forms.all_of_them().map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        assert_eq!(forms(b"/\xd6\xd0"), [b"/\xd6\xd0"]);
        assert_eq!(forms(b"/%d6\xd0"), [b"/\xd6\xd0"]);
        assert_eq!(forms(b"/a?q=\xd6\xd0"), [b"/a"]);
        assert!(forms(b"/\xd6\xd0/..%2fadmin").contains(&b"/admin".to_vec()));
        assert!(forms(b"/\xff?/../admin").contains(&b"/admin".to_vec()));
        // The second byte of a character of GBK may be a backslash, and is one to servers that do not know of GBK.
        assert!(forms(b"/x/\xd5\\../admin").contains(&b"/x/admin".to_vec()));
    }

    #[test]
    fn there_are_not_many_forms_of_the_longest_path() {
        for (path, most) in [
            ("/%252525252e%252525252e%252525252f//..;/", DECODINGS + 1),
            ("//%252525252e%252525252e%252525252f//..;/", 4 * DECODINGS + 2),
            ("/\\x/%2525252525u002e%2525252e%252525252f//..;/", 8 * DECODINGS + 2),
        ] {
            let path = format!("{path}{0}?{0}", path.repeat(1000));
            assert!(Forms::of(&Of(path)).others.len() <= 3 * most + 2 * 16 * (DECODINGS + 1));
        }
    }

    proptest::proptest! {
        /// However its beginning is written, a path that a server reads behind a scheme or an authority is one of the forms.
        #[test]
        fn neither_a_scheme_nor_an_authority_hides_a_path(
            scheme in "([a-zA-Z][a-zA-Z0-9+.-]{0,3}:)?",
            slashes in "[/\\\\]{2,4}",
            authority in "[a-z0-9.:@]{1,4}",
            slash in "[/\\\\]",
        ) {
            let path = format!("{scheme}{slashes}{authority}{slash}admin");
            proptest::prop_assert!(of(&path).iter().any(|form| form == "/admin"), "{path} {:?}", of(&path));
            let path = format!("{scheme}{slash}admin");
            proptest::prop_assert!(of(&path).iter().any(|form| form == "/admin"), "{path} {:?}", of(&path));
        }
    }
}
