//! Timers for what nearly always ends in time.
//!
//! Most requests end long before their time is over, so a timer of their own would be set and taken back for each. A worker keeps
//! those that were not needed, set as they are: one that goes off before a request's time is over does as well, because whoever
//! waits then looks at the clock and sets it anew. So under load a timer is set once in the time that requests have, and not
//! once a request.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use crate::clock::Nanos;

/// More are not kept: so many requests that wait at once on a worker are many.
const MOST: usize = 256;

/// The timers of a worker that nobody waits for.
#[derive(Debug, Default)]
pub(crate) struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

/// The timer of one who waits; set when it is first needed.
pub(crate) struct Timer<'a> {
    all: &'a Timers,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timers {
    pub(crate) fn timer(&self) -> Timer<'_> {
        Timer { all: self, sleep: None }
    }

    pub(crate) fn countdown(&self, time: Duration) -> Countdown<'_> {
        Countdown { timer: self.timer(), time: Nanos::of(time), over: None }
    }

    /// What comes of `future`, or `None` if it takes longer than this.
    pub(crate) async fn within<F: Future>(
        &self,
        time: Duration,
        mut future: Pin<&mut F>,
    ) -> Option<F::Output> {
        let mut countdown = self.countdown(time);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            countdown.poll_over(cx).map(|()| None)
        })
        .await
    }
}

/// A time that begins when it is first looked at: what is there before that costs neither a timer nor a look at the clock.
pub(crate) struct Countdown<'a> {
    timer: Timer<'a>,
    time: Nanos,
    /// Once it has begun.
    over: Option<Nanos>,
}

impl Countdown<'_> {
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.poll_elapsed(cx));
            let now = Nanos::now();
            let over = *self.over.get_or_insert(now + self.time);
            if now >= over {
                return Poll::Ready(());
            }
            self.timer.set(over);
        }
    }
}

impl Timer<'_> {
    /// Waits until it goes off, if it is set.
    pub(crate) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sleep) = &mut self.sleep else { return Poll::Ready(()) };
        // What is waited for may always have something to do, and use up what the runtime lets a task do in one go: the timer
        // is not to be denied for that, or it never goes off.
        Pin::new(&mut unconstrained(sleep.as_mut())).poll(cx)
    }

    /// It goes off then, or before.
    pub(crate) fn set(&mut self, at: Nanos) {
        let at = at.instant();
        if self.sleep.is_none() {
            self.sleep = self.all.0.borrow_mut().pop();
            if self.sleep.as_ref().is_some_and(|kept| kept.deadline() <= at && !kept.is_elapsed()) {
                return;
            }
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            None => self.sleep = Some(Box::pin(sleep_until(at))),
        }
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut all = self.all.0.borrow_mut();
        if all.len() < MOST && !sleep.is_elapsed() {
            all.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::pin};

    use super::*;

    fn after(millis: u64) -> Nanos {
        Nanos::now() + Nanos::of(Duration::from_millis(millis))
    }

    async fn elapses(timer: &mut Timer<'_>) {
        poll_fn(|cx| timer.poll_elapsed(cx)).await;
    }

    #[tokio::test]
    async fn one_that_was_not_needed_is_used_again_as_it_is() {
        let timers = Timers::default();
        let first = after(20);
        {
            let mut timer = timers.timer();
            timer.set(first);
            assert!(futures_util::poll!(std::pin::pin!(elapses(&mut timer))).is_pending());
        }
        assert_eq!(timers.0.borrow().len(), 1);
        let (late, mut timer) = (after(60), timers.timer());
        timer.set(late);
        assert!(timers.0.borrow().is_empty());
        elapses(&mut timer).await;
        let now = Nanos::now();
        assert!(now >= first, "it goes off for the first at the earliest");
        // Whoever has to wait for longer sets it anew.
        timer.set(late);
        elapses(&mut timer).await;
        assert!(Nanos::now() >= late);
        drop(timer);
        assert!(timers.0.borrow().is_empty(), "it has gone off");
    }

    #[tokio::test]
    async fn one_that_goes_off_too_late_is_set_anew() {
        let timers = Timers::default();
        {
            let mut timer = timers.timer();
            timer.set(after(3_600_000));
        }
        let mut timer = timers.timer();
        timer.set(after(5));
        let elapsed = tokio::time::timeout(Duration::from_secs(20), elapses(&mut timer)).await;
        elapsed.expect("it goes off when it was last set to");
    }

    #[tokio::test]
    async fn a_time_is_over_when_it_says_whatever_timers_there_are() {
        let (timers, time) = (Timers::default(), Duration::from_millis(30));
        assert_eq!(timers.within(time, pin!(async { 7 })).await, Some(7));
        assert!(timers.0.borrow().is_empty(), "none was set for what was there at once");
        for kept in [after(1), after(3_600_000)] {
            timers.timer().set(kept);
            assert_eq!(timers.0.borrow().len(), 1);
            let began = Nanos::now();
            assert_eq!(timers.within(time, pin!(pending::<()>())).await, None);
            assert!(Nanos::now().since(began) >= Nanos::of(time));
        }
    }

    #[tokio::test]
    async fn whoever_has_set_none_is_asked_at_once() {
        elapses(&mut Timers::default().timer()).await;
    }
}
