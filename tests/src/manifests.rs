//! Where the agent finds its objects: a directory of manifests, one a file, replaced atomically as editors and
//! config-map mounts do; or the double of the API server.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::api_server::ApiServer;

/// Kind, namespace, name.
type Key = (String, String, String);

#[derive(Debug)]
pub(crate) struct Manifests {
    directory: PathBuf,
    /// Objects go there, if there is one.
    api: Option<ApiServer>,
    objects: BTreeMap<Key, Value>,
}

impl Manifests {
    pub(crate) fn new(directory: PathBuf, api: Option<ApiServer>) -> Self {
        Self { directory, api, objects: BTreeMap::new() }
    }

    pub(crate) fn api(&mut self) -> Option<&mut ApiServer> {
        self.api.as_mut()
    }

    /// Creates or replaces an object. Writes nothing if nothing changed.
    pub(crate) fn apply(&mut self, object: Value) -> Result<()> {
        let key = key(&object)?;
        if self.objects.get(&key) == Some(&object) {
            return Ok(());
        }
        if let Some(api) = &self.api {
            api.apply(&resource(&key.0), object.clone());
            self.objects.insert(key, object);
            return Ok(());
        }
        let path = self.path(&key);
        let draft = self.directory.with_extension("draft");
        fs::write(&draft, yaml(&object)).with_context(|| format!("cannot write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
        self.objects.insert(key, object);
        Ok(())
    }

    pub(crate) fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if self.objects.remove(&key).is_none() {
            return Ok(());
        }
        if let Some(api) = &self.api {
            api.delete(&resource(kind), namespace, name);
        } else {
            let path = self.path(&key);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// The objects of `kind`, in all namespaces.
    pub(crate) fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |(key, _)| key.0 == kind).map(|(_, object)| object)
    }

    fn path(&self, (kind, namespace, name): &Key) -> PathBuf {
        self.directory.join(format!("{}.{namespace}.{name}.yaml", kind.to_lowercase()))
    }
}

/// As paths name it.
fn resource(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => lower + "s",
    }
}

fn key(object: &Value) -> Result<Key> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").context("an object without a kind")?;
    let name = text("/metadata/name").context("an object without a name")?;
    Ok((kind, text("/metadata/namespace").unwrap_or_default(), name))
}

/// Block-style YAML. Scalars are written as in JSON, of which YAML is a superset.
pub(crate) fn yaml(object: &Value) -> String {
    let mut out = String::new();
    block(&mut out, object, 0);
    out
}

fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in map.iter().enumerate() {
                // The first key of a list item stands behind its dash.
                if index > 0 || !out.ends_with("- ") {
                    let _ = write!(out, "{:indent$}", "");
                }
                // Some words are no words to some readers of YAML.
                let keyword = matches!(
                    key.as_str(),
                    "on" | "off" | "yes" | "no" | "y" | "n" | "true" | "false" | "null"
                );
                if !keyword && key.chars().all(|character| character.is_ascii_alphabetic()) {
                    out.push_str(key);
                } else {
                    let _ = write!(out, "{}", Value::from(key.as_str()));
                }
                out.push(':');
                nested(out, value, indent + 2);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                if index > 0 || !out.ends_with("- ") {
                    let _ = write!(out, "{:indent$}", "");
                }
                out.push_str("- ");
                block(out, value, indent + 2);
            }
        }
        scalar => {
            let _ = writeln!(out, "{scalar}");
        }
    }
}

fn nested(out: &mut String, value: &Value, indent: usize) {
    let container = value.as_object().is_some_and(|map| !map.is_empty())
        || value.as_array().is_some_and(|list| !list.is_empty());
    out.push(if container { '\n' } else { ' ' });
    block(out, value, indent);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::yaml;

    #[test]
    fn writes_what_people_write() {
        let object = json!({
            "kind": "Service",
            "metadata": {"labels": {"app.kubernetes.io/name": "a \"b\""}, "annotations": {}},
            "spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81, "list": [[1], []]}]},
        });
        let expected = r#"kind: "Service"
metadata:
  annotations: {}
  labels:
    "app.kubernetes.io/name": "a \"b\""
spec:
  ports:
    - name: "http"
      port: 80
    - list:
        - - 1
        - []
      port: 81
"#;
        assert_eq!(yaml(&object), expected);
    }
}
