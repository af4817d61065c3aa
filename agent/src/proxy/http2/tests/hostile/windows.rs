//! Windows: what was given equals what was used, whatever happens to streams, or the connection stands still in the end.

use super::*;

/// Numbers that are the same in each run.
struct Lots(fastrand::Rng);

impl Lots {
    fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
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
