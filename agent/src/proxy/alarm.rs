//! Timers for what nearly always ends in time.
//!
//! Most requests end long before their time is over, so a timer of their own would be set and taken back for each. A worker keeps
//! those that were not needed, set as they are: one that rings before a request's time is over does as well, because whoever
//! waits then looks at the clock and sets it anew. So under load a timer is set once in the time that requests have, and not
//! once a request.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
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
pub(crate) struct Alarms(RefCell<Vec<Pin<Box<Sleep>>>>);

/// The timer of one who waits; set when it is first needed.
pub(crate) struct Alarm<'a> {
    all: &'a Alarms,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Alarms {
    pub(crate) fn alarm(&self) -> Alarm<'_> {
        Alarm { all: self, timer: None }
    }
}

impl Alarm<'_> {
    /// Waits until it rings, if it is set.
    pub(crate) fn poll_rings(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timer) = &mut self.timer else { return Poll::Ready(()) };
        // What is waited for may always have something to do, and use up what the runtime lets a task do in one go: the timer
        // is not to be denied for that, or it never rings.
        Pin::new(&mut unconstrained(timer.as_mut())).poll(cx)
    }

    /// It rings then, or before.
    pub(crate) fn set(&mut self, at: Nanos) {
        let at = at.instant();
        if self.timer.is_none() {
            self.timer = self.all.0.borrow_mut().pop();
            if self.timer.as_ref().is_some_and(|kept| kept.deadline() <= at && !kept.is_elapsed()) {
                return;
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(sleep_until(at))),
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        let Some(timer) = self.timer.take() else { return };
        let mut all = self.all.0.borrow_mut();
        if all.len() < MOST && !timer.is_elapsed() {
            all.push(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    fn after(millis: u64) -> Nanos {
        Nanos::now() + Nanos::of(Duration::from_millis(millis))
    }

    async fn rings(alarm: &mut Alarm<'_>) {
        poll_fn(|cx| alarm.poll_rings(cx)).await;
    }

    #[tokio::test]
    async fn one_that_was_not_needed_is_used_again_as_it_is() {
        let alarms = Alarms::default();
        let first = after(20);
        {
            let mut alarm = alarms.alarm();
            alarm.set(first);
            assert!(futures_util::poll!(std::pin::pin!(rings(&mut alarm))).is_pending());
        }
        assert_eq!(alarms.0.borrow().len(), 1);
        let (late, mut alarm) = (after(60), alarms.alarm());
        alarm.set(late);
        assert!(alarms.0.borrow().is_empty());
        rings(&mut alarm).await;
        let now = Nanos::now();
        assert!(now >= first, "it rings for the first at the earliest");
        // Whoever has to wait for longer sets it anew.
        alarm.set(late);
        rings(&mut alarm).await;
        assert!(Nanos::now() >= late);
        drop(alarm);
        assert!(alarms.0.borrow().is_empty(), "it has rung");
    }

    #[tokio::test]
    async fn one_that_rings_too_late_is_set_anew() {
        let alarms = Alarms::default();
        {
            let mut alarm = alarms.alarm();
            alarm.set(after(3_600_000));
        }
        let mut alarm = alarms.alarm();
        alarm.set(after(5));
        let rung = tokio::time::timeout(Duration::from_secs(20), rings(&mut alarm)).await;
        rung.expect("it rings when it was last set to");
    }

    #[tokio::test]
    async fn whoever_has_set_none_is_asked_at_once() {
        rings(&mut Alarms::default().alarm()).await;
    }
}
