//! Whether a pod has a transparent proxy of its own.
//!
//! Two proxies that both believe the pod's connections to be theirs make loops, and each hides from the other who
//! calls whom. So a pod that a mesh has taken is left alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

/// Sidecars by their container's name. They are among the init containers where they are native sidecars.
const SIDECARS: [(&str, &str); 4] = [
    ("istio-proxy", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("kuma-sidecar", "Kuma"),
    ("consul-dataplane", "Consul"),
];
/// What Istio's injector writes into a pod, whatever its container is called.
const ISTIO_SIDECAR: &str = "sidecar.istio.io/status";
/// What ztunnel's node agent writes into a pod whose connections it has redirected.
const ISTIO_AMBIENT: (&str, &str) = ("ambient.istio.io/redirection", "enabled");
/// What asks for that.
const ISTIO_MODE: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// The mesh whose proxy takes this pod's connections.
pub(super) fn own_proxy(
    spec: &PodSpec,
    labels: Option<&BTreeMap<String, String>>,
    annotations: Option<&BTreeMap<String, String>>,
) -> Option<&'static str> {
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let sidecar = containers.find_map(|container| SIDECARS.iter().find(|(name, _)| *name == container.name));
    let says = |map: Option<&BTreeMap<String, String>>, (key, value): (&str, &str)| {
        map.and_then(|map| map.get(key)).is_some_and(|said| said == value)
    };
    if let Some((_, mesh)) = sidecar {
        Some(mesh)
    } else if annotations.is_some_and(|annotations| annotations.contains_key(ISTIO_SIDECAR)) {
        Some("Istio")
    } else if says(annotations, ISTIO_AMBIENT) || says(labels, ISTIO_MODE) {
        Some("Istio ambient")
    } else {
        None
    }
}

/// By what a pod can be told that has been taken by this mesh: its container's name, or else an annotation.
pub(super) fn sign(mesh: &str) -> Result<&'static str, (&'static str, &'static str)> {
    let sidecar = SIDECARS.iter().find(|(_, other)| *other == mesh);
    sidecar.map(|(container, _)| *container).ok_or(ISTIO_AMBIENT)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn of(pod: Value) -> Option<&'static str> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        own_proxy(&pod.spec.unwrap(), pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref())
    }

    fn pod(containers: &[&str], init: &[&str], labels: &Value, annotations: &Value) -> Value {
        let named = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        json!({
            "metadata": { "labels": labels, "annotations": annotations },
            "spec": { "containers": named(containers), "initContainers": named(init) },
        })
    }

    #[test]
    fn who_has_a_proxy() {
        let none = json!({});
        let table = [
            (pod(&["app"], &[], &none, &none), None),
            (pod(&["app", "istio-proxy"], &["istio-init"], &none, &none), Some("Istio")),
            // A native sidecar (restartPolicy: Always).
            (pod(&["app"], &["istio-init", "istio-proxy"], &none, &none), Some("Istio")),
            (pod(&["linkerd-proxy", "app"], &["linkerd-init"], &none, &none), Some("Linkerd")),
            (pod(&["app"], &["linkerd-proxy"], &none, &none), Some("Linkerd")),
            (pod(&["app", "kuma-sidecar"], &["kuma-init"], &none, &none), Some("Kuma")),
            (pod(&["app", "consul-dataplane"], &[], &none, &none), Some("Consul")),
            (pod(&["app"], &[], &none, &json!({ "sidecar.istio.io/status": "{}" })), Some("Istio")),
            (
                pod(&["app"], &[], &none, &json!({ "ambient.istio.io/redirection": "enabled" })),
                Some("Istio ambient"),
            ),
            (pod(&["app"], &[], &none, &json!({ "ambient.istio.io/redirection": "disabled" })), None),
            (
                pod(&["app"], &[], &json!({ "istio.io/dataplane-mode": "ambient" }), &none),
                Some("Istio ambient"),
            ),
            (pod(&["app"], &[], &json!({ "istio.io/dataplane-mode": "none" }), &none), None),
            // That only asks for a proxy, and nobody may have answered.
            (pod(&["app"], &[], &json!({ "sidecar.istio.io/inject": "true" }), &none), None),
            (pod(&["istio-proxy-exporter"], &["istio-init"], &none, &none), None),
        ];
        for (pod, expected) in table {
            assert_eq!(of(pod.clone()), expected, "{pod}");
        }
    }
}
