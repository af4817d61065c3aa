//! The windows of a wire: what it may send, and what its peer may.

use std::collections::{HashMap, HashSet};

use super::{super::frames, Shared, Wishes};

/// What may be sent, and who wants to.
#[derive(Default)]
pub(super) struct Credit {
    pub(super) connection: i64,
    pub(super) streams: HashMap<u32, i64>,
    pub(super) initial: i64,
    pub(super) max_frame: usize,
    pub(super) closed: bool,
    /// Bytes of DATA that were sent, paddings included.
    pub(super) sent: u64,
    /// Streams whose sender waits for a window.
    pub(super) waiting: HashSet<u32>,
}

/// What came and was not taken.
#[derive(Default)]
pub(super) struct Owed {
    pub(super) takes: HashMap<u32, bool>,
    pub(super) streams: HashMap<u32, u32>,
    pub(super) connection: HashMap<u32, u32>,
}

/// What the peer may send.
pub(super) struct Given {
    pub(super) connection: i64,
    pub(super) initial: i64,
    pub(super) streams: HashMap<u32, i64>,
    /// What a stream's window is once our SETTINGS are acknowledged.
    pub(super) told: Option<i64>,
}

impl Given {
    pub(super) fn new(wishes: &Wishes) -> Self {
        let told = wishes.settings.iter().find(|setting| setting.0 == 4).map(|setting| i64::from(setting.1));
        let connection = 65_535 + i64::from(wishes.window);
        Self { connection, initial: 65_535, streams: HashMap::new(), told }
    }

    pub(super) fn stream(&mut self, stream: u32) -> &mut i64 {
        let initial = self.initial;
        self.streams.entry(stream).or_insert(initial)
    }

    pub(super) fn give(&mut self, stream: u32, step: u32) {
        *self.stream(stream) += i64::from(step);
    }

    pub(super) fn spend(&mut self, stream: u32, length: u32, strict: bool) {
        let length = i64::from(length);
        self.connection -= length;
        *self.stream(stream) -= length;
        let fits = self.connection >= 0 && *self.stream(stream) >= 0;
        assert!(fits || !strict, "the proxy overdraws a window of stream {stream}");
    }

    pub(super) fn acknowledged(&mut self) {
        let Some(told) = self.told.take() else { return };
        let by = told - self.initial;
        self.initial = told;
        self.streams.values_mut().for_each(|stream| *stream += by);
    }
}

/// What came is to be given again, now or once it is taken.
pub(super) fn owe(shared: &Shared, stream: u32, length: u32, back: &mut Vec<u8>) {
    if length == 0 {
        return;
    }
    let mut given = shared.given.lock().expect("not poisoned");
    given.spend(stream, length, shared.wishes.strict);
    let mut owed = shared.owed.lock().expect("not poisoned");
    let takes = *owed.takes.entry(stream).or_insert(shared.wishes.takes);
    if takes || shared.wishes.shares {
        back.extend(frames::window(0, length));
        given.connection += i64::from(length);
    } else {
        *owed.connection.entry(stream).or_default() += length;
    }
    if takes {
        back.extend(frames::window(stream, length));
        given.give(stream, length);
    } else {
        *owed.streams.entry(stream).or_default() += length;
    }
}
