//! What became of routes: what is in their way at their parents and backends, and what their statuses are to say of it.
//!
//! Conditions and reasons are those of the specification.
//! <https://gateway-api.sigs.k8s.io/reference/api-spec/main/spec/#routeparentstatus>

use std::sync::Arc;

use super::{
    super::{kept::Kept, store::Store},
    Look, Routing, asked, is_about, mirrors_of, of_rule, parent_name, service_of,
};
use crate::{
    api::gateway::{Asked, FEATURES, Named, Parent},
    cluster::{
        model::Protocol,
        object::{AtParent, Frontend, Key, Kind, Mesh, Name, Told},
        problem::Problem,
        verdict::{OfGateway, Word},
    },
    govern::routes::backends::ServicePort,
};

/// What became of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Of each parent that is a Service of an enrolled namespace: what is in its way.
    pub(super) parents: Vec<(Parent, Result<(), Why>)>,
    /// The first backend that cannot be sent to.
    pub(super) unresolved: Option<Why>,
}

/// What comes of a Service that cannot be sent to: as a backend, and as a mirror.
const LOST: &str = "its part of the requests gets 500";
const NO_COPY: &str = "no copies of requests are sent to it";

/// A reason, as the specification names it, and what there is to say.
type Why = (&'static str, String);

impl Routing {
    pub(super) fn find(&self, key: &Key, kept: &Kept<Option<Arc<Asked>>>, look: Look<'_>) -> Option<Finding> {
        let asked = asked(kept)?;
        let ours = asked.parents.iter().filter(|parent| look.store.is_opted_in(&parent.namespace));
        let parents: Vec<_> =
            ours.map(|parent| (parent.clone(), self.find_parent(key, parent, look))).collect();
        if parents.is_empty() {
            return None;
        }
        let backends = asked.rules.iter().flat_map(|rule| {
            let all = of_rule(rule).map(|to| (to, LOST)).chain(mirrors_of(rule).map(|to| (to, NO_COPY)));
            all.map(move |(to, then)| (rule, to, then))
        });
        let missing = backends.filter_map(|(rule, backend, then)| {
            let named = |(reason, message): Why| (reason, format!("{message} (rule {})", rule.name));
            let allowed = |parent: &Parent| {
                self.may_refer((asked.kind, &key.name.namespace), &parent_name(parent), backend)
            };
            if !asked.parents.iter().all(allowed) {
                let message = format!(
                    "Service {backend} is in another namespace, and no ReferenceGrant there allows {} of namespace {} to \
                     refer to it: {then}",
                    asked.kind.as_str(),
                    key.name.namespace
                );
                return Some(named(("RefNotPermitted", message)));
            }
            let built = look.built.get(&service_of(backend));
            let there = built.is_some_and(|built| [false, true].iter().any(|v6| built.part(backend.port, *v6).is_some()));
            if there {
                return Self::find_protocol(&asked, backend, look).map(named);
            }
            Some({
                let frontend = look.store.services.get(&service_of(backend)).map(|service| &service.frontend);
                let why = if !look.store.is_opted_in(&backend.namespace) {
                    format!("namespace {} is not enrolled", backend.namespace)
                } else if frontend == Some(&Frontend::None) {
                    "it has no address of its own, as those of the type ExternalName".to_owned()
                } else if built.is_some() {
                    format!("it has no port {}", backend.port)
                } else {
                    "there is no such Service with an address".to_owned()
                };
                named(("BackendNotFound", format!("Service {backend}: {why}: {then}")))
            })
        });
        let strangers = asked.strangers.iter().map(|error| ("InvalidKind", error.to_string()));
        let unresolved = strangers.chain(missing).next();
        Some(Finding { parents, unresolved })
    }

    /// Requests are sent on in the protocol in which they came. Where one is declared at both ports, it has to be the same.
    fn find_protocol(asked: &Asked, backend: &ServicePort, look: Look<'_>) -> Option<Why> {
        let declared = |name: &Name| look.store.services.get(name).map(|service| &service.ports);
        let to = declared(&service_of(backend))?.iter().find(|port| port.port == backend.port)?.protocol;
        if to == Protocol::Opaque {
            let message = format!(
                "Service {backend} is declared to speak another protocol than HTTP: requests to it fail"
            );
            return Some(("UnsupportedProtocol", message));
        }
        let says = |protocol| match protocol {
            Protocol::Http => Some("HTTP/1"),
            Protocol::Http2 => Some("HTTP/2"),
            Protocol::Detect | Protocol::Opaque => None,
        };
        let of_parents = asked.parents.iter().flat_map(|parent| {
            let ports = declared(&parent_name(parent)).into_iter().flatten();
            ports
                .filter(|port| is_about(parent, port.port, port.name.as_ref()))
                .map(move |port| (parent, port))
        });
        let mut others = of_parents
            .filter(|(_, port)| says(port.protocol).is_some_and(|of| says(to).is_some_and(|to| to != of)));
        let (parent, port) = others.next()?;
        Some((
            "UnsupportedProtocol",
            format!(
                "Service {backend} is declared to speak {}, and port {} of Service {} {}: requests are sent on in the protocol in \
                 which they come, so that those in the latter fail",
                says(to)?,
                port.port,
                parent_name(parent),
                says(port.protocol)?
            ),
        ))
    }

    fn find_parent(&self, key: &Key, parent: &Parent, look: Look<'_>) -> Result<(), Why> {
        let name = parent_name(parent);
        let Some(service) = look.store.services.get(&name) else {
            return Err(("NoMatchingParent", format!("there is no Service {name}")));
        };
        match service.frontend {
            Frontend::ClusterIps(_) => {}
            Frontend::Headless => {
                let message = format!(
                    "Service {name} is headless: its clients choose an endpoint themselves, so no route holds for them"
                );
                return Err(("UnsupportedValue", message));
            }
            Frontend::None => {
                return Err(("UnsupportedValue", format!("Service {name} has no address of its own")));
            }
        }
        let mut ports = service.ports.iter();
        if !ports.any(|port| is_about(parent, port.port, port.name.as_ref())) {
            let ports: Vec<_> = service
                .ports
                .iter()
                .map(|port| match &port.name {
                    Some(name) => format!("{} ({name})", port.port),
                    None => port.port.to_string(),
                })
                .collect();
            return Err((
                "NoMatchingParent",
                format!("Service {name} has no such port: it has {}", ports.join(", ")),
            ));
        }
        let mut of_parent =
            service.ports.iter().filter(|port| is_about(parent, port.port, port.name.as_ref()));
        if of_parent.all(|port| port.protocol == Protocol::Opaque) {
            let message = format!(
                "Service {name} is declared to speak another protocol than HTTP there, so no route holds for it"
            );
            return Err(("UnsupportedValue", message));
        }
        if self.compiled.get(&name).is_some_and(|compiled| compiled.yielding.contains(key)) {
            let message =
                format!("Service {name} has a GRPCRoute for the same port, which is the more special kind");
            return Err(("Conflicted", message));
        }
        Ok(())
    }

    pub(in crate::cluster::builder) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.findings.iter().flat_map(|(key, finding)| {
            let parents = finding.parents.iter().filter_map(|(_, found)| found.as_ref().err());
            let all = parents.map(|why| (why, "spec.parentRefs"));
            let all = all.chain(finding.unresolved.iter().map(|why| (why, "spec.rules")));
            all.map(|((reason, message), field)| {
                Problem::of(key.clone(), format!("{reason}: {message}")).at(field)
            })
        })
    }

    /// What is to be said of the objects of which that may be something else; `None`: nothing.
    pub(in crate::cluster::builder) fn judge(&mut self, store: &Store) -> Vec<(Key, Option<OfGateway>)> {
        let keys = std::mem::take(&mut self.unjudged).into_iter();
        let judged = keys.map(|key| {
            let judged = match key.kind {
                Kind::Mesh => self.meshes.get(&key.name).and_then(judged_mesh),
                _ => self.judged(&key, store),
            };
            (key, judged)
        });
        judged.collect()
    }

    fn judged(&self, key: &Key, store: &Store) -> Option<OfGateway> {
        let (kept, head) = (self.all.get(key)?, self.heads.get(key)?);
        let parents = head.parents.iter().filter_map(|Named { parent, reference }| {
            let reference = reference.clone();
            // One of which nothing has been told may be enrolled, and not yet whole.
            if !store.namespaces.contains_key(&parent.namespace) {
                return Some(AtParent { reference, conditions: None });
            }
            if !store.is_opted_in(&parent.namespace) {
                return None;
            }
            Some(AtParent { reference, conditions: Some(self.conditions(key, kept, parent)) })
        });
        let parents: Arc<[_]> = parents.collect();
        // Those of others are theirs.
        (!(parents.is_empty() && head.told.is_empty())).then(|| OfGateway {
            uid: kept.object.uid.clone(),
            generation: kept.object.generation,
            word: Word::Route(parents),
            told: Word::Route(head.told.clone()),
        })
    }

    fn conditions(&self, key: &Key, kept: &Kept<Option<Arc<Asked>>>, parent: &Parent) -> Arc<[Told]> {
        let finding = self.findings.get(key);
        let found = || finding?.parents.iter().find(|(one, _)| one == parent).map(|(_, found)| found);
        let generation = kept.object.generation;
        let (status, reason, message) = match (kept.invalid(), found()) {
            (Some(invalid), _) => ("False", "UnsupportedValue", invalid.accepted.message),
            (None, Some(Err((reason, message)))) => ("False", *reason, message.clone()),
            (None, _) => {
                ("True", "Accepted", format!("active for requests to Service {}", parent_name(parent)))
            }
        };
        let accepted = told("Accepted", status, reason, &message, generation);
        let (status, reason, message) = match finding {
            Some(Finding { unresolved: Some((reason, message)), .. }) => ("False", *reason, &**message),
            Some(_) => ("True", "ResolvedRefs", "all backends are there"),
            None => ("Unknown", "Pending", "what an invalid route refers to is not looked for"),
        };
        [accepted, told("ResolvedRefs", status, reason, message, generation)].into()
    }
}

fn judged_mesh(mesh: &Mesh) -> Option<OfGateway> {
    let generation = mesh.generation;
    let conditions = if mesh.has_parameters {
        let message = "spec.parametersRef: Sluice has no parameters: leave it out";
        ["Accepted", "Programmed"].map(|kind| told(kind, "False", "InvalidParameters", message, generation))
    } else {
        ["Accepted", "Programmed"]
            .map(|kind| told(kind, "True", kind, "Sluice does what supportedFeatures names", generation))
    };
    mesh.ours.then(|| OfGateway {
        uid: mesh.uid.clone(),
        generation,
        word: Word::Mesh { conditions: conditions.into(), features: FEATURES.map(Arc::from).into() },
        told: Word::Mesh { conditions: mesh.told.clone(), features: mesh.features.clone() },
    })
}

/// A condition that is to be said. Since when is known where it is written.
fn told(kind: &str, status: &str, reason: &str, message: &str, generation: Option<i64>) -> Told {
    Told {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        generation,
        since: "".into(),
    }
}
