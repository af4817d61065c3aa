//! A queue before a service, and clients that do not wait for ever, event by event.
//!
//! The queue lets 20 a second through and makes nobody wait for more than two seconds; the service takes 100 ms. Of 60 clients
//! each asks again as soon as it has been answered, and a moment after it was refused or has given up.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::*;
use crate::govern::{
    cost::Ending,
    endpoint::{Endpoint, InFlight},
    policy::{Behaviour, Mode, RequestMatch},
    request::tests::Plain,
    subset::Subset,
};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;
const CLIENTS: usize = 60;
const PATIENCE: u64 = SECOND;
const MOST: Duration = Duration::from_secs(2);

/// What the agent knows of how long clients wait.
#[derive(Clone, Copy, PartialEq)]
enum Knows {
    Deadline,
    /// They leave.
    Nothing,
}

enum Event {
    Asks,
    /// And since when it has waited.
    Leaves(Verdict<'static>, u64),
    /// Its turn has come. When it asked.
    Begins(u64),
    /// When it asked, and when its turn came.
    Ends(InFlight, u64, u64),
}

struct World {
    /// Never let go of: what waits borrows from it.
    throttles: &'static Throttles,
    subset: Subset,
    knows: Knows,
    patience: Patience,
    service: u64,
    now: u64,
    order: BinaryHeap<Reverse<(u64, usize)>>,
    events: Vec<Option<Event>>,
    good: u32,
    late: u32,
}

impl World {
    fn new(knows: Knows, service: u64) -> Self {
        let rule = RateLimit {
            name: "queue".into(),
            requests: 20.0,
            interval: Duration::from_secs(1),
            burst: 1.0,
            behaviour: Behaviour::Queue { timeout: MOST },
            key: LimitKey::None,
            scope: Scope::Node,
            matches: RequestMatch::default(),
            mode: Mode::Enforce,
        };
        let endpoint = Arc::new(Endpoint::new(([10, 0, 0, 1], 80).into()));
        let mut world = Self {
            throttles: Box::leak(Box::new(Throttles::new(&[Arc::new(rule)]))),
            subset: vec![endpoint].into(),
            knows,
            patience: Patience::default(),
            service,
            now: 1,
            order: BinaryHeap::new(),
            events: Vec::new(),
            good: 0,
            late: 0,
        };
        for client in 0..CLIENTS as u64 {
            world.at(client * MILLI, Event::Asks);
        }
        world
    }

    fn at(&mut self, after: u64, event: Event) {
        self.events.push(Some(event));
        self.order.push(Reverse((self.now + after, self.events.len() - 1)));
    }

    /// Good and late answers a second.
    fn run(&mut self, seconds: u64) -> (f64, f64) {
        (self.good, self.late) = (0, 0);
        let end = self.now + seconds * SECOND;
        while let Some(Reverse((at, number))) = self.order.peek().copied().filter(|next| next.0.0 <= end) {
            self.order.pop();
            self.now = at;
            if let Some(event) = self.events[number].take() {
                self.happens(event);
            }
        }
        (f64::from(self.good) / seconds as f64, f64::from(self.late) / seconds as f64)
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Asks => {
                let whole = Duration::from_nanos(PATIENCE);
                let told = (self.knows == Knows::Deadline).then_some(whole);
                let known = told.or(self.patience.shown());
                let may_wait = known.map(|whole| time_to_wait(whole, whole, self.subset.likely()));
                let verdict = self.throttles.admit(&Plain::get("/"), "a", may_wait, self.now);
                let wait = verdict.wait().as_nanos() as u64;
                if verdict.refusal().is_some() {
                    self.at(50 * MILLI, Event::Asks);
                } else if wait > PATIENCE {
                    self.at(PATIENCE, Event::Leaves(verdict, self.now));
                } else {
                    self.at(wait, Event::Begins(self.now));
                }
            }
            Event::Leaves(verdict, asked) => {
                verdict.give_back(self.now);
                self.patience.left(Duration::from_nanos(self.now - asked), MOST);
                self.at(50 * MILLI, Event::Asks);
            }
            Event::Begins(asked) => {
                let in_flight = InFlight::begin(self.subset[0].clone(), self.now);
                let takes = self.service.min((asked + PATIENCE).saturating_sub(self.now));
                self.at(takes, Event::Ends(in_flight, asked, self.now));
            }
            Event::Ends(mut in_flight, asked, began) => {
                let after = Duration::from_nanos(self.now - asked);
                let took = self.now - began;
                if took >= self.service {
                    in_flight.answered(Some(took), self.now);
                    self.good += 1;
                    self.patience.answered(after, MOST);
                } else {
                    in_flight.ended(Ending::Left, took, self.now);
                    self.late += 1;
                    if self.knows == Knows::Nothing {
                        self.patience.left(after, MOST);
                    }
                }
                self.at(MILLI, Event::Asks);
            }
        }
    }
}

#[test]
fn who_waits_is_answered_in_time() {
    let mut world = World::new(Knows::Deadline, 100 * MILLI);
    world.run(2);
    for second in 2..30 {
        let (good, late) = world.run(1);
        assert!(good >= 19.0 && late <= 1.0, "second {second}: {good} good, {late} late");
    }
}

#[test]
fn places_of_clients_that_leave_are_taken_by_those_who_come() {
    let mut world = World::new(Knows::Nothing, 100 * MILLI);
    world.run(3);
    let (good, late) = world.run(120);
    assert!(good >= 18.5 && good + late >= 19.5, "{good} good, {late} late");
}

#[test]
fn a_service_that_takes_most_of_the_time_is_still_given_it() {
    let mut world = World::new(Knows::Deadline, 450 * MILLI);
    world.run(3);
    let (good, _) = world.run(20);
    assert!(good >= 18.0, "{good}");
}

#[test]
fn what_an_answer_takes_is_set_aside_but_never_more_than_half_of_the_time() {
    let millis = Duration::from_millis;
    for (left, whole, expected, wanted) in [
        (1000, 1000, None, 1000),
        (1000, 1000, Some(100), 900),
        (1000, 1000, Some(5000), 500),
        (300, 1000, Some(5000), 0),
        (0, 1000, None, 0),
    ] {
        assert_eq!(time_to_wait(millis(left), millis(whole), expected.map(millis)), millis(wanted));
    }
}
