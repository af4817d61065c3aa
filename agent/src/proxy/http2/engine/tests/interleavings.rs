//! Frames in random order, most of them legal, against a model of RFC 9113 that shares nothing with the engine: what is
//! reset, with which code, and what ends the connection.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::proxy::http2::frame::{Head, Kind, flags};

/// `GET http://a/`, in HPACK's static table and a literal.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
const TRAILER: &[u8] = &[0x00, 0x01, b'x', 0x01, b'y'];

/// What a client sends on a stream.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Headers { end: bool },
    Data { length: usize, padding: Option<u8>, end: bool },
    Reset,
    Window { step: u32 },
    Priority,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client opens a stream, and passes over so many numbers.
    Open {
        passed_over: u32,
        end: bool,
    },
    /// On one of the streams that there were, the latest first.
    On {
        back: usize,
        frame: Frame,
    },
    /// On a number that was passed over, or is yet to come, or is a server's.
    Astray {
        number: u32,
        frame: Frame,
    },
    Ping,
    Unknown,
    /// The server's application answers, says more, reads, or gives up.
    Answer {
        back: usize,
        end: bool,
    },
    Say {
        back: usize,
        end: bool,
    },
    Take {
        back: usize,
    },
    GiveUp {
        back: usize,
    },
}

/// What has become of a stream, as its two ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Whether the client has ended its part, whether a head has gone, and whether the server has ended its own.
    Lives {
        said: bool,
        answered: bool,
        done: bool,
    },
    Ended,
    ResetByClient,
    ResetByServer,
}

/// What a frame brings about.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    Reset(u32, Code),
    End(Code),
}

#[derive(Default)]
struct Model {
    streams: BTreeMap<u32, Fate>,
}

impl Model {
    fn highest(&self) -> u32 {
        self.streams.last_key_value().map_or(0, |(id, _)| *id)
    }

    /// The number of one of the streams that there were.
    fn pick(&self, back: usize) -> Option<u32> {
        self.streams.keys().rev().nth(back).copied()
    }

    fn open(&mut self, id: u32, end: bool) {
        self.streams.insert(id, Fate::Lives { said: end, answered: false, done: false });
    }

    /// Section 5.1, read anew.
    #[expect(clippy::match_same_arms, reason = "a row for each state, in the order of the RFC")]
    fn frame(&mut self, id: u32, frame: Frame) -> Effect {
        let highest = self.highest();
        let Some(fate) = self.streams.get_mut(&id) else {
            return match frame {
                Frame::Priority => Effect::Nothing,
                Frame::Headers { end } if id % 2 == 1 && id > highest => {
                    // A block of trailers that opens a stream is a malformed request: the application is told.
                    self.open(id, end);
                    Effect::Nothing
                }
                // 5.1.1: lower than one before, or a server's.
                Frame::Headers { .. } => Effect::End(Code::PROTOCOL_ERROR),
                // A lower one is closed by a higher one, and not idle any more.
                _ if id % 2 == 1 && id < highest => match frame {
                    Frame::Data { .. } | Frame::Window { step: 0 } => Effect::Reset(id, Code::STREAM_CLOSED),
                    _ => Effect::Nothing,
                },
                _ => Effect::End(Code::PROTOCOL_ERROR),
            };
        };
        let (to, effect) = match (*fate, frame) {
            (_, Frame::Priority) | (Fate::ResetByServer, _) => return Effect::Nothing,
            (Fate::Lives { .. }, Frame::Window { step: 0 }) => {
                (Fate::ResetByServer, Effect::Reset(id, Code::PROTOCOL_ERROR))
            }
            (Fate::Lives { .. }, Frame::Window { .. }) => return Effect::Nothing,
            (Fate::Lives { .. }, Frame::Reset) => (Fate::ResetByClient, Effect::Nothing),
            (Fate::Lives { said: true, .. }, Frame::Headers { .. } | Frame::Data { .. }) => {
                (Fate::ResetByServer, Effect::Reset(id, Code::STREAM_CLOSED))
            }
            (Fate::Lives { .. }, Frame::Headers { end: false }) => {
                (Fate::ResetByServer, Effect::Reset(id, Code::PROTOCOL_ERROR))
            }
            (
                Fate::Lives { answered, done, .. },
                Frame::Headers { end: true } | Frame::Data { end: true, .. },
            ) => {
                (if done { Fate::Ended } else { Fate::Lives { said: true, answered, done } }, Effect::Nothing)
            }
            (Fate::Lives { .. }, Frame::Data { end: false, .. }) => return Effect::Nothing,
            (
                Fate::Ended | Fate::ResetByClient,
                Frame::Headers { .. } | Frame::Data { .. } | Frame::Window { step: 0 },
            ) => return Effect::Reset(id, Code::STREAM_CLOSED),
            (Fate::Ended | Fate::ResetByClient, Frame::Reset | Frame::Window { .. }) => {
                return Effect::Nothing;
            }
        };
        *fate = to;
        effect
    }

    /// The server says a part of its answer. Whether it may.
    fn say(&mut self, id: u32, head: bool, end: bool) -> bool {
        let Some(fate) = self.streams.get_mut(&id) else { return false };
        let Fate::Lives { said, answered, done: false } = *fate else { return false };
        if answered == head {
            return false;
        }
        *fate = if end && said { Fate::Ended } else { Fate::Lives { said, answered: true, done: end } };
        true
    }

    fn give_up(&mut self, id: u32) -> Effect {
        let Some(fate) = self.streams.get_mut(&id) else { return Effect::Nothing };
        let Fate::Lives { done, .. } = *fate else { return Effect::Nothing };
        *fate = Fate::ResetByServer;
        Effect::Reset(id, if done { Code::NO_ERROR } else { Code::CANCEL })
    }
}

fn bytes(id: u32, frame: Frame, block: &[u8]) -> Vec<u8> {
    let end_of = |end: bool| if end { flags::END_STREAM } else { 0 };
    let (kind, set, payload) = match frame {
        Frame::Headers { end } => (Kind::Headers, flags::END_HEADERS | end_of(end), block.to_vec()),
        Frame::Data { length, padding: None, end } => (Kind::Data, end_of(end), vec![7; length]),
        Frame::Data { length, padding: Some(padding), end } => {
            let mut payload = vec![padding];
            payload.resize(1 + length + usize::from(padding), 0);
            (Kind::Data, flags::PADDED | end_of(end), payload)
        }
        Frame::Reset => (Kind::Reset, 0, vec![0, 0, 0, 8]),
        Frame::Window { step } => (Kind::WindowUpdate, 0, step.to_be_bytes().to_vec()),
        Frame::Priority => (Kind::Priority, 0, vec![0; 5]),
    };
    [&Head::new(kind, set, id, payload.len() as u32).bytes()[..], &payload].concat()
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        2 => prop::bool::weighted(0.9).prop_map(|end| Frame::Headers { end }),
        8 => (0..600_usize, prop::option::weighted(0.3, any::<u8>()), prop::bool::weighted(0.2))
            .prop_map(|(length, padding, end)| Frame::Data { length, padding, end }),
        1 => Just(Frame::Reset),
        3 => prop_oneof![9 => 1..1000_u32, 1 => Just(0)].prop_map(|step| Frame::Window { step }),
        1 => Just(Frame::Priority),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let back = || 0..6_usize;
    prop_oneof![
        12 => (prop_oneof![9 => Just(0), 1 => 0..4_u32], any::<bool>())
            .prop_map(|(passed_over, end)| Step::Open { passed_over, end }),
        40 => (back(), frame()).prop_map(|(back, frame)| Step::On { back, frame }),
        1 => (0..200_u32, frame()).prop_map(|(number, frame)| Step::Astray { number: number + 1, frame }),
        2 => Just(Step::Ping),
        2 => Just(Step::Unknown),
        10 => (back(), any::<bool>()).prop_map(|(back, end)| Step::Answer { back, end }),
        10 => (back(), any::<bool>()).prop_map(|(back, end)| Step::Say { back, end }),
        10 => back().prop_map(|back| Step::Take { back }),
        4 => back().prop_map(|back| Step::GiveUp { back }),
    ]
}

/// Resets among frames, and the code of GOAWAY.
fn told(mut bytes: &[u8]) -> (Vec<(u32, Code)>, Option<Code>) {
    let (mut resets, mut end) = (Vec::new(), None);
    while let Some(head) = Head::first(bytes) {
        let payload = &bytes[9..9 + head.length as usize];
        let word = |at: usize| Code(u32::from_be_bytes(payload[at..at + 4].try_into().unwrap()));
        match head.kind {
            Kind::Reset => resets.push((head.stream, word(0))),
            Kind::GoAway => end = Some(word(4)),
            _ => {}
        }
        bytes = &bytes[9 + head.length as usize..];
    }
    (resets, end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_reset_and_what_ends_is_what_the_rfc_says(
        steps in prop::collection::vec(step(), 0..200),
        // All at once, or torn: how much of a frame comes in a piece.
        pieces in 1..40_usize,
    ) {
        let mut server = pair().1;
        let (mut model, mut handles) = (Model::default(), BTreeMap::new());
        for step in steps {
            let mut sent = Vec::new();
            let effect = match step {
                Step::Open { passed_over, end } => {
                    let highest = model.highest();
                    let id = if highest == 0 { 1 } else { highest + 2 } + 2 * passed_over;
                    model.open(id, end);
                    sent = bytes(id, Frame::Headers { end }, GET);
                    Effect::Nothing
                }
                Step::On { back, frame } => match model.pick(back) {
                    Some(id) => {
                        sent = bytes(id, frame, TRAILER);
                        model.frame(id, frame)
                    }
                    None => Effect::Nothing,
                },
                Step::Astray { number, frame } => {
                    // As a request, should it open a stream.
                    let block = if model.streams.contains_key(&number) { TRAILER } else { GET };
                    sent = bytes(number, frame, block);
                    model.frame(number, frame)
                }
                Step::Ping => {
                    sent = [&Head::new(Kind::Ping, 0, 0, 8).bytes()[..], b"12345678"].concat();
                    Effect::Nothing
                }
                Step::Unknown => {
                    sent = [&Head::new(Kind::Unknown(77), 0xff, 3, 2).bytes()[..], b"??"].concat();
                    Effect::Nothing
                }
                Step::Answer { back, end } => {
                    if let Some(id) = model.pick(back)
                        && let Some(Some(handle)) = handles.get(&id)
                    {
                        let handle: &Handle = handle;
                        let said = handle.send_head(&Pseudo::Within, &response("200"), end);
                        prop_assert_eq!(said, model.say(id, true, end), "head on {}", id);
                    }
                    Effect::Nothing
                }
                Step::Say { back, end } => {
                    if let Some(id) = model.pick(back)
                        && let Some(Some(handle)) = handles.get(&id)
                    {
                        let said = handle.send_data(Bytes::new(), end);
                        prop_assert_eq!(said, model.say(id, false, end), "data on {}", id);
                    }
                    Effect::Nothing
                }
                Step::Take { back } => {
                    if let Some(id) = model.pick(back)
                        && let Some(Some(handle)) = handles.get(&id)
                    {
                        while handle.has_data() {
                            handle.take_data(usize::MAX);
                        }
                        handle.take_trailers();
                    }
                    Effect::Nothing
                }
                Step::GiveUp { back } => match model.pick(back) {
                    Some(id) if handles.get(&id).is_some_and(Option::is_some) => {
                        handles.insert(id, None);
                        model.give_up(id)
                    }
                    _ => Effect::Nothing,
                },
            };
            for piece in sent.chunks(pieces * 20) {
                server.give(piece);
            }
            while let Some((handle, accepted)) = server.accept() {
                prop_assert!(accepted.fit.is_ok());
                let id = server.core.borrow().stream(accepted.key).unwrap().id;
                handles.insert(id, Some(handle));
            }
            let (resets, end) = told(&server.all_written());
            match effect {
                Effect::Nothing => prop_assert_eq!((resets, end), (vec![], None), "{:?}", step),
                Effect::Reset(id, code) => {
                    prop_assert_eq!((resets, end), (vec![(id, code)], None), "{:?}", step);
                }
                Effect::End(code) => {
                    prop_assert_eq!(end, Some(code), "{:?}", step);
                    prop_assert_eq!(server.violation(), Some(code));
                    break;
                }
            }
        }
        // Who holds a stream knows of its end, and when all have let go nothing is left.
        for (id, handle) in &handles {
            if let (Some(handle), Some(fate), None) = (handle, model.streams.get(id), server.ended()) {
                let broken = matches!(fate, Fate::ResetByClient | Fate::ResetByServer);
                prop_assert_eq!(handle.broken().is_some(), broken, "{}: {:?}", id, fate);
            }
        }
        handles.clear();
        let core = server.core.borrow();
        prop_assert_eq!((core.streams(), core.held), (0, 0));
    }
}
