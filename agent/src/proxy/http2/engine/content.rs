//! DATA that has come: passed to its stream as it comes, in parts if need be, and counted in both windows.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    calm::{Verdict, Work},
    core::{Core, Progress},
    state::{EARLY_DATA, Part, Received, Wrong},
    streams::Key,
};
use crate::{
    clock::Nanos,
    observe::fault::MessagePart,
    proxy::http2::frame::{Code, Error, HEAD, Head, flags, payload, write},
};

/// A body of another length than was told (RFC 9113, section 8.1.1).
const LONGER: Wrong = Wrong::malformed(MessagePart::Framing, "a body that is longer than its Content-Length");
pub(super) const SHORTER: Wrong =
    Wrong::malformed(MessagePart::Framing, "a body that is shorter than its Content-Length");

impl Core {
    pub(super) fn begin_data(
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
                self.take_head_of_data(key, head.length, bytes, end).map_err(|wrong| Some((key, wrong)))
            }
            None => Err(None),
        };
        if let Err(wrong) = taken {
            self.skip(bytes + padding);
            let refused = match wrong {
                Some((key, wrong)) => self.break_stream(key, wrong, now),
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
    fn take_head_of_data(&mut self, key: Key, length: u32, content: u32, end: bool) -> Result<(), Wrong> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        match stream.state.receiving() {
            None => return Err(Wrong::of(Code::STREAM_CLOSED, "DATA behind the end of its stream")),
            Some(Part::Head) => return Err(Wrong::protocol(EARLY_DATA)),
            Some(Part::Body) => {}
        }
        let too_much = Wrong::of(Code::FLOW_CONTROL_ERROR, "more data than the stream's window");
        stream.window.receive(length).map_err(|_| too_much)?;
        // Padding is nobody's to take.
        stream.window.release(length - content);
        if let Some(left) = &mut stream.left {
            *left = left.checked_sub(content.into()).ok_or(LONGER)?;
            if end && *left > 0 {
                return Err(SHORTER);
            }
        }
        Ok(())
    }

    /// What there is of DATA.
    pub(super) fn more_data(&mut self, input: &mut BytesMut, now: Nanos) -> Verdict {
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
                Err(wrong) => return self.break_stream(key, wrong, now),
            }
        }
        Verdict::Go
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
