//! Keys of issuers that policies name by `jwks.uri`: one source for each URI, however many policies name it.
//!
//! The [`builder`](super::builder) says which sources its policies want (`Sources::want`), and links each provider to what is known
//! of its source, where requests look. [`fetch`] gets the keys in the background, when [`Refresh`] says so, and puts them there. What
//! is fetched badly leaves the last good keys in use. A source that no policy wants any more is forgotten.

pub mod fetch;
pub mod https;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

pub use self::fetch::Failed;
use crate::{
    clock::Nanos,
    govern::jwt::{AllowedHost, Keys, Known, Location, refresh::Refresh},
};

/// So many sources are fetched at most, for the memory that keys take and what is called.
pub const MOST_SOURCES: usize = 256;

/// What policies ask for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the keys are looked for.
    pub known: Arc<Known>,
    /// As often as the policy says that asks for it most often.
    pub every: Duration,
}

/// All sources that policies name.
#[derive(Debug)]
pub struct Sources {
    allowed: Vec<AllowedHost>,
    all: Mutex<BTreeMap<Location, Source>>,
    /// Tells the fetcher that there are others.
    wanted: Notify,
    /// Changes when there is something else to be said of policies.
    told: watch::Sender<()>,
}

#[derive(Debug)]
struct Source {
    known: Arc<Known>,
    every: Duration,
    refresh: Refresh,
    /// It may be fetched.
    is_allowed: bool,
    /// When the keys came that are known, or when it was first wanted.
    since: Nanos,
    /// How often what came of fetching it, by [`Outcome`].
    counts: [u64; Outcome::ALL.len()],
}

/// How a source fares.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub location: Location,
    /// How many keys are known.
    pub keys: usize,
    /// Since the keys came that are known, or since it was first wanted.
    pub age: Duration,
    /// Why the last try failed.
    pub trouble: Option<Arc<String>>,
    pub counts: [u64; Outcome::ALL.len()],
}

/// What came of fetching keys, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Resolve,
    Connect,
    Tls,
    Timeout,
    Redirect,
    Status,
    TooLarge,
    Http,
    Invalid,
}

impl Outcome {
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Resolve,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Redirect,
        Self::Status,
        Self::TooLarge,
        Self::Http,
        Self::Invalid,
    ];

    pub const fn code(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::TooLarge => "too_large",
            Self::Http => "http",
            Self::Invalid => "invalid",
        }
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "The keys were fetched.",
            Self::Resolve => "The name of the host could not be resolved.",
            Self::Connect => "No address of the host accepted a connection.",
            Self::Tls => {
                "The TLS handshake failed, as with a certificate of a CA that is not trusted (`--jwks-ca-file`) or of another name."
            }
            Self::Timeout => "The response was not complete within 10 seconds.",
            Self::Redirect => "The response is a redirect, which is not followed.",
            Self::Status => "The response has another status than 200.",
            Self::TooLarge => "The response has more than 256 KiB.",
            Self::Http => "The connection broke, or the response is no HTTP.",
            Self::Invalid => "The response is no set of public keys of which one can be used.",
        }
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Sources {
    /// None yet, and only these hosts are ever called.
    pub fn new(allowed: Vec<AllowedHost>) -> Self {
        Self { allowed, all: Mutex::default(), wanted: Notify::new(), told: watch::Sender::default() }
    }

    /// Changes when keys came that were missing, or when it is known why they are missing.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.told.subscribe()
    }

    /// From now on policies want these sources, and no others.
    pub(crate) fn want(&self, wanted: BTreeMap<Location, Wanted>, now: Nanos) {
        let mut all = self.all();
        all.retain(|location, _| wanted.contains_key(location));
        let mut room = MOST_SOURCES.saturating_sub(all.values().filter(|source| source.is_allowed).count());
        for (location, Wanted { known, every }) in wanted {
            // (Others are of a policy that was deleted and written anew, or have been waiting for room.)
            let is_same = |source: &&mut Source| source.is_allowed && Arc::ptr_eq(&source.known, &known);
            if let Some(source) = all.get_mut(&location).filter(is_same) {
                source.every = every;
                continue;
            }
            let trouble = if !self.allowed.iter().any(|host| host.allows(&location)) {
                Some(format!(
                    "the agents may not fetch keys from {}: their setting --jwks-hosts (SLUICE_JWKS_HOSTS) does not name it",
                    location.authority()
                ))
            } else if room == 0 {
                Some(format!(
                    "an agent fetches keys from {MOST_SOURCES} URIs at most, and policies name more"
                ))
            } else {
                room -= 1;
                None
            };
            let is_allowed = trouble.is_none();
            known.set_trouble(trouble.map(Arc::new));
            // Left over from a time when they were wanted, and nobody has looked after them since.
            known.put(None);
            let source = Source {
                known,
                every,
                refresh: Refresh::default(),
                is_allowed,
                since: now,
                counts: Default::default(),
            };
            all.insert(location, source);
        }
        drop(all);
        self.wanted.notify_one();
    }

    /// Sources that are to be fetched now, at most so many. Each has to be told the [`end`](Self::end).
    pub(crate) fn due(&self, now: Nanos, most: usize) -> Vec<Location> {
        let mut due = Vec::new();
        for (location, source) in &mut *self.all() {
            let asked = source.known.take_asked();
            if source.is_allowed && source.refresh.is_due(now.0, source.every, asked) && due.len() < most {
                source.refresh.begin(now.0, source.every);
                due.push(location.clone());
            }
        }
        due
    }

    /// A source has been fetched. `random` is from 0 to 1.
    pub(crate) fn end(&self, location: &Location, fetched: Result<Keys, Failed>, now: Nanos, random: f64) {
        let mut all = self.all();
        // Nobody wants it any more.
        let Some(source) = all.get_mut(location) else { return };
        source.refresh.end(now.0, fetched.is_ok(), random);
        let known = &source.known;
        let (before, was_wrong) = (known.keys(), known.trouble());
        let outcome = fetched.as_ref().err().map_or(Outcome::Ok, Failed::outcome);
        source.counts[outcome as usize] += 1;
        match fetched {
            Ok(keys) => {
                source.since = now;
                known.set_trouble(None);
                if was_wrong.is_some() && before.is_some() {
                    tracing::info!(uri = %location, "the keys of tokens can be fetched again");
                }
                // The same ones stay, and with them what was verified by them.
                if before.as_deref() != Some(&keys) {
                    tracing::info!(
                        uri = %location,
                        keys = keys.len(),
                        passed_over = keys.passed_over.len(),
                        "the keys of tokens are others"
                    );
                    known.put(Some(Arc::new(keys)));
                }
            }
            Err(error) => {
                let trouble = error.to_string();
                if was_wrong.as_deref() == Some(&trouble) {
                    return;
                }
                if before.is_some() && was_wrong.is_none() {
                    tracing::warn!(
                        uri = %location,
                        error = trouble,
                        "the keys of tokens cannot be fetched: the last ones stay in use"
                    );
                }
                known.set_trouble(Some(Arc::new(trouble)));
            }
        }
        // Of keys that are missing policies tell.
        if before.is_none() {
            drop(all);
            self.told.send_replace(());
        }
    }

    /// How all of them fare.
    pub(crate) fn states(&self, now: Nanos) -> Vec<State> {
        let all = self.all();
        let state = |(location, source): (&Location, &Source)| State {
            location: location.clone(),
            keys: source.known.keys().map_or(0, |keys| keys.len()),
            age: now.since(source.since).into(),
            trouble: source.known.trouble(),
            counts: source.counts,
        };
        all.iter().map(state).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Location, Source>> {
        // Nothing that holds it can leave it half-changed.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
