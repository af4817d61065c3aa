//! Streams of events over the real listener: who may have one, and what becomes of those who do not read theirs.

use tokio::io::AsyncBufReadExt as _;

use super::*;

/// Asks for the events, and gives the connection with what came first.
async fn listen(address: SocketAddr) -> (TcpStream, String) {
    // Once it has answered, it listens.
    assert_eq!(get(address, "/healthz").await.0, 200);
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET /api/events HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("it reads");
    let mut first = String::new();
    let mut lines = tokio::io::BufReader::new(&mut stream);
    while !first.contains("\r\n\r\n") {
        timeout(LIMIT, lines.read_line(&mut first)).await.expect("it answers").expect("with text");
    }
    (stream, first)
}

#[tokio::test]
async fn there_is_a_stream_for_so_many_and_for_the_next_when_one_has_gone() {
    let address = start(Vec::new);
    let mut streams = Vec::new();
    loop {
        let (stream, head) = listen(address).await;
        if head.starts_with("HTTP/1.1 503 ") {
            assert!(head.contains("\r\nretry-after: 5\r\n"), "{head}");
            break;
        }
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/event-stream\r\n"),
            "{head}"
        );
        streams.push(stream);
        assert!(streams.len() <= 16, "a bound");
    }
    assert_eq!(streams.len(), 16);
    streams.pop();
    // That it has gone is seen when it would be sent something, or at once.
    let begun = tokio::time::Instant::now();
    loop {
        let (_stream, head) = listen(address).await;
        if head.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "no place became free");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A connection of which only so much is ever read.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_cut_off() {
    let (near, mut far) = tokio::io::duplex(256);
    let serving = tokio::spawn(serve_connection(near, pages(Vec::new), Rights::Read));
    far.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("it reads");
    // Time is paused: it goes on as soon as everybody waits. Nobody reads, so the answer does not get through.
    let began = tokio::time::Instant::now();
    timeout(LIMIT, serving).await.expect("it gives up").expect("without a panic");
    assert!(began.elapsed() >= READ_TIMEOUT, "too early: {:?}", began.elapsed());
    assert!(began.elapsed() < CONNECTION_TIMEOUT, "only with the connection's time: {:?}", began.elapsed());
}
