//! What the API server does with an object of a kind, as far as it follows from the CustomResourceDefinition: nulls and
//! defaults, the schema (by an independent implementation), list types, rules in CEL.

use std::{collections::HashSet, fmt};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The schema of a kind's `spec`.
pub struct Schema {
    /// Of `{spec: ...}`.
    object: Value,
    strict: jsonschema::Validator,
    rules: kube_cel::Validator,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").finish_non_exhaustive()
    }
}

impl Schema {
    /// Of the first version of a CustomResourceDefinition.
    pub fn of(definition: &Value) -> Result<Self> {
        let spec = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .context("the definition has no schema of spec")?;
        let schema = json!({"type": "object", "properties": {"spec": spec}, "required": ["spec"]});
        let mut strict = schema.clone();
        close(&mut strict);
        let strict = jsonschema::validator_for(&strict).context("the schema is none")?;
        Ok(Self { object: schema, strict, rules: kube_cel::Validator::new() })
    }

    /// What is stored.
    pub fn defaulted(&self, object: &Value) -> Value {
        let mut object = json!({"spec": object["spec"]});
        prune_nulls(&mut object);
        kube_cel::apply_defaults(&self.object, &object)
    }

    /// Why an object is refused; empty if it is not.
    pub fn refusals(&self, object: &Value) -> Vec<String> {
        let object = self.defaulted(object);
        let mut refusals: Vec<String> = self
            .strict
            .iter_errors(&object)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        list_types(&self.object, &object, "", &mut refusals);
        // Rules are asked only of objects that have the right shape.
        if refusals.is_empty()
            && let Err(errors) = self.rules.validate(&self.object, &object, None)
        {
            refusals.extend(errors.into_iter().map(|error| error.to_string()));
        }
        refusals
    }
}

/// Strict field validation: a field that the schema does not know is refused.
fn close(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(close);
        fields.insert("additionalProperties".to_owned(), false.into());
    }
    if let Some(items) = fields.get_mut("items") {
        close(items);
    }
}

/// No field of ours is nullable.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// `x-kubernetes-list-type`: items of a set are unique, those of a map have unique keys.
fn list_types(schema: &Value, value: &Value, path: &str, refusals: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                list_types(&schema["properties"][name], value, &format!("{path}.{name}"), refusals);
            }
        }
        Value::Array(items) => {
            let mut seen = HashSet::new();
            for (i, item) in items.iter().enumerate() {
                let key = match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => item.to_string(),
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array();
                        keys.into_iter()
                            .flatten()
                            .filter_map(|key| Some(item.get(key.as_str()?)?.to_string()))
                            .collect()
                    }
                    _ => i.to_string(),
                };
                if !seen.insert(key) {
                    refusals.push(format!("{path}[{i}]: duplicate value"));
                }
                list_types(&schema["items"], item, &format!("{path}[{i}]"), refusals);
            }
        }
        _ => {}
    }
}
