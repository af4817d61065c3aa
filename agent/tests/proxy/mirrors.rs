//! Requests of which another service gets a copy.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    connecting::Deaf,
    origin::Origin,
    rig::{Builder, Rig},
};

fn mirrored(orders: &Origin, further: &Value) -> Builder {
    let mut mirror = json!({ "backendRef": { "name": "canary", "port": 80 } });
    for (name, value) in further.as_object().into_iter().flatten() {
        mirror[name] = value.clone();
    }
    let rules = json!([{
        "filters": [{ "type": "RequestMirror", "requestMirror": mirror }],
        "backendRefs": [{ "name": "orders", "port": 80 }],
    }]);
    Rig::builder().endpoint(orders.address).route(&rules)
}

/// Notes down each request whole, with its body, which has `length` bytes; answers it.
fn whole(length: usize) -> Origin {
    Origin::new(move |number, peer, note| {
        while let Some(head) = peer.request() {
            let body = String::from_utf8(peer.exactly(length)).unwrap();
            note(format!("{number} {head}{body}"));
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nc");
        }
    })
}

const COPIES: &str = "sluice_mirrored_requests_total";

#[test]
fn a_copy_goes_to_the_mirror_and_its_answer_nowhere() {
    let (orders, canary) =
        (Origin::fixed("orders"), Origin::raw("HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbad"));
    let rig = mirrored(&orders, &json!({})).canary(canary.address).start();
    let mut caller = rig.dial();
    for n in 1..=3 {
        caller.get(&format!("/{n}"));
        assert_eq!(caller.answer().status(), 200, "nothing of the mirror's answer");
        let copies = canary.await_notes(n);
        assert!(copies[n - 1].contains(&format!("GET /{n} HTTP/1.1")), "{copies:?}");
        rig.await_metric(COPIES, &["destination_service=\"canary\"", "outcome=\"answered\""], n as f64);
    }
    assert_eq!(orders.noted().len(), 3);
    assert!(canary.noted().iter().all(|note| note.starts_with("0 ")), "over one connection");
}

#[test]
fn the_copy_has_the_body_however_it_comes() {
    let (orders, canary) = (whole(6), whole(6));
    let rig = mirrored(&orders, &json!({ "percent": 100 })).canary(canary.address).start();
    let mut caller = rig.dial();
    caller.send("POST /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabcdef");
    assert_eq!(caller.answer().status(), 200);
    assert!(canary.await_notes(1)[0].ends_with("\r\n\r\nabcdef"));
    caller.send("POST /parts HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    caller.send("abc");
    // It is not there before all of it is.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(canary.noted().len(), 1);
    caller.send("def");
    assert_eq!(caller.answer().status(), 200);
    assert!(canary.await_notes(2)[1].ends_with("\r\n\r\nabcdef"));
}

#[test]
fn a_chunked_body_is_copied_as_it_comes() {
    let chunked = "3\r\nabc\r\n0\r\n\r\n";
    let (orders, canary) = (whole(chunked.len()), whole(chunked.len()));
    let rig = mirrored(&orders, &json!({})).canary(canary.address).start();
    let mut caller = rig.dial();
    caller.send("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab");
    caller.send("c\r\n0\r\n\r\n");
    assert_eq!(caller.answer().status(), 200);
    assert!(canary.await_notes(1)[0].ends_with(chunked));
}

#[test]
fn what_is_too_large_or_ends_early_has_no_copy() {
    let length = 100 * 1024;
    let (orders, canary) = (whole(length), whole(0));
    let rig = mirrored(&orders, &json!({})).canary(canary.address).start();
    let mut caller = rig.dial();
    caller.send(format!("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    caller.send("x".repeat(length));
    assert_eq!(caller.answer().status(), 200, "the request itself is as any other");
    rig.await_metric(COPIES, &["outcome=\"too_large\""], 1.0);
    assert_eq!(canary.noted().len(), 0);

    // It is answered before all of it has come, and then its client leaves.
    let hasty = Origin::fixed("orders");
    let rig = mirrored(&hasty, &json!({})).canary(canary.address).start();
    let mut leaves = rig.dial();
    leaves.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(leaves.answer().status(), 200);
    leaves.reset();
    drop(leaves);
    rig.await_metric(COPIES, &["outcome=\"incomplete\""], 1.0);
    assert_eq!(canary.noted().len(), 0);
}

#[test]
fn a_mirror_that_fails_or_is_silent_harms_nobody() {
    let orders = Origin::fixed("orders");
    let rig = mirrored(&orders, &json!({})).canary(Origin::nobody()).start();
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        assert_eq!(caller.answer().status(), 200);
    }
    rig.await_metric(COPIES, &["outcome=\"failed\""], 3.0);

    // One that never answers: so many copies are on their way, and no more.
    let silent = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
        }
    });
    let rig = mirrored(&orders, &json!({})).canary(silent.address).start();
    let mut caller = rig.dial();
    for _ in 0..40 {
        caller.get("/");
        assert_eq!(caller.answer().status(), 200);
    }
    rig.await_metric(COPIES, &["outcome=\"over_budget\""], 8.0);
    silent.await_notes(32);
}

#[test]
fn a_mirror_that_accepts_no_connection_is_given_up_like_any_endpoint() {
    let (orders, canary) = (Origin::fixed("orders"), Deaf::new());
    let rig = mirrored(&orders, &json!({})).canary(canary.address).start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().status(), 200);
    rig.await_metric(COPIES, &["outcome=\"failed\""], 1.0);
    // Not at the end of all its time.
    rig.await_metric("sluice_upstream_connects_total", &["outcome=\"timeout\""], 1.0);
}

#[test]
fn what_is_no_part_of_the_fraction_has_no_copy() {
    let (orders, canary) = (Origin::fixed("orders"), Origin::fixed("canary"));
    let rig = mirrored(&orders, &json!({ "fraction": { "numerator": 0, "denominator": 7 } }))
        .canary(canary.address)
        .start();
    let mut caller = rig.dial();
    for _ in 0..20 {
        caller.get("/");
        assert_eq!(caller.answer().status(), 200);
    }
    assert_eq!(canary.noted().len(), 0);
    rig.await_metric(COPIES, &["outcome=\"answered\""], 0.0);
}

#[test]
fn an_upgrade_is_not_copied() {
    let orders =
        Origin::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n");
    let canary = Origin::fixed("canary");
    let rig = mirrored(&orders, &json!({})).canary(canary.address).start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n");
    assert!(caller.head().starts_with("HTTP/1.1 101"));
    rig.await_metric(COPIES, &["outcome=\"unsupported\""], 1.0);
    assert_eq!(canary.noted().len(), 0);
}

/// A copy enters a lane as a request does that is sent there: what it causes further on stays in the lane. The request itself and
/// what its own endpoint sees are as without.
#[test]
fn a_copy_enters_the_lane_of_its_mirror() {
    let (orders, canary) = (whole(3), whole(3));
    let rig = mirrored(&orders, &json!({})).canary_of_lane("gray", canary.address).start();
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nbaggage: a=b\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(caller.answer().status(), 200);
    let copy = canary.await_notes(1).remove(0);
    assert!(copy.starts_with("0 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"), "{copy}");
    assert!(copy.contains("\r\nx-mse-tag: gray\r\n"), "{copy}");
    assert!(copy.contains("\r\nbaggage: a=b,x-mse-tag=gray\r\n") && copy.ends_with("\r\n\r\nabc"), "{copy}");
    let own = orders.noted().remove(0);
    assert!(!own.contains("x-mse-tag") && own.contains("\r\nbaggage: a=b\r\n"), "{own}");
    rig.await_metric(COPIES, &["destination_service=\"canary\"", "outcome=\"answered\""], 1.0);
    // One that has a tag keeps it, and finds nobody of its own there.
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nx-mse-tag: blue\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(caller.answer().status(), 200);
    rig.await_metric(COPIES, &["destination_service=\"canary\"", "outcome=\"no_endpoint\""], 1.0);
    assert_eq!(canary.noted().len(), 1);
}
