//! Heads that are large, strange or in many pieces.

use super::*;

#[tokio::test]
async fn paths_are_passed_as_they_are() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    for path in [
        "/<b>",
        "/a>b",
        "/`x`",
        "/\"q\"",
        "/{a}|b^c\\",
        "/a?q=<>\"`",
        "/%zz",
        "/é",
        "//a//b/../c",
        "/a?b?c#d",
    ] {
        let answer = wire.handle.get(path).await;
        assert_eq!((answer.status, answer.header("x-path"), answer.broken), (200, path, None), "{path}");
    }
    let text = scene.bed.metrics.render().expect("it can be rendered");
    assert!(
        text.lines().any(|line| line.starts_with("sluice_requests_total") && line.ends_with(" 10")),
        "{text}"
    );
}

#[tokio::test]
async fn a_response_head_that_is_too_large_is_one_bad_response() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let mut long = wire.handle.open(false, &frames::post("/echo")).await;
    assert_eq!(long.head().await.status, 200);
    for (path, fits) in [
        ("/wide/8000", true),
        ("/wide/60000", true),
        ("/wider/60000", true),
        ("/wide/70000", false),
        ("/wider/120000", false),
    ] {
        let answer = wire.handle.get(path).await;
        if fits {
            let length: usize = path.rsplit('/').next().and_then(|n| n.parse().ok()).expect("a number");
            assert_eq!((answer.status, answer.header("x-wide").len()), (200, length), "{path}");
        } else {
            let broken = answer.broken.is_some_and(|code| code.is_some());
            assert!(broken || answer.status == 502, "{path}: {answer:?}");
        }
    }
    assert_eq!(scene.backend.seen.connections.load(Ordering::Relaxed), 1);
    long.data(b"still", false).await;
    assert!(matches!(long.part().await, Ok(Event::Data { bytes, .. }) if &bytes[..] == b"still"));
}

#[tokio::test]
async fn request_heads_in_many_parts() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let wide = "v".repeat(3000);
    let lines = [&frames::get("/many")[..], &[("x-wide", &wide)]].concat();
    let block = frames::block(&lines);
    for size in [7, 100, 4000] {
        let mut stream = wire.handle.register();
        wire.handle.send(frames::parts(stream.id, true, &block, size)).await;
        let answer = stream.answer().await;
        assert_eq!((answer.status, answer.header("x-path")), (200, "/many"), "{size}");
    }
}

#[tokio::test]
async fn a_head_that_unfolds_is_refused_and_its_connection_goes_on() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    // An entry of 3,000 bytes, and 14,000 references to it: 42 MB in 17 KB.
    let mut bomb = frames::block(&frames::get("/"));
    bomb.extend([0x40, 1, b'a', 127, 0xb9, 0x16]);
    bomb.extend(vec![b'x'; 127 + 0x39 + (0x16 << 7)]);
    bomb.extend(vec![0xbe; 14_000]);
    for _ in 0..20 {
        let mut stream = wire.handle.register();
        wire.handle.send(frames::parts(stream.id, true, &bomb, 16_384)).await;
        let answer = stream.answer().await;
        assert_eq!(answer.status, 431, "{answer:?}");
    }
    assert_eq!(wire.handle.get("/").await.status, 200);
    assert_eq!(scene.backend.seen.requests.load(Ordering::Relaxed), 1, "none of them went on");
}

/// RFC 8441: a WebSocket is a stream.
#[tokio::test]
async fn extended_connect_goes_from_end_to_end() {
    let backend = Backend::with(Wishes { settings: vec![(8, 1)], ..Wishes::default() }).await;
    let scene = Scene::before(backend);
    let mut wire = scene.wire().await;
    let offered = loop {
        match wire.heard().await {
            Event::Settings { ack: false, all } => break all,
            Event::Closed => panic!("no SETTINGS"),
            _ => {}
        }
    };
    assert!(offered.contains(&(8, 1)), "{offered:?}");
    let mut lines = frames::get("/echo");
    lines[0].1 = "CONNECT";
    lines.push((":protocol", "websocket"));
    lines.push(("sec-websocket-version", "13"));
    let mut stream = wire.handle.open(false, &lines).await;
    assert_eq!(stream.head().await.status, 200);
    for said in ["one", "two"] {
        stream.data(said.as_bytes(), false).await;
        assert!(
            matches!(stream.part().await, Ok(Event::Data { bytes, end: false, .. }) if bytes == said.as_bytes())
        );
    }
    stream.data(b"", true).await;
    assert!(matches!(
        stream.part().await,
        Ok(Event::Headers { end: true, .. } | Event::Data { end: true, .. })
    ));
    // An endpoint that does not offer it is not asked.
    let plain = Backend::start().await;
    scene.bed.change(2, &[(plain.address, None)], |service| service);
    let answer = wire.handle.open(false, &lines).await.answer().await;
    assert!(answer.broken.is_some_and(|code| code.is_some()) || answer.status >= 500, "{answer:?}");
    assert_eq!(plain.seen.requests.load(Ordering::Relaxed), 0);
    assert_eq!(wire.handle.get("/").await.status, 200);
}
