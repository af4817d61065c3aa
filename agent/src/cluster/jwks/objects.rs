//! ConfigMaps and Secrets that have keys: which are asked for, what is in one, and following those of a directory of manifests.
//!
//! Only objects that policies name are read, by their names; of those in a directory all are at hand. An object is asked for with the
//! entries that are wanted of it: when these are others it is read anew, so that nobody has to keep what is in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{ByteString, api::core::v1 as core};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Failed, Origin, Source, Sources,
    fetch::{self, Has},
};
use crate::{
    clock::Nanos,
    cluster::object::Name,
    govern::jwt::{Holder, Keys, keys::MAX_BYTES},
};

/// How often it is said that the objects of a directory are still as they were.
const CONFIRM: Duration = Duration::from_secs(5);

/// An object that may have keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub of: Holder,
    pub name: Name,
}

/// `ConfigMap shop/login-keys`
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.of.as_str(), self.name)
    }
}

/// What is asked for of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub keys: BTreeSet<Arc<str>>,
    /// Rises when somebody asks who does not have what was read before.
    number: u64,
}

/// The objects that have these sources.
pub(super) fn asked(sources: &BTreeMap<Origin, Source>) -> BTreeMap<Id, Asked> {
    let mut all: BTreeMap<Id, Asked> = BTreeMap::new();
    for (origin, source) in sources.iter().filter(|(_, source)| source.is_allowed) {
        let Origin::Entry(object, key) = origin else { continue };
        let asked = all.entry(object.clone()).or_default();
        asked.keys.insert(key.clone());
        asked.number = asked.number.max(source.number);
    }
    all
}

/// What is in an object.
#[derive(Clone, PartialEq)]
pub struct Held(Result<BTreeMap<Arc<str>, Value>, String>);

/// By name and namespace.
pub type AllHeld = BTreeMap<Id, Held>;

#[derive(Clone, PartialEq)]
enum Value {
    Bytes(Arc<[u8]>),
    /// It has so many bytes, which is more than are looked at.
    TooLarge(usize),
}

impl Value {
    fn of(bytes: &[u8]) -> Self {
        if bytes.len() > MAX_BYTES { Self::TooLarge(bytes.len()) } else { Self::Bytes(bytes.into()) }
    }
}

/// Without the values, which are nobody's business.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(values) => f.debug_set().entries(values.keys()).finish(),
            Err(why) => f.write_str(why),
        }
    }
}

impl Held {
    pub fn of_config_map(object: &core::ConfigMap) -> Self {
        let text = object.data.iter().flatten().map(|(key, text)| (key, text.as_bytes()));
        Self::of(text.chain(bytes(object.binary_data.as_ref())))
    }

    pub fn of_secret(object: &core::Secret) -> Self {
        // Only a manifest has texts, which go before what is encoded.
        let text = object.string_data.iter().flatten().map(|(key, text)| (key, text.as_bytes()));
        Self::of(bytes(object.data.as_ref()).chain(text))
    }

    /// It is there, but nobody can tell what is in it.
    pub fn unreadable(why: String) -> Self {
        Self(Err(why))
    }

    fn of<'o>(values: impl Iterator<Item = (&'o String, &'o [u8])>) -> Self {
        Self(Ok(values.map(|(key, bytes)| (key.as_str().into(), Value::of(bytes))).collect()))
    }

    /// The keys that are in an entry.
    pub fn keys(&self, key: &str) -> Result<Keys, Failed> {
        let values = self.0.as_ref().map_err(|why| Failed::Unreadable(why.clone()))?;
        match values.get(key) {
            Some(Value::Bytes(text)) => fetch::read(text),
            Some(Value::TooLarge(bytes)) => Err(Failed::EntryTooLarge(*bytes)),
            None => Err(Failed::NoEntry(Has(values.keys().cloned().collect()))),
        }
    }
}

fn bytes(data: Option<&BTreeMap<String, ByteString>>) -> impl Iterator<Item = (&String, &[u8])> {
    data.into_iter().flatten().map(|(key, bytes)| (key, &*bytes.0))
}

impl Sources {
    /// An object has been read; `None`: there is none.
    pub(crate) fn read_object(&self, object: &Id, asked: &Asked, held: Option<&Held>, now: Nanos) {
        for key in &asked.keys {
            let read = held.map_or(Err(Failed::NoObject(object.of)), |held| held.keys(key));
            self.read(object, key, read, now);
        }
    }
}

/// Reads the objects of a directory, as they come and change, for as long as it is polled.
pub async fn follow(mut all: watch::Receiver<Arc<AllHeld>>, sources: Arc<Sources>) {
    let mut asked = sources.asked();
    let mut read: BTreeMap<Id, (Asked, Option<Held>)> = BTreeMap::new();
    let mut confirm = tokio::time::interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (wanted, held) = (asked.borrow_and_update().clone(), all.borrow_and_update().clone());
        let now = Nanos::at(Instant::now().into_std());
        read.retain(|object, _| wanted.contains_key(object));
        for (object, asked) in &*wanted {
            let is = (asked.clone(), held.get(object).cloned());
            if read.get(object) == Some(&is) {
                sources.confirm(object, now);
            } else {
                sources.read_object(object, asked, is.1.as_ref(), now);
                read.insert(object.clone(), is);
            }
        }
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return },
            // Who has watched the directory is gone: what was read stays.
            changed = all.changed() => if changed.is_err() { return },
            _ = confirm.tick() => {}
        }
    }
}
