//! The CustomResourceDefinitions, made from the Rust types.
//!
//! `sluice crds` prints them, `cargo xtask crds` writes them to `deploy/base/crds`.

use kube::CustomResourceExt;
use serde_json::{Map, Value};

use super::{AccessPolicy, TrafficLane, TrafficPolicy};

/// What the API server is told about a kind.
pub fn definition<K: CustomResourceExt>() -> Value {
    // The types are plain data with string keys: writing them as JSON cannot fail.
    let mut json = serde_json::to_value(K::crd()).unwrap_or_default();
    for version in json["spec"]["versions"].as_array_mut().into_iter().flatten() {
        tidy(&mut version["schema"]["openAPIV3Schema"]);
    }
    json
}

/// All definitions as YAML: the name of the file that each belongs in, and its text.
pub fn manifests() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let definitions =
        [definition::<TrafficPolicy>(), definition::<TrafficLane>(), definition::<AccessPolicy>()];
    let manifest = |definition: &Value| {
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
        let yaml = serde_saphyr::to_string(definition)?;
        Ok((format!("{plural}.yaml"), format!("# Made from the Rust types by `cargo xtask crds`.\n{yaml}")))
    };
    definitions.iter().map(manifest).collect()
}

/// The schema of one field of a kind's objects: `spec`.
pub(super) fn schema_of(definition: &Value, field: &str) -> Value {
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][field].clone()
}

/// Makes of what the derive macros make a schema as one would write it.
fn tidy(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    // The API server takes a null for a field that is not set, and gives it its default, where nothing says that it may be
    // null. That is what users expect of `mode:` with nothing after it.
    if fields.get("nullable").is_some_and(Value::is_boolean) {
        fields.remove("nullable");
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    // The lines of a comment are not those of who reads it with `kubectl explain`.
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    for name in ["minimum", "maximum", "default"] {
        if let Some(number) = fields.get_mut(name) {
            whole_number(number);
        }
    }
    for part in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get_mut(part) {
            tidy(schema);
        }
    }
    let properties = fields.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(tidy);
}

/// 100, not 100.0.
fn whole_number(number: &mut Value) {
    if let Some(float) = number.as_f64()
        && float.fract() == 0.0
        && float.abs() < 1e15
    {
        *number = (float as i64).into();
    }
}
