//! An agent's side of one limit: when it calls the store, what it says, and what follows for the limit's bucket. Without
//! sockets and clocks.
//!
//! An agent that is asked for requests renews what it holds every period, before it has used it up; one that is not, about
//! once a second. So no request waits for the store: it finds what is held, or is rejected. What an agent holds and does
//! not use goes back with the next call, and what a silent one held is forgotten after a few periods.

use super::ledger::{Call, Reply, Standing};
use crate::govern::{
    policy::RateLimit,
    throttle::{Share, Tally},
};

const SECOND: u64 = 1_000_000_000;
/// How often an agent calls that is not asked for requests.
const IDLE: u64 = SECOND;
/// How long it counts as busy after the last one.
const BUSY: u64 = 2 * SECOND;
/// Calls are not closer together.
const CLOSEST: u64 = SECOND / 50;
/// Over what time demand is averaged, in seconds: over two requests of the limit, so that who asks for more than a limit of a request a
/// minute is not forgotten before the next one is due; but not for longer than it takes until a load that moves from one agent to
/// another should have taken its share along.
const AVERAGED: std::ops::RangeInclusive<f64> = 0.2..=30.0;
/// Of what it holds, when it calls before its time.
const LOW: f64 = 0.25;
/// After an absence of the store that was no longer, what was taken meanwhile is counted as all else: the store may still know
/// what it had given, and has regained no more than was taken.
const SHORT: u64 = SECOND;
/// For so long the store has to answer without a break before a part is believed that is larger than the one before the break.
/// Until then others may not be back that share the limit.
const SETTLED: u64 = 10 * SECOND;
/// How long it waits after the store has refused to answer about this limit.
const REFUSED: u64 = SECOND;

/// How much of a limit an agent holds, and since when.
#[derive(Debug)]
pub(super) struct Holder {
    reply: Option<Reply>,
    /// When it last called, and what had been asked then.
    called: Option<(u64, u64)>,
    /// When it last saw that it was asked.
    busy: Option<u64>,
    /// When the next call is due, as a part of the period: not the same for all agents, so that none is always the last.
    stagger: f64,
    /// Requests a second.
    demand: f64,
    /// What was taken without a lease, and is no business of the store.
    alone: u64,
    /// It is without a lease.
    without: Option<Without>,
    /// Since when the store has answered without a break.
    answers_since: Option<u64>,
    /// Its part of the limit, should the store be away.
    part: Option<f64>,
    /// An even part, of a limit about which the store has never answered.
    even: Option<f64>,
    /// The store answers, but not about this limit.
    refused: bool,
}

/// Since when it is without a lease, and what had been taken then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Without {
    since: u64,
    taken: u64,
}

impl Default for Holder {
    fn default() -> Self {
        Self {
            reply: None,
            called: None,
            busy: None,
            stagger: 1.0,
            demand: 0.0,
            alone: 0,
            without: Some(Without { since: 0, taken: 0 }),
            answers_since: None,
            part: None,
            even: None,
            refused: false,
        }
    }
}

impl Holder {
    /// Whether it is time to call the store.
    pub(super) fn is_due(&mut self, tally: &Tally, now: u64) -> bool {
        let Some((at, asked)) = self.called else { return true };
        let since = now.saturating_sub(at);
        if tally.asked != asked {
            self.busy = Some(now);
        }
        if since < if self.refused { REFUSED } else { CLOSEST } {
            return false;
        }
        let Some(reply) = self.reply else { return true };
        let period = if self.is_idle(now) { IDLE } else { (reply.period * SECOND as f64) as u64 };
        if since as f64 >= period as f64 * self.stagger {
            return true;
        }
        // Nothing is gained by it where everybody is short.
        !reply.short && tally.asked != asked && tally.left < (reply.held * LOW).max(1.0)
    }

    /// What it says. `lot`: a random number below 1.
    pub(super) fn call(&mut self, limit: &RateLimit, tally: &Tally, lot: f64, now: u64) -> Call {
        if let Some((at, asked)) = self.called {
            let elapsed = now.saturating_sub(at) as f64 / SECOND as f64;
            let new = tally.asked.wrapping_sub(asked) as f64 / elapsed.max(1e-3);
            let averaged = (2.0 / limit.rate()).clamp(*AVERAGED.start(), *AVERAGED.end());
            let weight = 1.0 - (-elapsed / averaged).exp();
            self.demand += (new - self.demand) * weight;
            if self.demand < 1e-3 {
                self.demand = 0.0;
            }
        }
        self.called = Some((now, tally.asked));
        self.stagger = 0.8 + 0.4 * lot;
        // What was taken in a long absence was never the store's to give.
        if let Some(without) = self.without
            && !self.is_short(without, now)
        {
            self.alone = self.alone.wrapping_add(tally.taken.wrapping_sub(without.taken));
            self.without = Some(Without { taken: tally.taken, ..without });
        }
        Call {
            rate: limit.rate(),
            burst: limit.burst,
            used: tally.taken.wrapping_sub(self.alone),
            demand: self.demand,
            standing: match self.without {
                _ if self.reply.is_none() => Standing::New,
                Some(without) if !self.is_short(without, now) => Standing::Away,
                _ => Standing::Known,
            },
            idle: self.is_idle(now),
        }
    }

    /// The store has answered the call that said that so much was used.
    pub(super) fn answered(&mut self, reply: Reply, used: u64, now: u64) -> Share {
        let settled = *self.answers_since.get_or_insert(now);
        let is_settled = now.saturating_sub(settled) >= SETTLED;
        self.part = Some(match self.part {
            Some(before) if !is_settled => before.min(reply.part),
            _ => reply.part,
        });
        self.without = None;
        self.refused = false;
        self.reply = Some(reply);
        Share::Lease { held: reply.held, taken: used.wrapping_add(self.alone), rate: reply.rate }
    }

    /// The store is away: what goes on is its last share, or an even one of so many agents, if the store has answered about other
    /// limits only. `None`: it has none.
    pub(super) fn lost(&mut self, tally: &Tally, agents: Option<u64>, now: u64) -> Option<Share> {
        self.without.get_or_insert(Without { since: now, taken: tally.taken });
        self.answers_since = None;
        if self.reply.is_none() {
            self.even = agents.map(|agents| 1.0 / agents.max(1) as f64);
        }
        self.part.or(self.even).map(Share::Part)
    }

    /// The store is there, but does not answer about this limit.
    pub(super) fn refused(&mut self, tally: &Tally, agents: Option<u64>, now: u64) -> Option<Share> {
        self.refused = true;
        self.lost(tally, agents, now)
    }

    /// Whether what it holds is leased.
    pub(super) fn is_leased(&self) -> bool {
        self.without.is_none()
    }

    /// Whether it has a share to go on with.
    pub(super) fn has_share(&self) -> bool {
        self.reply.is_some() || self.even.is_some()
    }

    fn is_short(&self, without: Without, now: u64) -> bool {
        self.reply.is_some() && now.saturating_sub(without.since) <= SHORT
    }

    fn is_idle(&self, now: u64) -> bool {
        self.busy.is_none_or(|busy| now.saturating_sub(busy) > BUSY)
    }
}
