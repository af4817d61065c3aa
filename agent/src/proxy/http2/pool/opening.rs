//! Opening a connection to an endpoint, and the task that drives it to its end.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::Shared;
use crate::{
    clock::Nanos,
    govern::endpoint::Endpoint,
    proxy::{
        http2::engine::{
            core::{Core, Ended, Role},
            driver::Driver,
            handle,
        },
        upstream::{self, Terms},
        worker::{PodHere, Worker},
    },
};

/// A connection is shared by many requests and lives long, so one to a node that has vanished must be found out: what
/// was sent must be acknowledged by the endpoint's kernel within this time, and a silent one is asked whether it is there.
/// (Not by HTTP/2 pings: gRPC servers take more than one in five minutes for abuse.)
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(20);
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Waits until a connection is open. Streams that come meanwhile wait for it together, each as long as it may itself: who opens it
/// may have all the time that the kernel takes, for want of another endpoint.
pub(super) async fn opened(
    worker: &Rc<Worker>,
    pod: &Rc<PodHere>,
    endpoint: &Arc<Endpoint>,
    within: Option<Duration>,
    shared: &Shared,
) -> Result<(), Rc<io::Error>> {
    let own = Cell::new(false);
    let opened = shared.opened.get_or_init(|| {
        own.set(true);
        async { open(worker, pod, endpoint, within, shared).await.map_err(Rc::new) }
    });
    let opened = async { opened.await.as_ref().map(drop).map_err(Rc::clone) };
    upstream::wait_within(endpoint, within, || own.get(), opened).await
}

/// Opens a connection and starts the task that drives it.
async fn open(
    worker: &Rc<Worker>,
    pod: &Rc<PodHere>,
    endpoint: &Arc<Endpoint>,
    within: Option<Duration>,
    shared: &Shared,
) -> io::Result<handle::Shared> {
    // What the clients' sockets say is not asked for: many share the connection, which is watched over in its own way.
    let terms = Terms { within, ..Terms::default() };
    let opened = upstream::connect(worker, pod, endpoint, terms).await?;
    let to = opened.to;
    shared.to.set(to);
    let (stream, counted) = opened.into_parts();
    watch_over(&stream)?;
    let core = Core::new(Role::Client, pod.http2.clone(), Nanos::now());
    let core = Rc::new(RefCell::new(core));
    let mut driver = Driver::new(core.clone(), stream, worker.clone(), pod.clone(), BytesMut::new());
    let (worker_here, key) = (Rc::clone(worker), shared.key);
    let pod_here = Rc::clone(pod);
    pod.spawn(worker, async move {
        let worker = worker_here;
        let _counted = counted;
        // Until the endpoint has told how many streams it allows, the others wait.
        let (mut allowed, mut retired) = (None, false);
        poll_fn(|cx| {
            let over = driver.poll(cx);
            let remote = *driver.core().borrow().remote();
            if remote.known && allowed.replace(remote.max_streams) != Some(remote.max_streams) {
                worker.h2.call_all(key);
            }
            if !std::mem::replace(&mut retired, remote.last.is_some()) && remote.last.is_some() {
                worker.h2.drop_ended(key);
                if let Some(arrival) = &pod_here.arrival {
                    arrival.application_ended();
                }
            }
            over
        })
        .await;
        if let Some(Ended::Violation(code, why)) = driver.core().borrow().ended() {
            // Its requests have failed, and said so.
            tracing::debug!(endpoint = %to, %code, why, "ended an HTTP/2 connection to an endpoint");
        }
        let lost = driver.core().borrow().ended() == Some(Ended::Lost);
        drop(driver);
        worker.h2.drop_ended(key);
        if let Some(arrival) = pod_here.arrival.as_ref().filter(|_| lost) {
            arrival.application_ended();
        }
    });
    Ok(core)
}

fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(ACKNOWLEDGED_WITHIN))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY))
}
