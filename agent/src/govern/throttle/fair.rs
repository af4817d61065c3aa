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
//! - What the accounts of others hold always leaves room for a request when the bucket is full, so nobody is refused
//!   while the bucket overflows, and no share is lost because its owner does not use it.
//! - It takes a burst (or a queue) of at least as many requests as there are callers, so that something can be kept for each.
//!   Below that, it is first come, first served.
//! - A caller that is alone has the bucket to itself, for the price of one comparison; so have all while the bucket is
//!   half full. Below that the accounts are looked at: time in proportion to the callers, pods of one node, so tens.

use super::pace::{Room, Ticks, ticks};

/// How long a caller that does not ask counts, at least.
const AROUND_NANOS: u64 = 1_000_000_000;
/// And at most, however slow the limit is.
const AROUND_AT_MOST_NANOS: u64 = 600_000_000_000;
/// How many of its turns a caller may let pass before it no longer counts.
const TURNS: u64 = 4;
/// More callers of one service than any node has pods. Of more than that, the first to fall silent is forgotten.
const MOST_CALLERS: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Accounts {
    open: Vec<Account>,
    /// Up to when what the bucket regained has been booked.
    booked: Ticks,
    /// There was so much in the bucket then that every account may be taken to be full.
    plenty: bool,
}

#[derive(Clone, Debug)]
struct Account {
    /// A hash of the caller's identity.
    caller: u64,
    held: Ticks,
    asked_nanos: u64,
}

/// When something happens to a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// By the bucket's own clock, as it regains.
    pub(super) nanos: u64,
    /// By that of those who ask.
    pub(super) real_nanos: u64,
    /// In what time of theirs it regains a request; `None`: its clock is theirs.
    pub(super) turn_nanos: Option<u64>,
}

impl From<u64> for Moment {
    fn from(nanos: u64) -> Self {
        Self { nanos, real_nanos: nanos, turn_nanos: None }
    }
}

impl Accounts {
    /// Whether a request of this caller may be taken out of the bucket, as far as others are concerned; `Err`: no, but after
    /// this time its own account is certain to have enough.
    pub(super) fn claim(
        &mut self,
        caller: u64,
        backlog: Ticks,
        cost: Ticks,
        room: Room,
        moment: impl Into<Moment>,
    ) -> Result<(), Ticks> {
        let moment = moment.into();
        let now_nanos = moment.nanos;
        self.note(caller, moment.real_nanos);
        if self.open.len() == 1 {
            return Ok(());
        }
        let all = self.most_held(room).saturating_mul(self.open.len() as u128);
        if backlog.saturating_add(all) <= room.backlog {
            self.plenty = true;
            self.booked = ticks(now_nanos);
            return Ok(());
        }
        self.forget(room, moment);
        let callers = self.open.len() as u128;
        let most = self.most_held(room);
        if callers == 1 || most < room.cost {
            return Ok(());
        }
        self.book(backlog, most, room, now_nanos);
        let own = self.open.iter().find(|account| account.caller == caller).map_or(0, |account| account.held);
        // A cold start can make a request dearer than what fits into an account.
        let enough = cost.min(most);
        let others = self.open.iter().filter(|account| account.caller != caller);
        let kept = others.map(|account| account.held).fold(backlog, Ticks::saturating_add);
        if own >= enough || kept <= room.backlog {
            return Ok(());
        }
        Err((enough - own).saturating_mul(callers))
    }

    /// The caller's request has been admitted: out of its account, or out of what nobody has a share in.
    pub(super) fn pay(&mut self, caller: u64, cost: Ticks) {
        if let Some(account) = self.open.iter_mut().find(|account| account.caller == caller && !self.plenty) {
            account.held = account.held.saturating_sub(cost);
        }
    }

    /// What a request of this caller took is back in the bucket.
    pub(super) fn give_back(&mut self, caller: u64, cost: Ticks, room: Room) {
        let most = self.most_held(room);
        if let Some(account) = self.open.iter_mut().find(|account| account.caller == caller) {
            account.held = account.held.saturating_add(cost).min(most);
        }
    }

    /// The rule has changed: accounts start anew, for the same callers.
    pub(super) fn convert(&mut self, now_nanos: u64) {
        self.booked = ticks(now_nanos);
        self.plenty = false;
        self.open.iter_mut().for_each(|account| account.held = 0);
    }

    /// The caller asks: it has an account from now on.
    fn note(&mut self, caller: u64, now_nanos: u64) {
        if let Some(own) = self.open.iter_mut().find(|account| account.caller == caller) {
            own.asked_nanos = now_nanos;
            return;
        }
        let opened = Account { caller, held: 0, asked_nanos: now_nanos };
        if self.open.len() < MOST_CALLERS {
            self.open.push(opened);
        } else if let Some(silent) = self.open.iter_mut().min_by_key(|account| account.asked_nanos) {
            *silent = opened;
        }
    }

    /// What an account holds at most: all of them half of the bucket, or a whole request each if that is more and
    /// still leaves room for another one when the bucket is full.
    fn most_held(&self, room: Room) -> Ticks {
        let (all, callers) = (room.backlog, self.open.len().max(2) as u128);
        (all / 2 / callers).max(room.cost.min(all / (callers - 1)))
    }

    /// Closes the accounts of callers that have let their turns pass.
    fn forget(&mut self, room: Room, moment: Moment) {
        let now_nanos = moment.real_nanos;
        let turn = moment.turn_nanos.map_or(room.cost >> 32, u128::from);
        let turn = u64::try_from(turn.saturating_mul(self.open.len() as u128)).unwrap_or(u64::MAX);
        let around = turn.saturating_mul(TURNS).clamp(AROUND_NANOS, AROUND_AT_MOST_NANOS);
        self.open.retain(|account| now_nanos.saturating_sub(account.asked_nanos) <= around);
    }

    /// Books what the bucket has regained since the last time.
    fn book(&mut self, backlog: Ticks, most: Ticks, room: Room, now_nanos: u64) {
        let now = ticks(now_nanos);
        let regained = now.saturating_sub(self.booked);
        self.booked = self.booked.max(now);
        let plenty = std::mem::take(&mut self.plenty);
        let mut held: Ticks = 0;
        let mut open: u128 = 0;
        for account in &mut self.open {
            account.held = if plenty { most } else { account.held.min(most) };
            held = held.saturating_add(account.held);
            open += u128::from(account.held < most);
        }
        // Never more than there is.
        let there = room.backlog.saturating_add(room.cost).saturating_sub(backlog);
        let mut left = regained.min(there.saturating_sub(held));
        while open > 0 && left >= open {
            let share = left / open;
            for account in self.open.iter_mut().filter(|account| account.held < most) {
                let booked = share.min(most - account.held);
                account.held += booked;
                left -= booked;
                open -= u128::from(account.held == most);
            }
        }
    }
}

#[cfg(test)]
mod tests;
