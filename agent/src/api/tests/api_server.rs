//! What the API server does with an object of a kind, as far as it follows from the CustomResourceDefinition: nulls and
//! defaults, the schema (by an independent implementation), list types, rules in CEL.

use std::collections::HashSet;

use super::*;

pub(super) struct ApiServer {
    /// Of `{spec: ...}`.
    schema: Value,
    strict: jsonschema::Validator,
    rules: kube_cel::Validator,
}

impl ApiServer {
    pub(super) fn of<K: Kind>() -> Self {
        let definition = definition::<K>();
        let spec = crds::schema_of(&definition, "spec");
        let schema = json!({"type": "object", "properties": {"spec": spec}, "required": ["spec"]});
        let mut strict = schema.clone();
        close(&mut strict);
        let strict = jsonschema::validator_for(&strict).expect("a JSON schema");
        Self { schema, strict, rules: kube_cel::Validator::new() }
    }

    /// What is stored.
    pub(super) fn defaulted(&self, object: &Value) -> Value {
        let mut object = json!({"spec": object["spec"]});
        prune_nulls(&mut object);
        kube_cel::apply_defaults(&self.schema, &object)
    }

    /// Why an object is refused; empty if it is not.
    pub(super) fn refusals(&self, object: &Value) -> Vec<String> {
        let object = self.defaulted(object);
        let mut refusals: Vec<String> = self
            .strict
            .iter_errors(&object)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        list_types(&self.schema, &object, "", &mut refusals);
        // Rules are asked only of objects that have the right shape.
        if refusals.is_empty()
            && let Err(errors) = self.rules.validate(&self.schema, &object, None)
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
                        let keys = schema["x-kubernetes-list-map-keys"].as_array().expect("a map has keys");
                        keys.iter().filter_map(|key| Some(item.get(key.as_str()?)?.to_string())).collect()
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
