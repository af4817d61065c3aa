//! Streams that come to nothing: given up, broken, or with nothing in them.

use super::*;

/// A stream that goes on beside what happens.
struct Long(Stream);

impl Long {
    async fn begin(wire: &Wire) -> Self {
        let mut stream = wire.handle.open(false, &frames::post("/echo")).await;
        assert_eq!(stream.head().await.status, 200);
        Self(stream)
    }

    /// It still does what it did.
    async fn lives(&mut self) {
        assert!(self.0.data(MESSAGE, false).await);
        let mut count = 0;
        while count < MESSAGE.len() {
            match self.0.part().await {
                Ok(Event::Data { bytes, end: false, .. }) => count += bytes.len(),
                other => panic!("the long call has ended: {other:?}"),
            }
        }
    }

    async fn end(mut self) {
        self.0.data(b"", true).await;
        assert!(matches!(self.0.part().await, Ok(Event::Headers { end: true, .. })));
    }
}

/// Requests that are given up in the moment in which they are made.
fn given_up(wire: &Wire, count: usize) -> Vec<u8> {
    let each = |_| {
        let id = wire.handle.register().id;
        [frames::headers(id, true, &frames::get("/hang")), frames::reset(id, 8)].concat()
    };
    (0..count).flat_map(each).collect()
}

#[tokio::test]
async fn empty_frames_are_bounded_by_rate_and_not_by_a_lifetime() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    for n in 0..400 {
        let mut stream = wire.handle.open(false, &frames::post("/count")).await;
        for part in [&b""[..], b"", b"x", b""] {
            stream.data(part, false).await;
        }
        stream.data(b"", true).await;
        let answer = stream.answer().await;
        assert_eq!((answer.text(), answer.broken), ("1", None), "{n}");
        let answer = wire.handle.get("/empties").await;
        assert_eq!((answer.text(), answer.broken), ("x", None), "{n}");
    }
}

#[tokio::test]
async fn one_bad_response_is_one_bad_response() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    for n in 0..1500 {
        let path = if n % 2 == 0 { "/malformed" } else { "/reset" };
        let answer = wire.handle.get(path).await;
        assert!(answer.broken.is_some_and(|code| code.is_some()) || answer.status == 502, "{n}: {answer:?}");
        if n % 50 == 0 {
            assert_eq!(wire.handle.get("/").await.status, 200, "{n}");
        }
    }
    // None is broken off for them. (Further ones are for what the endpoint may make of so many resets.)
    let connections = scene.backend.seen.connections.load(Ordering::Relaxed);
    assert!(connections <= 1 + 1500 / 100, "{connections} connections");
}

#[tokio::test]
async fn some_streams_that_are_opened_and_given_up_in_one_read() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let mut long = Long::begin(&wire).await;
    for count in [21, 100, 500, 1000] {
        wire.handle.send(given_up(&wire, count)).await;
        long.lives().await;
        assert_eq!(wire.handle.get("/").await.status, 200, "{count}");
    }
    long.end().await;
}

#[tokio::test]
async fn calls_whose_deadlines_pass_again_and_again() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let neighbours = scene.neighbours(&wire).await;
    let mut long = Long::begin(&wire).await;
    for _ in 0..40 {
        let mut calls = Vec::new();
        for _ in 0..60 {
            calls.push(wire.handle.open(true, &frames::get("/hang")).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let resets: Vec<_> = calls.iter().flat_map(|call| frames::reset(call.id, 8)).collect();
        wire.handle.send(resets).await;
        long.lives().await;
    }
    long.end().await;
    neighbours.go_on(1).await;
    neighbours.end().await;
    // Whatever came to the endpoint is given up there, too.
    scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) == 0).await;
}

/// Servers end connections on which many streams are reset in a short time (Netty: more than 200 in 30 s). What each of many
/// clients may do without that must not be too much because they share a connection.
#[tokio::test]
async fn calls_that_are_given_up_end_no_connection_that_others_share() {
    let backend = Backend::with(Wishes { resets: Some(200), ..Wishes::default() }).await;
    let scene = Scene::before(backend);
    let wire = scene.wire().await;
    let neighbours = scene.neighbours(&wire).await;
    let mut long = Long::begin(&wire).await;
    for _ in 0..30 {
        let mut calls = Vec::new();
        for _ in 0..60 {
            calls.push(wire.handle.open(true, &frames::get("/hang")).await);
        }
        scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) >= 60).await;
        let resets: Vec<_> = calls.iter().flat_map(|call| frames::reset(call.id, 8)).collect();
        wire.handle.send(resets).await;
        long.lives().await;
    }
    long.end().await;
    neighbours.go_on(5).await;
    neighbours.end().await;
    scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) == 0).await;
}

/// Node's server refuses further streams of a connection whose responses take too much of its memory.
#[tokio::test]
async fn an_endpoint_that_has_had_enough_of_a_connection_is_asked_over_another() {
    let greedy = Arc::new(AtomicUsize::new(0));
    let connections = greedy.clone();
    let address = wire::listen(Wishes::default(), move |mut wire| {
        let first = connections.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let Some(mut stream) = wire.accepted.recv().await else { return };
            stream.wait().await;
            stream.headers(!first, &[(":status", "200")]).await;
            while let Some(mut further) = wire.accepted.recv().await {
                further.wait().await;
                if first {
                    further.reset(0xb).await;
                } else {
                    further.headers(true, &[(":status", "200")]).await;
                }
            }
        }
    })
    .await;
    let bed = bed(&[(address, None)]);
    let wire = Wire::connect(bed.address, Wishes::default()).await;
    // It goes on, and nobody else may come to its connection.
    let mut long = wire.handle.open(true, &frames::get("/long")).await;
    assert_eq!(long.head().await.status, 200);
    for n in 0..20 {
        assert_eq!(wire.handle.get("/").await.status, 200, "{n}");
    }
    assert_eq!(greedy.load(Ordering::Relaxed), 2);
    assert!(long.try_next().is_none(), "the long one goes on");
}

#[tokio::test]
async fn a_thousand_calls_that_are_given_up_at_once() {
    const CALLS: usize = 1000;
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let mut long = Long::begin(&wire).await;
    let neighbours = scene.neighbours(&wire).await;
    for _ in 0..3 {
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            calls.push(wire.handle.open(true, &frames::get("/hang")).await);
        }
        scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) > CALLS).await;
        let resets: Vec<_> = calls.iter().flat_map(|call| frames::reset(call.id, 8)).collect();
        wire.handle.send(resets).await;
        scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) <= 1 + 16).await;
        long.lives().await;
    }
    neighbours.go_on(1).await;
    neighbours.end().await;
    long.end().await;
}

/// Sends what `next` makes, as fast as it is taken, until the connection ends. Returns the code with which it does.
async fn go_on_until_ended(scene: &Scene, mut next: impl FnMut(&Wire) -> Vec<u8>) -> Option<u32> {
    let mut wire = scene.wire().await;
    let mut sent = 0_usize;
    soon(async {
        loop {
            let bytes: Vec<_> = (0..50).flat_map(|_| next(&wire)).collect();
            sent += bytes.len();
            if wire.handle.has_ended() || !wire.handle.send(bytes).await {
                return;
            }
            assert!(sent < 1 << 30, "it goes on for ever");
        }
    })
    .await;
    wire.ended().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_gives_up_is_ended() {
    let scene = Scene::new().await;
    let bystander = Wire::connect(scene.bystander, Wishes::default()).await;
    let neighbours = Neighbours::of(&vec![bystander.handle.clone(); 8]);
    let code = go_on_until_ended(&scene, |wire| given_up(wire, 1)).await;
    assert_eq!(code, ENHANCE_YOUR_CALM);
    let requests = scene.backend.seen.requests.load(Ordering::Relaxed);
    let calls: usize = neighbours.calls.iter().map(|calls| calls.load(Ordering::Relaxed)).sum();
    assert!(requests - calls.min(requests) < 20_000, "{requests} came through");
    neighbours.go_on(5).await;
    neighbours.end().await;
}

/// The other end is made to reset (CVE-2025-8671): each costs as much as if the peer had reset it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_makes_us_reset_is_ended() {
    type Makes = fn(u32) -> Vec<u8>;
    let ways: [(&str, Makes); 6] = [
        ("a window that grows by nothing", |id| {
            [frames::headers(id, true, &frames::get("/hang")), frames::window(id, 0)].concat()
        }),
        ("a window above the largest", |id| {
            [frames::headers(id, true, &frames::get("/hang")), frames::window(id, u32::MAX >> 1)].concat()
        }),
        ("data behind the end", |id| {
            [frames::headers(id, true, &frames::get("/hang")), frames::data(id, false, b"x")].concat()
        }),
        ("a second head", |id| {
            [frames::headers(id, false, &frames::post("/hang")), frames::headers(id, false, &[("a", "b")])]
                .concat()
        }),
        ("PRIORITY of a wrong size", |id| {
            let priority = frames::frame(frames::PRIORITY, 0, id, b"123");
            [frames::headers(id, true, &frames::get("/hang")), priority].concat()
        }),
        ("no request", |id| frames::headers(id, true, &[(":method", "GET")])),
    ];
    // One after the other: only who goes on faster than 4,096 a second is ended, and six at once are too slow for that on
    // a machine that is busy.
    for (what, way) in ways {
        let scene = Scene::new().await;
        let bystander = Wire::connect(scene.bystander, Wishes::default()).await;
        let neighbours = Neighbours::of(&vec![bystander.handle.clone(); 8]);
        let code = go_on_until_ended(&scene, |wire| way(wire.handle.register().id)).await;
        assert_eq!(code, ENHANCE_YOUR_CALM, "{what}");
        scene.backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) < 10).await;
        neighbours.go_on(5).await;
        neighbours.end().await;
    }
}
