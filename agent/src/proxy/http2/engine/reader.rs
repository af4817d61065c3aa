//! What comes: bytes to frames, and what each of them does to streams, windows and the connection.
//!
//! DATA is passed on as it comes, in parts if need be; every other frame is waited for until it is whole. An error of one
//! stream resets that stream (RFC 9113, section 5.4.2); what no other frame could be understood after ends the
//! connection (section 5.4.1).

use bytes::{Buf, BytesMut};

use super::{
    calm::{Verdict, Work},
    core::{Core, Ended, LEAVING, Progress},
    limits::{GO_AWAY_TEXT, MAX_HEAD},
    state::Wrong,
};
use crate::{
    clock::Nanos,
    proxy::http2::frame::{self, Code, Error, HEAD, Head, Kind, block::Bounds, flags, payload, write},
};

/// A header block above this ends the connection: it would have to be held, or decoded, for nobody.
const BLOCK: Bounds = Bounds { bytes: 4 * MAX_HEAD, frames: 1024 };

/// Frames, and new streams among them, in one go. Then others have their turn.
const FRAMES_AT_ONCE: u32 = 512;
const STREAMS_AT_ONCE: usize = 32;

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
                let work = self.settings(&head, &payload)?;
                let paid = (0..work).map(|_| self.pay(Work::Control, now));
                paid.fold(Verdict::Go, |paid, now| if paid == Verdict::Go { now } else { paid })
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
                if went.code != Code::NO_ERROR {
                    let text = &went.debug[..went.debug.len().min(GO_AWAY_TEXT)];
                    self.go_away_error = Some((went.code, String::from_utf8_lossy(text).into_owned()));
                }
                input.advance(whole);
                self.peer_leaves(last);
                self.pay(Work::Control, now)
            }
            Kind::WindowUpdate => {
                let step = payload::window_update(&head, &input[HEAD..whole]);
                input.advance(whole);
                match step {
                    Ok(step) => self.window_update(head.stream, step, now)?,
                    Err(Error::Stream(code, why)) => self.fail(head.stream, Wrong::of(code, why), now)?,
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

    pub(super) fn skip(&mut self, left: u32) {
        self.progress = if left > 0 { Progress::Skip { left } } else { Progress::Between };
    }

    /// RFC 9113, section 3.4.
    fn first_is_settings(&self, head: &Head) -> Result<(), Error> {
        if self.remote.known || (head.kind == Kind::Settings && !head.has(flags::ACK)) {
            return Ok(());
        }
        Err(Error::Connection(Code::PROTOCOL_ERROR, "another frame than SETTINGS as the first one"))
    }
}
