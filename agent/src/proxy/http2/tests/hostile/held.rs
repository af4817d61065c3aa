//! What may be held in memory for a peer, and whom a stream that stands still holds up.

use super::*;

/// Windows that let everything come.
fn endless() -> Wishes {
    Wishes { settings: vec![(4, u32::MAX >> 1)], window: (u32::MAX >> 1) - 65_535, ..Wishes::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_sends_interim_responses_for_ever() {
    for reads in [true, false] {
        let scene = Scene::new().await;
        let wire = scene.wire_with(Wishes { kernel: Some(64 * 1024), ..Wishes::default() }).await;
        let neighbours = scene.bystanders().await;
        neighbours.go_on(1).await;
        let connections = scene.backend.seen.connections.load(Ordering::Relaxed);
        let mut stream = wire.handle.open(true, &frames::get("/hints")).await;
        wire.handle.reads(reads);
        if !reads {
            scene.backend.seen.until(|seen| seen.resets.load(Ordering::Relaxed) == 1).await;
            wire.handle.reads(true);
        }
        let answer = stream.answer().await;
        assert!(answer.broken.is_some_and(|code| code.is_some()) || answer.status == 502, "{answer:?}");
        scene.backend.seen.until(|seen| seen.resets.load(Ordering::Relaxed) == 1).await;
        let sent = scene.backend.seen.sent.load(Ordering::Relaxed);
        assert!(sent < 64 << 20, "{sent} bytes were taken");
        assert_eq!(wire.handle.get("/").await.status, 200);
        neighbours.go_on(5).await;
        neighbours.end().await;
        assert_eq!(
            scene.backend.seen.connections.load(Ordering::Relaxed),
            connections,
            "its connection goes on"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_nobody_reads_are_held_within_bounds() {
    const STREAMS: usize = 1000;
    let scene = Scene::new().await;
    let wire = scene.wire_with(Wishes { kernel: Some(64 * 1024), ..endless() }).await;
    assert_eq!(wire.handle.get("/").await.status, 200);
    wire.handle.reads(false);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(wire.handle.open(true, &frames::get("/big/1000000")).await);
    }
    let seen = &scene.backend.seen;
    seen.until(|seen| seen.open.load(Ordering::Relaxed) >= STREAMS).await;
    // Until no more is taken.
    let mut last = 0;
    soon(async {
        let mut same = 0;
        while same < 20 {
            let sent = seen.sent.load(Ordering::Relaxed);
            same = if sent == last { same + 1 } else { 0 };
            last = sent;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(last < 64 << 20, "{last} bytes are held for a client that reads nothing");
    let neighbours = scene.bystanders().await;
    neighbours.go_on(20).await;
    // Its end frees everything, at the endpoint too.
    drop(streams);
    wire.handle.close().await;
    seen.until(|seen| seen.open.load(Ordering::Relaxed) < 16).await;
    let other = scene.wire().await;
    for _ in 0..20 {
        assert_eq!(other.handle.get("/big/1000000").await.body.len(), 1_000_000);
    }
    neighbours.go_on(1).await;
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_are_not_taken_stall_nobody() {
    // What comes for them uses up the windows of their streams alone, or that of their connection, too.
    for shares in [true, false] {
        let scene = Scene::new().await;
        let wire = scene.wire_with(Wishes { takes: false, shares, ..Wishes::default() }).await;
        let mut paused = Vec::new();
        for _ in 0..12 {
            let mut stream = wire.handle.open(true, &frames::get("/big/1000000")).await;
            assert_eq!(stream.head().await.status, 200);
            paused.push(stream);
        }
        let neighbours = if shares { scene.neighbours(&wire).await } else { scene.bystanders().await };
        neighbours.go_on(20).await;
        let other = scene.wire().await;
        for _ in 0..5 {
            assert_eq!(other.handle.get("/big/1000000").await.body.len(), 1_000_000);
        }
        for stream in &mut paused {
            wire.handle.takes(stream.id).await;
        }
        for mut stream in paused {
            let mut count = 0;
            loop {
                match stream.part().await {
                    Ok(Event::Data { bytes, end, .. }) => {
                        count += bytes.len();
                        if end {
                            break;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(count, 1_000_000);
        }
        neighbours.go_on(1).await;
        neighbours.end().await;
    }
}

/// More than the largest windows of a stream, ours and its endpoint's, have room for together (256 KiB and 64 KiB).
const UPLOAD: usize = 400_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_not_read_stall_nobody() {
    // The endpoint gives its connection's window again as data comes, or only as it is read.
    for shares in [true, false] {
        let backend = Backend::with(Wishes { takes: false, shares, ..Wishes::default() }).await;
        let scene = Scene::before(backend);
        let wire = scene.wire().await;
        let mut uploads = Vec::new();
        for _ in 0..12 {
            let stream = wire.handle.open(false, &frames::post("/pause")).await;
            let to = wire.handle.borrow(stream.id);
            uploads.push((stream, tokio::spawn(async move { to.data(&vec![7; UPLOAD], true).await })));
        }
        for (stream, _) in &uploads {
            wire.handle.stuck(stream.id).await;
        }
        let neighbours = scene.neighbours(&wire).await;
        neighbours.go_on(20).await;
        let other = scene.wire().await;
        assert_eq!(other.handle.post("/count", &vec![7; UPLOAD]).await.text(), UPLOAD.to_string());
        scene.backend.seen.gate.send_replace(true);
        for (mut stream, sending) in uploads {
            assert_eq!(stream.answer().await.text(), UPLOAD.to_string());
            assert!(soon(sending).await.expect("no panic"));
        }
        neighbours.go_on(1).await;
        neighbours.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_not_read_leaves_room_for_streams_that_were_there_before() {
    // They share its connection to the endpoint, which gives its window again only as it is read.
    let scene =
        Scene::before(Backend::with(Wishes { takes: false, shares: false, ..Wishes::default() }).await);
    let wire = scene.wire().await;
    let mut before = Vec::new();
    for _ in 0..4 {
        before.push(wire.handle.open(false, &frames::post("/echo")).await);
    }
    for stream in &mut before {
        assert_eq!(stream.head().await.status, 200);
    }
    let mut uploads = Vec::new();
    for _ in 0..3 {
        let upload = wire.handle.open(false, &frames::post("/pause")).await;
        let to = wire.handle.borrow(upload.id);
        uploads.push((upload, tokio::spawn(async move { to.data(&vec![7; UPLOAD], true).await })));
    }
    for (upload, _) in &uploads {
        wire.handle.stuck(upload.id).await;
    }
    for _ in 0..100 {
        for stream in &mut before {
            assert!(stream.data(b"a message", false).await);
            // It may come in parts.
            let mut echo = Vec::new();
            while echo.len() < 9 {
                match stream.part().await {
                    Ok(Event::Data { bytes, end: false, .. }) => echo.extend_from_slice(&bytes),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(echo, b"a message");
        }
    }
    scene.backend.seen.gate.send_replace(true);
    for (mut upload, sending) in uploads {
        assert_eq!(upload.answer().await.text(), UPLOAD.to_string());
        assert!(soon(sending).await.expect("no panic"));
    }
    for mut stream in before {
        assert!(stream.data(b"", true).await);
        let answer = stream.part().await;
        assert!(matches!(answer, Ok(Event::Headers { end: true, .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_response_that_ends_before_the_request() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    // It goes on until it has ended, as it does in HTTP/1.
    let mut stream = wire.handle.open(false, &frames::post("/early")).await;
    let answer = stream.answer().await;
    assert_eq!((answer.status, answer.text(), answer.broken), (200, "early", None));
    assert!(stream.data(&vec![7; 500_000], true).await);
    scene.backend.seen.until(|seen| seen.early.load(Ordering::Relaxed) == 500_000).await;
    // Unless the endpoint says that it wants no more of it: then the client hears that, and has its response.
    let mut stream = wire.handle.open(false, &frames::post("/enough")).await;
    let to = wire.handle.borrow(stream.id);
    let sending = tokio::spawn(async move { to.data(&vec![7; 5_000_000], true).await });
    let answer = stream.answer().await;
    assert_eq!((answer.status, answer.text(), answer.broken), (200, "enough", None));
    match stream.part().await {
        Err(Some(0)) => {}
        other => panic!("{other:?}"),
    }
    assert!(!soon(sending).await.expect("no panic"), "not all of it was wanted");
    assert_eq!(wire.handle.get("/").await.status, 200);
}
