//! The last good answers of a service, to give again when it fails.
//!
//! This is no cache to spare the service work: nothing is answered from here while it answers itself. But it must be as
//! careful as a shared cache (RFC 9111), since it hands one caller's answer to another:
//!
//! - Only whole answers with status 200 to GET and HEAD without a body and without `Range` are kept. Not those with
//!   `Set-Cookie`, `Vary: *` or trailers, nor those whose `Cache-Control` forbids to store them (`no-store`, `private`)
//!   or to give them out when they are stale (`no-cache`, `must-revalidate`, `proxy-revalidate`, `s-maxage`; section
//!   4.2.4). A request with `Cache-Control: no-store` leaves nothing behind either.
//! - An answer is found again only by a request with the same method, authority, path and query, lane, `Authorization`
//!   and `Cookie`, and the same values of all headers that the answer's `Vary` names, or the policy (`varyBy`): services
//!   behind a gateway know their users by headers of their own, which nobody else can know to be that. An answer with a
//!   `Content-Encoding` varies by `Accept-Encoding`, said or not.
//! - Of all that stands in a request nothing is kept but a digest of 128 bits by hash functions with secret keys
//!   (SipHash): there are no credentials to be found in a memory dump.
//!
//! Bounded in age and bytes, per service and for the whole agent ([`Memory`]); least recently used go first. An answer on
//! its way counts against the agent's bound from its first byte, and one that does not fit is not kept.
//!
//! The proxy asks for a [`Key`] when a request comes, starts a [`Collector`] with the answer's head, shows it the body
//! while that streams past, and finishes it with the body's end. A collector that is dropped leaves nothing.

mod head;
mod kept;
mod memory;

use std::{
    hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};

pub use self::memory::Memory;
use self::{
    head::Head,
    kept::{Kept, Vary},
    memory::Reserved,
};
use crate::govern::{
    policy::{Fallback, FallbackAction, StaleAnswer, StaleBounds},
    request::Request,
    tag::Tag,
};

/// No body above this is kept.
const MAX_BODY: u64 = 1024 * 1024;
/// What an answer takes besides its headers and its body: its places in the maps.
const OVERHEAD: u64 = 512;
/// What a body grows by at least, so that the memory is not asked for each of its pieces.
const STEP: usize = 4 * 1024;

/// An answer that can be given again.
#[derive(Debug)]
pub struct Answer {
    /// The status is 200. Without what was meant for one hop only, and without `content-length` and `age`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Empty if it answered HEAD.
    pub body: Bytes,
    /// The length that the answer to HEAD spoke of.
    pub head_length: Option<u64>,
    /// Its age when it came, from its header `age`.
    age_then: Duration,
    came_at_nanos: u64,
    reserved: Reserved,
}

impl Answer {
    /// What its header `age` must say now.
    pub fn age(&self, now_nanos: u64) -> Duration {
        self.age_then.saturating_add(self.since(now_nanos))
    }

    fn size(&self) -> u64 {
        self.reserved.bytes()
    }

    fn since(&self, now_nanos: u64) -> Duration {
        Duration::from_nanos(now_nanos.saturating_sub(self.came_at_nanos))
    }
}

/// Everything about a request that an answer must not be shared across, but for what `Vary` adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u128);

/// The answers of one service. Shared by all workers; outlives snapshots of the cluster.
#[derive(Debug)]
pub struct Store {
    digests: [RandomState; 2],
    memory: Arc<Memory>,
    kept: Mutex<Kept>,
}

impl Store {
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { digests: [RandomState::new(), RandomState::new()], memory, kept: Mutex::default() }
    }

    /// What is asked of a service's answers by all its fallbacks together: the largest of each bound, and all headers that
    /// tell users apart. `None` if nothing is to be kept.
    pub fn wanted(fallbacks: &[Arc<Fallback>]) -> Option<StaleAnswer> {
        let stale = fallbacks.iter().filter_map(|fallback| match &fallback.action {
            FallbackAction::Stale(wanted) => Some(wanted.clone()),
            FallbackAction::Static(_) => None,
        });
        let mut wanted = stale.reduce(|mut one, other| {
            one.bounds.max_age = one.bounds.max_age.max(other.bounds.max_age);
            one.bounds.max_bytes = one.bounds.max_bytes.max(other.bounds.max_bytes);
            one.vary_by.extend(other.vary_by);
            one
        })?;
        wanted.vary_by.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        wanted.vary_by.dedup();
        Some(wanted)
    }

    /// `None`: no answer to this request can be kept or given again. `lane`: the tag that the request carries onwards.
    /// `vary_by`: the headers that tell users apart.
    pub fn key(
        &self,
        request: &impl Request,
        authority: &[u8],
        lane: Option<&Tag>,
        has_body: bool,
        vary_by: &[HeaderName],
    ) -> Option<Key> {
        let mut no_store = false;
        request.each_header(&header::CACHE_CONTROL, &mut |line| {
            no_store |= head::directives(line).any(|directive| directive.eq_ignore_ascii_case(b"no-store"));
        });
        let method = request.method();
        let fit = matches!(method, b"GET" | b"HEAD")
            && !has_body
            && !no_store
            && request.header(&header::RANGE).is_none();
        fit.then(|| {
            Key(self.digest(|hasher| {
                (method, authority, request.target(), lane.map(Tag::as_str)).hash(hasher);
                hash_header(request, &header::AUTHORIZATION, hasher);
                hash_header(request, &header::COOKIE, hasher);
                for name in vary_by {
                    hash_header(request, name, hasher);
                }
            }))
        })
    }

    /// Begins to keep an answer. `None` if it must not be kept, or does not fit.
    pub fn collect<'a>(
        self: &Arc<Self>,
        key: Key,
        bounds: StaleBounds,
        request: &impl Request,
        status: u16,
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        now_nanos: u64,
    ) -> Option<Collector> {
        if status != 200 {
            return None;
        }
        let head = Head::read(headers)?;
        let head_only = request.method() == b"HEAD";
        let size = head.size() + OVERHEAD;
        let most = bounds.max_bytes.checked_sub(size)?.min(MAX_BODY);
        let length = if head_only { Some(0) } else { head.length };
        if length.is_some_and(|length| length > most) {
            return None;
        }
        let vary = Vary { digest: self.vary_digest(&head.vary, request), names: head.vary };
        let mut collector = Collector {
            store: self.clone(),
            key,
            vary,
            max_bytes: bounds.max_bytes,
            headers: head.headers,
            length: head.length,
            head_only,
            age_then: head.age,
            body: Vec::new(),
            most_body: most,
            size,
            reserved: Reserved::nothing(self.memory.clone()),
            came_at_nanos: now_nanos,
        };
        collector.reserve(length.unwrap_or(0)).then_some(collector)
    }

    /// The last good answer to the same request.
    pub fn find(
        &self,
        key: Key,
        bounds: StaleBounds,
        request: &impl Request,
        now_nanos: u64,
    ) -> Option<Arc<Answer>> {
        self.lock().find(key, |vary, answer| {
            answer.since(now_nanos) <= bounds.max_age && vary.digest == self.vary_digest(&vary.names, request)
        })
    }

    /// Forgets what is too old, and what is above the bound. To be called now and then, and when the policy changes;
    /// `None`: nothing is to be kept any more.
    pub fn trim(&self, bounds: Option<StaleBounds>, now_nanos: u64) {
        let mut kept = self.lock();
        let Some(bounds) = bounds else {
            return *kept = Kept::default();
        };
        kept.forget(|answer| answer.since(now_nanos) > bounds.max_age);
        kept.shrink_to(bounds.max_bytes);
    }

    /// How many bytes its answers take.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    /// How many answers there are.
    pub fn answers(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Should there have been a panic, the worst is an answer that is forgotten.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vary_digest(&self, names: &[HeaderName], request: &impl Request) -> u128 {
        self.digest(|hasher| names.iter().for_each(|name| hash_header(request, name, hasher)))
    }

    fn digest(&self, feed: impl Fn(&mut DefaultHasher)) -> u128 {
        let [high, low] = self.digests.each_ref().map(|state| {
            let mut hasher = state.build_hasher();
            feed(&mut hasher);
            u128::from(hasher.finish())
        });
        high << 64 | low
    }
}

/// An answer that is streaming past.
#[derive(Debug)]
pub struct Collector {
    store: Arc<Store>,
    key: Key,
    vary: Vary,
    max_bytes: u64,
    headers: Vec<(HeaderName, HeaderValue)>,
    length: Option<u64>,
    head_only: bool,
    age_then: Duration,
    body: Vec<u8>,
    most_body: u64,
    /// Without the body.
    size: u64,
    reserved: Reserved,
    came_at_nanos: u64,
}

impl Collector {
    /// Shows it the next piece of the body, without transfer coding. `false`: it has become too large to be kept, and
    /// there is no need to show it more. Copies: what it holds must not hold the buffers of a connection.
    #[must_use = "a collector that has given up is to be dropped"]
    pub fn see(&mut self, piece: &[u8]) -> bool {
        let length = self.body.len() as u64 + piece.len() as u64;
        let fits = length <= self.most_body && self.reserve(length);
        if fits {
            self.body.extend_from_slice(piece);
        }
        fits
    }

    /// The whole body has come, without trailers: from now on this is the last good answer.
    pub fn finish(mut self) {
        let announced = self.length.filter(|_| !self.head_only);
        if announced.is_some_and(|length| length != self.body.len() as u64) {
            return;
        }
        self.body.shrink_to_fit();
        self.reserved.shrink_to(self.size + self.body.len() as u64);
        let answer = Answer {
            headers: self.headers,
            body: self.body.into(),
            head_length: self.length.filter(|_| self.head_only),
            age_then: self.age_then,
            came_at_nanos: self.came_at_nanos,
            reserved: self.reserved,
        };
        let mut kept = self.store.lock();
        kept.insert(self.key, self.vary, Arc::new(answer));
        kept.shrink_to(self.max_bytes);
    }

    /// Memory for a body of this length, if need be in the place of the service's oldest answers.
    fn reserve(&mut self, body: u64) -> bool {
        let Some(missing) = (self.size + body).checked_sub(self.reserved.bytes()).filter(|it| *it > 0) else {
            return true;
        };
        let rest = self.most_body + self.size - self.reserved.bytes();
        // A body of unknown length doubles.
        let wanted = missing.max((self.body.len().max(STEP) as u64).min(rest));
        while !self.reserved.grow(wanted) && !self.reserved.grow(missing) {
            let mut kept = self.store.lock();
            // Nothing is dropped for what would not fit even then: others have the rest.
            if missing > self.reserved.left().saturating_add(kept.bytes()) || !kept.drop_oldest() {
                return false;
            }
        }
        self.body.reserve_exact((self.reserved.bytes() - self.size) as usize - self.body.len());
        true
    }
}

/// All lines of a header, each with its length, so that no two sets of lines look the same.
fn hash_header(request: &impl Request, name: &HeaderName, hasher: &mut DefaultHasher) {
    name.as_str().hash(hasher);
    let mut lines = 0_usize;
    request.each_header(name, &mut |line| {
        line.hash(hasher);
        lines += 1;
    });
    lines.hash(hasher);
}

#[cfg(test)]
mod tests;
