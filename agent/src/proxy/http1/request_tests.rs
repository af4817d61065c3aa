use proptest::prelude::*;

use super::*;

fn names() -> TagNames {
    TagNames::new(&["x-mse-tag".parse().unwrap()]).unwrap()
}

fn read_for(head: &str, caller: Option<&str>) -> Result<(Request, String), Refused> {
    let caller: Option<Tag> = caller.map(|tag| tag.parse().unwrap());
    let mut out = BytesMut::new();
    let request = read(head.as_bytes(), &names(), Sources::of(false, caller.as_ref()), None, &mut out)?;
    Ok((request, String::from_utf8(out.to_vec()).unwrap()))
}

fn refused(head: &str) -> Refused {
    match read_for(head, None) {
        Err(refused) => refused,
        Ok((_, out)) => panic!("{head:?} was forwarded as {out:?}"),
    }
}

#[test]
fn an_ordinary_request_is_forwarded_byte_for_byte() {
    let head = "GET /a?b=c HTTP/1.1\r\nHost: orders\r\nACCEPT: */*\r\nX-Odd:  spaces \r\n\r\n";
    let (request, out) = read_for(head, None).unwrap();
    assert_eq!(out, head);
    assert!(request.keep_alive && request.body.is_done() && !request.upgrade && !request.http10);
    assert_eq!(request.method, Method::Get);
}

#[test]
fn lines_for_this_hop_are_left_out() {
    let (request, out) = read_for(
        "POST / HTTP/1.1\r\nConnection: close, X-Hop\r\nHost: a\r\nKeep-Alive: 5\r\nX-Hop: 1\r\n\
         Proxy-Connection: x\r\nContent-Length: 3\r\n\r\n",
        None,
    )
    .unwrap();
    assert_eq!(out, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nconnection: close\r\n\r\n");
    assert!(!request.keep_alive && request.closes);
    assert_eq!(request.body, Body::Length(3));
}

#[test]
fn a_sender_cannot_have_framing_dropped() {
    let (_, out) = read_for(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host, baggage\r\nContent-Length: 3\r\nbaggage: a=b\r\n\r\n",
        None,
    )
    .unwrap();
    assert_eq!(out, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nbaggage: a=b\r\n\r\n");
    let (_, out) =
        read_for("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-mse-tag\r\nx-mse-tag: gray\r\n\r\n", None)
            .unwrap();
    assert!(out.contains("\r\nx-mse-tag: gray\r\n"), "nor the tag: {out:?}");
}

#[test]
fn te_trailers_survives_and_other_te_does_not() {
    let (_, out) =
        read_for("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\nConnection: TE\r\n\r\n", None).unwrap();
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nconnection: te\r\nte: trailers\r\n\r\n");
    let (_, out) = read_for("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\n\r\n", None).unwrap();
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn websockets_are_passed_on_and_cleartext_http2_is_not() {
    let (request, out) = read_for(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        None,
    )
    .unwrap();
    assert!(request.upgrade);
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    let (request, out) = read_for(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n\r\n",
        None,
    )
    .unwrap();
    assert!(!request.upgrade);
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn of_several_protocols_one_that_can_be_passed_on_is_enough() {
    for (offered, left) in
        [("h2c, websocket", "websocket"), ("a, h2c,  b", "a, b"), ("H2C , h2c,TLS/1.0", "TLS/1.0")]
    {
        let (request, out) = read_for(
            &format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {offered}\r\n\r\n"),
            None,
        )
        .unwrap();
        assert!(request.upgrade, "{offered}");
        assert_eq!(
            out,
            format!("GET / HTTP/1.1\r\nHost: a\r\nconnection: upgrade\r\nupgrade: {left}\r\n\r\n")
        );
    }
    let lines = "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: H2C, h2c";
    assert!(!read_for(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"), None).unwrap().0.upgrade);
    let lines = "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\nUpgrade: h2c";
    assert!(read_for(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"), None).unwrap().0.upgrade);
}

#[test]
fn the_tag_is_set_in_both_places() {
    let (request, out) =
        read_for("GET / HTTP/1.1\r\nHost: a\r\nX-MSE-Tag: gray\r\nBaggage: u=1\r\n\r\n", None).unwrap();
    assert_eq!(request.tagging.tag.unwrap().as_str(), "gray");
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nX-MSE-Tag: gray\r\nbaggage: u=1,x-mse-tag=gray\r\n\r\n");

    let (_, out) = read_for("GET / HTTP/1.1\r\nHost: a\r\nbaggage: x-mse-tag=gray\r\n\r\n", None).unwrap();
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nbaggage: x-mse-tag=gray\r\nx-mse-tag: gray\r\n\r\n");

    let (_, out) = read_for("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Some("blue")).unwrap();
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: blue\r\nbaggage: x-mse-tag=blue\r\n\r\n");
}

#[test]
fn a_request_that_carries_its_tag_in_both_places_is_untouched() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: gray\r\nbaggage: x-mse-tag=gray\r\n\r\n";
    assert_eq!(read_for(head, Some("blue")).unwrap().1, head);
}

#[test]
fn ambiguous_framing_is_refused() {
    let length = "Content-Length: 5\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    for lines in [
        format!("{length}{chunked}"),
        format!("{chunked}{length}"),
        format!("{length}{length}"),
        format!("{length}Content-Length: 6\r\n"),
        "Content-Length: 5, 5\r\n".into(),
        "Content-Length: +5\r\n".into(),
        "Content-Length: -5\r\n".into(),
        "Content-Length: 0x5\r\n".into(),
        "Content-Length: \r\n".into(),
        "Content-Length: 99999999999999999999\r\n".into(),
        format!("{chunked}{chunked}"),
        "Content-Length : 5\r\n".into(),
        "Transfer-Encoding : chunked\r\n".into(),
        " Content-Length: 5\r\n".into(),
        "X: a\r\n folded\r\n".into(),
        "X: a\0b\r\n".into(),
        "X: a\rb\r\n".into(),
        ": empty\r\n".into(),
        "Host: b\r\n".into(),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        assert!(matches!(refused(&head), Refused::Malformed(_)), "{head:?}");
    }
    assert_eq!(
        refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        Refused::Coding
    );
    assert_eq!(refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"), Refused::Coding);
    assert!(matches!(
        refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Refused::Malformed(_)
    ));
}

#[test]
fn malformed_heads_are_refused() {
    assert!(matches!(refused("GET / HTTP/1.1\r\n\r\n"), Refused::Malformed(_)));
    assert!(matches!(refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), Refused::Malformed(_)));
    assert!(matches!(refused("GET /\r\nHost: a\r\n\r\n"), Refused::Malformed(_) | Refused::Version));
    assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Refused::Version);
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Refused::TooManyHeaders);
}

#[test]
fn framing_that_is_written_oddly_is_written_anew() {
    for (odd, wanted) in [
        ("Transfer-Encoding:\tchunked", "transfer-encoding: chunked"),
        ("Transfer-Encoding: chunked \t", "transfer-encoding: chunked"),
        ("Transfer-Encoding:chunked", "transfer-encoding: chunked"),
        ("Content-Length:  007", "content-length: 7"),
    ] {
        let (_, out) = read_for(&format!("POST / HTTP/1.1\r\n{odd}\r\nHost: a\r\n\r\n"), None).unwrap();
        assert_eq!(out, format!("POST / HTTP/1.1\r\nHost: a\r\n{wanted}\r\n\r\n"), "{odd:?}");
    }
}

#[test]
fn a_target_and_a_host_that_differ_are_refused() {
    let read =
        |target: &str, host: &str| read_for(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"), None);
    for (target, host) in [
        ("http://a/", "a"),
        ("http://A:80/x?y=http://c", "a"),
        ("http://a", "A:80"),
        ("http://a:8080?q", "a:8080"),
        ("/x?y=http://b/", "a"),
        ("HtTpS://a/", "a"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://[::1]:80/", "[0:0::1]"),
        ("http://[2001:DB8::7]/", "[2001:db8:0:0:0:0:0:0007]:80"),
        ("http://[::ffff:10.0.0.1]:8080/", "[::ffff:a00:1]:08080"),
        ("http://a:/", "A"),
        ("http://a/", "a:"),
        ("https://a:443/", "a"),
        ("https://[::1]/", "[0::1]:443"),
    ] {
        assert!(read(target, host).is_ok(), "{target} {host}");
    }
    for (target, host) in [
        ("http://a/", "b"),
        ("http://a:81/", "a"),
        ("http://u@a/", "a"),
        ("http://a/", ""),
        ("http://[::1]/", "[::2]"),
        ("http://[::1]:81/", "[0::1]"),
        ("http://[::1]:81/", "[0::1]:82"),
        ("http://[::ffff:10.0.0.1]/", "10.0.0.1"),
        ("http://[fe80::1%25a]/", "[fe80::1%25b]"),
        ("http://[::1]/", "[::1"),
        ("http://[::1]/", "::1"),
        ("http://a:443/", "a"),
        ("http://a:x/", "a"),
        ("http://a:+80/", "a"),
        ("http://a:65616/", "a"),
    ] {
        let wrong = malformed(MessagePart::Host, "a request target and a Host that differ");
        assert_eq!(read(target, host).unwrap_err(), wrong, "{target} {host}");
    }
}

/// Requests with such targets reach handlers of `/a` at one server or another.
#[test]
fn a_target_is_a_path_or_a_uri_of_http() {
    for target in [
        "http:/a",
        "HtTp:/a",
        "https:/a",
        "x:/",
        "h-t:/a",
        "file:/a",
        "x:y/../a",
        "x:a",
        "a",
        "a/b",
        "?a",
        "\\a",
        "\\\\x\\a",
        "%2fa",
        ":/a",
        "http:///a",
        "http://",
        "http://?a",
        "http://:80/a",
        "http://u@/a",
        "http://u@:80/a",
        "http:\\\\h\\a",
        "http:/\\h/a",
        "http://h\\a",
        "http://h#/a",
        "file:///a",
        "file://h/a",
        "ftp://h/a",
        "x://h/a",
        "*a",
        "*/a",
        "h:1",
        "http",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let wanted = malformed(
            MessagePart::FirstLine,
            "a request target that is neither a path nor an http URI with a host",
        );
        assert_eq!(refused(&head), wanted, "{target}");
        // No more has to come than the first line.
        let line = head.split_inclusive('\n').next().unwrap();
        assert_eq!(never_a_request(line.as_bytes()), Some(wanted), "{target}");
    }
    for (line, host) in [
        ("OPTIONS *", "a"),
        ("CONNECT a:1", "a:1"),
        ("CONNECT [::1]:443", "[::1]:443"),
        // Rules see the path.
        ("CONNECT /a", "a"),
        ("GET //a", "a"),
        ("GET /a:b", "a"),
        ("GET http://a_b.c", "a_b.c"),
        ("GET http://a:/", "a:"),
        ("GET http://u@a/", "u@a"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert!(read_for(&head, None).is_ok(), "{line}");
        assert_eq!(never_a_request(head.as_bytes()), None, "{line}");
    }
    for line in ["GET *", "options *", "M-SEARCH *"] {
        let what = "the request target * with another method than OPTIONS";
        let head = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refused(&head), malformed(MessagePart::FirstLine, what), "{line}");
    }
    for target in
        ["a", "a:", ":1", "a:1/b", "a:b", "http:/a", "http://a:1", "a/b:1", "a\\b:1", "a?b:1", "x@a:1"]
    {
        let what = "a request target of CONNECT that is not host and port";
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refused(&head), malformed(MessagePart::FirstLine, what), "{target}");
    }
}

#[test]
fn a_target_that_is_no_text_is_forwarded_byte_for_byte() {
    let head = b"\r\nGET /\xd6\xd0/k\xe4ufer?q=\xff HTTP/1.1\r\nHost: a\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-MSE-Tag: gray\r\n\r\n";
    let mut out = BytesMut::new();
    let request = read(head, &names(), Sources::of(false, None), None, &mut out).unwrap();
    assert_eq!(request.method, Method::Get);
    assert_eq!(request.tagging.tag.unwrap().as_str(), "gray");
    let wanted = b"GET /\xd6\xd0/k\xe4ufer?q=\xff HTTP/1.1\r\nHost: a\r\nX-MSE-Tag: gray\r\nbaggage: x-mse-tag=gray\r\n\r\n";
    assert_eq!(out.escape_ascii().to_string(), wanted.escape_ascii().to_string());
    for begun in [&head[2..], b"GET /\xd6", b"GET /\xd6\xd0 HTT", b"GET /\xd6\xd0 HTTP/1.1\r\nA: \xff"] {
        assert_eq!(never_a_request(begun), None, "{}", begun.escape_ascii());
    }
    for bad in [
        &b"GET /\xd6\x00 HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"GET /\xd6\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET \xd6 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://\xd6/ HTTP/1.1\r\nHost: \xd6\r\n\r\n",
        b"CONNECT \xd6:1 HTTP/1.1\r\nHost: \xd6:1\r\n\r\n",
        b"GET /\xd6 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET /\xd6 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut out = BytesMut::new();
        let read = read(bad, &names(), Sources::of(false, None), None, &mut out);
        assert!(read.is_err() && out.is_empty(), "{}", bad.escape_ascii());
    }
    let mut out = BytesMut::new();
    let absolute = b"GET http://a/\xd6 HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(read(absolute, &names(), Sources::of(false, None), None, &mut out).is_ok());
    assert_eq!(&out[..], absolute);
}

#[test]
fn what_has_come_of_a_target_is_not_judged() {
    for begun in ["GET ht", "GET http:/a", "GET http:/a HTTP/1", "GET *"] {
        assert_eq!(never_a_request(begun.as_bytes()), None, "{begun}");
    }
}

#[test]
fn white_space_in_a_target_is_no_unknown_version() {
    for line in ["GET /a b HTTP/1.1", "GET /a b HTTP/1.0", "GET / x HTTP/1.1"] {
        let refused = refused(&format!("{line}\r\nHost: a\r\n\r\n"));
        assert_eq!(refused, malformed(MessagePart::FirstLine, "white space in the request target"), "{line}");
    }
    assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Refused::Version);
}

#[test]
fn http10_is_kept_alive_only_if_it_asks() {
    let (request, out) = read_for("GET / HTTP/1.0\r\n\r\n", None).unwrap();
    assert!(request.http10 && !request.keep_alive);
    assert_eq!(out, "GET / HTTP/1.0\r\n\r\n");
    let (request, _) = read_for("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", None).unwrap();
    assert!(request.keep_alive);
}

#[test]
fn a_head_on_its_way_out_is_edited_as_every_other() {
    let head = b"GET / HTTP/1.1\r\nhost: a\r\naccept: a\r\nx-twice: 1\r\naccept: b\r\nX-Twice: 2\r\n\r\n";
    let mut slots = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Request::new(&mut slots);
    assert!(parsed.parse(head).unwrap().is_complete());
    let mut outgoing = Outgoing::new(head, parsed.headers);
    edit::tests::behaves(&mut outgoing);
    let mut out = BytesMut::new();
    outgoing.write(&mut out);
    assert_eq!(out, &b"GET / HTTP/1.1\r\nhost: a\r\nx-twice: 3\r\nx-twice: 4\r\naccept: \r\n\r\n"[..]);
}

#[test]
fn a_tag_from_outside_neither_counts_nor_travels() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX-MSE-Tag: gray\r\nBaggage: u=1,x-mse-tag=gray\r\n\r\n";
    let stripped = |caller: Option<&str>| {
        let caller: Option<Tag> = caller.map(|tag| tag.parse().unwrap());
        let mut out = BytesMut::new();
        let request =
            read(head.as_bytes(), &names(), Sources::of(true, caller.as_ref()), None, &mut out).unwrap();
        (request.tagging.tag, String::from_utf8(out.to_vec()).unwrap())
    };
    assert_eq!(stripped(None), (None, "GET / HTTP/1.1\r\nHost: a\r\nbaggage: u=1\r\n\r\n".to_owned()));
    let (tag, out) = stripped(Some("blue"));
    assert_eq!(tag.unwrap().as_str(), "blue");
    assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\nx-mse-tag: blue\r\nbaggage: u=1,x-mse-tag=blue\r\n\r\n");
}

proptest! {
    #[test]
    fn whatever_is_forwarded_reads_the_same_again(
        lines in proptest::collection::vec(
            ("(?i)(x-a|connection|upgrade|te|baggage|x-mse-tag|keep-alive|content-length|transfer-encoding)",
             "(close|upgrade|x-a|websocket|h2c|trailers|gray|a=b,x-mse-tag=blue|7|chunked)"), 0..8),
    ) {
        let mut head = "POST /x HTTP/1.1\r\nHost: a\r\n".to_owned();
        for (name, value) in lines {
            head.extend([&name, ": ", &value, "\r\n"]);
        }
        head.push_str("\r\n");
        if let Ok((first, out)) = read_for(&head, None) {
            let (second, again) = read_for(&out, None).unwrap();
            prop_assert_eq!(first.body, second.body);
            prop_assert_eq!(first.upgrade, second.upgrade);
            prop_assert_eq!(first.tagging.tag, second.tagging.tag);
            prop_assert_eq!(again.lines().count(), out.lines().count());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, &names(), Sources::of(false, None), None, &mut BytesMut::new());
    }
}
