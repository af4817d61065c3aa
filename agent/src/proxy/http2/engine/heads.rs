//! Header blocks that have come: heads of requests and responses, interim ones, trailers.
//!
//! Every block is decoded to its end, whatever becomes of its message: the tables of both ends have to stay in step.

use super::{
    calm::{Verdict, Work},
    content::SHORTER,
    core::{Accepted, Core, Leaving, Role, Unfit},
    limits::{MAX_HEAD, MAX_STREAMS, TOO_LARGE},
    message::{Malformed, Reading},
    state::{Closed, Meaning, Received, Wrong},
    streams::{Key, Stream},
};
use crate::{
    clock::Nanos,
    observe::fault::{Fault, MessagePart},
    proxy::http2::{
        frame::{Code, Error},
        hpack,
    },
};

/// Interim responses to one request. (One every half minute for an hour.)
const MAX_INTERIMS: u32 = 120;

/// Interim responses that wait to be passed on.
const WAITING_INTERIMS: usize = 8;

impl Core {
    pub(super) fn headers(&mut self, id: u32, end: bool, block: &[u8], now: Nanos) -> Result<Verdict, Error> {
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
                    Err(wrong) => {
                        // What is no message has not ended the stream.
                        if let (Some(stream), Some(before)) = (self.streams.get_mut(key), before) {
                            stream.state = before;
                        }
                        self.break_stream(key, wrong, now)
                    }
                })
            }
            None if self.role == Role::Server && id % 2 == 1 && id > self.highest => {
                self.open_by_peer(id, end, reading, fits, now)
            }
            None if self.streams.was_passed_over(id) => {
                let why = "a stream with a lower number than one before";
                Err(Error::Connection(Code::PROTOCOL_ERROR, why))
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
        self.streams.note_opened(self.highest, id);
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
            fit = Err(Unfit::Malformed(Malformed(SHORTER.fault.what)));
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
    fn message(&mut self, key: Key, end: bool, reading: Reading, fits: bool) -> Result<(), Wrong> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let interim = self.role == Role::Client && matches!(reading.status(), Some(100..200));
        let meaning = stream.state.receive(Received::Headers { interim, end })?;
        if !fits {
            let fault = Fault::new(MessagePart::Size, TOO_LARGE);
            return Err(Wrong { code: Code::CANCEL, fault });
        }
        let malformed = |Malformed(what)| Wrong::malformed(MessagePart::Header, what);
        match meaning {
            Meaning::Trailers | Meaning::Data => {
                let trailers = reading.into_trailers().map_err(malformed)?;
                if stream.left.is_some_and(|left| left > 0) {
                    return Err(SHORTER);
                }
                stream.heads += trailers.held();
                self.held += trailers.held();
                stream.trailers = (trailers.len() > 0).then_some(trailers);
            }
            Meaning::Interim => {
                let response = reading.into_response().map_err(malformed)?;
                stream.interims += 1;
                if stream.interims > MAX_INTERIMS {
                    let what = "interim responses without end";
                    return Err(Wrong::of(Code::ENHANCE_YOUR_CALM, what));
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
                    return Err(SHORTER);
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
}
