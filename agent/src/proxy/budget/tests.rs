use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use arc_swap::ArcSwap;

use super::*;
use crate::{cluster::model::Workload, proxy::testing::Double};

const SECOND: Nanos = Nanos::of(Duration::from_secs(1));
const HALF: Nanos = Nanos::of(Duration::from_millis(500));
const START: Nanos = Nanos(1_000_000_000_000);

/// Where new connections go, and how often that was said.
#[derive(Default)]
struct Kernel {
    direct: AtomicBool,
    said: AtomicUsize,
    allowed: AtomicU32,
    redirected: AtomicU64,
    refuses: AtomicBool,
}

impl Double for Arc<Kernel> {
    fn redirected(&self) -> u64 {
        self.redirected.swap(0, Relaxed)
    }

    fn allow(&self, connections: u32) -> io::Result<()> {
        if self.refuses.load(Relaxed) {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        self.allowed.store(connections, Relaxed);
        let direct = connections == 0;
        if self.direct.swap(direct, Relaxed) != direct {
            self.said.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn socket(&self, _: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn pod(budget: &Arc<Budget>, name: &str) -> (Arc<PodBudget>, Arc<Kernel>) {
    let kernel = Arc::<Kernel>::default();
    let workload = ArcSwap::from_pointee(Workload::new(name, "shop", name));
    let pod = Arc::new(Pod::new(workload, Arc::new(kernel.clone())));
    (budget.pod(&pod, 0), kernel)
}

fn is_direct(kernel: &Kernel) -> bool {
    kernel.direct.load(Relaxed)
}

#[test]
fn a_pod_goes_direct_at_its_limit_and_comes_back_when_it_has_less() {
    let budget = Budget::new(Limits { connections_per_pod: 20, ..Limits::default() });
    let ((pod, kernel), (_other, others)) = (pod(&budget, "a"), pod(&budget, "b"));
    let mut places: Vec<_> = (0..19).map(|_| pod.accepted(START)).collect();
    assert!(!is_direct(&kernel));
    places.push(pod.accepted(START));
    assert!(is_direct(&kernel));
    // Those that were on their way are served, too.
    places.extend((0..5).map(|_| pod.accepted(START)));
    assert_eq!(budget.uses(START)[0].connections, 25);

    places.truncate(17);
    budget.review(START + HALF);
    assert!(is_direct(&kernel), "not so soon");
    places.truncate(18);
    budget.review(START + SECOND);
    assert!(!is_direct(&kernel));
    assert_eq!(kernel.said.load(Relaxed), 2);
    assert_eq!(others.said.load(Relaxed), 0);
    let uses = budget.uses(START + SECOND * 9);
    assert_eq!(
        (uses[0].direct, uses[0].direct_for[Cause::Connections as usize]),
        (None, Duration::from_secs(1))
    );
}

#[test]
fn the_kernel_redirects_no_more_than_there_is_room_for() {
    let budget = Budget::new(Limits { connections_per_pod: 100, descriptors: 100, ..Limits::default() });
    let (pod, kernel) = pod(&budget, "a");
    let allowed = || kernel.allowed.load(Relaxed);
    assert_eq!(allowed(), 25, "half of what there are descriptors for");
    // All that is redirected before any is accepted.
    kernel.redirected.store(25, Relaxed);
    let mut places: Vec<_> = (0..12).map(|_| pod.accepted(START)).collect();
    assert_eq!(allowed(), 25);
    places.push(pod.accepted(START));
    assert_eq!(allowed(), 1, "those on their way have the rest");
    places.extend((0..12).map(|_| pod.accepted(START)));
    assert_eq!(budget.uses(START)[0].direct, Some(Cause::Descriptors));
    assert!(is_direct(&kernel));
    drop(places);
    budget.review(START + SECOND);
    assert_eq!(allowed(), 25);
}

#[test]
fn a_kernel_that_refuses_is_told_again() {
    let budget = Budget::new(Limits { connections_per_pod: 1, ..Limits::default() });
    let (pod, kernel) = pod(&budget, "a");
    kernel.refuses.store(true, Relaxed);
    let _place = pod.accepted(START);
    assert!(!is_direct(&kernel));
    assert_eq!(budget.uses(START)[0].direct, None);
    kernel.refuses.store(false, Relaxed);
    budget.review(START);
    assert!(is_direct(&kernel));
}

#[test]
fn without_descriptors_all_go_direct_for_a_while() {
    let budget = Budget::new(Limits::default());
    let ((one, kernel), (other, others)) = (pod(&budget, "a"), pod(&budget, "b"));
    assert!(!one.is_exhausted_since(Nanos::ZERO));
    one.exhausted(START);
    assert!(is_direct(&kernel) && is_direct(&others));
    assert!(other.is_exhausted_since(START) && !other.is_exhausted_since(START + HALF));
    one.exhausted(START + HALF);
    assert!(!one.must_wait(), "it may have been another's");
    budget.review(START + SECOND);
    assert!(is_direct(&kernel));
    budget.review(START + SECOND * 2);
    assert!(!is_direct(&kernel) && !is_direct(&others));
}

#[test]
fn the_cause_may_change_meanwhile_and_all_time_is_counted_once() {
    let budget = Budget::new(Limits { connections_per_pod: 2, descriptors: 20, ..Limits::default() });
    let ((one, _), (other, _)) = (pod(&budget, "a"), pod(&budget, "b"));
    let mut places = vec![one.accepted(START), one.accepted(START)];
    let _others: Vec<_> = (0..8).map(|_| other.accepted(START)).collect();
    assert_eq!(budget.uses(START)[0].direct, Some(Cause::Connections));
    places.pop();
    budget.review(START + SECOND * 3);
    assert_eq!(budget.uses(START)[0].direct, Some(Cause::Descriptors));
    let times = budget.uses(START + SECOND * 5)[0].direct_for;
    assert_eq!(times, [3, 2, 0].map(Duration::from_secs));
}

#[test]
fn what_a_pod_had_comes_back_with_it() {
    let budget = Budget::new(Limits { descriptors: 10, ..Limits::default() });
    let (gone, _) = pod(&budget, "a");
    let workload = ArcSwap::from_pointee(Workload::new("b", "shop", "b"));
    let listening = Arc::new(Pod::new(workload, Arc::new(Arc::<Kernel>::default())));
    let second = budget.pod(&listening, 4);
    assert_eq!(budget.bounds().connections, 3);
    drop(second);
    assert_eq!(budget.bounds().connections, 5);
    let place = gone.accepted(START);
    drop(gone);
    assert_eq!(budget.uses(START).len(), 1, "as long as it has connections");
    drop(place);
    assert_eq!((budget.uses(START).len(), budget.used()), (0, Used::default()));
}

#[test]
fn what_waits_makes_new_connections_go_direct_and_far_above_rejects_requests() {
    let budget = Budget::new(Limits { bytes: 1000, ..Limits::default() });
    let ((one, kernel), (other, others)) = (pod(&budget, "a"), pod(&budget, "b"));
    let (mut first, mut second) = (one.waiting(), one.waiting());
    first.set(499, START);
    assert!(!is_direct(&kernel));
    second.set(1, START);
    let uses = &budget.uses(START)[0];
    assert_eq!((uses.direct, uses.over), (Some(Cause::Memory), Some(Cause::Memory)));
    assert!(!one.refuses());
    second.set(301, START);
    assert!(one.refuses() && !other.refuses() && !is_direct(&others));
    second.set(0, START);
    assert!(!one.refuses());
    drop(first);
    let now = &budget.uses(START)[0];
    assert_eq!((now.direct, now.over), (Some(Cause::Memory), None), "they go direct for a moment longer");
    budget.review(START + SECOND);
    assert!(!is_direct(&kernel));
    assert_eq!((budget.used(), second.amount()), (Used::default(), 0));
}

#[test]
fn receive_buffers_grow_by_what_is_free() {
    let budget = Budget::new(Limits { bytes: 4000, ..Limits::default() });
    let ((one, _), (other, _)) = (pod(&budget, "a"), pod(&budget, "b"));
    let (mut first, mut second, mut third) = (one.growth(), one.growth(), other.growth());
    assert!(first.set(300) && second.set(200));
    assert!(!second.set(201), "half of a quarter");
    assert_eq!(second.amount(), 200);
    assert!(third.set(250) && !third.set(251));
    assert!(!first.set(301));
    assert!(first.set(100) && second.set(200));
    drop((first, second));
    assert!(third.set(500));
    drop(third);
    assert_eq!(budget.grown.load(Relaxed), 0);
    // Without a limit all that is wanted.
    let budget = Budget::new(Limits::default());
    let (unbounded, _) = pod(&budget, "a");
    assert!(unbounded.growth().set(1 << 40));
}

/// Thousands of short connections a second, which the agent accepts a little later. Returns how many went direct.
fn churn(limits: Limits, per_milli: u64, lasts: u64, lost: impl Fn(u64) -> bool) -> u64 {
    let budget = Budget::new(limits);
    let (pod, kernel) = pod(&budget, "a");
    let (mut coming, mut open) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
    let (mut direct, mut number, mut redirected) = (0, 0, 0);
    for milli in 0..60_000 {
        let now = START + Nanos::of(Duration::from_millis(milli));
        for _ in 0..per_milli {
            number += 1;
            if kernel.redirected.load(Relaxed) >= u64::from(kernel.allowed.load(Relaxed)) {
                direct += 1;
                continue;
            }
            kernel.redirected.fetch_add(1, Relaxed);
            redirected += 1;
            if !lost(redirected) {
                coming.push_back(milli + number % 4);
            }
        }
        while coming.front().is_some_and(|at| *at <= milli) {
            coming.pop_front();
            open.push_back((milli + lasts, pod.accepted(now)));
        }
        while open.front().is_some_and(|(ends, _)| *ends <= milli) {
            open.pop_front();
        }
        if milli % 1000 == 0 {
            budget.review(now);
        }
    }
    direct
}

#[test]
fn no_new_connection_goes_direct_without_need() {
    assert_eq!(churn(Limits::default(), 5, 2, |_| false), 0);
    // As many as there is room for are on their way or open, at the most.
    let little = Limits { connections_per_pod: 64, ..Limits::default() };
    assert_eq!(churn(little, 5, 2, |_| false), 0);
    let none = churn(Limits { connections_per_pod: 1, ..Limits::default() }, 5, 2, |_| false);
    assert!(none > 100_000, "{none}");
}

#[test]
fn connections_that_never_come_are_not_waited_for() {
    // connect() failed after it was redirected, or the client gave up before there was room in the listener's queue.
    assert_eq!(churn(Limits::default(), 5, 2, |number| number % 20 == 0), 0);
    let little = Limits { connections_per_pod: 256, ..Limits::default() };
    assert_eq!(churn(little, 1, 2, |number| number % 50 == 0), 0);
}
