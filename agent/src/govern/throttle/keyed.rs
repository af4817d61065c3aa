//! The buckets of a rule: one, or one for each value of its key.
//!
//! Keys are kept as 128 bits of a hash with random seeds, not as the values that callers send: each costs some 180
//! bytes, however long the value; nobody can choose values that fall together; and a header that holds a secret is
//! not kept in memory.
//!
//! There are at most [`MOST_KEYS`] buckets a rule. One that is full again is as good as a new one, so with each new key some
//! of those go first, the least recently used before the others, and nothing is lost. Only if more keys than that are
//! above their limit at once, buckets go that still count. So that nobody gets a fresh burst by flooding the rule with other
//! keys until his own is forgotten, keys that come while it is so full begin with a single request instead of a burst.
//! A caller that makes up a new key for each request is not limited by a rule with that key: put a rule without a
//! key, or one for each caller, next to it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use lru::LruCache;

use super::{
    fair::Accounts,
    pace::{Bucket, Pace, Taken, Ticks},
    share::{Clock, Tally},
};

/// Buckets of a rule that are kept at once, all shards together.
pub(super) const MOST_KEYS: usize = 1 << 17;
/// So that workers rarely wait for each other.
const SHARDS: usize = 16;
/// Full buckets that go when a new key comes: more than one, so that memory is given back after a flood.
const GIVEN_BACK: usize = 2;

/// The buckets of one rule.
#[derive(Debug)]
pub(super) enum Buckets {
    /// One for all, shared fairly by the callers.
    Shared(Box<Mutex<Shared>>),
    Keyed(Box<[Mutex<Shard>; SHARDS]>),
}

#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) pace: Pace,
    pub(super) bucket: Bucket,
    pub(super) accounts: Accounts,
    /// By what it regains.
    pub(super) clock: Clock,
    pub(super) tally: Tally,
}

/// Some of the keys, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    pace: Pace,
    buckets: LruCache<u128, Bucket, RandomState>,
    most: usize,
}

/// Why a request is refused: the time after which it would be admitted.
pub(super) type Short = Ticks;

impl Buckets {
    pub(super) fn shared(pace: Pace) -> Self {
        let bucket = Bucket::new(&pace);
        let (accounts, clock, tally) = Default::default();
        Self::Shared(Box::new(Mutex::new(Shared { pace, bucket, accounts, clock, tally })))
    }

    pub(super) fn keyed(pace: &Pace) -> Self {
        Self::with_most_keys(pace, MOST_KEYS)
    }

    pub(super) fn with_most_keys(pace: &Pace, most: usize) -> Self {
        let shard = |_| {
            let buckets = LruCache::unbounded_with_hasher(RandomState::new());
            Mutex::new(Shard { pace: pace.clone(), buckets, most: most.div_ceil(SHARDS) })
        };
        Self::Keyed(Box::new(std::array::from_fn(shard)))
    }

    /// Takes a request that waits no longer than `at_most` out of the bucket of this key; a shared one knows callers instead.
    pub(super) fn take(&self, key: u128, at_most: Ticks, now_nanos: u64) -> Result<Taken, Short> {
        match self {
            Self::Shared(shared) => lock(shared).take(key as u64, at_most, now_nanos),
            Self::Keyed(shards) => lock(shard_of(shards, key)).take(key, at_most, now_nanos),
        }
    }

    pub(super) fn give_back(&self, key: u128, taken: &Taken, now_nanos: u64) {
        match self {
            Self::Shared(shared) => {
                let Shared { pace, bucket, accounts, clock, tally } = &mut *lock(shared);
                let now_nanos = clock.now(now_nanos);
                if bucket.give_back(taken, pace, now_nanos) {
                    tally.taken = tally.taken.wrapping_sub(1);
                    accounts.give_back(key as u64, taken.cost, bucket.room(pace, now_nanos));
                }
            }
            Self::Keyed(shards) => {
                let Shard { pace, buckets, .. } = &mut *lock(shard_of(shards, key));
                if let Some(bucket) = buckets.peek_mut(&key) {
                    bucket.give_back(taken, pace, now_nanos);
                }
            }
        }
    }

    /// The rule has changed: every bucket keeps what still makes sense.
    pub(super) fn convert(&self, after: &Pace, now_nanos: u64) {
        match self {
            Self::Shared(shared) => {
                let Shared { pace, bucket, accounts, clock, .. } = &mut *lock(shared);
                if clock.is_leased() {
                    // What it gets from elsewhere will be by the new rule.
                    return;
                }
                let after = Pace { epoch: pace.epoch.wrapping_add(1), ..after.clone() };
                bucket.convert(pace, &after, now_nanos);
                accounts.convert(now_nanos);
                *pace = after;
            }
            Self::Keyed(shards) => {
                for shard in shards.iter() {
                    let Shard { pace, buckets, .. } = &mut *lock(shard);
                    let after = Pace { epoch: pace.epoch.wrapping_add(1), ..after.clone() };
                    buckets.iter_mut().for_each(|(_, bucket)| bucket.convert(pace, &after, now_nanos));
                    *pace = after;
                }
            }
        }
    }

    /// Buckets of which the one for this key is in the same state, and which share nothing with these.
    pub(super) fn copy_of(&self, key: u128, now_nanos: u64) -> Self {
        match self {
            Self::Shared(shared) => Self::Shared(Box::new(Mutex::new(lock(shared).clone()))),
            Self::Keyed(shards) => {
                let shard = lock(shard_of(shards, key)).copy_of(key, now_nanos);
                let copy = |_| Mutex::new(shard.copy_of(key, now_nanos));
                Self::Keyed(Box::new(std::array::from_fn(copy)))
            }
        }
    }

    /// The one that all callers share.
    pub(super) fn as_shared(&self) -> Option<MutexGuard<'_, Shared>> {
        match self {
            Self::Shared(shared) => Some(lock(shared)),
            Self::Keyed(_) => None,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Shared(_) => 1,
            Self::Keyed(shards) => shards.iter().map(|shard| lock(shard).buckets.len()).sum(),
        }
    }
}

impl Shared {
    fn take(&mut self, caller: u64, at_most: Ticks, now_nanos: u64) -> Result<Taken, Short> {
        let Self { pace, bucket, accounts, clock, tally } = self;
        tally.asked = tally.asked.wrapping_add(1);
        let moment = clock.moment(now_nanos);
        let now_nanos = moment.nanos;
        let backlog = bucket.backlog(pace, now_nanos);
        let cost = bucket.cost(pace, now_nanos);
        let short = bucket.short(pace, at_most, now_nanos);
        let claim = accounts.claim(caller, backlog, cost, bucket.room(pace, now_nanos), moment);
        let short = short.max(claim.err().unwrap_or(0));
        if short > 0 {
            bucket.refuse(pace, now_nanos);
            return Err(clock.time_for(short));
        }
        accounts.pay(caller, cost);
        tally.taken = tally.taken.wrapping_add(1);
        Ok(bucket.take(pace, now_nanos))
    }
}

impl Shard {
    /// One that knows this key only, and has room for others if this one has.
    fn copy_of(&self, key: u128, now_nanos: u64) -> Self {
        let Self { pace, buckets, most } = self;
        let mut copied = LruCache::unbounded_with_hasher(RandomState::new());
        if let Some(bucket) = buckets.peek(&key) {
            copied.put(key, bucket.clone());
        }
        // A full one gives back what is as new before it takes another key in.
        let makes_room = || buckets.peek_lru().is_some_and(|(_, bucket)| bucket.is_as_new(pace, now_nanos));
        let most = if buckets.len() < *most || makes_room() { *most } else { 0 };
        Self { pace: pace.clone(), buckets: copied, most }
    }

    fn take(&mut self, key: u128, at_most: Ticks, now_nanos: u64) -> Result<Taken, Short> {
        let Self { pace, buckets, most } = self;
        if let Some(bucket) = buckets.get_mut(&key) {
            return take(bucket, pace, at_most, now_nanos);
        }
        for _ in 0..GIVEN_BACK {
            if !buckets.peek_lru().is_some_and(|(_, bucket)| bucket.is_as_new(pace, now_nanos)) {
                break;
            }
            buckets.pop_lru();
        }
        let mut bucket = Bucket::new(pace);
        if buckets.len() >= *most {
            buckets.pop_lru();
            bucket = Bucket::nearly_empty(pace, now_nanos);
        }
        let taken = take(&mut bucket, pace, at_most, now_nanos);
        buckets.put(key, bucket);
        taken
    }
}

fn take(bucket: &mut Bucket, pace: &Pace, at_most: Ticks, now_nanos: u64) -> Result<Taken, Short> {
    match bucket.short(pace, at_most, now_nanos) {
        0 => Ok(bucket.take(pace, now_nanos)),
        short => {
            bucket.refuse(pace, now_nanos);
            Err(short)
        }
    }
}

fn shard_of(shards: &[Mutex<Shard>; SHARDS], key: u128) -> &Mutex<Shard> {
    &shards[(key >> 64) as usize % SHARDS]
}

/// No panic leaves a bucket half changed: every step is arithmetic that cannot fail.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
