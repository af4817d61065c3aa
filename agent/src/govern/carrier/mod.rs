//! The headers of others that carry a tag along the chain beside Sluice's own: what a tracer passes on anyway.
//!
//! Each is a list of members under a key, of which one is ours; every other byte stays as it was. [`super::lane`] reads them
//! while it walks through a head, [`super::edit`] writes them. Each is written only where its readers look at it:
//!
//! | carrier | header | written | passed on by |
//! |---|---|---|---|
//! | [`Carrier::Baggage`] | `baggage` | always | OpenTelemetry, and who is told to |
//! | [`Carrier::Tracestate`] | `tracestate` | beside a `traceparent` | every tracer that keeps W3C Trace Context |
//! | [`Carrier::Correlation`] | `sw8-correlation` | beside a `sw8` | the agents of Apache SkyWalking |

pub mod baggage;
mod correlation;
mod tracestate;

use std::borrow::Cow;

use http::HeaderName;

pub(crate) use tracestate::is_key as is_tracestate_key;

/// A header with a member that says a tag, in the order in which they are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// W3C `baggage`. <https://www.w3.org/TR/baggage/>
    Baggage,
    /// W3C `tracestate`. <https://www.w3.org/TR/trace-context/#tracestate-header>
    Tracestate,
    /// SkyWalking's `sw8-correlation`.
    /// <https://skywalking.apache.org/docs/main/next/en/api/x-process-correlation-headers-v1/>
    Correlation,
}

static BAGGAGE: HeaderName = HeaderName::from_static("baggage");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static CORRELATION: HeaderName = HeaderName::from_static("sw8-correlation");

impl Carrier {
    pub const ALL: [Self; 3] = [Self::Baggage, Self::Tracestate, Self::Correlation];

    /// Its header.
    pub fn header(self) -> &'static HeaderName {
        match self {
            Self::Baggage => &BAGGAGE,
            Self::Tracestate => &TRACESTATE,
            Self::Correlation => &CORRELATION,
        }
    }

    /// Whose member under `key` one line of its header has: the values in their order, decoded.
    pub(super) fn values(self, line: &[u8], key: &str, mut visit: impl FnMut(Cow<'_, [u8]>)) {
        match self {
            Self::Baggage => baggage::values(line, key).for_each(visit),
            Self::Tracestate => tracestate::values(line, key).for_each(|value| visit(value.into())),
            Self::Correlation => correlation::values(line, key).for_each(|value| visit(value.into())),
        }
    }

    /// Sets the member `key` to `tag` in the lines of its header. Returns the value of the one line that is to stand in the place
    /// of them all; `None`: they are to stay as they are, be it because the tag is there, or because there is no room for it.
    pub(super) fn set<'a>(
        self,
        lines: impl Iterator<Item = &'a [u8]>,
        key: &str,
        tag: &[u8],
    ) -> Option<Vec<u8>> {
        match self {
            Self::Baggage => baggage::set(lines, key, tag),
            Self::Tracestate => tracestate::set(lines, key, tag),
            Self::Correlation => correlation::set(lines, key, tag),
        }
    }

    /// Takes the member `key` out of the lines of its header. Returns what is left of them in one line, which may be empty;
    /// `None`: there is nothing to take out.
    pub(super) fn remove<'a>(self, lines: impl Iterator<Item = &'a [u8]>, key: &str) -> Option<Vec<u8>> {
        match self {
            Self::Baggage => baggage::remove(lines, key),
            Self::Tracestate => without(lines, |member| tracestate::value_of(member, key).is_some()),
            Self::Correlation => without(lines, |member| correlation::value_of(member, key).is_some()),
        }
    }
}

/// Some of the carriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carriers(u8);

impl Carriers {
    pub fn insert(&mut self, carrier: Carrier) {
        self.0 |= 1 << carrier as u8;
    }

    pub fn contains(self, carrier: Carrier) -> bool {
        self.0 & 1 << carrier as u8 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Carrier> {
        Carrier::ALL.into_iter().filter(move |carrier| self.contains(*carrier))
    }
}

/// What the header of a request's is to the carriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It is the header of this one.
    Of(Carrier),
    /// This one is read and written where it is there.
    Beside(Carrier),
}

impl Line {
    /// By the name of a header, in any case; `None`: it has nothing to do with carriers.
    #[inline]
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        let (known, line): (&[u8], _) = match name.len() {
            3 => (b"sw8", Self::Beside(Carrier::Correlation)),
            7 => (b"baggage", Self::Of(Carrier::Baggage)),
            10 => (b"tracestate", Self::Of(Carrier::Tracestate)),
            11 => (b"traceparent", Self::Beside(Carrier::Tracestate)),
            15 => (b"sw8-correlation", Self::Of(Carrier::Correlation)),
            _ => return None,
        };
        name.eq_ignore_ascii_case(known).then_some(line)
    }
}

/// The members of a line with the white space around them. No carrier allows a comma within one.
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b',')
}

/// All members but those that are `ours`.
fn without<'a>(lines: impl Iterator<Item = &'a [u8]>, ours: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut left: Vec<&[u8]> = Vec::new();
    let mut found = false;
    for member in lines.flat_map(members) {
        if ours(member) {
            found = true;
        } else {
            left.push(member);
        }
    }
    found.then(|| left.join(&b","[..]))
}

/// What is true for all of them.
#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "x-mse-tag";

    fn read(carrier: Carrier, line: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        carrier.values(line, KEY, |value| found.push(value.into_owned()));
        found
    }

    /// The members of others that say something.
    fn others<'a>(carrier: Carrier, lines: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
        let members = lines.flat_map(members).filter(|member| !member.trim_ascii().is_empty());
        members.filter(|member| read(carrier, member).is_empty()).map(<[u8]>::to_vec).collect()
    }

    fn member() -> impl Strategy<Value = Vec<u8>> {
        let ours = (
            prop::sample::select(vec!["x-mse-tag=", " x-mse-tag =", "eC1tc2UtdGFn:"]),
            "[a-z]{0,5}",
            any::<bool>(),
        );
        prop_oneof![
            3 => ours.prop_map(|(key, value, encoded)| {
                let value = if encoded { STANDARD.encode(value) } else { value };
                format!("{key}{value}").into_bytes()
            }),
            3 => "[a-z]{1,4}[=:][ -+.-~]{0,6}".prop_map(String::into_bytes),
            2 => prop::collection::vec(any::<u8>().prop_filter("a comma splits", |b| *b != b','), 0..8),
        ]
    }

    proptest! {
        #[test]
        fn setting_and_taking_out_touch_nothing_else(
            lines in prop::collection::vec(prop::collection::vec(member(), 0..5), 0..4),
            tag in "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?",
        ) {
            let lines: Vec<Vec<u8>> = lines.iter().map(|members| members.join(&b","[..])).collect();
            let all = || lines.iter().map(Vec::as_slice);
            for carrier in Carrier::ALL {
                let had: Vec<_> = all().flat_map(|line| read(carrier, line)).collect();
                let is_in_order = |edited: &[u8]| others(carrier, all()) == others(carrier, std::iter::once(edited));
                match carrier.set(all(), KEY, tag.as_bytes()) {
                    Some(edited) => {
                        let now = read(carrier, &edited);
                        prop_assert!(!now.is_empty() && now.iter().all(|value| value == tag.as_bytes()), "{:?}", carrier);
                        prop_assert!(is_in_order(&edited), "{:?}", carrier);
                        prop_assert_eq!(carrier.set(std::iter::once(&edited[..]), KEY, tag.as_bytes()), None);
                    }
                    None if had.is_empty() => prop_assert_eq!(carrier, Carrier::Correlation, "others have room here"),
                    None => prop_assert!(had.iter().all(|value| value == tag.as_bytes()), "{:?}", carrier),
                }
                match carrier.remove(all(), KEY) {
                    Some(left) => prop_assert!(!had.is_empty() && read(carrier, &left).is_empty() && is_in_order(&left)),
                    None => prop_assert!(had.is_empty()),
                }
            }
        }

        #[test]
        fn anything_can_be_read(line in prop::collection::vec(prop_oneof![1 => any::<u8>(), 6 => prop::sample::select(b"x-mse-tag=:, eC1tc2UtdGFn".to_vec())], 0..80)) {
            for carrier in Carrier::ALL {
                read(carrier, &line);
            }
        }
    }

    #[test]
    fn lines_are_known_by_their_names() {
        for carrier in Carrier::ALL {
            let name = carrier.header().as_str();
            assert_eq!(Line::of(name.to_ascii_uppercase().as_bytes()), Some(Line::Of(carrier)));
        }
        assert_eq!(Line::of(b"SW8"), Some(Line::Beside(Carrier::Correlation)));
        assert_eq!(Line::of(b"Traceparent"), Some(Line::Beside(Carrier::Tracestate)));
        for other in ["", "sw9", "tracestatE2", "x-baggage", "baggagf"] {
            assert_eq!(Line::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_set_of_carriers_has_what_was_put_in() {
        let mut some = Carriers::default();
        assert!(some.is_empty());
        some.insert(Carrier::Correlation);
        some.insert(Carrier::Baggage);
        assert_eq!(some.iter().collect::<Vec<_>>(), [Carrier::Baggage, Carrier::Correlation]);
        assert!(!some.contains(Carrier::Tracestate) && !some.is_empty());
    }
}
