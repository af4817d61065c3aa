//! Windows: what was given equals what was used, whatever happens to streams, or the connection stands still in the end.

use super::*;

/// Numbers that are the same in each run.
struct Lots(fastrand::Rng);

impl Lots {
    fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }
}

/// Some hundred streams, one after the other and side by side, that end in every way.
async fn uploads(scene: &Scene, seed: u64) {
    let wire = scene.wire().await;
    let mut lots = Lots(fastrand::Rng::with_seed(seed));
    let mut running = Vec::new();
    for n in 0..200 {
        let path = match lots.below(5) {
            0 | 1 => "/count".to_owned(),
            2 => "/early".to_owned(),
            3 => "/enough".to_owned(),
            _ => format!("/refuse/{}", lots.below(40_000)),
        };
        let (parts, ends, waits) = (lots.below(40), lots.below(3) > 0, lots.below(2) == 0);
        let sizes: Vec<_> = (0..parts).map(|_| (lots.below(9000), lots.below(300))).collect();
        let mut stream = wire.handle.open(false, &frames::post(&path)).await;
        running.push(tokio::spawn(async move {
            for (length, padding) in sizes {
                let bytes = vec![7; length];
                let sent = match u8::try_from(padding) {
                    Ok(padding) => stream.padded(&bytes, padding, false).await,
                    Err(_) => stream.data(&bytes, false).await,
                };
                if !sent {
                    return;
                }
            }
            if ends {
                stream.data(b"", true).await;
                if waits {
                    let _ = stream.answer().await;
                }
            } else {
                stream.reset(8).await;
            }
        }));
        if n % 8 == 7 {
            for task in running.drain(..) {
                soon(task).await.expect("no panic");
            }
        }
    }
    let (_, sent) = wire.handle.credit();
    assert!(sent > 20 * 65_535, "{sent}: too little to show anything");
    // All of it was given again, or is about to be: half a window may wait for more.
    soon(async {
        while wire.handle.credit().0 < 65_535 / 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(wire.handle.post("/count", &vec![7; 2_000_000]).await.text(), "2000000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_send_is_given_again() {
    for seed in 0..4 {
        uploads(&Scene::new().await, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_endpoints_send_is_given_again() {
    let scene = Scene::new().await;
    let wire = scene.wire().await;
    let mut lots = Lots(fastrand::Rng::with_seed(7));
    for n in 0..400 {
        let length = lots.below(100_000);
        let path = if lots.below(2) == 0 { format!("/padded/{length}") } else { format!("/big/{length}") };
        let mut stream = wire.handle.open(true, &frames::get(&path)).await;
        match lots.below(3) {
            // Before, while, or after it comes.
            0 => drop(stream.reset(8).await),
            1 => {
                assert_eq!(stream.head().await.status, 200);
                stream.reset(8).await;
            }
            _ if length > 0 => assert_eq!(stream.answer().await.body.len(), length, "{n}: {path}"),
            _ => {}
        }
    }
    assert_eq!(scene.backend.seen.connections.load(Ordering::Relaxed), 1);
    assert_eq!(wire.handle.get("/big/3000000").await.body.len(), 3_000_000);
}
