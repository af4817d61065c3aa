//! What a change of a TrafficPolicy or TrafficLane concerns, and what is to be said of them.

use std::sync::Arc;

use serde_json::Value;

use super::{Builder, accesses, keys, lanes, policies, store::Store};
use crate::{
    cluster::{
        object::{AccessPolicy, Key, Kind, Name, Own, TrafficLane, TrafficPolicy},
        verdict::{Judged, OfLane, Verdict},
    },
    govern::policy::Lane,
};

impl Builder {
    pub(super) fn set_policy(&mut self, name: &Name, policy: Option<TrafficPolicy>) {
        let policies::Concerned { services, namespace, policies, routes } =
            self.store.policies.set(name, policy);
        for route in &routes {
            self.dirty.extend(self.routing.services_of(route));
            self.routing.policy_changed();
        }
        for service in &services {
            self.dirty.extend(self.routing.successors(service));
        }
        self.dirty.extend(services);
        if namespace {
            let here = self.store.services.keys().filter(|service| service.namespace == name.namespace);
            self.dirty.extend(here.cloned());
        }
        self.unjudged.extend(policies.into_iter().map(|name| Key { kind: Kind::TrafficPolicy, name }));
    }

    pub(super) fn set_access(&mut self, name: &Name, policy: Option<AccessPolicy>) {
        if let Some(policy) = &policy {
            self.keys.link(policy);
        }
        self.keys.changed = true;
        let accesses::Concerned { services, namespace, policies } = self.store.accesses.set(name, policy);
        self.dirty.extend(services);
        if namespace {
            let here = self.store.services.keys().filter(|service| service.namespace == name.namespace);
            self.dirty.extend(here.cloned());
        }
        self.unjudged.extend(policies.into_iter().map(|name| Key { kind: Kind::AccessPolicy, name }));
    }

    /// Keys came that were missing, or it is known why they are missing.
    pub fn keys_changed(&mut self) {
        let all = self.store.accesses.all_asked();
        let concerned = all.filter(|(_, guarded)| keys::providers(guarded).next().is_some());
        let concerned = concerned.map(|(name, _)| Key { kind: Kind::AccessPolicy, name: name.clone() });
        self.unjudged.extend(concerned);
    }

    pub(super) fn set_lane(&mut self, name: &Name, lane: Option<TrafficLane>) {
        let Some(concerned) = self.store.lanes.set(name, lane) else { return };
        let namespace = &name.namespace;
        self.judge_again(Kind::TrafficLane, name);
        if concerned.lanes {
            let lanes = self.store.lanes.of(namespace).cloned();
            self.unjudged.extend(lanes.map(|name| Key { kind: Kind::TrafficLane, name }));
        }
        match concerned.services {
            lanes::Services::None => {}
            lanes::Services::Some(services) => {
                let named = |name| Name { namespace: namespace.clone(), name };
                self.dirty.extend(services.into_iter().map(named));
            }
            lanes::Services::All => {
                let services = self.store.services.keys().filter(|service| service.namespace == *namespace);
                self.dirty.extend(services.cloned());
            }
        }
        if concerned.pods {
            let pods = self.store.pods.names().filter(|pod| pod.namespace == *namespace);
            for pod in pods.cloned().collect::<Vec<_>>() {
                if self.select(&pod) {
                    self.pod_changed(&pod, &[]);
                }
            }
        }
    }

    fn judge_again(&mut self, kind: Kind, name: &Name) {
        self.unjudged.insert(Key { kind, name: name.clone() });
    }

    /// Looks which lane has a pod. Tells whether that gives it another tag.
    pub(super) fn select(&mut self, pod: &Name) -> bool {
        let (changed, lanes) = self.store.select(pod);
        self.unjudged.extend(lanes.into_iter().map(|name| Key { kind: Kind::TrafficLane, name }));
        changed
    }

    /// Finds out what became of the objects of Sluice's own kinds that a change concerned.
    pub(super) fn judge(&mut self) {
        for key in std::mem::take(&mut self.unjudged) {
            let judged = self.judged(&key);
            if self.verdicts.get(&key) == judged.as_ref() {
                continue;
            }
            // Only if somebody still reads the last ones they are copied.
            let verdicts = Arc::make_mut(&mut self.verdicts);
            match judged {
                Some(judged) => verdicts.insert(key, judged),
                None => verdicts.remove(&key),
            };
        }
    }

    /// The same of the objects of Gateway API.
    pub(super) fn judge_gateway(&mut self) {
        for (key, judged) in self.routing.judge(&self.store) {
            if self.gateway_verdicts.get(&key) == judged.as_ref() {
                continue;
            }
            let verdicts = Arc::make_mut(&mut self.gateway_verdicts);
            match judged {
                Some(judged) => verdicts.insert(key, judged),
                None => verdicts.remove(&key),
            };
        }
    }

    fn judged(&self, key: &Key) -> Option<Judged> {
        fn judged<T>(object: &Own<T>, verdict: Verdict) -> Judged {
            let Own { uid, generation, told, shown, spec, .. } = object;
            Judged {
                uid: uid.clone(),
                generation: *generation,
                verdict: Arc::new(verdict),
                told: told.clone(),
                targets: targets(spec),
                shown: shown.clone(),
                lane: None,
            }
        }
        fn outside<T>(object: &Own<T>) -> Judged {
            let wrong = object.asked.as_ref().err().map(|wrong| &**wrong).unwrap_or_default();
            judged(object, Verdict::not_enrolled(&object.name.namespace, wrong))
        }
        let (name, service) = (&key.name, |name: &Name| self.store.services.get(name));
        let Store { policies, lanes, accesses, .. } = &self.store;
        match key.kind {
            // One of which nothing has been told may be opted in, and not yet whole.
            _ if !self.store.namespaces.contains_key(&name.namespace) => None,
            Kind::TrafficPolicy if !self.store.is_opted_in(&name.namespace) => {
                policies.get(name).map(outside)
            }
            Kind::TrafficLane if !self.store.is_opted_in(&name.namespace) => {
                let lane = lanes.get(name)?;
                Some(Judged { lane: of_lane(lane, None), ..outside(lane) })
            }
            Kind::AccessPolicy if !self.store.is_opted_in(&name.namespace) => accesses.get(name).map(outside),
            Kind::TrafficPolicy => {
                let rules = |route: &Key| self.routing.rules_of(route);
                Some(judged(
                    policies.get(name)?,
                    policies.verdict(name, service, rules, self.options.limit_store)?,
                ))
            }
            Kind::TrafficLane => {
                let lane = lanes.get(name)?;
                let active = of_lane(lane, lanes.active(name));
                Some(Judged { lane: active, ..judged(lane, lanes.verdict(name, service)?) })
            }
            Kind::AccessPolicy => {
                let trouble = self.options.refuse_trouble.as_deref();
                Some(judged(accesses.get(name)?, accesses.verdict(name, service, trouble)?))
            }
            _ => None,
        }
    }
}

/// The lane that an object is about; `None`: it does not say.
fn of_lane(object: &TrafficLane, active: Option<&Arc<Lane>>) -> Option<OfLane> {
    let said = object.spec["tag"].as_str().map(Into::into);
    let tag = said.or_else(|| Some(active?.tag.as_str().into()))?;
    Some(OfLane { tag, active: active.cloned() })
}

/// What an object is for, on one line; `None`: it does not say.
fn targets(spec: &Value) -> Option<Arc<str>> {
    /// More than a line shows.
    const LONGEST: usize = 250;
    let target = |target: &Value| {
        let name = target["name"].as_str()?;
        let kind = target["kind"].as_str().filter(|kind| *kind != "Service");
        let kind = kind.map_or_else(String::new, |kind| format!("{kind} "));
        let port = target["sectionName"].as_str().map_or_else(String::new, |port| format!(":{port}"));
        Some(format!("{kind}{name}{port}"))
    };
    let all: Vec<_> = spec["targetRefs"].as_array()?.iter().filter_map(target).collect();
    let mut text = all.join(", ");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push_str("...");
    }
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_targets_are_shown_on_a_line() {
        let service = |name: &str| json!({ "kind": "Service", "name": name });
        let port = json!({ "kind": "Service", "name": "stock", "sectionName": "http" });
        let namespace = json!({ "kind": "Namespace", "name": "shop" });
        for (refs, shown) in [
            (json!([service("orders")]), Some("orders")),
            (json!([service("orders"), port, namespace]), Some("orders, stock:http, Namespace shop")),
            (json!([{ "name": 7 }]), None),
            (json!([]), None),
            (Value::Null, None),
        ] {
            assert_eq!(targets(&json!({ "targetRefs": refs })).as_deref(), shown);
        }
        let many = vec![service("a-service"); 32];
        let shown = targets(&json!({ "targetRefs": many })).unwrap();
        assert!(shown.len() == 253 && shown.ends_with("..."), "{shown}");
    }
}
