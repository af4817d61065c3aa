//! However the bytes of a conversation are cut up on the way, the outcome is the same.

use proptest::{prelude::*, test_runner::Config};

use crate::{origin::Origin, peer::Peer, rig::Rig};

const REQUESTS: &str = "GET /a HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n\
    POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nyou\
    POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n\
    HEAD /d HTTP/1.1\r\nHost: a\r\n\r\n\
    GET /e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

const ANSWERS: [&str; 5] = [
    "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthird\r\n0\r\nX-End: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast",
];

/// Sends `bytes` in pieces of these sizes, over and over.
fn send_cut(peer: &mut Peer, bytes: &str, cuts: &mut impl Iterator<Item = usize>) {
    let mut rest = bytes.as_bytes();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
        peer.send(piece);
        rest = later;
    }
}

/// What the origin got, and what the caller got.
fn outcome(cuts: &[usize]) -> (Vec<String>, String) {
    let origin_cuts = cuts.to_vec();
    let origin = Origin::new(move |_, peer, note| {
        while let Some(head) = peer.request() {
            let path = head.split(' ').nth(1).unwrap().as_bytes()[1];
            let body = match path {
                b'b' => String::from_utf8(peer.exactly(11)).unwrap(),
                b'c' => peer.until("0\r\nX-Sum: 1\r\n\r\n"),
                _ => String::new(),
            };
            note(head + &body);
            send_cut(peer, ANSWERS[usize::from(path - b'a')], &mut origin_cuts.iter().copied().cycle());
        }
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    send_cut(&mut caller, REQUESTS, &mut cuts.iter().copied().cycle());
    let got = caller.rest();
    rig.await_requests("2xx", "", 5.0);
    (origin.noted(), got)
}

proptest! {
    #![proptest_config(Config { cases: 48, failure_persistence: None, ..Config::default() })]

    #[test]
    fn where_messages_are_cut_does_not_matter(cuts in proptest::collection::vec(1usize..60, 1..12)) {
        let (whole, cut) = (outcome(&[usize::MAX]), outcome(&cuts));
        prop_assert_eq!(&whole, &cut);
        prop_assert_eq!(whole.0.len(), 5);
        prop_assert_eq!(whole.0.concat(), REQUESTS.replace("Connection:", "connection:"));
        prop_assert_eq!(whole.1, ANSWERS.concat().replace("4\r\n\r\nlast", "4\r\nconnection: close\r\n\r\nlast"));
    }
}

#[test]
fn one_byte_at_a_time() {
    assert_eq!(outcome(&[1]), outcome(&[usize::MAX]));
}
