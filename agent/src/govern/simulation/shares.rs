//! Who gets what of the default balancing: equals get the same, one that is slow, fails, hangs or sheds gets less, and whoever
//! recovers is asked again. With one agent and with many, with few requests and with many, waiting for each other or not.

use super::*;
use crate::govern::policy::WarmUp;

/// Who calls: so many agents with so many callers in all, who send so many requests a second.
#[derive(Clone, Copy, Debug)]
struct Who {
    agents: usize,
    /// Callers.
    pods: usize,
    rate: f64,
    sequential: bool,
}

const fn callers(agents: usize, pods: usize, rate: f64) -> Who {
    Who { agents, pods, rate, sequential: false }
}

fn world(who: Who, servers: Vec<Server>, seed: u64) -> World {
    patient(who, servers, None, Policy::default(), seed)
}

fn patient(who: Who, servers: Vec<Server>, patience: Option<u64>, policy: Policy, seed: u64) -> World {
    let plan = Plan {
        agents: who.agents,
        callers: who.pods,
        requests_per_second: who.rate,
        sequential: who.sequential,
        patience,
        policy,
        lag: 100 * MS,
        seed,
    };
    World::new(plan, servers)
}

/// The least and the largest part of its fair share that any server got in any of these spans of so many seconds.
fn extremes(world: &World, seconds: Range<usize>, span: usize) -> (f64, f64) {
    let (mut least, mut most) = (f64::MAX, 0.0_f64);
    for from in seconds.step_by(span) {
        let got: Vec<_> =
            (0..world.servers.len()).map(|server| world.total(server, from..from + span)).collect();
        let fair = got.iter().sum::<f64>() / got.len() as f64;
        for part in got.iter().map(|got| got / fair) {
            (least, most) = (least.min(part), most.max(part));
        }
    }
    (least, most)
}

/// The part of all requests that a server got.
fn part(world: &World, server: usize, seconds: Range<usize>) -> f64 {
    let all: f64 = (0..world.servers.len()).map(|server| world.total(server, seconds.clone())).sum();
    world.total(server, seconds) / all
}

/// 0.3 ms: hardly ever two requests at once. 60 ms: always some tens.
const QUICK: u64 = MS * 3 / 10;
const LONG: u64 = 60 * MS;

#[test]
fn equals_get_the_same_in_every_second() {
    let kinds = [
        (QUICK, Mix::Even),
        (QUICK, Mix::Exponential),
        (LONG, Mix::Exponential),
        // Now and then one takes a thousand times as long, or three thousand.
        (QUICK, Mix::Rarely { one_in: 100, takes: 300 * MS }),
        (QUICK, Mix::Rarely { one_in: 1000, takes: S }),
        // One in ten needs 500 ms, the others one; or half of them.
        (MS, Mix::Rarely { one_in: 10, takes: 500 * MS }),
        (MS, Mix::Rarely { one_in: 2, takes: 500 * MS }),
    ];
    for (service, mix) in kinds {
        for (who, seed) in
            [callers(1, 1, 300.0), callers(1, 40, 200.0), callers(10, 40, 200.0), callers(30, 60, 300.0)]
                .into_iter()
                .zip(1..)
        {
            for (servers, bounds) in [(2, 0.8..1.2), (4, 0.5..1.5), (10, 0.4..2.0)] {
                // Half of the answers come half a second later: who has got many such ones is taken to be busy meanwhile.
                let late = matches!(mix, Mix::Rarely { one_in: 2, .. });
                let bounds = if late { bounds.start - 0.4..bounds.end + 0.4 } else { bounds };
                let server = Server { mix, ..Server::new(200, service) };
                let mut world = world(who, vec![server; servers], seed);
                world.run(22);
                let (least, most) = extremes(&world, 2..22, 1);
                assert!(
                    bounds.contains(&least) && bounds.contains(&most),
                    "{servers} servers with {service} ns, {mix:?}, {who:?}: {least} to {most}"
                );
            }
        }
    }
}

/// What disturbs a process for a moment (a garbage collection, a neighbour on its core) disturbs all requests of that moment:
/// one may take up to five times as long as the other for half a second, and the other in the next. What was learnt of one moment
/// alone would give 14 % and then 83 %.
#[test]
fn equals_that_waver_share_every_second() {
    for service in [QUICK, 5 * MS] {
        for (who, seed) in
            [callers(1, 1, 200.0), callers(1, 10, 1000.0), callers(10, 40, 400.0)].into_iter().zip(1..)
        {
            let server = Server { wavers: 0.8, ..Server::new(200, service) };
            let mut world = world(who, vec![server; 2], seed);
            world.run(42);
            let (least, most) = extremes(&world, 2..42, 1);
            assert!(least > 0.6 && most < 1.4, "{service} ns, {who:?}: {least} to {most}");
        }
    }
}

#[test]
fn equals_get_the_same_of_callers_that_wait_for_their_answers() {
    for (callers, seed) in [1, 2, 10, 50].into_iter().zip(1..) {
        for agents in [1, callers] {
            let who = Who { agents, pods: callers, rate: 1e6, sequential: true };
            // With two threads each, so that many have to queue.
            let server = Server { mix: Mix::Exponential, ..Server::new(2, 5 * MS) };
            let mut world = world(who, vec![server; 2], seed);
            world.run(30);
            let (least, most) = extremes(&world, 2..30, 1);
            assert!(least > 0.8 && most < 1.2, "{callers} callers of {agents} agents: {least} to {most}");
        }
    }
}

/// Of a hundred agents each sends two requests a second, and knows next to nothing.
#[test]
fn many_agents_with_few_requests_each_spread_them() {
    for mix in [Mix::Even, Mix::Exponential] {
        let server = Server { mix, ..Server::new(200, LONG) };
        let mut world = world(callers(100, 100, 200.0), vec![server; 4], 3);
        world.run(60);
        let (least, most) = extremes(&world, 0..60, 5);
        assert!(least > 0.8 && most < 1.2, "{least} to {most}");
    }
}

#[test]
fn one_that_takes_three_times_as_long_gets_at_most_a_quarter_and_comes_back() {
    for (who, seed) in
        [callers(1, 10, 10.0), callers(1, 10, 100.0), callers(1, 40, 1000.0), callers(20, 40, 200.0)]
            .into_iter()
            .zip(1..)
    {
        for (servers, most) in [(2, 0.25), (4, 0.12)] {
            for mix in [Mix::Even, Mix::Exponential] {
                let server = Server { mix, ..Server::new(200, 10 * MS) };
                let mut world = world(who, vec![server; servers], seed);
                world.at(20, |world| world.servers[0].service *= 3);
                world.at(60, |world| world.servers[0].service /= 3);
                world.run(125);
                let slow = part(&world, 0, 35..60);
                // The fewer requests an endpoint gets, the less is certain: one a second tells nothing.
                let each = who.rate / (who.agents * servers) as f64;
                let few = each <= 5.0;
                let allowed =
                    if each > 5.0 || servers == 2 && mix == Mix::Even { most } else { 1.2 / servers as f64 };
                assert!(slow <= allowed, "{slow} of {servers}, {mix:?}, {who:?}");
                assert!(slow > 0.0 || few, "it is forgotten: {servers}, {mix:?}, {who:?}");
                let seconds = if who.rate >= 100.0 { 70..90 } else { 90..125 };
                let back = part(&world, 0, seconds) * servers as f64;
                assert!((0.7..1.3).contains(&back), "{back} of a share of {servers}, {mix:?}, {who:?}");
            }
        }
    }
}

#[test]
fn one_that_fails_at_once_gets_less_than_its_share_of_few_requests_and_comes_back() {
    fails_at_once(callers(1, 10, 10.0), 1);
    fails_at_once(callers(1, 10, 300.0), 2);
}

#[test]
fn one_that_fails_at_once_gets_less_than_its_share_of_many_agents_and_comes_back() {
    fails_at_once(callers(20, 40, 200.0), 3);
}

#[test]
fn one_that_fails_at_once_gets_less_than_its_share_of_many_requests_and_comes_back() {
    fails_at_once(callers(1, 200, 3000.0), 4);
}

fn fails_at_once(who: Who, seed: u64) {
    for servers in [2, 3] {
        // One that answers at once, and all are idle; or many wait for the others.
        for service in [QUICK, LONG] {
            for mood in [Mood::Fails, Mood::Sheds(None), Mood::Sheds(Some(2 * S))] {
                let mut world = world(who, vec![Server::new(200, service); servers], seed);
                world.at(10, move |world| world.set_mood(0, mood));
                world.at(40, |world| world.set_mood(0, Mood::Serves));
                world.run(80);
                let got = part(&world, 0, 12..40) * servers as f64;
                let few = who.rate / who.agents as f64 <= 10.0;
                let most = if few { 0.3 } else { 0.05 };
                assert!(got <= most, "{got} of its share: {mood:?}, {servers}, {service} ns, {who:?}");
                assert!(world.total(0, 12..40) > 0.0, "it is asked, by a few");
                let (least, most) = extremes(&world, 60..80, 10);
                assert!(least > 0.7 && most < 1.3, "{least} to {most}: {mood:?}, {servers}, {who:?}");
            }
        }
    }
}

#[test]
fn one_that_asks_to_be_spared_is() {
    let mut world = world(callers(1, 10, 300.0), vec![Server::new(200, MS); 2], 1);
    world.at(10, |world| world.set_mood(0, Mood::Sheds(Some(5 * S))));
    world.run(40);
    // Twice at first, then once or twice in five seconds.
    let asked = world.total(0, 11..40);
    assert!(asked <= 25.0, "{asked} in 29 s");
}

/// Each request of a caller after the answer to the one before.
fn one_after_the_other(pods: usize, rate: f64) -> Who {
    Who { agents: 1, pods, rate, sequential: true }
}

#[test]
fn one_that_hangs_gets_a_trickle_of_one_after_the_other() {
    for service in [QUICK, LONG] {
        hangs(one_after_the_other(1, 1e6), Some(S), 1, service);
        hangs(one_after_the_other(1, 10.0), Some(S), 2, service);
    }
}

#[test]
fn one_that_hangs_gets_a_trickle_of_many_one_after_the_other() {
    hangs(one_after_the_other(20, 1e6), Some(S), 3, QUICK);
}

#[test]
fn one_that_hangs_gets_a_trickle_of_many_long_ones_after_the_other() {
    hangs(one_after_the_other(20, 1e6), Some(S), 3, LONG);
}

#[test]
fn one_that_hangs_gets_a_trickle_of_the_patient_and_of_the_impatient() {
    for service in [QUICK, LONG] {
        hangs(callers(1, 40, 300.0), Some(S), 4, service);
        hangs(callers(1, 40, 300.0), None, 5, service);
        hangs(callers(20, 40, 200.0), Some(S), 6, service);
    }
}

/// With callers who wait for so long, or for ever.
fn hangs(who: Who, patience: Option<u64>, seed: u64, service: u64) {
    let mut world = patient(who, vec![Server::new(200, service); 2], patience, Policy::default(), seed);
    world.at(10, |world| world.set_mood(0, Mood::Hangs));
    world.at(70, |world| world.set_mood(0, Mood::Serves));
    world.run(100);
    let got = part(&world, 0, 12..70);
    let few = who.rate / who.agents as f64 <= 10.0;
    assert!(got <= if few { 0.12 } else { 0.04 }, "{got} of all: {service} ns, {who:?}, {patience:?}");
    let back = part(&world, 0, 85..100);
    assert!((0.4..0.6).contains(&back), "{back} of all afterwards: {service} ns, {who:?}");
}

#[test]
fn nobody_herds_to_one_that_is_new_or_has_recovered() {
    for (agents, seed) in [(1, 1), (30, 2)] {
        let mut world = world(callers(agents, 60, 600.0), vec![Server::new(4, 5 * MS); 5], seed);
        world.at(10, |world| {
            world.change(|servers, now| {
                servers.push(Server { ready_since: Some(now), ..Server::new(4, 5 * MS) });
            });
        });
        world.at(20, |world| world.set_mood(0, Mood::Fails));
        world.at(30, |world| world.set_mood(0, Mood::Serves));
        world.run(50);
        for (server, seconds) in [(5, 10..20), (0, 30..50)] {
            for second in seconds {
                let part = part(&world, server, second..second + 1) * 6.0;
                assert!(part < 1.6, "{server} gets {part} of its share in second {second}, {agents} agents");
            }
        }
        assert!(world.longest_queue(0..50) <= 12, "{agents} agents: {}", world.longest_queue(0..50));
    }
}

/// The first thing that anybody sees who tries warm-up.
#[test]
fn there_is_no_step_at_the_end_of_the_curve() {
    for (service, old) in [(QUICK, QUICK), (5 * MS, 5 * MS), (15 * MS, 5 * MS)] {
        let mut policy = Policy::default();
        policy.load_balancer.warmup =
            Some(WarmUp { duration: std::time::Duration::from_secs(20), ..WarmUp::default() });
        let mut world = patient(callers(1, 10, 300.0), vec![Server::new(200, old)], None, policy, 1);
        world.at(5, move |world| {
            world.change(move |servers, now| {
                servers.push(Server { ready_since: Some(now), ..Server::new(200, service) });
            });
        });
        world.run(45);
        let parts: Vec<_> = (15..44).map(|second| part(&world, 1, second..second + 1)).collect();
        for pair in parts.windows(2) {
            assert!((pair[1] - pair[0]).abs() < 0.17, "{parts:?}");
        }
        let (before, after) = (part(&world, 1, 22..25), part(&world, 1, 26..29));
        assert!((after - before).abs() < 0.1, "{before} before the end of the curve, {after} after it");
    }
}
