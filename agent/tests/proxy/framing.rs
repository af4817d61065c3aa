//! Messages whose end could be seen in two places, or in none: refused, with nothing of them passed on.

use crate::{
    origin::Origin,
    peer::{End, Peer},
    rig::Rig,
};

/// Sends each request over a connection of its own; each is refused, and nobody else hears of it.
fn refused(status: u16, reason: &str, requests: &[&str]) {
    let origin = Origin::fixed("never");
    let rig = Rig::before(&origin);
    for request in requests {
        let mut caller = rig.dial();
        caller.send(request);
        let answer = caller.answer();
        assert_eq!(answer.status(), status, "{request:?} got {answer:?}");
        answer.made_up(status, reason);
        assert!(answer.has("connection: close"), "{answer:?}");
        assert_eq!(caller.rest(), "", "{request:?}");
    }
    rig.await_requests(&format!("{}xx", status / 100), reason, requests.len() as f64);
    assert_eq!(origin.noted(), Vec::<String>::new());
    assert!(rig.opened().abs() < 0.1);
}

#[test]
fn both_framings_at_once() {
    refused(
        400,
        "bad_request",
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        ],
    );
}

#[test]
fn a_length_that_is_none() {
    let with = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\nabc");
    let requests = [
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length: 3 3",
        "Content-Length: 3;",
        "Content-Length:",
        "Content-Length: 18446744073709551619",
    ]
    .map(with);
    refused(400, "bad_request", &requests.each_ref().map(String::as_str));
}

#[test]
fn a_transfer_coding_that_is_not_clear() {
    refused(
        400,
        "bad_request",
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n",
        ],
    );
    refused(
        501,
        "not_implemented",
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
        ],
    );
}

#[test]
fn lines_that_readers_end_in_different_places() {
    refused(
        400,
        "bad_request",
        &[
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nX: a\rb\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n folded\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n\tfolded\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        ],
    );
}

#[test]
fn names_that_readers_see_differently() {
    refused(
        400,
        "bad_request",
        &[
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: nameless\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0Y: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX(Y): 1\r\n\r\n",
        ],
    );
}

#[test]
fn values_with_bytes_that_end_strings() {
    refused(
        400,
        "bad_request",
        &["GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n"],
    );
}

#[test]
fn a_host_too_few_or_too_many() {
    refused(
        400,
        "bad_request",
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        ],
    );
}

/// Servers find a path in these, and rules about that path would not hold for them.
#[test]
fn targets_that_are_neither_a_path_nor_a_uri_of_http() {
    let with = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let targets = [
        "http:/actuator",
        "HtTp:/actuator/env",
        "https:/actuator",
        "h-t:/",
        "x:/",
        "file:/actuator",
        "x:y/..",
        "file://a/actuator",
        "http:///actuator",
        "http://:80/actuator",
        "http:\\\\a\\actuator",
        "http://a\\actuator",
        "actuator",
        "\\\\x\\actuator",
        "*",
    ];
    let requests = targets.map(with);
    refused(400, "bad_request", &requests.each_ref().map(String::as_str));
    refused(
        400,
        "bad_request",
        &[
            "CONNECT a:80/actuator HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT http:/actuator HTTP/1.1\r\nHost: a\r\n\r\n",
            // The rest of the head is not waited for.
            "GET http:/actuator HTTP/1.1\r\nHost: a\r\n",
        ],
    );
}

#[test]
fn versions_that_nobody_here_speaks() {
    refused(505, "http_version", &["GET / HTTP/1.7\r\nHost: a\r\n\r\n", "GET / HTTP/3.0\r\nHost: a\r\n\r\n"]);
}

#[test]
fn a_smuggled_request_behind_a_good_one_is_refused() {
    let origin = Origin::fixed("good");
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("GET /good HTTP/1.1\r\nHost: a\r\n\r\nGET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /worse HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.answer().body, "good");
    caller.answer().made_up(400, "bad_request");
    assert_eq!(caller.rest(), "");
    assert_eq!(origin.noted(), ["0 GET /good HTTP/1.1\r\nHost: a\r\n\r\n"]);
}

/// Notes the head, and then everything that comes to the end of the connection.
fn reader() -> Origin {
    Origin::new(|_, peer, note| {
        let Some(head) = peer.request() else { return };
        note(head);
        let (rest, _) = peer.end();
        note(rest);
    })
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Malformed chunked bodies, each with a request hidden behind it.
const BAD_CHUNKS: [&str; 12] = [
    "5\r\nhelloo\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "-1\r\n\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "\r\n0\r\n\r\n",
    "ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "0\r\nContent-Length : 3\r\n\r\n",
    "0\r\nX: a\nGET /hidden HTTP/1.1\r\n\r\n",
];

#[test]
fn a_malformed_chunk_right_behind_the_head_is_refused() {
    let requests =
        BAD_CHUNKS.map(|chunks| format!("{CHUNKED}{chunks}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"));
    refused(400, "bad_request", &requests.each_ref().map(String::as_str));
}

#[test]
fn a_malformed_chunk_later_on_ends_the_request() {
    for chunks in BAD_CHUNKS {
        let origin = reader();
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.send(format!("{CHUNKED}3\r\nabc\r\n"));
        origin.await_notes(1);
        caller.send(format!("{chunks}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"));
        caller.answer().made_up(400, "bad_request");
        assert_eq!(caller.rest(), "");
        assert_eq!(origin.await_notes(2)[1], "3\r\nabc\r\n", "nothing of it is passed on: {chunks:?}");
        rig.await_requests("4xx", "bad_request", 1.0);
        // It is settled like every attempt, and not the endpoint's fault.
        rig.await_metric("sluice_attempts_total", &["outcome=\"left\""], 1.0);
        drop(caller);
        rig.await_rest();
    }
}

#[test]
fn a_malformed_chunk_does_not_stop_an_answer_that_has_begun() {
    let origin = Origin::new(|_, peer, note| {
        peer.until("abc\r\n");
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nso far, ");
        // The origin learns that its request has broken off, and may end its answer as it sees fit.
        note(peer.end().0);
        peer.send("ok");
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send(format!("{CHUNKED}3\r\nabc\r\n"));
    caller.head();
    caller.expect("so far");
    caller.send("bad chunk\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(caller.rest(), ", ok");
    assert_eq!(origin.await_notes(1)[0], "");
    drop(caller);
    rig.await_rest();
}

#[test]
fn chunked_bodies_pass_byte_for_byte() {
    for chunks in [
        "0\r\n\r\n",
        "1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        "00000a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "3;name=value;quoted=\"a;b\"\r\nabc\r\n0;last\r\n\r\n",
        "3\r\n\r\n0\r\n0\r\nX-Sum: 1\r\nX-Empty:\r\n\r\n",
    ] {
        let origin = Origin::new(move |_, peer, note| {
            while let Some(head) = peer.request() {
                note(head);
                note(String::from_utf8(peer.exactly(chunks.len())).unwrap());
                peer.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
            }
        });
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        for _ in 0..2 {
            caller.send(format!("{CHUNKED}{chunks}"));
            caller.head();
            caller.expect(chunks);
        }
        assert_eq!(origin.noted(), [CHUNKED, chunks, CHUNKED, chunks]);
    }
}

/// The caller gets 502 instead of this answer, and the connection that it came over is not used again.
#[track_caller]
fn not_passed_on(answer: &'static str) {
    let origin = Origin::raw(answer);
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    for _ in 0..2 {
        caller.get("/");
        caller.answer().made_up(502, "upstream_protocol");
    }
    rig.await_requests("5xx", "upstream_protocol", 2.0);
    assert_eq!(origin.noted().len(), 2);
    assert!(origin.noted()[1].starts_with("1 "), "{answer:?} left a connection that was used again");
}

#[test]
fn an_answer_with_both_framings() {
    not_passed_on("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
}

#[test]
fn an_answer_with_two_lengths() {
    not_passed_on("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd");
}

#[test]
fn an_answer_with_a_length_that_is_none() {
    not_passed_on("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabcd");
}

#[test]
fn an_answer_whose_coding_is_not_clear() {
    not_passed_on("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n");
}

#[test]
fn an_answer_with_a_folded_status_line() {
    not_passed_on("HTTP/1.1 200 OK\r\n X: b\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn an_answer_that_is_no_answer() {
    not_passed_on("HTTP/1.1 two hundred\r\n\r\n");
}

#[test]
fn an_answer_in_another_protocol_is_not_waited_for() {
    // No empty line will ever come.
    not_passed_on("220 mail.example ESMTP\r\n");
}

#[test]
fn a_switch_that_nobody_asked_for() {
    not_passed_on("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n");
}

#[test]
fn an_answer_whose_first_chunk_is_malformed() {
    not_passed_on("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
}

#[test]
fn an_answer_whose_later_chunk_is_malformed_is_broken_off() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        peer.until("more");
        peer.send("zz\r\n");
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    caller.head();
    caller.expect("3\r\nabc\r\n");
    caller.send("more");
    assert_eq!(caller.end(), (String::new(), End::Reset));
    rig.await_requests("2xx", "upstream_protocol", 1.0);
}

/// What a caller gets of an answer that is odd but clear.
fn passed_on(answer: &'static str) -> (String, Rig, Peer) {
    let origin = Origin::raw(answer);
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.get("/");
    let answer = caller.answer();
    (answer.head + &answer.body, rig, caller)
}

#[test]
fn an_answer_whose_lines_end_oddly_is_passed_on_with_proper_ones() {
    let (answer, ..) = passed_on("HTTP/1.1 200 OK\nX: a\r\ncontent-length: 2\n\nok");
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nX: a\r\ncontent-length: 2\r\n\r\nok");
}

#[test]
fn white_space_before_an_answers_colon_is_not_passed_on() {
    let (answer, ..) = passed_on("HTTP/1.1 200 OK\r\ncontent-length : 2\r\nX: a\r\n\r\nok");
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX: a\r\n\r\nok");
}

#[test]
fn a_length_that_an_answer_repeats_is_passed_on_once() {
    let (answer, ..) = passed_on("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
}

/// What is wrong is told where it is noticed, and counted.
#[track_caller]
fn told(rig: &Rig, answer: &crate::peer::Answer, peer: &str, part: &str, what: &str) {
    assert!(answer.body.contains(&format!("is not valid HTTP: it has {what}\"")), "{what}: {answer:?}");
    let labels = [format!("peer=\"{peer}\""), format!("part=\"{part}\"")];
    rig.await_metric("sluice_invalid_messages_total", &[&labels[0], &labels[1]], 1.0);
}

#[test]
fn a_client_is_told_what_is_wrong_with_its_request() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (request, part, what) in [
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "first_line", "white space in the request target"),
        (
            "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "first_line",
            "a request target that is neither a path nor an http URI with a host",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n", "header", "a header name that is no token"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
            "header",
            "a header that is folded over several lines",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "header",
            "a line feed without a carriage return before it",
        ),
        ("GET / HTTP/1.1\r\n\r\n", "host", "no Host, or more than one"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n",
            "framing",
            "a Content-Length that is no length",
        ),
        (&format!("{chunked}zz\r\n"), "chunk", "a chunk without a size"),
    ] {
        let origin = Origin::fixed("never");
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.send(request);
        let answer = caller.answer();
        answer.made_up(400, "bad_request");
        told(&rig, &answer, "client", part, what);
    }
}

#[test]
fn a_client_is_told_what_is_wrong_with_a_later_chunk_of_its_request() {
    let origin = Origin::new(|_, peer, _| {
        peer.request();
        peer.expect("3\r\nabc\r\n");
        peer.end();
    });
    let rig = Rig::before(&origin);
    let mut caller = rig.dial();
    caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    rig.await_metric("sluice_requests_in_flight", &[], 1.0);
    caller.send("-1\r\n");
    let answer = caller.answer();
    answer.made_up(400, "bad_request");
    told(&rig, &answer, "client", "chunk", "a chunk without a size");
}

#[test]
fn a_client_is_told_what_is_wrong_with_a_response() {
    for (raw, part, what) in [
        ("HTTP/1.1 two hundred\r\n\r\n", "first_line", "a malformed status"),
        ("HTTP/1.1 200 OK\r\nX\0: y\r\n\r\n", "header", "a header name that is no token"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            "framing",
            "two different Content-Length",
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk", "a chunk without a size"),
        ("220 mail.example ESMTP\r\n", "protocol", "something else than HTTP/1.1"),
    ] {
        let origin = Origin::raw(raw);
        let rig = Rig::before(&origin);
        let mut caller = rig.dial();
        caller.get("/");
        let answer = caller.answer();
        answer.made_up(502, "upstream_protocol");
        told(&rig, &answer, "upstream", part, what);
    }
}
