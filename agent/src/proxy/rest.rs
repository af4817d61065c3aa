//! Connections over which nothing has come for a while rest: they give up what only those need that are in use. A worker counts
//! time in [rounds](Rests::next_round) for all of them, for a timer of its own would cost each request more than all else about it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Rounds that begin while a connection waits, until it rests: so it has waited for one at the least.
const ROUNDS: u32 = 2;

/// The connections of a worker that do not rest.
#[derive(Default)]
pub(crate) struct Rests {
    round: Rc<Cell<u32>>,
    awake: RefCell<Vec<Rc<Awake>>>,
}

/// One that does not rest.
#[derive(Default)]
struct Awake {
    /// In which round it has begun to wait; `None`: it is in use.
    since: Cell<Option<u32>>,
    waker: RefCell<Option<Waker>>,
}

/// What a connection has until it rests.
pub(crate) struct Watch {
    round: Rc<Cell<u32>>,
    awake: Rc<Awake>,
}

impl Rests {
    /// A connection does not rest any more.
    pub(crate) fn watch(&self) -> Watch {
        let awake = Rc::<Awake>::default();
        self.awake.borrow_mut().push(awake.clone());
        Watch { round: self.round.clone(), awake }
    }

    /// Wakes those that have waited for long enough.
    pub(crate) fn next_round(&self) {
        let round = self.round.get().wrapping_add(1);
        self.round.set(round);
        // Whoever is not there any more has rested, or ended.
        self.awake.borrow_mut().retain(|awake| Rc::strong_count(awake) > 1);
        for awake in &*self.awake.borrow() {
            if awake.has_waited(round)
                && let Some(waker) = awake.waker.take()
            {
                waker.wake();
            }
        }
    }
}

impl Awake {
    fn has_waited(&self, round: u32) -> bool {
        self.since.get().is_some_and(|since| round.wrapping_sub(since) >= ROUNDS)
    }
}

impl Watch {
    /// Ready when it is to rest, if it has waited since this was first asked.
    pub(crate) fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<()> {
        let (awake, round) = (&*self.awake, self.round.get());
        if awake.has_waited(round) {
            return Poll::Ready(());
        }
        if awake.since.get().is_none() {
            awake.since.set(Some(round));
        }
        let mut waker = awake.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Something has come.
    pub(crate) fn stir(&self) {
        self.awake.since.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(flavor = "local")]
    async fn whoever_has_waited_for_a_whole_round_rests() {
        let rests = Rc::<Rests>::default();
        let watch = rests.watch();
        let resting = tokio::task::spawn_local(async move { poll_fn(|cx| watch.poll_rest(cx)).await });
        tokio::task::yield_now().await;
        rests.next_round();
        tokio::task::yield_now().await;
        assert!(!resting.is_finished(), "that one may have been nearly over");
        rests.next_round();
        resting.await.unwrap();
        rests.next_round();
        assert!(rests.awake.borrow().is_empty(), "those that rest are not looked at");
    }

    #[tokio::test]
    async fn whoever_is_in_use_does_not_rest() {
        let rests = Rests::default();
        let watch = rests.watch();
        for _ in 0..5 {
            assert!(poll_once(&watch).await.is_pending());
            rests.next_round();
            watch.stir();
        }
        for _ in 0..5 {
            rests.next_round();
        }
        assert!(poll_once(&watch).await.is_pending(), "it begins to wait now");
        rests.next_round();
        rests.next_round();
        assert!(poll_once(&watch).await.is_ready());
    }

    async fn poll_once(watch: &Watch) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(watch.poll_rest(cx))).await
    }
}
