//! Two ends of our own, and bytes between them.

mod errors;
mod interleavings;
mod messages;
mod room;
mod windows;

use std::{
    cell::RefCell,
    io::IoSlice,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

use super::{
    core::{Accepted, Core, Ended, Role},
    fields::Fields,
    handle::{Handle, Shared},
    limits::Allowance,
    out::SLICES,
    reader::Fed,
    writer::Pseudo,
};
use crate::{clock::Nanos, proxy::http2::frame::Code};

const BUDGET: usize = 64 << 20;

const NOW: Nanos = Nanos(1_000_000_000);

/// One end, and what has come to it and was not read.
struct End {
    core: Shared,
    input: BytesMut,
    allowance: Rc<Allowance>,
}

impl End {
    fn new(role: Role) -> Self {
        let allowance = Allowance::new(BUDGET);
        let core = Core::new(role, allowance.clone(), NOW);
        Self { core: Rc::new(RefCell::new(core)), input: BytesMut::new(), allowance }
    }

    /// Bytes that it would write.
    fn written(&self, most: usize) -> Vec<u8> {
        let mut core = self.core.borrow_mut();
        let mut bytes: Vec<u8> = {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = core.out().slices(&mut slices);
            slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
        };
        bytes.truncate(most);
        core.wrote(bytes.len());
        bytes
    }

    /// All that it would write.
    fn all_written(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !self.core.borrow().out().is_empty() {
            bytes.extend(self.written(usize::MAX));
        }
        bytes
    }

    fn feed(&mut self) -> Fed {
        loop {
            let mut core = self.core.borrow_mut();
            core.settle();
            let fed = core.feed(&mut self.input, NOW);
            core.charge(0);
            if fed != Fed::More || core.accepted.len() > 31 {
                return fed;
            }
        }
    }

    fn give(&mut self, bytes: &[u8]) -> Fed {
        self.input.extend_from_slice(bytes);
        self.feed()
    }

    fn accept(&self) -> Option<(Handle, Accepted)> {
        let accepted = self.core.borrow_mut().accepted.pop_front()?;
        Some((Handle::new(&self.core, accepted.key), accepted))
    }

    fn open(&self, fields: &Fields, end: bool) -> Handle {
        let key = self.core.borrow_mut().open().expect("it takes streams");
        let handle = Handle::new(&self.core, key);
        assert!(handle.send_head(&Pseudo::Within, fields, end));
        handle
    }

    fn ended(&self) -> Option<Ended> {
        self.core.borrow().ended()
    }

    fn violation(&self) -> Option<Code> {
        match self.ended() {
            Some(Ended::Violation(code, _)) => Some(code),
            _ => None,
        }
    }
}

/// A client and a server that have greeted each other.
fn pair() -> (End, End) {
    let (mut client, mut server) = (End::new(Role::Client), End::new(Role::Server));
    // The preface is what the server was told by.
    let hello = client.written(24);
    assert_eq!(hello, crate::proxy::detect::H2_PREFACE);
    exchange(&mut client, &mut server);
    (client, server)
}

/// Moves bytes both ways until there are none.
fn exchange(one: &mut End, other: &mut End) {
    loop {
        let (there, back) = (one.all_written(), other.all_written());
        if there.is_empty() && back.is_empty() {
            return;
        }
        other.give(&there);
        one.give(&back);
    }
}

fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in lines {
        fields.add(name.as_bytes(), value.as_bytes());
    }
    fields
}

fn request(method: &str) -> Fields {
    fields(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", "/p")])
}

fn response(status: &str) -> Fields {
    fields(&[(":status", status)])
}

fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// What can be sent on a stream now that has much to say.
fn room(stream: &Handle) -> Option<usize> {
    room_for(stream, usize::MAX)
}

/// The same of one that has so much to say.
fn room_for(stream: &Handle, wanted: usize) -> Option<usize> {
    now(|cx| stream.poll_room(cx, wanted)).and_then(Result::ok)
}

fn text(fields: &Fields) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let lines = fields.iter().map(|field| format!("{}={}", text(field.name), text(field.value)));
    lines.collect::<Vec<_>>().join(" ")
}
