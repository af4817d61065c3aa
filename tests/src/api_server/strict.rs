//! Reading an object of Kubernetes' own kinds as strictly as the API server does when it is asked to: what a type does
//! not know, or needs and does not get, is named.
//!
//! The types of k8s-openapi pass over unknown fields and fill in missing ones. So an object is read and written again, and
//! what comes out must be what went in. One version of Kubernetes is compiled in; the fields used here are older than the
//! oldest that is supported.

use k8s_openapi::{
    api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery, rbac::v1 as rbac},
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What the API server would complain about in an object of one of its own kinds; `None` for other kinds.
pub fn builtin(object: &Value) -> Option<Vec<String>> {
    let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    Some(match (version.unwrap_or_default(), kind.unwrap_or_default()) {
        ("v1", "Namespace") => complaints::<core::Namespace>(object),
        ("v1", "ServiceAccount") => complaints::<core::ServiceAccount>(object),
        ("v1", "ConfigMap") => complaints::<core::ConfigMap>(object),
        ("v1", "ResourceQuota") => complaints::<core::ResourceQuota>(object),
        ("v1", "Service") => complaints::<core::Service>(object),
        ("v1", "Pod") => complaints::<core::Pod>(object),
        ("apps/v1", "DaemonSet") => complaints::<apps::DaemonSet>(object),
        ("apps/v1", "Deployment") => complaints::<apps::Deployment>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => complaints::<discovery::EndpointSlice>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => complaints::<rbac::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            complaints::<rbac::ClusterRoleBinding>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => complaints::<rbac::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => complaints::<rbac::RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            complaints::<apiextensions::CustomResourceDefinition>(object)
        }
        _ => return None,
    })
}

/// What is unknown, missing or of another type in an object that is to be a `T`.
pub fn complaints<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let object = without_nulls(object);
    let again = match serde_json::from_value::<T>(object.clone()) {
        Ok(read) => without_nulls(&serde_json::to_value(read).unwrap()),
        Err(error) => return vec![error.to_string()],
    };
    let mut found = Vec::new();
    compare("", &object, &again, &mut found);
    found
}

/// A field that is null is not set.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            set.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn compare(path: &str, written: &Value, read: &Value, found: &mut Vec<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                match read.get(name) {
                    Some(read) => compare(&below(name), value, read, found),
                    None => found.push(format!("{}: unknown", below(name))),
                }
            }
            let missing = read.keys().filter(|name| !written.contains_key(*name));
            found.extend(missing.map(|name| format!("{}: missing", below(name))));
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                compare(&format!("{path}[{index}]"), written, read, found);
            }
        }
        (Value::Number(written), Value::Number(read)) if written.as_f64() == read.as_f64() => {}
        _ if written == read => {}
        _ => found.push(format!("{path}: {written} is read as {read}")),
    }
}
