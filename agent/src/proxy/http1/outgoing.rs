//! A head on its way out, while its lines are edited: for requests and for responses. Pure.

use bytes::BytesMut;
use http::HeaderName;
use smallvec::SmallVec;

use super::head::{Copier, MAX_HEADERS, add};
use crate::govern::{
    edit::{self, Head},
    policy::Edits,
};

/// The lines of a head that can be edited: those that may come, and what this hop itself has added.
const MOST_LINES: usize = u128::BITS as usize;
const _: () = assert!(MAX_HEADERS + 8 <= MOST_LINES);

/// Writes a request's head, as this hop has written it, with what a policy changes in it.
pub(super) fn edit_request(
    head: &[u8],
    edits: &Edits,
    is_kept: impl Fn(&HeaderName) -> bool,
    out: &mut BytesMut,
) {
    let mut slots = [httparse::EMPTY_HEADER; MOST_LINES];
    let mut parsed = httparse::Request::new(&mut slots);
    let whole = parsed.parse(head).is_ok_and(|status| status.is_complete());
    edited(head, if whole { parsed.headers } else { &[] }, edits, is_kept, out);
}

/// Writes a response's head, as this hop has written it, with what a policy changes in it.
pub(super) fn edit_response(head: &[u8], edits: &Edits, out: &mut BytesMut) {
    let mut slots = [httparse::EMPTY_HEADER; MOST_LINES];
    let mut parsed = httparse::Response::new(&mut slots);
    let whole = parsed.parse(head).is_ok_and(|status| status.is_complete());
    edited(head, if whole { parsed.headers } else { &[] }, edits, |_| false, out);
}

fn edited(
    head: &[u8],
    headers: &[httparse::Header<'_>],
    edits: &Edits,
    is_kept: impl Fn(&HeaderName) -> bool,
    out: &mut BytesMut,
) {
    let mut outgoing = Outgoing::new(head, headers);
    edit::modify(&mut outgoing, edits, is_kept);
    outgoing.write(out);
}

/// A head on its way out: the lines that came, without those that are left out, and others behind them.
pub(super) struct Outgoing<'h> {
    head: &'h [u8],
    headers: &'h [httparse::Header<'h>],
    /// By their places in `headers`, a bit each.
    left_out: u128,
    added: SmallVec<[(HeaderName, Value); 2]>,
}

/// Room for a tag.
type Value = SmallVec<[u8; 64]>;

impl<'h> Outgoing<'h> {
    /// All of a head that has been parsed.
    pub(super) fn new(head: &'h [u8], headers: &'h [httparse::Header<'h>]) -> Self {
        debug_assert!(headers.len() <= MOST_LINES);
        Self { head, headers, left_out: 0, added: SmallVec::new() }
    }

    pub(super) fn leave_out(&mut self, which: impl Fn(&[u8]) -> bool) {
        for (at, header) in self.headers.iter().enumerate() {
            if which(header.name.as_bytes()) {
                self.left_out |= 1 << at;
            }
        }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.reserve(self.head.len() + 256);
        // Blank lines before the request line (RFC 9112, section 2.2) are not passed on.
        let start = self.head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let mut copier = Copier::new(self.head, start, out);
        let mut left_out = self.left_out;
        while left_out != 0 {
            copier.omit(self.headers[left_out.trailing_zeros() as usize].name.as_bytes());
            left_out &= left_out - 1;
        }
        let out = copier.finish();
        for (name, value) in &self.added {
            add(out, name.as_str().as_bytes(), value);
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl Head for Outgoing<'_> {
    fn get_all<'s>(&'s self, name: &'s HeaderName) -> impl Iterator<Item = &'s [u8]> {
        let came = self.headers.iter().enumerate().filter(move |(at, header)| {
            self.left_out & (1 << at) == 0 && header.name.eq_ignore_ascii_case(name.as_str())
        });
        let added = self.added.iter().filter(move |(key, _)| key == name);
        came.map(|(_, header)| header.value).chain(added.map(|(_, value)| value.as_slice()))
    }

    fn add(&mut self, name: &HeaderName, value: &[u8]) {
        self.added.push((name.clone(), Value::from_slice(value)));
    }

    fn remove(&mut self, name: &HeaderName) {
        self.leave_out(|line| line.eq_ignore_ascii_case(name.as_str().as_bytes()));
        self.added.retain(|(key, _)| key != name);
    }
}
