//! The statuses of Gateway API's objects. Unlike those of Sluice's own kinds they are not Sluice's alone.
//!
//! The list of a route's parents has an entry of each controller that the route concerns, and is replaced as a whole: who applies a
//! list of its own on the server's side takes the others' away. So it is read, Sluice's entries are put in the place of those that
//! were, and it is written for the version that was read; if that is not the last any more, the same again.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{MANAGER, plan};
use crate::{
    api::gateway::{CONTROLLER, MESH_VERSION},
    cluster::{
        object::{AtParent, Key, Kind, Told},
        strip::{GrpcRoute, HttpRoute, Loose, Mesh, Named},
        verdict::{OfGateway, Word},
    },
};

/// How often a route is read again that somebody else has written meanwhile, before others get their turn.
const TRIES: usize = 5;
/// As many parents as a status may have.
const MOST_PARENTS: usize = 32;

/// Whether the object says all of it.
pub(super) fn says_so(object: &OfGateway) -> bool {
    match (&object.word, &object.told) {
        (Word::Route(wanted), Word::Route(told)) => {
            let is_told = |wanted: &AtParent| {
                let there = || told.iter().find(|told| told.reference == wanted.reference);
                let Some(conditions) = &wanted.conditions else { return true };
                there().and_then(|told| told.conditions.as_ref()).is_some_and(|told| {
                    told.len() == conditions.len() && conditions.iter().all(|one| stands_in(one, told))
                })
            };
            wanted.iter().all(is_told)
                && told.iter().all(|told| wanted.iter().any(|wanted| wanted.reference == told.reference))
        }
        (Word::Mesh { conditions, features }, Word::Mesh { conditions: told, features: told_features }) => {
            conditions.iter().all(|one| stands_in(one, told)) && features == told_features
        }
        _ => false,
    }
}

fn stands_in(wanted: &Told, told: &[Told]) -> bool {
    let text = |one: &Told| (one.kind.clone(), one.status.clone(), one.reason.clone(), one.generation);
    told.iter().any(|told| text(told) == text(wanted) && *told.message == *plan::short(&wanted.message))
}

/// Makes it say so.
pub(super) async fn write(client: &Client, key: &Key, object: &OfGateway) -> Result<(), kube::Error> {
    match &object.word {
        Word::Route(parents) if key.kind == Kind::HttpRoute => {
            write_route::<HttpRoute>(client, key, object, parents).await
        }
        Word::Route(parents) => write_route::<GrpcRoute>(client, key, object, parents).await,
        Word::Mesh { conditions, features } => {
            let features = features.iter().map(|name| json!({ "name": &**name }));
            let mut metadata = json!({ "name": &*key.name.name });
            if let Some(uid) = &object.uid {
                metadata["uid"] = Value::from(&**uid);
            }
            let Word::Mesh { conditions: told, .. } = &object.told else { return Ok(()) };
            let body = json!({
                "apiVersion": MESH_VERSION,
                "kind": Mesh::KIND,
                "metadata": metadata,
                "status": {
                    "conditions": written(conditions, told, &plan::now()),
                    "supportedFeatures": features.collect::<Value>(),
                },
            });
            // It names Sluice as its controller.
            let params = PatchParams::apply(MANAGER).force();
            let api: Api<Loose<Mesh>> = Api::all(client.clone());
            api.patch_status(&key.name.name, &params, &Patch::Apply(&body)).await.map(drop)
        }
    }
}

async fn write_route<K>(
    client: &Client,
    key: &Key,
    object: &OfGateway,
    parents: &[AtParent],
) -> Result<(), kube::Error>
where
    K: Named<Scope = NamespaceResourceScope> + Clone + Debug,
{
    let api: Api<Loose<K>> = Api::namespaced(client.clone(), &key.name.namespace);
    let name = &*key.name.name;
    for left in (0..TRIES).rev() {
        let Some(found) = api.get_opt(name).await? else { return Ok(()) };
        let (metadata, status) = (&found.value["metadata"], &found.value["status"]);
        let is_known = object.uid.as_deref().is_none_or(|uid| metadata["uid"] == uid)
            && object.generation == metadata["generation"].as_i64();
        // Otherwise the watch will tell, and there will be something else to say.
        let there = status["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = merged(there, parents, &plan::now());
        if !is_known || wanted == there {
            return Ok(());
        }
        let body = json!({
            "metadata": { "resourceVersion": metadata["resourceVersion"] },
            "status": { "parents": wanted },
        });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch_status(name, &params, &Patch::Merge(&body)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && left > 0 => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}

/// The entries of a route's status: others' as they stand, and Sluice's own.
fn merged(there: &[Value], wanted: &[AtParent], now: &Value) -> Vec<Value> {
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let others = there.iter().filter(|entry| !is_ours(entry)).cloned();
    let ours = wanted.iter().filter_map(|at| {
        let before = there.iter().filter(is_ours).find(|entry| entry["parentRef"] == at.reference);
        let Some(conditions) = &at.conditions else { return before.cloned() };
        let told = before.map(|entry| crate::cluster::strip::told(&entry["conditions"])).unwrap_or_default();
        Some(json!({
            "parentRef": at.reference,
            "controllerName": CONTROLLER,
            "conditions": written(conditions, &told, now),
        }))
    });
    others.chain(ours).take(MOST_PARENTS).collect()
}

/// A condition that stays true or untrue keeps the time since when.
fn written(conditions: &[Told], told: &[Told], now: &Value) -> Value {
    let conditions = conditions.iter().map(|condition| {
        let before = told.iter().find(|told| told.kind == condition.kind && told.status == condition.status);
        let mut written = json!({
            "type": &*condition.kind,
            "status": &*condition.status,
            "reason": &*condition.reason,
            "message": plan::short(&condition.message),
            "lastTransitionTime": before.map_or_else(|| now.clone(), |told| Value::from(&*told.since)),
        });
        if let Some(generation) = condition.generation {
            written["observedGeneration"] = generation.into();
        }
        written
    });
    conditions.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn told(status: &str, message: &str, since: &str) -> Told {
        Told {
            kind: "Accepted".into(),
            status: status.into(),
            reason: "Accepted".into(),
            message: message.into(),
            generation: Some(3),
            since: since.into(),
        }
    }

    fn at(name: &str, conditions: Option<Told>) -> AtParent {
        let reference = json!({ "group": "", "kind": "Service", "name": name });
        AtParent { reference, conditions: conditions.map(|one| [one].into()) }
    }

    fn entry(controller: &str, name: &str, status: &str) -> Value {
        json!({
            "parentRef": { "group": "", "kind": "Service", "name": name },
            "controllerName": controller,
            "conditions": [{
                "type": "Accepted", "status": status, "reason": "Accepted", "message": "m", "observedGeneration": 3,
                "lastTransitionTime": "then",
            }],
        })
    }

    fn route(wanted: Vec<AtParent>, told: Vec<AtParent>) -> OfGateway {
        let word = |all: Vec<_>| Word::Route(Arc::from(all));
        OfGateway { uid: None, generation: Some(3), word: word(wanted), told: word(told) }
    }

    #[test]
    fn what_is_said_already_is_not_written() {
        let good = || Some(told("True", "m", ""));
        let said = || Some(told("True", "m", "then"));
        assert!(says_so(&route(vec![at("a", good())], vec![at("a", said())])));
        assert!(says_so(&route(Vec::new(), Vec::new())));
        // Nothing is known of it: whatever stands there.
        assert!(says_so(&route(vec![at("a", None)], Vec::new())));
        assert!(says_so(&route(vec![at("a", None)], vec![at("a", said())])));
        for (wanted, told) in [
            (vec![at("a", good())], Vec::new()),
            (vec![at("a", good())], vec![at("b", said())]),
            (vec![at("a", good())], vec![at("a", said()), at("b", said())]),
            (Vec::new(), vec![at("a", said())]),
            (vec![at("a", good())], vec![at("a", Some(told("False", "m", "then")))]),
            (vec![at("a", good())], vec![at("a", Some(told("True", "other", "then")))]),
            (
                vec![at("a", good())],
                vec![at("a", Some(Told { generation: Some(2), ..told("True", "m", "") }))],
            ),
        ] {
            assert!(!says_so(&route(wanted.clone(), told.clone())), "{wanted:?} {told:?}");
        }
        // A very long message is cut, and that is it.
        let long = "m".repeat(10_000);
        let cut = plan::short(&long).to_owned();
        let wanted = vec![at("a", Some(told("True", &long, "")))];
        assert!(says_so(&route(wanted, vec![at("a", Some(told("True", &cut, "then")))])));
    }

    #[test]
    fn the_entries_of_others_are_left_as_they_stand() {
        let other = entry("example.com/gateway", "a", "False");
        let there = [entry(CONTROLLER, "gone", "True"), other.clone(), entry(CONTROLLER, "a", "True")];
        let now = json!("now");
        let wanted = [at("a", Some(told("True", "m", ""))), at("b", Some(told("True", "m", "")))];
        let merged = merged(&there, &wanted, &now);
        assert_eq!(merged[0], other);
        assert_eq!(merged[1], entry(CONTROLLER, "a", "True"), "and what stays keeps its time");
        assert_eq!(merged[2]["conditions"][0]["lastTransitionTime"], "now");
        assert_eq!(merged.len(), 3, "{merged:?}");
        // What is not known stays.
        assert_eq!(
            super::merged(&there, &[at("gone", None), at("c", None)], &now),
            [other.clone(), there[0].clone()]
        );
        assert_eq!(super::merged(&there, &[], &now), [other]);
        // There is no room for more.
        let many: Vec<_> = (0..32).map(|n| entry("example.com/gateway", &n.to_string(), "True")).collect();
        assert_eq!(super::merged(&many, &wanted, &now), many);
    }

    #[test]
    fn a_condition_that_turns_has_a_new_time() {
        let there = [entry(CONTROLLER, "a", "True")];
        let merged = merged(&there, &[at("a", Some(told("False", "m", "")))], &json!("now"));
        assert_eq!(merged[0]["conditions"][0]["lastTransitionTime"], "now");
    }
}
