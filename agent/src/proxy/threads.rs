//! Between requests and the kernel, which follows the threads of applications that ask for it: for which request that came to a
//! pod one of its own is sent.
//!
//! On the way in each request that goes to the application over a connection is numbered there, before its first byte is sent.
//! On the way out the kernel is asked, once the head of a request has come, who writes to the connection.

use std::{os::fd::AsFd as _, sync::Arc};

use tokio::net::TcpStream;

use super::{Network, Pod};
use crate::{
    clock::Nanos,
    cluster::model::Workload,
    govern::{
        handled::{Inherited, Sent},
        remembered::Remembered,
    },
};

/// For which request a redirected socket is written to, as far as it can be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tie {
    /// `None`: for none that is known.
    pub sent: Option<Sent>,
    /// How often that has changed.
    pub changes: u64,
}

/// A connection that an application has opened, and over which it sends one request after the other.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The application's socket, as in [`Origin`](super::Origin).
    socket: u64,
    /// See [`Tie`]: when the head of the last request had come.
    changes: u64,
}

impl Writer {
    pub(crate) fn new(socket: u64) -> Self {
        Self { socket, changes: 0 }
    }

    /// The head of a request has come: what it inherits from the request that the thread which sends it is handling. `next_is_here`:
    /// so has what follows the request.
    ///
    /// A client sends a request when the one before is answered. So all of a request comes from one thread, unless who writes
    /// changed more than once since the head before: then nothing is told. Nor is anything of a pod one of whose clients was seen
    /// not to wait (pipelining): what follows may be another thread's, and come while the kernel is asked.
    pub(crate) fn inherits(
        &mut self,
        pod: &Pod,
        workload: &Workload,
        next_is_here: impl FnOnce() -> bool,
    ) -> Option<Inherited> {
        if !workload.follows_threads() {
            return None;
        }
        let handled = &pod.remembered.handled;
        if next_is_here() {
            handled.pipelines();
        }
        let tie = pod.network.tie(self.socket);
        let before = std::mem::replace(&mut self.changes, tie.changes);
        let is_clear = (before..=before + 1).contains(&tie.changes) && !handled.has_pipelined();
        handled.get(tie.sent.filter(|_| is_clear)?, Nanos::now())
    }
}

/// A connection to an application whose threads are followed.
pub(crate) struct Followed {
    network: Arc<dyn Network>,
    remembered: Arc<Remembered>,
    last: Sent,
}

impl Followed {
    /// `None`: they are not.
    pub(crate) fn of(pod: &Pod, stream: &TcpStream) -> Option<Self> {
        if !pod.workload.load().follows_threads() {
            return None;
        }
        let last = Sent { call: pod.network.call(stream.as_fd())?, number: 0 };
        Some(Self { network: pod.network.clone(), remembered: pod.remembered.clone(), last })
    }

    /// The next request is to be sent over it, when the one before has its response. `None`: the kernel has no room for that.
    pub(crate) fn next(&mut self) -> Option<Sent> {
        self.settle();
        self.renumber()
    }

    /// What has the number of the last one, and an interim response, goes on. That it had such a one shows nothing.
    pub(crate) fn go_on(&mut self) -> Option<Sent> {
        self.remembered.handled.settle(self.last, || false);
        self.renumber()
    }

    fn renumber(&mut self) -> Option<Sent> {
        self.last.number += 1;
        self.network.sends(self.last).then_some(self.last)
    }

    /// Learns from the last request how such are handled.
    fn settle(&self) {
        self.remembered.handled.settle(self.last, || self.network.responded(self.last));
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.settle();
        self.network.forget(self.last.call);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        io,
        net::{SocketAddr, TcpListener},
        os::fd::BorrowedFd,
        sync::Mutex,
    };

    use arc_swap::ArcSwap;
    use tokio::io::unix::AsyncFd;

    use super::*;
    use crate::{api::TagPropagation, clock::Nanos, govern::lane::RequestTag, proxy::Origin};

    /// Says one tie after the other.
    struct Kernel(Mutex<VecDeque<Tie>>);

    impl Network for Kernel {
        fn origin(&self, _: BorrowedFd<'_>) -> io::Result<Option<Origin>> {
            Ok(None)
        }

        fn has_closed(&self, _: u64) -> bool {
            false
        }

        fn unacknowledged(&self, _: BorrowedFd<'_>) -> io::Result<usize> {
            Ok(0)
        }

        fn redirected(&self) -> u64 {
            0
        }

        fn allow(&self, _: u32) -> io::Result<()> {
            Ok(())
        }

        fn memory_of(&self, _: BorrowedFd<'_>) -> usize {
            0
        }

        fn let_buffers_grow(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            Ok(())
        }

        fn socket(&self, _: SocketAddr, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn connecting(&self, _: &socket2::Socket) -> io::Result<()> {
            Ok(())
        }

        fn is_at_urgent_byte(&self, _: BorrowedFd<'_>) -> bool {
            false
        }

        fn watched(&self, _: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn tie(&self, socket: u64) -> Tie {
            assert_eq!(socket, 7);
            self.0.lock().unwrap().pop_front().expect("asked too often")
        }
    }

    fn pod(propagation: TagPropagation, ties: &[(u64, u64)]) -> Pod {
        let tie = |&(number, changes): &(u64, u64)| Tie {
            sent: (number > 0).then_some(Sent { call: 3, number }),
            changes,
        };
        let workload = Workload { propagation, ..Workload::new("uid", "shop", "orders") };
        Pod::new(
            ArcSwap::from_pointee(workload),
            Arc::new(Kernel(Mutex::new(ties.iter().map(tie).collect()))),
        )
    }

    fn handles(pod: &Pod, number: u64, tag: &[u8]) -> crate::govern::remembered::Unanswered {
        let tag = RequestTag::new(tag);
        let mut unanswered = pod.remembered.came([], tag, Nanos(1));
        for earlier in 100..103 {
            let earlier = Sent { call: 3, number: earlier };
            unanswered.sent(earlier);
            unanswered.end();
            pod.remembered.handled.settle(earlier, || true);
        }
        unanswered.sent(Sent { call: 3, number });
        unanswered
    }

    fn tags(pod: &Pod, next_is_here: &[bool]) -> Vec<String> {
        let mut writer = Writer::new(7);
        let tag = |inherited: Option<Inherited>| {
            let tag = inherited.and_then(|inherited| inherited.tag);
            tag.map_or_else(String::new, |tag| tag.as_str().to_owned())
        };
        next_is_here.iter().map(|&here| tag(writer.inherits(pod, &pod.workload.load(), || here))).collect()
    }

    #[test]
    fn a_request_inherits_from_the_one_that_its_sender_is_handling() {
        let pod = pod(TagPropagation::Thread, &[(1, 1), (1, 1), (2, 2), (0, 3), (1, 4), (9, 5)]);
        let _gray = handles(&pod, 1, b"gray");
        let _blue = handles(&pod, 2, b"blue");
        assert_eq!(tags(&pod, &[false; 6]), ["gray", "gray", "blue", "", "gray", ""], "none handles a ninth");
    }

    #[test]
    fn who_wrote_in_between_makes_it_unclear() {
        let pod = pod(TagPropagation::Thread, &[(1, 2), (1, 2), (1, 5), (1, 4), (1, 5)]);
        let _gray = handles(&pod, 1, b"gray");
        // The fourth: the kernel had forgotten the socket, and counts anew.
        assert_eq!(tags(&pod, &[false; 5]), ["", "gray", "", "", "gray"]);
    }

    #[test]
    fn a_pod_that_does_not_wait_for_responses_inherits_nothing_any_more() {
        let pod = pod(TagPropagation::Thread, &[(1, 1), (1, 1), (1, 1)]);
        let _gray = handles(&pod, 1, b"gray");
        assert_eq!(tags(&pod, &[false, true, false]), ["gray", "", ""]);
    }

    #[test]
    fn what_is_answered_is_inherited_from_no_more() {
        let pod = pod(TagPropagation::Thread, &[(1, 1), (1, 1), (1, 1)]);
        let gray = handles(&pod, 1, b"gray");
        let mut writer = Writer::new(7);
        assert!(writer.inherits(&pod, &pod.workload.load(), || false).is_some());
        drop(gray);
        assert!(writer.inherits(&pod, &pod.workload.load(), || false).is_none());
        let untagged = handles(&pod, 1, b"");
        assert_eq!(writer.inherits(&pod, &pod.workload.load(), || false), Some(Inherited::default()));
        drop(untagged);
    }

    #[test]
    fn of_a_pod_that_does_not_ask_the_kernel_is_not_asked() {
        let pod = pod(TagPropagation::Trace, &[]);
        assert_eq!(Writer::new(7).inherits(&pod, &pod.workload.load(), || false), None);
    }
}
