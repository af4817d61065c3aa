mod agreement;
mod api_server;
mod checked;
mod random;

use serde_json::json;

use super::*;

#[test]
fn capture_is_enabled_or_disabled() {
    assert_eq!(parse_capture("enabled"), Ok(true));
    assert_eq!(parse_capture("disabled"), Ok(false));
    for bad in ["", "Enabled", "true", "yes", " enabled"] {
        assert!(parse_capture(bad).is_err(), "{bad:?}");
    }
}

/// A TrafficPolicy for Service `orders` that says this besides.
fn policy(spec: &Value) -> Value {
    object("TrafficPolicy", json!({"targetRefs": [{"name": "orders"}]}), spec)
}

/// An AccessPolicy for Service `orders` that says this.
fn access(spec: &Value) -> Value {
    object("AccessPolicy", json!({"targetRefs": [{"name": "orders"}]}), spec)
}

/// A TrafficLane `gray` that says this besides.
fn lane(spec: &Value) -> Value {
    object("TrafficLane", json!({"tag": "gray"}), spec)
}

fn object(kind: &str, mut spec: Value, more: &Value) -> Value {
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "main", "namespace": "shop"}, "spec": spec})
}

fn errors<K: Kind>(object: &Value) -> Vec<String> {
    read::<K>(object).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_manifests_say_what_the_definitions_are() {
    let manifests = manifests().expect("YAML");
    let definitions =
        [definition::<TrafficPolicy>(), definition::<TrafficLane>(), definition::<AccessPolicy>()];
    assert_eq!(
        manifests.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["trafficpolicies.yaml", "trafficlanes.yaml", "accesspolicies.yaml"]
    );
    for ((_, yaml), definition) in manifests.iter().zip(definitions) {
        let read: Value = serde_saphyr::from_str(yaml).expect("YAML");
        assert_eq!(read, definition);
        // As the API server's own types understand it: nothing is lost.
        let typed: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition =
            serde_json::from_value(definition.clone()).expect("a definition");
        assert_eq!(
            typed.metadata.labels.as_ref().map(|labels| &*labels["gateway.networking.k8s.io/policy"]),
            Some("Direct")
        );
        assert!(
            yaml.len() < 200_000,
            "kubectl apply keeps a copy in an annotation, which must stay below 256 KiB"
        );
    }
}

/// What a rule costs the API server is estimated from the bounds of what it looks at.
#[test]
fn everything_that_rules_look_at_has_bounds() {
    fn bounded(schema: &Value, path: &str) {
        for (keyword, kind) in
            [("maxLength", "string"), ("maxItems", "array"), ("maximum", "integer"), ("maximum", "number")]
        {
            if schema["type"] == kind {
                assert!(schema["enum"].is_array() || schema[keyword].is_number(), "{path} has no {keyword}");
            }
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            bounded(schema, &format!("{path}.{name}"));
            assert!(schema["description"].is_string(), "{path}.{name} has no description");
        }
        if schema["type"] == "array" {
            bounded(&schema["items"], path);
        }
    }
    bounded(&crds::schema_of(&definition::<TrafficPolicy>(), "spec"), "spec");
    bounded(&crds::schema_of(&definition::<TrafficLane>(), "spec"), "spec");
    bounded(&crds::schema_of(&definition::<AccessPolicy>(), "spec"), "spec");
}
