//! Whose time a request's was: the endpoints', or Sluice's own.

use std::time::Duration;

use sluice::govern::policy::{Policy, Timeouts};

use crate::{origin::Origin, rig::Rig};

fn sum(rig: &Rig, name: &str) -> f64 {
    rig.metric(&format!("sluice_{name}_duration_seconds_sum"), &[])
}

fn count(rig: &Rig, name: &str) -> f64 {
    rig.metric(&format!("sluice_{name}_duration_seconds_count"), &[])
}

#[test]
fn an_answers_time_is_the_endpoints_and_what_was_added() {
    let origin = Origin::new(|_, peer, _| {
        while peer.request().is_some() {
            std::thread::sleep(Duration::from_millis(50));
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun");
            std::thread::sleep(Duration::from_millis(50));
            peer.send("x".repeat(95));
        }
    });
    let rig = Rig::builder().endpoint(origin.address).start();
    let mut caller = rig.dial();
    for _ in 0..3 {
        caller.get("/");
        assert_eq!(caller.answer().status(), 200);
    }
    rig.await_requests("2xx", "", 3.0);
    assert_eq!((count(&rig, "upstream"), count(&rig, "added")), (3.0, 3.0));
    let [total, upstream, added] = ["request", "upstream", "added"].map(|name| sum(&rig, name));
    assert!(upstream >= 0.15, "the endpoint took {upstream} s");
    assert!(added > 0.0 && upstream + added <= total, "{upstream} + {added} of {total} s");
}

#[test]
fn nothing_is_added_to_what_is_not_answered() {
    let origin = Origin::new(|_, peer, _| while peer.request().is_some() {});
    let timeouts = Timeouts { backend_request: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let policy = Policy { timeouts, ..Policy::default() };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(504, "timeout");
    rig.await_requests("5xx", "timeout", 1.0);
    assert_eq!((count(&rig, "upstream"), count(&rig, "added")), (1.0, 0.0));
    // The timeout runs from the attempt's begin, a moment before its headers are sent.
    assert!(sum(&rig, "upstream") >= 0.095, "{}", sum(&rig, "upstream"));
}

#[test]
fn where_nobody_was_asked_nobody_took_any_time() {
    let rig = Rig::builder().start();
    let mut caller = rig.dial();
    caller.get("/");
    caller.answer().made_up(503, "no_endpoint");
    rig.await_requests("5xx", "no_endpoint", 1.0);
    assert_eq!((count(&rig, "upstream"), count(&rig, "added")), (0.0, 0.0));
}
