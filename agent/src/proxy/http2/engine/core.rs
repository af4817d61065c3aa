//! A connection: what both its directions know of it. No I/O, no clock: bytes that have come are given to it
//! ([`reader`](super::reader)), bytes that are to go are taken from it ([`writer`](super::writer)).
//!
//! ## What it may hold
//!
//! The window of a stream follows what the other side took of it: it is given again when its data has been passed on.
//! That of the connection is given again when data comes, so that a stream which nobody reads stalls no other. What
//! bounds a connection is the sum of its streams' windows ([`base_window`]): the more streams there are, the less each may
//! fill. What the peer may still send, what has come and is here, heads and unsent bytes are charged to the pod, and
//! what the pod does not have is not given again.

use std::{
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::{
    calm::{self, Calm},
    fields::Fields,
    flow::{self, Credit, Window},
    message::{Malformed, Request},
    out::Out,
    reader::Progress,
    state::Closed,
    streams::{Key, Stream, Streams, Waiting},
};
use crate::{
    clock::Nanos,
    proxy::{
        http2::{
            frame::{self, Code, block::Blocks, payload::Setting, write},
            hpack::{Decoder, Encoder, TABLE_SIZE},
        },
        share::{Share, Taken},
    },
};

/// Streams that a client may have open on one connection. gRPC servers have no limit of their own by default, and clients
/// put everything on one connection, so a low one would be felt; each stream costs a few KiB.
pub(crate) const MAX_STREAMS: usize = 1024;

/// The most that a head may have, as the RFC counts it. (The same as over HTTP/1.)
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// Unsent bytes of messages above which streams wait. More than the kernel takes in one write, so that it is never idle.
pub(crate) const OUT_LIMIT: usize = 128 * 1024;

/// What one stream may add to them while others wait.
const TURN: usize = 16 * 1024;

/// Unsent bytes above which nothing more is read: they can only be answers to what was read.
pub(crate) const OUT_STOP: usize = OUT_LIMIT + 128 * 1024;

/// The largest windows that a peer is given which fills smaller ones: an endpoint two milliseconds away can send
/// 128 MiB/s on one stream.
const LARGEST_STREAM_WINDOW: u32 = 256 * 1024;
const LARGEST_WINDOW: u32 = 1024 * 1024;

/// By how much the windows of all streams together may have grown.
const GROWTH: u32 = 4 * 1024 * 1024;

/// Of HPACK's tables, of frames that are not whole, and of the rest.
const OVERHEAD: usize = 4 * 1024;

/// What the window of a stream begins with where there are so many: together no more than 8 MiB.
pub(crate) const fn base_window(streams: usize) -> u32 {
    match streams {
        0..=128 => flow::INITIAL,
        129..=512 => 16 * 1024,
        _ => 8 * 1024,
    }
}

/// What all HTTP/2 connections of a pod on a worker may use together.
pub(crate) struct Allowance {
    /// Bytes.
    pub(crate) bytes: Rc<Share>,
    pub(crate) calm: calm::Shared,
}

impl Allowance {
    pub(crate) fn new(bytes: usize) -> Rc<Self> {
        Rc::new(Self { bytes: Share::new(bytes), calm: calm::Shared::new(Nanos::now()) })
    }

    /// There is plenty: windows may grow.
    fn is_ample(&self) -> bool {
        self.bytes.left() > self.bytes.limit() / 2
    }

    /// What is left is for what goes on already.
    pub(crate) fn is_scarce(&self) -> bool {
        self.bytes.left() < self.bytes.limit() / 4
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The peer opens streams.
    Server,
    /// We do.
    Client,
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer broke the protocol, which it is told with GOAWAY.
    Violation(Code, &'static str),
    /// The peer, or the network, has closed it.
    Lost,
    /// Everything was done.
    Finished,
}

/// A request that has come.
pub(crate) struct Accepted {
    pub(crate) key: Key,
    pub(crate) request: Request,
    pub(crate) fit: Result<(), Unfit>,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0}")]
    Malformed(Malformed),
    /// Larger than [`MAX_HEAD`].
    #[error("its head is larger than {MAX_HEAD} bytes")]
    TooLarge,
}

/// What the peer has told of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    /// Its first SETTINGS have come.
    pub(crate) known: bool,
    pub(crate) window: u32,
    pub(crate) max_frame: u32,
    /// `None`: it sets no limit, or has not told.
    pub(crate) max_streams: Option<u32>,
    pub(crate) connect: bool,
    /// The last stream that it has looked at.
    pub(crate) last: Option<u32>,
}

/// How far the end of a connection that is ended in order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    No,
    /// GOAWAY was sent without naming a last stream, and PING behind it: streams that the client has opened before it hears
    /// of that are still taken. Then is when the answer to the PING is no longer waited for.
    Announced,
    /// GOAWAY was sent with the last stream.
    Final(u32),
}

/// The answer to it ends the first part of leaving.
pub(super) const LEAVING: [u8; 8] = *b"leaving!";

pub(crate) struct Core {
    pub(super) role: Role,
    pub(super) streams: Streams,
    /// Streams that were opened by the peer and not yet looked at.
    pub(super) accepted: VecDeque<Accepted>,
    pub(super) out: Out,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) blocks: Blocks,
    pub(super) progress: Progress,
    /// What windows of streams begin with, as the peer has acknowledged it, and what it is to acknowledge.
    pub(super) base: u32,
    pub(super) changing: Option<u32>,
    /// SETTINGS that it has not acknowledged.
    pub(super) unacknowledged: u32,
    pub(super) remote: Remote,
    pub(super) window: Window,
    pub(super) credit: Credit,
    /// The highest stream that the peer has opened, or the next one that we open.
    pub(super) highest: u32,
    pub(super) next: u32,
    pub(super) leaving: Leaving,
    pub(super) ended: Option<Ended>,
    pub(super) calm: Calm,
    pub(super) allowance: Rc<Allowance>,
    charged: Taken,
    /// Bytes of data and heads that are here, and by how much windows have grown.
    pub(super) held: usize,
    pub(super) grown: u32,
    /// The pod had not enough for the connection's window.
    pub(super) starved: bool,
    /// Streams that wait for room, the first one first.
    pub(super) waiting: VecDeque<Key>,
    /// Streams that data has come for since the last read.
    pub(super) fresh: Vec<Key>,
    /// Streams whose last bytes are on their way, with what is freed when they have left.
    departing: VecDeque<(u64, Taken)>,
    /// Fields whose memory can be used again.
    spare: Vec<Fields>,
    driver: Option<Waker>,
    /// The driver was told that there is something to do, and has not yet looked.
    roused: bool,
    /// Who waits for the peer's SETTINGS.
    pub(super) watchers: Vec<Waker>,
}

impl Core {
    pub(crate) fn new(role: Role, allowance: Rc<Allowance>, now: Nanos) -> Self {
        let mut core = Self {
            role,
            streams: Streams::default(),
            accepted: VecDeque::new(),
            out: Out::default(),
            encoder: Encoder::new(TABLE_SIZE),
            decoder: Decoder::new(TABLE_SIZE),
            blocks: Blocks::default(),
            progress: Progress::Between,
            base: flow::INITIAL,
            changing: None,
            unacknowledged: 0,
            remote: Remote {
                known: false,
                window: flow::INITIAL,
                max_frame: frame::MAX_FRAME_SIZE,
                max_streams: None,
                connect: false,
                last: None,
            },
            window: Window::new(flow::INITIAL),
            credit: Credit::new(flow::INITIAL),
            highest: 0,
            next: 1,
            leaving: Leaving::No,
            ended: None,
            calm: Calm::new(now),
            charged: allowance.bytes.take_none(),
            allowance,
            held: 0,
            grown: 0,
            starved: false,
            waiting: VecDeque::new(),
            fresh: Vec::new(),
            departing: VecDeque::new(),
            spare: Vec::new(),
            driver: None,
            roused: false,
            watchers: Vec::new(),
        };
        let list = Setting::MaxHeaderListSize(MAX_HEAD as u32);
        match role {
            Role::Server => core.send_settings(&[
                Setting::MaxConcurrentStreams(MAX_STREAMS as u32),
                list,
                Setting::EnableConnectProtocol(true),
            ]),
            Role::Client => {
                core.out.tail().extend_from_slice(crate::proxy::detect::H2_PREFACE);
                core.send_settings(&[Setting::EnablePush(false), list]);
            }
        }
        core.charge();
        core
    }

    pub(super) fn send_settings(&mut self, settings: &[Setting]) {
        write::settings(self.out.tail(), settings);
        self.unacknowledged += 1;
    }

    /// How many streams are open, or held.
    #[cfg(test)]
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn remote(&self) -> &Remote {
        &self.remote
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether a stream may be opened on it, as far as its peer has not said that it takes no more.
    pub(crate) fn takes_streams(&self) -> bool {
        self.ended.is_none() && self.remote.last.is_none() && self.next <= flow::LARGEST
    }

    /// Whether the peer takes extended CONNECT, once its settings have come; `None`: the connection ended before.
    pub(crate) fn poll_connect(&mut self, cx: &Context<'_>) -> Poll<Option<bool>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        if self.remote.known {
            return Poll::Ready(Some(self.remote.connect));
        }
        self.watchers.push(cx.waker().clone());
        Poll::Pending
    }

    /// The next request that has come.
    pub(crate) fn accept(&mut self) -> Option<Accepted> {
        self.accepted.pop_front()
    }

    /// Its peer has not taken what it was sent: a further stream would wait behind others.
    pub(crate) fn is_stuck(&self) -> bool {
        self.credit.left() == 0 || self.out.len() >= OUT_LIMIT
    }

    /// Whoever drives the connection is to be woken when it has something to do.
    pub(crate) fn set_driver(&mut self, waker: &Waker) {
        self.roused = false;
        if !self.driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            self.driver = Some(waker.clone());
        }
    }

    pub(super) fn rouse(&mut self) {
        if !self.roused
            && let Some(driver) = &self.driver
        {
            self.roused = true;
            driver.wake_by_ref();
        }
    }

    pub(super) fn wake_watchers(&mut self) {
        self.watchers.drain(..).for_each(Waker::wake);
    }

    /// The fields that were used last are used again.
    pub(super) fn spare_fields(&mut self) -> Fields {
        self.spare.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&mut self, mut fields: Fields) {
        const SPARE: usize = 32;
        fields.clear();
        if self.spare.len() < SPARE && fields.held() > 0 {
            self.spare.push(fields);
        }
    }

    /// Charges the pod for what the connection holds now, whether it has that much or not: what it has not is not given
    /// from then on.
    pub(crate) fn charge(&mut self) {
        let open = usize::try_from(self.window.open()).unwrap_or(0);
        let tables = self.encoder.held() + self.decoder.held() + self.blocks.held();
        self.charged.set(OVERHEAD + tables + open + self.held + self.out.held());
    }

    /// What of the connection's window is to be given again, as far as the pod has it.
    pub(super) fn replenish(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if self.window.is_full() && self.window.size() * 2 <= LARGEST_WINDOW && self.allowance.is_ample() {
            self.window.resize(self.window.size() * 2);
        } else if self.window.size() > flow::INITIAL && self.allowance.is_scarce() {
            self.window.resize(flow::INITIAL);
        }
        let left = self.allowance.bytes.left();
        if let Some(step) = self.window.update(left) {
            write::window_update(self.out.tail(), 0, step);
        }
        self.starved =
            self.window.open() < i64::from(self.window.size() / 4) && left < self.window.size() as usize;
    }

    /// The more streams there are, the smaller their windows. The peer is asked to change them one time after the other.
    pub(super) fn adapt(&mut self) {
        if self.changing.is_some() || self.ended.is_some() || !self.remote.known {
            return;
        }
        let streams = self.streams.open();
        let wanted = base_window(streams);
        // Not back again for some streams less.
        if wanted < self.base || (wanted > self.base && base_window(streams * 4) > self.base) {
            self.send_settings(&[Setting::InitialWindowSize(wanted)]);
            self.changing = Some(wanted);
            if wanted > self.base {
                // It may use them before we hear that it knows.
                self.change_base(wanted);
            }
        }
    }

    pub(super) fn change_base(&mut self, base: u32) {
        let by = i64::from(base) - i64::from(self.base);
        self.base = base;
        for (_, stream) in self.streams.iter_mut() {
            stream.window.adjust(by);
        }
    }

    /// So much of a stream's data was passed on: its window is given again.
    pub(crate) fn release(&mut self, key: Key, amount: usize) {
        self.held -= amount;
        let ample = self.allowance.is_ample();
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.window.release(amount as u32);
        if stream.has_all() {
            return;
        }
        let size = stream.window.size();
        if stream.window.is_full()
            && size >= flow::INITIAL
            && size * 2 <= LARGEST_STREAM_WINDOW
            && ample
            && self.grown + size <= GROWTH
        {
            self.grown += size;
            stream.window.resize(size * 2);
        }
        if let Some(step) = stream.window.update(usize::MAX) {
            write::window_update(self.out.tail(), stream.id, step);
            self.rouse();
        }
    }

    /// Throws away what has come for a stream.
    pub(super) fn discard(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        self.held -= stream.queue.len() + std::mem::take(&mut stream.heads);
        stream.window.release(stream.queue.len() as u32);
        stream.queue.clear();
        stream.interim.clear();
        stream.response = None;
        stream.trailers = None;
    }

    /// What a stream has come to its end with is freed, if nobody holds it.
    pub(super) fn forget_if_over(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.state.closed().is_none() {
            return;
        }
        let held = stream.held;
        self.streams.note_closed(key);
        if held {
            return;
        }
        let Some(stream) = self.streams.get(key) else { return };
        let grown = stream.window.size().saturating_sub(self.base);
        self.grown = self.grown.saturating_sub(grown);
        self.discard(key);
        self.streams.remove(key);
        if self.leaving != Leaving::No || self.changing.is_none() && self.base != flow::INITIAL {
            self.rouse();
        }
    }

    /// Frees `place` when everything that was said so far has left.
    pub(crate) fn depart(&mut self, place: Taken) {
        if !self.out.is_empty() && self.ended.is_none() {
            self.departing.push_back((self.out.end(), place));
        }
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, amount: usize) {
        self.out.advance(amount);
        let written = self.out.written();
        while self.departing.front().is_some_and(|(end, _)| *end <= written) {
            self.departing.pop_front();
        }
    }

    /// Streams that wait for room are woken in their turn, a few at a time. True: there are more, and room for them.
    pub(crate) fn serve_waiting(&mut self) -> bool {
        const AT_ONCE: usize = 8;
        for _ in 0..AT_ONCE {
            if self.is_stuck() {
                return false;
            }
            let Some(key) = self.waiting.pop_front() else { return false };
            if let Some(stream) = self.streams.get_mut(key)
                && stream.waiting == Waiting::Connection
            {
                stream.waiting = Waiting::Not;
                stream.wake();
            }
        }
        !self.waiting.is_empty()
    }

    /// How much of a message can be sent on a stream now.
    pub(crate) fn room(&self, key: Key) -> usize {
        let Some(stream) = self.streams.get(key) else { return 0 };
        let turn = if self.waiting.is_empty() { OUT_LIMIT } else { TURN };
        let left = OUT_LIMIT.saturating_sub(self.out.len());
        stream.credit.left().min(self.credit.left()).min(left).min(turn)
    }

    /// A head can be sent on a stream now, however large the windows are.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    /// The stream is woken when there may be room. `data`: windows count, too.
    pub(crate) fn wait_for_room(&mut self, key: Key, data: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.waiting == Waiting::Connection {
            return;
        }
        if data && stream.credit.left() == 0 {
            stream.waiting = Waiting::Stream;
        } else {
            stream.waiting = Waiting::Connection;
            self.waiting.push_back(key);
            // Should there be room by now.
            self.rouse();
        }
    }

    /// The connection is to end when its streams have: the peer opens no more.
    pub(crate) fn leave(&mut self) {
        if self.leaving != Leaving::No || self.ended.is_some() {
            return;
        }
        self.leaving = Leaving::Announced;
        write::go_away(self.out.tail(), flow::LARGEST, Code::NO_ERROR, b"");
        write::ping(self.out.tail(), LEAVING, false);
        self.rouse();
    }

    /// The second part of leaving: no stream that comes now is taken.
    pub(crate) fn leave_finally(&mut self) {
        if self.leaving == Leaving::Announced && self.ended.is_none() {
            self.leaving = Leaving::Final(self.highest);
            write::go_away(self.out.tail(), self.highest, Code::NO_ERROR, b"");
            self.rouse();
        }
    }

    pub(crate) fn leaving(&self) -> Leaving {
        self.leaving
    }

    /// The last stream of a connection that leaves has ended.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.leaving, Leaving::Final(_)) && self.streams.len() == 0
    }

    /// The connection ends, and with it its streams. With a violation the peer is told why.
    pub(crate) fn end(&mut self, why: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        match why {
            Ended::Violation(code, debug) => {
                let last = match self.role {
                    Role::Server => self.highest,
                    Role::Client => 0,
                };
                write::go_away(self.out.tail(), last, code, debug.as_bytes());
            }
            Ended::Lost => self.out.discard(),
            Ended::Finished => {}
        }
        self.accepted.clear();
        self.departing.clear();
        let broken = matches!(why, Ended::Violation(..));
        let keys: Vec<_> = self.streams.iter_mut().map(|(key, _)| key).collect();
        for key in keys {
            self.lose(key, Closed::Lost, broken);
        }
        self.waiting.clear();
        self.wake_watchers();
        self.rouse();
    }

    /// A stream is closed by what happens to it from outside.
    pub(super) fn lose(&mut self, key: Key, how: Closed, broken: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.state.close(how) {
            stream.broken |= broken;
            stream.wake();
            if !stream.whole {
                self.discard(key);
            }
        }
        self.forget_if_over(key);
    }

    pub(crate) fn stream(&self, key: Key) -> Option<&Stream> {
        self.streams.get(key)
    }

    pub(crate) fn stream_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.streams.get_mut(key)
    }

    pub(crate) fn out(&self) -> &Out {
        &self.out
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The pod had not enough for the connection's window when it was last asked.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Everything was written: what is only kept to be used again goes, if nothing is under way.
    pub(crate) fn rest(&mut self) {
        if self.streams.len() == 0 {
            self.out.rest();
            self.spare.truncate(1);
        }
    }
}
