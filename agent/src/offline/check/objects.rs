//! The objects in some manifests, and what is wrong with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use http::HeaderName;

use super::{
    fit, marks,
    notes::Noted,
    slips::{self, Seen},
};
use crate::{
    api::{
        self, AccessPolicy, Kind, TrafficLane, TrafficPolicy,
        effective::Effective,
        gateway::{self, Asked},
        notes::Note,
    },
    cluster::{
        jwks::objects::{AllHeld, Held, Id},
        manifests::{file as manifest, tree::Node},
        object, strip,
    },
    govern::{
        access::Access,
        policy::{Lane, Target},
        routes,
    },
};

/// The group, of any version: one that does not exist is worth a word.
const GROUP_PREFIX: &str = "sluice.dev/";

#[derive(Debug, Default)]
pub(super) struct Objects {
    /// Good ones, by namespace and name.
    pub(super) policies: BTreeMap<Name, Policy>,
    pub(super) lanes: BTreeMap<Name, Lane>,
    /// Routes whose parents are Services.
    pub(super) routes: BTreeMap<(routes::Kind, Name), Route>,
    pub(super) accesses: BTreeMap<Name, Guarded>,
    /// What may have keys of tokens.
    pub(super) held: AllHeld,
    /// Where the first of each was found.
    held_at: BTreeMap<Id, String>,
    /// Services that happen to be there, with the names of their ports.
    pub(super) services: BTreeMap<Name, Vec<String>>,
    shapes: BTreeMap<Name, fit::Shape>,
    /// ReferenceGrants, with their namespaces.
    pub(super) grants: Vec<(String, gateway::Grant)>,
    /// In the order in which they were found.
    pub(super) problems: Vec<Problem>,
    /// What may be as it should, but cannot be told from these files.
    pub(super) notes: Vec<Problem>,
    /// What objects that make sense leave to be said.
    pub(super) noted: Vec<Noted>,
    /// How long Deployments of a namespace wait for a new pod (`minReadySeconds`), the one that waits longest.
    pub(super) waited: BTreeMap<String, u64>,
    /// Of lanes, where their fields stand.
    lines: BTreeMap<Name, BTreeMap<String, u32>>,
    places: BTreeMap<(&'static str, Name), String>,
    /// Namespaces that happen to be there, and are not enrolled.
    not_enrolled: BTreeSet<String>,
    /// By what slips are known.
    pub(super) seen: Seen,
    /// What is not in these files is nowhere.
    pub(super) complete: bool,
    /// Of objects that do not name theirs.
    namespace: String,
    tag_headers: Vec<HeaderName>,
}

/// Namespace and name.
pub(super) type Name = (String, String);

/// `shop/orders`
pub(super) fn shown((namespace, name): &Name) -> String {
    format!("{namespace}/{name}")
}

/// An AccessPolicy and what it is for.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) targets: Vec<Target>,
    pub(super) for_namespace: bool,
    pub(super) access: Access,
}

#[derive(Debug)]
pub(super) struct Policy {
    /// What it says, alone.
    pub(super) effective: Effective,
    pub(super) targets: Vec<Target>,
    /// Routes of its namespace.
    pub(super) routes: Vec<routes::Target>,
    pub(super) for_namespace: bool,
    /// RFC 3339, which sorts; empty in manifests that were never applied.
    pub(super) created: String,
    pub(super) place: Place,
}

/// A route whose parents are Services.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) asked: Asked,
    pub(super) file: String,
    pub(super) line: u32,
}

/// Where an object is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) file: String,
    /// Of each `spec.targetRefs`, from 1.
    target_lines: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) file: String,
    pub(super) line: Option<u32>,
    /// `TrafficPolicy shop/orders`
    pub(super) object: Option<String>,
    pub(super) field: Option<String>,
    pub(super) message: String,
}

impl Objects {
    /// `namespace`: of objects that do not name theirs.
    pub(super) fn new(namespace: &str, tag_headers: &[HeaderName]) -> Self {
        Self { namespace: namespace.to_owned(), tag_headers: tag_headers.to_vec(), ..Self::default() }
    }

    /// The Services in a namespace.
    pub(super) fn services_of(&self, namespace: &str) -> impl Iterator<Item = &Name> {
        let first = (namespace.to_owned(), String::new());
        let rest = self.services.range(first..).map(|(name, _)| name);
        rest.take_while(move |(of, _)| of == namespace)
    }

    /// A Service with its ports, if the files have it, and say which these are.
    pub(super) fn shape(&self, namespace: &str, service: &str) -> Option<&fit::Shape> {
        self.shapes.get(&(namespace.to_owned(), service.to_owned())).filter(|shape| shape.has_ports())
    }

    /// Whether a namespace is enrolled, as far as these files tell.
    pub(super) fn enrols(&self, namespace: &str) -> bool {
        !self.not_enrolled.contains(namespace)
    }

    /// Says that a Service is not there, where the files tell of Services in its namespace.
    pub(super) fn missing(&self, namespace: &str, service: &str) -> Option<String> {
        let name = (namespace.to_owned(), service.to_owned());
        let tells = self.complete || self.services_of(namespace).next().is_some();
        if self.services.contains_key(&name) || !tells {
            return None;
        }
        let known: Vec<_> = self.services_of(namespace).map(|(_, name)| &**name).collect();
        let meant = api::closest(service, known.into_iter());
        let meant = meant.map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
        Some(format!("there is no Service {service} in these files{meant}"))
    }

    /// Of a namespace that these files do not enroll nobody knows here whether somebody else does.
    pub(super) fn note_namespaces(&mut self) {
        let mut notes = Vec::new();
        for ((kind, name), place) in &self.places {
            if self.not_enrolled.contains(&name.0) {
                let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
                notes.push(Problem {
                    file: file.to_owned(),
                    line: line.parse().ok(),
                    object: Some(format!("{kind} {}", shown(name))),
                    field: None,
                    message: format!(
                        "Namespace {} is not enrolled in these files: unless it is in the cluster ({}: enabled), nothing of this is \
                         active",
                        name.0,
                        api::CAPTURE_ANNOTATION
                    ),
                });
            }
        }
        self.notes.append(&mut notes);
    }

    /// Where a field of an object stands.
    pub(super) fn place(&self, kind: &'static str, name: &Name, field: &str) -> (String, Option<u32>) {
        let place = self.places.get(&(kind, name.clone())).map_or("", |place| place);
        let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
        let of_field = self.lines.get(name).and_then(|lines| lines.get(field).copied());
        (file.to_owned(), of_field.or_else(|| line.parse().ok()))
    }

    /// Something wrong with a target of a policy that makes sense by itself.
    pub(super) fn about_target(name: &Name, policy: &Policy, index: usize, message: String) -> Problem {
        Problem {
            file: policy.place.file.clone(),
            line: policy.place.target_lines.get(index).copied(),
            object: Some(format!("TrafficPolicy {}", shown(name))),
            field: Some(format!("spec.targetRefs[{index}]")),
            message,
        }
    }

    /// Takes in an object, or a list of some.
    pub(super) fn take(&mut self, file: &str, node: &Node) {
        let text = |field: &str| node.get(field).and_then(Node::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if let Some(items) = node.get("items").and_then(Node::as_sequence).filter(|_| kind.ends_with("List"))
        {
            for item in items {
                self.take(file, item);
            }
            return;
        }
        let metadata = |field: &str| node.get("metadata")?.get(field)?.as_str();
        let name: Name = (
            metadata("namespace").unwrap_or(&self.namespace).to_owned(),
            metadata("name").unwrap_or_default().to_owned(),
        );
        let mut wrong = |field: &str, message: String| {
            self.problems.push(Problem {
                file: file.to_owned(),
                line: Some(node.line_of(field)),
                object: (!name.1.is_empty()).then(|| match kind {
                    "Namespace" => format!("{kind} {}", name.1),
                    "" => shown(&name),
                    _ => format!("{kind} {}", shown(&name)),
                }),
                field: Some(field.to_owned()),
                message,
            });
        };
        for (field, message) in marks::wrong(node, kind) {
            wrong(&field, message);
        }
        self.seen.object(kind, &name, metadata("namespace").is_some());
        self.seen.account(kind, &name, node);
        if version == "v1" && kind == "Namespace" {
            let annotations = node.get("metadata").and_then(|metadata| metadata.get("annotations"));
            let said = annotations.and_then(|all| all.get(api::CAPTURE_ANNOTATION)).and_then(Node::as_str);
            if said.and_then(|said| api::parse_capture(said).ok()) == Some(true) {
                self.not_enrolled.remove(&name.1);
            } else {
                self.not_enrolled.insert(name.1);
            }
            return;
        }
        if version == "v1" && kind == "Service" {
            let ports = node.get("spec").and_then(|spec| spec.get("ports")).and_then(Node::as_sequence);
            self.seen.service(&name, ports.unwrap_or_default());
            self.shapes.insert(name.clone(), fit::Shape::of(node));
            let port_name = |port: &Node| Some(port.get("name")?.as_str()?.to_owned());
            self.services.insert(name, ports.unwrap_or_default().iter().filter_map(port_name).collect());
            return;
        }
        if let Some(of) = manifest::holder(version, kind) {
            let object = Id { of, name: object::Name { namespace: name.0.into(), name: name.1.into() } };
            // As agents take it that read the same files.
            let here = format!("{file}:{}", node.line_of("metadata.name"));
            let held = match self.held_at.get(&object) {
                Some(first) => {
                    Held::unreadable(format!("it is in {first} and in {here}: which one counts is not known"))
                }
                None => manifest::held(node, of),
            };
            self.held_at.entry(object.clone()).or_insert(here);
            self.held.insert(object, held);
            return;
        }
        if version == "apps/v1" && kind == "Deployment" {
            let waits = node.get("spec").and_then(|spec| spec.get("minReadySeconds"));
            let waits = waits.and_then(|seconds| seconds.to_json().as_u64()).unwrap_or_default();
            let waited = self.waited.entry(name.0).or_default();
            *waited = waits.max(*waited);
            return;
        }
        let route = [routes::Kind::Http, routes::Kind::Grpc].into_iter().find(|of| of.as_str() == kind);
        if let Some((gateway::GROUP, _)) = version.split_once('/') {
            if let Some(of) = route {
                return self.take_route(file, node, of, name);
            }
            return self.take_of_gateway(file, node, kind, &name);
        }
        let known = ["TrafficPolicy", "TrafficLane", "AccessPolicy"];
        if !version.starts_with(GROUP_PREFIX) && !known.contains(&kind) {
            return;
        }
        for (field, said) in [("apiVersion", node.get("apiVersion")), ("kind", node.get("kind"))] {
            if let Some(said) = said.filter(|said| !said.is_null() && said.as_str().is_none()) {
                return wrong(field, format!("a string is needed, not {}", said.to_json()));
            }
        }
        if version != api::API_VERSION {
            let message = match node.get("apiVersion") {
                None => format!("not set: of a {kind} it is {:?}", api::API_VERSION),
                Some(_) => format!("{version:?} does not exist: allowed is {:?}", api::API_VERSION),
            };
            return wrong("apiVersion", message);
        }
        if kind.is_empty() {
            return wrong(
                "kind",
                format!("not set: allowed are {:?}, {:?} and {:?}", known[0], known[1], known[2]),
            );
        }
        let Some(kind) = known.into_iter().find(|known| *known == kind) else {
            return wrong("kind", api::not_one_of(kind, known.into_iter()));
        };
        for (field, key, said) in
            [("metadata.name", "name", &name.1), ("metadata.namespace", "namespace", &name.0)]
        {
            let given = node.get("metadata").and_then(|metadata| metadata.get(key));
            if let Some(given) = given.filter(|given| given.as_str().is_none()) {
                return wrong(field, format!("a string is needed, not {}", given.to_json()));
            }
            if let Some(message) = strip::wrong_name(said) {
                return wrong(
                    field,
                    format!("{message}{}", if said.is_empty() { ": it is needed" } else { "" }),
                );
            }
        }
        let place = format!("{file}:{}", node.line_of("metadata.name"));
        if let Some(earlier) = self.places.insert((kind, name.clone()), place) {
            return wrong(
                "metadata.name",
                format!("there is a {kind} {} already, at {earlier}", shown(&name)),
            );
        }
        for (field, message) in node.ambiguous_numbers() {
            wrong(&field, message);
        }
        let mut object = node.to_json();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.insert("namespace".to_owned(), name.0.clone().into());
        }
        let outcome = match kind {
            "TrafficLane" => api::read::<TrafficLane>(&object).map(|(read, lane)| {
                let targets = (0..lane.targets.len()).map(|i| format!("spec.targetRefs[{i}]"));
                let named = ["spec.serviceFallbacks", "spec.fallbackLanes"].map(str::to_owned);
                let outside = (0..lane.endpoints.len()).map(|i| format!("spec.endpoints[{i}]"));
                let lines =
                    targets.chain(named).chain(outside).map(|field| (field.clone(), node.line_of(&field)));
                self.lines.insert(name.clone(), lines.collect());
                for note in api::notes::of_lane(&read.spec) {
                    let line = node.line_of(&note.field);
                    self.noted.push(Noted { file: file.to_owned(), line, kind, name: name.clone(), note });
                }
                self.lanes.insert(name.clone(), lane);
            }),
            "AccessPolicy" => api::read::<AccessPolicy>(&object).map(|(read, access)| {
                let mut lines = BTreeMap::new();
                slips::walk(&object["spec"], "spec", &mut |field, _| {
                    lines.insert(field.to_owned(), node.line_of(field));
                });
                self.lines.insert(name.clone(), lines);
                let (targets, for_namespace) = (read.targets(), read.is_for_namespace());
                self.accesses.insert(name.clone(), Guarded { targets, for_namespace, access });
            }),
            _ => api::read::<TrafficPolicy>(&object).map(|(read, policy)| {
                for note in api::notes::of_policy(&read.spec, &policy) {
                    let line = node.line_of(&note.field);
                    self.noted.push(Noted { file: file.to_owned(), line, kind, name: name.clone(), note });
                }
                let lines =
                    (0..read.spec.target_refs.len()).map(|i| node.line_of(&format!("spec.targetRefs[{i}]")));
                let policy = Policy {
                    effective: Effective { spec: Arc::new(object["spec"].clone()), policy: Arc::new(policy) },
                    targets: read.targets(),
                    routes: read.routes(),
                    for_namespace: read.is_for_namespace(),
                    created: metadata("creationTimestamp").unwrap_or_default().to_owned(),
                    place: Place { file: file.to_owned(), target_lines: lines.collect() },
                };
                self.policies.insert(name.clone(), policy);
            }),
        };
        if outcome.is_ok() {
            self.seen.own(kind, &name, &object["spec"], file, node);
            for (field, message) in slips::nulls(&object["spec"]) {
                let (line, name) = (node.line_of(&field), name.clone());
                let note = Note { field, message, unless: &[], unless_waited: None };
                self.noted.push(Noted { file: file.to_owned(), line, kind, name, note });
            }
        }
        let mut errors: Vec<_> = outcome.err().unwrap_or_default();
        if errors.is_empty() && kind == "TrafficPolicy" {
            errors = api::tag_changes(&object["spec"], &self.tag_headers);
        }
        errors.sort_by_key(|error| node.line_of(&error.field));
        for error in errors {
            self.problems.push(Problem {
                file: file.to_owned(),
                line: Some(node.line_of(&error.field)),
                object: Some(format!("{kind} {}", shown(&name))),
                field: Some(error.field),
                message: error.message,
            });
        }
    }

    /// Takes in what else there is of Gateway API.
    fn take_of_gateway(&mut self, file: &str, node: &Node, kind: &str, name: &Name) {
        let problem = |field: String, message: String| Problem {
            file: file.to_owned(),
            line: Some(node.line_of(&field)),
            object: Some(format!("{kind} {}", shown(name))),
            field: Some(field),
            message,
        };
        if kind == "ReferenceGrant" {
            match gateway::reference_grant(&node.to_json()["spec"]) {
                Ok(grant) => self.grants.push((name.0.clone(), grant)),
                Err(error) => self.problems.push(problem(error.field, error.message)),
            }
        } else if let Some(meant) = fit::meant_kind(kind) {
            let message = format!("there is no kind {kind:?}: did you mean {meant:?}?");
            self.notes.push(problem("kind".to_owned(), message));
        }
    }

    /// Takes in a route. One that is about no Service is a gateway's.
    fn take_route(&mut self, file: &str, node: &Node, kind: routes::Kind, name: Name) {
        let (spec, shown) = (node.to_json()["spec"].clone(), shown(&name));
        let asked = match kind {
            routes::Kind::Http => gateway::http_route(&spec, &name.0, &shown),
            routes::Kind::Grpc => gateway::grpc_route(&spec, &name.0, &shown),
        };
        let object = || Some(format!("{} {shown}", kind.as_str()));
        let line = node.line_of("metadata.name");
        let problem = |said: fit::Said| Problem {
            file: file.to_owned(),
            line: Some(node.line_of(&said.field)),
            object: object(),
            field: Some(said.field),
            message: said.message,
        };
        if let Some(message) = strip::wrong_name(&name.1) {
            let (field, is_wrong) = ("metadata.name".to_owned(), true);
            self.problems.push(problem(fit::Said { field, message, is_wrong }));
        }
        let version = node.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
        if version != gateway::VERSION && !matches!(asked, Ok(None)) {
            let message = format!(
                "{version:?} is not what agents read of a directory: write {:?}, which the API server has, too",
                gateway::VERSION
            );
            self.notes.push(problem(fit::Said { field: "apiVersion".to_owned(), message, is_wrong: false }));
        }
        match asked {
            // A gateway's, or one that was meant to be a Service's.
            Ok(None) => self.notes.extend(fit::strays(&spec).into_iter().map(problem)),
            Ok(Some(asked)) => {
                for said in fit::slips(&spec, &asked) {
                    let all = if said.is_wrong { &mut self.problems } else { &mut self.notes };
                    all.push(problem(said));
                }
                for error in &asked.strangers {
                    self.notes.push(Problem {
                        file: file.to_owned(),
                        line: Some(node.line_of(&error.field)),
                        object: object(),
                        field: Some(error.field.clone()),
                        message: error.message.clone(),
                    });
                }
                let route = Route { asked, file: file.to_owned(), line };
                if self.routes.insert((kind, name), route).is_some() {
                    self.problems.push(Problem {
                        file: file.to_owned(),
                        line: Some(line),
                        object: object(),
                        field: Some("metadata.name".to_owned()),
                        message: format!("there is a {} {shown} already", kind.as_str()),
                    });
                }
            }
            Err(errors) => self.problems.extend(errors.into_iter().map(|error| Problem {
                file: file.to_owned(),
                line: Some(node.line_of(&error.field)),
                object: object(),
                field: Some(error.field),
                message: error.message,
            })),
        }
    }
}
