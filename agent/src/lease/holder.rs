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
/// Over what time demand is averaged, in seconds: so that a load that moves from one agent to another takes its share along.
const AVERAGED: f64 = 0.2;
/// Of what it holds, when it calls before its time.
const LOW: f64 = 0.25;

/// How much of a limit an agent holds, and since when.
#[derive(Debug)]
pub(super) struct Holder {
    standing: Standing,
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
    /// What had been taken when it began to be alone.
    left: Option<u64>,
}

impl Default for Holder {
    fn default() -> Self {
        Self {
            standing: Standing::New,
            reply: None,
            called: None,
            busy: None,
            stagger: 1.0,
            demand: 0.0,
            alone: 0,
            left: Some(0),
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
        if since < CLOSEST {
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
            let weight = 1.0 - (-elapsed / AVERAGED).exp();
            self.demand += (new - self.demand) * weight;
            if self.demand < 1e-3 {
                self.demand = 0.0;
            }
        }
        self.called = Some((now, tally.asked));
        self.stagger = 0.8 + 0.4 * lot;
        Call {
            rate: limit.rate(),
            burst: limit.burst,
            used: self.used(tally),
            demand: self.demand,
            standing: self.standing,
            idle: self.is_idle(now),
        }
    }

    /// The store has answered the call that said that so much was used.
    pub(super) fn answered(&mut self, reply: Reply, used: u64, tally: &Tally) -> Share {
        // From the next request on, what is taken is taken from the lease.
        if let Some(left) = self.left.take() {
            self.alone = self.alone.wrapping_add(tally.taken.wrapping_sub(left));
        }
        self.standing = Standing::Known;
        self.reply = Some(reply);
        Share::Lease { held: reply.held, taken: used.wrapping_add(self.alone), rate: reply.rate }
    }

    /// The store is away: what goes on is its last share. `None`: it has none.
    pub(super) fn lost(&mut self, tally: &Tally) -> Option<Share> {
        if self.left.is_none() {
            self.left = Some(tally.taken);
            self.standing = Standing::Away;
        }
        Some(Share::Part(self.reply?.part))
    }

    /// Whether what it holds is leased.
    pub(super) fn is_leased(&self) -> bool {
        self.left.is_none()
    }

    /// Whether it has ever been given a share.
    pub(super) fn has_share(&self) -> bool {
        self.reply.is_some()
    }

    fn used(&self, tally: &Tally) -> u64 {
        self.left.unwrap_or(tally.taken).wrapping_sub(self.alone)
    }

    fn is_idle(&self, now: u64) -> bool {
        self.busy.is_none_or(|busy| now.saturating_sub(busy) > BUSY)
    }
}
