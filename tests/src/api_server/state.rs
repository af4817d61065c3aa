//! What the double knows: objects, the events that led to them, and what it is to do wrong.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Break, Counter, Fault, Schema, counted::Costs, exec::Kubelets, strict};

/// Namespace (empty for none) and name.
pub(super) type Name = (String, String);

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) requests: Counter,
    pub(super) costs: Arc<Costs>,
    pub(super) without_http2: AtomicBool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics must not make another one panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object at one version. Kept as text, of which a large cluster has less than of values.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) json: String,
    /// Fields that clients select by.
    fields: [(&'static str, String); 3],
}

impl Stored {
    fn new(object: &Value) -> Self {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let fields = [
            ("metadata.name", text("/metadata/name")),
            ("status.phase", text("/status/phase")),
            ("spec.nodeName", text("/spec/nodeName")),
        ];
        Self { json: object.to_string(), fields }
    }
}

/// A change of one object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) namespace: String,
    pub(super) before: Option<Arc<Stored>>,
    /// With a deletion the object as it was, at the deletion's version.
    pub(super) after: Arc<Stored>,
    pub(super) deleted: bool,
}

/// All of one resource.
#[derive(Debug, Default)]
pub(super) struct Collection {
    pub(super) objects: BTreeMap<Name, Arc<Stored>>,
    /// In the order of their versions.
    pub(super) events: Vec<Event>,
    /// Watches by what they are on: a namespace, or (empty) all.
    changed: HashMap<String, watch::Sender<()>>,
}

impl Collection {
    pub(super) fn subscribe(&mut self, namespace: &str) -> watch::Receiver<()> {
        self.changed.entry(namespace.to_owned()).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    fn notify(&self, namespace: &str) {
        for of in [namespace, ""] {
            if let Some(changed) = self.changed.get(of) {
                changed.send_replace(());
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) collections: HashMap<String, Collection>,
    /// Watches from before this version are Gone.
    pub(super) oldest: u64,
    faults: HashMap<(&'static str, String), Fault>,
    /// How often watches were broken off, and how the last time.
    pub(super) broken: (u64, Break),
    pub(super) streaming: bool,
    /// Services, EndpointSlices and Pods may be read in a namespace, and not in all of them at once.
    pub(super) namespaced_only: bool,
    pub(super) bookmarks: Option<Duration>,
    pub(super) page: usize,
    pub(super) chunks: Option<(usize, Duration)>,
    pub(super) tokens: Option<BTreeSet<String>>,
    pub(super) kubelets: Kubelets,
    counts: HashMap<(&'static str, String, String), usize>,
    /// All that was asked for, as RBAC would name it.
    pub(super) asked: BTreeSet<(&'static str, String)>,
    /// What called itself how.
    pub(super) agents: BTreeSet<String>,
    open: BTreeMap<u64, (String, String)>,
    next_watch: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: 1,
            collections: HashMap::new(),
            oldest: 0,
            faults: HashMap::new(),
            broken: (0, Break::End),
            streaming: true,
            namespaced_only: false,
            bookmarks: Some(Duration::from_millis(250)),
            page: 500,
            chunks: None,
            tokens: None,
            kubelets: Kubelets::default(),
            counts: HashMap::new(),
            asked: BTreeSet::new(),
            agents: BTreeSet::new(),
            open: BTreeMap::new(),
            next_watch: 0,
        }
    }
}

impl State {
    pub(super) fn apply(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = name_of(&object);
        let after = Arc::new(Stored::new(&object));
        let collection = self.collections.entry(resource.to_owned()).or_default();
        let before = collection.objects.insert(name.clone(), after.clone());
        collection.events.push(Event {
            version: self.version,
            namespace: name.0.clone(),
            before,
            after,
            deleted: false,
        });
        collection.notify(&name.0);
        object
    }

    /// Why an object is not taken, with strict field validation; empty if it is.
    pub(super) fn refusals(&self, resource: &str, object: &Value) -> Vec<String> {
        let kind = object["kind"].as_str().unwrap_or_default();
        if let Some(complaints) = strict::builtin(object) {
            return complaints;
        }
        let definitions = self.collections.get("customresourcedefinitions");
        let definition = definitions.iter().flat_map(|all| all.objects.values()).find_map(|stored| {
            let definition: Value = serde_json::from_str(&stored.json).ok()?;
            let names = &definition["spec"]["names"];
            (names["plural"] == resource && names["kind"] == kind).then_some(definition)
        });
        let Some(definition) = definition else {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            return vec![format!("no matches for kind \"{kind}\" in version \"{version}\"")];
        };
        match Schema::of(&definition) {
            Ok(schema) => schema.refusals(object),
            Err(error) => vec![error.to_string()],
        }
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let stored = self.collections.get(resource)?.objects.get(&(namespace.to_owned(), name.to_owned()))?;
        serde_json::from_str(&stored.json).ok()
    }

    pub(super) fn all(&self, resource: &str, namespace: &str) -> Vec<Value> {
        let objects = self.collections.get(resource).map(|collection| &collection.objects);
        let here = objects.into_iter().flatten().filter(|((of, _), _)| of == namespace);
        here.filter_map(|(_, stored)| serde_json::from_str(&stored.json).ok()).collect()
    }

    pub(super) fn delete(&mut self, resource: &str, namespace: &str, name: &str) -> bool {
        let Some(mut object) = self.get(resource, namespace, name) else { return false };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let Some(collection) = self.collections.get_mut(resource) else { return false };
        let before = collection.objects.remove(&(namespace.to_owned(), name.to_owned()));
        collection.events.push(Event {
            version: self.version,
            namespace: namespace.to_owned(),
            before,
            after: Arc::new(Stored::new(&object)),
            deleted: true,
        });
        collection.notify(namespace);
        true
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        for collection in self.collections.values_mut() {
            collection.events.clear();
        }
    }

    pub(super) fn restore(&mut self) {
        self.version /= 2;
        self.oldest = 0;
        let version = json!(self.version.to_string());
        for collection in self.collections.values_mut() {
            collection.events.clear();
            for stored in collection.objects.values_mut() {
                let mut object: Value =
                    serde_json::from_str(&stored.json).expect("it was written from a value");
                object["metadata"]["resourceVersion"] = version.clone();
                *stored = Arc::new(Stored::new(&object));
            }
        }
    }

    pub(super) fn set_fault(&mut self, verb: &'static str, resource: &str, fault: Option<Fault>) {
        let key = (verb, resource.to_owned());
        match fault {
            Some(fault) => self.faults.insert(key, fault),
            None => self.faults.remove(&key),
        };
    }

    pub(super) fn fault_of(&self, verb: &'static str, resource: &str) -> Option<Fault> {
        self.faults.get(&(verb, resource.to_owned())).copied()
    }

    pub(super) fn interrupt(&mut self, how: Break) {
        self.broken = (self.broken.0 + 1, how);
        for collection in self.collections.values() {
            for changed in collection.changed.values() {
                changed.send_replace(());
            }
        }
    }

    pub(super) fn answered(&mut self, verb: &'static str, resource: &str, namespace: &str) {
        *self.counts.entry((verb, resource.to_owned(), namespace.to_owned())).or_default() += 1;
    }

    pub(super) fn count(&self, verb: &'static str, resource: &str, namespace: &str) -> usize {
        self.counts.get(&(verb, resource.to_owned(), namespace.to_owned())).copied().unwrap_or_default()
    }

    pub(super) fn open(&self) -> Vec<(String, String)> {
        let mut open: Vec<_> = self.open.values().cloned().collect();
        open.sort();
        open
    }
}

/// A watch that counts as open until it is dropped.
pub(super) struct Open {
    pub(super) shared: Arc<Shared>,
    id: u64,
}

impl Open {
    pub(super) fn new(shared: &Arc<Shared>, state: &mut State, resource: &str, namespace: &str) -> Self {
        let id = state.next_watch;
        state.next_watch += 1;
        state.open.insert(id, (resource.to_owned(), namespace.to_owned()));
        Self { shared: shared.clone(), id }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.state().open.remove(&self.id);
    }
}

/// What a request asks for of a resource.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Empty for all.
    pub(super) namespace: String,
    /// Field, whether it is to be equal, value.
    fields: Vec<(String, bool, String)>,
}

impl Selection {
    /// `fields` as in a query: `status.phase!=Failed,metadata.name=a`.
    pub(super) fn new(namespace: &str, fields: &str) -> Self {
        let fields = fields.split(',').filter_map(|term| {
            let (field, value, equal) = match term.split_once("!=") {
                Some((field, value)) => (field, value, false),
                None => {
                    term.split_once('=').map(|(field, value)| (field, value.trim_start_matches('='), true))?
                }
            };
            Some((field.to_owned(), equal, value.to_owned()))
        });
        Self { namespace: namespace.to_owned(), fields: fields.collect() }
    }

    pub(super) fn is_in(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }

    pub(super) fn matches(&self, object: &Stored) -> bool {
        self.fields.iter().all(|(field, equal, value)| {
            let known = object.fields.iter().find(|(name, _)| name == field);
            known.is_none_or(|(_, known)| (known == value) == *equal)
        })
    }

    /// What an event is to somebody with this selection: one that leaves it is deleted.
    pub(super) fn kind(&self, event: &Event) -> Option<&'static str> {
        let was = event.before.as_ref().is_some_and(|before| self.matches(before));
        let is = !event.deleted && self.matches(&event.after);
        match (was, is) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }
}

fn name_of(object: &Value) -> Name {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}
