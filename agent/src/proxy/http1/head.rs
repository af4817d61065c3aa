//! What request and response heads have in common: where they end, and copying one while leaving lines out. Pure.

use bytes::BytesMut;

/// The most that a head may have, in bytes. (nginx 32 KiB, Envoy 60 KiB, Tomcat 8 KiB.)
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The most lines that a request's head may have (as Apache's and Envoy's default).
pub(crate) const MAX_HEADERS: usize = 100;

/// The most lines that a response's head may have. Clients take from many hundreds (curl's default is 5,000) to any number, and
/// an endpoint that works without Sluice is to work with it.
pub(crate) const MAX_RESPONSE_HEADERS: usize = 1000;

/// Looks for the end of a head as its bytes come in, each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadEnd {
    scanned: usize,
    line: usize,
    first_line: usize,
    ends: LineEnds,
}

/// How the lines of a head end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LineEnds {
    /// With CR LF, each of them, and none goes on in the next.
    #[default]
    Plain,
    /// Some otherwise: see [`with_line_ends`].
    Odd,
}

#[cfg(any(test, feature = "fuzzing"))]
impl LineEnds {
    /// Those of a whole head.
    pub(crate) fn of(head: &[u8]) -> Self {
        let mut end = HeadEnd::default();
        let _ = end.find(head, true);
        end.line_ends()
    }
}

/// A line feed without a carriage return before it. Some readers end a line there and some do not, which is how
/// requests are smuggled (RFC 9112, section 2.2 lets a recipient choose).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BareLineFeed;

impl HeadEnd {
    /// The length of the head in `bytes`, once its empty line is there. Call it again with more bytes after the same ones.
    pub(crate) fn find(&mut self, bytes: &[u8], allow_bare: bool) -> Result<Option<usize>, BareLineFeed> {
        for offset in memchr::memchr_iter(b'\n', &bytes[self.scanned..]) {
            let feed = self.scanned + offset;
            let length = feed - self.line;
            let bare = length == 0 || bytes[feed - 1] != b'\r';
            if bare && !allow_bare {
                return Err(BareLineFeed);
            }
            if self.line == 0 {
                self.first_line = length;
            }
            // Nothing can be folded into the first line.
            let folds = self.line > self.first_line + 1 && matches!(bytes[self.line], b' ' | b'\t');
            if bare || folds {
                self.ends = LineEnds::Odd;
            }
            if length == usize::from(!bare) {
                return Ok(Some(feed + 1));
            }
            self.line = feed + 1;
        }
        self.scanned = bytes.len();
        Ok(None)
    }

    /// How those lines end that were seen so far.
    pub(crate) fn line_ends(&self) -> LineEnds {
        self.ends
    }

    /// The first line is there.
    pub(crate) fn is_past_first_line(&self) -> bool {
        self.line > 0
    }

    /// Of a head that is too large: most of it is its first line, or that has not even come to its end.
    pub(crate) fn is_mostly_first_line(&self) -> bool {
        self.line == 0 || self.first_line > MAX_HEAD_BYTES / 2
    }
}

/// A head whose lines end with CR LF and are whole, of one some of whose lines end with a line feed only or are folded (go on
/// in the next line, which begins with white space); `None` if there is none such. Were they passed on as they are, the next
/// reader could see other lines than this one did (RFC 9112, sections 2.2 and 5.2).
pub(crate) fn with_line_ends(head: &[u8]) -> Option<BytesMut> {
    let is_bare = |feed: usize| feed == 0 || head[feed - 1] != b'\r';
    // Nothing can be folded into the first line.
    let status_end = memchr::memchr(b'\n', head)?;
    let is_folded = |feed: usize| feed > status_end && matches!(head.get(feed + 1), Some(b' ' | b'\t'));
    let is_odd = |feed: &usize| is_bare(*feed) || is_folded(*feed);
    let first = memchr::memchr_iter(b'\n', head).find(is_odd)?;
    let mut out = BytesMut::with_capacity(head.len() + MAX_HEADERS);
    let mut copied = 0;
    for feed in memchr::memchr_iter(b'\n', &head[first..]).map(|at| first + at).filter(is_odd) {
        if is_folded(feed) {
            out.extend_from_slice(head[copied..feed].trim_ascii_end());
            out.extend_from_slice(b" ");
            copied = feed + 1;
            copied += head[copied..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        } else {
            out.extend_from_slice(&head[copied..feed]);
            out.extend_from_slice(b"\r\n");
            copied = feed + 1;
        }
    }
    out.extend_from_slice(&head[copied..]);
    Some(out)
}

/// Whether a header's line is written as most are: a colon, a space, the value, nothing else. What frames a message is
/// written anew otherwise: readers differ on white space that is none to them.
pub(crate) fn is_plain(head: &[u8], header: &httparse::Header<'_>) -> bool {
    let value = (header.value.as_ptr() as usize).wrapping_sub(head.as_ptr() as usize);
    let end = value.wrapping_add(header.value.len());
    let before =
        value.checked_sub(header.name.len() + 2).and_then(|at| head.get(at + header.name.len()..value));
    before == Some(&b": "[..]) && head.get(end..end.wrapping_add(2)) == Some(&b"\r\n"[..])
}

/// Copies a head's bytes, but for the lines that are left out.
pub(crate) struct Copier<'a> {
    head: &'a [u8],
    copied: usize,
    out: &'a mut BytesMut,
}

impl<'a> Copier<'a> {
    /// `from`: where in `head` to begin.
    pub(crate) fn new(head: &'a [u8], from: usize, out: &'a mut BytesMut) -> Self {
        Self { head, copied: from, out }
    }

    /// Where in the head a part of it stands.
    pub(crate) fn position(&self, part: &[u8]) -> usize {
        part.as_ptr() as usize - self.head.as_ptr() as usize
    }

    /// Leaves out the line whose name is `name`, a part of the head.
    pub(crate) fn omit(&mut self, name: &[u8]) {
        let start = self.position(name);
        let end = memchr::memchr(b'\n', &self.head[start..]).map_or(self.head.len(), |feed| start + feed + 1);
        self.out.extend_from_slice(&self.head[self.copied..start]);
        self.copied = end;
    }

    /// Writes a line anew in its place.
    pub(crate) fn rewrite(&mut self, name: &[u8], value: &[u8]) {
        self.omit(name);
        add(self.out, name, value);
    }

    /// Copies what is left but the empty line, and returns the output for more lines.
    pub(crate) fn finish(self) -> &'a mut BytesMut {
        let end = self.head.len() - b"\r\n".len();
        if self.copied < end {
            self.out.extend_from_slice(&self.head[self.copied..end]);
        }
        self.out
    }
}

/// Adds a line to a head.
pub(crate) fn add(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Adds a line to a head that ends with its empty line.
pub(crate) fn add_last(head: &mut BytesMut, name: &[u8], value: &[u8]) {
    head.truncate(head.len().saturating_sub(b"\r\n".len()));
    add(head, name, value);
    head.extend_from_slice(b"\r\n");
}

/// Shows the names and values of the lines behind the first one. Values, which have their white space and line end with
/// them, may be changed in place.
pub(crate) fn edit_lines(head: &mut [u8], mut edit: impl FnMut(&[u8], &mut [u8])) {
    for (index, line) in head.split_inclusive_mut(|byte| *byte == b'\n').enumerate() {
        if let Some(colon) = memchr::memchr(b':', line).filter(|_| index > 0) {
            let (name, value) = line.split_at_mut(colon);
            edit(name, &mut value[1..]);
        }
    }
}

/// The elements of a comma-separated list, trimmed, without empty ones (RFC 9110, section 5.6.1).
pub(crate) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut longer = head.to_vec();
        longer.extend_from_slice(b"body\r\n\r\n");
        assert_eq!(HeadEnd::default().find(&longer, false), Ok(Some(head.len())));
        let mut end = HeadEnd::default();
        for n in 0..head.len() {
            assert_eq!(end.find(&head[..n], false), Ok(None), "{n}");
        }
        assert_eq!(end.find(head, false), Ok(Some(head.len())));
    }

    #[test]
    fn bare_line_feeds_are_refused_unless_allowed() {
        for bytes in [&b"GET / HTTP/1.1\nHost: a\n\n"[..], b"GET / HTTP/1.1\r\nHost: a\n\r\n", b"\n"] {
            assert_eq!(HeadEnd::default().find(bytes, false), Err(BareLineFeed));
            assert_eq!(HeadEnd::default().find(bytes, true), Ok(Some(bytes.len())));
        }
    }

    #[test]
    fn lines_are_left_out_and_added() {
        let head = b"GET / HTTP/1.1\r\nConnection: x\r\nHost: a\r\nKeep-Alive: 5\r\nAccept: b\r\n\r\n";
        let mut out = BytesMut::new();
        let mut copier = Copier::new(head, 0, &mut out);
        copier.omit(&head[16..26]);
        let keep_alive = memchr::memmem::find(head, b"Keep").unwrap();
        copier.omit(&head[keep_alive..]);
        let out = copier.finish();
        add(out, b"x-mse-tag", b"gray");
        assert_eq!(&out[..], b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nx-mse-tag: gray\r\n");
    }

    #[test]
    fn values_are_changed_in_place() {
        let mut head = BytesMut::from(&b"GET http://a:80/ HTTP/1.1\r\nHost: a\r\nA:1\r\n\r\n"[..]);
        add_last(&mut head, b"b3", b"2");
        let mut seen = Vec::new();
        edit_lines(&mut head, |name, value| {
            seen.push(String::from_utf8_lossy(name).into_owned());
            value.iter_mut().filter(|byte| byte.is_ascii_digit()).for_each(|byte| *byte += 1);
        });
        assert_eq!(seen, ["Host", "A", "b3"]);
        assert_eq!(head, &b"GET http://a:80/ HTTP/1.1\r\nHost: a\r\nA:2\r\nb3: 3\r\n\r\n"[..]);
    }

    #[test]
    fn line_ends_are_made_whole() {
        assert_eq!(with_line_ends(b"a\r\nb\r\n\r\n"), None);
        assert_eq!(LineEnds::of(b"a\r\nb\r\n\r\n"), LineEnds::Plain);
        for head in [&b"a\nb\n\n"[..], b"a\r\nb\n\r\n", b"a\nb\r\n\n"] {
            assert_eq!(with_line_ends(head).unwrap(), b"a\r\nb\r\n\r\n"[..], "{head:?}");
            assert_eq!(LineEnds::of(head), LineEnds::Odd, "{head:?}");
        }
        assert_eq!(with_line_ends(b"\n").unwrap(), b"\r\n"[..]);
        for head in [&b"a\r\nb: 1\r\n  2\r\n\t3\r\n\r\n"[..], b"a\nb: 1 \n 2\r\n \t3\n\n"] {
            assert_eq!(with_line_ends(head).unwrap(), b"a\r\nb: 1 2 3\r\n\r\n"[..], "{head:?}");
            assert_eq!(LineEnds::of(head), LineEnds::Odd, "{head:?}");
        }
        assert_eq!(with_line_ends(b"a\r\n b: 1\r\n\r\n"), None, "nothing is folded into the first line");
        assert_eq!(LineEnds::of(b"a\r\n b: 1\r\n\r\n"), LineEnds::Plain);
    }

    #[test]
    fn list_elements_are_trimmed() {
        assert_eq!(elements(b"close, ,\tUpgrade ,x").collect::<Vec<_>>(), [&b"close"[..], b"Upgrade", b"x"]);
    }
}
