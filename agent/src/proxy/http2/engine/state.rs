//! The states of a stream (RFC 9113, section 5.1), and every way from one to another. Pure.
//!
//! ```text
//!                  HEADERS
//!        idle ------------------> Open
//!                                 /  \
//!              END_STREAM sent   /    \   END_STREAM received
//!                               v      v
//!                  HalfClosedLocal    HalfClosedRemote
//!                               \      /
//!          END_STREAM received   \    /   END_STREAM sent
//!                                 v  v
//!                               Closed  <----- RST_STREAM either way, from any of them
//! ```
//!
//! An idle stream is one that has no state yet. Reserved streams do not occur: nobody may push here. Each direction that
//! is open also knows how far its message has come: its head, which interim ones may precede, then its body.

use super::super::frame::Code;
use crate::observe::fault::{Fault, MessagePart};

/// DATA where a message has not begun.
pub(super) const EARLY_DATA: &str = "DATA ahead of its HEADERS";

/// An error of a stream (RFC 9113, section 5.4.2): its code, and what its peer has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) code: Code,
    pub(crate) fault: Fault,
}

impl Wrong {
    pub(crate) const fn of(code: Code, what: &'static str) -> Self {
        Self { code, fault: Fault::new(MessagePart::Protocol, what) }
    }

    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self::of(Code::PROTOCOL_ERROR, what)
    }

    /// Of a message that is malformed (RFC 9113, section 8.1.1).
    pub(crate) const fn malformed(part: MessagePart, what: &'static str) -> Self {
        Self { code: Code::PROTOCOL_ERROR, fault: Fault::new(part, what) }
    }
}

/// How far the message of a direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its head is awaited.
    Head,
    /// Data may come, and trailers at its end.
    Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open { receiving: Part, sending: Part },
    HalfClosedLocal { receiving: Part },
    HalfClosedRemote { sending: Part },
    Closed(Closed),
}

/// How a stream was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Both directions have ended in order.
    Ended,
    /// By RST_STREAM from the peer.
    ByPeer(Code),
    /// By RST_STREAM from this side.
    ByUs(Code),
    /// The peer's GOAWAY says that it has not processed it.
    Unprocessed,
    /// With its connection.
    Lost,
}

/// What has come for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// `interim`: it is the head of a `1xx` response.
    Headers {
        interim: bool,
        end: bool,
    },
    Data {
        end: bool,
    },
}

/// What received HEADERS are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Interim,
    Head,
    Trailers,
    Data,
}

/// What is to be sent on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Interim,
    Head {
        end: bool,
    },
    Data {
        end: bool,
    },
    /// They always end the stream.
    Trailers,
}

impl State {
    /// A stream whose first HEADERS are about to come or to go.
    pub(crate) const NEW: Self = Self::Open { receiving: Part::Head, sending: Part::Head };

    /// What comes next from the peer; `None`: nothing more may.
    pub(crate) fn receiving(self) -> Option<Part> {
        match self {
            Self::Open { receiving, .. } | Self::HalfClosedLocal { receiving } => Some(receiving),
            Self::HalfClosedRemote { .. } | Self::Closed(_) => None,
        }
    }

    /// What goes next to the peer; `None`: nothing more may.
    pub(crate) fn sending(self) -> Option<Part> {
        match self {
            Self::Open { sending, .. } | Self::HalfClosedRemote { sending } => Some(sending),
            Self::HalfClosedLocal { .. } | Self::Closed(_) => None,
        }
    }

    pub(crate) fn closed(self) -> Option<Closed> {
        match self {
            Self::Closed(closed) => Some(closed),
            _ => None,
        }
    }

    /// Takes what has come.
    pub(crate) fn receive(&mut self, what: Received) -> Result<Meaning, Wrong> {
        const BEHIND: Wrong = Wrong::of(Code::STREAM_CLOSED, "a frame behind the end of its stream");
        let Some(part) = self.receiving() else { return Err(BEHIND) };
        let (meaning, next, end) = match (what, part) {
            (Received::Headers { interim: true, end: false }, Part::Head) => {
                (Meaning::Interim, Part::Head, false)
            }
            (Received::Headers { interim: false, end }, Part::Head) => (Meaning::Head, Part::Body, end),
            (Received::Headers { end: true, .. }, Part::Body) => (Meaning::Trailers, Part::Body, true),
            (Received::Data { end }, Part::Body) => (Meaning::Data, Part::Body, end),
            (Received::Headers { .. }, Part::Head) => {
                return Err(Wrong::protocol("an interim response that ends its stream"));
            }
            (Received::Headers { .. }, Part::Body) => {
                return Err(Wrong::protocol("trailers that do not end their stream"));
            }
            (Received::Data { .. }, Part::Head) => return Err(Wrong::protocol(EARLY_DATA)),
        };
        *self = match (*self, end) {
            (Self::Open { sending, .. }, false) => Self::Open { receiving: next, sending },
            (Self::Open { sending, .. }, true) => Self::HalfClosedRemote { sending },
            (Self::HalfClosedLocal { .. }, false) => Self::HalfClosedLocal { receiving: next },
            (Self::HalfClosedLocal { .. }, true) => Self::Closed(Closed::Ended),
            (Self::HalfClosedRemote { .. } | Self::Closed(_), _) => return Err(BEHIND),
        };
        Ok(meaning)
    }

    /// Notes what goes out. False, and nothing changed: it may not.
    pub(crate) fn send(&mut self, what: Sent) -> bool {
        let (next, end) = match (what, self.sending()) {
            (Sent::Interim, Some(Part::Head)) => (Part::Head, false),
            (Sent::Head { end }, Some(Part::Head)) | (Sent::Data { end }, Some(Part::Body)) => {
                (Part::Body, end)
            }
            (Sent::Trailers, Some(Part::Body)) => (Part::Body, true),
            _ => return false,
        };
        *self = match (*self, end) {
            (Self::Open { receiving, .. }, false) => Self::Open { receiving, sending: next },
            (Self::Open { receiving, .. }, true) => Self::HalfClosedLocal { receiving },
            (Self::HalfClosedRemote { .. }, false) => Self::HalfClosedRemote { sending: next },
            (Self::HalfClosedRemote { .. }, true) => Self::Closed(Closed::Ended),
            (Self::HalfClosedLocal { .. } | Self::Closed(_), _) => return false,
        };
        true
    }

    /// Closes it, unless it is.
    pub(crate) fn close(&mut self, how: Closed) -> bool {
        let open = self.closed().is_none();
        if open {
            *self = Self::Closed(how);
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: State = State::Closed(Closed::Ended);

    fn protocol(what: &'static str) -> Result<Meaning, Wrong> {
        Err(Wrong::protocol(what))
    }

    fn open(receiving: Part, sending: Part) -> State {
        State::Open { receiving, sending }
    }

    #[test]
    fn a_message_is_interim_heads_a_head_data_and_trailers() {
        let mut state = State::NEW;
        let interim = Received::Headers { interim: true, end: false };
        let head = Received::Headers { interim: false, end: false };
        assert_eq!(state.receive(Received::Data { end: false }), protocol("DATA ahead of its HEADERS"));
        let ends = Received::Headers { interim: true, end: true };
        assert_eq!(state.receive(ends), protocol("an interim response that ends its stream"));
        assert_eq!(state, State::NEW, "an error changes nothing");
        assert_eq!(state.receive(interim), Ok(Meaning::Interim));
        assert_eq!(state.receive(interim), Ok(Meaning::Interim));
        assert_eq!(state, State::NEW);
        assert_eq!(state.receive(head), Ok(Meaning::Head));
        assert_eq!(state, open(Part::Body, Part::Head));
        assert_eq!(state.receive(Received::Data { end: false }), Ok(Meaning::Data));
        assert_eq!(state.receive(head), protocol("trailers that do not end their stream"));
        assert_eq!(state.receive(Received::Headers { interim: false, end: true }), Ok(Meaning::Trailers));
        assert_eq!(state, State::HalfClosedRemote { sending: Part::Head });
        for late in [head, Received::Data { end: true }] {
            assert_eq!(state.receive(late).map_err(|wrong| wrong.code), Err(Code::STREAM_CLOSED));
        }
    }

    #[test]
    fn a_stream_is_closed_when_both_directions_have_ended_in_either_order() {
        let ends = Received::Headers { interim: false, end: true };
        let mut state = State::NEW;
        assert_eq!(state.receive(ends), Ok(Meaning::Head));
        assert!(state.send(Sent::Head { end: false }) && state.send(Sent::Data { end: false }));
        assert_eq!(state, State::HalfClosedRemote { sending: Part::Body });
        assert!(state.send(Sent::Data { end: true }));
        assert_eq!(state, ENDED);

        let mut state = State::NEW;
        assert!(state.send(Sent::Head { end: true }));
        assert_eq!(state, State::HalfClosedLocal { receiving: Part::Head });
        assert_eq!(state.receive(Received::Headers { interim: false, end: false }), Ok(Meaning::Head));
        assert_eq!(state.receive(Received::Data { end: true }), Ok(Meaning::Data));
        assert_eq!(state, ENDED);
    }

    #[test]
    fn nothing_is_sent_out_of_turn() {
        let mut state = State::NEW;
        assert!(!state.send(Sent::Data { end: false }) && !state.send(Sent::Trailers));
        assert!(state.send(Sent::Interim) && state.send(Sent::Head { end: false }));
        assert!(!state.send(Sent::Interim) && !state.send(Sent::Head { end: false }));
        assert!(state.send(Sent::Trailers));
        for what in [Sent::Interim, Sent::Head { end: true }, Sent::Data { end: true }, Sent::Trailers] {
            assert!(!state.send(what), "{what:?}");
        }
    }

    #[test]
    fn what_closed_a_stream_first_counts() {
        let states = [
            open(Part::Head, Part::Body),
            State::HalfClosedLocal { receiving: Part::Body },
            State::HalfClosedRemote { sending: Part::Head },
        ];
        for mut state in states {
            assert!(state.close(Closed::ByPeer(Code::CANCEL)));
            assert!(!state.close(Closed::ByUs(Code::NO_ERROR)) && !state.close(Closed::Lost));
            assert_eq!(state.closed(), Some(Closed::ByPeer(Code::CANCEL)));
            assert_eq!((state.receiving(), state.sending()), (None, None));
            let late = state.receive(Received::Data { end: true });
            assert_eq!(late, Err(Wrong::of(Code::STREAM_CLOSED, "a frame behind the end of its stream")));
            assert!(!state.send(Sent::Trailers));
        }
    }
}
