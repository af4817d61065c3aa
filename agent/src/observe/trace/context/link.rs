//! A trace that a request tells in B3's forms alone, as `traceparent` would tell it.
//!
//! Services that know B3 and services that know W3C do not see each other's spans as parts of one trace. The ids are the same in both,
//! so that nothing has to be made up to say the one in the other's words: the trace, the span that sends, and whether it is recorded.
//! What B3 leaves open (whether it is recorded), says twice and differently, or says wrongly cannot be told in W3C's words, and is not.

use super::{
    Parent, Propagation, SpanId, TraceId, b3_sampled, form, parse_b3, parse_traceparent, traceparent,
};

/// Looks in a request's headers for one context of B3.
#[derive(Debug, Default)]
pub struct Link {
    single: Option<Parent>,
    trace: Option<TraceId>,
    span: Option<SpanId>,
    sampled: Option<bool>,
    debug: bool,
    /// Names of B3's many headers that were there.
    seen: u8,
    /// Nothing is to be added: W3C's own words are there, or B3's are not clear.
    none: bool,
}

/// What is to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    pub trace: TraceId,
    pub traceparent: [u8; 55],
}

impl Link {
    /// Sees a header, its name in any case.
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        let value = value.trim_ascii();
        match form(name) {
            Some(Propagation::W3c) => self.none = true,
            Some(Propagation::B3) => {
                let parent = parse_b3(value);
                self.none |= parent.is_none() || self.single.is_some();
                self.single = parent;
            }
            Some(Propagation::B3Multi) => self.see_multi(name, value),
            // Means nothing without a `traceparent`, and would with one.
            None => self.none |= name.eq_ignore_ascii_case(b"tracestate"),
        }
    }

    fn see_multi(&mut self, name: &[u8], value: &[u8]) {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        let (bit, good) = if is(b"x-b3-traceid") {
            self.trace = TraceId::parse(value);
            (1, self.trace.is_some())
        } else if is(b"x-b3-spanid") {
            self.span = SpanId::parse(value);
            (2, self.span.is_some())
        } else if is(b"x-b3-sampled") {
            // `d` is the single header's.
            self.sampled = b3_sampled(value).filter(|_| value != b"d");
            (4, self.sampled.is_some())
        } else if is(b"x-b3-flags") {
            self.debug = value == b"1";
            (8, matches!(value, b"0" | b"1"))
        } else if is(b"x-b3-parentspanid") {
            (16, SpanId::parse(value).is_some())
        } else {
            return;
        };
        // With two of one name nobody knows which counts.
        self.none |= !good || self.seen & bit != 0;
        self.seen |= bit;
    }

    /// Whether the request says nothing of a trace.
    pub fn is_silent(&self) -> bool {
        !self.none && self.seen == 0 && self.single.is_none()
    }

    /// `None`: there is no B3, or `traceparent` is there already, or nobody can say what it would be.
    pub fn finish(&self) -> Option<Linked> {
        if self.none || self.debug && self.sampled == Some(false) {
            return None;
        }
        let sampled = if self.debug { Some(true) } else { self.sampled };
        let multi = match (self.trace, self.span) {
            (Some(trace), Some(span)) => Some(Parent { trace, span, sampled, multi: true }),
            (None, None) => None,
            _ => return None,
        };
        let Parent { trace, span, sampled, .. } = match (self.single, multi) {
            (Some(single), Some(multi)) => {
                let same = (single.trace, single.span) == (multi.trace, multi.span);
                Some(Parent { sampled: agreed(single.sampled, multi.sampled), ..single }).filter(|_| same)?
            }
            (Some(single), None) => Parent { sampled: agreed(single.sampled, sampled), ..single },
            (None, multi) => multi?,
        };
        Some(Linked { trace, traceparent: traceparent(trace, span, sampled?) })
    }
}

/// Looks in a request's headers for its place in a trace, in whichever form.
#[derive(Debug, Default)]
pub struct Said {
    w3c: W3c,
    b3: Link,
}

/// What `traceparent` says.
#[derive(Debug, Default)]
enum W3c {
    #[default]
    Absent,
    Says(Parent),
    /// There are several, or it is malformed: nobody can say.
    Unclear,
}

impl Said {
    /// Sees a header, its name in any case.
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        if form(name) == Some(Propagation::W3c) {
            let parent = parse_traceparent(value.trim_ascii());
            self.w3c = match (&self.w3c, parent) {
                (W3c::Absent, Some(parent)) => W3c::Says(parent),
                _ => W3c::Unclear,
            };
        } else {
            self.b3.see(name, value);
        }
    }

    /// As `traceparent` says it.
    pub fn finish(&self) -> Option<[u8; 55]> {
        match &self.w3c {
            W3c::Says(Parent { trace, span, sampled, .. }) => Some(traceparent(*trace, *span, (*sampled)?)),
            W3c::Unclear => None,
            W3c::Absent => self.b3.finish().map(|linked| linked.traceparent),
        }
    }
}

/// What two say together, of which each may have said nothing; `None`: nothing, or they contradict each other.
fn agreed(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(one), Some(other)) => (one == other).then_some(one),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SHORT: &str = "64fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";

    fn linked(headers: &[(&str, &str)]) -> Option<String> {
        let mut link = Link::default();
        for (name, value) in headers {
            link.see(name.as_bytes(), value.as_bytes());
        }
        link.finish().map(|linked| String::from_utf8(linked.traceparent.to_vec()).unwrap())
    }

    fn said(trace: &str, flags: &str) -> String {
        format!("00-{trace}-{SPAN}-{flags}")
    }

    #[test]
    fn a_place_in_a_trace_is_said_in_one_form() {
        let said_in = |headers: &[(&str, &str)]| {
            let mut said = Said::default();
            for (name, value) in headers {
                said.see(name.as_bytes(), value.as_bytes());
            }
            said.finish().map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        let (w3c, b3) = (said(TRACE, "01"), format!("{TRACE}-{SPAN}-0"));
        assert_eq!(said_in(&[("Traceparent", &w3c)]), Some(w3c.clone()));
        assert_eq!(said_in(&[("b3", &b3), ("traceparent", &w3c)]), Some(w3c.clone()), "W3C's goes before");
        assert_eq!(said_in(&[("b3", &b3)]), Some(said(TRACE, "00")));
        assert_eq!(said_in(&[("traceparent", &w3c), ("traceparent", &w3c)]), None);
        assert_eq!(said_in(&[("traceparent", "00-none")]), None);
        assert_eq!(said_in(&[]), None);
    }

    #[test]
    fn one_context_of_b3_is_said_in_other_words() {
        let b3 = |text: &str| text.replace('T', TRACE).replace('S', SPAN);
        let short = format!("0000000000000000{SHORT}");
        let ids = [("X-B3-TraceId", TRACE), ("x-b3-spanid", SPAN)];
        assert_eq!(linked(&[("b3", &b3("T-S-1"))]), Some(said(TRACE, "01")));
        assert_eq!(linked(&[("B3", &b3(" T-S-0 "))]), Some(said(TRACE, "00")));
        assert_eq!(linked(&[("b3", &b3("T-S-d-05e3ac9a4f6e3b90"))]), Some(said(TRACE, "01")));
        assert_eq!(linked(&[("b3", &format!("{SHORT}-{SPAN}-1"))]), Some(said(&short, "01")), "padded");
        assert_eq!(
            linked(&[("b3", &b3("T-S-1").to_uppercase())]),
            Some(said(TRACE, "01")),
            "digits of either case"
        );
        for (more, flags) in [
            (&[("x-b3-sampled", "1")][..], "01"),
            (&[("x-b3-sampled", "true"), ("x-b3-flags", "0")], "01"),
            (&[("x-b3-sampled", "0"), ("x-b3-parentspanid", "05e3ac9a4f6e3b90")], "00"),
            (&[("X-B3-Flags", "1")], "01"),
            (&[("x-request-id", "7"), ("x-b3-sampled", "1"), ("b3", &b3("T-S"))], "01"),
            (&[("x-b3-sampled", "1"), ("b3", &b3("T-S-1"))], "01"),
        ] {
            assert_eq!(linked(&[&ids, more].concat()), Some(said(TRACE, flags)), "{more:?}");
        }
        assert_eq!(linked(&[("b3", &b3("T-S")), ("x-b3-sampled", "0")]), Some(said(TRACE, "00")));
    }

    #[test]
    fn nothing_is_said_that_is_not_known() {
        let one = format!("{TRACE}-{SPAN}-1");
        let w3c = format!("00-{TRACE}-{SPAN}-01");
        let (other, open) = (format!("{SHORT}-{SPAN}-1"), format!("{TRACE}-{SPAN}"));
        let (denied, other_span) = (format!("{TRACE}-{SPAN}-0"), format!("{TRACE}-00f067aa0ba902b7-1"));
        let (trace, span, sampled) = (("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1"));
        for headers in [
            &[][..],
            &[("x-request-id", TRACE)],
            &[("sw8", "1-x")],
            &[("b3", &*one), ("traceparent", &*w3c)],
            &[("traceparent", "nonsense"), ("b3", &*one)],
            &[("b3", &*one), ("tracestate", "x=1")],
            // Malformed, or without ids.
            &[("b3", "1")],
            &[("b3", "0")],
            &[("b3", TRACE)],
            &[("b3", "x-y-1")],
            &[("b3", "00000000000000000000000000000000-e457b5a2e4d86bd1-1")],
            // Whether it is recorded is left open.
            &[("b3", &*open)],
            &[trace, span],
            // Two that differ, or of one name.
            &[("b3", &*one), ("b3", &*one)],
            &[("b3", &*other), trace, span, sampled],
            &[("b3", &*other_span), trace, span, sampled],
            &[("b3", &*denied), trace, span, sampled],
            &[trace, trace, span, sampled],
            &[trace, span, sampled, sampled],
            // Half of one.
            &[trace, sampled],
            &[span, sampled],
            &[("b3", &*one), trace],
            &[trace, span, ("x-b3-sampled", "yes")],
            &[trace, span, ("x-b3-sampled", "d")],
            &[trace, span, ("x-b3-flags", "2"), sampled],
            &[trace, span, ("x-b3-flags", "1"), ("x-b3-sampled", "0")],
            &[trace, span, sampled, ("x-b3-parentspanid", "x")],
            &[("x-b3-traceid", "not hex"), span, sampled],
        ] {
            assert_eq!(linked(headers), None, "{headers:?}");
        }
    }
}
