//! What the peer is given: windows of streams and of the connection, and what the pod is charged for all that is here.
//!
//! See [`core`](super::core) for what follows what.

use super::{
    core::Core,
    flow,
    limits::{GROWTH, LARGEST_STREAM_WINDOW, LARGEST_WINDOW, OVERHEAD, base_window},
    streams::Key,
};
use crate::proxy::http2::frame::{payload::Setting, write};

impl Core {
    /// Charges the pod for what the connection holds now, whether it has that much or not: what it has not is not given
    /// from then on. `unread`: memory of what has come and was not looked at.
    pub(crate) fn charge(&mut self, unread: usize) {
        let open = usize::try_from(self.window.open()).unwrap_or(0);
        let tables = self.encoder.held() + self.decoder.held() + self.blocks.held();
        self.charged.set(OVERHEAD + tables + open + self.held + self.out.held() + unread);
    }

    /// The connection's window has been made larger, once.
    pub(crate) fn has_grown(&self) -> bool {
        self.window.size() > flow::INITIAL
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
}
