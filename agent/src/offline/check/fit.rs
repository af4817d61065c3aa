//! Routes that make sense by themselves and cannot work as they stand, or most likely do not say what was meant: parents and
//! backends that cannot be theirs, what the API server would reject, and rules that never apply.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    objects::{Name, Objects, Problem, Route},
    routes::about,
};
use crate::{
    api::gateway::{Asked, Grant, Parent},
    cluster::{manifests::tree::Node, model::Protocol, protocol},
    govern::routes::{
        self, Action, Rule,
        backends::{Backends, ServicePort},
    },
};

/// How many items the API server takes, at most.
const LISTS: [(&str, usize); 3] = [("matches", 64), ("filters", 16), ("backendRefs", 16)];
const MOST_RULES: usize = 16;

/// What the files say of a Service that routes have to do with.
#[derive(Debug, Default)]
pub(super) struct Shape {
    headless: bool,
    ports: Vec<Port>,
}

#[derive(Debug)]
struct Port {
    number: u16,
    name: Option<String>,
    protocol: Protocol,
}

impl Shape {
    pub(super) fn of(node: &Node) -> Self {
        let spec = node.to_json()["spec"].take();
        let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|port| {
            let name = port["name"].as_str();
            Some(Port {
                number: port["port"].as_u64().and_then(|number| u16::try_from(number).ok())?,
                name: name.map(str::to_owned),
                protocol: protocol::declared(port["appProtocol"].as_str(), name),
            })
        });
        Self { headless: spec["clusterIP"] == "None", ports: ports.collect() }
    }

    pub(super) fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    fn of_parent<'s>(&'s self, parent: &'s Parent) -> impl Iterator<Item = &'s Port> {
        self.ports.iter().filter(|port| {
            parent.port.is_none_or(|wanted| wanted == port.number)
                && parent.section.as_deref().is_none_or(|section| port.name.as_deref() == Some(section))
        })
    }

    /// `80 (http), 81`
    fn all_ports(&self) -> String {
        let shown = self.ports.iter().map(|port| match &port.name {
            Some(name) => format!("{} ({name})", port.number),
            None => port.number.to_string(),
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// What is to be said of a field.
pub(super) struct Said {
    pub(super) field: String,
    pub(super) message: String,
    /// The API server rejects it.
    pub(super) is_wrong: bool,
}

fn note(field: String, message: impl Into<String>) -> Said {
    Said { field, message: message.into(), is_wrong: false }
}

fn wrong(field: String, message: impl Into<String>) -> Said {
    Said { field, message: message.into(), is_wrong: true }
}

/// Why a route that was most likely meant for a Service is none.
pub(super) fn strays(spec: &Value) -> Vec<Said> {
    if spec.is_null() {
        return vec![note("spec".to_owned(), "not set: a route without a parent is left alone")];
    }
    let Some(parents) = spec["parentRefs"].as_array().filter(|parents| !parents.is_empty()) else {
        let meant = if spec["parentRef"].is_null() { "" } else { ": did you mean \"parentRefs\", a list?" };
        let message = format!("not set: a route without a parent is left alone{meant}");
        return vec![note("spec.parentRefs".to_owned(), message)];
    };
    let mut said = Vec::new();
    for (index, parent) in parents.iter().enumerate() {
        let kind = parent["kind"].as_str().unwrap_or_default();
        if kind == "Service" {
            said.push(note(
                format!("spec.parentRefs[{index}].group"),
                "a Service is of the group \"\", which has to be written here; as it stands the route is left alone",
            ));
        } else if kind.trim_end_matches(['s', 'S']).eq_ignore_ascii_case("service") {
            said.push(note(
                format!("spec.parentRefs[{index}].kind"),
                format!(
                    "there is no kind {kind:?}, so that the route is left alone: did you mean \"Service\"?"
                ),
            ));
        }
    }
    said
}

/// What is odd about a route, whatever its Services are.
pub(super) fn slips(spec: &Value, asked: &Asked) -> Vec<Said> {
    let mut said = Vec::new();
    if spec["hostnames"].as_array().is_some_and(|names| !names.is_empty()) {
        let message = "has no effect where the parent is a Service: whoever calls it is meant";
        said.push(note("spec.hostnames".to_owned(), message));
    }
    let rules = spec["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    if spec["rules"].is_array() && !(1..=MOST_RULES).contains(&rules.len()) {
        let message = format!("{} items: allowed are 1 to {MOST_RULES}", rules.len());
        said.push(wrong("spec.rules".to_owned(), message));
    }
    let mut names = BTreeSet::new();
    for (index, (written, rule)) in rules.iter().zip(&asked.rules).enumerate() {
        let at = format!("spec.rules[{index}]");
        for (list, most) in LISTS {
            let length = written[list].as_array().map_or(0, Vec::len);
            if length > most {
                said.push(wrong(
                    format!("{at}.{list}"),
                    format!("{length} items: allowed are at most {most}"),
                ));
            }
        }
        if let Some(name) = written["name"].as_str().filter(|name| !names.insert(*name)) {
            said.push(wrong(
                format!("{at}.name"),
                format!("{name:?} is there already: rules have names of their own"),
            ));
        }
        for (which, one) in written["matches"].as_array().into_iter().flatten().enumerate() {
            of_match(&format!("{at}.matches[{which}]"), one, &mut said);
        }
        if let Action::Forward { backends, .. } = &rule.action
            && backends.iter().all(|backend| backend.weight == 0)
        {
            let field = format!("{at}.backendRefs");
            said.push(note(field, "no backend has a weight: each request that this rule is about gets 500"));
        }
        let earlier = asked.rules[..index].iter().position(|earlier| hides(earlier, rule));
        if let Some(earlier) = earlier {
            said.push(note(
                at,
                format!("never applies: rules[{earlier}] has the same matches, and comes first"),
            ));
        }
    }
    said
}

fn of_match(at: &str, one: &Value, said: &mut Vec<Said>) {
    let path = &one["path"];
    if path["type"] != "RegularExpression" && path["value"].as_str().is_some_and(|value| value.contains('*'))
    {
        let message =
            "* stands for itself here: PathPrefix matches all that is below a path, RegularExpression more";
        said.push(note(format!("{at}.path.value"), message));
    }
    let mut seen = BTreeSet::new();
    for (index, header) in one["headers"].as_array().into_iter().flatten().enumerate() {
        let name = header["name"].as_str().unwrap_or_default().to_ascii_lowercase();
        if !seen.insert(name) {
            let message = "has no effect: of several conditions on one header the first counts";
            said.push(note(format!("{at}.headers[{index}]"), message));
        }
    }
}

/// Whether a rule is about all that a later one is about.
fn hides(earlier: &Rule, later: &Rule) -> bool {
    later.matches.iter().all(|one| earlier.matches.contains(one))
}

/// What a route and the Services in these files say of each other.
pub(super) fn notes(objects: &Objects) -> Vec<Problem> {
    let mut notes = Vec::new();
    for ((kind, name), route) in &objects.routes {
        let mut say = |field: &str, message: String| notes.push(about(*kind, name, route, field, message));
        for parent in &route.asked.parents {
            of_parent(objects, parent, &mut |message| say("spec.parentRefs", message));
        }
        for rule in &route.asked.rules {
            let (backends, mirrors) = sent_to(rule);
            for (to, then) in backends
                .map(|to| (to, "its part of the requests gets 500"))
                .chain(mirrors.map(|to| (to, "it gets no copies")))
            {
                let place = Place { objects, kind: *kind, of: name, route };
                for message in place.of_backend(to, then) {
                    say("spec.rules", format!("rule {}: {message}", rule.name));
                }
            }
        }
    }
    notes
}

fn of_parent(objects: &Objects, parent: &Parent, say: &mut dyn FnMut(String)) {
    let service = format!("{}/{}", parent.namespace, parent.service);
    if !objects.enrols(&parent.namespace) {
        say(format!(
            "Namespace {} is not enrolled in these files: no route holds for Service {service}",
            parent.namespace
        ));
    }
    let Some(shape) = objects.shape(&parent.namespace, &parent.service) else { return };
    if shape.headless {
        say(format!(
            "Service {service} is headless: its clients choose an endpoint themselves, so no route holds for them"
        ));
    } else if shape.of_parent(parent).next().is_none() {
        say(format!("Service {service} has no such port: it has {}", shape.all_ports()));
    } else if shape.of_parent(parent).all(|port| port.protocol == Protocol::Opaque) {
        say(format!(
            "Service {service} is declared to speak another protocol than HTTP there, so no route holds for it"
        ));
    }
}

/// Where a backend is named.
struct Place<'p> {
    objects: &'p Objects,
    kind: routes::Kind,
    of: &'p Name,
    route: &'p Route,
}

impl Place<'_> {
    fn of_backend(&self, to: &ServicePort, then: &str) -> Vec<String> {
        let mut said = Vec::new();
        let parents = &self.route.asked.parents;
        let is_parent = |parent: &Parent| (&parent.namespace, &parent.service) == (&to.namespace, &to.name);
        if *to.namespace != *self.of.0 && !parents.iter().all(is_parent) && !self.is_granted(to) {
            said.push(format!(
                "no ReferenceGrant in these files allows {} of namespace {} to refer to Service {to}: without one {then}",
                self.kind.as_str(),
                self.of.0
            ));
        }
        if !self.objects.enrols(&to.namespace) {
            said.push(format!("Namespace {} is not enrolled in these files: {then}", to.namespace));
        }
        let Some(shape) = self.objects.shape(&to.namespace, &to.name) else { return said };
        let Some(port) = shape.ports.iter().find(|port| port.number == to.port) else {
            said.push(format!("Service {to}: it has no port {}, but {}: {then}", to.port, shape.all_ports()));
            return said;
        };
        if port.protocol == Protocol::Opaque {
            said.push(format!(
                "Service {to} is declared to speak another protocol than HTTP: requests to it fail"
            ));
        }
        let says = |protocol| match protocol {
            Protocol::Http => Some("HTTP/1"),
            Protocol::Http2 => Some("HTTP/2"),
            Protocol::Detect | Protocol::Opaque => None,
        };
        let other = parents.iter().find_map(|parent| {
            let parent_shape = self.objects.shape(&parent.namespace, &parent.service)?;
            let of = parent_shape.of_parent(parent).find_map(|port| says(port.protocol))?;
            says(port.protocol).filter(|to| *to != of).map(|to| (to, of, parent))
        });
        if let Some((speaks, of, parent)) = other {
            said.push(format!(
                "Service {to} is declared to speak {speaks}, and Service {}/{} {of}: requests are sent on in the protocol in which \
                 they come, so that those in the latter fail",
                parent.namespace, parent.service
            ));
        }
        said
    }

    fn is_granted(&self, to: &ServicePort) -> bool {
        let allows = |grant: &Grant| {
            grant.from.iter().any(|(kind, namespace)| *kind == self.kind && **namespace == *self.of.0)
                && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
        };
        self.objects.grants.iter().any(|(namespace, grant)| **namespace == *to.namespace && allows(grant))
    }
}

/// The Services that a rule sends to, and those that get copies.
pub(super) fn sent_to(
    rule: &Rule,
) -> (impl Iterator<Item = &ServicePort>, impl Iterator<Item = &ServicePort>) {
    let all = || match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) => None,
    };
    let of_backends = all().into_iter().flat_map(Backends::iter).flat_map(|backend| &backend.mirrors);
    let mirrors = rule.mirrors.iter().chain(of_backends).filter_map(|mirror| mirror.service.as_ref());
    let backends = all().into_iter().flat_map(Backends::iter).filter_map(|backend| backend.service.as_ref());
    (backends, mirrors)
}

/// Kinds of Gateway API, as somebody may write them.
pub(super) fn meant_kind(kind: &str) -> Option<&'static str> {
    let all = [routes::Kind::Http, routes::Kind::Grpc].map(routes::Kind::as_str);
    all.into_iter().find(|known| *known != kind && known.eq_ignore_ascii_case(kind))
}
