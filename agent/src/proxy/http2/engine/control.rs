//! Frames that have come and carry no message: RST_STREAM, SETTINGS, WINDOW_UPDATE, GOAWAY.

use super::{
    calm::{Verdict, Work},
    core::{Core, Role},
    flow,
    state::{Closed, Wrong},
    streams::Waiting,
};
use crate::{
    clock::Nanos,
    proxy::http2::frame::{
        Code, Error, Head, flags,
        payload::{self, Setting},
        write,
    },
};

/// Settings that cost about as much as a frame that carries nothing, and streams whose windows change.
const ENTRIES: u32 = 16;
const STREAMS: usize = 16;

impl Core {
    pub(super) fn peer_reset(&mut self, id: u32, code: Code, now: Nanos) -> Result<Verdict, Error> {
        self.not_idle(id, "RST_STREAM on an idle stream")?;
        let Some(key) = self.streams.find(id) else { return Ok(self.pay(Work::Control, now)) };
        let open = self.streams.get(key).is_some_and(|stream| stream.state.closed().is_none());
        self.lose(key, Closed::ByPeer(code), None);
        // It has had enough of what comes on this connection: Node's server says so to new streams while those that it has
        // take more memory than a connection may (`maxSessionMemory`), which is less when many clients share it.
        self.worn |= self.role == Role::Client && code == Code::ENHANCE_YOUR_CALM;
        // A client opens streams as it likes; a server can only reset what we have opened.
        Ok(match (self.role, open) {
            (Role::Server, true) => self.pay(Work::Reset, now),
            (Role::Client, true) => Verdict::Go,
            (_, false) => self.pay(Work::Control, now),
        })
    }

    /// What the peer's settings are now. Returns how many frames' worth of work that was.
    pub(super) fn settings(&mut self, head: &Head, payload: &[u8]) -> Result<u32, Error> {
        if head.has(flags::ACK) {
            let Some(left) = self.unacknowledged.checked_sub(1) else {
                return Err(Error::Connection(Code::PROTOCOL_ERROR, "an acknowledgement of nothing"));
            };
            self.unacknowledged = left;
            if left == 0
                && let Some(base) = self.changing.take()
                && base < self.base
            {
                self.change_base(base);
            }
            return Ok(1);
        }
        let (mut entries, mut window_now) = (0, self.remote.window);
        for setting in payload::settings(payload) {
            entries += 1;
            match setting? {
                Setting::HeaderTableSize(size) => self.encoder.set_max_table(size as usize),
                Setting::InitialWindowSize(window) => window_now = window,
                Setting::MaxFrameSize(max) => self.remote.max_frame = max,
                Setting::MaxConcurrentStreams(max) => self.remote.max_streams = Some(max),
                Setting::EnableConnectProtocol(on) => {
                    if self.remote.connect && !on {
                        let why = "a SETTINGS_ENABLE_CONNECT_PROTOCOL that is taken back";
                        return Err(Error::Connection(Code::PROTOCOL_ERROR, why));
                    }
                    self.remote.connect = on;
                }
                Setting::EnablePush(true) if self.role == Role::Client => {
                    let why = "a SETTINGS_ENABLE_PUSH of 1 from a server";
                    return Err(Error::Connection(Code::PROTOCOL_ERROR, why));
                }
                Setting::EnablePush(_)
                | Setting::MaxHeaderListSize(_)
                | Setting::NoRfc7540Priorities(_)
                | Setting::Unknown(..) => {}
            }
        }
        let mut work = 1 + entries / ENTRIES;
        // Once for all that it says of this: each time all streams are gone through.
        if window_now != self.remote.window {
            work += (self.streams.len() / STREAMS) as u32;
            self.change_remote_window(window_now)?;
        }
        self.remote.known = true;
        write::settings_ack(self.out.tail());
        self.wake_watchers();
        Ok(work)
    }

    fn change_remote_window(&mut self, window: u32) -> Result<(), Error> {
        let by = i64::from(window) - i64::from(self.remote.window);
        self.remote.window = window;
        for (_, stream) in self.streams.iter_mut() {
            let Ok(()) = stream.credit.adjust(by) else {
                let why = "a SETTINGS_INITIAL_WINDOW_SIZE that makes a window too large";
                return Err(Error::Connection(Code::FLOW_CONTROL_ERROR, why));
            };
            if stream.waiting == Waiting::Stream && stream.credit.left() > 0 {
                stream.waiting = Waiting::Not;
                stream.wake();
            }
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, id: u32, step: u32, now: Nanos) -> Result<Verdict, Error> {
        if id == 0 {
            if self.credit.give(step) == Err(flow::Overflow) {
                let why = "a WINDOW_UPDATE that makes the connection's window too large";
                return Err(Error::Connection(Code::FLOW_CONTROL_ERROR, why));
            }
            self.most_credit = self.most_credit.max(self.credit.left());
            self.look_again();
            return Ok(self.pay(Work::Control, now));
        }
        self.not_idle(id, "WINDOW_UPDATE on an idle stream")?;
        if let Some(key) = self.streams.find(id)
            && let Some(stream) = self.streams.get_mut(key)
        {
            if stream.credit.give(step) == Err(flow::Overflow) {
                let what = "a WINDOW_UPDATE that makes the stream's window too large";
                return Ok(self.break_stream(key, Wrong::of(Code::FLOW_CONTROL_ERROR, what), now));
            }
            match stream.waiting {
                Waiting::Stream if stream.credit.left() > 0 => {
                    stream.waiting = Waiting::Not;
                    stream.wake();
                }
                Waiting::Connection => self.look_again(),
                _ => {}
            }
        }
        Ok(self.pay(Work::Control, now))
    }

    /// The peer opens and takes no new streams.
    pub(super) fn peer_leaves(&mut self, last: u32) {
        if self.role == Role::Server {
            // Clients have nothing to say by it: nobody opens streams to them.
            return;
        }
        let last = self.remote.last.map_or(last, |before| before.min(last));
        self.remote.last = Some(last);
        let unprocessed: Vec<_> =
            self.streams.iter_mut().filter(|(_, stream)| stream.id > last).map(|(key, _)| key).collect();
        for key in unprocessed {
            self.lose(key, Closed::Unprocessed, None);
        }
        self.wake_watchers();
    }
}
