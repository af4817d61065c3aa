//! What the watches add up to: which namespaces are watched, and what is told when.
//!
//! A namespace is told of when all its kinds have been listed once, as a whole: a Service without its endpoints would
//! be governed into nothing. The same holds for the cluster at the beginning. What cannot be read must not hold up
//! the rest: a namespace with a kind that is forbidden stays ungoverned until it is allowed, and one whose lists fail
//! for another reason is waited for only so long. If none at all can be read the first picture waits, however long
//! that takes: an agent that governs nothing must not take the place of one that does.
//!
//! Sluice's own kinds are another matter. They are watched in the whole cluster, so that a policy in a namespace that is not
//! opted in can be told so, and are told of as they come. The first picture waits for them, unless they cannot be read (their
//! definitions are not installed, or it is forbidden): then all is governed without policies.
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
    /// Sluice's own kinds, by their place in [`Picture::OWN`].
    own: [Listing; Picture::OWN.len()],
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
    /// By their place in [`Picture::KINDS`].
    kinds: [Listing; Picture::KINDS.len()],
    told: bool,
}

#[derive(Default)]
struct Listing {
    listed: bool,
    unreadable: bool,
    /// While what it belongs to has not been told of.
    held: BTreeMap<Name, Sighting>,
    /// From then on.
    names: BTreeSet<Name>,
}

impl Picture {
    /// The kinds that are watched in a namespace.
    pub(super) const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Pod];
    /// Those that are watched in the whole cluster, besides Namespaces.
    pub(super) const OWN: [Kind; 2] = [Kind::TrafficPolicy, Kind::TrafficLane];

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
            Place::Unwatched => {}
            Place::Own(slot) => self.own[slot].hear(scope.kind, self.spoken, news, &mut outcome.batch),
            Place::Namespaced(slot) => {
                if let Some(watched) = self.watched.get_mut(&scope.namespace) {
                    watched.kinds[slot].hear(scope.kind, watched.told, news, &mut outcome.batch);
                }
            }
        }
        self.speak(&mut outcome.batch);
        outcome
    }

    /// The first picture has been waited for long enough: it is told without what is missing, unless that is everything.
    pub(super) fn speak_of_what_is_whole(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.spoken && self.knows_own() && self.watched.values().any(Watched::is_whole) {
            self.tell(&mut outcome.batch);
        }
        outcome
    }

    /// That scope cannot be read, and will not be by trying again. What is known of it stays.
    pub(super) fn unreadable(&mut self, scope: &Scope) -> Outcome {
        let mut outcome = Outcome::default();
        let listing = match place(scope.kind) {
            Place::Namespaces | Place::Unwatched => None,
            Place::Own(slot) => Some(&mut self.own[slot]),
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

    /// Sluice's own kinds have been listed, or cannot be.
    fn knows_own(&self) -> bool {
        self.own.iter().all(|listing| listing.listed || listing.unreadable)
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
            outcome.batch.extend(listing.names.into_iter().map(|name| Change::Deleted(Key { kind, name })));
        }
        outcome.end.push(namespace.clone());
    }

    /// Tells what has become whole.
    fn speak(&mut self, batch: &mut Batch) {
        let settled = |watched: &Watched| watched.is_whole() || watched.is_unreadable();
        if self.spoken || self.knows_own() && self.watched.values().all(settled) {
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
            let own = self.own.iter_mut().map(Listing::release);
            let objects = Self::KINDS.into_iter().zip(objects).chain(Self::OWN.into_iter().zip(own));
            batch.extend(objects.map(|(kind, objects)| Change::Restarted(kind, objects)));
            // They are not watched.
            batch.extend(Kind::OF_GATEWAY.map(|kind| Change::Restarted(kind, Vec::new())));
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
    /// In [`Picture::own`].
    Own(usize),
    /// In [`Watched::kinds`].
    Namespaced(usize),
    /// Nowhere: it is not watched.
    Unwatched,
}

fn place(kind: Kind) -> Place {
    match kind {
        Kind::Namespace => Place::Namespaces,
        Kind::TrafficPolicy => Place::Own(0),
        Kind::TrafficLane => Place::Own(1),
        Kind::Service => Place::Namespaced(0),
        Kind::EndpointSlice => Place::Namespaced(1),
        Kind::Pod => Place::Namespaced(2),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::ReferenceGrant => Place::Unwatched,
    }
}

#[cfg(test)]
<<<<<<< HEAD
mod tests;
=======
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
        // Of what is not watched it says once that there is nothing.
        let unwatched = |change: &Change| matches!(change, Change::Restarted(kind, all) if Kind::OF_GATEWAY.contains(kind) && all.is_empty());
        outcome.batch.iter().filter(|change| !unwatched(change)).map(change).collect()
    }

    fn namespaces(picture: &mut Picture, all: &[(&str, Option<bool>)]) -> Outcome {
        let all = all.iter().map(|(name, capture)| namespace(name, *capture)).collect();
        picture.hear(&scope(Kind::Namespace, ""), News::Listed(all))
    }

    /// Sluice's own kinds are there, and nothing is of them.
    fn fresh() -> Picture {
        let mut picture = Picture::default();
        for kind in Picture::OWN {
            assert_eq!(list(&mut picture, kind, "", &[]), [""; 0]);
        }
        picture
    }

    fn list(picture: &mut Picture, kind: Kind, namespace: &str, pods: &[&str]) -> Vec<String> {
        let pods = pods.iter().map(|name| pod(namespace, name)).collect();
        told(&picture.hear(&scope(kind, namespace), News::Listed(pods)))
    }

    /// The first picture of one namespace with pods `a` and `b`.
    fn shop() -> Picture {
        let mut picture = fresh();
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
        assert_eq!(list(&mut picture, Kind::EndpointSlice, "shop", &[]), first);
        picture
    }

    #[test]
    fn a_cluster_without_opted_in_namespaces_is_told_at_once() {
        let mut picture = fresh();
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
        let whole = ["+Pod bank/b", "+Pod bank/c", "+Namespace bank"];
        assert_eq!(list(&mut picture, Kind::EndpointSlice, "bank", &[]), whole);
    }

    #[test]
    fn a_namespace_that_goes_no_longer_holds_up_the_first_picture() {
        let mut picture = fresh();
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
        let mut picture = fresh();
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
        for kind in [Kind::Service, Kind::EndpointSlice] {
            assert_eq!(list(&mut picture, kind, "bank", &[]), [""; 0]);
        }
        assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a"]), ["+Pod bank/a", "+Namespace bank"]);
    }

    #[test]
    fn a_forbidden_namespace_stays_out_until_it_is_whole() {
        let mut picture = fresh();
        namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))]);
        for kind in Picture::KINDS {
            assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
        }
        let first = picture.unreadable(&scope(Kind::Pod, "bank"));
        assert_eq!(
            told(&first),
            ["=Namespace shop", "=Service ", "=EndpointSlice ", "=Pod ", "=TrafficPolicy ", "=TrafficLane "]
        );
        for kind in [Kind::Service, Kind::EndpointSlice] {
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
        for kind in Picture::KINDS {
            assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
        }
        assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "policies may yet come");
        assert_eq!(told(&picture.unreadable(&scope(Kind::TrafficPolicy, ""))), [""; 0]);
        let first = told(&picture.unreadable(&scope(Kind::TrafficLane, "")));
        assert_eq!(first[0], "=Namespace shop");
        // They are installed. (A pod stands for what is of the kind.)
        assert_eq!(list(&mut picture, Kind::TrafficLane, "", &["gray"]), ["+Pod gray"]);
        // They cannot be read any more: what is known stays.
        assert_eq!(told(&picture.unreadable(&scope(Kind::TrafficLane, ""))), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficLane, "", &[]), ["-TrafficLane gray"]);
    }

    #[test]
    fn own_kinds_are_told_of_wherever_they_are() {
        let mut picture = Picture::default();
        let own = scope(Kind::TrafficPolicy, "");
        let all = vec![pod("shop", "p"), pod("bank", "p"), pod("bank", "gone")];
        assert_eq!(told(&picture.hear(&own, News::Listed(all))), [""; 0]);
        assert_eq!(told(&picture.hear(&own, News::Deleted(pod("bank", "gone").object.key()))), [""; 0]);
        assert_eq!(list(&mut picture, Kind::TrafficLane, "", &[]), [""; 0]);
        let outcome = namespaces(&mut picture, &[("shop", None), ("bank", None)]);
        assert_eq!(told(&outcome)[4], "=TrafficPolicy bank/p,shop/p");
        // They outlive the watches on their namespace, and come before it is whole.
        assert_eq!(*namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]).begin, ["shop".into()]);
        assert_eq!(told(&picture.hear(&own, News::Applied(pod("shop", "q")))), ["+Pod shop/q"]);
        let outcome = namespaces(&mut picture, &[("shop", None), ("bank", None)]);
        assert_eq!(told(&outcome), ["+Namespace shop"]);
        let gone = told(&picture.hear(&own, News::Listed(vec![pod("shop", "q")])));
        assert_eq!(gone, ["-TrafficPolicy bank/p", "-TrafficPolicy shop/p", "+Pod shop/q"]);
    }
}
>>>>>>> c02f0bd (Tell of the kinds of Gateway API that there are none where they are not watched)
