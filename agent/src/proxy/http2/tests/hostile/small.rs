//! Very many small frames, as gRPC streams have them, and ends that pause.

use super::*;

const MESSAGES: usize = 100_000;

/// Reads a response to its end. Returns the bytes of its body.
async fn consume(stream: &mut Stream) -> usize {
    let mut count = 0;
    loop {
        match stream.part().await {
            Ok(Event::Data { bytes, end: false, .. }) => count += bytes.len(),
            Ok(Event::Headers { fields, end: true, .. }) => {
                assert_eq!(wire::of(&fields, "grpc-status"), "0");
                return count;
            }
            other => panic!("after {count} bytes: {other:?}"),
        }
    }
}

fn sent(answer: &Answer) {
    assert_eq!((answer.status, answer.broken), (200, None));
    assert_eq!(answer.text(), (MESSAGES * MESSAGE.len()).to_string());
    assert_eq!(answer.trailer("grpc-status"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_streams_very_many_small_messages() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let neighbours = scene.neighbours(&wire).await;
    let mut stream = wire.handle.open(false, &frames::post("/count")).await;
    assert!(stream.many(MESSAGE, MESSAGES).await);
    stream.data(b"", true).await;
    sent(&stream.answer().await);
    neighbours.go_on(1).await;
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_streams_very_many_small_messages() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let neighbours = scene.neighbours(&wire).await;
    let mut stream = wire.handle.open(true, &frames::get(&format!("/stream/{MESSAGES}"))).await;
    assert_eq!(stream.head().await.status, 200);
    assert_eq!(consume(&mut stream).await, MESSAGES * MESSAGE.len());
    neighbours.go_on(1).await;
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_stream_very_many_small_messages() {
    const EACH: usize = 20_000;
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let neighbours = scene.neighbours(&wire).await;
    let mut stream = wire.handle.open(false, &frames::post("/echo")).await;
    let sender = wire.handle.clone();
    let id = stream.id;
    let sending = tokio::spawn(async move {
        let to = sender.borrow(id);
        assert!(to.many(MESSAGE, EACH).await);
        to.data(b"", true).await;
    });
    assert_eq!(stream.head().await.status, 200);
    assert_eq!(consume(&mut stream).await, EACH * MESSAGE.len());
    soon(sending).await.expect("all was sent");
    neighbours.go_on(1).await;
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_pauses_holds_nobody_up() {
    // Its own stream's window alone is used up, or that of the endpoint's connection too.
    for shares in [true, false] {
        let backend = Backend::with(Wishes { takes: false, shares, ..Wishes::default() }).await;
        let scene = Scene::before(backend);
        let wire = scene.wire().await;
        let mut stream = wire.handle.open(false, &frames::post("/pause")).await;
        let sender = wire.handle.clone();
        let id = stream.id;
        let sending = tokio::spawn(async move {
            let to = sender.borrow(id);
            assert!(to.many(MESSAGE, MESSAGES).await);
            to.data(b"", true).await;
        });
        let neighbours = scene.neighbours(&wire).await;
        wire.handle.stuck(id).await;
        neighbours.go_on(20).await;
        scene.backend.seen.gate.send_replace(true);
        sent(&stream.answer().await);
        soon(sending).await.expect("all was sent");
        neighbours.go_on(1).await;
        neighbours.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_pauses_holds_nobody_up() {
    let scene = Scene::new().await;
    // It reads its connection, and does not take what comes on its stream.
    let wire = scene.wire_with(Wishes { takes: false, ..Wishes::default() }).await;
    let mut stream = wire.handle.open(true, &frames::get(&format!("/stream/{MESSAGES}"))).await;
    assert_eq!(stream.head().await.status, 200);
    let neighbours = scene.neighbours(&wire).await;
    let mut count = 0;
    while count < 65_535 / MESSAGE.len() * MESSAGE.len() {
        match stream.part().await {
            Ok(Event::Data { bytes, end: false, .. }) => count += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    neighbours.go_on(20).await;
    wire.handle.takes(stream.id).await;
    assert_eq!(count + consume(&mut stream).await, MESSAGES * MESSAGE.len());
    neighbours.go_on(1).await;
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_connection_holds_up_only_that() {
    let scene = Scene::new().await;
    let wishes = Wishes {
        settings: vec![(4, u32::MAX >> 1)],
        window: (u32::MAX >> 1) - 65_535,
        kernel: Some(64 * 1024),
        ..Wishes::default()
    };
    let wire = scene.wire_with(wishes).await;
    assert_eq!(wire.handle.get("/").await.status, 200);
    wire.handle.reads(false);
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(wire.handle.open(true, &frames::get(&format!("/stream/{MESSAGES}"))).await);
    }
    let bystanders = scene.bystanders().await;
    bystanders.go_on(50).await;
    wire.handle.reads(true);
    for mut stream in streams {
        assert_eq!(stream.head().await.status, 200);
        assert_eq!(consume(&mut stream).await, MESSAGES * MESSAGE.len());
    }
    bystanders.go_on(1).await;
    bystanders.end().await;
}
