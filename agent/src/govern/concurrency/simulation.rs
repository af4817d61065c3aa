//! An origin that gets slower the more it has to do, and callers that ask for more than it can, tick by tick.
//!
//! With `n` requests to work on each of them goes on at `1 / (1 + (n / knee)²)` of the speed that it has alone: the origin
//! answers most, `knee / (2 * base)` a second, with `knee` of them, and nearly nothing when it is flooded. An answer may wait
//! for a dependency besides, whatever the origin has to do. Callers leave after a second, and the origin stops then.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use fastrand::Rng;

use super::*;
use crate::govern::policy::{Adaptive, Mode, Scope};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;
const TICK: u64 = MILLI / 4;
const KNEE: f64 = 20.0;
const DEADLINE: u64 = SECOND;

struct World {
    limiter: Option<Arc<Limiter>>,
    pod: Arc<CallingPod>,
    base_millis: f64,
    knee: f64,
    /// How long the dependency takes; one of these.
    dependency_millis: Vec<u64>,
    /// The origin does nothing at the moment.
    stopped: bool,
    /// How far it has come with a request that was always there, in nanoseconds of its own.
    progress: f64,
    /// What it works on, by how far it will have come with it; then what waits for the dependency, by when that answers.
    working: BinaryHeap<Reverse<(u64, usize)>>,
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    in_work: u32,
    leaving: VecDeque<(u64, usize)>,
    requests: Vec<Request>,
    now: u64,
    rng: Rng,
}

struct Request {
    asked: u64,
    permit: Option<Permit>,
    ended: bool,
    works: bool,
}

/// What came of a span of time.
#[derive(Debug, Default)]
struct Outcome {
    good: u32,
    late: u32,
    refused: u32,
    latencies: Vec<u64>,
}

impl Outcome {
    fn p99_millis(&mut self) -> u64 {
        let at = self.latencies.len() * 99 / 100;
        *self.latencies.select_nth_unstable(at).1 / MILLI
    }
}

impl World {
    fn new(adaptive: Option<Adaptive>, base_millis: f64) -> Self {
        let config = |adaptive| Concurrency {
            max_requests: 1000,
            adaptive: Some(adaptive),
            scope: Scope::Node,
            mode: Mode::Enforce,
        };
        Self {
            limiter: adaptive.map(|adaptive| Arc::new(Limiter::new(&config(adaptive), 0))),
            pod: CallingPod::new("1", "shop/client"),
            base_millis,
            knee: KNEE,
            dependency_millis: vec![0],
            stopped: false,
            progress: 0.0,
            working: BinaryHeap::new(),
            waiting: BinaryHeap::new(),
            in_work: 0,
            leaving: VecDeque::new(),
            requests: Vec::new(),
            now: 0,
            rng: Rng::with_seed(11),
        }
    }

    /// One whose work is next to nothing, so that what its dependency takes is all.
    fn idle(dependency_millis: &[u64]) -> Self {
        let dependency_millis = dependency_millis.to_vec();
        Self { knee: 1e6, dependency_millis, ..Self::new(Some(Adaptive::default()), 0.1) }
    }

    /// Answers a second that the origin can give at best.
    fn best(&self) -> f64 {
        self.knee / (2.0 * self.base_millis / 1000.0)
    }

    /// Lets so many requests a second come for some seconds, as callers do that know nothing of each other.
    fn run(&mut self, rate: f64, seconds: u64) -> Outcome {
        self.run_millis(rate, seconds * 1000)
    }

    fn run_millis(&mut self, rate: f64, millis: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let end = self.now + millis * MILLI;
        let mut next = self.now + self.pause(rate);
        while self.now < end {
            self.tick(&mut outcome);
            while next <= self.now {
                self.ask(&mut outcome);
                next += self.pause(rate);
            }
        }
        outcome
    }

    /// So many callers, each of which asks again when it is answered, and waits in between.
    fn run_callers(&mut self, callers: u64, waits_millis: u64, seconds: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let end = self.now + seconds * SECOND;
        let mut idle = (0..callers).map(|_| Reverse(self.now)).collect::<BinaryHeap<_>>();
        while self.now < end {
            let before = outcome.good + outcome.late + outcome.refused;
            self.tick(&mut outcome);
            while idle.peek().is_some_and(|next| next.0 <= self.now) {
                idle.pop();
                self.ask(&mut outcome);
            }
            for _ in before..outcome.good + outcome.late + outcome.refused {
                idle.push(Reverse(self.now + waits_millis * MILLI));
            }
        }
        outcome
    }

    fn pause(&mut self, rate: f64) -> u64 {
        (-self.rng.f64().max(1e-12).ln() / rate * SECOND as f64) as u64
    }

    fn ask(&mut self, outcome: &mut Outcome) {
        let asked = self.limiter.as_ref().map(|limiter| limiter.try_acquire(&self.pod, self.now));
        let Ok(permit) = asked.transpose() else {
            outcome.refused += 1;
            return;
        };
        let takes = self.base_millis * MILLI as f64 * (0.8 + 0.4 * self.rng.f64());
        let number = self.requests.len();
        self.requests.push(Request { asked: self.now, permit, ended: false, works: true });
        self.working.push(Reverse(((self.progress + takes) as u64, number)));
        self.leaving.push_back((self.now + DEADLINE, number));
        self.in_work += 1;
    }

    fn tick(&mut self, outcome: &mut Outcome) {
        self.now += TICK;
        let load = f64::from(self.in_work) / self.knee;
        if !self.stopped {
            self.progress += TICK as f64 / (1.0 + load * load);
        }
        while let Some(Reverse((at, number))) = self.working.peek().copied()
            && at as f64 <= self.progress
        {
            self.working.pop();
            if !self.requests[number].ended {
                self.requests[number].works = false;
                self.in_work -= 1;
                let one = self.rng.usize(..self.dependency_millis.len());
                self.waiting.push(Reverse((self.now + self.dependency_millis[one] * MILLI, number)));
            }
        }
        while let Some(Reverse((at, number))) = self.waiting.peek().copied()
            && at <= self.now
        {
            self.waiting.pop();
            self.end(number, outcome);
        }
        while let Some((at, number)) = self.leaving.front().copied()
            && at <= self.now
        {
            self.leaving.pop_front();
            self.end(number, outcome);
        }
    }

    fn end(&mut self, number: usize, outcome: &mut Outcome) {
        let request = &mut self.requests[number];
        if std::mem::replace(&mut request.ended, true) {
            return;
        }
        self.in_work -= u32::from(request.works);
        let latency = self.now - request.asked;
        let late = latency >= DEADLINE;
        if let Some(permit) = request.permit.take() {
            permit.complete(latency, self.now, late);
        }
        outcome.latencies.push(latency);
        outcome.late += u32::from(late);
        outcome.good += u32::from(!late);
    }

    fn limit(&self) -> u32 {
        self.limiter.as_ref().map_or(0, |limiter| limiter.limit())
    }
}

fn measured_every(seconds: u64) -> Adaptive {
    Adaptive { min_rtt_interval: std::time::Duration::from_secs(seconds), ..Adaptive::default() }
}

#[test]
fn an_overloaded_origin_keeps_most_of_its_throughput_behind_the_limit_and_collapses_without() {
    for overload in [1.5, 3.0, 10.0] {
        let mut without = World::new(None, 20.0);
        let mut with = World::new(Some(measured_every(10)), 20.0);
        let (best, seconds) = (with.best(), 30);
        // Until it shows that the origin does not keep up nobody is refused, and those wait for a second.
        without.run(overload * best, 8);
        with.run(overload * best, 8);
        let collapsed = f64::from(without.run(overload * best, seconds).good) / seconds as f64;
        let mut outcome = with.run(overload * best, seconds);
        let kept = f64::from(outcome.good) / seconds as f64;
        assert!(collapsed < 0.2 * best, "{collapsed} of {best} a second without a limit");
        assert!(kept >= 0.8 * best, "{kept} of {best} a second at {overload} times");
        assert_eq!(outcome.late, 0);
        assert!(outcome.p99_millis() < 80, "{} ms, of 20 when idle, at {overload}", outcome.p99_millis());
    }
}

#[test]
fn a_flood_out_of_a_quiet_time_is_survived() {
    let mut world = World::new(Some(measured_every(60)), 20.0);
    let best = world.best();
    world.run(0.2 * best, 30);
    assert_eq!(world.limit(), 1000, "there is none");
    world.run(3.0 * best, 10);
    let good = f64::from(world.run(3.0 * best, 10).good) / 10.0;
    assert!(good >= 0.8 * best, "{good} of {best}");
}

#[test]
fn what_the_origin_can_bear_is_not_refused() {
    let mut world = World::new(Some(measured_every(10)), 20.0);
    let rate = 0.5 * world.best();
    world.run(rate, 5);
    let outcome = world.run(rate, 60);
    assert_eq!((outcome.refused, outcome.late), (0, 0));
}

#[test]
fn an_origin_that_becomes_slower_or_faster_gets_what_it_can_bear_again() {
    let mut world = World::new(Some(measured_every(10)), 20.0);
    for base_millis in [20.0, 100.0, 10.0, 40.0] {
        world.base_millis = base_millis;
        let best = world.best();
        world.run(3.0 * best, 25);
        let good = f64::from(world.run(3.0 * best, 20).good) / 20.0;
        assert!(good >= 0.8 * best, "{good} of {best} with {base_millis} ms");
    }
}

#[test]
fn a_healthy_service_is_not_refused_from_the_first_request_on() {
    // 40 callers, 100 requests a second, 200 ms each.
    let mut world = World::idle(&[200]);
    let outcome = world.run_callers(40, 200, 60);
    assert_eq!((outcome.refused, outcome.late), (0, 0));
    assert!(outcome.good > 5000, "{outcome:?}");
}

#[test]
fn speeds_that_alternate_are_no_overload() {
    let mut world = World::new(Some(Adaptive::default()), 20.0);
    let rate = 0.4 * world.best();
    for millis in [50, 300, 2000] {
        for _ in 0..60_000 / millis {
            world.base_millis = if world.base_millis > 30.0 { 20.0 } else { 40.0 };
            let outcome = world.run_millis(rate, millis);
            assert_eq!((outcome.refused, outcome.late), (0, 0), "{millis}");
        }
    }
    // By request, too; however far they are apart.
    for speeds in [[20, 40], [5, 400]] {
        let outcome = World::idle(&speeds).run(200.0, 120);
        assert_eq!((outcome.refused, outcome.late), (0, 0), "{speeds:?}");
    }
}

#[test]
fn a_service_that_waits_for_its_own_dependency_and_keeps_up_is_not_refused() {
    let mut world = World::idle(&[20]);
    for millis in [20, 200, 20, 600, 50, 20] {
        world.dependency_millis = vec![millis];
        for (rate, seconds) in [(100.0, 20), (500.0, 20), (20.0, 5)] {
            let outcome = world.run(rate, seconds);
            assert_eq!((outcome.refused, outcome.late), (0, 0), "{millis} ms, {rate}");
        }
    }
}

#[test]
fn a_pause_of_the_origin_is_no_overload() {
    let mut world = World::new(Some(Adaptive::default()), 5.0);
    world.knee = 200.0;
    for round in 0..30 {
        let outcome = world.run(200.0, 1);
        assert_eq!((outcome.refused, outcome.late), (0, 0), "{round}");
        world.stopped = true;
        let outcome = world.run_millis(200.0, 400);
        assert_eq!((outcome.refused, outcome.late), (0, 0), "{round}");
        world.stopped = false;
    }
}

#[test]
fn callers_that_come_all_at_once_are_no_overload() {
    let mut world = World::new(Some(Adaptive::default()), 2.0);
    world.knee = 100.0;
    for round in 0..100 {
        let mut outcome = Outcome::default();
        (0..40).for_each(|_| world.ask(&mut outcome));
        let rest = world.run_millis(10.0, 300);
        assert_eq!((outcome.refused + rest.refused, rest.late), (0, 0), "{round}");
    }
}

#[test]
fn the_limit_goes_with_the_overload() {
    let mut world = World::new(Some(measured_every(10)), 20.0);
    let best = world.best();
    assert!(world.run(3.0 * best, 10).refused > 0);
    assert!(world.limit() < 100, "{}", world.limit());
    world.run(0.4 * best, 7);
    assert_eq!(world.limit(), 1000);
    let outcome = world.run(0.4 * best, 60);
    assert_eq!((outcome.refused, outcome.late), (0, 0));
}
