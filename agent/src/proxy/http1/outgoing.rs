//! A head on its way out, while its lines are edited: for requests and for responses. Pure.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::HeaderName;
use smallvec::SmallVec;

use super::{
    head::{Copier, MAX_HEADERS, MAX_RESPONSE_HEADERS, add},
    parse::{Parsed, parse},
    view::View,
};
use crate::{
    govern::{
        edit::{self, Head},
        headers,
        jwt::HeaderPlan,
        lane::{Caused, Distrust, RequestTag, TagNames, TagScan},
        policy::Edits,
        request::Request as _,
    },
    proxy::way::{self, Course},
};

/// Lines of an ordinary head: all that a request's may have, and what this hop itself has added.
const ORDINARY: usize = u128::BITS as usize;
/// What this hop adds at most.
const ADDED: usize = 8;
const _: () = assert!(MAX_HEADERS + ADDED <= ORDINARY);

/// Writes a request's head, as this hop has written it, with what a policy changes in it.
pub(super) fn edit_request(
    head: &[u8],
    edits: &Edits,
    is_kept: impl Fn(&HeaderName) -> bool,
    out: &mut BytesMut,
) {
    let (mut slots, mut spare) = ([const { MaybeUninit::uninit() }; ORDINARY], Vec::new());
    let parsed = parse(head, &mut slots, &mut spare).ok().flatten();
    edited(head, parsed.map_or(&[], |parsed| parsed.headers), edits, is_kept, out);
}

/// Writes a request's head, as this hop has written it, with what its token changes in it.
pub(super) fn change_request(head: &[u8], plan: &HeaderPlan, out: &mut BytesMut) {
    let (mut slots, mut spare) = ([const { MaybeUninit::uninit() }; ORDINARY], Vec::new());
    let parsed = parse(head, &mut slots, &mut spare).ok().flatten();
    let mut outgoing = Outgoing::new(head, parsed.map_or(&[], |parsed| parsed.headers));
    outgoing.leave_out(|name| plan.removes(name));
    for (name, value) in &plan.set {
        outgoing.add(name, value.as_bytes());
    }
    outgoing.write(out);
}

/// Writes a request's head, as this hop has written it, with a tag.
pub(super) fn tag_request(head: &[u8], tag: &RequestTag, names: &TagNames, out: &mut BytesMut) {
    let (mut slots, mut spare) = ([const { MaybeUninit::uninit() }; ORDINARY], Vec::new());
    let parsed = parse(head, &mut slots, &mut spare).ok().flatten();
    let headers: &[httparse::Header<'_>] = parsed.map_or(&[], |parsed| parsed.headers);
    let mut scan = TagScan::new(names);
    for header in headers {
        scan.see(header.name.as_bytes(), header.value);
    }
    let mut outgoing = Outgoing::new(head, headers);
    edit::tag(&mut outgoing, names, &scan.decide(Caused::default(), None, || Some(*tag)));
    outgoing.write(out);
}

/// Writes a request's head as it is to be where it goes: what its routes change in it. One that cannot be read is written as it
/// came, to be refused by whoever reads it next.
pub(crate) fn edit_routed(
    head: &[u8],
    course: &Course,
    names: &TagNames,
    distrust: Distrust<'_>,
    out: &mut BytesMut,
) {
    let (mut slots, mut spare) = ([const { MaybeUninit::uninit() }; ORDINARY], Vec::new());
    let parsed = parse(head, &mut slots, &mut spare).ok().flatten();
    let Some(Parsed { method, target: came, version, headers }) = parsed else {
        out.extend_from_slice(head);
        return;
    };
    let mut outgoing = Outgoing::new(head, headers);
    course.edit(&mut outgoing, names, course.strips(&View(head), names, distrust));
    let target = course.target(View(head).target());
    let (host, authority) = (course.hostname().map(str::as_bytes), way::authority_of(came));
    // What names another host than `Host` does would count in its place.
    if target.is_some() || (host.is_some() && authority.is_some()) {
        let target = target.unwrap_or_else(|| View(head).target().to_vec());
        outgoing.first_line =
            [method.as_bytes(), b" ", &target, format!(" HTTP/1.{version}\r\n").as_bytes()].concat();
        if let (None, Some(authority)) = (host, authority) {
            outgoing.set(&http::header::HOST, authority);
        }
    }
    if let Some(host) = host {
        outgoing.set(&http::header::HOST, host);
    }
    outgoing.write(out);
}

/// Writes a response's head, as this hop has written it, with what a policy changes in it.
pub(super) fn edit_response(head: &[u8], edits: &Edits, out: &mut BytesMut) {
    let mut slots = [httparse::EMPTY_HEADER; ORDINARY];
    let mut many = Vec::new();
    let mut parsed = httparse::Response::new(&mut slots);
    let mut status = parsed.parse(head);
    if status == Err(httparse::Error::TooManyHeaders) {
        many.resize(MAX_RESPONSE_HEADERS + ADDED, httparse::EMPTY_HEADER);
        parsed = httparse::Response::new(&mut many);
        status = parsed.parse(head);
    }
    let whole = status.is_ok_and(|status| status.is_complete());
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
    /// Those beyond the bits, of a response with very many lines.
    left_out_beyond: Vec<bool>,
    /// In the place of the one that came; empty: that.
    first_line: Vec<u8>,
    added: SmallVec<[(HeaderName, Value); 2]>,
}

/// Room for a tag.
type Value = SmallVec<[u8; 64]>;

impl<'h> Outgoing<'h> {
    /// All of a head that has been parsed.
    pub(super) fn new(head: &'h [u8], headers: &'h [httparse::Header<'h>]) -> Self {
        let left_out_beyond = vec![false; headers.len().saturating_sub(ORDINARY)];
        Self { head, headers, left_out: 0, left_out_beyond, first_line: Vec::new(), added: SmallVec::new() }
    }

    pub(super) fn leave_out(&mut self, which: impl Fn(&[u8]) -> bool) {
        for (at, header) in self.headers.iter().enumerate() {
            if which(header.name.as_bytes()) {
                match at.checked_sub(ORDINARY) {
                    None => self.left_out |= 1 << at,
                    Some(beyond) => self.left_out_beyond[beyond] = true,
                }
            }
        }
    }

    fn is_left_out(&self, at: usize) -> bool {
        match at.checked_sub(ORDINARY) {
            None => self.left_out & (1 << at) != 0,
            Some(beyond) => self.left_out_beyond[beyond],
        }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.reserve(self.head.len() + 256);
        // Blank lines before the request line (RFC 9112, section 2.2) are not passed on.
        let mut start = self.head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if !self.first_line.is_empty() {
            out.extend_from_slice(&self.first_line);
            start += memchr::memchr(b'\n', &self.head[start..]).map_or(0, |feed| feed + 1);
        }
        let mut copier = Copier::new(self.head, start, out);
        let mut left_out = self.left_out;
        while left_out != 0 {
            copier.omit(self.headers[left_out.trailing_zeros() as usize].name.as_bytes());
            left_out &= left_out - 1;
        }
        for (header, left_out) in self.headers.iter().skip(ORDINARY).zip(&self.left_out_beyond) {
            if *left_out {
                copier.omit(header.name.as_bytes());
            }
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
            !self.is_left_out(*at) && header.name.eq_ignore_ascii_case(name.as_str())
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

    fn remove_misspelt(&mut self, name: &HeaderName) {
        self.leave_out(|line| headers::is_misspelt(line, name));
        self.added.retain(|(key, _)| !headers::is_misspelt(key.as_str().as_bytes(), name));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_a_token_says_takes_the_place_of_what_the_client_says() {
        let (user, plan) = (HeaderName::from_static("x-user"), HeaderName::from_static("x-plan"));
        let changes = HeaderPlan {
            own: vec![user.clone(), plan],
            misspelt: Vec::new(),
            token: Some(http::header::AUTHORIZATION),
            set: vec![(user, HeaderValue::from_static("ann"))],
        };
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX-User: eve\r\nauthorization: Bearer t\r\nX_USER: eve\r\nx-user: eve\r\nx_plan: free\r\nAccept: b\r\n\r\n";
        let mut out = BytesMut::new();
        change_request(head.as_bytes(), &changes, &mut out);
        assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nx-user: ann\r\n\r\n".as_bytes());
    }

    #[test]
    fn a_response_with_very_many_lines_is_changed_like_any_other() {
        let changes = Edits {
            remove: ["x-0", "x-127", "x-128", "x-999"].map(HeaderName::from_static).into(),
            set: vec![(HeaderName::from_static("x-500"), HeaderValue::from_static("new"))],
            add: vec![(HeaderName::from_static("x-0"), HeaderValue::from_static("again"))],
        };
        let mut out = BytesMut::new();
        let lines = |gone: &[usize]| {
            let kept = (0..MAX_RESPONSE_HEADERS).filter(|n| !gone.contains(n));
            kept.map(|n| format!("X-{n}: {n}\r\n")).collect::<Vec<_>>().concat()
        };
        edit_response(format!("HTTP/1.1 200 OK\r\n{}\r\n", lines(&[])).as_bytes(), &changes, &mut out);
        let kept = lines(&[0, 127, 128, 500, 999]);
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{kept}x-500: new\r\nx-0: again\r\n\r\n").as_bytes());
    }
}
