//! Peers that take nothing: what the kernel keeps for them is counted, like what is kept for those of HTTP/1.

use super::{
    raw::{Backend, Wire, Wishes, frames},
    *,
};
use crate::proxy::Cause;

const WAITING: &[&str] = &["sluice_pod_waiting_bytes{", "source_pod=\"gateway\""];

/// Waits until the kernel's memory for so many connections is counted, beside the little that the agent itself has.
async fn counted(bed: &Bed, sockets: usize) {
    let sockets = sockets as u64 * SOCKET_MEMORY as u64;
    bed.metric(WAITING, |bytes| (sockets..sockets + SOCKET_MEMORY as u64 / 2).contains(&bytes)).await;
}

/// A client that asks for more than all buffers on the way take, and reads nothing.
async fn stall(bed: &Bed) -> Wire {
    let kernel = Some(64 * 1024);
    let settings = vec![(4, u32::MAX >> 1)];
    let window = (u32::MAX >> 1) - 65_535;
    let wire = Wire::connect(bed.address, Wishes { settings, window, kernel, ..Wishes::default() }).await;
    assert_eq!(wire.handle.get("/").await.status, 200);
    wire.handle.reads(false);
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_keeps_for_clients_that_read_nothing_is_their_pods() {
    let backend = Backend::start().await;
    let bytes = 5 * SOCKET_MEMORY;
    let bed = bed_within(&[(backend.address, None)], Limits { bytes, ..Limits::default() });
    let patient = Wire::connect(bed.address, Wishes::default()).await;
    let mut slow = Vec::new();
    for count in 1..=3 {
        let wire = stall(&bed).await;
        slow.push((wire.handle.open(true, &frames::get("/big/8000000")).await, wire));
        counted(&bed, count).await;
        // As much as is left, and more than that.
        let cause = (count == 3).then_some(Cause::Memory);
        soon(async {
            while bed.proxy.uses()[0].direct != cause {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    // What it has open goes on.
    assert_eq!(patient.handle.get("/").await.status, 200);
    // Who reads on frees what has waited for it, and gets all of it.
    for (stream, wire) in &mut slow {
        wire.handle.reads(true);
        assert_eq!(stream.answer().await.body.len(), 8_000_000);
    }
    counted(&bed, 0).await;
    // And so does who leaves.
    let wire = stall(&bed).await;
    let _stream = wire.handle.open(true, &frames::get("/big/8000000")).await;
    counted(&bed, 1).await;
    wire.handle.close().await;
    drop(wire);
    counted(&bed, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_keeps_for_an_endpoint_that_reads_nothing_is_counted_too() {
    let stops = wire_that_stops().await;
    let bed = bed(&[(stops, None)]);
    let wire = Wire::connect(bed.address, Wishes::default()).await;
    let stream = wire.handle.open(false, &frames::post("/")).await;
    let to = wire.handle.borrow(stream.id);
    let sending = tokio::spawn(async move { to.data(&vec![7; 64_000_000], true).await });
    counted(&bed, 1).await;
    stream.reset(8).await;
    assert!(!soon(sending).await.expect("no panic"));
    wire.handle.close().await;
    drop(bed);
}

/// An endpoint that allows everything and, once a request has come, takes nothing more from its socket.
async fn wire_that_stops() -> SocketAddr {
    let settings = vec![(4, u32::MAX >> 1)];
    let window = (u32::MAX >> 1) - 65_535;
    raw::wire::listen(Wishes { settings, window, ..Wishes::default() }, |mut wire| async move {
        let Some(stream) = wire.accepted.recv().await else { return };
        wire.handle.reads(false);
        // For as long as the test lasts.
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await
}
