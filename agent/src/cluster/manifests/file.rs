//! One manifest: its documents, and the objects in them that Sluice reads.

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;

use super::tree::{self, Node, Value};
use crate::{
    api,
    cluster::{
        cause::Cause,
        jwks::objects::{Held, Id},
        object::{Key, Kind, Name},
        problem::Problem,
        source::Sighting,
        strip,
    },
    govern::jwt::Holder,
};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) entries: Vec<Entry>,
    /// What may have keys of tokens.
    pub(super) held: Vec<Holding>,
    /// Documents that could not be taken. Where the object is known, its last good state may stay.
    pub(super) problems: Vec<Problem>,
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) line: u32,
    pub(super) sighting: Sighting,
}

/// A ConfigMap or a Secret, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) object: Id,
    pub(super) line: u32,
    pub(super) held: Held,
}

/// Reads a file's text. An error means that not even the documents could be told apart.
pub(super) fn read(file: &Arc<str>, text: &str) -> Result<Content, Problem> {
    let documents = tree::parse(text).map_err(|e| Problem {
        line: e.line,
        ..Problem::in_file(file.clone(), format!("no valid YAML: {}", e.message))
    })?;
    let mut content = Content::default();
    for document in &documents {
        content.take(document);
    }
    for problem in &mut content.problems {
        problem.file = Some(file.clone());
    }
    for problem in content.entries.iter_mut().flat_map(|entry| &mut entry.sighting.problems) {
        problem.file = Some(file.clone());
    }
    Ok(content)
}

impl Content {
    fn take(&mut self, document: &Node) {
        match identify(document, None) {
            Ok(What::List(items, default)) => {
                for item in items {
                    match identify(item, default) {
                        Ok(What::List(..)) => {
                            let problem = Problem::in_file("", "a List within a List is not read").at("kind");
                            self.problems.push(at_line(item, problem));
                        }
                        what => self.take_one(item, what),
                    }
                }
            }
            what => self.take_one(document, what),
        }
    }

    fn take_one(&mut self, node: &Node, what: Result<What<'_>, Problem>) {
        let entry = match what {
            Ok(What::Object(kind)) => one(node, kind),
            Ok(What::Holder(of)) => return self.held.extend(holding(node, of)),
            Ok(What::List(..) | What::Other) => return,
            Err(problem) => Err(problem),
        };
        match entry {
            Ok(entry) => self.entries.push(entry),
            // Nothing of it is in the model, whose problems have a verdict of their own.
            Err(problem) => self.problems.push(problem.by(Cause::File)),
        }
    }
}

/// What a document is.
enum What<'a> {
    Object(Kind),
    /// The items, and the kind of those that do not name theirs (in a `PodList`, say).
    List(&'a [Node], Option<Kind>),
    /// Something that may have keys of tokens.
    Holder(Holder),
    /// A kind that Sluice does not read.
    Other,
}

/// The kind of object that may have keys of tokens, if it is one.
pub(crate) fn holder(version: &str, kind: &str) -> Option<Holder> {
    let all = [Holder::ConfigMap, Holder::Secret].into_iter();
    all.filter(|_| version == "v1").find(|of| of.as_str() == kind)
}

fn identify(node: &Node, default: Option<Kind>) -> Result<What<'_>, Problem> {
    let wrong = |field: &str, message: String| {
        at_line(node, Problem::in_file("", format!("{message}; it is left out")).at(field))
    };
    if !matches!(node.value, Value::Mapping(_)) {
        let message = "a Kubernetes object is a mapping with apiVersion and kind; it is left out";
        return Err(at_line(node, Problem::in_file("", message)));
    }
    let text = |field: &str| match node.get(field).map(|node| (node, node.as_str())) {
        Some((_, Some(text))) => Ok(Some(text)),
        Some((Node { value: Value::Null, .. }, _)) | None => Ok(None),
        Some(_) => Err(wrong(field, "not a string".to_owned())),
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    if let (None, None, Some(default)) = (version, kind, default) {
        return Ok(What::Object(default));
    }
    let kind = kind.ok_or_else(|| wrong("kind", "not set".to_owned()))?;
    let version = version.ok_or_else(|| wrong("apiVersion", format!("not set on a {}", short(kind))))?;
    if let Some(found) = Kind::ALL.into_iter().find(|found| found.as_str().eq_ignore_ascii_case(kind)) {
        if found.as_str() == kind && has_version(found, version) {
            return Ok(What::Object(found));
        }
        if is_foreign(version) {
            return Ok(What::Other);
        }
        if found.as_str() != kind {
            return Err(wrong("kind", format!("{:?}: write {:?}", short(kind), found.as_str())));
        }
        return Err(wrong(
            "apiVersion",
            format!(
                "{:?} has no {kind} that Sluice reads: allowed is {:?}",
                short(version),
                found.api_version()
            ),
        ));
    }
    if let Some(of) = holder(version, kind) {
        return Ok(What::Holder(of));
    }
    if let Some(of) = kind.strip_suffix("List").filter(|_| !is_foreign(version))
        && let Some(items) = node.get("items")
    {
        let default = Kind::ALL.into_iter().find(|kind| kind.as_str() == of && has_version(*kind, version));
        let items = items.as_sequence().ok_or_else(|| wrong("items", "not a list of objects".to_owned()))?;
        // A list of something else is of no interest; only `List` itself is mixed.
        return Ok(if of.is_empty() || default.is_some() { What::List(items, default) } else { What::Other });
    }
    // In the groups that Sluice reads, a kind that does not exist is a slip of the pen.
    let of_core = version == "v1" && !CORE_KINDS.contains(&kind);
    if of_core || [DISCOVERY, api::API_VERSION].contains(&version) {
        let all = Kind::ALL.map(Kind::as_str).join(", ");
        return Err(wrong(
            "kind",
            format!("{:?} is no kind of {version}; Sluice reads {all} and List", short(kind)),
        ));
    }
    tracing::debug!(kind, version, line = node.line, "skipped an object of a kind that Sluice does not read");
    Ok(What::Other)
}

/// Kinds of `v1` that are none of Sluice's business.
const CORE_KINDS: [&str; 17] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
    "List",
    "Config",
];

const DISCOVERY: &str = "discovery.k8s.io/v1";

/// Whether an object of this kind may have this version.
fn has_version(kind: Kind, version: &str) -> bool {
    kind.api_version() == version
        || (matches!(kind, Kind::HttpRoute | Kind::ReferenceGrant) && version == api::gateway::OLD_VERSION)
}

/// Whether an apiVersion is of somebody's own API group (a Knative Service, say), rather than Kubernetes's.
fn is_foreign(version: &str) -> bool {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    group.contains('.') && !group.ends_with(".k8s.io") && group != api::GROUP
}

fn one(node: &Node, kind: Kind) -> Result<Entry, Problem> {
    fn read<T: DeserializeOwned>(
        node: &Node,
        kind: Kind,
        strip: fn(T) -> Result<Sighting, Problem>,
    ) -> Result<Sighting, Problem> {
        let object = node.read::<T>().map_err(|(field, message)| {
            let metadata = |name| node.get("metadata").and_then(|node| node.get(name)).and_then(Node::as_str);
            let key = strip::key(kind, metadata("namespace"), metadata("name"));
            Problem::of(key, format!("{message}; its last good state stays, if there is one")).at(field)
        })?;
        strip(object)
    }
    let sighting = match kind {
        Kind::Namespace => read::<core::Namespace>(node, kind, |namespace| strip::namespace(&namespace)),
        Kind::Service => read::<core::Service>(node, kind, strip::service),
        Kind::EndpointSlice => read::<discovery::EndpointSlice>(node, kind, strip::endpoint_slice),
        Kind::Pod => read::<core::Pod>(node, kind, strip::pod),
        Kind::TrafficPolicy => strip::traffic_policy(&node.to_json()),
        Kind::TrafficLane => strip::traffic_lane(&node.to_json()),
        Kind::AccessPolicy => strip::access_policy(&node.to_json()),
        Kind::HttpRoute => strip::http_route(&node.to_json()),
        Kind::GrpcRoute => strip::grpc_route(&node.to_json()),
        Kind::ReferenceGrant => strip::reference_grant(&node.to_json()),
        Kind::Mesh => strip::x_mesh(&node.to_json()),
    };
    let mut sighting = sighting.map_err(|e| at_line(node, e))?;
    for problem in &mut sighting.problems {
        problem.line = Some(node.line_of(problem.field.as_deref().unwrap_or_default()));
    }
    Ok(Entry { key: sighting.object.key(), line: node.line, sighting })
}

/// What may have keys. Whether it is what Kubernetes would take matters only if a policy names it.
fn holding(node: &Node, of: Holder) -> Option<Holding> {
    let metadata = |name| node.get("metadata").and_then(|node| node.get(name)).and_then(Node::as_str);
    let namespace = metadata("namespace").unwrap_or("default").into();
    let name = Name { namespace, name: metadata("name")?.into() };
    Some(Holding { object: Id { of, name }, line: node.line, held: held(node, of) })
}

/// What is in a ConfigMap or a Secret.
pub(crate) fn held(node: &Node, of: Holder) -> Held {
    let read = match of {
        Holder::ConfigMap => node.read().map(|object| Held::of_config_map(&object)),
        Holder::Secret => node.read().map(|object| Held::of_secret(&object)),
    };
    read.unwrap_or_else(|(field, message)| Held::unreadable(format!("{field}: {message}")))
}

fn at_line(node: &Node, problem: Problem) -> Problem {
    Problem { line: Some(node.line_of(problem.field.as_deref().unwrap_or_default())), ..problem }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
