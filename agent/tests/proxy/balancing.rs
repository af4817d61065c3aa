//! Who gets what without any policy, through the whole proxy: every attempt counts, however it ends.

use std::{thread, time::Duration};

use crate::{origin::Origin, rig::Rig};

const REQUESTS: usize = 120;

/// How many of so many requests, one after the other, the first endpoint got.
fn got(first: &Origin, second: &Origin) -> usize {
    let rig = Rig::builder().endpoint(first.address).endpoint(second.address).start();
    let mut caller = rig.dial();
    for _ in 0..REQUESTS {
        caller.get("/");
        caller.answer();
    }
    assert_eq!(first.noted().len() + second.noted().len(), REQUESTS);
    first.noted().len()
}

#[test]
fn equals_get_the_same() {
    // Their latency is theirs: what a busy machine adds to it is little beside.
    let equal = || {
        Origin::new(|number, peer, note| {
            while let Some(head) = peer.request() {
                note(format!("{number} {head}"));
                thread::sleep(Duration::from_millis(20));
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        })
    };
    let got = got(&equal(), &equal());
    assert!((REQUESTS * 2 / 5..=REQUESTS * 3 / 5).contains(&got), "{got} of {REQUESTS}");
}

#[test]
fn one_that_fails_at_once_gets_less_than_its_share() {
    for answer in [
        "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 429 Enough\r\ncontent-length: 0\r\n\r\n",
        // A bad gateway in between.
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        let got = got(&Origin::raw(answer), &Origin::fixed("ok"));
        assert!((1..REQUESTS / 6).contains(&got), "{got} of {REQUESTS}: {answer:?}");
    }
}

#[test]
fn one_that_says_when_to_come_again_is_spared_until_then() {
    for answer in [
        "HTTP/1.1 429 Enough\r\nRetry-After: 20\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Later\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n",
    ] {
        let got = got(&Origin::raw(answer), &Origin::fixed("ok"));
        assert!((1..=8).contains(&got), "{got} of {REQUESTS}: {answer:?}");
    }
}

#[test]
fn one_that_is_slow_gets_little() {
    let slow = Origin::new(|number, peer, note| {
        while let Some(head) = peer.request() {
            note(format!("{number} {head}"));
            thread::sleep(Duration::from_millis(50));
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let got = got(&slow, &Origin::fixed("ok"));
    assert!((1..REQUESTS / 4).contains(&got), "{got} of {REQUESTS}");
}

#[test]
fn one_that_hangs_gets_a_trickle_of_clients_that_do_not_wait_for_ever() {
    let hangs = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
        }
    });
    let good = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(hangs.address).endpoint(good.address).start();
    for request in 0..60 {
        let before = good.noted().len();
        let mut caller = rig.dial();
        caller.get("/");
        // Far more than the good one needs.
        let answered = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(5));
            good.noted().len() > before
        });
        if answered {
            caller.answer();
        } else {
            caller.reset();
            drop(caller);
            let hung = hangs.await_notes(1).len();
            assert!(hung <= 15, "{hung} of {request}");
        }
    }
}

/// A connection that is refused is a failure like others: it is not tried first all the time.
#[test]
fn one_that_nobody_listens_at_is_left_alone() {
    let good = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(Origin::nobody()).endpoint(good.address).start();
    let mut caller = rig.dial();
    for _ in 0..REQUESTS {
        caller.get("/");
        assert_eq!(caller.answer().status(), 200);
    }
    let refused = rig.metric("sluice_upstream_connects_total", &["outcome=\"refused\""]);
    assert!((1.0..20.0).contains(&refused), "{refused} of {REQUESTS}");
}
