//! What fleets go through: 300 callers of five agents send 1000 requests a second to 20 servers, which have four threads
//! each and need 40 ms for a request, and so are half busy.

use std::time::Duration;

use super::*;
use crate::govern::{
    outlier,
    policy::{Algorithm, OutlierDetection, WarmUp},
    warmup,
};

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::LeastTime, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];
const SERVERS: usize = 20;
/// What each server gets in a second, if all get the same.
const FAIR: f64 = 50.0;

fn server() -> Server {
    Server::new(4, 40 * MS)
}

fn world(policy: Policy, seed: u64) -> World {
    let plan = Plan {
        agents: 5,
        callers: 300,
        requests_per_second: 1000.0,
        sequential: false,
        patience: None,
        policy,
        lag: 300 * MS,
        seed,
    };
    World::new(plan, vec![server(); SERVERS])
}

fn balanced(algorithm: Algorithm) -> Policy {
    let mut policy = Policy::default();
    policy.load_balancer.algorithm = algorithm;
    policy
}

fn warmed(seconds: u64) -> Policy {
    let mut policy = Policy::default();
    let warmup = WarmUp { duration: Duration::from_secs(seconds), ..WarmUp::default() };
    policy.load_balancer.warmup = Some(warmup);
    policy
}

fn ejecting() -> Policy {
    let config = OutlierDetection { base_ejection: Duration::from_secs(5), ..OutlierDetection::default() };
    Policy { outlier_detection: Some(config), ..Policy::default() }
}

/// Every other second a new server becomes ready and an old one begins to leave, which is gone a second later.
fn replace_all(world: &mut World, cold: f64) {
    for step in 0..SERVERS {
        let second = 5 + 2 * step as u64;
        world.at(second, move |world| {
            world.change(|servers, now| {
                servers.push(Server { cold, ready_since: Some(now), ..server() });
                servers[step].terminating = true;
            });
        });
        world.at(second + 1, move |world| world.change(|servers, _| servers[step].gone = true));
    }
}

/// Variance by mean: 1 for what comes at random, far more for what comes in waves.
fn dispersion(counts: &[u32]) -> f64 {
    let mean = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    let variance =
        counts.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    variance / mean
}

#[test]
fn a_steady_fleet_is_steady() {
    for (algorithm, seed) in ALGORITHMS.into_iter().zip(1..) {
        let mut world = world(balanced(algorithm), seed);
        world.run(25);
        let waves: f64 = (0..SERVERS).map(|server| dispersion(&world.sent(server, 5..25))).sum();
        assert!(waves / SERVERS as f64 <= 1.2, "{algorithm:?} comes in waves: {waves}");
        for server in 0..SERVERS {
            let part = world.total(server, 5..25) / (20.0 * FAIR);
            assert!((0.85..1.15).contains(&part), "{algorithm:?}: {server} gets {part} of what is fair");
        }
        let queue = world.longest_queue(0..25);
        assert!(
            queue <= if algorithm == Algorithm::Random { 12 } else { 6 },
            "{algorithm:?}: {queue} in a queue"
        );
    }
}

#[test]
fn a_rolling_replacement_follows_the_curve_and_loses_nothing() {
    for seed in 1..3 {
        let policy = warmed(10);
        let warmup = policy.load_balancer.warmup.clone();
        let mut world = world(policy, seed);
        replace_all(&mut world, 1.0);
        world.run(60);
        assert_eq!(world.lost, 0);
        assert_eq!(world.panics, 0);
        let queue = world.longest_queue(0..60);
        assert!(queue <= 12, "{queue} in a queue");
        // What each should have got, by the second, if shares are what is divided by.
        let share = |server: usize, second: usize| {
            let since = world.servers[server].ready_since.map(|since| since as i64);
            let endpoint = Endpoint { ready_since_nanos: since, ..Endpoint::new(address_of(server)) };
            let now = S + second as u64 * S + S / 2;
            let step = server % SERVERS;
            let there = if server < SERVERS { second < 5 + 2 * step } else { second >= 5 + 2 * step };
            if there { warmup::factor(warmup.as_ref(), &endpoint, now) } else { 0.0 }
        };
        let mut all = (0.0, 0.0);
        for server in SERVERS..2 * SERVERS {
            let begins = 5 + 2 * (server - SERVERS);
            let mut due = 0.0;
            for second in begins..begins + 10 {
                let shares: f64 = (0..2 * SERVERS).map(|server| share(server, second)).sum();
                due += share(server, second) / shares * 1000.0;
            }
            let got = world.total(server, begins..begins + 10);
            assert!((0.6..1.4).contains(&(got / due)), "{server} got {got}, not {due}");
            all = (all.0 + got, all.1 + due);
        }
        assert!((0.9..1.05).contains(&(all.0 / all.1)), "together {all:?}");
        // Nobody is forgotten: warm or warming, each second of it.
        for server in 0..2 * SERVERS {
            for second in (0..60).filter(|second| share(server, *second) > 0.5) {
                assert!(world.total(server, second..second + 1) >= 10.0, "{server} in second {second}");
            }
        }
    }
}

/// Servers that need ten times as long at first, and a curve that is much too short for that: with nothing but the curve
/// 150 requests wait in front of one, and then it is shunned for seconds.
#[test]
fn what_is_colder_than_its_curve_is_not_buried() {
    let mut world = world(warmed(10), 3);
    replace_all(&mut world, 9.0);
    world.run(90);
    assert_eq!(world.lost, 0);
    let queue = world.longest_queue(0..90);
    assert!(queue <= 30, "{queue} in a queue");
    for server in SERVERS..2 * SERVERS {
        let part = world.total(server, 85..90) / (5.0 * FAIR);
        assert!((0.5..1.7).contains(&part), "{server} gets {part} of what is fair in the end");
    }
}

#[test]
fn one_that_joins_takes_from_the_others_no_more_than_its_share() {
    let mut world = world(warmed(20), 4);
    world.at(5, |world| {
        world.change(|servers, now| servers.push(Server { cold: 1.0, ready_since: Some(now), ..server() }));
    });
    world.run(35);
    for (seconds, share) in
        [(6..9, 0.125), (9..12, 0.275), (12..16, 0.45), (16..20, 0.65), (20..25, 0.875), (30..35, 1.0)]
    {
        let length = seconds.len() as f64;
        let (got, due) = (world.total(SERVERS, seconds.clone()) / length, 1000.0 * share / (20.0 + share));
        // Within four standard deviations of what comes at random.
        assert!(
            (got - due).abs() <= 4.0 * (due / length).sqrt(),
            "{got} a second, not {due}, in {seconds:?}"
        );
        for other in 0..SERVERS {
            let part = world.total(other, seconds.clone()) / length / FAIR;
            assert!((0.7..1.3).contains(&part), "{other} gets {part} in {seconds:?}");
        }
    }
    assert!(world.longest_queue(0..35) <= 8);
}

#[test]
fn a_slow_server_is_spared_and_comes_back() {
    for (algorithm, most) in [(Algorithm::LeastTime, 0.15), (Algorithm::LeastRequest, 0.5)] {
        let mut world = world(balanced(algorithm), 5);
        world.at(5, |world| world.servers[3].service *= 10);
        world.at(20, |world| world.servers[3].service /= 10);
        world.run(50);
        let part = world.total(3, 8..20) / (12.0 * FAIR);
        assert!(part <= most, "{algorithm:?}: {part} of what is fair while it is slow");
        for other in (0..SERVERS).filter(|server| *server != 3) {
            let part = world.total(other, 5..50) / (45.0 * FAIR);
            assert!((0.9..1.2).contains(&part), "{algorithm:?}: {other} gets {part}");
        }
        let after = world.total(3, 40..50) / (10.0 * FAIR);
        assert!(after >= 0.5, "{algorithm:?}: {after} of what is fair when it is not slow any more");
        // Each of five agents knows of its own requests only.
        let queue = world.longest_queue(0..50);
        assert!(queue <= 24, "{algorithm:?}: {queue} in a queue");
    }
}

#[test]
fn a_failing_server_is_ejected_by_each_agent_and_nobody_else_is() {
    let mut world = world(ejecting(), 6);
    world.at(5, |world| world.set_mood(3, Mood::Fails));
    world.at(25, |world| world.set_mood(3, Mood::Serves));
    world.run(60);
    // Of the same number each: five errors for an ejection of 5, 10, 15 s; and what was under way.
    assert!((10..=20).contains(&world.ejections), "{} ejections", world.ejections);
    let errors: u32 = world.seconds.iter().map(|second| second.errors).sum();
    assert!(errors <= world.ejections * 5 + 20, "{errors} errors");
    assert_eq!(world.panics, 0);
    for other in (0..SERVERS).filter(|server| *server != 3) {
        let part = world.total(other, 6..25) / (19.0 * FAIR);
        assert!((0.9..1.2).contains(&part), "{other} gets {part}");
    }
    let after = world.total(3, 50..60) / (10.0 * FAIR);
    assert!((0.8..1.2).contains(&after), "{after} of what is fair when it fails no more");
}

#[test]
fn when_all_fail_half_of_them_go_on() {
    let policy = ejecting();
    let config = policy.outlier_detection.clone();
    let mut world = world(policy, 7);
    world.at(5, |world| (0..SERVERS).for_each(|server| world.set_mood(server, Mood::Fails)));
    world.at(15, |world| (0..SERVERS).for_each(|server| world.set_mood(server, Mood::Serves)));
    for second in 0..30 {
        let config = config.clone();
        world.at(second, move |world| {
            for agent in &world.agents {
                let out = agent
                    .subset
                    .iter()
                    .filter(|e| outlier::is_ejected(config.as_ref(), e, world.now))
                    .count();
                assert!(out <= SERVERS / 2, "{out} are out");
            }
        });
    }
    world.run(60);
    assert_eq!(world.panics, 0, "half of them are enough");
    assert!(world.ejections >= 5 * 10);
    let most = (0..SERVERS).map(|server| world.total(server, 5..15)).fold(0.0, f64::max);
    assert!(most <= 10.0 * FAIR * 2.5, "who is left bears {most}");
    for server in 0..SERVERS {
        let part = world.total(server, 50..60) / (10.0 * FAIR);
        assert!((0.8..1.2).contains(&part), "{server} gets {part} in the end");
    }
}
