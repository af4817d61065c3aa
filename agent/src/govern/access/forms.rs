//! What servers may take a path for.
//!
//! The normal form is what most do. Some decode an encoded slash or backslash, or a percent sign, and decode again what
//! comes of it; some take a backslash for a slash, and end a path at a NUL. Each of that makes of `/public/%2e%2e%2fadmin` or
//! `/public%5c..%5cadmin` another path. A path in which there is anything of the kind has a second form, with all of it taken
//! for what the most obliging server takes it for.

use std::borrow::Cow;

use crate::govern::path;

/// So often a server may decode in a row, and more than that no known one does.
const DECODINGS: usize = 4;

/// The forms of one path.
pub(super) struct Forms<'p> {
    normal: Cow<'p, [u8]>,
    /// If it is another.
    further: Option<Vec<u8>>,
}

impl<'p> Forms<'p> {
    pub(super) fn of(path: &'p [u8]) -> Self {
        let normal = path::normal(path);
        let further = further(&normal).filter(|further| **further != *normal);
        Self { normal, further }
    }

    /// Whether it is so for one of them.
    pub(super) fn any(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        test(&self.normal) || self.further.as_deref().is_some_and(test)
    }

    /// Whether it is so for all of them.
    pub(super) fn all(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        test(&self.normal) && self.further.as_deref().is_none_or(test)
    }
}

/// `None`: there is nothing to decode any more.
fn further(normal: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr2(b'%', b'\\', normal)?;
    let mut path = normal.to_vec();
    for _ in 0..DECODINGS {
        let slashes: Vec<u8> = percent_encoding::percent_decode(&path)
            .map(|byte| if byte == b'\\' { b'/' } else { byte })
            .take_while(|byte| *byte != 0)
            .collect();
        let next = path::normal(&slashes).into_owned();
        if next == path {
            break;
        }
        path = next;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_may_decode_further_is_a_second_form() {
        for (path, wanted) in [
            ("/a/b", None),
            ("/%61", None),
            ("/a%2fb", Some("/a/b")),
            ("/x/..%2fadmin", Some("/admin")),
            ("/x/%2e%2e%2fadmin", Some("/admin")),
            ("/x%5c..%5cadmin", Some("/admin")),
            ("/x\\..\\admin", Some("/admin")),
            ("/%2561dmin", Some("/admin")),
            ("/%25252561dmin", Some("/admin")),
            ("/admin%00.html", Some("/admin")),
            ("/admin%3bx=1", Some("/admin")),
        ] {
            let forms = Forms::of(path.as_bytes());
            let further = forms.further.as_deref().map(|form| String::from_utf8_lossy(form).into_owned());
            assert_eq!(further.as_deref(), wanted, "{path}");
        }
    }
}
