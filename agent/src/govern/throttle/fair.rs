//! Who gets what of a bucket that all callers share.
//!
//! First come, first served would give a bucket to whoever asks most often: a caller that asks ten times as often as
//! the limit allows takes nine out of ten requests from one that asks for less than its share. So each caller that is
//! around has an *account*. What the bucket regains is booked evenly on the accounts that are not full (max-min
//! fairness by water filling, <https://en.wikipedia.org/wiki/Max-min_fairness>), and what is on the accounts of others is
//! held back from a caller whose own account is empty.
//!
//! - The accounts never hold more than the bucket, so a caller that stays below its share is never refused, however much
//!   the others ask for. The bound of the bucket holds as it did.
//! - All accounts but one always fit into the bucket, so it is never full while somebody is refused: no share is lost
//!   because its owner does not use it.
//! - An account holds a whole request if the burst (with the queue's length) is at least the number of callers. Below that
//!   fairness fades, and a burst of 1 has none: there is no room to keep anything for anybody.
//! - A single caller has the bucket to itself, for the price of one comparison.
//!
//! Looking at the accounts costs time in proportion to the callers (pods of one node, so tens), and only when
//! the bucket runs low.

use super::pace::{Pace, Ticks, ticks};

/// How long a caller that does not ask counts, at least.
const AROUND_NANOS: u64 = 1_000_000_000;
/// And at most, however slow the limit is.
const AROUND_AT_MOST_NANOS: u64 = 600_000_000_000;
/// How many of its turns a caller may let pass before it no longer counts.
const TURNS: u64 = 4;
/// More callers of one service than any node has pods. Of more than that, the first to fall silent is forgotten.
const MOST_CALLERS: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    accounts: Vec<Account>,
    /// Up to when what the bucket regained has been booked.
    booked: Ticks,
}

#[derive(Debug)]
struct Account {
    /// A hash of the caller's identity.
    caller: u64,
    held: Ticks,
    asked_nanos: u64,
}

impl Accounts {
    /// What a request of this caller has to leave in the bucket for others; `Err` if that is more than there is: the time
    /// after which its own account is certain to have enough.
    pub(super) fn claim(
        &mut self,
        caller: u64,
        backlog: Ticks,
        cost: Ticks,
        pace: &Pace,
        now_nanos: u64,
    ) -> Result<(), Ticks> {
        self.note(caller, now_nanos);
        if self.accounts.len() == 1 || backlog.saturating_add(self.most_held_by_others(pace)) <= pace.room() {
            // It is alone, or there is enough for all, whatever their accounts say.
            return Ok(());
        }
        self.forget(pace, now_nanos);
        let callers = self.accounts.len() as u128;
        let most = most_held(callers, pace);
        self.book(backlog, most, pace, now_nanos);
        let enough = cost.min(most);
        let own = self.accounts.iter().find(|account| account.caller == caller);
        let held = own.map_or(0, |account| account.held);
        if held >= enough {
            return Ok(());
        }
        let others = self.accounts.iter().map(|account| account.held).fold(0, Ticks::saturating_add);
        if backlog.saturating_add(others - held) <= pace.room() {
            return Ok(());
        }
        Err((enough - held).saturating_mul(callers))
    }

    /// The caller's request has been admitted.
    pub(super) fn pay(&mut self, caller: u64, cost: Ticks) {
        if let Some(account) = self.accounts.iter_mut().find(|account| account.caller == caller) {
            account.held = account.held.saturating_sub(cost);
        }
    }

    /// What a request of this caller took is back in the bucket.
    pub(super) fn give_back(&mut self, caller: u64, cost: Ticks, pace: &Pace) {
        let most = most_held(self.accounts.len() as u128, pace);
        if let Some(account) = self.accounts.iter_mut().find(|account| account.caller == caller) {
            account.held = account.held.saturating_add(cost).min(most);
        }
    }

    /// The rule has changed: accounts start anew, for the same callers.
    pub(super) fn convert(&mut self, now_nanos: u64) {
        self.booked = ticks(now_nanos);
        self.accounts.iter_mut().for_each(|account| account.held = 0);
    }

    /// The caller asks: it has an account from now on.
    fn note(&mut self, caller: u64, now_nanos: u64) {
        if let Some(own) = self.accounts.iter_mut().find(|account| account.caller == caller) {
            own.asked_nanos = now_nanos;
            return;
        }
        let opened = Account { caller, held: 0, asked_nanos: now_nanos };
        if self.accounts.len() < MOST_CALLERS {
            self.accounts.push(opened);
        } else if let Some(silent) = self.accounts.iter_mut().min_by_key(|account| account.asked_nanos) {
            *silent = opened;
        }
    }

    fn most_held_by_others(&self, pace: &Pace) -> Ticks {
        let callers = self.accounts.len() as u128;
        most_held(callers, pace).saturating_mul(callers - 1)
    }

    /// Closes the accounts of callers that have let their turns pass.
    fn forget(&mut self, pace: &Pace, now_nanos: u64) {
        let turn =
            u64::try_from((pace.cost >> 32).saturating_mul(self.accounts.len() as u128)).unwrap_or(u64::MAX);
        let around = turn.saturating_mul(TURNS).clamp(AROUND_NANOS, AROUND_AT_MOST_NANOS);
        self.accounts.retain(|account| now_nanos.saturating_sub(account.asked_nanos) <= around);
    }

    /// Books what the bucket has regained since the last time.
    fn book(&mut self, backlog: Ticks, most: Ticks, pace: &Pace, now_nanos: u64) {
        let now = ticks(now_nanos);
        let regained = now.saturating_sub(self.booked);
        self.booked = self.booked.max(now);
        let mut held: Ticks = 0;
        let mut open: u128 = 0;
        for account in &mut self.accounts {
            account.held = account.held.min(most);
            held = held.saturating_add(account.held);
            open += u128::from(account.held < most);
        }
        // Never more than there is.
        let there = pace.room().saturating_add(pace.cost).saturating_sub(backlog);
        let mut left = regained.min(there.saturating_sub(held));
        while open > 0 && left >= open {
            let share = left / open;
            for account in self.accounts.iter_mut().filter(|account| account.held < most) {
                let booked = share.min(most - account.held);
                account.held += booked;
                left -= booked;
                open -= u128::from(account.held == most);
            }
        }
    }
}

/// What an account holds at most: all of them fit into the bucket, and all but one into the room that a request has to find.
fn most_held(callers: u128, pace: &Pace) -> Ticks {
    let room = pace.room();
    (room.saturating_add(pace.cost) / callers.max(1)).min(room / callers.saturating_sub(1).max(1))
}
