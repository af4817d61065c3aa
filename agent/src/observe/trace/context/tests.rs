use super::*;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

fn parent(sampled: Option<bool>) -> Parent {
    Parent { trace: TraceId(TRACE), span: SpanId(SPAN), sampled, multi: false }
}

fn scan(propagation: &[Propagation], headers: &[(&str, &str)]) -> Found {
    let mut scan = Scan::new(propagation);
    for (name, value) in headers {
        scan.see(name.as_bytes(), value.as_bytes());
    }
    scan.finish()
}

#[test]
fn a_traceparent_is_read_as_the_recommendation_says() {
    let read = |sampled| Some(parent(Some(sampled)));
    assert_eq!(parse_traceparent(TRACEPARENT.as_bytes()), read(true));
    let unsampled = TRACEPARENT.replace("-01", "-00");
    assert_eq!(parse_traceparent(unsampled.as_bytes()), read(false));
    // Flags of tomorrow, a version of tomorrow with more parts.
    let later = format!("cc-{}03-what-ever", &TRACEPARENT[3..53]);
    assert_eq!(parse_traceparent(later.as_bytes()), read(true));
    for bad in [
        "",
        "00",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn b3_is_read_when_asked_for_only() {
    let single = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90";
    assert_eq!(scan(&[Propagation::W3c], &[("b3", single)]), Found::Nothing);
    for (value, wanted) in [
        (single, Found::Trace(parent(Some(true)))),
        (&single[..51], Found::Trace(parent(Some(true)))),
        (&single[..49], Found::Trace(parent(None))),
        ("0", Found::Unusable { denied: true }),
        ("1", Found::Unusable { denied: false }),
        ("what", Found::Unusable { denied: false }),
    ] {
        assert_eq!(scan(&[Propagation::B3], &[("B3", value)]), wanted, "{value}");
    }
    let multi = [
        ("X-B3-TraceId", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("X-B3-Sampled", "0"),
        ("X-B3-SpanId", "00f067aa0ba902b7"),
    ];
    assert_eq!(
        scan(&[Propagation::B3Multi], &multi),
        Found::Trace(Parent { multi: true, ..parent(Some(false)) })
    );
    assert_eq!(scan(&[Propagation::B3Multi], &multi[..2]), Found::Unusable { denied: true });
    let short = [("x-b3-traceid", "a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7")];
    let Found::Trace(found) = scan(&[Propagation::B3Multi], &short) else { panic!("no trace") };
    assert_eq!(found.trace.to_string(), "0000000000000000a3ce929d0e0e4736");
}

#[test]
fn two_traceparents_are_none() {
    let twice = [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)];
    assert_eq!(scan(&[Propagation::W3c], &twice), Found::Unusable { denied: false });
}

#[test]
fn of_several_the_first_in_the_list_counts() {
    let headers = [("b3", "00000000000000010000000000000002-0000000000000003"), ("traceparent", TRACEPARENT)];
    let trace = |found| match found {
        Found::Trace(parent) => parent.trace.get(),
        _ => 0,
    };
    assert_eq!(trace(scan(&[Propagation::W3c, Propagation::B3], &headers)), TRACE);
    assert_eq!(trace(scan(&[Propagation::B3, Propagation::W3c], &headers)), 0x1_0000_0000_0000_0002);
}

#[test]
fn a_span_is_put_in_place() {
    let (span, parent) = (SpanId(0xabcd_ef01_2345_6789), SpanId(0x1111_1111_1111_1111));
    let sender = Sender { trace: TraceId(TRACE), span, parent, multi: true };
    for (name, before, after) in [
        ("traceparent", TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-abcdef0123456789-01"),
        (
            "TraceParent",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-abcdef0123456789-01 ",
        ),
        (
            "b3",
            "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90",
            "4bf92f3577b34da6a3ce929d0e0e4736-abcdef0123456789-1-1111111111111111",
        ),
        (
            "b3",
            "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "4bf92f3577b34da6a3ce929d0e0e4736-abcdef0123456789",
        ),
        ("x-b3-spanid", "00f067aa0ba902b7", "abcdef0123456789"),
        ("x-b3-parentspanid", "05e3ac9a4f6e3b90", "1111111111111111"),
        // Of another trace, malformed, or not of a trace at all: as they were.
        (
            "b3",
            "5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ),
        ("traceparent", "nonsense", "nonsense"),
        ("x-b3-spanid", "7", "7"),
        ("x-b3-traceid", "4bf92f3577b34da6", "4bf92f3577b34da6"),
        ("x-user", "00f067aa0ba902b7", "00f067aa0ba902b7"),
    ] {
        let mut value = before.as_bytes().to_vec();
        put(name.as_bytes(), &mut value, &sender);
        assert_eq!(value, after.as_bytes(), "{name}: {before}");
    }
    // The many headers are of another trace, or of none.
    let mut value = b"00f067aa0ba902b7".to_vec();
    put(b"x-b3-spanid", &mut value, &Sender { multi: false, ..sender });
    assert_eq!(value, b"00f067aa0ba902b7");
}

#[test]
fn the_many_headers_are_changed_with_the_others_of_their_trace_only() {
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let all = [Propagation::W3c, Propagation::B3Multi];
    for (multi, same) in [(id, true), ("5bf92f3577b34da6a3ce929d0e0e4736", false)] {
        let headers =
            [("traceparent", TRACEPARENT), ("x-b3-traceid", multi), ("x-b3-spanid", "00f067aa0ba902b7")];
        assert_eq!(
            scan(&all, &headers),
            Found::Trace(Parent { multi: same, ..parent(Some(true)) }),
            "{multi}"
        );
        assert_eq!(scan(&all[..1], &headers), Found::Trace(parent(Some(true))), "{multi}");
    }
}

#[test]
fn a_new_trace_is_one_that_is_understood() {
    let mut rng = fastrand::Rng::with_seed(7);
    for sampled in [false, true] {
        let (trace, span) = (TraceId::random(&mut rng), SpanId::random(&mut rng));
        let value = traceparent(trace, span, sampled);
        assert_eq!(
            parse_traceparent(&value),
            Some(Parent { trace, span, sampled: Some(sampled), multi: false })
        );
    }
}

proptest::proptest! {
    #[test]
    fn hostile_headers_change_nothing_but_digits(name in "traceparent|b3|x-b3-spanid|x-b3-parentspanid", value in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
        let mut changed = value.clone();
        let sender = Sender { trace: TraceId(TRACE), span: SpanId(1), parent: SpanId(2), multi: true };
        put(name.as_bytes(), &mut changed, &sender);
        proptest::prop_assert_eq!(changed.len(), value.len());
        let mut scan = Scan::new(&[Propagation::W3c, Propagation::B3, Propagation::B3Multi]);
        scan.see(name.as_bytes(), &value);
        scan.finish();
    }
}

#[test]
fn of_two_ids_in_many_headers_one_that_is_malformed_leaves_no_trace() {
    let order = [Propagation::B3Multi];
    let (trace, span) = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312");
    for (name, good) in [("x-b3-traceid", trace), ("x-b3-spanid", span)] {
        let mut scan = Scan::new(&order);
        scan.see(b"x-b3-traceid", trace.as_bytes());
        scan.see(b"x-b3-spanid", span.as_bytes());
        assert!(matches!(scan.finish(), Found::Trace(Parent { multi: true, .. })));
        scan.see(name.as_bytes(), b"463ac");
        assert_eq!(scan.finish(), Found::Unusable { denied: false }, "{name}");
        scan.see(name.as_bytes(), good.as_bytes());
        assert!(matches!(scan.finish(), Found::Trace(Parent { multi: true, .. })), "{name}");
    }
}
