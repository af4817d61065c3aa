//! Entry rules of lanes: a request that nothing else tags is coloured where it enters, and is then like any other.

use sluice::govern::policy::{EntryRule, PathMatch, RequestMatch};

use crate::{origin::Origin, rig::Rig};

/// Requests below this path.
fn below(path: &str) -> EntryRule {
    let path = Some(PathMatch::Prefix(path.to_owned()));
    let matches = RequestMatch { path, ..RequestMatch::default() };
    EntryRule { matches, percentage: None }
}

#[test]
fn a_coloured_request_goes_to_its_lane_and_carries_its_tag() {
    let (baseline, gray) = (Origin::fixed("baseline"), Origin::fixed("gray"));
    let service = Rig::builder().endpoint(baseline.address).lane("gray", gray.address);
    let rig = service.entry("gray", vec![below("/beta")]).start();
    let mut caller = rig.dial();
    caller.send("GET /beta/1 HTTP/1.1\r\nHost: a\r\nbaggage: a=b\r\n\r\n");
    assert_eq!(caller.answer().body, "gray");
    let head = gray.await_notes(1).remove(0);
    assert!(
        head.contains("\r\nx-mse-tag: gray\r\n") && head.contains("\r\nbaggage: a=b,x-mse-tag=gray\r\n"),
        "{head}"
    );
    caller.get("/betaa");
    assert_eq!(caller.answer().body, "baseline");
    assert!(!baseline.await_notes(1)[0].contains("x-mse-tag"));
}

#[test]
fn a_tag_that_is_there_is_not_overruled() {
    let (baseline, gray) = (Origin::fixed("baseline"), Origin::fixed("gray"));
    let service = Rig::builder().endpoint(baseline.address).lane("gray", gray.address);
    let rig = service.entry("gray", vec![below("/")]).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: blue\r\n\r\n");
    assert_eq!(caller.answer().body, "baseline");
    assert!(baseline.await_notes(1)[0].contains("\r\nx-mse-tag: blue\r\n"));
}

#[test]
fn a_tag_that_must_not_be_brought_along_is_removed_before_the_rules_are_asked() {
    let (baseline, gray) = (Origin::fixed("baseline"), Origin::fixed("gray"));
    let service = Rig::builder().endpoint(baseline.address).lane("gray", gray.address);
    let rig = service.strict_entry("gray", vec![below("/beta")]).start();
    let mut caller = rig.dial();
    let tagged = "Host: a\r\nx-mse-tag: gray\r\nbaggage: a=b,x-mse-tag=gray\r\n\r\n";
    caller.send(format!("GET / HTTP/1.1\r\n{tagged}"));
    assert_eq!(caller.answer().body, "baseline");
    let head = baseline.await_notes(1).remove(0);
    assert!(!head.contains("x-mse-tag") && head.contains("\r\nbaggage: a=b\r\n"), "{head}");
    caller.send(format!("GET /beta HTTP/1.1\r\n{tagged}"));
    assert_eq!(caller.answer().body, "gray");
    let head = gray.await_notes(1).remove(0);
    assert!(head.contains("\r\nx-mse-tag: gray\r\n") && head.contains("a=b,x-mse-tag=gray\r\n"), "{head}");
}
