//! What the watches add up to: which namespaces are watched, and what is told when.
//!
//! A namespace is told of when all its kinds have been listed once, as a whole: a Service without its endpoints would
//! be governed into nothing. The same holds for the cluster at the beginning. What cannot be read must not hold up
//! the rest: a namespace with a kind that is forbidden stays ungoverned until it is allowed, and one whose lists fail
//! for another reason is waited for only so long. If none at all can be read the first picture waits, however long
//! that takes: an agent that governs nothing must not take the place of one that does.
//!
//! Sluice's own kinds and those of Gateway API are another matter. They are watched in the whole cluster, so that a policy in a
//! namespace that is not opted in can be told so, and are told of as they come. The first picture waits for them, unless they
//! cannot be read (their definitions are not installed, or it is forbidden): then all is governed without them.
//!
//! Where many namespaces are opted in at the start, one watch a kind on the whole cluster takes the place of one in each of them: an
//! API server pays for each watch. What is not of these namespaces is dropped as it comes. A namespace that is opted in later has
//! watches of its own, as what the cluster's watch has told of it was dropped; and so has each where the cluster's may not be read.
//!
//! Objects are kept here only until they are told of; after that it is their names, so that what a later list does
//! not name any more can be told as deleted. No socket, no clock: what comes in decides what goes out.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use super::watch::{News, Scope};
use crate::cluster::{
    object::{Key, Kind, Name, Object},
    source::{Batch, Change, Sighting},
};

#[derive(Default)]
pub(super) struct Picture {
    /// All Namespaces; `None` before their first list.
    namespaces: Option<BTreeMap<Arc<str>, Sighting>>,
    /// Those of them that are watched: the opted-in ones.
    watched: BTreeMap<Arc<str>, Watched>,
    /// By their place in [`Picture::OPTIONAL`].
    optional: [Listing; Picture::OPTIONAL.len()],
    /// Kinds that are watched in the whole cluster, by their place in [`Picture::KINDS`].
    wide: [bool; Picture::KINDS.len()],
    /// The first whole picture has been told.
    spoken: bool,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) batch: Batch,
    /// Watches that are to begin.
    pub(super) begin: Vec<Scope>,
    /// Watches that are to end. Comes before `begin`.
    pub(super) end: Vec<Scope>,
}

/// So many namespaces have watches of their own.
const FEW: usize = 4;

/// An opted-in namespace.
#[derive(Default)]
struct Watched {
    /// By their place in [`Picture::KINDS`].
    kinds: [Listing; Picture::KINDS.len()],
    told: bool,
}

#[derive(Default)]
struct Listing {
    /// It is of the watch on the whole cluster.
    wide: bool,
    listed: bool,
    unreadable: bool,
    /// While what it belongs to has not been told of.
    held: BTreeMap<Name, Sighting>,
    /// From then on.
    names: BTreeSet<Name>,
}

impl Picture {
    /// The kinds that are watched in a namespace, what others name before those.
    pub(super) const KINDS: [Kind; 3] = [Kind::Service, Kind::Pod, Kind::EndpointSlice];
    /// Those that are watched in the whole cluster, besides Namespaces, and that it may go without.
    pub(super) const OPTIONAL: [Kind; 7] = [
        Kind::TrafficPolicy,
        Kind::TrafficLane,
        Kind::AccessPolicy,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::ReferenceGrant,
        Kind::Mesh,
    ];

    pub(super) fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// Enrolled namespaces that have not been told of, and whether that lasts: a kind in them cannot be read.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        let unread = self.watched.iter().filter(|(_, watched)| !watched.told);
        unread.map(|(name, watched)| (name, watched.is_unreadable()))
    }

    /// Takes in what the watch of that scope says.
    pub(super) fn hear(&mut self, scope: &Scope, news: News) -> Outcome {
        let mut outcome = Outcome::default();
        match place(scope.kind) {
            Place::Namespaces => self.hear_namespaces(news, &mut outcome),
            Place::Optional(slot) => {
                self.optional[slot].hear(scope.kind, self.spoken, news, &mut outcome.batch);
            }
            Place::Namespaced(slot) if scope.namespace.is_empty() => {
                self.hear_wide(scope.kind, slot, news, &mut outcome.batch);
            }
            Place::Namespaced(slot) => {
                if let Some(watched) = self.watched.get_mut(&scope.namespace) {
                    watched.kinds[slot].hear(scope.kind, watched.told, news, &mut outcome.batch);
                }
            }
        }
        self.speak(&mut outcome.batch);
        outcome
    }

    /// Takes in what the watch on the whole cluster says, each object where it belongs.
    fn hear_wide(&mut self, kind: Kind, slot: usize, news: News, batch: &mut Batch) {
        let mut hear = |watched: &mut Watched, news| {
            if watched.kinds[slot].wide {
                watched.kinds[slot].hear(kind, watched.told, news, batch);
            }
        };
        match news {
            News::Listed(all) => {
                let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for sighting in all {
                    let namespace = sighting.object.key().name.namespace;
                    by_namespace.entry(namespace).or_default().push(sighting);
                }
                for (namespace, watched) in &mut self.watched {
                    hear(watched, News::Listed(by_namespace.remove(namespace).unwrap_or_default()));
                }
            }
            News::Applied(sighting) => {
                let namespace = sighting.object.key().name.namespace;
                if let Some(watched) = self.watched.get_mut(&namespace) {
                    hear(watched, News::Applied(sighting));
                }
            }
            News::Deleted(key) => {
                if let Some(watched) = self.watched.get_mut(&key.name.namespace) {
                    hear(watched, News::Deleted(key));
                }
            }
        }
    }

    /// The namespaces whose objects the watch of that kind on the whole cluster tells of.
    pub(super) fn covered(&self, kind: Kind) -> BTreeSet<Arc<str>> {
        let Place::Namespaced(slot) = place(kind) else { return BTreeSet::new() };
        let covered = self.watched.iter().filter(|(_, watched)| watched.kinds[slot].wide);
        covered.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Decides what is watched in the whole cluster, when its Namespaces are known for the first time.
    fn decide(&mut self, all: &BTreeMap<Arc<str>, Sighting>, outcome: &mut Outcome) {
        let is_enrolled = |sighting: &&Sighting| matches!(&sighting.object, Object::Namespace(namespace) if namespace.capture == Some(true));
        let enrolled = all.values().filter(is_enrolled).count();
        for (slot, kind) in Self::KINDS.into_iter().enumerate() {
            // Pods change most, and are largest: those of others must not be the greater part of what comes.
            let worth = kind != Kind::Pod || enrolled * 2 >= all.len();
            self.wide[slot] = enrolled > FEW && worth;
            if self.wide[slot] {
                outcome.begin.push(Scope { kind, namespace: "".into() });
            }
        }
    }

    /// The first picture has been waited for long enough: it is told without what is missing, unless that is everything.
    pub(super) fn speak_of_what_is_whole(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.spoken && self.knows_optional() && self.watched.values().any(Watched::is_whole) {
            self.tell(&mut outcome.batch);
        }
        outcome
    }

    /// That scope cannot be read, and will not be by trying again. What is known of it stays.
    pub(super) fn unreadable(&mut self, scope: &Scope) -> Outcome {
        let mut outcome = Outcome::default();
        let listing = match place(scope.kind) {
            Place::Namespaces => None,
            Place::Optional(slot) => Some(&mut self.optional[slot]),
            Place::Namespaced(slot) if scope.namespace.is_empty() => {
                // It may be allowed in each namespace.
                outcome.end.push(scope.clone());
                self.wide[slot] = false;
                for (namespace, watched) in &mut self.watched {
                    if std::mem::take(&mut watched.kinds[slot].wide) {
                        outcome.begin.push(Scope { kind: scope.kind, namespace: namespace.clone() });
                    }
                }
                None
            }
            Place::Namespaced(slot) => {
                self.watched.get_mut(&scope.namespace).map(|watched| &mut watched.kinds[slot])
            }
        };
        if let Some(listing) = listing {
            listing.unreadable = true;
            self.speak(&mut outcome.batch);
        }
        outcome
    }

    /// The kinds that a cluster may go without have been listed, or cannot be.
    fn knows_optional(&self) -> bool {
        self.optional.iter().all(|listing| listing.listed || listing.unreadable)
    }

    fn hear_namespaces(&mut self, news: News, outcome: &mut Outcome) {
        match news {
            News::Listed(all) => {
                let all: BTreeMap<_, _> =
                    all.into_iter().map(|sighting| (sighting.object.key().name.name, sighting)).collect();
                let first = self.namespaces.is_none();
                if first {
                    self.decide(&all, outcome);
                }
                let known = self.namespaces.get_or_insert_default();
                let gone: Vec<_> = known.keys().filter(|name| !all.contains_key(*name)).cloned().collect();
                for name in gone {
                    self.remove_namespace(&name, outcome);
                }
                for sighting in all.into_values() {
                    self.set_namespace(sighting, first, outcome);
                }
            }
            News::Applied(sighting) => self.set_namespace(sighting, false, outcome),
            News::Deleted(key) => self.remove_namespace(&key.name.name, outcome),
        }
    }

    /// `first`: the watches on the whole cluster have yet to begin, and tell of it, too.
    fn set_namespace(&mut self, sighting: Sighting, first: bool, outcome: &mut Outcome) {
        let Object::Namespace(namespace) = &sighting.object else { return };
        let name = namespace.name.clone();
        if namespace.capture == Some(true) {
            if let Entry::Vacant(entry) = self.watched.entry(name.clone()) {
                let watched = entry.insert(Watched::default());
                for (slot, kind) in Self::KINDS.into_iter().enumerate() {
                    watched.kinds[slot].wide = first && self.wide[slot];
                    if !watched.kinds[slot].wide {
                        outcome.begin.push(Scope { kind, namespace: name.clone() });
                    }
                }
            }
        } else {
            self.unwatch(&name, outcome);
        }
        // An opted-in one is told of with its objects.
        let waits = self.watched.get(&name).is_some_and(|watched| !watched.told);
        let before = self.namespaces.get_or_insert_default().insert(name, sighting.clone());
        if self.spoken && !waits && before.as_ref() != Some(&sighting) {
            outcome.batch.push(Change::Applied(sighting));
        }
    }

    fn remove_namespace(&mut self, name: &Arc<str>, outcome: &mut Outcome) {
        self.unwatch(name, outcome);
        let known = self.namespaces.as_mut().and_then(|namespaces| namespaces.remove(name));
        if self.spoken && known.is_some() {
            let name = Name { namespace: "".into(), name: name.clone() };
            outcome.batch.push(Change::Deleted(Key { kind: Kind::Namespace, name }));
        }
    }

    fn unwatch(&mut self, namespace: &Arc<str>, outcome: &mut Outcome) {
        let Some(watched) = self.watched.remove(namespace) else { return };
        for (kind, listing) in Self::KINDS.into_iter().zip(watched.kinds) {
            if !listing.wide {
                outcome.end.push(Scope { kind, namespace: namespace.clone() });
            }
            outcome.batch.extend(listing.names.into_iter().map(|name| Change::Deleted(Key { kind, name })));
        }
    }

    /// Tells what has become whole.
    fn speak(&mut self, batch: &mut Batch) {
        let settled = |watched: &Watched| watched.is_whole() || watched.is_unreadable();
        if self.spoken || self.knows_optional() && self.watched.values().all(settled) {
            self.tell(batch);
        }
    }

    fn tell(&mut self, batch: &mut Batch) {
        let Some(namespaces) = &self.namespaces else { return };
        let mut objects: [Vec<Sighting>; Self::KINDS.len()] = Default::default();
        let mut news = Vec::new();
        for (name, watched) in self.watched.iter_mut().filter(|(_, watched)| !watched.told) {
            if watched.is_whole() {
                watched.told = true;
                news.extend(namespaces.get(name).cloned());
                for (listing, objects) in watched.kinds.iter_mut().zip(&mut objects) {
                    objects.extend(listing.release());
                }
            }
        }
        if self.spoken {
            batch.extend(objects.into_iter().flatten().chain(news).map(Change::Applied));
        } else {
            self.spoken = true;
            let told = |name: &Arc<str>| self.watched.get(name).is_none_or(|watched| watched.told);
            let namespaces = namespaces.iter().filter(|(name, _)| told(name));
            let namespaces = namespaces.map(|(_, sighting)| sighting.clone()).collect();
            batch.push(Change::Restarted(Kind::Namespace, namespaces));
            let optional = self.optional.iter_mut().map(Listing::release);
            let objects =
                Self::KINDS.into_iter().zip(objects).chain(Self::OPTIONAL.into_iter().zip(optional));
            batch.extend(objects.map(|(kind, objects)| Change::Restarted(kind, objects)));
        }
    }
}

impl Watched {
    fn is_whole(&self) -> bool {
        self.kinds.iter().all(|listing| listing.listed)
    }

    fn is_unreadable(&self) -> bool {
        self.kinds.iter().any(|listing| listing.unreadable)
    }
}

impl Listing {
    /// `told`: what it belongs to has been told of, so that news are told at once.
    fn hear(&mut self, kind: Kind, told: bool, news: News, batch: &mut Batch) {
        let name = |sighting: &Sighting| sighting.object.key().name;
        match news {
            News::Listed(all) => {
                self.listed = true;
                self.unreadable = false;
                if told {
                    let names: BTreeSet<_> = all.iter().map(name).collect();
                    let gone = self.names.difference(&names).cloned();
                    batch.extend(gone.map(|name| Change::Deleted(Key { kind, name })));
                    // Those that are as they were are no news to the builder.
                    batch.extend(all.into_iter().map(Change::Applied));
                    self.names = names;
                } else {
                    self.held = all.into_iter().map(|sighting| (name(&sighting), sighting)).collect();
                }
            }
            News::Applied(sighting) if told => {
                self.names.insert(name(&sighting));
                batch.push(Change::Applied(sighting));
            }
            News::Applied(sighting) => {
                self.held.insert(name(&sighting), sighting);
            }
            News::Deleted(key) if told => {
                self.names.remove(&key.name);
                batch.push(Change::Deleted(key));
            }
            News::Deleted(key) => {
                self.held.remove(&key.name);
            }
        }
    }

    /// What is held, to be told of. From now on its names are known.
    fn release(&mut self) -> Vec<Sighting> {
        let held = std::mem::take(&mut self.held);
        self.names = held.keys().cloned().collect();
        held.into_values().collect()
    }
}

/// Where a kind is kept.
enum Place {
    Namespaces,
    /// In [`Picture::optional`].
    Optional(usize),
    /// In [`Watched::kinds`].
    Namespaced(usize),
}

fn place(kind: Kind) -> Place {
    match kind {
        Kind::Namespace => Place::Namespaces,
        Kind::TrafficPolicy => Place::Optional(0),
        Kind::TrafficLane => Place::Optional(1),
        Kind::AccessPolicy => Place::Optional(2),
        Kind::HttpRoute => Place::Optional(3),
        Kind::GrpcRoute => Place::Optional(4),
        Kind::ReferenceGrant => Place::Optional(5),
        Kind::Mesh => Place::Optional(6),
        Kind::Service => Place::Namespaced(0),
        Kind::Pod => Place::Namespaced(1),
        Kind::EndpointSlice => Place::Namespaced(2),
    }
}

#[cfg(test)]
mod tests;
