//! Whether a caller that has ended its side is still there.
//!
//! The end of what a caller sends does not tell whether it has closed its connection or only has nothing more to say and
//! awaits an answer. As long as an endpoint is silent nothing is written to the caller, so that the kernel would never say
//! either. A caller that left (a timeout of its own, a process that ended) would hold its connection, and its places in
//! limits, for as long as the endpoint is silent. Capture knows who has closed ([`Network::has_closed`](super::Network)).

use std::{
    future::Future as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use super::worker::PodHere;

/// How often it is asked whether a caller that has ended its side has closed its connection meanwhile. (One that closes
/// without having ended its side before is found at once.)
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The presence of the caller of one connection.
pub(crate) struct Presence {
    pod: Rc<PodHere>,
    socket: u64,
    next: Option<Pin<Box<Sleep>>>,
}

impl Presence {
    /// `socket`: as in [`Origin`](super::Origin).
    pub(crate) fn new(pod: &Rc<PodHere>, socket: u64) -> Self {
        Self { pod: pod.clone(), socket, next: None }
    }

    /// Of the same caller, to be asked by somebody else.
    pub(crate) fn again(&self) -> Self {
        Self::new(&self.pod, self.socket)
    }

    /// Ready when the caller has closed its connection. To be asked once its end has been read.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(next) = &mut self.next {
                ready!(next.as_mut().poll(cx));
            }
            if self.pod.pod.network.has_closed(self.socket) {
                return Poll::Ready(());
            }
            match &mut self.next {
                Some(next) => next.as_mut().reset(Instant::now() + ASK_EVERY),
                None => self.next = Some(Box::pin(sleep(ASK_EVERY))),
            }
        }
    }
}
