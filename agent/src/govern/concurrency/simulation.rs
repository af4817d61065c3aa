//! An origin that gets slower the more it has to do, and callers that ask for more than it can, event by event.
//!
//! With `n` requests in flight an answer takes `base * (1 + (n / knee)²)`: the origin answers most, `knee / (2 * base)` a
//! second, with `knee` of them, and nearly nothing when it is flooded. Callers do not wait longer than a second.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;

use super::*;
use crate::govern::policy::{Adaptive, Mode};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;
const KNEE: f64 = 20.0;
const DEADLINE: u64 = SECOND;

struct World {
    limiter: Option<Arc<Limiter>>,
    base_millis: f64,
    in_flight: u32,
    /// When each answer comes, and when its request did.
    answers: BinaryHeap<Reverse<(u64, u64, usize)>>,
    permits: Vec<Option<Permit>>,
    now: u64,
    rng: Rng,
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
        let config =
            |adaptive| Concurrency { max_requests: 1000, adaptive: Some(adaptive), mode: Mode::Enforce };
        Self {
            limiter: adaptive.map(|adaptive| Arc::new(Limiter::new(&config(adaptive), 0))),
            base_millis,
            in_flight: 0,
            answers: BinaryHeap::new(),
            permits: Vec::new(),
            now: 0,
            rng: Rng::with_seed(11),
        }
    }

    /// Answers a second that the origin can give at best.
    fn best(&self) -> f64 {
        KNEE / (2.0 * self.base_millis / 1000.0)
    }

    /// Lets so many requests a second come for some seconds, as callers do that know nothing of each other.
    fn run(&mut self, rate: f64, seconds: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let end = self.now + seconds * SECOND;
        while self.now < end {
            let pause = -self.rng.f64().max(1e-12).ln() / rate;
            self.now += (pause * SECOND as f64) as u64;
            self.answer(&mut outcome);
            self.ask(&mut outcome);
        }
        outcome
    }

    fn ask(&mut self, outcome: &mut Outcome) {
        let permit = match self.limiter.as_ref().map(|limiter| limiter.try_acquire(self.now)) {
            Some(Err(_)) => {
                outcome.refused += 1;
                return;
            }
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        self.in_flight += 1;
        let load = f64::from(self.in_flight) / KNEE;
        let takes = self.base_millis * (1.0 + load * load) * (0.8 + 0.4 * self.rng.f64());
        self.permits.push(permit);
        let at = self.now + (takes * MILLI as f64) as u64;
        self.answers.push(Reverse((at, self.now, self.permits.len() - 1)));
    }

    /// All answers that have come by now.
    fn answer(&mut self, outcome: &mut Outcome) {
        while let Some(Reverse((at, asked, request))) =
            self.answers.peek().copied().filter(|next| next.0.0 <= self.now)
        {
            self.answers.pop();
            self.in_flight -= 1;
            let latency = at - asked;
            let late = latency > DEADLINE;
            if let Some(permit) = self.permits[request].take() {
                permit.complete(latency, at, late);
            }
            outcome.latencies.push(latency);
            outcome.late += u32::from(late);
            outcome.good += u32::from(!late);
        }
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
        // The start is not counted.
        without.run(overload * best, 5);
        with.run(overload * best, 5);
        let collapsed = f64::from(without.run(overload * best, seconds).good) / seconds as f64;
        let mut outcome = with.run(overload * best, seconds);
        let kept = f64::from(outcome.good) / seconds as f64;
        assert!(collapsed < 0.2 * best, "{collapsed} of {best} a second without a limit");
        assert!(kept >= 0.8 * best, "{kept} of {best} a second at {overload} times");
        assert_eq!(outcome.late, 0);
        assert!(outcome.p99_millis() < 80, "{} ms, of 20 when idle", outcome.p99_millis());
    }
}

#[test]
fn a_flood_out_of_a_quiet_time_is_survived() {
    let mut world = World::new(Some(measured_every(60)), 20.0);
    let best = world.best();
    world.run(0.2 * best, 30);
    // It has grown as far as it may.
    assert_eq!(world.limit(), 1000);
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
fn a_limit_at_its_minimum_grows_with_little_traffic() {
    let mut world = World::new(Some(measured_every(60)), 20.0);
    let best = world.best();
    world.run(0.5 * best, 5);
    // Something slows it down so much that the limit falls as far as it can.
    world.base_millis = 400.0;
    let fell = (0..60).any(|_| {
        world.run(0.5 * best, 1);
        world.limit() == 3
    });
    assert!(fell, "{}", world.limit());
    world.base_millis = 20.0;
    // What hung is answered in a minute or two.
    world.run(2.0, 240);
    assert!(world.limit() >= 20, "{}", world.limit());
}
