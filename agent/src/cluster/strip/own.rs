//! Sluice's own kinds, and what is the same of those of Gateway API.
//!
//! Unlike Kubernetes's these may be anything: a CRD older than this agent lets pass what makes no sense to it, and a field
//! of the wrong type must not make the whole list unreadable. So they are taken as they come, and an object that is
//! wrong is an object all the same: one that says why it asks for nothing.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use super::{Check, key, text};
use crate::{
    api::{self, FieldError, effective::Effective},
    cluster::{
        object::{Attached, Guarded, Kind, Object, Own, Told},
        problem::Problem,
        source::Sighting,
    },
};

/// A kind that has a CustomResourceDefinition, as the API server names it.
pub trait Named: 'static {
    const KIND: &'static str;
    const PLURAL: &'static str;
    const GROUP: &'static str;
    const VERSION: &'static str;
    type Scope;
}

macro_rules! named {
    ($kind:ty: $name:literal, $plural:literal) => {
        impl Named for $kind {
            const KIND: &'static str = $name;
            const PLURAL: &'static str = $plural;
            const GROUP: &'static str = "sluice.dev";
            const VERSION: &'static str = "v1alpha1";
            type Scope = NamespaceResourceScope;
        }
    };
}

named!(api::TrafficPolicy: "TrafficPolicy", "trafficpolicies");
named!(api::TrafficLane: "TrafficLane", "trafficlanes");
named!(api::AccessPolicy: "AccessPolicy", "accesspolicies");

/// An object of such a kind, not yet read.
#[derive(Clone, Debug)]
pub struct Loose<K> {
    metadata: ObjectMeta,
    pub value: Value,
    kind: std::marker::PhantomData<fn() -> K>,
}

pub fn traffic_policy(object: &Value) -> Result<Sighting, Problem> {
    own::<api::TrafficPolicy, _>(
        Kind::TrafficPolicy,
        object,
        |read, spec, policy| Attached {
            targets: api::Kind::targets(read),
            routes: api::Kind::routes(read),
            for_namespace: api::Kind::is_for_namespace(read),
            effective: Effective { spec: spec.clone(), policy: Arc::new(policy) },
        },
        Object::TrafficPolicy,
        None,
    )
}

pub fn access_policy(object: &Value) -> Result<Sighting, Problem> {
    let guarded =
        |(targets, for_namespace, access)| Guarded { targets, for_namespace, access: Arc::new(access) };
    own::<api::AccessPolicy, _>(
        Kind::AccessPolicy,
        object,
        |read, _, access| guarded((api::Kind::targets(read), api::Kind::is_for_namespace(read), access)),
        Object::AccessPolicy,
        Some(&|object| api::access_policy::closed(object).map(guarded)),
    )
}

pub fn traffic_lane(object: &Value) -> Result<Sighting, Problem> {
    own::<api::TrafficLane, _>(
        Kind::TrafficLane,
        object,
        |_, _, lane| Arc::new(lane),
        Object::TrafficLane,
        None,
    )
}

/// What is active in the place of an object that makes no sense.
type Instead<'i, T> = dyn Fn(&Value) -> Option<T> + 'i;

fn own<K: api::Kind, T>(
    kind: Kind,
    object: &Value,
    make: impl FnOnce(&K, &Arc<Value>, K::Checked) -> T,
    wrap: impl FnOnce(Own<T>) -> Object,
    instead: Option<&Instead<'_, T>>,
) -> Result<Sighting, Problem> {
    let metadata: ObjectMeta = serde_path_to_error::deserialize(object["metadata"].clone()).map_err(|e| {
        let named = |name| object["metadata"][name].as_str();
        Problem::of(
            key(kind, named("namespace"), named("name")),
            format!("{}; the object is left out", api::plain::words(e.inner())),
        )
        .at(match &*api::path_of(e.path()) {
            "" => "metadata".to_owned(),
            inner => format!("metadata.{inner}"),
        })
    })?;
    let mut check = Check::begin(kind, &metadata)?;
    let spec = Arc::new(object["spec"].clone());
    let asked = match api::read::<K>(object) {
        Ok((read, checked)) => Ok(make(&read, &spec, checked)),
        Err(errors) => {
            for FieldError { field, message } in &errors {
                check.note(field, format!("{message}; its last valid version stays active, if there is one"));
            }
            Err(errors.into())
        }
    };
    let instead = if asked.is_err() { instead.and_then(|instead| instead(object)) } else { None };
    let own = Own {
        name: check.key.name.clone(),
        uid: text(metadata.uid.as_deref()),
        generation: metadata.generation,
        created: metadata.creation_timestamp.map(|time| time.0.as_second()),
        asked,
        instead: instead.map(Box::new),
        told: told(&object["status"]["conditions"]),
        shown: text(object["status"]["targets"].as_str()),
        spec,
    };
    Ok(check.end(wrap(own)))
}

/// What can be read of the conditions; what cannot is as if it were not there, and will be written anew.
pub fn told(conditions: &Value) -> Arc<[Told]> {
    let conditions = conditions.as_array().into_iter().flatten();
    conditions
        .filter_map(|condition| {
            let text = |field: &str| condition[field].as_str().map(Arc::from);
            Some(Told {
                kind: text("type")?,
                status: text("status")?,
                reason: text("reason")?,
                message: text("message").unwrap_or_default(),
                generation: condition["observedGeneration"].as_i64(),
                since: text("lastTransitionTime")?,
            })
        })
        .collect()
}

impl<'de, K> Deserialize<'de> for Loose<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let metadata = Deserialize::deserialize(&value["metadata"]).map_err(D::Error::custom)?;
        Ok(Self { metadata, value, kind: std::marker::PhantomData })
    }
}

impl<K: Named> Resource for Loose<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
