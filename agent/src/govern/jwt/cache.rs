//! What was found of tokens before: a client sends the same one with each request, and a signature costs more than the rest of a
//! request does.
//!
//! Tokens are known by their SHA-256 together with the set of keys and the policy that they were checked by, so what was found
//! with keys that have been replaced is never asked again. The time is looked at each time. Of those that are not good the
//! signature's verdict is kept, too, in a place of their own, so that a flood of bad ones costs no good one its place. The least
//! recently used go first, by number and by bytes.

use std::{num::NonZero, sync::Arc};

use lru::LruCache;
use ring::digest::{Context, SHA256};

use super::{Failure, Found, Jwt, Verified, token};

/// Of one worker.
const MOST_GOOD: NonZero<usize> = NonZero::new(4096).unwrap();
const MOST_BAD: NonZero<usize> = NonZero::new(1024).unwrap();
const MOST_BYTES: usize = 8 * 1024 * 1024;

type Id = [u8; 32];

struct Good {
    verified: Arc<Verified>,
    bytes: usize,
}

/// What one worker knows of tokens.
pub struct Cache {
    good: LruCache<Id, Good>,
    bad: LruCache<Id, Failure>,
    bytes: usize,
    /// How often a token was not among them.
    pub checked: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { good: LruCache::new(MOST_GOOD), bad: LruCache::new(MOST_BAD), bytes: 0, checked: 0 }
    }
}

impl Cache {
    /// As [`token::check`]; and keys that are not known are asked for.
    pub fn check(&mut self, jwt: &Jwt, token: &[u8], now: u64) -> Found {
        let id = id_of(jwt, token);
        if let Some(good) = self.good.get(&id) {
            return at(&good.verified, now);
        }
        if let Some(failure) = self.bad.get(&id) {
            return Found::Invalid(*failure);
        }
        self.checked += 1;
        match token::verify(jwt, token, |provider| provider.keys.known().ask()) {
            Ok(Found::Valid(verified)) => {
                let found = at(&verified, now);
                // A map of JSON takes some times what it is written in.
                self.keep(id, Good { verified, bytes: token.len() * 4 + size_of::<(Id, Good)>() });
                found
            }
            Ok(found) => found,
            Err(failure) => {
                // That a key is unknown is to be said each time, and nothing costly was done.
                if failure != Failure::UnknownKey {
                    self.bad.put(id, failure);
                }
                Found::Invalid(failure)
            }
        }
    }

    fn keep(&mut self, id: Id, good: Good) {
        self.bytes += good.bytes;
        if let Some((_, gone)) = self.good.push(id, good) {
            self.bytes -= gone.bytes;
        }
        while self.bytes > MOST_BYTES {
            let Some((_, gone)) = self.good.pop_lru() else { break };
            self.bytes -= gone.bytes;
        }
    }

    pub fn len(&self) -> usize {
        self.good.len()
    }

    pub fn is_empty(&self) -> bool {
        self.good.is_empty()
    }
}

fn at(verified: &Arc<Verified>, now: u64) -> Found {
    match verified.at(now) {
        Ok(()) => Found::Valid(verified.clone()),
        Err(failure) => Found::Invalid(failure),
    }
}

fn id_of(jwt: &Jwt, token: &[u8]) -> Id {
    let mut context = Context::new(&SHA256);
    context.update(&jwt.number.0.to_le_bytes());
    for provider in &jwt.providers {
        // A set is never number 0 and none at once.
        let number = provider.keys.keys().map_or(0, |keys| keys.number.0 + 1);
        context.update(&number.to_le_bytes());
    }
    context.update(token);
    let digest = context.finish();
    let mut id = Id::default();
    id.copy_from_slice(digest.as_ref());
    id
}
