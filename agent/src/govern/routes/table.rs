//! Routes, compiled: an exact path is looked up by its hash, a prefix in a trie of path elements, and regular expressions are
//! tried one after the other.
//!
//! A path belongs to one exact entry and to the prefixes on one way down the trie, so that routes for other paths cost a
//! request nothing. Matches on the same path are tried in their order, which was made once.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::{
    Found, Route, Rule,
    matching::{Match, PathTest, grpc_method},
    precedence::{seniority, specificity},
};
use crate::govern::request::Request;

/// Places in `Table::entries`, ascending: the first that holds counts.
type Places = Vec<u32>;

#[derive(Debug)]
pub(super) struct Table {
    /// In the order of their precedence.
    entries: Vec<Entry>,
    exact: AHashMap<Box<[u8]>, Places>,
    /// The first is the root, which has no entries.
    nodes: Vec<Node>,
    /// Those whose paths are no words: regular expressions and methods of gRPC.
    loose: Places,
    /// Those that are about every path.
    any: Places,
}

#[derive(Debug)]
struct Entry {
    rule: Arc<Rule>,
    /// Which of the rule's matches.
    which: usize,
    prefix: usize,
}

impl Entry {
    fn wanted(&self) -> &Match {
        &self.rule.matches[self.which]
    }
}

/// An element of a prefix.
#[derive(Debug, Default)]
struct Node {
    above: usize,
    below: AHashMap<Box<[u8]>, usize>,
    places: Places,
}

impl Table {
    pub(super) fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(|one, other| seniority(&one.age).cmp(&seniority(&other.age)));
        let rules = routes.iter().flat_map(|route| &route.rules);
        let mut entries: Vec<Entry> = rules
            .flat_map(|rule| {
                rule.matches.iter().enumerate().map(|(which, one)| Entry {
                    rule: rule.clone(),
                    which,
                    prefix: one.path.elements(),
                })
            })
            .collect();
        // Stable: what is alike stays in the order of the routes, and of the rules in them.
        entries.sort_by_key(|entry| specificity(entry.wanted()));

        let mut table = Self {
            entries: Vec::new(),
            exact: AHashMap::new(),
            nodes: vec![Node::default()],
            loose: Places::new(),
            any: Places::new(),
        };
        for (at, entry) in (0_u32..).zip(&entries) {
            match &entry.wanted().path {
                PathTest::Exact(path) => {
                    table.exact.entry(path.as_bytes().into()).or_default().push(at);
                }
                PathTest::Prefix(prefix) => {
                    let node = table.node(prefix);
                    table.nodes[node].places.push(at);
                }
                PathTest::Method(_) | PathTest::Regex(_) => table.loose.push(at),
                PathTest::Any => table.any.push(at),
            }
        }
        table.entries = entries;
        table
    }

    /// The node of a prefix, made if it is not there.
    fn node(&mut self, prefix: &str) -> usize {
        let mut at = 0;
        for element in prefix.as_bytes().split(|byte| *byte == b'/').skip(1) {
            at = if let Some(next) = self.nodes[at].below.get(element) {
                *next
            } else {
                let next = self.nodes.len();
                self.nodes.push(Node { above: at, ..Node::default() });
                self.nodes[at].below.insert(element.into(), next);
                next
            };
        }
        at
    }

    pub(super) fn find(&self, request: &impl Request) -> Option<Found<'_>> {
        let path = request.normal_path();
        let first = |places: &Places| self.first(places, request);
        let exact = self.exact.get(&*path).and_then(first);
        let found = exact.or_else(|| self.find_prefix(&path, request)).or_else(|| {
            let loose = &self.loose;
            loose.iter().copied().find(|place| self.is_like(*place, &path) && self.holds(*place, request))
        });
        let place = found.or_else(|| first(&self.any))?;
        let entry = &self.entries[place as usize];
        Some(Found { rule: &entry.rule, prefix: entry.prefix })
    }

    /// Goes down as far as the path goes, and up again until something holds: the longest prefix first.
    fn find_prefix(&self, path: &[u8], request: &impl Request) -> Option<u32> {
        let mut at = 0;
        // `*` and the authority of CONNECT are no paths.
        for element in path.strip_prefix(b"/")?.split(|byte| *byte == b'/') {
            match self.nodes[at].below.get(element) {
                Some(next) => at = *next,
                None => break,
            }
        }
        while at != 0 {
            let node = &self.nodes[at];
            if let Some(place) = self.first(&node.places, request) {
                return Some(place);
            }
            at = node.above;
        }
        None
    }

    fn first(&self, places: &Places, request: &impl Request) -> Option<u32> {
        places.iter().copied().find(|place| self.holds(*place, request))
    }

    fn holds(&self, place: u32, request: &impl Request) -> bool {
        self.entries[place as usize].wanted().holds_beside_path(request)
    }

    fn is_like(&self, place: u32, path: &[u8]) -> bool {
        match &self.entries[place as usize].wanted().path {
            PathTest::Regex(pattern) => pattern.0.is_match(path),
            PathTest::Method(method) => grpc_method(path) == Some(method.as_bytes()),
            _ => false,
        }
    }

    /// Each rule once, where the best of its matches stands.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        let mut seen = AHashSet::new();
        let rules = self.entries.iter().map(|entry| &entry.rule);
        rules.filter(move |rule| seen.insert(Arc::as_ptr(rule).addr()))
    }
}
