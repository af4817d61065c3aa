//! Turns: pods share a worker's time, however many connections each has that could go on.
//!
//! The runtime runs ready tasks one after the other. A pod with two thousand of them would have another pod's one task wait for all,
//! and for what the kernel has to tell of it, which is asked only now and then. So tasks belong to pods ([`Turns::of`]). In each
//! round a pod's tasks may take [`TURN`] together; those that come later in it wait for the next one, first come, first served:
//! each that has run calls the one that has waited for longest, while there is time. A round is over when all that was ready has
//! had its chance, and the kernel was asked what else is: so a task waits for one turn of each busy pod, not for each of its
//! connections. How much a task does in one go is bounded where it does it.
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
        let mut waiting = self.waiting.borrow_mut();
        // The pods that come to wait from now on are behind them.
        for _ in 0..waiting.len() {
            let Some(pod) = waiting.pop_front() else { break };
            pod.call_next();
            if pod.has_waiting() {
                waiting.push_back(pod);
            } else {
                pod.enlisted.set(false);
            }
        }
    }

    fn enlist(&self, pod: &Rc<Turns>) {
        if pod.enlisted.replace(true) {
            return;
        }
        self.waiting.borrow_mut().push_back(pod.clone());
        if let Some(marker) = self.marker.borrow_mut().take() {
            marker.wake();
        }
    }
}

/// Where a task is with its pod's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It has nothing to do, or runs.
    Free,
    /// It could go on, and those before it are first.
    Waiting,
    /// It is the next.
    Called,
}

/// The turns of a pod on a worker.
#[derive(Default)]
pub(crate) struct Turns {
    round: Cell<u64>,
    /// How long its tasks have run in that round.
    used: Cell<Nanos>,
    /// Those that wait, first come, first served.
    waiting: RefCell<VecDeque<(Rc<Cell<Place>>, Waker)>>,
    /// It is among those that the next round calls.
    enlisted: Cell<bool>,
}

impl Turns {
    /// The future as one of the pod's tasks.
    pub(crate) fn of<F: Future>(self: &Rc<Self>, rounds: &Rc<Rounds>, task: F) -> Task<F> {
        let place = Rc::new(Cell::new(Place::Free));
        Task { work: task, pod: self.clone(), rounds: rounds.clone(), place }
    }

    fn has_time(&self) -> bool {
        let round = ROUND.get();
        if self.round.replace(round) != round {
            self.used.set(Nanos::ZERO);
        }
        self.used.get() < TURN
    }

    fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Calls the first that waits. It calls the next one: more than there is time for would only wait again, behind those that have not
    /// waited yet.
    fn call_next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some((place, waker)) = waiting.pop_front() {
            // Not one that has ended meanwhile: it would call nobody.
            if Rc::strong_count(&place) > 1 {
                place.set(Place::Called);
                waker.wake();
                return;
            }
        }
    }
}

pin_project! {
    /// A task of a pod.
    pub(crate) struct Task<F> {
        #[pin]
        work: F,
        pod: Rc<Turns>,
        rounds: Rc<Rounds>,
        place: Rc<Cell<Place>>,
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let (pod, place) = (&*this.pod, &*this.place);
        let called = match place.get() {
            // Woken by something else, it keeps its place.
            Place::Waiting => return Poll::Pending,
            Place::Called => true,
            Place::Free => false,
        };
        if !pod.has_time() || !called && pod.has_waiting() {
            place.set(Place::Waiting);
            let waits = (place.clone(), cx.waker().clone());
            let mut waiting = pod.waiting.borrow_mut();
            if called {
                waiting.push_front(waits);
            } else {
                waiting.push_back(waits);
            }
            drop(waiting);
            this.rounds.enlist(pod);
            return Poll::Pending;
        }
        place.set(Place::Free);
        let began = Nanos::now();
        let done = this.work.poll(cx);
        pod.used.set(pod.used.get() + Nanos::now().since(began));
        if pod.has_time() {
            pod.call_next();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
        time::Instant,
    };

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

    /// Whether a task was woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    type Tasks = Vec<(Pin<Box<dyn Future<Output = ()>>>, Arc<Woken>)>;

    fn poll(tasks: &mut Tasks, n: usize) {
        let (task, woken) = &mut tasks[n];
        let waker = Waker::from(woken.clone());
        assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }

    /// Polls who is called, in this round or the next one.
    fn go_on(tasks: &mut Tasks, rounds: &Rounds) {
        let called = |tasks: &Tasks| -> Vec<usize> {
            (0..tasks.len()).filter(|n| tasks[*n].1.0.swap(false, Ordering::Relaxed)).collect()
        };
        let mut now = called(tasks);
        if now.is_empty() {
            rounds.begin();
            now = called(tasks);
        }
        assert_eq!(now.len(), 1, "one is called, and calls the next: {now:?}");
        poll(tasks, now[0]);
    }

    #[test]
    fn those_of_a_pod_that_wait_are_served_in_their_order() {
        let ran = Rc::new(RefCell::new(Vec::new()));
        let (rounds, pod) = (Rc::<Rounds>::default(), Rc::<Turns>::default());
        let mut tasks: Tasks = Vec::new();
        for n in 0..50 {
            let ran = ran.clone();
            let work = poll_fn(move |_| {
                ran.borrow_mut().push(n);
                Poll::Pending
            });
            tasks.push((Box::pin(pod.of(&rounds, work)), Arc::default()));
        }
        assert!(pod.has_time());
        pod.used.set(TURN);
        for n in 0..50 {
            poll(&mut tasks, n);
        }
        assert!(ran.borrow().is_empty(), "its time is over");
        assert_eq!(rounds.waiting.borrow().len(), 1, "a pod waits once");

        go_on(&mut tasks, &rounds);
        // Who is woken by something else keeps its place, and who has run is behind all others.
        poll(&mut tasks, 7);
        poll(&mut tasks, 0);
        assert_eq!(*ran.borrow(), [0]);
        // The time is over before the one that is called comes: it is the first of the next round.
        pod.used.set(TURN);
        go_on(&mut tasks, &rounds);
        assert!(tasks.iter().all(|(_, woken)| !woken.0.load(Ordering::Relaxed)));
        // One that ends while it waits is passed over.
        tasks[2].0 = Box::pin(std::future::pending());
        for _ in 0..49 {
            go_on(&mut tasks, &rounds);
        }
        assert_eq!(*ran.borrow(), [0, 1].into_iter().chain(3..50).chain([0]).collect::<Vec<_>>());
        // Nobody is left.
        rounds.begin();
        assert!(rounds.waiting.borrow().is_empty() && !pod.enlisted.get());
    }
}
