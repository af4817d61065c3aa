//! A fuzz target about the trace in a request's headers: lines are headers, with a colon between name and value.

use super::{Found, Propagation, Scan, Sender, SpanId, parse_traceparent, put, traceparent};

const ORDERS: [&[Propagation]; 3] = [
    &[Propagation::W3c, Propagation::B3, Propagation::B3Multi],
    &[Propagation::B3Multi, Propagation::W3c],
    &[Propagation::B3, Propagation::B3Multi, Propagation::W3c],
];

fn scan<'h>(order: &[Propagation], headers: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> Found {
    let mut scan = Scan::new(order);
    for (name, value) in headers {
        scan.see(name, value);
    }
    scan.finish()
}

/// What is forwarded has the same length, is of the same trace, says the same of sampling, and names its sender.
pub(crate) fn trace_context(input: &[u8]) {
    let headers: Vec<(&[u8], &[u8])> = input
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
        .collect();
    for order in ORDERS {
        let Found::Trace(parent) = scan(order, headers.iter().copied()) else { continue };
        let span = SpanId::new(!parent.span.get()).unwrap_or(parent.span);
        let sender = Sender { trace: parent.trace, span, parent: parent.span, multi: parent.multi };
        let sent: Vec<(&[u8], Vec<u8>)> = headers
            .iter()
            .map(|(name, value)| {
                let mut sent = value.to_vec();
                put(name, &mut sent, &sender);
                assert_eq!(sent.len(), value.len());
                (*name, sent)
            })
            .collect();
        let Found::Trace(next) = scan(order, sent.iter().map(|(name, value)| (*name, &value[..]))) else {
            panic!("the trace is lost: {sent:?}")
        };
        assert_eq!((next.trace, next.sampled, next.multi), (parent.trace, parent.sampled, parent.multi));
        assert_eq!(next.span, span, "the sender");
        for sampled in [false, true] {
            let read =
                parse_traceparent(&traceparent(parent.trace, span, sampled)).expect("it is well formed");
            assert_eq!((read.trace, read.span, read.sampled), (parent.trace, span, Some(sampled)));
        }
    }
}
