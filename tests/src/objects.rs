//! Kubernetes objects in a few lines: namespaces and services, and the endpoint slices that follow from services and
//! pods, as the control plane derives them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::node::Node;

/// What a namespace says about capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    Enabled,
    Unmentioned,
}

/// Opts a namespace in, or a pod out.
pub(crate) const CAPTURE: &str = "sluice.dev/capture";

/// Tells slices that follow from a service from those that somebody wrote.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(crate) fn namespace(name: &str, capture: Capture) -> Value {
    let annotations = match capture {
        Capture::Enabled => json!({ CAPTURE: "enabled" }),
        Capture::Unmentioned => json!({}),
    };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}})
}

/// A service to be made. Its endpoints are the pods of its namespace that carry the labels of its selector,
/// `app=<name of the service>` unless told otherwise.
#[must_use]
#[derive(Debug)]
pub struct ServiceBuilder {
    node: Arc<Node>,
    object: Value,
}

impl ServiceBuilder {
    pub(crate) fn new(node: Arc<Node>, namespace: &str, name: &str) -> Self {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "ClusterIP", "selector": {"app": name}, "ports": []},
        });
        Self { node, object }
    }

    /// Adds a port that leads to `target` of the pods. An empty name stands for a port without one.
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        let mut entry = json!({"port": port, "targetPort": target, "protocol": "TCP"});
        if !name.is_empty() {
            entry["name"] = name.into();
        }
        self.ports().push(entry);
        self
    }

    /// Adds a port that leads to the container port called `target`, whatever its number is in each pod.
    pub fn named_port(mut self, name: &str, port: u16, target: &str) -> Self {
        self.ports().push(json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"}));
        self
    }

    /// Says what the port added last speaks.
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        if let Some(port) = self.ports().last_mut() {
            port["appProtocol"] = protocol.into();
        }
        self
    }

    /// Replaces the selector.
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.object["spec"]["selector"] = json!({ key: value });
        self
    }

    /// A service whose endpoint slices somebody else writes.
    pub fn without_selector(mut self) -> Self {
        self.object["spec"]["selector"] = Value::Null;
        self
    }

    pub fn headless(mut self) -> Self {
        self.object["spec"]["clusterIP"] = "None".into();
        self
    }

    /// Sets any field of the spec.
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.object["spec"][field] = value;
        self
    }

    /// Writes the service and its endpoint slices.
    pub fn apply(mut self) -> Result<Service> {
        let (ipv4, ipv6) = self.node.service_addresses();
        let headless = self.object["spec"]["clusterIP"] == "None";
        self.object["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        self.object["spec"]["ipFamilyPolicy"] = "PreferDualStack".into();
        if headless {
            self.object["spec"]["clusterIPs"] = json!(["None"]);
        } else {
            self.object["spec"]["clusterIP"] = ipv4.to_string().into();
            self.object["spec"]["clusterIPs"] = json!([ipv4, ipv6]);
        }
        let name = self.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = self.object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let port = self.object["spec"]["ports"][0]["port"].as_u64().unwrap_or_default() as u16;
        self.node.apply(self.object)?;
        Ok(Service { node: self.node, namespace, name, ipv4, ipv6, port })
    }

    fn ports(&mut self) -> &mut Vec<Value> {
        self.object["spec"]["ports"].as_array_mut().expect("`new` makes an array and nobody replaces it")
    }
}

/// A service that exists. The value is a handle: dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Service {
    node: Arc<Node>,
    pub namespace: String,
    pub name: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// The first port.
    pub port: u16,
}

impl Service {
    /// `http://<ClusterIP>:<first port>`
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.ipv4, self.port)
    }

    pub fn url6(&self) -> String {
        format!("http://[{}]:{}", self.ipv6, self.port)
    }

    /// Changes the Service object and writes it.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.node.edit("Service", &self.namespace, &self.name, change)
    }

    /// Deletes the service and its endpoint slices.
    pub fn delete(&self) -> Result<()> {
        self.node.delete("Service", &self.namespace, &self.name)
    }
}

/// What will be one slice: its ports and its endpoints.
type Group = (Vec<Value>, Vec<Value>);

/// The endpoint slices of a service: one per address family and per set of port numbers, as named target ports may
/// lead to different numbers in different pods. Empty for a service without a selector.
pub(crate) fn endpoint_slices<'a>(service: &Value, pods: impl Iterator<Item = &'a Value>) -> Vec<Value> {
    let Some(selector) = service["spec"]["selector"].as_object() else { return Vec::new() };
    let publish = service["spec"]["publishNotReadyAddresses"] == true;
    let mut groups = BTreeMap::<(&str, String), Group>::new();
    for family in ["IPv4", "IPv6"] {
        // A slice stands even when nothing is in it.
        groups.insert((family, String::new()), (ports(service, None), Vec::new()));
    }
    for pod in pods.filter(|pod| pod["metadata"]["namespace"] == service["metadata"]["namespace"]) {
        if !selector.iter().all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value)) {
            continue;
        }
        let ports = ports(service, Some(pod));
        for address in pod["status"]["podIPs"].as_array().into_iter().flatten() {
            let Some(ip) = address["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = groups.entry((family, Value::from(ports.clone()).to_string())).or_default();
            group.0.clone_from(&ports);
            group.1.push(endpoint(pod, ip, publish));
        }
    }
    let filled: Vec<&str> =
        groups.iter().filter(|(_, group)| !group.1.is_empty()).map(|((family, _), _)| *family).collect();
    groups.retain(|(family, _), group| !group.1.is_empty() || !filled.contains(family));
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    groups
        .into_iter()
        .enumerate()
        .map(|(index, ((family, _), (ports, endpoints)))| {
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{index}"),
                    "namespace": service["metadata"]["namespace"],
                    "labels": {"kubernetes.io/service-name": name, MANAGED_BY: MANAGER},
                },
                "addressType": family,
                "ports": ports,
                "endpoints": endpoints,
            })
        })
        .collect()
}

/// Whether a slice follows from a service and pods.
pub(crate) fn managed(slice: &Value) -> bool {
    slice["metadata"]["labels"][MANAGED_BY] == MANAGER
}

/// Namespace and name.
pub(crate) fn full_name(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// The ports of a slice. Without a pod, or without the container port asked for, a named target port is left out.
fn ports(service: &Value, pod: Option<&Value>) -> Vec<Value> {
    let container_port = |wanted: &str| {
        let containers = pod?["spec"]["containers"].as_array()?;
        let mut ports = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
        ports.find(|port| port["name"] == wanted)?["containerPort"].as_u64()
    };
    let mut found = Vec::new();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        let target = &port["targetPort"];
        let Some(number) = target.as_u64().or_else(|| container_port(target.as_str()?)) else { continue };
        let mut entry = Map::new();
        entry.insert("name".to_owned(), port["name"].as_str().unwrap_or_default().into());
        entry.insert("port".to_owned(), number.into());
        entry.insert("protocol".to_owned(), "TCP".into());
        if let Some(protocol) = port["appProtocol"].as_str() {
            entry.insert("appProtocol".to_owned(), protocol.into());
        }
        found.push(entry.into());
    }
    found
}

fn endpoint(pod: &Value, ip: IpAddr, publish_not_ready: bool) -> Value {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let serving = conditions.into_iter().any(|entry| entry["type"] == "Ready" && entry["status"] == "True");
    let terminating = !pod["metadata"]["deletionTimestamp"].is_null();
    let mut endpoint = json!({
        "addresses": [ip],
        "conditions": {
            "ready": publish_not_ready || serving && !terminating,
            "serving": serving,
            "terminating": terminating,
        },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    });
    if let Some(zone) = pod["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str() {
        endpoint["zone"] = zone.into();
    }
    endpoint
}

/// The time as Kubernetes writes it, RFC 3339 in whole seconds.
pub(crate) fn timestamp(time: SystemTime) -> Result<String> {
    let seconds = time.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Days to a date, with years that begin in March so that the leap day comes last:
    // http://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::{endpoint_slices, timestamp};

    fn pod(name: &str, ips: &[&str], port: u16, ready: bool) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": "u", "labels": {"app": "orders"}},
            "spec": {"nodeName": "node", "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
            "status": {
                "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }

    fn service(target: &Value) -> Value {
        json!({
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"selector": {"app": "orders"}, "ports": [{"name": "http", "port": 80, "targetPort": target}]},
        })
    }

    #[test]
    fn slices_follow_pods() {
        let mut leaving = pod("c", &["10.0.0.3"], 8080, true);
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let pods =
            [pod("a", &["10.0.0.1", "fd00::1"], 8080, true), pod("b", &["10.0.0.2"], 8080, false), leaving];
        let slices = endpoint_slices(&service(&8080.into()), pods.iter());
        assert_eq!(slices.len(), 2);
        let conditions: Vec<_> =
            slices[0]["endpoints"].as_array().unwrap().iter().map(|e| &e["conditions"]).collect();
        assert_eq!(conditions[0], &json!({"ready": true, "serving": true, "terminating": false}));
        assert_eq!(conditions[1], &json!({"ready": false, "serving": false, "terminating": false}));
        assert_eq!(conditions[2], &json!({"ready": false, "serving": true, "terminating": true}));
        assert_eq!(slices[1]["addressType"], "IPv6");
        assert_eq!(slices[1]["endpoints"][0]["addresses"], json!(["fd00::1"]));
    }

    #[test]
    fn named_target_ports_part_the_slices() {
        let pods = [pod("a", &["10.0.0.1"], 8080, true), pod("b", &["10.0.0.2"], 9090, true)];
        let slices = endpoint_slices(&service(&"web".into()), pods.iter());
        let ports: Vec<_> = slices.iter().map(|slice| slice["ports"][0]["port"].as_u64()).collect();
        assert_eq!(ports, [Some(8080), Some(9090), None]);
        assert_eq!(slices[2]["addressType"], "IPv6");
    }

    #[test]
    fn a_service_without_selector_has_slices_of_somebody_else() {
        let mut service = service(&8080.into());
        service["spec"]["selector"] = Value::Null;
        assert!(endpoint_slices(&service, std::iter::empty()).is_empty());
    }

    #[test]
    fn timestamps_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_772_323_200, "2026-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap(), text);
        }
    }
}
