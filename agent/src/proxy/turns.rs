//! Turns: pods share a worker's time, however many connections each has that could go on.
//!
//! The runtime runs ready tasks one after the other. A pod with two thousand of them would have another pod's one task wait for all,
//! and for what the kernel has to tell of it, which is asked only now and then. So tasks belong to pods ([`Turns::of`]). In each
//! round a pod's tasks may take [`TURN`] together; those that come later in it wait for the next one. A round is over when all
//! that was ready has had its chance, and the kernel was asked what else is: so a task waits for one turn of each busy pod,
//! not for each of its connections. How much a task does in one go is bounded where it does it.
//!
//! While a worker has nothing to do there are no rounds, and nothing waits.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::clock::Nanos;

/// How long a pod's tasks may run in a round: some requests' worth, or what one task does in one go.
const TURN: Nanos = Nanos::of(Duration::from_micros(100));

/// How many that wait are woken for their pod's turn. More than there is time for would only wait again.
const WOKEN: usize = 32;

thread_local! {
    /// The round of this worker.
    static ROUND: Cell<u64> = const { Cell::new(0) };
}

/// All that was ready on this thread has run.
pub(crate) fn next_round() {
    ROUND.set(ROUND.get().wrapping_add(1));
}

/// The pods of a worker whose tasks wait.
#[derive(Default)]
pub(crate) struct Rounds {
    waiting: RefCell<VecDeque<Rc<Turns>>>,
    /// Who begins the next round.
    marker: RefCell<Option<Waker>>,
}

impl Rounds {
    /// Begins a round whenever the one before is over and tasks wait. Never ends.
    pub(crate) async fn go_on(&self) {
        loop {
            poll_fn(|cx| {
                if self.waiting.borrow().is_empty() {
                    *self.marker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            // Behind all that is ready, and behind what the kernel tells then.
            tokio::task::yield_now().await;
            self.begin();
        }
    }

    fn begin(&self) {
        next_round();
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for pod in waiting {
            if !pod.wake() {
                self.waiting.borrow_mut().push_back(pod);
            }
        }
    }

    fn enlist(&self, pod: &Rc<Turns>) {
        self.waiting.borrow_mut().push_back(pod.clone());
        if let Some(marker) = self.marker.borrow_mut().take() {
            marker.wake();
        }
    }
}

/// The turns of a pod on a worker.
#[derive(Default)]
pub(crate) struct Turns {
    round: Cell<u64>,
    /// How long its tasks have run in that round.
    used: Cell<Nanos>,
    waiting: RefCell<VecDeque<Waker>>,
    /// How many have been woken of all that ever waited.
    woken: Cell<u64>,
}

impl Turns {
    /// The future as one of the pod's tasks.
    pub(crate) fn of<F: Future>(self: &Rc<Self>, rounds: &Rc<Rounds>, task: F) -> Task<F> {
        Task { work: task, pod: self.clone(), rounds: rounds.clone(), place: None }
    }

    fn has_turn(&self) -> bool {
        let round = ROUND.get();
        if self.round.replace(round) != round {
            self.used.set(Nanos::ZERO);
        }
        self.used.get() < TURN
    }

    /// Returns the place behind all others.
    fn wait(self: &Rc<Self>, rounds: &Rounds, waker: &Waker) -> u64 {
        let mut waiting = self.waiting.borrow_mut();
        let place = self.woken.get() + waiting.len() as u64;
        waiting.push_back(waker.clone());
        if waiting.len() == 1 {
            rounds.enlist(self);
        }
        place
    }

    /// Wakes those whose turn it is. True if that were all.
    fn wake(&self) -> bool {
        for _ in 0..WOKEN {
            let Some(waker) = self.waiting.borrow_mut().pop_front() else { return true };
            self.woken.set(self.woken.get() + 1);
            waker.wake();
        }
        self.waiting.borrow().is_empty()
    }
}

pin_project! {
    /// A task of a pod.
    pub(crate) struct Task<F> {
        #[pin]
        work: F,
        pod: Rc<Turns>,
        rounds: Rc<Rounds>,
        // Where it waits or has waited for its pod's turn.
        place: Option<u64>,
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !this.pod.has_turn() {
            // Woken by something else while it waits, it keeps its place.
            if this.place.is_none_or(|place| place < this.pod.woken.get()) {
                *this.place = Some(this.pod.wait(this.rounds, cx.waker()));
            }
            return Poll::Pending;
        }
        let began = Nanos::now();
        let done = this.work.poll(cx);
        this.pod.used.set(this.pod.used.get() + Nanos::now().since(began));
        done
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Takes time, as a connection does that has much to do.
    fn work(time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// Tasks of two pods on one thread: of one so many, always ready, and a single one of the other. In which order they run,
    /// by the pod.
    fn order(busy: usize, turns: bool) -> Vec<char> {
        let ran = Rc::new(RefCell::new(Vec::new()));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(<_>::default()).unwrap();
        runtime.block_on(async {
            let rounds = Rc::<Rounds>::default();
            tokio::task::spawn_local({
                let rounds = rounds.clone();
                async move { rounds.go_on().await }
            });
            let spawn = |pod: &Rc<Turns>, name: char, times: usize| {
                let ran = ran.clone();
                let task = async move {
                    for _ in 0..times {
                        work(TURN.into());
                        ran.borrow_mut().push(name);
                        // Ready again at once, behind the others.
                        poll_fn({
                            let mut yielded = false;
                            move |cx| {
                                if std::mem::replace(&mut yielded, true) {
                                    return Poll::Ready(());
                                }
                                cx.waker().wake_by_ref();
                                Poll::Pending
                            }
                        })
                        .await;
                    }
                };
                if turns {
                    tokio::task::spawn_local(pod.of(&rounds, task))
                } else {
                    tokio::task::spawn_local(task)
                }
            };
            let (many, single) = (Rc::<Turns>::default(), Rc::<Turns>::default());
            let mut tasks: Vec<_> = (0..busy).map(|_| spawn(&many, 'm', 5)).collect();
            tasks.push(spawn(&single, 's', 5));
            for task in tasks {
                task.await.unwrap();
            }
        });
        let ran = ran.borrow().clone();
        assert_eq!(ran.len(), (busy + 1) * 5, "all of them run to their end");
        ran
    }

    #[test]
    fn a_pod_with_one_task_does_not_wait_for_each_of_another_pods() {
        let last = |ran: &[char]| ran.iter().rposition(|pod| *pod == 's').unwrap();
        // Without turns it runs once after all of the others have.
        assert!(last(&order(40, false)) > 150);
        // With them once after each turn of the other pod.
        let ran = order(40, true);
        assert!(last(&ran) < 20, "{ran:?}");
    }

    #[test]
    fn a_pod_alone_goes_on_as_if_there_were_none() {
        assert_eq!(order(3, true).len(), 20);
    }

    #[test]
    fn those_that_wait_go_on_in_their_order() {
        let (rounds, pod) = (Rc::<Rounds>::default(), Rc::<Turns>::default());
        assert!(pod.has_turn());
        pod.used.set(TURN);
        assert!(!pod.has_turn());
        for _ in 0..WOKEN + 3 {
            pod.wait(&rounds, Waker::noop());
        }
        assert_eq!(rounds.waiting.borrow().len(), 1, "a pod waits once");
        rounds.begin();
        assert!(pod.has_turn());
        assert_eq!((pod.waiting.borrow().len(), rounds.waiting.borrow().len()), (3, 1));
        rounds.begin();
        assert_eq!((pod.waiting.borrow().len(), rounds.waiting.borrow().len()), (0, 0));
    }
}
