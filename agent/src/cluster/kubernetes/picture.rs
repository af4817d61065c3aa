//! What the watches add up to: which namespaces are watched, and what is told when.
//!
//! A namespace is told of when all its kinds have been listed once, as a whole: a Service without its endpoints would
//! be governed into nothing. The same holds for the cluster at the beginning. What cannot be read must not hold up
//! the rest: a namespace with a kind that is forbidden stays ungoverned until it is allowed, and one whose lists fail
//! for another reason is waited for only so long. If none at all can be read the first picture waits, however long
//! that takes: an agent that governs nothing must not take the place of one that does. Sluice's own kinds are another
//! matter: without them (their definitions are not installed, or reading them is forbidden) a namespace is governed without
//! policies.
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
    /// The first whole picture has been told.
    spoken: bool,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) batch: Batch,
    /// Namespaces whose watches are to begin.
    pub(super) begin: Vec<Arc<str>>,
    /// Namespaces whose watches are to end. Comes before `begin`.
    pub(super) end: Vec<Arc<str>>,
}

/// An opted-in namespace.
#[derive(Default)]
struct Watched {
    /// By [`slot`].
    kinds: [Listing; Picture::KINDS.len()],
    told: bool,
}

#[derive(Default)]
struct Listing {
    listed: bool,
    unreadable: bool,
    /// While the namespace has not been told of.
    held: BTreeMap<Arc<str>, Sighting>,
    /// From then on.
    names: BTreeSet<Arc<str>>,
}

impl Picture {
    /// The kinds that are watched in a namespace.
    pub(super) const KINDS: [Kind; 5] =
        [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::TrafficPolicy, Kind::TrafficLane];

    pub(super) fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// Takes in what the watch of that scope says.
    pub(super) fn hear(&mut self, scope: &Scope, news: News) -> Outcome {
        let mut outcome = Outcome::default();
        match slot(scope.kind) {
            None => self.hear_namespaces(news, &mut outcome),
            Some(slot) => self.hear_objects(scope, slot, news, &mut outcome.batch),
        }
        self.speak(&mut outcome.batch);
        outcome
    }

    /// The first picture has been waited for long enough: it is told without what is missing, unless that is everything.
    pub(super) fn speak_of_what_is_whole(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.spoken && self.watched.values().any(Watched::is_whole) {
            self.tell(&mut outcome.batch);
        }
        outcome
    }

    /// That scope cannot be read, and will not be by trying again. What is known of it stays.
    pub(super) fn unreadable(&mut self, scope: &Scope) -> Outcome {
        let mut outcome = Outcome::default();
        if let (Some(slot), Some(watched)) = (slot(scope.kind), self.watched.get_mut(&scope.namespace)) {
            watched.kinds[slot].unreadable = true;
            self.speak(&mut outcome.batch);
        }
        outcome
    }

    fn hear_namespaces(&mut self, news: News, outcome: &mut Outcome) {
        match news {
            News::Listed(all) => {
                let all: BTreeMap<_, _> =
                    all.into_iter().map(|sighting| (sighting.object.key().name.name, sighting)).collect();
                let known = self.namespaces.get_or_insert_default();
                let gone: Vec<_> = known.keys().filter(|name| !all.contains_key(*name)).cloned().collect();
                for name in gone {
                    self.remove_namespace(&name, outcome);
                }
                for sighting in all.into_values() {
                    self.set_namespace(sighting, outcome);
                }
            }
            News::Applied(sighting) => self.set_namespace(sighting, outcome),
            News::Deleted(key) => self.remove_namespace(&key.name.name, outcome),
        }
    }

    fn set_namespace(&mut self, sighting: Sighting, outcome: &mut Outcome) {
        let Object::Namespace(namespace) = &sighting.object else { return };
        let name = namespace.name.clone();
        if namespace.capture == Some(true) {
            if let Entry::Vacant(entry) = self.watched.entry(name.clone()) {
                entry.insert(Watched::default());
                outcome.begin.push(name.clone());
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
            outcome.batch.extend(listing.names.into_iter().map(|name| deleted(kind, namespace, name)));
        }
        outcome.end.push(namespace.clone());
    }

    fn hear_objects(&mut self, scope: &Scope, slot: usize, news: News, batch: &mut Batch) {
        let Some(watched) = self.watched.get_mut(&scope.namespace) else { return };
        let listing = &mut watched.kinds[slot];
        let name = |sighting: &Sighting| sighting.object.key().name.name;
        match news {
            News::Listed(all) => {
                listing.listed = true;
                listing.unreadable = false;
                if watched.told {
                    let names: BTreeSet<_> = all.iter().map(name).collect();
                    let gone = listing.names.difference(&names).cloned();
                    batch.extend(gone.map(|name| deleted(scope.kind, &scope.namespace, name)));
                    // Those that are as they were are no news to the builder.
                    batch.extend(all.into_iter().map(Change::Applied));
                    listing.names = names;
                } else {
                    listing.held = all.into_iter().map(|sighting| (name(&sighting), sighting)).collect();
                }
            }
            News::Applied(sighting) if watched.told => {
                listing.names.insert(name(&sighting));
                batch.push(Change::Applied(sighting));
            }
            News::Applied(sighting) => {
                listing.held.insert(name(&sighting), sighting);
            }
            News::Deleted(key) if watched.told => {
                listing.names.remove(&key.name.name);
                batch.push(Change::Deleted(key));
            }
            News::Deleted(key) => {
                listing.held.remove(&key.name.name);
            }
        }
    }

    /// Tells what has become whole.
    fn speak(&mut self, batch: &mut Batch) {
        if self.spoken || self.watched.values().all(|watched| watched.is_whole() || watched.is_unreadable()) {
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
                    let held = std::mem::take(&mut listing.held);
                    listing.names = held.keys().cloned().collect();
                    objects.extend(held.into_values());
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
            let objects = Self::KINDS.into_iter().zip(objects);
            batch.extend(objects.map(|(kind, objects)| Change::Restarted(kind, objects)));
        }
    }
}

impl Watched {
    fn is_whole(&self) -> bool {
        let mut kinds = Picture::KINDS.into_iter().zip(&self.kinds);
        kinds.all(|(kind, listing)| listing.listed || listing.unreadable && kind.is_own())
    }

    fn is_unreadable(&self) -> bool {
        let mut kinds = Picture::KINDS.into_iter().zip(&self.kinds);
        kinds.any(|(kind, listing)| listing.unreadable && !kind.is_own())
    }
}

/// Where a namespace's kind is in [`Watched::kinds`]; `None` for Namespaces themselves.
fn slot(kind: Kind) -> Option<usize> {
    Picture::KINDS.iter().position(|other| *other == kind)
}

fn deleted(kind: Kind, namespace: &Arc<str>, name: Arc<str>) -> Change {
    Change::Deleted(Key { kind, name: Name { namespace: namespace.clone(), name } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::object::{Namespace, Pod},
        govern::caller::Labels,
    };

    fn scope(kind: Kind, namespace: &str) -> Scope {
        Scope { kind, namespace: namespace.into() }
    }

    fn namespace(name: &str, capture: Option<bool>) -> Sighting {
        let namespace = Namespace { name: name.into(), capture, access_log: None };
        Sighting { object: Object::Namespace(namespace), problems: Vec::new() }
    }

    fn pod(namespace: &str, name: &str) -> Sighting {
        let pod = Pod {
            name: Name { namespace: namespace.into(), name: name.into() },
            uid: None,
            cgroup_uid: None,
            ips: Vec::new(),
            tag: None,
            labels: Labels::default(),
            workload: None,
            capture: None,
            node: None,
            zone: None,
            host_network: false,
            ready_since: None,
            own_proxy: None,
            terminating: false,
            finished: false,
        };
        Sighting { object: Object::Pod(pod), problems: Vec::new() }
    }

    /// `+Pod shop/a`, `-Pod shop/a`, `=Pod shop/a,shop/b`.
    fn told(outcome: &Outcome) -> Vec<String> {
        let change = |change: &Change| match change {
            Change::Applied(sighting) => format!("+{}", sighting.object.key()),
            Change::Deleted(key) => format!("-{key}"),
            Change::Restarted(kind, all) => {
                let names: Vec<_> =
                    all.iter().map(|sighting| sighting.object.key().name.to_string()).collect();
                format!("={kind} {}", names.join(","))
            }
        };
        outcome.batch.iter().map(change).collect()
    }

    fn namespaces(picture: &mut Picture, all: &[(&str, Option<bool>)]) -> Outcome {
        let all = all.iter().map(|(name, capture)| namespace(name, *capture)).collect();
        picture.hear(&scope(Kind::Namespace, ""), News::Listed(all))
    }

    fn list(picture: &mut Picture, kind: Kind, namespace: &str, pods: &[&str]) -> Vec<String> {
        let pods = pods.iter().map(|name| pod(namespace, name)).collect();
        told(&picture.hear(&scope(kind, namespace), News::Listed(pods)))
    }

    /// The first picture of one namespace with pods `a` and `b`.
    fn shop() -> Picture {
        let mut picture = Picture::default();
        assert_eq!(*namespaces(&mut picture, &[("shop", Some(true))]).begin, ["shop".into()]);
        assert_eq!(list(&mut picture, Kind::Service, "shop", &[]), [""; 0]);
        assert_eq!(list(&mut picture, Kind::Pod, "shop", &["a", "b"]), [""; 0]);
        let first = [
            "=Namespace shop",
            "=Service ",
            "=EndpointSlice ",
            "=Pod shop/a,shop/b",
            "=TrafficPolicy ",
            "=TrafficLane ",
        ];
        assert_eq!(list(&mut picture, Kind::EndpointSlice, "shop", &[]), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficPolicy, "shop", &[]), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficLane, "shop", &[]), first);
        picture
    }

    #[test]
    fn a_cluster_without_opted_in_namespaces_is_told_at_once() {
        let mut picture = Picture::default();
        let outcome = namespaces(&mut picture, &[("bank", None), ("pub", Some(false))]);
        assert_eq!(
            told(&outcome),
            [
                "=Namespace bank,pub",
                "=Service ",
                "=EndpointSlice ",
                "=Pod ",
                "=TrafficPolicy ",
                "=TrafficLane "
            ]
        );
        assert!(outcome.begin.is_empty());
    }

    #[test]
    fn a_resync_tells_the_difference() {
        let mut picture = shop();
        assert_eq!(
            list(&mut picture, Kind::Pod, "shop", &["b", "c"]),
            ["-Pod shop/a", "+Pod shop/b", "+Pod shop/c"]
        );
        assert_eq!(told(&namespaces(&mut picture, &[("shop", Some(true))])), [""; 0]);
        let outcome = namespaces(&mut picture, &[]);
        assert_eq!(told(&outcome), ["-Pod shop/b", "-Pod shop/c", "-Namespace shop"]);
        assert_eq!(*outcome.end, ["shop".into()]);
    }

    #[test]
    fn what_changes_before_a_namespace_is_whole_comes_with_it() {
        let mut picture = shop();
        assert_eq!(told(&namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))])), [""; 0]);
        assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a", "b"]), [""; 0]);
        let pods = scope(Kind::Pod, "bank");
        assert_eq!(told(&picture.hear(&pods, News::Applied(pod("bank", "c")))), [""; 0]);
        assert_eq!(told(&picture.hear(&pods, News::Deleted(pod("bank", "a").object.key()))), [""; 0]);
        assert_eq!(list(&mut picture, Kind::Service, "bank", &[]), [""; 0]);
        assert_eq!(list(&mut picture, Kind::EndpointSlice, "bank", &[]), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficPolicy, "bank", &[]), [""; 0]);
        let whole = ["+Pod bank/b", "+Pod bank/c", "+Namespace bank"];
        assert_eq!(list(&mut picture, Kind::TrafficLane, "bank", &[]), whole);
    }

    #[test]
    fn a_namespace_that_goes_no_longer_holds_up_the_first_picture() {
        let mut picture = Picture::default();
        namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]);
        let gone = News::Deleted(namespace("shop", None).object.key());
        let outcome = picture.hear(&scope(Kind::Namespace, ""), gone);
        assert_eq!(
            told(&outcome),
            ["=Namespace bank", "=Service ", "=EndpointSlice ", "=Pod ", "=TrafficPolicy ", "=TrafficLane "]
        );
        assert_eq!(*outcome.end, ["shop".into()]);
    }

    #[test]
    fn the_first_picture_does_not_wait_for_ever_unless_there_is_nothing() {
        let mut picture = Picture::default();
        assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "the namespaces are not known");
        namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))]);
        assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "none can be read");
        for kind in Picture::KINDS {
            assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
        }
        let first =
            ["=Namespace shop", "=Service ", "=EndpointSlice ", "=Pod ", "=TrafficPolicy ", "=TrafficLane "];
        assert_eq!(told(&picture.speak_of_what_is_whole()), first);
        assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "once");
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::TrafficPolicy, Kind::TrafficLane] {
            assert_eq!(list(&mut picture, kind, "bank", &[]), [""; 0]);
        }
        assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a"]), ["+Pod bank/a", "+Namespace bank"]);
    }

    #[test]
    fn a_forbidden_namespace_stays_out_until_it_is_whole() {
        let mut picture = Picture::default();
        namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))]);
        for kind in Picture::KINDS {
            assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
        }
        let first = picture.unreadable(&scope(Kind::Pod, "bank"));
        assert_eq!(
            told(&first),
            ["=Namespace shop", "=Service ", "=EndpointSlice ", "=Pod ", "=TrafficPolicy ", "=TrafficLane "]
        );
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::TrafficPolicy, Kind::TrafficLane] {
            assert_eq!(list(&mut picture, kind, "bank", &[]), [""; 0]);
        }
        assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a"]), ["+Pod bank/a", "+Namespace bank"]);
        // Forbidden from now on: what is known stays.
        assert_eq!(told(&picture.unreadable(&scope(Kind::Pod, "bank"))), [""; 0]);
    }

    #[test]
    fn a_cluster_without_own_kinds_is_governed_without_policies() {
        let mut picture = Picture::default();
        namespaces(&mut picture, &[("shop", Some(true))]);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Pod] {
            assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
        }
        assert_eq!(told(&picture.unreadable(&scope(Kind::TrafficPolicy, "shop"))), [""; 0]);
        let first = told(&picture.unreadable(&scope(Kind::TrafficLane, "shop")));
        assert_eq!(first[0], "=Namespace shop");
        // They are installed. (A pod stands for what is of the kind.)
        assert_eq!(list(&mut picture, Kind::TrafficLane, "shop", &["gray"]), ["+Pod shop/gray"]);
        // They cannot be read any more: what is known stays.
        assert_eq!(told(&picture.unreadable(&scope(Kind::TrafficLane, "shop"))), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficLane, "shop", &[]), ["-TrafficLane shop/gray"]);
    }
}
