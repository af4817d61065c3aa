//! Routes and grants of Gateway API, which may be anything, as Sluice's own kinds may.

use std::sync::Arc;

use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{Check, Named, key, own::told, text};
use crate::{
    api::{
        FieldError,
        gateway::{self, Asked, Grant},
    },
    cluster::{
        object::{self, AtParent, Kind, Object, Own},
        problem::Problem,
        source::Sighting,
    },
};

macro_rules! named {
    ($(#[$doc:meta])* $kind:ident: $name:literal, $plural:literal, $group:path, $version:literal, $scope:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $kind;

        impl Named for $kind {
            const KIND: &'static str = $name;
            const PLURAL: &'static str = $plural;
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            type Scope = $scope;
        }
    };
}

named!(HttpRoute: "HTTPRoute", "httproutes", gateway::GROUP, "v1", NamespaceResourceScope);
named!(GrpcRoute: "GRPCRoute", "grpcroutes", gateway::GROUP, "v1", NamespaceResourceScope);
named!(Mesh: "XMesh", "xmeshes", gateway::EXPERIMENTAL_GROUP, "v1alpha1", ClusterResourceScope);
named!(
    /// In the version that every release has; in `v1` only the latest have it.
    ReferenceGrant: "ReferenceGrant", "referencegrants", gateway::GROUP, "v1beta1", NamespaceResourceScope
);

pub fn http_route(object: &Value) -> Result<Sighting, Problem> {
    route(Kind::HttpRoute, object, gateway::http_route)
}

pub fn grpc_route(object: &Value) -> Result<Sighting, Problem> {
    route(Kind::GrpcRoute, object, gateway::grpc_route)
}

fn route(
    kind: Kind,
    object: &Value,
    read: impl FnOnce(&Value, &str, &str) -> Result<Option<Asked>, Vec<FieldError>>,
) -> Result<Sighting, Problem> {
    let (mut check, metadata) = begin(kind, object)?;
    let name = check.key.name.clone();
    let asked = read(&object["spec"], &name.namespace, &name.to_string());
    if let Err(errors) = &asked {
        for FieldError { field, message } in errors {
            check.note(field, format!("{message}; its last valid version stays active, if there is one"));
        }
    }
    let own = Own {
        name,
        uid: text(metadata.uid.as_deref()),
        generation: metadata.generation,
        created: metadata.creation_timestamp.map(|time| time.0.as_second()),
        asked: asked.map(|asked| asked.map(Arc::new)).map_err(Into::into),
        instead: None,
        told: Arc::default(),
        shown: None,
        spec: Arc::new(object["spec"].clone()),
    };
    let all = object["status"]["parents"].as_array().into_iter().flatten();
    let all = all.filter(|parent| parent["controllerName"] == gateway::CONTROLLER).map(|parent| AtParent {
        reference: parent["parentRef"].clone(),
        conditions: Some(told(&parent["conditions"])),
    });
    let route = object::Route {
        parents: gateway::parents(&object["spec"], &own.name.namespace).into(),
        told: all.collect(),
        own,
    };
    Ok(check.end(Object::Route(kind, route)))
}

pub fn mesh(object: &Value) -> Result<Sighting, Problem> {
    let (check, metadata) = begin(Kind::Mesh, object)?;
    let features = object["status"]["supportedFeatures"].as_array().into_iter().flatten();
    let mesh = object::Mesh {
        name: check.key.name.clone(),
        uid: text(metadata.uid.as_deref()),
        generation: metadata.generation,
        ours: object["spec"]["controllerName"] == gateway::CONTROLLER,
        has_parameters: !object["spec"]["parametersRef"].is_null(),
        told: told(&object["status"]["conditions"]),
        features: features.filter_map(|feature| feature["name"].as_str().map(Arc::from)).collect(),
    };
    Ok(check.end(Object::Mesh(mesh)))
}

pub fn reference_grant(object: &Value) -> Result<Sighting, Problem> {
    let (mut check, _) = begin(Kind::ReferenceGrant, object)?;
    let grant = gateway::reference_grant(&object["spec"]).unwrap_or_else(|FieldError { field, message }| {
        check.note(field, format!("{message}; it allows nothing"));
        Grant::default()
    });
    let name = check.key.name.clone();
    let spec = Arc::new(object["spec"].clone());
    Ok(check.end(Object::ReferenceGrant(object::ReferenceGrant { name, grant, spec })))
}

fn begin(kind: Kind, object: &Value) -> Result<(Check, ObjectMeta), Problem> {
    let metadata: ObjectMeta = serde_json::from_value(object["metadata"].clone()).map_err(|e| {
        let named = |name| object["metadata"][name].as_str();
        Problem::of(key(kind, named("namespace"), named("name")), format!("{e}; the object is left out"))
            .at("metadata")
    })?;
    Ok((Check::begin(kind, &metadata)?, metadata))
}
