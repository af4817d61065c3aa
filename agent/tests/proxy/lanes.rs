//! Where tagged requests go.

use crate::{origin::Origin, rig::Rig};

fn ask(rig: &Rig, lines: &str) -> String {
    let mut caller = rig.dial();
    caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
    caller.answer().body
}

#[test]
fn a_tagged_request_goes_to_its_lane_and_falls_back() {
    let (baseline, gray) = (Origin::fixed("base"), Origin::fixed("gray"));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", gray.address).start();
    let mut caller = rig.dial();
    for (lines, body) in [
        ("", "base"),
        ("x-mse-tag: gray\r\n", "gray"),
        ("baggage: a=b, x-mse-tag=gray\r\n", "gray"),
        ("x-mse-tag: blue\r\n", "base"),
    ] {
        caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(caller.answer().body, body, "{lines:?}");
    }
    assert!(baseline.noted()[1].contains("baggage: x-mse-tag=blue"));
    rig.await_metric("sluice_tags_total", &["outcome=\"routed\""], 2.0);
    rig.await_metric("sluice_tags_total", &["outcome=\"fell_back\""], 1.0);
    rig.await_metric("sluice_requests_total", &["destination_lane=\"gray\""], 2.0);
    rig.await_metric("sluice_requests_total", &["destination_lane=\"baseline\""], 2.0);
}

#[test]
fn the_callers_own_tag_colours_what_it_sends() {
    let (baseline, gray) = (Origin::fixed("base"), Origin::fixed("gray"));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", gray.address).caller("gray").start();
    assert_eq!(ask(&rig, ""), "gray");
    assert_eq!(
        gray.noted(),
        ["0 GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\nbaggage: x-mse-tag=gray\r\n\r\n"]
    );
    assert_eq!(ask(&rig, "x-mse-tag: blue\r\n"), "base", "what the request says comes first");
}

#[test]
fn a_tag_travels_in_what_tracers_pass_on() {
    const PARENT: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let (baseline, gray) = (Origin::fixed("base"), Origin::fixed("gray"));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", gray.address).start();
    assert_eq!(ask(&rig, &format!("{PARENT}tracestate: rojo=1\r\nsw8: 1-\r\nx-mse-tag: gray\r\n")), "gray");
    let sent = gray.noted().pop().unwrap();
    assert!(sent.contains("\r\ntracestate: x-mse-tag=gray,rojo=1\r\n"), "{sent}");
    assert!(sent.contains("\r\nsw8-correlation: eC1tc2UtdGFn:Z3JheQ==\r\n"), "{sent}");

    // A service in between sends on no more than its tracer does.
    assert_eq!(ask(&rig, &format!("{PARENT}tracestate: x-mse-tag=gray,rojo=1\r\n")), "gray");
    assert_eq!(ask(&rig, "sw8: 1-\r\nsw8-correlation: eC1tc2UtdGFn:Z3JheQ==\r\n"), "gray");
    assert_eq!(ask(&rig, "tracestate: x-mse-tag=gray\r\n"), "base", "without a traceparent it means nothing");
    for carrier in ["header", "tracestate", "sw8_correlation"] {
        rig.await_metric("sluice_tag_carriers_total", &[&format!("carrier=\"{carrier}\"")], 1.0);
    }

    assert_eq!(
        ask(&rig, &format!("{PARENT}tracestate: x-mse-tag=gray\r\nbaggage: x-mse-tag=blue\r\n")),
        "base"
    );
    rig.await_metric("sluice_tags_total", &["outcome=\"conflict\""], 1.0);
}

#[test]
fn a_tag_that_is_none_is_ignored() {
    let origin = Origin::fixed("base");
    let rig = Rig::before(&origin);
    assert_eq!(ask(&rig, "x-mse-tag: not/a/tag\r\n"), "base");
    rig.await_metric("sluice_tags_total", &["outcome=\"invalid\""], 1.0);
}

#[test]
fn an_untagged_request_never_reaches_a_lane() {
    let gray = Origin::fixed("gray");
    let rig = Rig::builder().lane("gray", gray.address).start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "no_endpoint");
    assert_eq!(gray.noted(), Vec::<String>::new());
}

#[test]
fn a_lane_that_cannot_answer_and_has_nothing_to_fall_back_to() {
    let gray = Origin::fixed("gray");
    let rig = Rig::builder().unready("gray", gray.address).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\n\r\n");
    caller.answer().made_up(503, "lane_unavailable");
    rig.await_metric("sluice_tags_total", &["outcome=\"rejected\""], 1.0);
    rig.await_requests("5xx", "lane_unavailable", 1.0);
    assert_eq!(gray.noted(), Vec::<String>::new());
}

#[test]
fn a_lane_that_refuses_connections_falls_back() {
    let baseline = Origin::fixed("base");
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", Origin::nobody()).start();
    for _ in 0..5 {
        assert_eq!(ask(&rig, "x-mse-tag: gray\r\n"), "base");
    }
    rig.await_metric("sluice_tags_total", &["outcome=\"fell_back\""], 5.0);
    rig.await_metric("sluice_requests_total", &["destination_lane=\"gray\""], 0.0);
    rig.await_metric("sluice_requests_in_flight", &[], 0.0);
}

#[test]
fn a_service_without_endpoints() {
    let rig = Rig::builder().start();
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        caller.answer().made_up(503, "no_endpoint");
    }
    // A body that still has to come would be taken for the next request.
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n");
    let answer = caller.answer();
    answer.made_up(503, "no_endpoint");
    assert!(answer.has("connection: close"));
    assert_eq!(caller.rest(), "");
    rig.await_requests("5xx", "no_endpoint", 3.0);
}

#[test]
fn a_caller_that_chose_its_endpoint_stays_with_it() {
    let (chosen, other) = (Origin::fixed("chosen"), Origin::fixed("other"));
    let service = Rig::builder().endpoint(chosen.address).endpoint(other.address).lane("gray", other.address);
    let rig = service.pinned().start();
    for lines in ["", "x-mse-tag: gray\r\n"].repeat(5) {
        assert_eq!(ask(&rig, lines), "chosen");
    }
    let rig = Rig::builder().endpoint(Origin::nobody()).endpoint(other.address).pinned().start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "upstream_connect");
    assert_eq!(other.noted(), Vec::<String>::new());
}

/// Whoever calls such a service without its tag learns why nobody answers. Pods of a lane get no request that is in none: not even
/// where there is nobody else.
#[test]
fn a_service_of_a_lane_alone_says_so_to_who_is_not_in_it() {
    let gray = Origin::fixed("gray");
    let rig = Rig::builder().lane("gray", gray.address).start();
    for (lines, who) in [("", "has no tag"), ("x-mse-tag: blue\r\n", "has the tag blue")] {
        let mut caller = rig.dial();
        caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        let answer = caller.answer();
        answer.made_up(503, "no_endpoint");
        let wanted = format!("those that are ready are of lane gray alone, and the request {who}\"");
        assert!(answer.body.contains(&wanted), "{}", answer.body);
    }
    assert_eq!(ask(&rig, "x-mse-tag: gray\r\n"), "gray");
    assert_eq!(gray.noted().len(), 1);
}

/// Where nobody is there at all there is nothing to say of lanes, and of very many only a few are named.
#[test]
fn a_service_says_no_more_of_its_lanes_than_a_sentence_bears() {
    let rig = Rig::builder().start();
    let mut caller = rig.dial();
    caller.get("/");
    let answer = caller.answer();
    answer.made_up(503, "no_endpoint");
    assert!(!answer.body.contains("lane"), "{}", answer.body);

    let origin = Origin::fixed("lane");
    let lanes = ["a", "b", "c", "d", "e", "f", "g"];
    let rig = lanes.iter().fold(Rig::builder(), |rig, lane| rig.lane(lane, origin.address)).start();
    let mut caller = rig.dial();
    caller.get("/");
    let answer = caller.answer();
    assert!(answer.body.contains("of lanes a, b, c, d, e and 2 others alone"), "{}", answer.body);
}
