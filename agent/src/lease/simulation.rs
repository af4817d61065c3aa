//! Agents that share a limit, request by request: five of them at ten times the limit, whose load moves from one to another;
//! and a store that is away, slow to answer, and wiped. Time is counted here, and randomness has a seed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    double::Ledger,
    holder::Holder,
    ledger::{Call, Reply},
};
use crate::govern::{
    policy::{Behaviour, LimitKey, Mode, RateLimit, RequestMatch, Scope},
    request::tests::Plain,
    throttle::{Admission, Throttle},
};

const MILLI: u64 = 1_000_000;
const AGENTS: usize = 5;
/// How often an agent looks, and how long an answer takes, in milliseconds.
const LOOK: u64 = 20;
const ANSWER: u64 = 2;

struct Agent {
    throttle: Throttle,
    holder: Holder,
    /// What has been asked of the store and was answered: when the answer is there, and what was said.
    waiting: Option<(u64, Call, Reply)>,
    asked: Vec<u32>,
    admitted: Vec<u32>,
}

impl Agent {
    /// From here on seconds are counted anew.
    fn forget_counts(&mut self) {
        self.asked.clear();
        self.admitted.clear();
    }
}

struct World {
    agents: Vec<Agent>,
    ledger: Ledger,
    away: bool,
    /// It is away by turns, for so many milliseconds of so many.
    flaps: Option<(u64, u64)>,
    random: fastrand::Rng,
    millis: u64,
    rate: f64,
}

impl World {
    fn new(rate: f64, seed: u64) -> Self {
        Self::of(AGENTS, rate, rate, seed)
    }

    fn of(agents: usize, rate: f64, burst: f64, seed: u64) -> Self {
        let rule = Arc::new(RateLimit {
            name: "all".into(),
            requests: rate,
            interval: Duration::from_secs(1),
            burst,
            behaviour: Behaviour::Reject,
            key: LimitKey::None,
            scope: Scope::Cluster,
            matches: RequestMatch::default(),
            mode: Mode::Enforce,
        });
        let agent = |_| Agent {
            throttle: Throttle::new(rule.clone()),
            holder: Holder::default(),
            waiting: None,
            asked: Vec::new(),
            admitted: Vec::new(),
        };
        let agents = (0..agents).map(agent).collect();
        let random = fastrand::Rng::with_seed(seed);
        Self { agents, ledger: Ledger::default(), away: false, flaps: None, random, millis: 0, rate }
    }

    /// A second, in which each agent is asked for so many requests.
    fn second(&mut self, loads: impl AsRef<[f64]>) {
        for agent in &mut self.agents {
            agent.asked.push(0);
            agent.admitted.push(0);
        }
        for _ in 0..1000 {
            self.milli(loads.as_ref());
            self.millis += 1;
        }
    }

    fn milli(&mut self, loads: &[f64]) {
        let Self { agents, ledger, away, flaps, random, millis, .. } = self;
        let away = *away || flaps.is_some_and(|(away, of)| *millis % of < away);
        // Nanoseconds of agents do not begin at 0, and not together.
        let now = (*millis + 5000) * MILLI;
        let time = 1_700_000_000.0 + *millis as f64 / 1000.0;
        for (i, agent) in agents.iter_mut().enumerate() {
            for _ in 0..arrivals(random, loads[i] / 1000.0) {
                let admitted = agent.throttle.admit(&Plain::get("/"), "pod", now) == Some(Admission::Now);
                *agent.asked.last_mut().unwrap() += 1;
                *agent.admitted.last_mut().unwrap() += u32::from(admitted);
            }
            if let Some((_, call, reply)) = agent.waiting.take_if(|(at, ..)| *at <= *millis) {
                let share = agent.holder.answered(reply, call.used, now);
                agent.throttle.set_share(share, now);
            }
            if !(*millis + i as u64 * 3).is_multiple_of(LOOK) || agent.waiting.is_some() {
                continue;
            }
            let tally = agent.throttle.tally(now).unwrap();
            if !agent.holder.is_due(&tally, now) {
                continue;
            }
            let call = agent.holder.call(agent.throttle.rule(), &tally, random.f64(), now);
            if away {
                if let Some(share) = agent.holder.lost(&tally, None, now) {
                    agent.throttle.set_share(share, now);
                }
            } else {
                let reply = ledger.renew(&i.to_string(), &call, time);
                agent.waiting = Some((*millis + ANSWER, call, reply));
            }
        }
    }

    /// A millisecond that counts to the second before.
    fn milli_of_a_running_second(&mut self, loads: &[f64]) {
        self.milli(loads);
        self.millis += 1;
    }

    /// What all agents admitted, second by second.
    fn admitted(&self) -> Vec<f64> {
        let seconds = self.agents[0].admitted.len();
        let sum = |second| self.agents.iter().map(|agent| f64::from(agent.admitted[second])).sum();
        (0..seconds).map(sum).collect()
    }

    /// The least and the most of any ten seconds from this one on, as a part of the limit.
    fn windows(&self, from: usize) -> (f64, f64) {
        let admitted = self.admitted();
        let parts = admitted[from..].windows(10).map(|window| window.iter().sum::<f64>() / 10.0 / self.rate);
        parts.fold((f64::MAX, 0.0), |(least, most), part| (least.min(part), most.max(part)))
    }

    /// What part of what it was asked for an agent admitted.
    fn part(&self, agent: usize, seconds: std::ops::Range<usize>) -> f64 {
        let sum = |counts: &[u32]| f64::from(counts[seconds.clone()].iter().sum::<u32>());
        sum(&self.agents[agent].admitted) / sum(&self.agents[agent].asked)
    }
}

/// How many requests come in a millisecond of which so many are expected: a Poisson process.
fn arrivals(random: &mut fastrand::Rng, expected: f64) -> u32 {
    if expected <= 0.0 {
        return 0;
    }
    let (mut product, end, mut count) = (random.f64(), (-expected).exp(), 0);
    while product > end {
        product *= random.f64();
        count += 1;
    }
    count
}

/// All the load at one agent.
fn only(agent: usize, load: f64) -> [f64; AGENTS] {
    std::array::from_fn(|i| if i == agent { load } else { 0.0 })
}

#[test]
fn at_ten_times_the_limit_it_holds_within_five_percent_wherever_the_load_is() {
    for (seed, rate) in
        [(1, 100.0), (2, 1000.0), (3, 50.0), (11, 100.0), (12, 1000.0), (13, 50.0), (14, 250.0), (15, 250.0)]
    {
        let load = 10.0 * rate;
        let mut world = World::new(rate, seed);
        // Nobody asks, evenly, all at one agent after another for some seconds and for one, unevenly.
        let mut plan: VecDeque<[f64; AGENTS]> = VecDeque::from([[0.0; AGENTS]; 3]);
        plan.extend([[load / 5.0; AGENTS]; 20]);
        for agent in 0..AGENTS {
            plan.extend([only(agent, load); 4]);
        }
        for agent in 0..15 {
            plan.push_back(only(agent % AGENTS, load));
        }
        plan.extend([[load * 0.6, load * 0.2, load * 0.1, load * 0.05, load * 0.05]; 20]);
        for loads in plan {
            world.second(loads);
        }
        // The first seconds have the burst of a limit that nobody had used.
        let (least, most) = world.windows(5);
        assert!(least > 0.95 && most < 1.05, "seed {seed}: {least} to {most}: {:?}", world.admitted());
        let all: f64 = world.admitted()[3..6].iter().sum();
        assert!(all < 4.2 * rate, "no more than the burst, three seconds' worth and two periods': {all}");
        // Each is admitted the same part of what it is asked for.
        for agent in 0..AGENTS {
            for seconds in [8..23, 63..78] {
                let part = world.part(agent, seconds.clone());
                assert!((0.07..0.14).contains(&part), "seed {seed}: agent {agent} in {seconds:?}: {part}");
            }
        }
    }
}

#[test]
fn below_the_limit_nobody_is_rejected() {
    let mut world = World::new(100.0, 4);
    for second in 0..40 {
        let loads = if second % 8 < 4 { [16.0; AGENTS] } else { only(second / 8 % AGENTS, 80.0) };
        world.second(loads);
    }
    let asked: u32 = world.agents.iter().flat_map(|agent| &agent.asked).sum();
    let admitted: f64 = world.admitted().iter().sum();
    assert!(admitted >= f64::from(asked) * 0.99, "{admitted} of {asked}");
}

#[test]
fn a_slow_limit_is_one_limit_too() {
    // Ten, and one more every 20 seconds, and requests now and then that go to any of the agents.
    let mut world = World::new(0.05, 5);
    let rule = RateLimit { burst: 10.0, ..(**world.agents[0].throttle.rule()).clone() };
    for agent in &mut world.agents {
        agent.throttle = Throttle::new(Arc::new(rule.clone()));
    }
    (0..5).for_each(|_| world.second([0.0; AGENTS]));
    (0..6).for_each(|_| world.second([0.1; AGENTS]));
    let asked: u32 = world.agents.iter().flat_map(|agent| &agent.asked).sum();
    let admitted: f64 = world.admitted().iter().sum();
    assert!((admitted - f64::from(asked)).abs() < 0.5, "{admitted} of {asked}");
    (0..400).for_each(|_| world.second([1.0; AGENTS]));
    let admitted = world.admitted().iter().sum::<f64>();
    // The burst, 411 seconds' worth, and at most one more for each agent.
    assert!((25.0..=36.0).contains(&admitted), "{admitted}");
}

#[test]
fn while_the_store_is_away_each_goes_on_with_its_last_share() {
    let mut world = World::new(100.0, 6);
    let uneven = [600.0, 200.0, 100.0, 50.0, 50.0];
    (0..15).for_each(|_| world.second(uneven));
    world.away = true;
    (0..20).for_each(|_| world.second(uneven));
    let (least, most) = world.windows(4);
    assert!(least > 0.95 && most < 1.05, "{least} to {most}: {:?}", world.admitted());
    // The load moves: the agent that has it has at least a part of an even share, and the limit is not exceeded.
    (0..10).for_each(|_| world.second(only(4, 1000.0)));
    let admitted = &world.admitted()[36..45];
    assert!(admitted.iter().all(|admitted| (10.0..=100.0).contains(admitted)), "{admitted:?}");
    // Back again, and it makes no difference that all is forgotten in the store.
    for wiped in [false, true] {
        if wiped {
            world.ledger = Ledger::default();
        }
        world.away = false;
        let from = world.admitted().len();
        (0..15).for_each(|_| world.second(uneven));
        let (least, most) = world.windows(from);
        assert!(least > 0.95 && most < 1.05, "{least} to {most}: {:?}", world.admitted());
        world.away = true;
        (0..3).for_each(|_| world.second(uneven));
    }
}

/// What all admit of a steady load at each agent, as a part of what the limit regains, after its burst; and of that the least part
/// that an agent has of an even one.
fn steady(world: &mut World, loads: &[f64], seconds: usize) -> (f64, f64) {
    // Until the burst is used, and what agents began with.
    let begin = 10 + (2.0 * world.agents.len() as f64 / world.rate) as usize;
    (0..begin + seconds).for_each(|_| world.second(loads));
    let sum = |agent: &Agent| f64::from(agent.admitted[begin..].iter().sum::<u32>());
    let each: Vec<f64> = world.agents.iter().map(sum).collect();
    let all: f64 = each.iter().sum();
    let least = each.iter().copied().fold(f64::MAX, f64::min);
    (all / seconds as f64 / world.rate, least / (all / each.len() as f64))
}

#[test]
fn a_limit_of_fewer_requests_than_agents_is_used_and_nobody_is_starved() {
    for (agents, rate, burst, load, seconds) in [
        (2, 1.0, 1.0, 10.0, 200),
        (2, 1.0 / 60.0, 1.0, 10.0, 6000),
        (2, 0.1, 1.0, 2.0, 2000),
        (2, 5.0, 1.0, 50.0, 100),
        (3, 2.0, 2.0, 10.0, 200),
        (3, 10.0, 2.0, 50.0, 100),
        (3, 3.0, 3.0, 3.0, 200),
        (20, 10.0, 10.0, 20.0, 100),
        (20, 1.0, 1.0, 5.0, 600),
    ] {
        let mut world = World::of(agents, rate, burst, 21);
        let (all, least) = steady(&mut world, &vec![load; agents], seconds);
        assert!((0.9..=1.05).contains(&all), "{agents} agents at {rate}/s, burst {burst}: {all}");
        assert!(least > 0.6, "{agents} agents at {rate}/s, burst {burst}: the least has {least}");
    }
}

#[test]
fn a_request_a_minute_is_one_a_minute_whoever_asks() {
    for seed in [61, 62, 63] {
        let mut world = World::of(3, 1.0 / 60.0, 1.0, seed);
        (0..600).for_each(|_| world.second([0.5; 3]));
        let admitted = world.admitted();
        let most = admitted[10..].windows(59).map(|window| window.iter().sum::<f64>()).fold(0.0, f64::max);
        assert!(most < 1.5, "seed {seed}: {most} in a minute");
        let all: f64 = admitted.iter().sum();
        assert!((9.0..=12.0).contains(&all), "seed {seed}: {all} in ten minutes");
    }
}

#[test]
fn who_asks_for_little_has_its_share_of_it_beside_who_asks_for_much() {
    for (rate, quiet, loud) in [(50.0, 20.0, 190.0), (50.0, 20.0, 1000.0), (10.0, 10.0, 90.0)] {
        let mut world = World::of(2, rate, rate, 31);
        let (all, _) = steady(&mut world, &[quiet, loud], 100);
        assert!((0.95..=1.05).contains(&all), "{quiet} and {loud} of {rate}: {all}");
        let [quiet_part, loud_part] = [0, 1].map(|agent| world.part(agent, 10..100));
        assert!(
            (0.75..1.4).contains(&(quiet_part / loud_part)),
            "{quiet} and {loud} of {rate}: {quiet_part} and {loud_part} of what they ask for"
        );
    }
}

#[test]
fn a_store_that_fails_now_and_then_changes_little() {
    for (rate, flaps) in [(50.0, (80, 280)), (5.0, (80, 280)), (50.0, (700, 1500)), (5.0, (700, 1500))] {
        let mut world = World::of(2, rate, rate, 41);
        world.flaps = Some(flaps);
        let (all, least) = steady(&mut world, &[2.0 * rate; 2], 100);
        assert!((0.85..=1.1).contains(&all) && least > 0.6, "{rate}/s, away {flaps:?}: {all}, {least}");
    }
}

#[test]
fn a_short_return_of_the_store_gives_nobody_more_than_before() {
    let loads = [100.0; 2];
    let mut world = World::of(2, 50.0, 50.0, 51);
    (0..20).for_each(|_| world.second(loads));
    // Away for long, back for less than it takes until all are there again, or empty, and away once more.
    for (round, empty) in [false, true, false].into_iter().enumerate() {
        world.away = true;
        (0..8).for_each(|_| world.second(loads));
        world.away = false;
        if empty {
            world.ledger = Ledger::default();
        }
        // Only one of the two comes back in time.
        let back = world.agents.swap_remove(round % 2);
        let other = std::mem::replace(&mut world.agents, vec![back]);
        for _ in 0..700 {
            world.milli_of_a_running_second(&loads[..1]);
        }
        world.agents.extend(other);
        world.agents.iter_mut().for_each(Agent::forget_counts);
        world.away = true;
        (0..30).for_each(|_| world.second(loads));
        let (least, most) = world.windows(2);
        assert!(least > 0.9 && most < 1.1, "round {round}: {least} to {most}: {:?}", world.admitted());
    }
}
