//! Frames that carry nothing, as fast as they are taken: whoever sends them is ended, and nobody else notices.

use super::*;

type Makes = fn(u32) -> Vec<u8>;

/// What is sent on a connection with a stream, `id`, that is open and waits.
const FLOODS: &[(&str, Makes)] = &[
    ("PING", |_| frames::ping(*b"00000000")),
    ("answers to no PING", |_| frames::frame(frames::PING, frames::ACK, 0, b"00000000")),
    ("SETTINGS", |_| frames::settings(&[])),
    ("SETTINGS that change", |_| {
        [frames::settings(&[(4, 1000), (1, 0)]), frames::settings(&[(4, 2000), (1, 4096)])].concat()
    }),
    ("PRIORITY", |id| frames::frame(frames::PRIORITY, 0, id, b"\0\0\0\0\x10")),
    ("PRIORITY of idle streams", |_| frames::frame(frames::PRIORITY, 0, 1_000_001, b"\0\0\0\0\x10")),
    ("WINDOW_UPDATE of the connection", |_| frames::window(0, 1)),
    ("WINDOW_UPDATE of a stream", |id| frames::window(id, 1)),
    ("empty DATA", |id| frames::data(id, false, b"")),
    ("padding", |id| frames::frame(frames::DATA, frames::PADDED, id, b"\0")),
    ("unknown frames", |_| frames::frame(0x77, 0xff, 0, b"whatever")),
    ("RST_STREAM of a closed stream", |id| frames::reset(id - 2, 8)),
    ("WINDOW_UPDATE of a closed stream", |id| frames::window(id - 2, 1)),
    ("GOAWAY", |_| frames::go_away(0, 0)),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_flood_are_ended() {
    together(FLOODS.iter().map(|(what, makes)| async move {
        let scene = Scene::new().await;
        let bystander = Wire::connect(scene.bystander, Wishes::default()).await;
        let neighbours = Neighbours::of(&vec![bystander.handle.clone(); 8]);
        let mut wire = scene.wire().await;
        assert_eq!(wire.handle.get("/").await.status, 200);
        let stream = wire.handle.open(false, &frames::post("/hang")).await;
        let flood = makes(stream.id).repeat(500);
        let mut sent = 0;
        while !wire.handle.has_ended() && wire.handle.send(&flood).await {
            sent += flood.len();
            assert!(sent < 1 << 30, "{what}: it goes on for ever");
        }
        assert_eq!(wire.ended().await, ENHANCE_YOUR_CALM, "{what}");
        neighbours.go_on(5).await;
        neighbours.end().await;
        scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) == 0).await;
    }))
    .await;
}

/// An endless header block: it cannot be thrown away, for the table's sake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_end_their_connection() {
    let scene = Scene::new().await;
    let neighbours = scene.bystanders().await;
    for part in
        [&b""[..], &frames::block(&[("x-name", "value")]), &frames::block(&[("a", &"v".repeat(8000))])]
    {
        let mut wire = scene.wire().await;
        // The settings have been acknowledged then: that must not come between the frames of one block.
        assert_eq!(wire.handle.get("/").await.status, 200);
        let id = wire.handle.register().id;
        let begin = frames::frame(frames::HEADERS, 0, id, &frames::block(&frames::get("/")));
        wire.handle.send(begin).await;
        let flood = frames::frame(frames::CONTINUATION, 0, id, part).repeat(50);
        let mut sent = 0;
        while !wire.handle.has_ended() && wire.handle.send(&flood).await {
            sent += flood.len();
            assert!(sent < 64 << 20, "it goes on for ever");
        }
        assert_eq!(wire.ended().await, ENHANCE_YOUR_CALM);
        neighbours.go_on(1).await;
    }
    neighbours.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_flood_are_left_by_themselves() {
    together(FLOODS.iter().map(|(what, makes)| async move {
        let ended = Arc::new(Mutex::new(None));
        let note = ended.clone();
        let floods = wire::listen(Wishes::default(), move |mut wire| {
            let note = note.clone();
            async move {
                let Some(mut stream) = wire.accepted.recv().await else { return };
                // One that is over, for frames of those.
                stream.wait().await;
                stream.headers(true, &[(":status", "200")]).await;
                let Some(mut stream) = wire.accepted.recv().await else { return };
                stream.wait().await;
                if what.contains("DATA") || *what == "padding" {
                    stream.headers(false, &[(":status", "200")]).await;
                }
                let flood = makes(stream.id).repeat(500);
                while wire.handle.send(&flood).await {}
                *note.lock().expect("not poisoned") = Some(wire.ended().await);
            }
        })
        .await;
        let backend = Backend::start().await;
        let bed = bed(&[(floods, None)]);
        let wire = Wire::connect(bed.address, Wishes::default()).await;
        assert_eq!(wire.handle.get("/").await.status, 200);
        let _stream = wire.handle.open(true, &frames::get("/")).await;
        soon(async {
            while ended.lock().expect("not poisoned").is_none() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        let ended = ended.lock().expect("not poisoned").take();
        if *what == "GOAWAY" {
            // Nothing is left to be told to who has said that he leaves.
            assert!(ended.is_some());
        } else {
            assert_eq!(ended, Some(ENHANCE_YOUR_CALM), "{what}");
        }
        // Its client's connection goes on.
        bed.change(2, &[(backend.address, None)], |service| service);
        assert_eq!(wire.handle.get("/").await.status, 200, "{what}");
    }))
    .await;
}
