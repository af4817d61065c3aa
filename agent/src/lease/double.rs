//! The double of the script that the store runs (`script.lua`), on which simulations run.

use std::collections::BTreeMap;

use super::ledger::{Call, Reply, Standing};

/// One limit in the store: the double of the script.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// What nobody holds, and when that was.
    pot: Option<(f64, f64)>,
    agents: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    held: f64,
    used: u64,
    demand: f64,
    until: f64,
    called: f64,
    credit: f64,
}

impl Ledger {
    /// Renews what an agent holds. `now` in seconds.
    pub(super) fn renew(&mut self, id: &str, call: &Call, now: f64) -> Reply {
        let Call { rate, burst, used, demand, .. } = *call;
        let own = self.agents.remove(id);
        self.agents.retain(|_, entry| entry.until >= now);
        let count = 1.0 + self.agents.len() as f64;
        let others_held: f64 = self.agents.values().map(|entry| entry.held).sum();
        let all_demand = demand + self.agents.values().map(|entry| entry.demand).sum::<f64>();
        let period = (count / 100.0).clamp(0.1, 1.0);
        let most = burst.max(2.0 * rate * period).max(1.0);
        let mut pot = match self.pot {
            None if call.standing == Standing::New => most,
            None => 0.0,
            Some((pot, at)) => pot + rate * (now - at).max(0.0),
        };
        let (mut left, mut since) = (0.0, period);
        match (call.standing, own) {
            (Standing::Known, Some(own)) => {
                left = own.held - (used as f64 - own.used as f64);
                since = (now - own.called).max(0.0).min(2.0 * period);
            }
            (Standing::Away, _) => pot = pot.min(rate * period),
            _ => {}
        }
        if left < 0.0 {
            pot += left;
            left = 0.0;
        }
        pot = pot.min(most + 2.0 * rate * period - others_held - left).max(-most - count);
        let (want, held, credit);
        if all_demand > rate {
            let share = demand / all_demand;
            let usual = (rate * period).max(1.0);
            let before = own.map_or(0.0, |own| own.credit);
            let grown = before + share * (rate * since + (pot - usual).max(0.0) / 2.0);
            want = if demand > 0.0 {
                (1.0 + 2.0 * share * pot.max(usual)).ceil()
            } else {
                f64::from(u8::from(most >= 2.0 * count))
            };
            let kept = want.min(left.floor());
            let most_more = (pot + left - kept).floor().min(want - kept);
            let more = if grown > 0.0 { grown.ceil().min(most_more).max(0.0) } else { 0.0 };
            held = kept + more;
            credit = (grown - more).min(want);
        } else {
            let share = (demand + rate / 10.0 / count) / (all_demand + rate / 10.0);
            let spread = if count < 2.0 { 1.0 } else { 1.0 / (2.0 * (count - 1.0)) };
            want = (2.0 * demand * period).max(most * spread).max(1.0);
            let there = (pot + left).max(0.0);
            held = match want.min(there * share).ceil().min(there.floor()) {
                held if held < 1.0 && pot + left + others_held >= 1.0 => 1.0,
                held => held,
            };
            credit = 0.0;
        }
        self.pot = Some((pot + left - held, now));
        let even = 1.0 / count;
        let part = if all_demand > 0.0 { f64::midpoint(demand / all_demand, even) } else { even };
        let lifetime = if call.idle { 3.5 } else { (5.0 * period).max(2.0) };
        self.agents
            .insert(id.to_owned(), Entry { held, used, demand, until: now + lifetime, called: now, credit });
        let expected = rate * (demand + rate / 10.0 / count) / (all_demand + rate / 10.0);
        Reply { held, rate: expected, part, period, agents: count as u64, short: want > held }
    }
}

mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn is_near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    fn call(used: u64, demand: f64, standing: Standing) -> Call {
        Call { rate: 100.0, burst: 100.0, used, demand, standing, idle: false }
    }

    #[test]
    fn who_is_alone_has_all_of_it_and_the_second_gets_what_the_first_gives_back() {
        let mut ledger = Ledger::default();
        let first = ledger.renew("a", &call(0, 0.0, Standing::New), 1.0);
        assert_eq!((first.held, first.part, first.agents), (100.0, 1.0, 1));
        let second = ledger.renew("b", &call(0, 0.0, Standing::New), 1.0);
        // A request in any case: nobody asks for more than there is.
        assert_eq!((second.held, second.part, second.agents), (1.0, 0.5, 2));
        let first = ledger.renew("a", &call(0, 0.0, Standing::Known), 1.0);
        assert!((first.held - 49.5).abs() < 1.0, "{first:?}");
    }

    #[test]
    fn what_was_used_is_gone_and_what_was_not_is_given_back() {
        let mut ledger = Ledger::default();
        ledger.renew("a", &call(0, 0.0, Standing::New), 1.0);
        assert!(is_near(ledger.renew("a", &call(30, 50.0, Standing::Known), 1.0).held, 70.0));
        // More than it held, while it waited for the answer: that is missing from now on.
        assert!(is_near(ledger.renew("a", &call(110, 1000.0, Standing::Known), 1.0).held, 0.0));
        let regained = ledger.renew("a", &call(110, 1000.0, Standing::Known), 1.5);
        // Two periods' worth of it, and half of what is in the pot beyond one: 40.
        assert_eq!((regained.held, regained.short), (35.0, true));
    }

    #[test]
    fn a_store_that_was_wiped_gives_no_burst_to_those_who_know_it() {
        for (standing, held) in [(Standing::New, 55.0), (Standing::Known, 0.0), (Standing::Away, 0.0)] {
            assert!(is_near(Ledger::default().renew("a", &call(70, 500.0, standing), 9.0).held, held));
        }
        // Nor is there one for who comes back.
        let mut ledger = Ledger::default();
        ledger.renew("a", &call(0, 0.0, Standing::New), 1.0);
        let back = ledger.renew("a", &call(0, 1000.0, Standing::Away), 60.0);
        assert!(is_near(back.held, 10.0));
    }

    #[test]
    fn who_is_silent_is_forgotten() {
        let mut ledger = Ledger::default();
        ledger.renew("a", &call(0, 100.0, Standing::New), 1.0);
        let idle = Call { idle: true, ..call(0, 0.0, Standing::New) };
        assert_eq!(ledger.renew("b", &idle, 1.5).agents, 2);
        assert_eq!(ledger.renew("c", &idle, 4.0).agents, 2);
        assert_eq!(ledger.renew("c", &call(0, 0.0, Standing::Known), 5.1).agents, 1);
    }

    /// What was asked, by seed: three agents on one limit, whose time goes on by bits and sometimes by much.
    fn calls() -> Vec<(f64, String, Call)> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut used = [0; 4];
        let mut now = 1_700_000_000.0;
        let call = |i: u32| {
            now += if i % 23 == 22 { 4.25 } else { f64::from(random.u32(0..200)) / 1000.0 };
            let agent = random.usize(0..if i < 20 { 1 } else { 4 });
            used[agent] += random.u64(0..12);
            let standing = match random.u32(0..10) {
                0 => Standing::New,
                1 => Standing::Away,
                _ => Standing::Known,
            };
            // The last ones are about a limit of fewer requests than there are agents.
            let (rate, burst) = if i < 120 { (100.0, 60.0) } else { (2.0, 1.0) };
            let call = Call {
                rate,
                burst,
                used: used[agent],
                demand: [0.0, 12.5, 100.0, 640.0][random.usize(0..4)],
                standing,
                idle: random.u32(0..4) == 0,
            };
            (now, format!("agent-{agent}"), call)
        };
        (0..200).map(call).collect()
    }

    #[test]
    fn the_double_says_what_the_store_has_to_say() {
        let mut ledger = Ledger::default();
        let mut text = String::new();
        for (now, id, call) in calls() {
            let reply = ledger.renew(&id, &call, now);
            let Call { rate, burst, used, demand, standing, idle } = call;
            let pace = if idle { "idle" } else { "busy" };
            let standing = standing.as_str();
            write!(text, "{now:.6} {id} {rate} {burst} {used} {demand} {standing} {pace} = ").unwrap();
            let Reply { held, rate, part, period, agents, short } = reply;
            let short = if short { "short" } else { "enough" };
            writeln!(text, "{held:.6} {rate:.6} {part:.6} {period:.6} {agents} {short}").unwrap();
        }
        let known: String = include_str!("calls.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert!(text == known, "calls.txt is to be, below its first lines:\n{text}");
    }
}
