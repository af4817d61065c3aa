//! A connection: what both its directions know of it. No I/O, no clock: bytes that have come are given to it
//! ([`reader`](super::reader)), bytes that are to go are taken from it ([`writer`](super::writer)).
//!
//! ## What it may hold
//!
//! The window of a stream follows what the other side took of it: it is given again when its data has been passed on.
//! That of the connection is given again when data comes, so that a stream which nobody reads stalls no other. What
//! bounds a connection is the sum of its streams' windows ([`base_window`](super::limits::base_window)): the more streams there are, the less each may
//! fill. What the peer may still send, what has come and is here, heads and unsent bytes are charged to the pod, and
//! what the pod does not have is not given again.

use std::{
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::{
    calm::{Calm, Wear},
    fields::Fields,
    flow::{self, Credit, Window},
    limits::{Allowance, MAX_HEAD, MAX_STREAMS},
    message::{Malformed, Request},
    out::Out,
    room::Turns,
    streams::{Key, Stream, Streams},
};
use crate::{
    clock::Nanos,
    observe::fault::{Fault, MessagePart},
    proxy::{
        http2::{
            frame::{self, Code, block::Blocks, payload::Setting, write},
            hpack::{self, Decoder, Encoder, TABLE_SIZE},
        },
        share::Taken,
    },
};

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

impl Ended {
    /// What the peer did, if it broke the protocol.
    pub(super) fn fault(self) -> Option<Fault> {
        let Self::Violation(code, why) = self else { return None };
        // Why it cannot be is told of the block, not of the message.
        let why = if code == Code::COMPRESSION_ERROR { "a header block that cannot be decoded" } else { why };
        Some(Fault::new(MessagePart::Protocol, why))
    }
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

/// Where between two frames the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Between,
    /// Within DATA: what is still to come of its content, and of its padding.
    Data {
        stream: u32,
        content: u32,
        padding: u32,
        end: bool,
    },
    /// Within a frame that is not looked at.
    Skip {
        left: u32,
    },
}

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
    /// The most that it has been.
    pub(super) most_credit: usize,
    /// What the peer said as it ended the connection for something that was wrong (GOAWAY): its code, and the beginning of its text.
    pub(super) go_away_error: Option<(Code, String)>,
    /// The highest stream that the peer has opened, or the next one that we open.
    pub(super) highest: u32,
    pub(super) next: u32,
    pub(super) leaving: Leaving,
    pub(super) ended: Option<Ended>,
    pub(super) calm: Calm,
    pub(super) wear: Wear,
    /// No new streams are to be opened on it, for too many have been reset.
    pub(super) worn: bool,
    pub(super) allowance: Rc<Allowance>,
    pub(super) charged: Taken,
    /// Bytes of data and heads that are here, and by how much windows have grown.
    pub(super) held: usize,
    pub(super) grown: u32,
    /// The pod had not enough for the connection's window.
    pub(super) starved: bool,
    /// Whose turn it is to send.
    pub(super) turns: Turns,
    /// Streams that data has come for since the last read.
    pub(super) fresh: Vec<Key>,
    /// Streams whose last bytes are on their way, with what is freed when they have left.
    pub(super) departing: VecDeque<(u64, Taken)>,
    /// Fields whose memory can be used again.
    pub(super) spare: Vec<Fields>,
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
            most_credit: flow::INITIAL as usize,
            go_away_error: None,
            highest: 0,
            next: 1,
            leaving: Leaving::No,
            ended: None,
            calm: Calm::new(now),
            wear: Wear::new(now),
            worn: false,
            charged: allowance.bytes.take_none(),
            allowance,
            held: 0,
            grown: 0,
            starved: false,
            turns: Turns::default(),
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
        core.charge(0);
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

    /// New streams had better be opened on another connection: this one has borne as many resets as its peer may bear.
    pub(crate) fn is_worn(&self) -> bool {
        self.worn
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

    pub(crate) fn leaving(&self) -> Leaving {
        self.leaving
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
}

impl From<hpack::Error> for Unfit {
    fn from(_: hpack::Error) -> Self {
        Self::TooLarge
    }
}
