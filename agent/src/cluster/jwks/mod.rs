//! Keys of issuers that policies name by `jwks.uri`, `jwks.configMap` and `jwks.secret`: one source for each URI and each entry of an
//! object, however many policies name it.
//!
//! The [`builder`](super::builder) says which sources its policies want (`Sources::want`), and links each provider to what is known
//! of its source, where requests look. [`fetch`] gets the keys of URIs in the background, when [`Refresh`] says so, and puts them there;
//! what is in [`objects`] is put there by whoever follows these: [`kubernetes`](super::kubernetes) or
//! [`manifests`](super::manifests). What is read badly leaves the last good keys in use. A source that no policy wants any more is
//! forgotten.

pub mod fetch;
pub mod https;
pub mod objects;
#[cfg(test)]
mod objects_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

pub use self::fetch::Failed;
use self::objects::{Asked, Id};
use crate::{
    clock::Nanos,
    cluster::object::Name,
    govern::jwt::{self, AllowedHost, Keys, Known, Location, refresh::Refresh},
};

/// So many sources are fetched at most, for the memory that keys take and what is called.
pub const MOST_SOURCES: usize = 256;

/// So many entries of objects are read at most: each agent follows each object by a watch.
pub const MOST_ENTRIES: usize = 128;

/// Where keys are from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Uri(Location),
    /// An entry of an object.
    Entry(Id, Arc<str>),
}

impl Origin {
    /// Where the keys of a provider of a policy in this namespace are from; `None`: the policy has them itself.
    pub fn of(source: &jwt::Source, namespace: &Arc<str>) -> Option<Self> {
        Some(match source {
            jwt::Source::Inline(_) => return None,
            jwt::Source::Remote { location, .. } => Self::Uri(location.clone()),
            jwt::Source::Entry(jwt::Entry { of, name, key }) => {
                let name = Name { namespace: namespace.clone(), name: name.clone() };
                Self::Entry(Id { of: *of, name }, key.clone())
            }
        })
    }

    /// As everybody may see it who reads metrics: a query may hold a key of the API that it asks.
    pub fn without_query(&self) -> String {
        match self {
            Self::Uri(location) => {
                let shown = location.to_string();
                match shown.split_once('?') {
                    Some((before, _)) => format!("{before}?..."),
                    None => shown,
                }
            }
            Self::Entry(..) => self.to_string(),
        }
    }
}

impl From<Location> for Origin {
    fn from(location: Location) -> Self {
        Self::Uri(location)
    }
}

/// `https://login.example.com/keys`, `ConfigMap shop/login-keys, key jwks.json`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(location) => location.fmt(f),
            Self::Entry(object, key) => write!(f, "{object}, key {key}"),
        }
    }
}

/// What policies ask for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the keys are looked for.
    pub known: Arc<Known>,
    /// As often as the policy says that asks for it most often. Of a URI only.
    pub every: Duration,
    /// Of the policies that ask for it.
    pub namespaces: BTreeSet<Arc<str>>,
}

/// All sources that policies name.
#[derive(Debug)]
pub struct Sources {
    allowed: Vec<AllowedHost>,
    all: Mutex<BTreeMap<Origin, Source>>,
    /// Tells the fetcher that there are others.
    wanted: Notify,
    /// Which objects are to be read.
    objects: watch::Sender<Arc<BTreeMap<Id, Asked>>>,
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
    /// When the keys were known to be those of the source, or when it was first wanted.
    since: Nanos,
    /// Another one for each source that there ever was.
    number: u64,
    /// How often what came of fetching it, by [`Outcome`].
    counts: [u64; Outcome::ALL.len()],
}

/// How a source fares.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub origin: Origin,
    /// How many keys are known.
    pub keys: usize,
    /// Since the keys were known to be those of the source, or since it was first wanted.
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
    Forbidden,
    Missing,
}

impl Outcome {
    pub const ALL: [Self; 12] = [
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
        Self::Forbidden,
        Self::Missing,
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
            Self::Forbidden => "forbidden",
            Self::Missing => "missing",
        }
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "The keys were fetched, or read from an object that has come or changed.",
            Self::Resolve => "The name of the host could not be resolved.",
            Self::Connect => {
                "No address of the host accepted a connection; or the API server, which has the object, did not answer as it should."
            }
            Self::Tls => {
                "The TLS handshake failed, as with a certificate of a CA that is not trusted (`--jwks-ca-file`) or of another name."
            }
            Self::Timeout => "The response was not complete within 10 seconds.",
            Self::Redirect => "The response is a redirect, which is not followed.",
            Self::Status => "The response has another status than 200.",
            Self::TooLarge => "The response, or the value in the object, has more than 256 KiB.",
            Self::Http => "The connection broke, or the response is no HTTP.",
            Self::Invalid => {
                "The response, or the value in the object, is no set of public keys of which one can be used."
            }
            Self::Forbidden => {
                "The API server does not let the agent read the ConfigMap (`deploy/overlays/token-keys`) or Secret (`deploy/overlays/token-keys-secrets`)."
            }
            Self::Missing => "There is no such ConfigMap or Secret, or no such entry in it.",
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
        Self {
            allowed,
            all: Mutex::default(),
            wanted: Notify::new(),
            objects: watch::Sender::default(),
            told: watch::Sender::default(),
        }
    }

    /// Changes when keys came that were missing, or when it is known why they are missing.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.told.subscribe()
    }

    /// The objects that are to be read. Where one is asked for otherwise than before it has to be read anew.
    pub(crate) fn asked(&self) -> watch::Receiver<Arc<BTreeMap<Id, Asked>>> {
        self.objects.subscribe()
    }

    /// From now on policies want these sources, and no others.
    pub(crate) fn want(&self, wanted: BTreeMap<Origin, Wanted>, now: Nanos) {
        let mut all = self.all();
        let is_read = |origin: &Origin| all.get(origin).is_some_and(|source| source.is_allowed);
        let barred = |origin: &Origin| match origin {
            Origin::Uri(location) => !self.allowed.iter().any(|host| host.allows(location)),
            Origin::Entry(..) => false,
        };
        let is_uri = |origin: &Origin| matches!(origin, Origin::Uri(_));
        let of =
            |uris: bool| wanted.iter().filter(move |(origin, _)| is_uri(origin) == uris && !barred(origin));
        let mut room = fairly(of(true), is_read, MOST_SOURCES);
        room.append(&mut fairly(of(false), is_read, MOST_ENTRIES));
        all.retain(|origin, source| {
            wanted.contains_key(origin) && source.is_allowed == room.contains(origin)
        });
        let mut number = all.values().map(|source| source.number).max().unwrap_or_default();
        for (origin, Wanted { known, every, .. }) in wanted {
            // (Others are of a policy that was deleted and written anew, or have been waiting for room.)
            let is_same = |source: &&mut Source| source.is_allowed && Arc::ptr_eq(&source.known, &known);
            if let Some(source) = all.get_mut(&origin).filter(is_same) {
                source.every = every;
                continue;
            }
            let is_allowed = room.contains(&origin);
            let trouble = match &origin {
                _ if is_allowed => None,
                Origin::Uri(location) if barred(&origin) => Some(format!(
                    "the agents may not fetch keys from {}: their setting --jwks-hosts (SLUICE_JWKS_HOSTS) does not name it",
                    location.authority()
                )),
                Origin::Uri(_) => Some(format!(
                    "an agent fetches keys from {MOST_SOURCES} URIs at most, of each namespace as many as of others, and policies name \
                     more"
                )),
                Origin::Entry(..) => Some(format!(
                    "{origin}: an agent reads keys from {MOST_ENTRIES} entries of ConfigMaps and Secrets at most, of each namespace \
                     as many as of others, and policies name more"
                )),
            };
            known.set_trouble(trouble.map(Arc::new));
            // Left over from a time when they were wanted, and nobody has looked after them since.
            known.put(None);
            number += 1;
            let source = Source {
                known,
                every,
                refresh: Refresh::default(),
                is_allowed,
                since: now,
                number,
                counts: Default::default(),
            };
            all.insert(origin, source);
        }
        let objects = Arc::new(objects::asked(&all));
        drop(all);
        self.wanted.notify_one();
        self.objects.send_if_modified(|before| {
            let is_news = *before != objects;
            *before = objects;
            is_news
        });
    }

    /// Sources that are to be fetched now, at most so many. Each has to be told the [`end`](Self::end).
    pub(crate) fn due(&self, now: Nanos, most: usize) -> Vec<Location> {
        let mut due = Vec::new();
        for (origin, source) in &mut *self.all() {
            // Objects are followed as they change.
            let Origin::Uri(location) = origin else { continue };
            let asked = source.known.take_asked();
            if source.is_allowed && source.refresh.is_due(now.0, source.every, asked) && due.len() < most {
                source.refresh.begin(now.0, source.every);
                due.push(location.clone());
            }
        }
        due
    }

    /// A URI has been fetched. `random` is from 0 to 1.
    pub(crate) fn end(&self, location: &Location, fetched: Result<Keys, Failed>, now: Nanos, random: f64) {
        self.take(&Origin::Uri(location.clone()), fetched, now, random);
    }

    /// An entry of an object has been read.
    pub(crate) fn read(&self, object: &Id, key: &Arc<str>, read: Result<Keys, Failed>, now: Nanos) {
        self.take(&Origin::Entry(object.clone(), key.clone()), read, now, 0.0);
    }

    /// Whether keys were ever read there, as far as somebody wants them.
    pub(crate) fn knows(&self, object: &Id, key: &Arc<str>) -> bool {
        let all = self.all();
        let source = all.get(&Origin::Entry(object.clone(), key.clone()));
        source.is_some_and(|source| source.known.keys().is_some())
    }

    /// What was read last of an object is still what is in it.
    pub(crate) fn confirm(&self, object: &Id, now: Nanos) {
        for (origin, source) in &mut *self.all() {
            let is_of = matches!(origin, Origin::Entry(id, _) if id == object);
            if is_of && source.known.trouble().is_none() && source.known.keys().is_some() {
                source.since = source.since.max(now);
            }
        }
    }

    fn take(&self, origin: &Origin, fetched: Result<Keys, Failed>, now: Nanos, random: f64) {
        let mut all = self.all();
        // Nobody wants it any more, or it was never to be read.
        let Some(source) = all.get_mut(origin).filter(|source| source.is_allowed) else { return };
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
                    tracing::info!(source = %origin, "the keys of tokens can be read again");
                }
                // The same ones stay, and with them what was verified by them.
                if before.as_deref() != Some(&keys) {
                    tracing::info!(
                        source = %origin,
                        keys = keys.len(),
                        passed_over = keys.passed_over.len(),
                        "the keys of tokens are others"
                    );
                    known.put(Some(Arc::new(keys)));
                }
            }
            Err(error) => {
                let trouble = match origin {
                    Origin::Uri(_) => error.to_string(),
                    Origin::Entry(..) => format!("{origin}: {error}"),
                };
                if was_wrong.as_deref() == Some(&trouble) {
                    return;
                }
                if before.is_some() && was_wrong.is_none() {
                    tracing::warn!(
                        source = %origin,
                        error = trouble,
                        "the keys of tokens cannot be read: the last ones stay in use"
                    );
                }
                known.set_trouble(Some(Arc::new(trouble)));
            }
        }
        // Of keys that are missing policies tell; and of what is wrong with an object, which does not pass by itself.
        let is_object = matches!(origin, Origin::Entry(..));
        if before.is_none() || (is_object && was_wrong != source.known.trouble()) {
            drop(all);
            self.told.send_replace(());
        }
    }

    /// How all of them fare.
    pub(crate) fn states(&self, now: Nanos) -> Vec<State> {
        let all = self.all();
        let state = |(origin, source): (&Origin, &Source)| State {
            origin: origin.clone(),
            keys: source.known.keys().map_or(0, |keys| keys.len()),
            age: now.since(source.since).into(),
            trouble: source.known.trouble(),
            counts: source.counts,
        };
        all.iter().map(state).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Origin, Source>> {
        // Nothing that holds it can leave it half-changed.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which sources there is room for: for those of each namespace as much as for those of others, so that no namespace takes away the keys of
/// another. Of one namespace those stay that are read.
fn fairly<'w>(
    wanted: impl Iterator<Item = (&'w Origin, &'w Wanted)>,
    is_read: impl Fn(&Origin) -> bool,
    most: usize,
) -> BTreeSet<Origin> {
    let mut namespaces: BTreeMap<&str, Vec<&Origin>> = BTreeMap::new();
    for (origin, wanted) in wanted {
        for namespace in &wanted.namespaces {
            namespaces.entry(namespace).or_default().push(origin);
        }
    }
    let mut turns: Vec<(usize, &Origin)> = Vec::new();
    for mut origins in namespaces.into_values() {
        origins.sort_by_key(|origin| !is_read(origin));
        turns.extend(origins.into_iter().enumerate());
    }
    turns.sort_by_key(|(turn, _)| *turn);
    let mut room = BTreeSet::new();
    for (_, origin) in turns {
        if room.len() < most {
            room.insert(origin.clone());
        }
    }
    room
}
