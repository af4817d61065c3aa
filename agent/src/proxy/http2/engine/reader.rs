//! What comes: bytes to frames, and what each of them does to streams, windows and the connection.
//!
//! DATA is passed on as it comes, in parts if need be; every other frame is waited for until it is whole. An error of one
//! stream resets that stream (RFC 9113, section 5.4.2); what no other frame could be understood after ends the
//! connection (section 5.4.1).

use bytes::{Buf, Bytes, BytesMut};

use super::{
    calm::{Verdict, Work},
    core::{Accepted, Core, Ended, LEAVING, Leaving, MAX_HEAD, MAX_STREAMS, Role, Unfit},
    flow,
    message::Reading,
    state::{Closed, Meaning, Received},
    streams::{Key, Stream, Waiting},
};
use crate::{
    clock::Nanos,
    proxy::http2::{
        frame::{
            self, Code, Error, HEAD, Head, Kind,
            block::Bounds,
            flags,
            payload::{self, Setting},
            write,
        },
        hpack,
    },
};

/// A header block above this ends the connection: it would have to be held, or decoded, for nobody.
const BLOCK: Bounds = Bounds { bytes: 4 * MAX_HEAD, frames: 1024 };

/// Interim responses to one request. (One every half minute for an hour.)
const MAX_INTERIMS: u32 = 120;

/// Interim responses that wait to be passed on.
const WAITING_INTERIMS: usize = 8;

/// Frames, and new streams among them, in one go. Then others have their turn.
const FRAMES_AT_ONCE: u32 = 512;
const STREAMS_AT_ONCE: usize = 32;

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

/// What came of the bytes that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// All that could be read was.
    All,
    /// There is more, for which others wait first.
    More,
    /// Nothing is to be read until then.
    Pause(Nanos),
    /// The connection has ended.
    End,
}

impl From<hpack::Error> for Unfit {
    fn from(_: hpack::Error) -> Self {
        Self::TooLarge
    }
}

impl Core {
    /// Takes frames from `input`.
    pub(crate) fn feed(&mut self, input: &mut BytesMut, now: Nanos) -> Fed {
        let mut fed = Fed::All;
        for frames in 0.. {
            if self.ended.is_some() {
                return Fed::End;
            }
            if frames == FRAMES_AT_ONCE || self.accepted.len() >= STREAMS_AT_ONCE {
                fed = Fed::More;
                break;
            }
            match self.step(input, now) {
                Ok(Some(Verdict::Go)) => {}
                Ok(Some(Verdict::Pause(until))) => {
                    fed = Fed::Pause(until);
                    break;
                }
                Ok(Some(Verdict::End)) => {
                    self.end(Ended::Violation(Code::ENHANCE_YOUR_CALM, "too many frames that carry nothing"));
                    return Fed::End;
                }
                Ok(None) => break,
                Err(Error::Connection(code, why) | Error::Stream(code, why)) => {
                    self.end(Ended::Violation(code, why));
                    return Fed::End;
                }
            }
        }
        self.replenish();
        self.adapt();
        fed
    }

    /// One frame, or a part of one; `None`: what there is of it is not enough.
    fn step(&mut self, input: &mut BytesMut, now: Nanos) -> Result<Option<Verdict>, Error> {
        match self.progress {
            Progress::Between => {}
            Progress::Data { .. } | Progress::Skip { .. } if input.is_empty() => return Ok(None),
            Progress::Data { .. } => return Ok(Some(self.more_data(input, now))),
            Progress::Skip { left } => {
                let skipped = left.min(input.len() as u32);
                input.advance(skipped as usize);
                self.progress =
                    if skipped < left { Progress::Skip { left: left - skipped } } else { Progress::Between };
                return Ok(Some(Verdict::Go));
            }
        }
        let Some(head) = Head::first(input) else { return Ok(None) };
        if let Err(error) = head.check(frame::MAX_FRAME_SIZE) {
            self.first_is_settings(&head)?;
            self.blocks.check(&head)?;
            let Error::Stream(code, _) = error else { return Err(error) };
            // PRIORITY of a wrong size.
            input.advance(HEAD);
            self.skip(head.length);
            return Ok(Some(self.refuse(head.stream, code, now)));
        }
        self.blocks.check(&head)?;
        self.first_is_settings(&head)?;
        if head.kind == Kind::Data {
            return self.begin_data(&head, input, now);
        }
        let whole = HEAD + head.length as usize;
        if input.len() < whole {
            if matches!(head.kind, Kind::Priority | Kind::Unknown(_)) {
                input.advance(HEAD);
                self.skip(head.length);
                return Ok(Some(self.pay(Work::Control, now)));
            }
            return Ok(None);
        }
        let verdict = match head.kind {
            Kind::Headers if head.has(flags::END_HEADERS) => {
                let headers = payload::headers(&head, &input[HEAD..whole])?;
                let block = &input[HEAD..whole][headers.block];
                let verdict = self.headers(head.stream, headers.end_stream, block, now)?;
                input.advance(whole);
                return Ok(Some(verdict));
            }
            Kind::Headers | Kind::Continuation => {
                let payload = input.split_to(whole).freeze().slice(HEAD..);
                // One that says little pays for it: what a block may have is bounded in bytes.
                let verdict = if head.kind == Kind::Continuation && payload.len() < 512 {
                    self.pay(Work::Control, now)
                } else {
                    Verdict::Go
                };
                match self.blocks.take(&head, &payload, &BLOCK)? {
                    Some(block) if verdict != Verdict::End => {
                        self.headers(block.stream, block.end_stream, &block.bytes, now)?
                    }
                    _ => verdict,
                }
            }
            Kind::Reset => {
                let code = payload::reset(&input[HEAD..whole])?;
                let verdict = self.peer_reset(head.stream, code, now)?;
                input.advance(whole);
                verdict
            }
            Kind::Settings => {
                let payload = input.split_to(whole).freeze().slice(HEAD..);
                self.settings(&head, &payload)?;
                self.pay(Work::Control, now)
            }
            Kind::Ping => {
                let data = payload::ping(&input[HEAD..whole])?;
                input.advance(whole);
                if !head.has(flags::ACK) {
                    write::ping(self.out.tail(), data, true);
                } else if data == LEAVING {
                    self.leave_finally();
                }
                self.pay(Work::Control, now)
            }
            Kind::GoAway => {
                let went = payload::go_away(&input[HEAD..whole])?;
                let last = went.last;
                input.advance(whole);
                self.peer_leaves(last);
                self.pay(Work::Control, now)
            }
            Kind::WindowUpdate => {
                let step = payload::window_update(&head, &input[HEAD..whole]);
                input.advance(whole);
                match step {
                    Ok(step) => self.window_update(head.stream, step, now)?,
                    Err(Error::Stream(code, _)) => self.fail(head.stream, code, now)?,
                    Err(error) => return Err(error),
                }
            }
            Kind::Priority | Kind::Unknown(_) => {
                input.advance(whole);
                self.pay(Work::Control, now)
            }
            // `check` has refused the one, and the other was dealt with.
            Kind::PushPromise | Kind::Data => Verdict::Go,
        };
        Ok(Some(verdict))
    }

    fn skip(&mut self, left: u32) {
        self.progress = if left > 0 { Progress::Skip { left } } else { Progress::Between };
    }

    fn pay(&mut self, work: Work, now: Nanos) -> Verdict {
        self.calm.spend(work, &self.allowance.calm, now)
    }

    /// RFC 9113, section 3.4.
    fn first_is_settings(&self, head: &Head) -> Result<(), Error> {
        if self.remote.known || (head.kind == Kind::Settings && !head.has(flags::ACK)) {
            return Ok(());
        }
        Err(Error::Connection(Code::PROTOCOL_ERROR, "SETTINGS do not come first"))
    }

    /// Whether the stream has never been opened.
    fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.highest,
            Role::Client => id.is_multiple_of(2) || id >= self.next,
        }
    }

    fn not_idle(&self, id: u32, why: &'static str) -> Result<(), Error> {
        if self.is_idle(id) { Err(Error::Connection(Code::PROTOCOL_ERROR, why)) } else { Ok(()) }
    }

    /// A stream error: only that stream ends.
    fn fail(&mut self, id: u32, code: Code, now: Nanos) -> Result<Verdict, Error> {
        self.not_idle(id, "an error on an idle stream")?;
        Ok(match self.streams.find(id) {
            Some(key) => self.break_stream(key, code, now),
            None => self.late(id, now),
        })
    }

    /// Resets a stream for what its peer did.
    fn break_stream(&mut self, key: Key, code: Code, now: Nanos) -> Verdict {
        let Some(stream) = self.streams.get(key) else { return Verdict::Go };
        if stream.state.closed().is_some() {
            return self.pay(Work::Control, now);
        }
        let id = stream.id;
        if let Some(stream) = self.streams.get_mut(key) {
            // What came before the error is no whole message.
            stream.whole = false;
        }
        self.lose(key, Closed::ByUs(code), true);
        self.refuse(id, code, now)
    }

    /// Resets a stream that is not there, or no longer.
    fn refuse(&mut self, id: u32, code: Code, now: Nanos) -> Verdict {
        write::reset(self.out.tail(), id, code);
        self.pay(Work::Reset, now)
    }

    /// What comes of a stream that was reset from this side. An endpoint that goes on with one response, say with interim
    /// ones without end, shares its connection with other requests, which must not end for it.
    fn pay_late(&mut self, now: Nanos) -> Verdict {
        match self.role {
            Role::Server => self.pay(Work::Control, now),
            Role::Client => Verdict::Go,
        }
    }

    /// Something has come for a stream that is closed. What was sent before its peer knew is nothing; else it is told.
    fn late(&mut self, id: u32, now: Nanos) -> Verdict {
        if self.streams.was_reset(id) {
            self.pay_late(now)
        } else {
            self.refuse(id, Code::STREAM_CLOSED, now)
        }
    }

    fn headers(&mut self, id: u32, end: bool, block: &[u8], now: Nanos) -> Result<Verdict, Error> {
        let mut reading = Reading::new(self.spare_fields());
        let fits = match self.decoder.decode(block, MAX_HEAD, &mut |field| reading.take(field)) {
            Ok(()) => true,
            Err(hpack::Error::TooLarge) => false,
            Err(hpack::Error::Compression(why)) => {
                return Err(Error::Connection(Code::COMPRESSION_ERROR, why));
            }
        };
        match self.streams.find(id) {
            Some(key) => {
                // Dropped without a word, like everything that its peer sent before it knew.
                if matches!(
                    self.streams.get(key).and_then(|stream| stream.state.closed()),
                    Some(Closed::ByUs(_))
                ) {
                    self.give_back(reading.fields);
                    return Ok(self.pay_late(now));
                }
                let before = self.streams.get(key).map(|stream| stream.state);
                Ok(match self.message(key, end, reading, fits) {
                    Ok(()) => {
                        self.calm.earn(0);
                        Verdict::Go
                    }
                    Err(code) => {
                        // What is no message has not ended the stream.
                        if let (Some(stream), Some(before)) = (self.streams.get_mut(key), before) {
                            stream.state = before;
                        }
                        self.break_stream(key, code, now)
                    }
                })
            }
            None if self.role == Role::Server && id % 2 == 1 && id > self.highest => {
                self.open_by_peer(id, end, reading, fits, now)
            }
            None => {
                self.not_idle(id, "HEADERS on a stream that cannot be opened")?;
                self.give_back(reading.fields);
                Ok(self.late(id, now))
            }
        }
    }

    fn open_by_peer(
        &mut self,
        id: u32,
        end: bool,
        reading: Reading,
        fits: bool,
        now: Nanos,
    ) -> Result<Verdict, Error> {
        self.highest = id;
        if matches!(self.leaving, Leaving::Final(_)) {
            // Its client has been told that nobody looks at it.
            self.give_back(reading.fields);
            return Ok(self.pay(Work::Control, now));
        }
        // Those that were closed a moment ago may still be held for a moment.
        if self.streams.open() >= MAX_STREAMS || self.streams.len() >= 2 * MAX_STREAMS {
            self.give_back(reading.fields);
            return Ok(self.refuse(id, Code::REFUSED_STREAM, now));
        }
        let mut stream = Stream::new(id, self.base, self.remote.window);
        if stream.state.receive(Received::Headers { interim: false, end }).is_err() {
            return Err(Error::Connection(Code::INTERNAL_ERROR, "a new stream takes no head"));
        }
        let (request, fit) = reading.into_request();
        let mut fit = fit.map_err(Unfit::Malformed);
        let verdict = if fit.is_ok() { Verdict::Go } else { self.pay(Work::Reset, now) };
        if !fits {
            fit = Err(Unfit::TooLarge);
        } else if end && request.facts.length.is_some_and(|length| length > 0) && fit.is_ok() {
            fit = Err(Unfit::Malformed(super::message::Malformed("a body that is shorter than its length")));
        }
        stream.whole = end;
        stream.left = if end || request.facts.connect { None } else { request.facts.length };
        stream.heads = request.fields.held();
        self.held += stream.heads;
        let key = self.streams.insert(stream);
        self.accepted.push_back(Accepted { key, request, fit });
        self.calm.opened();
        Ok(verdict)
    }

    /// The fields of a message of a stream that is there.
    fn message(&mut self, key: Key, end: bool, reading: Reading, fits: bool) -> Result<(), Code> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let interim = self.role == Role::Client && matches!(reading.status(), Some(100..200));
        let meaning = stream.state.receive(Received::Headers { interim, end })?;
        if !fits {
            return Err(Code::CANCEL);
        }
        let malformed = |_| Code::PROTOCOL_ERROR;
        match meaning {
            Meaning::Trailers | Meaning::Data => {
                let trailers = reading.into_trailers().map_err(malformed)?;
                if stream.left.is_some_and(|left| left > 0) {
                    return Err(Code::PROTOCOL_ERROR);
                }
                stream.heads += trailers.held();
                self.held += trailers.held();
                stream.trailers = (trailers.len() > 0).then_some(trailers);
            }
            Meaning::Interim => {
                let response = reading.into_response().map_err(malformed)?;
                stream.interims += 1;
                if stream.interims > MAX_INTERIMS {
                    return Err(Code::ENHANCE_YOUR_CALM);
                }
                if stream.interim.len() == WAITING_INTERIMS {
                    // Its client does not even take those that came before.
                    return Ok(());
                }
                stream.heads += response.fields.held();
                self.held += response.fields.held();
                stream.interim.push_back(response);
            }
            // Of a request it came when the stream was opened.
            Meaning::Head => {
                let response = reading.into_response().map_err(malformed)?;
                let no_body = stream.head_only || matches!(response.status, 204 | 304);
                stream.left = response.length.filter(|_| !no_body);
                if end && stream.left.is_some_and(|left| left > 0) {
                    return Err(Code::PROTOCOL_ERROR);
                }
                stream.heads += response.fields.held();
                self.held += response.fields.held();
                stream.response = Some(response);
            }
        }
        stream.whole |= end;
        stream.wake();
        self.forget_if_over(key);
        Ok(())
    }

    fn begin_data(
        &mut self,
        head: &Head,
        input: &mut BytesMut,
        now: Nanos,
    ) -> Result<Option<Verdict>, Error> {
        let padded = head.has(flags::PADDED);
        let first = input.get(HEAD).copied().filter(|_| padded);
        if padded && first.is_none() {
            return Ok(None);
        }
        let content = payload::content(head, first)?;
        self.not_idle(head.stream, "DATA on an idle stream")?;
        if self.window.receive(head.length).is_err() {
            return Err(Error::Connection(
                Code::FLOW_CONTROL_ERROR,
                "more data than the connection's window",
            ));
        }
        // It is given again at once: see [`core`](super::core).
        self.window.release(head.length);
        input.advance(content.start + HEAD);
        let (bytes, end) = (content.len() as u32, head.has(flags::END_STREAM));
        let padding = head.length - bytes - content.start as u32;
        let verdict = if bytes > 0 {
            self.calm.earn(content.len());
            Verdict::Go
        } else if end {
            Verdict::Go
        } else {
            self.pay(Work::Control, now)
        };
        if verdict == Verdict::End {
            return Ok(Some(verdict));
        }
        let taken = match self.streams.find(head.stream) {
            Some(key) => {
                self.take_head_of_data(key, head.length, bytes, end).map_err(|code| (Some(key), code))
            }
            None => Err((None, Code::STREAM_CLOSED)),
        };
        if let Err((key, code)) = taken {
            self.skip(bytes + padding);
            let refused = match key {
                Some(key) => self.break_stream(key, code, now),
                None => self.late(head.stream, now),
            };
            return Ok(Some(if verdict == Verdict::Go { refused } else { verdict }));
        }
        self.progress = Progress::Data { stream: head.stream, content: bytes, padding, end };
        // With nothing in it, it ends here.
        if bytes + padding == 0 || !input.is_empty() {
            let more = self.more_data(input, now);
            return Ok(Some(if verdict == Verdict::Go { more } else { verdict }));
        }
        Ok(Some(verdict))
    }

    /// Whether a stream may get DATA of this length.
    fn take_head_of_data(&mut self, key: Key, length: u32, content: u32, end: bool) -> Result<(), Code> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        match stream.state.receiving() {
            None => return Err(Code::STREAM_CLOSED),
            Some(super::state::Part::Head) => return Err(Code::PROTOCOL_ERROR),
            Some(super::state::Part::Body) => {}
        }
        stream.window.receive(length).map_err(|_| Code::FLOW_CONTROL_ERROR)?;
        // Padding is nobody's to take.
        stream.window.release(length - content);
        if let Some(left) = &mut stream.left {
            *left = left.checked_sub(content.into()).ok_or(Code::PROTOCOL_ERROR)?;
            if end && *left > 0 {
                return Err(Code::PROTOCOL_ERROR);
            }
        }
        Ok(())
    }

    /// What there is of DATA.
    fn more_data(&mut self, input: &mut BytesMut, now: Nanos) -> Verdict {
        let Progress::Data { stream: id, content, padding, end } = self.progress else { return Verdict::Go };
        let there = content.min(input.len() as u32);
        let data = if there > 0 { input.split_to(there as usize).freeze() } else { Bytes::new() };
        let skipped = padding.min(input.len() as u32);
        input.advance(skipped as usize);
        let (content, padding) = (content - there, padding - skipped);
        let over = content + padding == 0;
        self.progress =
            if over { Progress::Between } else { Progress::Data { stream: id, content, padding, end } };
        // It may have been reset within the frame.
        let Some(key) = self.streams.find(id) else { return Verdict::Go };
        let Some(stream) = self.streams.get_mut(key) else { return Verdict::Go };
        if stream.state.receiving().is_none() {
            return Verdict::Go;
        }
        if !data.is_empty() {
            self.held += data.len();
            stream.queue.push(data);
            if !stream.fresh {
                stream.fresh = true;
                self.fresh.push(key);
            }
            stream.wake();
        }
        if over {
            match stream.state.receive(Received::Data { end }) {
                Ok(_) if end => {
                    stream.whole = true;
                    stream.wake();
                    self.forget_if_over(key);
                }
                Ok(_) => {
                    // Padding alone may have used up half of a window.
                    if let Some(step) = stream.window.update(usize::MAX) {
                        write::window_update(self.out.tail(), id, step);
                    }
                }
                Err(code) => return self.break_stream(key, code, now),
            }
        }
        Verdict::Go
    }

    fn peer_reset(&mut self, id: u32, code: Code, now: Nanos) -> Result<Verdict, Error> {
        self.not_idle(id, "RST_STREAM on an idle stream")?;
        let Some(key) = self.streams.find(id) else { return Ok(self.pay(Work::Control, now)) };
        let open = self.streams.get(key).is_some_and(|stream| stream.state.closed().is_none());
        self.lose(key, Closed::ByPeer(code), false);
        // A client opens streams as it likes; a server can only reset what we have opened.
        Ok(match (self.role, open) {
            (Role::Server, true) => self.pay(Work::Reset, now),
            (Role::Client, true) => Verdict::Go,
            (_, false) => self.pay(Work::Control, now),
        })
    }

    fn settings(&mut self, head: &Head, payload: &[u8]) -> Result<(), Error> {
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
            return Ok(());
        }
        for setting in payload::settings(payload) {
            match setting? {
                Setting::HeaderTableSize(size) => self.encoder.set_max_table(size as usize),
                Setting::InitialWindowSize(window) => self.change_remote_window(window)?,
                Setting::MaxFrameSize(max) => self.remote.max_frame = max,
                Setting::MaxConcurrentStreams(max) => self.remote.max_streams = Some(max),
                Setting::EnableConnectProtocol(on) => {
                    if self.remote.connect && !on {
                        let why = "SETTINGS_ENABLE_CONNECT_PROTOCOL is taken back";
                        return Err(Error::Connection(Code::PROTOCOL_ERROR, why));
                    }
                    self.remote.connect = on;
                }
                Setting::EnablePush(true) if self.role == Role::Client => {
                    let why = "a server allows its client to push";
                    return Err(Error::Connection(Code::PROTOCOL_ERROR, why));
                }
                Setting::EnablePush(_)
                | Setting::MaxHeaderListSize(_)
                | Setting::NoRfc7540Priorities(_)
                | Setting::Unknown(..) => {}
            }
        }
        self.remote.known = true;
        write::settings_ack(self.out.tail());
        self.wake_watchers();
        Ok(())
    }

    fn change_remote_window(&mut self, window: u32) -> Result<(), Error> {
        let by = i64::from(window) - i64::from(self.remote.window);
        self.remote.window = window;
        for (_, stream) in self.streams.iter_mut() {
            let Ok(()) = stream.credit.adjust(by) else {
                let why = "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large";
                return Err(Error::Connection(Code::FLOW_CONTROL_ERROR, why));
            };
            if stream.waiting == Waiting::Stream && stream.credit.left() > 0 {
                stream.waiting = Waiting::Not;
                stream.wake();
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, step: u32, now: Nanos) -> Result<Verdict, Error> {
        if id == 0 {
            if self.credit.give(step) == Err(flow::Overflow) {
                let why = "the connection's window becomes too large";
                return Err(Error::Connection(Code::FLOW_CONTROL_ERROR, why));
            }
            // Those that wait for it have their turn when this is driven again.
            if !self.waiting.is_empty() {
                self.rouse();
            }
            return Ok(self.pay(Work::Control, now));
        }
        self.not_idle(id, "WINDOW_UPDATE on an idle stream")?;
        if let Some(key) = self.streams.find(id)
            && let Some(stream) = self.streams.get_mut(key)
        {
            if stream.credit.give(step) == Err(flow::Overflow) {
                return Ok(self.break_stream(key, Code::FLOW_CONTROL_ERROR, now));
            }
            if stream.waiting == Waiting::Stream && stream.credit.left() > 0 {
                stream.waiting = Waiting::Not;
                stream.wake();
            }
        }
        Ok(self.pay(Work::Control, now))
    }

    /// The peer opens and takes no new streams.
    fn peer_leaves(&mut self, last: u32) {
        if self.role == Role::Server {
            // Clients have nothing to say by it: nobody opens streams to them.
            return;
        }
        let last = self.remote.last.map_or(last, |before| before.min(last));
        self.remote.last = Some(last);
        let unprocessed: Vec<_> =
            self.streams.iter_mut().filter(|(_, stream)| stream.id > last).map(|(key, _)| key).collect();
        for key in unprocessed {
            self.lose(key, Closed::Unprocessed, false);
        }
        self.wake_watchers();
    }

    /// What was not taken since the last read gets memory of its own, so that no buffer is kept for it.
    pub(crate) fn settle(&mut self) {
        while let Some(key) = self.fresh.pop() {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.fresh = false;
                stream.queue.settle();
            }
        }
    }
}
