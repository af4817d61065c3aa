//! Peers that mean harm, or do it: what one stream does must not be felt by another.
//!
//! Each test has neighbours: streams of the same connection, of another connection of the same pod, and of another pod.

mod cancel;
mod floods;
mod heads;
mod held;
mod small;
mod windows;

use std::sync::atomic::AtomicBool;

use super::{
    raw::{Answer, Backend, Event, Handle, Stream, Wire, Wishes, backend::MESSAGE, frames, wire},
    *,
};

const ENHANCE_YOUR_CALM: Option<u32> = Some(0xb);

/// A proxy with two pods, before one endpoint.
struct Scene {
    bed: Bed,
    backend: Backend,
    bystander: SocketAddr,
    _other: OpenPod,
}

impl Scene {
    async fn new() -> Self {
        Self::before(Backend::start().await)
    }

    fn before(backend: Backend) -> Self {
        let bed = bed_with(&[(backend.address, None)], 1000);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let bystander = listener.local_addr().expect("bound");
        let other = bed.proxy.open(&gateway(), vec![listener]);
        Self { bed, backend, bystander, _other: other }
    }

    /// A connection of the pod.
    async fn wire(&self) -> Wire {
        self.wire_with(Wishes::default()).await
    }

    async fn wire_with(&self, wishes: Wishes) -> Wire {
        Wire::connect(self.bed.address, wishes).await
    }

    /// Sixteen of them: some on `wire`, some on another connection of its pod, some of another pod.
    async fn neighbours(&self, wire: &Wire) -> Neighbours {
        let (beside, other) = (self.wire().await, Wire::connect(self.bystander, Wishes::default()).await);
        let mut handles = vec![wire.handle.clone(); 6];
        handles.extend(vec![beside.handle.clone(); 5]);
        handles.extend(vec![other.handle.clone(); 5]);
        Neighbours::of(&handles)
    }

    /// The same, none of them on a connection that anything happens to.
    async fn bystanders(&self) -> Neighbours {
        let (beside, other) = (self.wire().await, Wire::connect(self.bystander, Wishes::default()).await);
        let mut handles = vec![beside.handle.clone(); 8];
        handles.extend(vec![other.handle.clone(); 8]);
        Neighbours::of(&handles)
    }
}

/// Runs all of them side by side: a peer that brings something now and then is borne for a while.
async fn together(tasks: impl IntoIterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    for task in tasks {
        soon(soon(task)).await.expect("none of them fails");
    }
}

/// Clients that call again and again, and must not notice anything.
struct Neighbours {
    stop: Arc<AtomicBool>,
    calls: Arc<Vec<AtomicUsize>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Neighbours {
    fn of(handles: &[Handle]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(handles.iter().map(|_| AtomicUsize::new(0)).collect::<Vec<_>>());
        let tasks = handles.iter().enumerate().map(|(n, handle)| {
            let (stop, calls, handle) = (stop.clone(), calls.clone(), handle.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // In turn without a body and with one.
                    let answer = if calls[n].load(Ordering::Relaxed) % 2 == 0 {
                        handle.get("/neighbour").await
                    } else {
                        handle.post("/count", b"0123456789").await
                    };
                    assert_eq!((answer.status, answer.broken), (200, None), "neighbour {n}: {answer:?}");
                    calls[n].fetch_add(1, Ordering::Relaxed);
                    // Others are to have the processor, too: these are not here to load it.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        Self { tasks: tasks.collect(), stop, calls }
    }

    /// Each of them has made so many calls since it was asked.
    async fn go_on(&self, calls: usize) {
        let before: Vec<_> = self.calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect();
        soon(async {
            loop {
                assert!(
                    !self.tasks.iter().any(tokio::task::JoinHandle::is_finished),
                    "a neighbour has failed"
                );
                let mut now = self.calls.iter().map(|calls| calls.load(Ordering::Relaxed)).zip(&before);
                if now.all(|(now, before)| now >= before + calls) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// None of them has noticed anything.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            soon(task).await.expect("the neighbour has noticed nothing");
        }
    }
}
