//! How a worker tells the connections of a pod to come to an end.
//!
//! A gate belongs to one worker thread: it is a flag and a list of wakers, without a lock or an atomic, because every
//! idle keep-alive connection asks it before each request.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Open while the pod's connections may go on; once shut it stays shut.
#[derive(Default)]
pub(crate) struct Gate {
    shut: Cell<bool>,
    waiting: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

impl Gate {
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get()
    }

    /// Shuts the gate and wakes everyone who watches it.
    pub(crate) fn shut(&self) {
        if !self.shut.replace(true) {
            for waker in self.waiting.borrow_mut().iter_mut().filter_map(Option::take) {
                waker.wake();
            }
        }
    }

    /// A place from which one task can watch.
    pub(crate) fn watch(self: &Rc<Self>) -> Watch {
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut waiting = self.waiting.borrow_mut();
            waiting.push(None);
            waiting.len() - 1
        });
        Watch { gate: self.clone(), slot }
    }
}

/// One task's view of a gate.
pub(crate) struct Watch {
    gate: Rc<Gate>,
    slot: usize,
}

impl Watch {
    /// Ready when the gate is shut; else this task is woken when it becomes so.
    pub(crate) fn poll_shut(&self, cx: &Context<'_>) -> Poll<()> {
        if self.gate.is_shut() {
            return Poll::Ready(());
        }
        let slot = &mut self.gate.waiting.borrow_mut()[self.slot];
        if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) async fn shut(&self) {
        poll_fn(|cx| self.poll_shut(cx)).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.gate.waiting.borrow_mut()[self.slot] = None;
        self.gate.free.borrow_mut().push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutting_wakes_every_watcher_and_slots_are_reused() {
        let gate = Rc::new(Gate::default());
        let first = gate.watch();
        let second = gate.watch();
        drop(first);
        let third = gate.watch();
        assert_eq!(gate.waiting.borrow().len(), 2);

        let mut waits = [tokio_test_task(second), tokio_test_task(third)];
        for (task, woken) in &mut waits {
            let waker = Waker::from(woken.clone());
            assert!(task.poll_shut(&Context::from_waker(&waker)).is_pending());
        }
        gate.shut();
        for (task, woken) in &waits {
            assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
            assert!(task.poll_shut(&Context::from_waker(Waker::noop())).is_ready());
        }
    }

    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn tokio_test_task(watch: Watch) -> (Watch, std::sync::Arc<Woken>) {
        (watch, std::sync::Arc::new(Woken(false.into())))
    }
}
