//! What servers may take a path for.
//!
//! The normal form is what most do. Others decode an encoded slash or backslash, before or after they remove dot segments, and
//! decode again what comes of it; take a backslash for a slash; end a path at a NUL, a question mark or a number sign that was encoded;
//! know no parameters (`..;` is a name to them); remove dot segments before empty elements (RFC 3986, section 5.2.4, has
//! no rule that joins slashes), or not at all; take what is behind two slashes for an authority. Each of that makes of `/public/..%2fadmin`, `/admin%2fx/../env` or
//! `/admin//../env` another path. A path in which there is anything of the kind has all of these forms.

use std::borrow::Cow;

use crate::govern::path;

/// So often a server may decode in a row, and more than that no known one does.
const DECODINGS: usize = 4;

/// The forms of one path.
pub(super) struct Forms<'p> {
    normal: Cow<'p, [u8]>,
    others: Vec<Vec<u8>>,
}

impl<'p> Forms<'p> {
    pub(super) fn of(path: &'p [u8]) -> Self {
        let normal = path::normal(path);
        let plain = matches!(normal, Cow::Borrowed(_)) && memchr::memchr2(b'\\', b'#', path).is_none();
        let mut forms = Self { normal, others: Vec::new() };
        if plain && path.starts_with(b"/") || path == b"*" {
            return forms;
        }
        // A target without a slash is none of a server's paths, and some servers put one before it.
        let rooted = if path.starts_with(b"/") { path.into() } else { Cow::from([b"/", path].concat()) };
        let path = &*rooted;
        forms.add(path);
        // Who reads a target as a reference (RFC 3986, section 4.2) takes `//x` for an authority.
        if let Some(behind) = path.strip_prefix(b"//") {
            let authority = memchr::memchr(b'/', behind).unwrap_or(behind.len());
            forms.add(&behind[authority..]);
        }
        let mut written = path.to_vec();
        for _ in 0..DECODINGS {
            let next = decoded(&written);
            if next == written {
                break;
            }
            // Whoever decodes no further takes a percent sign for itself.
            forms.add(&next.split(|byte| *byte == b'%').collect::<Vec<_>>().join(&b"%25"[..]));
            written = next;
        }
        forms
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

    /// Whether it is so for one of them.
    pub(super) fn any(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        self.all_of_them().any(test)
    }

    /// Whether it is so for all of them.
    pub(super) fn all(&self, test: impl Fn(&[u8]) -> bool) -> bool {
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

/// Everything is decoded once, and means what it may mean.
fn decoded(path: &[u8]) -> Vec<u8> {
    percent_encoding::percent_decode(path)
        .map(|byte| if byte == b'\\' { b'/' } else { byte })
        .take_while(|byte| !matches!(byte, 0 | b'?' | b'#'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Vec<String> {
        let forms = Forms::of(path.as_bytes());
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
    fn there_are_not_many_forms_of_the_longest_path() {
        let path = format!("/{}", "%252525252e%252525252e%252525252f//..;/".repeat(1000));
        assert!(Forms::of(path.as_bytes()).others.len() <= 3 * (DECODINGS + 1));
    }
}
