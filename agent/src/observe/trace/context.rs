//! The trace that a request belongs to, as its headers say it: W3C `traceparent`, and B3 in both its forms.
//!
//! The proxy walks through a request's headers once, showing each to a [`Scan`]. What is decided then is put on the
//! forwarded request by changing digits in place: a span's id is 16 hexadecimal digits wherever it is written, so that
//! heads keep their length, and a second attempt is the first with other digits.
//!
//! - W3C trace context: <https://www.w3.org/TR/trace-context/>
//! - B3: <https://github.com/openzipkin/b3-propagation>

pub mod link;

use std::fmt;

/// The form in which a request carries its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Propagation {
    /// `traceparent`.
    W3c,
    /// `b3`.
    B3,
    /// `x-b3-traceid` and its companions.
    B3Multi,
}

/// 16 bytes, not all of them zero. A B3 trace id may be sent with 8: the first ones are zero then.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// 8 bytes, not all of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    pub fn new(id: u128) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    pub fn random(rng: &mut fastrand::Rng) -> Self {
        Self(rng.u128(1..))
    }

    pub fn get(self) -> u128 {
        self.0
    }

    /// 16 or 32 digits.
    fn parse(text: &[u8]) -> Option<Self> {
        matches!(text.len(), 16 | 32).then(|| hex(text)).flatten().and_then(Self::new)
    }
}

impl SpanId {
    pub fn new(id: u64) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    pub fn random(rng: &mut fastrand::Rng) -> Self {
        Self(rng.u64(1..))
    }

    pub fn get(self) -> u64 {
        self.0
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let id = (text.len() == 16).then(|| hex(text)).flatten()?;
        Self::new(u64::try_from(id).ok()?)
    }

    /// 16 digits, as every header writes it.
    fn digits(self) -> [u8; 16] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        std::array::from_fn(|index| DIGITS[(self.0 >> (60 - 4 * index)) as usize & 15])
    }
}

/// 32 digits.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

/// 16 digits.
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanId({self})")
    }
}

/// At most 32 digits of either case (B3 says lower, not all senders do; `traceparent` is checked for case by itself).
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |number, digit| Some(number << 4 | u128::from((*digit as char).to_digit(16)?)))
}

/// The span that sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    /// What the sender decided; `None`: it leaves that to whoever gets the request (B3 only).
    pub sampled: Option<bool>,
    /// B3's many headers name this trace: they have to be changed together, for none of them but one says which it is of.
    pub multi: bool,
}

/// What a forwarded request says of who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    pub trace: TraceId,
    pub span: SpanId,
    /// The span below which that one is; only B3 tells it on.
    pub parent: SpanId,
    /// See [`Parent::multi`].
    pub multi: bool,
}

/// Parses `version-traceid-parentid-flags`. Later versions may have more parts; `ff` is forbidden.
pub fn parse_traceparent(value: &[u8]) -> Option<Parent> {
    let lower = |part: &[u8]| part.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = value.trim_ascii().split(|byte| *byte == b'-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let shape = version.len() == 2 && trace.len() == 32 && flags.len() == 2;
    let known = version != b"ff" && (version != b"00" || parts.next().is_none());
    if !(shape && known && [version, trace, span, flags].into_iter().all(lower)) {
        return None;
    }
    let sampled = hex(flags)? & 1 == 1;
    Some(Parent {
        trace: TraceId::parse(trace)?,
        span: SpanId::parse(span)?,
        sampled: Some(sampled),
        multi: false,
    })
}

/// Parses `traceid-spanid[-sampled[-parentspanid]]`. Bare decisions (`b3: 0`) name no trace, and are none here.
fn parse_b3(value: &[u8]) -> Option<Parent> {
    let mut parts = value.trim_ascii().split(|byte| *byte == b'-');
    let (trace, span) = (TraceId::parse(parts.next()?)?, SpanId::parse(parts.next()?)?);
    let sampled = match parts.next() {
        None => None,
        Some(decision) => Some(b3_sampled(decision)?),
    };
    let rest = (parts.next().is_none_or(|parent| SpanId::parse(parent).is_some()), parts.next());
    matches!(rest, (true, None)).then_some(Parent { trace, span, sampled, multi: false })
}

/// `d` (debug) implies an accept decision.
fn b3_sampled(decision: &[u8]) -> Option<bool> {
    match decision {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// Looks for a trace in a request's headers.
#[derive(Debug)]
pub struct Scan<'p> {
    propagation: &'p [Propagation],
    /// By place in the list.
    found: [Option<Parent>; 3],
    multi: Multi,
    /// There was a `traceparent`.
    traceparent: bool,
    seen: bool,
    denied: bool,
}

/// The parts of B3's many headers.
#[derive(Debug, Default)]
struct Multi {
    trace: Option<TraceId>,
    span: Option<SpanId>,
    sampled: Option<bool>,
}

impl<'p> Scan<'p> {
    /// The forms that are understood; of several that a request carries the first in the list counts.
    pub fn new(propagation: &'p [Propagation]) -> Self {
        Self {
            propagation,
            found: [None; 3],
            multi: Multi::default(),
            traceparent: false,
            seen: false,
            denied: false,
        }
    }

    /// Sees a header, its name in any case.
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        let Some(form) = form(name) else { return };
        let Some(place) = self.propagation.iter().position(|known| *known == form) else { return };
        self.seen = true;
        match form {
            Propagation::W3c => {
                // With two of them nobody knows which counts.
                let first = !std::mem::replace(&mut self.traceparent, true);
                self.found[place] = parse_traceparent(value).filter(|_| first);
            }
            Propagation::B3 => {
                self.found[place] = parse_b3(value);
                self.denied |= value.trim_ascii() == b"0";
            }
            Propagation::B3Multi => {
                let value = value.trim_ascii();
                if name.eq_ignore_ascii_case(b"x-b3-traceid") {
                    self.multi.trace = TraceId::parse(value);
                } else if name.eq_ignore_ascii_case(b"x-b3-spanid") {
                    self.multi.span = SpanId::parse(value);
                } else if name.eq_ignore_ascii_case(b"x-b3-sampled") {
                    self.multi.sampled = b3_sampled(value);
                    self.denied |= self.multi.sampled == Some(false);
                } else if name.eq_ignore_ascii_case(b"x-b3-flags") && value == b"1" {
                    self.multi.sampled = Some(true);
                }
                // A second one that is malformed takes away what the first one said: nobody knows which counts.
                let Multi { trace, span, sampled } = self.multi;
                self.found[place] =
                    trace.zip(span).map(|(trace, span)| Parent { trace, span, sampled, multi: true });
            }
        }
    }

    /// The traces that are named, in the order of the forms.
    pub fn traces(&self) -> impl Iterator<Item = TraceId> {
        self.found.iter().flatten().map(|parent| parent.trace)
    }

    pub fn finish(&self) -> Found {
        match self.found.iter().flatten().next() {
            Some(parent) => {
                let multi = self.multi.span.is_some() && self.multi.trace == Some(parent.trace);
                Found::Trace(Parent { multi, ..*parent })
            }
            None if self.seen => Found::Unusable { denied: self.denied },
            None => Found::Nothing,
        }
    }
}

/// What a request's headers say of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Trace(Parent),
    /// There are such headers, but they name no trace. They are passed on as they are: a new trace beside them would
    /// contradict them.
    Unusable {
        /// They say that the request is not to be sampled.
        denied: bool,
    },
    Nothing,
}

/// The form that a header belongs to.
pub fn form(name: &[u8]) -> Option<Propagation> {
    let first = name.first()?.to_ascii_lowercase();
    match (first, name.len()) {
        (b't', 11) if name.eq_ignore_ascii_case(b"traceparent") => Some(Propagation::W3c),
        (b'b', 2) if name.eq_ignore_ascii_case(b"b3") => Some(Propagation::B3),
        (b'x', 10..=17) if name[..5].eq_ignore_ascii_case(b"x-b3-") => Some(Propagation::B3Multi),
        _ => None,
    }
}

/// Puts the sender where the next hop looks for the span that called it, keeping the length of the value. Leaves alone what
/// is of another trace, and what is malformed.
pub fn put(name: &[u8], value: &mut [u8], sender: &Sender) {
    let digits = sender.span.digits();
    let start = value.len() - value.trim_ascii_start().len();
    let value = &mut value[start..];
    match form(name) {
        Some(Propagation::W3c) => {
            if parse_traceparent(value).is_some_and(|found| found.trace == sender.trace) {
                value[36..52].copy_from_slice(&digits);
            }
        }
        Some(Propagation::B3) => {
            if parse_b3(value).is_some_and(|found| found.trace == sender.trace) {
                let dashes: smallvec::SmallVec<[usize; 3]> =
                    memchr::memchr_iter(b'-', value).take(3).collect();
                if let [_, _, parent] = dashes[..] {
                    value[parent + 1..parent + 17].copy_from_slice(&sender.parent.digits());
                }
                value[dashes[0] + 1..dashes[0] + 17].copy_from_slice(&digits);
            }
        }
        Some(Propagation::B3Multi) if sender.multi => {
            let id = if name.eq_ignore_ascii_case(b"x-b3-spanid") {
                digits
            } else if name.eq_ignore_ascii_case(b"x-b3-parentspanid") {
                sender.parent.digits()
            } else {
                return;
            };
            if SpanId::parse(value.trim_ascii()).is_some() {
                value[..16].copy_from_slice(&id);
            }
        }
        Some(Propagation::B3Multi) | None => {}
    }
}

/// The header that begins a trace: `traceparent`'s value, of version 00.
pub fn traceparent(trace: TraceId, span: SpanId, sampled: bool) -> [u8; 55] {
    let mut value = [b'-'; 55];
    let text = format!("00-{trace}-{span}-{:02x}", u8::from(sampled));
    // Two, 32, 16 and two digits, and three dashes.
    value.copy_from_slice(text.as_bytes());
    value
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
