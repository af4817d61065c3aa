//! A worker's idle HTTP/1 connections to endpoints.
//!
//! A connection belongs to one pod (it was opened in that pod's network namespace, with that pod's address) and one
//! endpoint. The one that was used last is used first, so that what a burst has opened can grow old and go.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;
use tokio::net::TcpStream;

use super::upstream::Opened;
use crate::{
    clock::Nanos,
    govern::endpoint::{Endpoint, Load},
};

/// How long a connection is kept idle if the endpoint does not say how long it keeps it. Below the keep-alive times of
/// common servers (Tomcat 20 s, gunicorn behind a worker 5 s says so itself, nginx 75 s).
const KEPT_FOR: Nanos = Nanos::of(Duration::from_secs(15));

/// A request that cannot be sent twice does not go over a connection that has been idle for longer than this: the longer
/// a connection has been idle, the likelier it is that its server is closing it at this very moment.
const FRESH_FOR: Nanos = Nanos::of(Duration::from_millis(1500));

/// A pod and an endpoint.
type Key = (u64, SocketAddr);

struct Idle {
    stream: Opened,
    /// Of the endpoint that it leads to: another may have come to its address since.
    load: Arc<Load>,
    since: Nanos,
    until: Nanos,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<AHashMap<Key, Vec<Idle>>>,
    count: Cell<usize>,
}

impl Pool {
    /// An idle connection of pod `pod` to `endpoint` that is open as far as can be told.
    /// `repeatable`: the request could be sent again, should it turn out not to be.
    pub(crate) fn take(&self, pod: u64, endpoint: &Endpoint, repeatable: bool, now: Nanos) -> Option<Opened> {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.get_mut(&(pod, endpoint.address))?;
        while let Some(candidate) = idle.pop() {
            self.count.set(self.count.get() - 1);
            if now > candidate.until || !Arc::ptr_eq(&candidate.load, &endpoint.load) {
                continue;
            }
            if !repeatable && now > candidate.since + FRESH_FOR {
                // The others are older still.
                self.count.set(self.count.get() - idle.len());
                idle.clear();
                return None;
            }
            if is_quiet(&candidate.stream) && (repeatable || is_quiet_in_kernel(&candidate.stream)) {
                return Some(candidate.stream);
            }
        }
        None
    }

    /// Takes back a connection after an answer that ended cleanly. `idle_seconds`: how long the endpoint says it keeps it.
    /// Of an endpoint that is shutting down none is kept: it may wait for its connections to end.
    pub(crate) fn give(
        &self,
        pod: u64,
        endpoint: &Endpoint,
        stream: Opened,
        idle_seconds: Option<u32>,
        now: Nanos,
    ) {
        let keep = match idle_seconds {
            // One second less than it says, for the way there.
            Some(seconds) => Nanos::of(Duration::from_secs(seconds.saturating_sub(1).into())).min(KEPT_FOR),
            None => KEPT_FOR,
        };
        if keep == Nanos::ZERO || endpoint.load.terminating_since().is_some() {
            return;
        }
        let idle = Idle { stream, load: endpoint.load.clone(), since: now, until: now + keep };
        self.idle.borrow_mut().entry((pod, endpoint.address)).or_default().push(idle);
        self.count.set(self.count.get() + 1);
    }

    /// Closes what has been idle for too long, what its server has closed, and what leads to an endpoint that is shutting
    /// down: that would never be asked for again.
    pub(crate) fn sweep(&self, now: Nanos) {
        let mut pools = self.idle.borrow_mut();
        pools.retain(|_, idle| {
            idle.retain(|candidate| {
                now <= candidate.until
                    && candidate.load.terminating_since().is_none()
                    && is_quiet(&candidate.stream)
            });
            !idle.is_empty()
        });
        self.count.set(pools.values().map(Vec::len).sum());
    }

    /// Closes all. Returns how many there were.
    pub(crate) fn clear(&self) -> usize {
        self.idle.borrow_mut().clear();
        self.count.take()
    }

    /// Closes all connections of a pod that is gone.
    pub(crate) fn forget(&self, pod: u64) {
        let mut pools = self.idle.borrow_mut();
        pools.retain(|(owner, _), _| *owner != pod);
        self.count.set(pools.values().map(Vec::len).sum());
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.count.get()
    }
}

/// Nothing has come in: neither the end of the connection, nor bytes that nobody asked for. Asks the runtime's readiness,
/// so it costs no system call while nothing has. (Polling would, for a task that has done much already, always find that
/// nothing has.)
fn is_quiet(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The same, asked of the kernel: the runtime may not have been told yet.
fn is_quiet_in_kernel(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(stream).peek(&mut byte);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    const SECOND: Nanos = Nanos::of(Duration::from_secs(1));

    async fn pair() -> (Opened, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Opened::new(client.unwrap(), &Arc::default()), server.unwrap().0)
    }

    fn endpoint() -> Endpoint {
        Endpoint::new("10.0.0.1:80".parse().unwrap())
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_last_used_comes_first_and_never_another_pods() {
        let pool = Pool::default();
        let endpoint = endpoint();
        let (first, _keep1) = pair().await;
        let (second, _keep2) = pair().await;
        let last = second.local_addr().unwrap();
        pool.give(1, &endpoint, first, None, Nanos::ZERO);
        pool.give(1, &endpoint, second, None, Nanos::ZERO);
        assert_eq!(pool.len(), 2);
        assert!(pool.take(2, &endpoint, true, SECOND).is_none());
        assert_eq!(pool.take(1, &endpoint, true, SECOND).unwrap().local_addr().unwrap(), last);
        pool.forget(1);
        assert!(pool.take(1, &endpoint, true, SECOND).is_none());
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test]
    async fn old_ones_are_not_used() {
        let pool = Pool::default();
        let endpoint = endpoint();
        let (stream, _keep) = pair().await;
        pool.give(1, &endpoint, stream, Some(5), Nanos::ZERO);
        assert!(
            pool.take(1, &endpoint, true, SECOND * 5).is_none(),
            "a second before the server's own limit"
        );
        let (stream, _keep) = pair().await;
        pool.give(1, &endpoint, stream, None, Nanos::ZERO);
        assert!(pool.take(1, &endpoint, false, SECOND * 2).is_none(), "not for what cannot be repeated");
        let (stream, _keep) = pair().await;
        pool.give(1, &endpoint, stream, Some(0), Nanos::ZERO);
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test]
    async fn closed_and_talkative_ones_are_not_used() {
        let pool = Pool::default();
        let endpoint = endpoint();
        let (stream, server) = pair().await;
        pool.give(1, &endpoint, stream, None, Nanos::ZERO);
        drop(server);
        until(|| {
            pool.sweep(Nanos::ZERO);
            pool.len() == 0
        })
        .await;

        let (stream, mut server) = pair().await;
        server.write_all(b"HTTP/1.1 408 Timeout\r\n\r\n").await.unwrap();
        pool.give(1, &endpoint, stream, None, Nanos::ZERO);
        assert!(pool.take(1, &endpoint, false, Nanos::ZERO).is_none(), "the kernel knows at once");
    }

    #[tokio::test]
    async fn none_that_leads_to_who_leaves_or_is_another_is_used() {
        let (pool, old) = (Pool::default(), endpoint());
        let (stream, _keep1) = pair().await;
        pool.give(1, &old, stream, None, Nanos::ZERO);
        assert!(pool.take(1, &endpoint(), true, Nanos::ZERO).is_none(), "another at the same address");
        let (stream, _keep2) = pair().await;
        pool.give(1, &old, stream, None, Nanos::ZERO);
        old.load.set_terminating(true, 1);
        pool.sweep(Nanos::ZERO);
        assert_eq!(pool.len(), 0);
        let (stream, _keep3) = pair().await;
        pool.give(1, &old, stream, None, Nanos::ZERO);
        assert_eq!(pool.len(), 0);
    }
}
