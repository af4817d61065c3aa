//! Which tag a request has, by header, member, trace and workload, and what is written.

use proptest::prelude::*;

use super::*;

fn names() -> TagNames {
    TagNames::new(&[HeaderName::from_static("x-mse-tag"), HeaderName::from_static("x-lane")]).expect("good")
}

fn tagging(headers: &[(&str, &str)], caller: Option<&str>) -> Tagging {
    let names = names();
    let mut scan = TagScan::new(&names);
    for (name, value) in headers {
        scan.see(name.as_bytes(), value.as_bytes());
    }
    scan.decide(Caused::default(), caller.map(|tag| tag.parse().expect("a tag")).as_ref(), || None)
}

fn by_trace(by_trace: Option<RequestTag>) -> Caused {
    Caused { by_trace, by_thread: None }
}

/// The tag, its source, whether the header and the baggage must be set, and how many values were invalid.
fn outcome(
    headers: &[(&str, &str)],
    caller: Option<&str>,
) -> (Option<String>, Option<TagSource>, bool, bool, u32) {
    let it = tagging(headers, caller);
    let set_baggage = it.set.contains(Carrier::Baggage);
    (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.set_header, set_baggage, it.invalid)
}

#[test]
fn without_names_nothing_is_read_or_written() {
    let names = TagNames::none();
    let mut scan = TagScan::new(&names);
    scan.see(b"x-mse-tag", b"gray");
    scan.see(b"baggage", b"x-mse-tag=gray");
    let workload = "blue".parse().ok();
    let tagging =
        scan.decide(Caused::default(), workload.as_ref(), || Some(RequestTag::from(&"red".parse().unwrap())));
    assert_eq!((tagging.tag, tagging.set_header, tagging.set.is_empty()), (None, false, true));
}

#[test]
fn the_trace_answers_after_headers_and_before_the_workload() {
    let names = names();
    let [gray, red] = ["gray", "red"].map(|tag| RequestTag::new(tag.as_bytes()));
    let none = Untrusted::new();
    let decide = |headers: &[(&str, &str)], strip: bool, traced: Option<RequestTag>| {
        let mut scan = TagScan::new(&names).distrusting(Distrust::new(strip, &none));
        for (name, value) in headers {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        let it = scan.decide(by_trace(traced), "blue".parse().ok().as_ref(), || None);
        assert!(!it.distrusted, "no lane distrusts a tag, and who takes out all says so of none");
        (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.conflict)
    };
    let said = |tag: &str, source: TagSource, conflict: bool| (Some(tag.to_owned()), Some(source), conflict);
    let header = [("x-mse-tag", "red")];
    let member = [("baggage", "x-mse-tag=red")];
    assert_eq!(decide(&[], false, gray), said("gray", TagSource::Trace, false));
    assert_eq!(decide(&[], false, None), said("blue", TagSource::Workload, false));
    assert_eq!(decide(&header, false, red), said("red", TagSource::Header, false));
    assert_eq!(decide(&header, false, gray), said("red", TagSource::Header, true));
    assert_eq!(decide(&member, false, gray), said("red", TagSource::Carrier(Carrier::Baggage), true));
    // What comes from outside says no tag, and neither does what came to it.
    assert_eq!(decide(&header, true, gray), said("blue", TagSource::Workload, false));
    assert!(tagging(&[("traceparent", "x")], None).set.is_empty());
    // The thread comes after the trace.
    let by_thread = |headers: &[(&str, &str)], by_trace, strip| {
        let mut scan = TagScan::new(&names).distrusting(Distrust::new(strip, &none));
        for (name, value) in headers {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        let it = scan.decide(Caused { by_trace, by_thread: gray }, "blue".parse().ok().as_ref(), || None);
        (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.conflict)
    };
    assert_eq!(by_thread(&[], None, false), said("gray", TagSource::Thread, false));
    assert_eq!(by_thread(&[], gray, false), said("gray", TagSource::Trace, false));
    assert_eq!(by_thread(&[], red, false), said("red", TagSource::Trace, true));
    assert_eq!(by_thread(&header, None, false), said("red", TagSource::Header, true));
    assert_eq!(by_thread(&[], None, true), said("blue", TagSource::Workload, false));
    let mut scan = TagScan::new(&names);
    scan.see(b"traceparent", b"x");
    let it = scan.decide(by_trace(gray), None, || None);
    assert!(it.set_header && it.set.contains(Carrier::Baggage) && it.set.contains(Carrier::Tracestate));
}

#[test]
fn the_first_that_answers_gives_the_tag() {
    use TagSource::{Header, Workload};
    const BAGGAGE: TagSource = TagSource::Carrier(Carrier::Baggage);
    let some = |tag: &str| Some(tag.to_owned());
    for (headers, caller, expected) in [
        (&[][..], None, (None, None, false, false, 0)),
        (&[("accept", "gray")][..], None, (None, None, false, false, 0)),
        (&[], Some("blue"), (some("blue"), Some(Workload), true, true, 0)),
        (&[("X-MSE-Tag", "gray")], Some("blue"), (some("gray"), Some(Header), false, true, 0)),
        (&[("x-mse-tag", " gray\t")], None, (some("gray"), Some(Header), false, true, 0)),
        (&[("Baggage", "a=1,x-mse-tag=gray")], Some("blue"), (some("gray"), Some(BAGGAGE), true, false, 0)),
        // Both carriers there and agreed: nothing to do.
        (
            &[("baggage", "x-mse-tag=gray"), ("x-mse-tag", "gray")],
            None,
            (some("gray"), Some(Header), false, false, 0),
        ),
        // Disagreed: the header counts.
        (
            &[("baggage", "x-mse-tag=red"), ("x-mse-tag", "gray")],
            None,
            (some("gray"), Some(Header), false, true, 0),
        ),
        // The order of the list, not of the head.
        (&[("x-lane", "red"), ("x-mse-tag", "gray")], None, (some("gray"), Some(Header), false, true, 0)),
        // Only another of the list: the first is set.
        (&[("x-lane", "red")], None, (some("red"), Some(Header), true, true, 0)),
        // Twice: the first counts, and one is sent on.
        (&[("x-mse-tag", "gray"), ("x-mse-tag", "red")], None, (some("gray"), Some(Header), true, true, 0)),
        (
            &[("baggage", "x-mse-tag=a"), ("baggage", "x-mse-tag=b")],
            None,
            (some("a"), Some(BAGGAGE), true, true, 0),
        ),
        (&[("baggage", "x-mse-tag=a,x-mse-tag=a")], None, (some("a"), Some(BAGGAGE), true, false, 0)),
        // What is no tag is as if it were not there, and is replaced if there is one.
        (&[("x-mse-tag", "")], None, (None, None, false, false, 1)),
        (&[("x-mse-tag", "a b"), ("baggage", "x-mse-tag=%2C")], None, (None, None, false, false, 2)),
        (&[("x-mse-tag", "-"), ("x-lane", "red")], None, (some("red"), Some(Header), true, true, 1)),
        (&[("x-mse-tag", "-"), ("x-mse-tag", "red")], None, (some("red"), Some(Header), true, true, 1)),
        (&[("baggage", "x-mse-tag=,x-mse-tag=b")], None, (some("b"), Some(BAGGAGE), true, true, 1)),
        (&[("x-mse-tag", "-")], Some("blue"), (some("blue"), Some(Workload), true, true, 1)),
        // Another key of the list is no baggage key.
        (&[("baggage", "x-lane=gray")], None, (None, None, false, false, 0)),
    ] {
        assert_eq!(outcome(headers, caller), expected, "{headers:?} from {caller:?}");
    }
}

#[test]
fn carriers_are_believed_in_their_order_and_written_where_they_are_read() {
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<(&'a str, TagSource)>, &'a [Carrier], bool);
    use Carrier::{Baggage, Correlation, Tracestate};
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let (sw8, gray, blue) = (("sw8", "1-"), "eC1tc2UtdGFn:Z3JheQ==", "eC1tc2UtdGFn:Ymx1ZQ==");
    let of = TagSource::Carrier;
    let cases: [Case<'_>; 10] = [
        (&[("tracestate", "x-mse-tag=gray")], None, &[], false),
        (&[("tracestate", "x-mse-tag=gray"), parent], Some(("gray", of(Tracestate))), &[Baggage], false),
        (&[("sw8-correlation", gray)], None, &[], false),
        (&[("SW8-Correlation", gray), sw8], Some(("gray", of(Correlation))), &[Baggage], false),
        (&[parent, sw8, ("x-mse-tag", "gray")], Some(("gray", TagSource::Header)), &Carrier::ALL, false),
        (
            &[parent, sw8, ("sw8-correlation", gray), ("tracestate", "x-mse-tag=blue")],
            Some(("blue", of(Tracestate))),
            &[Baggage, Correlation],
            true,
        ),
        (
            &[parent, sw8, ("tracestate", "x-mse-tag=blue"), ("sw8-correlation", blue)],
            Some(("blue", of(Tracestate))),
            &[Baggage],
            false,
        ),
        (
            &[("x-lane", "red"), ("baggage", "x-mse-tag=gray")],
            Some(("red", TagSource::Header)),
            &[Baggage],
            true,
        ),
        (&[("baggage", "x-mse-tag=a,x-mse-tag=b")], Some(("a", of(Baggage))), &[Baggage], false),
        // Whose readers would drop it is not asked.
        (&[("baggage", "x-mse-tag=a"), ("tracestate", "x-mse-tag=b")], Some(("a", of(Baggage))), &[], false),
    ];
    for (headers, expected, set, conflict) in cases {
        let it = tagging(headers, None);
        let found = it.tag.as_ref().map(RequestTag::as_str).zip(it.source);
        assert_eq!(found, expected, "{headers:?}");
        assert_eq!(it.set.iter().collect::<Vec<_>>(), set, "{headers:?}");
        assert_eq!(it.conflict, conflict, "{headers:?}");
    }
}

#[test]
fn a_header_that_is_no_key_of_tracestate_leaves_it_alone() {
    let names = TagNames::new(&[HeaderName::from_static("x.tag")]).expect("a header");
    let mut scan = TagScan::new(&names);
    for (name, value) in [("traceparent", "00-"), ("tracestate", "x.tag=blue"), ("x.tag", "gray")] {
        scan.see(name.as_bytes(), value.as_bytes());
    }
    let it = scan.decide(Caused::default(), None, || None);
    assert_eq!(it.set.iter().collect::<Vec<_>>(), [Carrier::Baggage]);
    assert!(!it.conflict);
}

#[test]
fn sources_have_their_places() {
    for (index, source) in TagSource::ALL.into_iter().enumerate() {
        assert_eq!(source.index(), index, "{source:?}");
    }
}

#[test]
fn names_with_a_meaning_of_their_own_are_refused() {
    let name = HeaderName::from_static;
    assert_eq!(TagNames::new(&[]).err(), Some(TagNamesError::Empty));
    let error = TagNames::new(&[name("x-a"), name("host")]).expect_err("reserved");
    assert_eq!(error.to_string(), "`host` cannot be a tag header: it has a meaning of its own in HTTP");
    assert_eq!(TagNames::new(&[name("x-a"), name("x-a")]).err(), Some(TagNamesError::Twice(name("x-a"))));
}

#[test]
fn a_request_tag_holds_what_a_tag_holds() {
    let longest = "a".repeat(MAX_TAG);
    for text in ["a", "v1.2_3-x", &longest] {
        let tag: Tag = text.parse().expect("a tag");
        assert_eq!(RequestTag::from(&tag).as_str(), text);
        assert_eq!(RequestTag::new(text.as_bytes()), Some(RequestTag::from(&tag)));
    }
    assert_eq!(RequestTag::new("a".repeat(MAX_TAG + 1).as_bytes()), None);
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop::sample::select(vec![
        "x-mse-tag",
        "X-Mse-Tag",
        "x-lane",
        "baggage",
        "Baggage",
        "tracestate",
        "sw8-correlation",
        "accept",
        "traceparent",
        "sw8",
    ]);
    let value = prop_oneof![
        "[a-z-]{0,4}",
        "(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})(,(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})){0,3}",
        "(eC1tc2UtdGFn:[YZ]{4}|YQ==:Yg==)(,(eC1tc2UtdGFn:[YZ]{4}|YQ==:Yg==)){0,3}",
        any::<String>(),
    ];
    (name.prop_map(str::to_owned), value.prop_map(String::into_bytes))
}

proptest! {
    /// Doing what the decision says makes a request whose tag is the same, from the header, with nothing left
    /// to do: the next hop agrees with this one.
    #[test]
    fn the_next_hop_agrees(headers in prop::collection::vec(header(), 0..6), caller in prop::option::of("[a-z]{1,4}")) {
        let names = names();
        let caller: Option<Tag> = caller.map(|tag| tag.parse().expect("a tag"));
        let mut scan = TagScan::new(&names);
        for (name, value) in &headers {
            scan.see(name.as_bytes(), value);
        }
        let decision = scan.decide(Caused::default(), caller.as_ref(), || None);
        let Some(tag) = decision.tag else {
            prop_assert!(!decision.set_header && decision.set.is_empty() && caller.is_none());
            return Ok(());
        };
        let mut sent = headers.clone();
        if decision.set_header {
            sent.retain(|(name, _)| !names.is_header(name.as_bytes()));
            sent.push((names.header().to_string(), tag.as_bytes().to_vec()));
        }
        let mut full = Carriers::default();
        for carrier in decision.set.iter() {
            let is_its = |name: &str| carrier.header().as_str().eq_ignore_ascii_case(name);
            let lines = headers.iter().filter(|(name, _)| is_its(name)).map(|(_, value)| value.as_slice());
            match carrier.set(lines, names.key(), tag.as_bytes()) {
                Some(edited) => {
                    sent.retain(|(name, _)| !is_its(name));
                    sent.push((carrier.header().to_string(), edited));
                }
                None => full.insert(carrier),
            }
        }
        prop_assert!(!full.contains(Carrier::Baggage), "there is room");
        let mut scan = TagScan::new(&names);
        for (name, value) in &sent {
            scan.see(name.as_bytes(), value);
        }
        let next = scan.decide(Caused::default(), None, || None);
        prop_assert_eq!(next.tag, Some(tag));
        prop_assert_eq!(next.source, Some(TagSource::Header));
        prop_assert!(!next.set_header && next.set == full && !next.conflict, "{:?}", next);
    }
}

/// A tag that must not be brought along is as if nobody had said it, and does not travel on; all others count as ever.
#[test]
fn a_tag_that_is_not_trusted_is_taken_out() {
    use TagSource::{Carrier as By, Entry, Header, Trace, Workload};
    let names = names();
    let untrusted: Untrusted = [("gray".parse().expect("a tag"), "shop/gray".into())].into();
    let decide = |headers: &[(&str, &str)], [traced, caller, entry]: [Option<&str>; 3]| {
        let mut scan = TagScan::new(&names).distrusting(Distrust::new(false, &untrusted));
        for (name, value) in headers {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        let tag = |tag: &str| RequestTag::new(tag.as_bytes()).expect("a tag");
        let caller: Option<Tag> = caller.map(|tag| tag.parse().expect("a tag"));
        let it = scan.decide(by_trace(traced.map(tag)), caller.as_ref(), || entry.map(tag));
        assert_eq!(it.strip, it.distrusted, "{headers:?}: what is not trusted is taken out");
        // What was taken out is said again where it counts.
        let again = it.set_header && it.set.contains(Carrier::Baggage);
        assert!(!it.strip || it.tag.is_none() || again, "{headers:?}");
        (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.distrusted)
    };
    let is = |tag: &str, source, distrusted| (Some(tag.to_owned()), Some(source), distrusted);
    let (gray, red) = (("x-mse-tag", "gray"), ("x-mse-tag", "red"));
    let member = |tag| ("baggage", if tag == "gray" { "x-mse-tag=gray" } else { "x-mse-tag=red" });
    for (headers, others, wanted) in [
        (&[][..], [None; 3], (None, None, false)),
        (&[red], [None; 3], is("red", Header, false)),
        (&[gray], [None; 3], (None, None, true)),
        (&[member("gray")], [None; 3], (None, None, true)),
        (&[("x-lane", "gray")], [None; 3], (None, None, true)),
        (&[], [Some("gray"), None, None], (None, None, true)),
        (&[], [Some("red"), None, None], is("red", Trace, false)),
        // What else says a tag is asked as if nobody had.
        (&[gray], [None, Some("blue"), None], is("blue", Workload, true)),
        (&[gray], [None, Some("gray"), None], is("gray", Workload, true)),
        (&[gray], [None, None, Some("gray")], is("gray", Entry, true)),
        (&[gray], [Some("red"), None, None], is("red", Trace, true)),
        (&[gray, member("red")], [None; 3], is("red", By(Carrier::Baggage), true)),
        (&[red, member("gray")], [None; 3], is("red", Header, true)),
        (&[gray, red], [None; 3], is("red", Header, true)),
        (&[("x-mse-tag", "gr/ay")], [None; 3], (None, None, false)),
        // It is none here, but to a service that passes it on under the name for which it takes it.
        (&[("X_Mse-Tag", "gray")], [None; 3], (None, None, true)),
        (&[("x_mse_tag", "red")], [None; 3], (None, None, false)),
        (&[red, ("x_lane", "gray")], [None; 3], is("red", Header, true)),
    ] {
        assert_eq!(decide(headers, others), wanted, "{headers:?} {others:?}");
    }
}

#[test]
fn two_services_distrust_what_either_does() {
    let of = |tag: &str| Untrusted::from([(tag.parse().expect("a tag"), format!("shop/{tag}").into())]);
    let (gray, red, none) = (of("gray"), of("red"), Untrusted::new());
    let tag = |tag: &str| RequestTag::new(tag.as_bytes()).expect("a tag");
    let both = Distrust::new(false, &gray).and(Distrust::new(false, &red));
    assert_eq!(both.lane_of(&tag("gray")).map(|lane| &**lane), Some("shop/gray"));
    assert_eq!(both.lane_of(&tag("red")).map(|lane| &**lane), Some("shop/red"));
    assert!(both.lane_of(&tag("blue")).is_none() && both.is_of_some() && !both.is_of_all());
    assert!(!Distrust::new(false, &none).is_of_some());
    assert!(Distrust::new(false, &none).and(Distrust::ALL).is_of_all());
}
