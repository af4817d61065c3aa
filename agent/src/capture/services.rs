//! Keeps the kernel's set of governed destinations equal to the snapshot's.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ahash::{AHashMap, AHashSet};

use sluice_ebpf::DIRECT;

use super::{error::with_causes, flows::Flows, maps};
use crate::cluster::{
    model::{self, Destination, PortKey, Routed, Snapshot},
    shared::SharedMap,
};

/// The governed destinations that the kernel knows.
pub(crate) struct Services {
    map: maps::Services,
    book: Book,
    /// Hands the numbers out.
    flows: Arc<Flows>,
}

impl Services {
    pub(crate) fn new(map: maps::Services, flows: Arc<Flows>) -> Self {
        Self { map, book: Book::default(), flows }
    }

    pub(crate) fn len(&self) -> usize {
        self.book.there
    }

    /// Whether connections to this address are redirected.
    pub(crate) fn redirects(&self, address: SocketAddr) -> bool {
        let entry = self.book.entries.get(&address);
        entry.and_then(|entry| entry.there).is_some_and(|value| value & DIRECT == 0)
    }

    /// Removes what is gone and adds what is new; what stays is not touched, nor looked at. What fails is tried again with the
    /// next snapshot.
    pub(crate) fn sync(&mut self, snapshot: &Snapshot) {
        let todo = self.book.next(snapshot, |service| self.flows.number(service));
        let mut failures = 0;
        let mut last_error = None;
        // First, so that there is room for what is new.
        let removed = todo.remove.into_iter().map(|address| (address, None));
        let set = todo.set.into_iter().map(|(address, value)| (address, Some(value)));
        for (address, value) in removed.chain(set) {
            let done = match value {
                Some(value) => self.map.set(address, value),
                None => self.map.remove(address),
            };
            match done {
                Ok(()) => self.book.done(address, value),
                Err(error) => {
                    failures += 1;
                    last_error = Some((address, with_causes(&error)));
                }
            }
        }
        self.flows.gone(&todo.gone, Instant::now());
        if let Some((address, error)) = last_error {
            tracing::error!(
                failures, %address, error,
                "the kernel's list of managed destinations is not up to date (it holds {} at most)",
                sluice_ebpf::MAX_SERVICES
            );
        }
    }
}

/// What the kernel is to know, and what it does. A value is the number of the service behind an address, and whether connections
/// go direct.
#[derive(Default)]
struct Book {
    entries: AHashMap<SocketAddr, Entry>,
    /// How many of them the kernel knows.
    there: usize,
    /// What was wanted last.
    last: SharedMap<SocketAddr, Destination>,
    last_routes: Arc<AHashMap<PortKey, Arc<Routed>>>,
    /// Where the kernel does not know what is wanted.
    undone: AHashSet<SocketAddr>,
    /// How many addresses lead to a service, by its number.
    uses: AHashMap<u32, u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    wanted: Option<u32>,
    there: Option<u32>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Todo {
    remove: Vec<SocketAddr>,
    set: Vec<(SocketAddr, u32)>,
    /// Numbers of services that no address leads to any more.
    gone: Vec<u32>,
}

impl Book {
    /// Takes in what is wanted now; gives what is to be done. Looks at what is different from last time only.
    fn next(&mut self, snapshot: &Snapshot, mut number: impl FnMut(&model::Service) -> u32) -> Todo {
        let wanted = &snapshot.destinations;
        let last = std::mem::replace(&mut self.last, wanted.clone());
        let last_routes = std::mem::replace(&mut self.last_routes, snapshot.routes.clone());
        let mut todo = Todo::default();
        let mut released = Vec::new();
        let other = wanted.differences(&last).filter_map(|(address, before, now)| {
            let same = before.zip(now).is_some_and(|(before, now)| before.is_same(now));
            (!same).then_some((address, now))
        });
        // A Service whose first route came, or whose last one went. Most changes of routes are of what they say.
        let ports = |one: &AHashMap<PortKey, Arc<Routed>>, other: &AHashMap<PortKey, Arc<Routed>>| {
            one.keys().any(|port| !other.contains_key(port))
        };
        let moved = !Arc::ptr_eq(&last_routes, &snapshot.routes)
            && (ports(&last_routes, &snapshot.routes) || ports(&snapshot.routes, &last_routes));
        let routed = moved.then_some(wanted).into_iter().flat_map(SharedMap::iter);
        let routed = routed.filter(|(address, destination)| {
            let before = model::routed(&last_routes, **address, destination).is_some();
            before != snapshot.routed(**address, destination).is_some()
        });
        let routed = routed.map(|(address, destination)| (address, Some(destination)));
        for (address, now) in other.chain(routed) {
            let value = now.map(|destination| {
                let redirected = snapshot.is_redirected(*address, destination);
                number(&destination.service) | if redirected { 0 } else { DIRECT }
            });
            let entry = self.entries.entry(*address).or_default();
            let before = std::mem::replace(&mut entry.wanted, value);
            if before == value {
                continue;
            }
            if let Some(value) = value {
                *self.uses.entry(value & !DIRECT).or_default() += 1;
            }
            released.extend(before.map(|value| value & !DIRECT));
            self.undone.insert(*address);
        }
        for number in released {
            if let Some(uses) = self.uses.get_mut(&number) {
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.uses.remove(&number);
                    todo.gone.push(number);
                }
            }
        }
        let entries = &mut self.entries;
        self.undone.retain(|address| {
            let entry = entries.get(address).copied().unwrap_or_default();
            match entry.wanted {
                // As it was before somebody changed his mind.
                wanted if wanted == entry.there => {
                    if wanted.is_none() {
                        entries.remove(address);
                    }
                    return false;
                }
                Some(value) => todo.set.push((*address, value)),
                None => todo.remove.push(*address),
            }
            true
        });
        todo
    }

    /// The kernel has it so.
    fn done(&mut self, address: SocketAddr, there: Option<u32>) {
        let entry = self.entries.entry(address).or_default();
        self.there = self.there + usize::from(there.is_some()) - usize::from(entry.there.is_some());
        entry.there = there;
        if entry.wanted == there {
            self.undone.remove(&address);
            if there.is_none() {
                self.entries.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::model::Service, govern::endpoint::Endpoint};

    /// A service that has somebody to answer, or nobody.
    fn destination(name: &str, answers: bool) -> Destination {
        let mut endpoint = Endpoint::new(([10, 244, 0, 1], 80).into());
        (endpoint.ready, endpoint.serving) = (answers, answers);
        let service = Service::new("shop", name, 80).with_endpoints(vec![Arc::new(endpoint)]);
        Destination { service: Arc::new(service), pinned: None }
    }

    fn number(service: &Service) -> u32 {
        service.name.bytes().map(u32::from).sum()
    }

    impl Book {
        fn step(&mut self, wanted: &SharedMap<SocketAddr, Destination>) -> Todo {
            let snapshot = Snapshot { destinations: wanted.clone(), ..Snapshot::default() };
            let mut todo = self.next(&snapshot, number);
            todo.set.sort_unstable();
            todo.remove.sort_unstable();
            todo
        }

        fn all_done(&mut self, todo: &Todo) {
            for address in &todo.remove {
                self.done(*address, None);
            }
            for (address, value) in &todo.set {
                self.done(*address, Some(*value));
            }
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_difference_is_done() {
        let [stays, comes, goes, moves] =
            ["10.96.0.1:80", "[fd00::1]:80", "10.96.0.1:81", "10.96.0.2:80"].map(at);
        let mut wanted = SharedMap::from_iter([
            (stays, destination("a", true)),
            (goes, destination("b", true)),
            (moves, destination("b", true)),
        ]);
        let mut book = Book::default();
        let first = book.step(&wanted);
        assert_eq!(first.set, [(stays, 97), (goes, 98), (moves, 98)]);
        book.all_done(&first);
        assert_eq!((book.there, &book.step(&wanted)), (3, &Todo::default()));
        wanted.remove(&goes);
        wanted.insert(moves, destination("c", true));
        wanted.insert(comes, destination("a", false));
        // Built anew, and the same to the kernel.
        wanted.insert(stays, destination("a", true));
        let second = book.step(&wanted);
        let direct = number(&Service::new("shop", "a", 80)) | DIRECT;
        let expected = Todo { remove: vec![goes], set: vec![(moves, 99), (comes, direct)], gone: vec![98] };
        assert_eq!(second, expected);
        book.all_done(&second);
        assert_eq!((book.there, book.step(&wanted)), (3, Todo::default()));
        let last = book.step(&SharedMap::default());
        assert_eq!(last.remove.len(), 3);
        book.all_done(&last);
        assert!(book.there == 0 && book.entries.is_empty() && book.uses.is_empty() && book.undone.is_empty());
    }

    #[test]
    fn what_failed_is_tried_again_until_it_is_not_wanted_any_more() {
        let address = at("10.96.0.1:80");
        let mut wanted = SharedMap::from_iter([(address, destination("a", true))]);
        let mut book = Book::default();
        for _ in 0..2 {
            assert_eq!(book.step(&wanted).set, [(address, 97)]);
        }
        wanted.remove(&address);
        assert_eq!(book.step(&wanted), Todo { gone: vec![97], ..Todo::default() }, "the kernel never had it");
        assert!(book.entries.is_empty());
        wanted.insert(address, destination("a", true));
        let todo = book.step(&wanted);
        book.all_done(&todo);
        // What cannot be removed is known until it is.
        wanted.remove(&address);
        for _ in 0..2 {
            assert_eq!((book.step(&wanted).remove, book.there), (vec![address], 1));
        }
        book.done(address, None);
        assert_eq!((book.step(&wanted), book.there), (Todo::default(), 0));
    }
}
