//! Messages from one end to the other.

use super::*;
use crate::proxy::http2::engine::{core::Leaving, handle::Broken};

#[test]
fn a_request_and_its_response_pass_with_bodies_and_trailers() {
    let (mut client, mut server) = pair();
    let up = client.open(&request("POST"), false);
    assert!(up.send_data(Bytes::from_static(b"ping"), false));
    assert!(up.send_trailers(&fields(&[("x-check", "1")])));
    exchange(&mut client, &mut server);
    let (down, accepted) = server.accept().expect("a request");
    assert_eq!(text(&accepted.request.fields), ":method=POST :scheme=http :authority=a :path=/p");
    assert_eq!(accepted.fit, Ok(()));
    assert_eq!(down.take_data(100), "ping");
    assert!(down.is_whole() && !down.is_taken());
    assert_eq!(text(&down.take_trailers().expect("trailers")), "x-check=1");
    assert!(down.is_taken());

    assert!(down.send_head(&Pseudo::Status(103), &fields(&[("link", "</a>")]), false));
    assert!(down.send_head(&Pseudo::Within, &response("200"), false));
    assert!(down.send_data(Bytes::from(vec![7; 40_000]), false));
    assert!(down.send_trailers(&fields(&[("grpc-status", "0")])));
    assert!(!down.send_data(Bytes::new(), true), "it has ended");
    exchange(&mut client, &mut server);
    let interim = now(|cx| up.poll_response(cx)).expect("it is there").expect("a response");
    assert_eq!((interim.status, text(&interim.fields)), (103, ":status=103 link=</a>".into()));
    let head = now(|cx| up.poll_response(cx)).expect("it is there").expect("a response");
    assert_eq!(head.status, 200);
    let mut body = 0;
    while up.has_data() {
        body += up.take_data(9000).len();
    }
    assert_eq!(body, 40_000);
    assert_eq!(text(&up.take_trailers().expect("trailers")), "grpc-status=0");
    assert!(up.is_taken() && up.broken().is_none());
    drop((up, down));
    exchange(&mut client, &mut server);
    for end in [&client, &server] {
        assert_eq!((end.core.borrow().streams(), end.core.borrow().held), (0, 0));
        assert_eq!(end.ended(), None);
    }
}

#[test]
fn frames_are_understood_however_they_are_cut() {
    let (client, mut server) = pair();
    let up = client.open(&request("POST"), false);
    up.send_data(Bytes::from(vec![1; 5000]), false);
    up.send_trailers(&fields(&[("x-long", &"v".repeat(20_000))]));
    for byte in client.all_written() {
        assert_ne!(server.give(&[byte]), Fed::End);
    }
    let (down, _) = server.accept().expect("a request");
    let mut body = 0;
    while down.has_data() {
        body += down.take_data(usize::MAX).len();
    }
    assert_eq!(body, 5000);
    assert_eq!(down.take_trailers().expect("trailers").get(b"x-long").map(<[u8]>::len), Some(20_000));
}

#[test]
fn what_is_dropped_is_given_up_and_a_request_whose_response_is_complete_ends_without_an_error() {
    let (mut client, mut server) = pair();
    let up = client.open(&request("POST"), false);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    down.send_head(&Pseudo::Within, &response("413"), true);
    drop(down);
    exchange(&mut client, &mut server);
    assert_eq!(up.broken(), Some(Broken::Reset(Code::NO_ERROR)));
    assert!(up.is_whole());
    assert_eq!(now(|cx| up.poll_response(cx)).expect("it is there").expect("a response").status, 413);

    let up = client.open(&request("POST"), false);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    drop(down);
    exchange(&mut client, &mut server);
    assert_eq!(up.broken(), Some(Broken::Reset(Code::CANCEL)));

    let up = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    drop(up);
    exchange(&mut client, &mut server);
    assert_eq!(down.broken(), Some(Broken::Reset(Code::CANCEL)));
    // A stream that was never begun is not heard of.
    let key = client.core.borrow_mut().open().expect("it takes streams");
    drop(Handle::new(&client.core, key));
    assert!(client.all_written().is_empty());
}

#[test]
fn a_stream_that_waits_with_its_head_may_be_overtaken() {
    let (mut client, mut server) = pair();
    let waiting = || {
        let key = client.core.borrow_mut().open().expect("it takes streams");
        Handle::new(&client.core, key)
    };
    let (first, second) = (waiting(), waiting());
    let overtakes = client.open(&request("GET"), true);
    assert!(first.send_head(&Pseudo::Within, &request("POST"), true));
    exchange(&mut client, &mut server);
    assert_eq!((client.ended(), server.ended()), (None, None));
    for _ in 0..2 {
        let (down, _) = server.accept().expect("a request");
        down.send_head(&Pseudo::Within, &response("200"), true);
    }
    // One that has not sent its head when the server leaves is for another connection.
    server.core.borrow_mut().leave();
    exchange(&mut client, &mut server);
    assert_eq!((first.broken(), overtakes.broken()), (None, None));
    assert_eq!(second.broken(), Some(Broken::Unprocessed));
    assert!(!second.send_head(&Pseudo::Within, &request("GET"), true));
}

#[test]
fn leaving_lets_what_is_under_way_come_to_its_end() {
    let (mut client, mut server) = pair();
    let first = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    server.core.borrow_mut().leave();
    // Sent before the client knows.
    let second = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    assert!(matches!(server.core.borrow().leaving(), Leaving::Final(3)));
    assert!(client.core.borrow_mut().open().is_none());
    while let Some((down, _)) = server.accept() {
        down.send_head(&Pseudo::Within, &response("200"), true);
    }
    assert!(server.core.borrow().is_done());
    exchange(&mut client, &mut server);
    for stream in [first, second] {
        assert_eq!(now(|cx| stream.poll_response(cx)).expect("it is there").expect("a response").status, 200);
    }
}

#[test]
fn streams_that_nobody_looked_at_are_said_to_be_unprocessed() {
    let (mut client, mut server) = pair();
    let first = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    let second = client.open(&request("GET"), true);
    {
        let mut core = server.core.borrow_mut();
        core.leave();
        core.leave_finally();
    }
    exchange(&mut client, &mut server);
    assert_eq!(second.broken(), Some(Broken::Unprocessed));
    assert_eq!(first.broken(), None);
    let (down, _) = server.accept().expect("the first");
    assert!(server.accept().is_none());
    down.send_head(&Pseudo::Within, &response("200"), true);
    exchange(&mut client, &mut server);
    assert!(first.is_whole());
}

#[test]
fn small_messages_that_wait_go_on_together() {
    let (mut client, mut server) = pair();
    let up = client.open(&request("POST"), false);
    for n in 0..1000_u32 {
        up.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 1, n as u8]), false);
    }
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    let mut parts = Vec::new();
    while down.has_data() {
        parts.push(down.take_data(usize::MAX));
    }
    assert!(parts.len() < 10, "{} parts", parts.len());
    let all: Vec<u8> = parts.concat();
    assert!(all.chunks(6).enumerate().all(|(n, message)| message == [0, 0, 0, 0, 1, n as u8]));
    assert_eq!(all.len(), 6000);
}
