//! What `deploy/` says about running the agent, as the kubelet understands it: the `DaemonSet`'s pod, and the ConfigMap that
//! its variables come from. Whatever is not understood here is an error, so that nothing in there is passed over in silence.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// The agent's pod as `deploy/` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonSet {
    pub namespace: String,
    pod: Value,
    container: Value,
    /// The ConfigMaps that the kustomization makes, by name.
    config: BTreeMap<String, BTreeMap<String, String>>,
}

/// What the kubelet knows and a manifest does not.
#[derive(Debug)]
pub struct Downward {
    pub node: String,
    pub host_ip: String,
    pub pod: String,
}

/// What is to be mounted into the container.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub path: String,
    pub read_only: bool,
    pub from: Volume,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Volume {
    /// A directory of the node.
    Host(PathBuf),
    /// An empty directory in memory, with its limit in bytes.
    Memory(Option<u64>),
}

/// How the kubelet asks whether the container is well: a command in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Probe {
    pub command: Vec<String>,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u32,
}

impl DaemonSet {
    /// From the files of `deploy/base`, put together as kustomize does it.
    pub fn of_base() -> Result<Self> {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base");
        let read = |name: &str| {
            let path = base.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let kustomization: Value = serde_saphyr::from_str(&read("kustomization.yaml")?)?;
        let mut objects = Vec::new();
        for name in strings(&kustomization["resources"])? {
            objects.extend(documents(&read(&name)?).with_context(|| name)?);
        }
        for object in &mut objects {
            object["metadata"]["namespace"] = kustomization["namespace"].clone();
        }
        for made in kustomization["configMapGenerator"].as_array().into_iter().flatten() {
            let mut data = serde_json::Map::new();
            for name in strings(&made["envs"])? {
                for line in read(&name)?.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                    let (variable, value) =
                        line.split_once('=').with_context(|| format!("{name}: {line}"))?;
                    data.insert(variable.to_owned(), value.into());
                }
            }
            objects.push(json!({ "kind": "ConfigMap", "metadata": { "name": made["name"] }, "data": data }));
        }
        Self::of(&objects)
    }

    /// From what kustomize or Helm has rendered.
    pub fn of_rendered(text: &str) -> Result<Self> {
        Self::of(&documents(text)?)
    }

    fn of(objects: &[Value]) -> Result<Self> {
        let mut found = objects.iter().filter(|object| object["kind"] == "DaemonSet");
        let set = found.next().context("there is no DaemonSet")?;
        ensure!(found.next().is_none(), "there are several DaemonSets");
        let namespace = text(&set["metadata"]["namespace"])?;
        let pod = set["spec"]["template"]["spec"].clone();
        let [container] = array(&pod["containers"])? else { bail!("not one container: {pod}") };
        let container = container.clone();
        let mut config = BTreeMap::new();
        for object in objects.iter().filter(|object| object["kind"] == "ConfigMap") {
            let data = object["data"].as_object().into_iter().flatten();
            let data = data.map(|(name, value)| Ok((name.clone(), text(value)?))).collect::<Result<_>>()?;
            config.insert(text(&object["metadata"]["name"])?, data);
        }
        let set = Self { namespace, pod, container, config };
        set.known()?;
        Ok(set)
    }

    /// Fails if there is something that is not acted on here or known to make no difference on one node.
    fn known(&self) -> Result<()> {
        only(
            &self.pod,
            &[
                "automountServiceAccountToken",
                "containers",
                "dnsPolicy",
                "enableServiceLinks",
                "hostNetwork",
                "hostPID",
                "imagePullSecrets",
                "nodeSelector",
                "priorityClassName",
                "serviceAccountName",
                "terminationGracePeriodSeconds",
                "tolerations",
                "volumes",
            ],
        )?;
        for field in ["hostNetwork", "hostPID", "automountServiceAccountToken"] {
            ensure!(self.pod[field] == true, "another kind of pod: {field} is {}", self.pod[field]);
        }
        ensure!(self.pod["enableServiceLinks"] == false, "variables of Services are not made up here");
        only(
            &self.container,
            &[
                "args",
                "command",
                "env",
                "envFrom",
                "image",
                "imagePullPolicy",
                "livenessProbe",
                "name",
                "readinessProbe",
                "resources",
                "securityContext",
                "startupProbe",
                "volumeMounts",
            ],
        )?;
        let security = &self.container["securityContext"];
        only(
            security,
            &[
                "allowPrivilegeEscalation",
                "appArmorProfile",
                "capabilities",
                "privileged",
                "readOnlyRootFilesystem",
                "runAsGroup",
                "runAsUser",
                "seccompProfile",
            ],
        )?;
        ensure!(security["privileged"] == false, "a privileged container");
        ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{security}");
        ensure!(security["appArmorProfile"]["type"] == "Unconfined", "{security}");
        ensure!(security["seccompProfile"]["type"] == "RuntimeDefault", "{security}");
        Ok(())
    }

    /// The same, whatever hash kustomize has put behind the names of ConfigMaps, and wherever the image is.
    pub fn comparable(&self) -> Result<Self> {
        let mut same = self.clone();
        for from in same.container["envFrom"].as_array_mut().into_iter().flatten() {
            from["configMapRef"]["name"] = "ours".into();
        }
        same.config = BTreeMap::from([("ours".to_owned(), self.referred()?.into_iter().collect())]);
        same.container["image"] = Value::Null;
        same.pod["containers"] = Value::Null;
        Ok(same)
    }

    /// The program and its arguments, for an image with this configuration.
    pub fn words(&self, image: &Value) -> Result<Vec<String>> {
        let of = |ours: &Value, images: &Value| {
            if ours.is_null() { strings(images) } else { strings(ours) }
        };
        let mut words = of(&self.container["command"], &image["config"]["Entrypoint"])?;
        // As Kubernetes: a command of ours takes the image's arguments away, too.
        let none = Value::Null;
        let images = if self.container["command"].is_null() { &image["config"]["Cmd"] } else { &none };
        words.extend(of(&self.container["args"], images)?);
        Ok(words)
    }

    /// The variables that the DaemonSet gives the agent, later ones winning, with references to earlier ones put in.
    pub fn variables(&self, downward: &Downward) -> Result<Vec<(String, String)>> {
        let mut variables = self.referred()?;
        for variable in self.container["env"].as_array().into_iter().flatten() {
            only(variable, &["name", "value", "valueFrom"])?;
            let value = if variable["valueFrom"].is_null() {
                expand(variable["value"].as_str().unwrap_or_default(), &variables)
            } else {
                only(&variable["valueFrom"], &["fieldRef"])?;
                match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("spec.nodeName") => downward.node.clone(),
                    Some("status.hostIP" | "status.podIP") => downward.host_ip.clone(),
                    Some("metadata.name") => downward.pod.clone(),
                    Some("metadata.namespace") => self.namespace.clone(),
                    other => bail!("the field {other:?} is not known here"),
                }
            };
            let name = text(&variable["name"])?;
            variables.retain(|(other, _)| *other != name);
            variables.push((name, value));
        }
        Ok(variables)
    }

    /// What comes from ConfigMaps.
    fn referred(&self) -> Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        for from in self.container["envFrom"].as_array().into_iter().flatten() {
            only(from, &["configMapRef"])?;
            let name = text(&from["configMapRef"]["name"])?;
            let data = self.config.get(&name).with_context(|| format!("there is no ConfigMap {name}"))?;
            variables.extend(data.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        Ok(variables)
    }

    pub fn mounts(&self) -> Result<Vec<Mount>> {
        let volumes = array(&self.pod["volumes"])?;
        let mount = |mount: &Value| {
            only(mount, &["mountPath", "name", "readOnly"])?;
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            let volume = volume.with_context(|| format!("there is no volume {}", mount["name"]))?;
            only(volume, &["emptyDir", "hostPath", "name"])?;
            let from = match (volume["hostPath"]["path"].as_str(), &volume["emptyDir"]) {
                (Some(path), _) => Volume::Host(path.into()),
                // On the node's disk or in memory: the agent cannot tell.
                (None, empty) if empty.is_object() => {
                    Volume::Memory(empty["sizeLimit"].as_str().map(bytes).transpose()?)
                }
                _ => bail!("a volume that is not known here: {volume}"),
            };
            Ok(Mount { path: text(&mount["mountPath"])?, read_only: mount["readOnly"] == true, from })
        };
        self.container["volumeMounts"].as_array().into_iter().flatten().map(mount).collect()
    }

    /// With the prefix that the kernel's names have.
    pub fn capabilities(&self) -> Result<Vec<String>> {
        let added = strings(&self.container["securityContext"]["capabilities"]["add"])?;
        Ok(added.iter().map(|name| format!("CAP_{name}")).collect())
    }

    pub fn user(&self) -> Value {
        let security = &self.container["securityContext"];
        json!({ "uid": security["runAsUser"], "gid": security["runAsGroup"] })
    }

    pub fn no_new_privileges(&self) -> bool {
        self.container["securityContext"]["allowPrivilegeEscalation"] == false
    }

    pub fn read_only_root(&self) -> bool {
        self.container["securityContext"]["readOnlyRootFilesystem"] == true
    }

    /// `startupProbe`, `readinessProbe` or `livenessProbe`.
    pub fn probe(&self, name: &str) -> Result<Probe> {
        let probe = &self.container[name];
        only(probe, &["exec", "failureThreshold", "periodSeconds", "timeoutSeconds"])?;
        let number = |field: &str| probe[field].as_u64().with_context(|| format!("{name}: no {field}"));
        Ok(Probe {
            command: strings(&probe["exec"]["command"])?,
            period: Duration::from_secs(number("periodSeconds")?),
            timeout: Duration::from_secs(number("timeoutSeconds")?),
            failures: number("failureThreshold")?.try_into()?,
        })
    }

    /// How long the agent may take to end.
    pub fn grace(&self) -> Result<Duration> {
        let seconds = self.pod["terminationGracePeriodSeconds"].as_u64().context("no grace period")?;
        Ok(Duration::from_secs(seconds))
    }

    /// Of memory, in bytes: `requests` or `limits`.
    pub fn memory(&self, kind: &str) -> Result<u64> {
        bytes(&text(&self.container["resources"][kind]["memory"])?)
    }
}

/// Puts the values of variables in place of `$(NAME)`, and `$` in place of `$$`.
fn expand(value: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|name| name.split_once(')'))
            && let Some((_, value)) = variables.iter().find(|(other, _)| other == name)
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// A quantity of memory as Kubernetes writes it.
fn bytes(quantity: &str) -> Result<u64> {
    let digits = quantity.trim_end_matches(|last: char| !last.is_ascii_digit());
    let shift = match &quantity[digits.len()..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        other => bail!("a unit of memory that is not known here: {other:?}"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("no quantity: {quantity:?}"))? << shift)
}

fn documents(yaml: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(yaml)?)
}

/// Fails if the object has other fields than these.
fn only(object: &Value, fields: &[&str]) -> Result<()> {
    for field in object.as_object().into_iter().flat_map(serde_json::Map::keys) {
        ensure!(fields.contains(&field.as_str()), "the field {field:?} is not known here: {object}");
    }
    Ok(())
}

fn array(value: &Value) -> Result<&[Value]> {
    Ok(value.as_array().with_context(|| format!("no list: {value}"))?)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("no text: {value}"))?.to_owned())
}

/// The texts of a list; none where there is no list.
fn strings(value: &Value) -> Result<Vec<String>> {
    value.as_array().into_iter().flatten().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn downward() -> Downward {
        Downward { node: "n1".to_owned(), host_ip: "10.0.0.7".to_owned(), pod: "sluice-abcde".to_owned() }
    }

    fn small(change: impl FnOnce(&mut Value)) -> Result<DaemonSet> {
        let mut set = json!({
            "kind": "DaemonSet",
            "metadata": { "namespace": "sluice-system" },
            "spec": { "template": { "spec": {
                "hostNetwork": true, "hostPID": true, "automountServiceAccountToken": true, "enableServiceLinks": false,
                "volumes": [{ "name": "run", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }],
                "containers": [{
                    "args": ["agent"],
                    "envFrom": [{ "configMapRef": { "name": "c" } }],
                    "env": [
                        { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } },
                        { "name": "A", "value": "$(IP):$(B)$(C) $$(IP) $" },
                    ],
                    "volumeMounts": [{ "name": "run", "mountPath": "/run" }],
                    "securityContext": {
                        "privileged": false, "capabilities": { "drop": ["ALL"], "add": ["SYS_ADMIN"] },
                        "appArmorProfile": { "type": "Unconfined" }, "seccompProfile": { "type": "RuntimeDefault" },
                    },
                }],
            } } },
        });
        change(&mut set["spec"]["template"]["spec"]);
        DaemonSet::of(&[
            set,
            json!({ "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "A": "a", "B": "b" } }),
        ])
    }

    #[test]
    fn variables_are_put_together_as_the_kubelet_does() {
        let set = small(|_| {}).unwrap();
        let variables: BTreeMap<_, _> = set.variables(&downward()).unwrap().into_iter().collect();
        let wanted = [("A", "10.0.0.7:b$(C) $(IP) $"), ("B", "b"), ("IP", "10.0.0.7")];
        assert_eq!(variables, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn an_images_own_words_stay_where_nothing_else_is_said() {
        let image = json!({ "config": { "Entrypoint": ["/sluice"], "Cmd": ["help"] } });
        let words = |change: fn(&mut Value)| small(change).unwrap().words(&image).unwrap().join(" ");
        assert_eq!(words(|_| {}), "/sluice agent");
        assert_eq!(words(|pod| pod["containers"][0]["args"] = Value::Null), "/sluice help");
        assert_eq!(words(|pod| pod["containers"][0]["command"] = json!(["/other"])), "/other agent");
        let alone = |pod: &mut Value| {
            pod["containers"][0]["command"] = json!(["/other"]);
            pod["containers"][0]["args"] = Value::Null;
        };
        assert_eq!(words(alone), "/other");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let changes: [fn(&mut Value); 6] = [
            |pod| pod["hostIPC"] = true.into(),
            |pod| pod["hostPID"] = false.into(),
            |pod| pod["containers"][0]["securityContext"]["privileged"] = true.into(),
            |pod| pod["containers"][0]["securityContext"]["seLinuxOptions"] = json!({}),
            |pod| pod["containers"][0]["lifecycle"] = json!({}),
            |pod| pod["containers"] = json!([]),
        ];
        for change in changes {
            assert!(small(change).is_err());
        }
        assert!(small(|pod| pod["volumes"] = json!([])).unwrap().mounts().is_err());
        let secret = json!([{ "name": "run", "secret": {} }]);
        assert!(small(|pod| pod["volumes"] = secret).unwrap().mounts().is_err());
    }

    #[test]
    fn quantities_of_memory_are_read() {
        for (quantity, number) in [("17", 17), ("1Ki", 1 << 10), ("128Mi", 128 << 20), ("1Gi", 1 << 30)] {
            assert_eq!(bytes(quantity).unwrap(), number);
        }
        assert!(bytes("1G").is_err() && bytes("Mi").is_err());
    }

    #[test]
    fn the_one_of_deploy_is_understood() {
        let set = DaemonSet::of_base().unwrap();
        let variables: BTreeMap<_, _> = set.variables(&downward()).unwrap().into_iter().collect();
        assert_eq!(variables["SLUICE_NODE"], "n1");
        assert!(variables.contains_key("SLUICE_DRAIN_TIMEOUT"), "{variables:?}");
        assert!(set.mounts().unwrap().iter().any(|mount| matches!(mount.from, Volume::Host(_))));
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            assert!(!set.probe(probe).unwrap().command.is_empty());
        }
        assert!(set.memory("requests").unwrap() <= set.memory("limits").unwrap());
        assert_eq!(set.comparable().unwrap(), set.comparable().unwrap().comparable().unwrap());
    }
}
