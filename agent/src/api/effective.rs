//! What a policy comes to: what it takes from other policies, and every value with where it comes from.
//!
//! Inheritance is that of Gateway API's policies (GEP-713): a TrafficPolicy that targets its Namespace gives its fields to every
//! Service whose own policy does not set them, and one of a Service to those that its routes send to. It goes by the fields of
//! `spec`, each as a whole: lists are not merged, and an empty list is one that is set.
//! <https://gateway-api.sigs.k8s.io/geps/gep-713/>

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};

use super::{
    ErrorCodes, PolicyRule, Said, TrafficPolicy, crds, definition, field::Errors, read,
    traffic_policy::ADAPTIVE_MAX,
};
use crate::{
    govern::policy::{self, Inherited, OnRoute, Part, Parts, Policy},
    observe::reason::grpc_name,
};

/// What a service is governed by, as its policies say it.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// With what is inherited.
    pub spec: Arc<Value>,
    pub policy: Arc<Policy>,
}

/// A value that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// `rateLimits[0].burst`
    pub field: String,
    pub value: Value,
    /// The policy says it; else it is a default.
    pub said: bool,
}

/// What the value of a part is that is not there.
pub const OFF: &str = "off";

/// What of a spec is about the object itself.
const OF_THE_OBJECT: [&str; 2] = ["targetRefs", "inherit"];

impl Effective {
    /// A policy that inherits nothing.
    pub fn alone(spec: &Arc<Value>, policy: &Arc<Policy>) -> Self {
        Self { spec: spec.clone(), policy: policy.clone() }
    }

    /// The policy of a Service with what it takes from a more general one. What makes no sense together although each does by
    /// itself is not inherited: there is nothing like that now.
    pub fn new(own: &Self, defaults: &Self) -> Self {
        let mut spec = (*own.spec).clone();
        let parts = inherit(&mut spec, &defaults.spec);
        if parts.is_empty() {
            return own.clone();
        }
        let (namespace, name) = own.policy.name.as_deref().and_then(|name| name.split_once('/')).unzip();
        let metadata = serde_json::json!({"namespace": namespace, "name": name});
        let object = serde_json::json!({"metadata": metadata, "spec": spec});
        let Ok((_, mut policy)) = read::<TrafficPolicy>(&object) else { return own.clone() };
        let mut inherited = own.policy.inherited.clone();
        inherited.extend(sources(parts, &defaults.policy));
        policy.inherit(inherited);
        Self { spec: Arc::new(spec), policy: Arc::new(policy) }
    }

    /// The same for a Service that has none of its own: what the policy says of inheriting is about the Service that it targets.
    #[must_use]
    pub fn given(&self) -> Self {
        let mut spec = (*self.spec).clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("inherit");
        }
        Self { spec: Arc::new(spec), policy: self.policy.clone() }
    }

    /// What a policy that targets a route comes to for the requests that the route sends to a Service. `service`: what governs it,
    /// if anything does.
    pub fn on_route(&self, service: Option<&Self>) -> OnRoute {
        let name = self.policy.name.clone().unwrap_or_default();
        let typed = |effective: &Self| {
            let object = serde_json::json!({"metadata": {}, "spec": &*effective.spec});
            read::<TrafficPolicy>(&object).ok().map(|(typed, _)| typed.spec)
        };
        let (own, service_says) =
            (typed(self).unwrap_or_default(), service.and_then(typed).unwrap_or_default());
        let is_set = |field: &str| !self.spec[field].is_null();
        let rule = PolicyRule {
            name: name.to_string(),
            matches: None,
            errors: own.errors,
            rate_limits: is_set("rateLimits").then_some(own.rate_limits),
            concurrency: own.concurrency,
            circuit_breaker: own.circuit_breaker,
            timeouts: own.timeouts,
            retry: own.retry,
            fallbacks: is_set("fallbacks").then_some(own.fallbacks),
            headers: own.headers,
        };
        let mode = own.mode.or(service_says.mode).unwrap_or_default();
        let none = Arc::default();
        let base = service.map_or(&none, |service| &service.policy);
        let over = |said: Said<'_>, policy: &Policy| {
            // What is wrong with either is told of the object itself.
            let errors = Errors::default();
            let mut rule = rule.check(said, policy, mode, &errors.at("spec"));
            let of_route = Inherited { by: name.clone(), parts: rule.own };
            Arc::make_mut(&mut rule.policy).of_route = Some(of_route);
            Arc::new(rule)
        };
        let said = service_says.said();
        let of_rules = service_says.rules.iter().zip(&base.rules).map(|(says, rule)| {
            let own = says.said();
            let said = Said { errors: own.errors.or(said.errors), retry: own.retry.or(said.retry), ..said };
            over(said, &rule.policy)
        });
        OnRoute { over: std::iter::once(over(said, base)).chain(of_rules).collect(), name: name.clone() }
    }

    /// Every value, and the policy that says it, as in `shop/orders`; `None`: it is a default.
    pub fn values(&self) -> impl Iterator<Item = (Effect, Option<&Arc<str>>)> {
        values(&self.spec).into_iter().map(|effect| {
            let part = effect.field.split(['.', '[']).next().and_then(Part::named);
            // The mode of a rule is that of the policy, if it does not say its own.
            let of_rule = effect.field.rsplit_once('.').is_some_and(|(_, last)| last == "mode");
            let part = if of_rule && !is_set(&self.spec, &effect.field) { Some(Part::Mode) } else { part };
            let by = part.filter(|_| effect.said).and_then(|part| self.policy.said_by(part));
            (effect, by)
        })
    }
}

/// Who says these parts of a policy: it, or those that it has them from itself.
fn sources(parts: Parts, policy: &Policy) -> Vec<Inherited> {
    let mut sources: Vec<Inherited> = Vec::new();
    let names: Vec<_> = policy.name.iter().chain(policy.inherited.iter().map(|from| &from.by)).collect();
    for by in names {
        let its = parts.iter().filter(|part| policy.said_by(*part) == Some(by)).collect::<Parts>();
        if !its.is_empty() {
            sources.push(Inherited { by: by.clone(), parts: its });
        }
    }
    sources
}

/// Whether a spec has a field, as in `rules[0].concurrency.mode`.
fn is_set(spec: &Value, field: &str) -> bool {
    let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
    spec.pointer(&pointer).is_some_and(|value| !value.is_null())
}

/// Adds what a spec does not say and its namespace's does; tells what that was.
fn inherit(own: &mut Value, defaults: &Value) -> Parts {
    let (Some(fields), Some(defaults)) = (own.as_object_mut(), defaults.as_object()) else {
        return Parts::default();
    };
    if fields.get("inherit").is_some_and(|inherit| inherit == "None") {
        return Parts::default();
    }
    let mut parts = Vec::new();
    for (field, value) in defaults.iter().filter(|(_, value)| !value.is_null()) {
        let missing = fields.get(field).is_none_or(Value::is_null);
        if let Some(part) = Part::named(field).filter(|_| missing) {
            fields.insert(field.clone(), value.clone());
            parts.push(part);
        }
    }
    parts.into_iter().collect()
}

/// All values of a policy: what it says, and the defaults of what it does not say.
pub fn values(spec: &Value) -> Vec<Effect> {
    static SCHEMA: LazyLock<Value> =
        LazyLock::new(|| crds::schema_of(&definition::<TrafficPolicy>(), "spec"));
    let mut values = Vec::new();
    let mode = text(spec, "mode").unwrap_or("Enforce");
    let retried = retried(&spec["errors"]);
    walk(&SCHEMA, spec, "", &Whole { mode, said: !spec["mode"].is_null(), retried }, &mut values);
    values.retain(|effect| {
        OF_THE_OBJECT.iter().all(|field| {
            effect.field.strip_prefix(field).is_none_or(|rest| !(rest.is_empty() || rest.starts_with('[')))
        })
    });
    values
}

/// What a part takes from the policy as a whole.
struct Whole<'a> {
    mode: &'a str,
    said: bool,
    /// What is retried by default; `None`: as the schema says.
    retried: Option<policy::RetryOn>,
}

/// What is retried where `errors` are said.
fn retried(errors: &Value) -> Option<policy::RetryOn> {
    let errors: ErrorCodes = serde_json::from_value(errors.clone()).ok()?;
    Some(ErrorCodes::retried(Some(&errors)))
}

fn walk(schema: &Value, value: &Value, path: &str, whole: &Whole<'_>, values: &mut Vec<Effect>) {
    match value {
        Value::Object(fields) if schema["properties"].is_object() => {
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match fields.get(name).filter(|value| !value.is_null()) {
                    Some(value) => walk(schema, value, &path, whole, values),
                    None => not_said(schema, value, &path, whole, values),
                }
            }
        }
        Value::Array(items) if schema["items"]["properties"].is_object() && !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                match retried(&item["errors"]) {
                    Some(of_rule) => {
                        let whole = Whole { retried: Some(of_rule), ..*whole };
                        walk(&schema["items"], item, &path, &whole, values);
                    }
                    None => walk(&schema["items"], item, &path, whole, values),
                }
            }
        }
        value => values.push(Effect { field: path.to_owned(), value: value.clone(), said: true }),
    }
}

/// A field that the policy does not say, of an object that it does: `rule`.
fn not_said(schema: &Value, rule: &Value, path: &str, whole: &Whole<'_>, values: &mut Vec<Effect>) {
    let mut default = |value: Value, said| values.push(Effect { field: path.to_owned(), value, said });
    let place = place_of(path);
    match (place.strip_prefix("rules.").unwrap_or(&place), &whole.retried) {
        ("retry.codes", Some(retried)) => return default(json!(retried.statuses), false),
        ("retry.grpcCodes", Some(retried)) => {
            let names = retried.grpc_statuses.iter().map(|code| grpc_name(*code)).collect::<Vec<_>>();
            return default(json!(names), false);
        }
        _ => {}
    }
    if let Some(value) = schema.get("default") {
        return default(value.clone(), false);
    }
    let of_type = |wanted: &str| text(rule, "type") == Some(wanted);
    let none = Value::Object(Map::new());
    // The place in the policy, or in one of its rules, which say the same.
    match place.strip_prefix("rules.").unwrap_or(&place) {
        "mode" if place == "mode" => default("Enforce".into(), false),
        "rateLimits.mode" | "concurrency.mode" | "circuitBreaker.mode" | "outlierDetection.mode" => {
            default(whole.mode.into(), whole.said);
        }
        "rateLimits.burst" if !of_type("Queue") => default(rule["requests"].clone(), false),
        "concurrency.maxRequests" => default(ADAPTIVE_MAX.into(), false),
        "retry.methods" => {
            let methods: Vec<_> = policy::Retry::default().methods.iter().map(ToString::to_string).collect();
            default(methods.into(), false);
        }
        // Parts that are there although nobody says so, with defaults of their own.
        "loadBalancer" | "retry.budget" | "retry.backoff" => walk(schema, &none, path, whole, values),
        "errors" if place == "errors" => walk(schema, &none, path, whole, values),
        "rateLimits.queue" if of_type("Queue") => walk(schema, &none, path, whole, values),
        "rateLimits.warmUp" if of_type("WarmUp") => walk(schema, &none, path, whole, values),
        // Parts that turn something on.
        "loadBalancer.warmUp"
        | "concurrency.adaptive"
        | "circuitBreaker.slowRequest"
        | "outlierDetection.successRate" => default(OFF.into(), false),
        // What a rule does not say is as the policy says.
        part if !part.contains('.') && place == part => default(OFF.into(), false),
        _ => {}
    }
}

/// `rules.rateLimits.burst` of `rules[0].rateLimits[1].burst`
fn place_of(path: &str) -> String {
    let names = path.split('.').map(|part| part.split('[').next().unwrap_or_default());
    names.collect::<Vec<_>>().join(".")
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value[field].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(name: &str, spec: &Value) -> Effective {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        let (_, policy) = read::<TrafficPolicy>(&object).expect("a good policy");
        Effective { spec: Arc::new(spec.clone()), policy: Arc::new(policy) }
    }

    fn by(effective: &Effective, field: &str) -> Option<(Value, Option<String>)> {
        let mut values = effective.values().filter(|(effect, _)| effect.field == field);
        let (effect, by) = values.next()?;
        Some((effect.value, by.map(ToString::to_string)))
    }

    #[test]
    fn a_service_takes_the_fields_that_its_policy_does_not_set() {
        let defaults = effective(
            "defaults",
            &json!({
                "targetRefs": [{"kind": "Namespace", "name": "shop"}],
                "mode": "Observe",
                "timeouts": {"request": "5s", "backendRequest": "1s"},
                "retry": {"attempts": 2},
                "rateLimits": [{"name": "all", "requests": 100}],
                "rules": [{"name": "slow", "match": {"path": {"value": "/slow"}}, "timeouts": {"request": "9s"}}],
            }),
        );
        let own = effective(
            "orders",
            &json!({
                "targetRefs": [{"name": "orders"}],
                "timeouts": {"request": "2s"},
                "rateLimits": [],
                "concurrency": {"maxRequests": 5},
            }),
        );
        let both = Effective::new(&own, &defaults);
        let own_name = Some("shop/orders".to_owned());
        let inherited = Some("shop/defaults".to_owned());
        for (field, value, source) in [
            ("timeouts.request", json!("2s"), own_name.clone()),
            ("retry.attempts", json!(2), inherited.clone()),
            ("retry.backoff.base", json!("25ms"), None),
            ("rateLimits", json!([]), own_name.clone()),
            ("mode", json!("Observe"), inherited.clone()),
            ("concurrency.maxRequests", json!(5), own_name.clone()),
            ("concurrency.mode", json!("Observe"), inherited.clone()),
            ("rules[0].timeouts.request", json!("9s"), inherited.clone()),
            ("circuitBreaker", json!("off"), None),
        ] {
            assert_eq!(by(&both, field), Some((value, source)), "{field}");
        }
        // A field is inherited as a whole or not at all.
        assert_eq!(by(&both, "timeouts.backendRequest"), None);
        assert_eq!(both.policy.timeouts.backend_request, None);
        assert!(both.policy.rate_limits.is_empty() && both.policy.retry.is_some());
        assert_eq!(both.policy.concurrency.as_ref().map(|one| one.mode), Some(policy::Mode::Observe));
        // What an answer names as its source.
        let of = |policy: &Policy, part| policy.said_by(part).map(ToString::to_string);
        assert_eq!(of(&both.policy, Part::Retry), inherited);
        assert_eq!(of(&both.policy, Part::Timeouts), own_name);
        let slow = &both.policy.rules[0].policy;
        assert_eq!((of(slow, Part::Timeouts), of(slow, Part::Concurrency)), (inherited.clone(), own_name));
        assert_eq!(of(slow, Part::Retry), inherited);
    }

    #[test]
    fn a_policy_on_a_route_takes_the_place_of_what_it_says() {
        let service = effective(
            "orders",
            &json!({
                "targetRefs": [{"name": "orders"}],
                "mode": "Observe",
                "timeouts": {"request": "2s"},
                "errors": {"codes": [418]},
                "rateLimits": [{"name": "all", "requests": 100}],
                "rules": [{"name": "slow", "match": {"path": {"value": "/slow"}}, "retry": {"attempts": 3}, "rateLimits": []}],
            }),
        );
        let route = json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "orders"});
        let own = effective(
            "of-route",
            &json!({"targetRefs": [route], "timeouts": {"request": "9s"}, "rateLimits": [{"name": "few", "requests": 1}]}),
        );
        let on_route = own.on_route(Some(&service));
        assert_eq!((&*on_route.name, on_route.over.len()), ("shop/of-route", 2));
        let by = |policy: &Policy, part| policy.said_by(part).map(ToString::to_string);
        for (rule, retries) in on_route.over.iter().zip([None, Some(3)]) {
            let policy = &rule.policy;
            assert_eq!(policy.timeouts.request, Some(std::time::Duration::from_secs(9)));
            // Its mode is that of the Service's policy, as it says none.
            assert_eq!(policy.timeouts.mode, policy::Mode::Observe);
            assert_eq!(
                policy.rate_limits.iter().map(|one| &*one.name).collect::<Vec<_>>(),
                ["shop/of-route/few"]
            );
            assert_eq!(policy.retry.as_ref().map(|retry| retry.attempts), retries);
            assert_eq!(policy.errors, service.policy.errors);
            assert_eq!(by(policy, Part::Timeouts), Some("shop/of-route".to_owned()));
            assert_eq!(by(policy, Part::Errors), Some("shop/orders".to_owned()));
            assert_eq!(rule.own.iter().collect::<Vec<_>>(), [Part::RateLimits, Part::Timeouts]);
        }
        let alone = own.on_route(None);
        assert_eq!(alone.over.len(), 1);
        assert_eq!(by(&alone.over[0].policy, Part::Errors), None);
        assert_eq!(alone.over[0].policy.timeouts.mode, policy::Mode::Enforce);
    }

    #[test]
    fn what_must_not_be_inherited_is_not() {
        let defaults = effective(
            "defaults",
            &json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}], "retry": {"attempts": 2}}),
        );
        let alone = effective("orders", &json!({"targetRefs": [{"name": "orders"}], "inherit": "None"}));
        assert_eq!(Effective::new(&alone, &defaults), alone);
        let nothing = effective("defaults", &json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}]}));
        let own = effective("orders", &json!({"targetRefs": [{"name": "orders"}], "drain": {}}));
        assert_eq!(Effective::new(&own, &nothing), own);
        assert!(values(&own.spec).iter().all(|effect| !effect.field.starts_with("targetRefs")));
        assert!(values(&alone.spec).iter().all(|effect| effect.field != "inherit"));
    }

    #[test]
    fn every_field_of_a_policy_has_a_part() {
        let spec = crds::schema_of(&definition::<TrafficPolicy>(), "spec");
        for field in spec["properties"].as_object().expect("fields").keys() {
            let known = Part::named(field).is_some();
            assert_eq!(known, !OF_THE_OBJECT.contains(&field.as_str()), "{field}");
        }
    }
}
